"""Text matrices and rankings, against a slow reference in float64."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import cast

import numpy as np
import pytest

from clipfleet.contract import LabelSet, Lane
from clipfleet_worker.batcher import Batcher, Encoder
from clipfleet_worker.scoring import TextMatrices, rank, text_matrix_of
from clipfleet_worker.testing import FakeEncoder
from tests.support.doubles import PATIENCE_SECONDS, InThread


def unit_rows(seed: int, rows: int, dimension: int = 32) -> np.ndarray:
    values = np.random.default_rng(seed).standard_normal((rows, dimension))
    normalised: np.ndarray = values / np.linalg.norm(values, axis=1, keepdims=True)
    return normalised.astype(np.float32)


def softmax_rows(features: np.ndarray, matrix: np.ndarray, logit_scale: float) -> np.ndarray:
    """Probabilities, row by row, in float64."""
    rows = []
    for feature in features.astype(np.float64):
        logits = np.array([logit_scale * float(feature @ text) for text in matrix.astype(np.float64)])
        powers = np.exp(logits - logits.max())
        rows.append(powers / powers.sum())
    return np.array(rows)


class TestRank:
    @pytest.mark.parametrize("logit_scale", [1.0, 14.3, 100.0])
    def test_the_best_labels_of_a_softmax_over_all(self, logit_scale: float) -> None:
        features, matrix = unit_rows(1, 50), unit_rows(2, 20)

        ranking = rank(features, matrix, logit_scale, 5)

        expected = softmax_rows(features, matrix, logit_scale)
        order = np.argsort(-expected, axis=1)[:, :5]
        np.testing.assert_array_equal(ranking.label_indices, order)
        np.testing.assert_allclose(ranking.scores, np.take_along_axis(expected, order, axis=1), atol=2e-5)
        assert ranking.scores.dtype == np.float32

    def test_scores_descend(self) -> None:
        ranking = rank(unit_rows(1, 30), unit_rows(2, 9), 100.0, 9)

        assert (np.diff(ranking.scores, axis=1) <= 0).all()
        np.testing.assert_allclose(ranking.scores.sum(axis=1), 1.0, rtol=1e-5)

    def test_there_are_no_more_labels_than_the_set_has(self) -> None:
        ranking = rank(unit_rows(1, 3), unit_rows(2, 2), 100.0, 5)

        assert ranking.label_indices.shape == ranking.scores.shape == (3, 2)

    def test_a_single_label_is_certain(self) -> None:
        assert rank(unit_rows(1, 2), unit_rows(2, 1), 100.0, 5).scores.tolist() == [[1.0], [1.0]]

    def test_of_equal_scores_the_first_label_wins(self) -> None:
        matrix = np.repeat(unit_rows(2, 1), 4, axis=0)

        assert rank(unit_rows(1, 1), matrix, 100.0, 3).label_indices.tolist() == [[0, 1, 2]]

    def test_a_large_scale_does_not_overflow(self) -> None:
        with np.errstate(all="raise", under="ignore"):
            scores = rank(unit_rows(1, 4), unit_rows(2, 8), 10_000.0, 8).scores

        assert np.isfinite(scores).all()

    def test_the_features_are_left_as_they_are(self) -> None:
        features, matrix = unit_rows(1, 4), unit_rows(2, 8)
        before = features.copy(), matrix.copy()

        rank(features, matrix, 100.0, 2)

        np.testing.assert_array_equal(features, before[0])
        np.testing.assert_array_equal(matrix, before[1])


class TestTextMatrix:
    def test_the_prompts_of_a_label_are_averaged_and_normalised_again(self) -> None:
        labels = LabelSet(labels=("cat", "dog", "cow"), templates=("a {}", "the {} here"))
        by_prompt = dict(zip(labels.prompts(), unit_rows(3, 6), strict=True))

        matrix = text_matrix_of(np.stack([by_prompt[prompt] for prompt in labels.prompts()]), 3)

        for row, label in zip(matrix, labels.labels, strict=True):
            mean = (by_prompt[f"a {label}"] + by_prompt[f"the {label} here"]) / 2
            np.testing.assert_allclose(row, mean / np.linalg.norm(mean), rtol=1e-6)
        assert matrix.dtype == np.float32

    def test_one_template_changes_nothing(self) -> None:
        features = unit_rows(3, 5)
        np.testing.assert_allclose(text_matrix_of(features, 5), features, rtol=1e-6)


class FakeBatcher:
    """Encodes in the caller's thread; counts, and may be told to fail or to wait."""

    def __init__(self) -> None:
        self.asked: list[tuple[list[str], Lane]] = []
        self.error: Exception | None = None
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()

    def encode_texts(self, encoder: Encoder, prompts: Sequence[str], lane: Lane) -> np.ndarray:
        self.asked.append((list(prompts), lane))
        self.entered.set()
        assert self.go.wait(PATIENCE_SECONDS)
        if self.error is not None:
            raise self.error
        return encoder.encode_texts(list(prompts))


def made() -> tuple[FakeBatcher, TextMatrices]:
    batcher = FakeBatcher()
    return batcher, TextMatrices(cast(Batcher, batcher))


def labels(*names: str) -> LabelSet:
    return LabelSet(labels=names)


class TestTextMatrices:
    def test_rows_are_in_the_order_of_the_labels(self) -> None:
        _, matrices = made()
        encoder, colours = FakeEncoder(), labels("blue", "red")

        matrix = matrices.get(encoder, colours, Lane.NORMAL)

        expected = encoder.encode_texts(["a photo of a blue", "a photo of a red"])
        np.testing.assert_allclose(matrix, expected, rtol=1e-6)

    def test_a_label_set_is_encoded_once_per_model_in_the_lane_of_who_came_first(self) -> None:
        batcher, matrices = made()
        for fingerprint, names in (("m", "ab"), ("m", "ab"), ("m", "ac"), ("n", "ab"), ("m", "ab")):
            matrices.get(FakeEncoder(fingerprint), labels(*names), Lane.BULK)

        assert [prompts[1][-1] for prompts, _ in batcher.asked] == ["b", "c", "b"]
        assert {lane for _, lane in batcher.asked} == {Lane.BULK}

    def test_many_threads_that_ask_at_once_cause_one_encoding(self) -> None:
        batcher, matrices = made()
        batcher.go.clear()
        ask = lambda: matrices.get(FakeEncoder(), labels("a", "b"), Lane.NORMAL)  # noqa: E731
        calls = [InThread(ask) for _ in range(8)]
        assert batcher.entered.wait(PATIENCE_SECONDS)
        batcher.go.set()

        found = [call.result() for call in calls]

        assert len(batcher.asked) == 1
        assert all(matrix is found[0] for matrix in found)

    def test_a_failure_is_not_kept(self) -> None:
        batcher, matrices = made()
        batcher.error = MemoryError("no room")
        with pytest.raises(MemoryError):
            matrices.get(FakeEncoder(), labels("a"), Lane.NORMAL)

        batcher.error = None
        assert matrices.get(FakeEncoder(), labels("a"), Lane.NORMAL).shape == (1, 16)

    def test_the_least_recently_used_matrix_goes(self) -> None:
        batcher, matrices = made()
        ask = lambda name: matrices.get(FakeEncoder(), labels(name), Lane.NORMAL)  # noqa: E731
        for n in range(16):
            ask(f"label {n}")
        ask("label 0")
        ask("one more")
        assert len(batcher.asked) == 17

        ask("label 0")
        assert len(batcher.asked) == 17
        ask("label 1")
        assert len(batcher.asked) == 18
