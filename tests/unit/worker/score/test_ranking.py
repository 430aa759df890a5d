"""Rankings on the device, against a slow reference in float64; test_fidelity.py has open_clip's."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch

from clipfleet.contract.label_sets import LabelSet, Preset
from clipfleet_worker.models.open_clip_models import preset_label_set
from clipfleet_worker.score import best_labels, ranking
from clipfleet_worker.score.ranking import Ranking, prompts_of, rank, text_matrix_of


def unit_rows(seed: int, rows: int, dimension: int = 32) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, dimension))
    return (values / np.linalg.norm(values, axis=1, keepdims=True)).astype(np.float32)


def softmax_rows(features: np.ndarray, matrix: np.ndarray, logit_scale: float) -> np.ndarray:
    """Probabilities, row by row, in float64."""
    rows = []
    for feature in features.astype(np.float64):
        logits = logit_scale * (matrix.astype(np.float64) @ feature)
        powers = np.exp(logits - logits.max())
        rows.append(powers / powers.sum())
    return np.array(rows)


def in_slices_of(monkeypatch: pytest.MonkeyPatch, labels: int) -> None:
    for module in (best_labels, ranking):
        monkeypatch.setattr(module, "LABELS_PER_SLICE", labels)


def ranked(features: np.ndarray, matrix: np.ndarray, logit_scale: float, top_k: int) -> Ranking:
    return rank(torch.from_numpy(features).double(), torch.from_numpy(matrix), logit_scale, top_k)


def require_best(features: np.ndarray, matrix: np.ndarray, logit_scale: float, top_k: int) -> None:
    """The reference's best labels, with its scores to 1e-6."""
    given = features.copy(), matrix.copy()

    ranking = ranked(features, matrix, logit_scale, top_k)

    expected = softmax_rows(features, matrix, logit_scale)
    order = np.argsort(-expected, axis=1, kind="stable")[:, :top_k]
    np.testing.assert_array_equal(ranking.label_indices, order)
    scores = np.take_along_axis(expected, order, axis=1)
    np.testing.assert_allclose(ranking.scores, scores, rtol=1e-5, atol=1e-6)
    assert ranking.scores.dtype == np.float32
    for before, after in zip(given, (features, matrix), strict=True):
        np.testing.assert_array_equal(after, before)


class TestRank:
    @pytest.mark.parametrize(
        ("images", "labels", "logit_scale", "top_k"),
        [
            (50, 20, 1.0, 5),
            (50, 20, 14.3, 5),
            (50, 20, 100.0, 5),
            (30, 9, 100.0, 9),
            (40, 12_000, 100.0, 5),
            (4, 8, 10_000.0, 1),  # a power of it overflows
            (3, 2, 100.0, 5),  # fewer labels than are asked for
            (2, 1, 100.0, 5),
        ],
    )
    def test_the_best_labels_of_a_softmax_over_all(
        self, images: int, labels: int, logit_scale: float, top_k: int
    ) -> None:
        require_best(unit_rows(1, images, 128), unit_rows(2, labels, 128), logit_scale, top_k)

    @pytest.mark.parametrize("count", [1, 2, 7, 64, 299, 300, 301])
    def test_slices_of_labels_change_nothing(self, monkeypatch: pytest.MonkeyPatch, count: int) -> None:
        in_slices_of(monkeypatch, count)

        require_best(unit_rows(1, 9), unit_rows(2, 300), 100.0, 5)

    def test_an_image_gets_the_same_scores_in_any_batch(self) -> None:
        features, matrix = unit_rows(1, 300), unit_rows(2, 30)

        whole = ranked(features, matrix, 100.0, 5)
        alone = [ranked(features[number : number + 1], matrix, 100.0, 5) for number in range(300)]

        np.testing.assert_array_equal(whole.scores, np.concatenate([one.scores for one in alone]))

    def test_a_matrix_of_all_images_and_labels_is_never_there(self, monkeypatch: pytest.MonkeyPatch) -> None:
        sizes: list[int] = []
        topk = torch.topk
        monkeypatch.setattr(torch, "topk", lambda values, n: sizes.append(values.numel()) or topk(values, n))
        in_slices_of(monkeypatch, 100)

        ranked(unit_rows(1, 10), unit_rows(2, 5_000), 100.0, 5)

        assert max(sizes) == 10 * 100

    @pytest.mark.parametrize("sign", [1.0, -1.0])
    def test_of_equal_scores_the_first_label_wins(self, monkeypatch: pytest.MonkeyPatch, sign: float) -> None:
        in_slices_of(monkeypatch, 7)
        feature = unit_rows(1, 1)
        matrix = np.repeat(sign * feature, 40, axis=0)

        assert ranked(feature, matrix, 100.0, 4).label_indices.tolist() == [[0, 1, 2, 3]]


class TestTextMatrix:
    def test_the_prompts_go_label_by_label(self) -> None:
        assert prompts_of(("cat", "{x}"), ("a {}", "two {}s")) == ["a cat", "two cats", "a {x}", "two {x}s"]

    def test_those_of_a_preset_are_open_clips(self) -> None:
        (*_, name), templates = preset_label_set(Preset.IMAGENET1K)
        expected = [template(name) for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
        assert prompts_of((name,), templates) == expected

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
