"""Text matrices: encoded once per model and label set, in slices, for all who ask at once."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

import numpy as np
import pytest
import torch

from clipfleet.contract.jobs import ErrorCode, Lane, Precision
from clipfleet.contract.label_sets import LabelSet, Preset
from clipfleet_worker.encode.batcher import Batcher, Encoder
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.failures import ChunkInterrupted, ItemFailure
from clipfleet_worker.score import text_matrices
from clipfleet_worker.score.labelling import encode_label_set
from clipfleet_worker.score.ranking import prompts_of, text_matrix_of
from clipfleet_worker.score.text_matrices import Alive, TextMatrices, TextMatrix
from tests.support.doubles import PATIENCE_SECONDS, InThread
from tests.support.failing import failing


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


@pytest.fixture
def batcher() -> FakeBatcher:
    return FakeBatcher()


@pytest.fixture
def matrices(batcher: FakeBatcher) -> TextMatrices:
    return TextMatrices(cast(Batcher, batcher))


def labels(*names: str) -> LabelSet:
    return LabelSet(labels=names)


def get(
    matrices: TextMatrices,
    label_set: LabelSet,
    encoder: FakeEncoder | None = None,
    alive: Alive = lambda: None,
) -> TextMatrix:
    return matrices.get(encoder or FakeEncoder(), label_set, Lane.BULK, alive)


def test_a_label_set_is_encoded_once_per_model_in_the_lane_of_who_came_first(
    batcher: FakeBatcher, matrices: TextMatrices
) -> None:
    for fingerprint, names in (("m", "ab"), ("m", "ab"), ("m", "ac"), ("n", "ab"), ("m", "ab")):
        get(matrices, labels(*names), FakeEncoder(fingerprint))

    assert [prompts[1][-1] for prompts, _ in batcher.asked] == ["b", "c", "b"]
    assert {lane for _, lane in batcher.asked} == {Lane.BULK}


@pytest.mark.parametrize("prompts_per_pass", [1, 6, 7, 1000])
def test_rows_are_in_the_order_of_the_labels_whatever_the_slices(
    monkeypatch: pytest.MonkeyPatch, batcher: FakeBatcher, matrices: TextMatrices, prompts_per_pass: int
) -> None:
    monkeypatch.setattr(text_matrices, "_PROMPTS_PER_PASS", prompts_per_pass)
    many = LabelSet(labels=tuple(f"thing {n}" for n in range(10)), templates=("a {}", "the {}", "{}"))

    matrix = get(matrices, many)

    expected = FakeEncoder().encode_texts(prompts_of(many.labels, many.templates))
    np.testing.assert_allclose(matrix.values.numpy(), text_matrix_of(expected, 10), rtol=1e-6)
    assert matrix.labels == many.labels
    assert max(len(prompts) for prompts, _ in batcher.asked) <= max(prompts_per_pass, 3)


@pytest.mark.parametrize(("limit", "kind"), [(4 * 16 * 8, torch.float64), (4 * 16 * 8 - 1, torch.float32)])
def test_a_matrix_is_kept_as_it_is_multiplied_unless_it_is_large(
    monkeypatch: pytest.MonkeyPatch, matrices: TextMatrices, limit: int, kind: torch.dtype
) -> None:
    monkeypatch.setattr(text_matrices, "_DOUBLE_BYTES", limit)

    assert get(matrices, labels("a", "b", "c", "d")).values.dtype is kind


def test_a_preset_has_the_labels_that_open_clip_brings(batcher: FakeBatcher, matrices: TextMatrices) -> None:
    matrix = get(matrices, LabelSet(preset=Preset.IMAGENET1K))

    assert (matrix.labels[0], len(matrix.labels), matrix.values.shape) == ("tench", 1000, (1000, 16))
    assert batcher.asked[0][0][:2] == ["a bad photo of a tench.", "a photo of many tench."]
    assert sum(len(prompts) for prompts, _ in batcher.asked) == 80_000


def test_many_threads_that_ask_at_once_cause_one_encoding(
    batcher: FakeBatcher, matrices: TextMatrices
) -> None:
    batcher.go.clear()
    calls = [InThread(lambda: get(matrices, labels("a", "b"))) for _ in range(8)]
    assert batcher.entered.wait(PATIENCE_SECONDS)
    batcher.go.set()

    assert len({id(call.result()) for call in calls}) == 1
    assert len(batcher.asked) == 1


def test_who_waits_for_another_thread_says_that_it_is_alive_and_may_leave(
    batcher: FakeBatcher, matrices: TextMatrices
) -> None:
    batcher.go.clear()
    first = InThread(lambda: get(matrices, labels("a")))
    assert batcher.entered.wait(PATIENCE_SECONDS)

    with pytest.raises(ChunkInterrupted):
        get(matrices, labels("a"), alive=failing(ChunkInterrupted("lost")))
    batcher.go.set()
    assert first.result().values.shape == (1, 16)


def test_a_chunk_that_is_lost_ends_the_encoding_and_the_next_one_does_it(
    monkeypatch: pytest.MonkeyPatch, batcher: FakeBatcher, matrices: TextMatrices
) -> None:
    monkeypatch.setattr(text_matrices, "_PROMPTS_PER_PASS", 2)
    six = labels(*"abcdef")

    def lost() -> None:
        if len(batcher.asked) == 2:
            raise ChunkInterrupted("lost")

    with pytest.raises(ChunkInterrupted):
        get(matrices, six, alive=lost)
    assert len(batcher.asked) == 2

    assert get(matrices, six).values.shape == (6, 16)


def test_a_failure_is_not_kept(batcher: FakeBatcher, matrices: TextMatrices) -> None:
    batcher.error = MemoryError("no room")
    with pytest.raises(MemoryError):
        get(matrices, labels("a"))

    batcher.error = None
    assert get(matrices, labels("a")).values.shape == (1, 16)


@pytest.mark.parametrize(
    ("kept_bytes", "encoded"),
    [(3 * 16 * 8, "abcdb"), (1, "abcadab")],  # three labels of 16 floats; none, but for the newest
)
def test_the_least_recently_used_matrix_goes_when_there_are_too_many_bytes(
    monkeypatch: pytest.MonkeyPatch,
    batcher: FakeBatcher,
    matrices: TextMatrices,
    kept_bytes: int,
    encoded: str,
) -> None:
    monkeypatch.setattr(text_matrices, "_KEPT_BYTES", kept_bytes)

    for name in "abccadaabb":
        get(matrices, labels(name))

    assert "".join(prompts[0][-1] for prompts, _ in batcher.asked) == encoded


def test_too_little_memory_of_the_device_is_told_as_such(
    monkeypatch: pytest.MonkeyPatch, matrices: TextMatrices
) -> None:
    monkeypatch.setattr(torch.Tensor, "to", failing(torch.OutOfMemoryError("CUDA out of memory")))

    with pytest.raises(MemoryError, match="out of memory"):
        get(matrices, labels("cat"))


class Overflowing(FakeEncoder):
    """Gives no usable vector for texts with `red`."""

    value = np.nan

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        features = super().encode_texts(prompts)
        features[["red" in prompt for prompt in prompts]] = self.value
        return features


@pytest.mark.parametrize("value", [np.nan, np.inf, 0.0])
def test_a_label_without_a_vector_is_named_and_nothing_is_kept(
    batcher: FakeBatcher, matrices: TextMatrices, value: float
) -> None:
    encoder = Overflowing()
    encoder.value = value
    encoder.precision = Precision.BF16
    for times in (1, 2):
        with pytest.raises(ItemFailure, match="the label 'red'") as told:
            get(matrices, labels("blue", "red", "green"), encoder)

        assert told.value.error.code is ErrorCode.CRASHED
        assert told.value.error.detail.startswith("the model overflows in bf16; set CLIPFLEET_PRECISION=fp32")
        assert len(batcher.asked) == times


@pytest.mark.parametrize("prompts", [{"background": ("red",)}, {"not_prompts": {"blue": ("red",)}}], ids=str)
def test_a_background_prompt_without_a_vector_is_called_so(
    matrices: TextMatrices, prompts: dict[str, Any]
) -> None:
    label_set = LabelSet(labels=("blue",), none=True, **prompts)

    with pytest.raises(ItemFailure, match="for the background prompt 'red'"):
        encode_label_set(matrices, Overflowing(), label_set, Lane.BULK, lambda: None)
