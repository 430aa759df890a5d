"""Rankings on the device, against a slow reference in float64 and against open_clip."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from importlib.resources import as_file, files
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from clipfleet.contract.jobs import DEMO_MODEL, Precision
from clipfleet.contract.label_sets import LabelSet, Preset
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.models.open_clip_models import preset_label_set
from clipfleet_worker.score import ranking as scoring
from clipfleet_worker.score.ranking import Ranking, prompts_of, rank, text_matrix_of
from tests.support.reference import ReferenceModel


def unit_rows(seed: int, rows: int, dimension: int = 32) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, dimension))
    normalised: np.ndarray = values / np.linalg.norm(values, axis=1, keepdims=True)
    return normalised.astype(np.float32)


def softmax_rows(features: np.ndarray, matrix: np.ndarray, logit_scale: float) -> np.ndarray:
    """Probabilities, row by row, in float64."""
    rows = []
    for feature in features.astype(np.float64):
        logits = logit_scale * (matrix.astype(np.float64) @ feature)
        powers = np.exp(logits - logits.max())
        rows.append(powers / powers.sum())
    return np.array(rows)


def ranked(features: np.ndarray, matrix: np.ndarray, logit_scale: float, top_k: int) -> Ranking:
    return rank(features, torch.from_numpy(matrix), logit_scale, top_k)


def is_best(ranking: Ranking, features: np.ndarray, matrix: np.ndarray, logit_scale: float) -> None:
    """The reference's best labels, with its scores to 1e-6."""
    expected = softmax_rows(features, matrix, logit_scale)
    order = np.argsort(-expected, axis=1, kind="stable")[:, : ranking.scores.shape[1]]
    np.testing.assert_array_equal(ranking.label_indices, order)
    np.testing.assert_allclose(
        ranking.scores, np.take_along_axis(expected, order, axis=1), rtol=1e-5, atol=1e-6
    )


class TestRank:
    @pytest.mark.parametrize("logit_scale", [1.0, 14.3, 100.0])
    def test_the_best_labels_of_a_softmax_over_all(self, logit_scale: float) -> None:
        features, matrix = unit_rows(1, 50), unit_rows(2, 20)

        ranking = ranked(features, matrix, logit_scale, 5)

        is_best(ranking, features, matrix, logit_scale)
        assert ranking.scores.dtype == np.float32

    @pytest.mark.parametrize("labels_per_slice", [1, 2, 7, 64, 299, 300, 301])
    def test_slices_of_labels_change_nothing(
        self, monkeypatch: pytest.MonkeyPatch, labels_per_slice: int
    ) -> None:
        monkeypatch.setattr(scoring, "_LABELS_PER_SLICE", labels_per_slice)
        features, matrix = unit_rows(1, 9), unit_rows(2, 300)

        is_best(ranked(features, matrix, 100.0, 5), features, matrix, 100.0)

    @pytest.mark.parametrize("exact_values", [1, 100, 10_000_000])
    def test_slices_of_images_change_nothing(
        self, monkeypatch: pytest.MonkeyPatch, exact_values: int
    ) -> None:
        monkeypatch.setattr(scoring, "_EXACT_VALUES", exact_values)
        features, matrix = unit_rows(1, 9), unit_rows(2, 30)

        is_best(ranked(features, matrix, 100.0, 30), features, matrix, 100.0)

    def test_twelve_thousand_labels(self) -> None:
        features, matrix = unit_rows(1, 40, 128), unit_rows(2, 12_000, 128)

        is_best(ranked(features, matrix, 100.0, 5), features, matrix, 100.0)

    def test_a_matrix_of_all_images_and_labels_is_never_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        largest = 0
        topk = torch.topk

        def watched(values: torch.Tensor, count: int) -> object:
            nonlocal largest
            largest = max(largest, values.numel())
            return topk(values, count)

        monkeypatch.setattr(torch, "topk", watched)
        monkeypatch.setattr(scoring, "_LABELS_PER_SLICE", 100)

        ranked(unit_rows(1, 10), unit_rows(2, 5_000), 100.0, 5)

        assert largest == 10 * 100

    def test_scores_descend_and_add_up_to_one_over_all_labels(self) -> None:
        ranking = ranked(unit_rows(1, 30), unit_rows(2, 9), 100.0, 9)

        assert (np.diff(ranking.scores, axis=1) <= 0).all()
        np.testing.assert_allclose(ranking.scores.sum(axis=1), 1.0, rtol=1e-6)

    def test_there_are_no_more_labels_than_the_set_has(self) -> None:
        ranking = ranked(unit_rows(1, 3), unit_rows(2, 2), 100.0, 5)

        assert ranking.label_indices.shape == ranking.scores.shape == (3, 2)

    def test_a_single_label_is_certain(self) -> None:
        assert ranked(unit_rows(1, 2), unit_rows(2, 1), 100.0, 5).scores.tolist() == [[1.0], [1.0]]

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_of_equal_scores_the_first_label_wins(self, monkeypatch: pytest.MonkeyPatch, sign: float) -> None:
        monkeypatch.setattr(scoring, "_LABELS_PER_SLICE", 7)
        feature = unit_rows(1, 1)
        matrix = np.repeat(sign * feature, 40, axis=0)

        assert ranked(feature, matrix, 100.0, 4).label_indices.tolist() == [[0, 1, 2, 3]]

    def test_a_large_scale_does_not_overflow(self) -> None:
        assert np.isfinite(ranked(unit_rows(1, 4), unit_rows(2, 8), 10_000.0, 8).scores).all()

    def test_the_features_are_left_as_they_are(self) -> None:
        features, matrix = unit_rows(1, 4), unit_rows(2, 8)
        before = features.copy(), matrix.copy()

        ranked(features, matrix, 100.0, 2)

        np.testing.assert_array_equal(features, before[0])
        np.testing.assert_array_equal(matrix, before[1])

    def test_too_little_memory_is_told_as_such(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def no_room(*_: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(torch, "topk", no_room)

        with pytest.raises(MemoryError, match="out of memory"):
            ranked(unit_rows(1, 4), unit_rows(2, 8), 100.0, 2)


class TestTextMatrix:
    def test_the_prompts_go_label_by_label(self) -> None:
        assert prompts_of(("cat", "dog"), ("a {}", "two {}s")) == ["a cat", "two cats", "a dog", "two dogs"]

    def test_a_label_may_hold_braces(self) -> None:
        assert prompts_of(("{}", "{x}"), ("a {}",)) == ["a {}", "a {x}"]

    def test_the_prompts_of_a_label_are_averaged_and_normalised_again(self) -> None:
        labels = LabelSet(labels=("cat", "dog", "cow"), templates=("a {}", "the {} here"))
        by_prompt = dict(zip(prompts_of(labels.labels, labels.templates), unit_rows(3, 6), strict=True))

        matrix = text_matrix_of(np.stack([by_prompt[prompt] for prompt in by_prompt]), 3)

        for row, label in zip(matrix, labels.labels, strict=True):
            mean = (by_prompt[f"a {label}"] + by_prompt[f"the {label} here"]) / 2
            np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-6)
        assert matrix.dtype == np.float32

    def test_one_template_changes_nothing(self) -> None:
        features = unit_rows(3, 5)
        np.testing.assert_allclose(text_matrix_of(features, 5), features, rtol=1e-6)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model(DEMO_MODEL, Precision.FP32, "cpu")


@pytest.fixture(scope="module")
def alone() -> Iterator[ReferenceModel]:
    with as_file(files("clipfleet_worker") / "demo_model") as folder:
        yield ReferenceModel(folder)


class TestAgainstOpenClip:
    """The same features under open_clip's own zero-shot classifier."""

    def reference(self, alone: ReferenceModel, labels: Sequence[str], templates: Sequence[Any]) -> np.ndarray:
        with torch.inference_mode():
            weights = open_clip.build_zero_shot_classifier(alone.module, alone.tokenizer, labels, templates)
        array: np.ndarray = weights.T.numpy()
        return array

    @pytest.mark.parametrize(
        ("labels", "templates"),
        [
            (("cat", "dog", "rocket"), ("a photo of a {}",)),
            (("cat", "dog", "rocket", "ice cream"), ("a {}", "a drawing of a {}", "{}")),
        ],
    )
    def test_given_labels(
        self, demo: LoadedModel, alone: ReferenceModel, labels: tuple[str, ...], templates: tuple[str, ...]
    ) -> None:
        label_set = LabelSet(labels=labels, templates=templates)
        ours = text_matrix_of(
            demo.encode_texts(prompts_of(label_set.labels, label_set.templates)), len(labels)
        )

        self.compare(demo, ours, self.reference(alone, labels, templates))

    def test_imagenet(self, demo: LoadedModel, alone: ReferenceModel) -> None:
        labels, templates = preset_label_set(Preset.IMAGENET1K)
        assert (len(labels), len(templates)) == (1000, 80)
        # As open_clip does it, with its own templates; a few of the names keep the test short.
        names = labels[::40]
        reference = self.reference(alone, names, open_clip.OPENAI_IMAGENET_TEMPLATES)
        prompts = [template.replace("{}", name) for name in names for template in templates]
        ours = text_matrix_of(demo.encode_texts(prompts), len(names))

        self.compare(demo, ours, reference)

    def compare(self, model: LoadedModel, ours: np.ndarray, reference: np.ndarray) -> None:
        features = unit_rows(5, 64, model.embedding_dimension) + reference[np.arange(64) % len(reference)]
        features = (features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32)
        ranking = ranked(features, ours, model.logit_scale, len(reference))
        with torch.inference_mode():
            logits = model.logit_scale * torch.from_numpy(features) @ torch.from_numpy(reference).T
            expected = logits.softmax(dim=-1).numpy()
        by_label = np.zeros_like(expected)
        np.put_along_axis(by_label, ranking.label_indices, ranking.scores, axis=1)
        np.testing.assert_allclose(by_label, expected, atol=1e-4)
