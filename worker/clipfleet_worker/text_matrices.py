"""The text matrices of label sets: encoded once, kept on the device, shared between workers."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Protocol

import numpy as np

from clipfleet.contract import ErrorCode, LabelSet, Lane
from clipfleet_worker.batcher import Batcher
from clipfleet_worker.batches import Encoder
from clipfleet_worker.cache_counts import CacheCounts
from clipfleet_worker.device_memory import memory_errors
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.open_clip_models import preset_label_set
from clipfleet_worker.scoring import text_matrix_of
from clipfleet_worker.shared_matrices import Alive, SharedMatrices
from clipfleet_worker.unit_vectors import have_direction, why_not

if TYPE_CHECKING:
    import torch

_KEPT_BYTES = 512 * 1024 * 1024  # of the device's memory; the newest matrix stays whatever its size
_PROMPTS_PER_PASS = 256
_SHARED_FROM_PROMPTS = 1000  # fewer are encoded faster than they are asked for
_POLL_SECONDS = 0.5  # while somebody else encodes the same label set


class TextModel(Encoder, Protocol):
    """A loaded model, as far as text matrices need it."""

    fingerprint: str
    device: str
    embedding_dimension: int


@dataclass(frozen=True, slots=True)
class TextMatrix:
    """A label set as a model sees it."""

    labels: tuple[str, ...]  # those of a preset too
    values: torch.Tensor  # float32 (labels, d), L2-normalised, on the model's device


class TextMatrices:
    """By model and label set; each is encoded once, whoever asks first."""

    def __init__(self, batcher: Batcher, shared: SharedMatrices | None = None) -> None:
        self._batcher = batcher
        self._shared = shared
        self._matrices: OrderedDict[tuple[str, str], TextMatrix] = OrderedDict()  # least recently used first
        self._encoding: dict[tuple[str, str], threading.Lock] = {}
        self._lock = threading.Lock()
        self.requests = CacheCounts()

    def get(self, model: TextModel, label_set: LabelSet, lane: Lane, alive: Alive) -> TextMatrix:
        """The matrix of a label set; blocks while it is encoded, in slices and in the given lane.

        Args:
            model: encodes the prompts.
            label_set: what is wanted.
            lane: of the job that needs it.
            alive: called before each slice and while somebody else encodes; what it raises ends the call.

        Raises:
            MemoryError: the device has no room for the matrix now.
            ItemFailure: `crashed`, a label has no vector; so does every image of the job.
        """
        key = (model.fingerprint, label_set.hash)
        with self._lock:
            encoding = self._encoding.setdefault(key, threading.Lock())
        while not encoding.acquire(timeout=_POLL_SECONDS):
            alive()
        try:
            kept = self._kept(key)
            self.requests.note(hit=kept is not None)
            return kept or self._keep(key, self._made(model, label_set, lane, alive))
        finally:
            encoding.release()

    def _kept(self, key: tuple[str, str]) -> TextMatrix | None:
        with self._lock:
            if key in self._matrices:
                self._matrices.move_to_end(key)
            return self._matrices.get(key)

    def _keep(self, key: tuple[str, str], matrix: TextMatrix) -> TextMatrix:
        with self._lock:
            self._matrices[key] = matrix
            while len(self._matrices) > 1 and sum(map(_size_bytes, self._matrices.values())) > _KEPT_BYTES:
                gone, _ = self._matrices.popitem(last=False)
                self._encoding.pop(gone, None)
        return matrix

    def _made(self, model: TextModel, label_set: LabelSet, lane: Lane, alive: Alive) -> TextMatrix:
        import torch

        labels, templates = label_set.labels, label_set.templates
        if label_set.preset is not None:
            labels, templates = preset_label_set(label_set.preset)
        encode = partial(self._encode, model, labels, templates, lane)
        if self._shared is not None and len(labels) * len(templates) >= _SHARED_FROM_PROMPTS:
            shape = len(labels), model.embedding_dimension
            values = self._shared.get(model.fingerprint, label_set.hash, shape, encode, alive)
        else:
            values = encode(alive)
        with memory_errors():
            return TextMatrix(labels, torch.from_numpy(values).to(model.device))

    def _encode(
        self, model: TextModel, labels: Sequence[str], templates: Sequence[str], lane: Lane, alive: Alive
    ) -> np.ndarray:
        step = max(1, _PROMPTS_PER_PASS // len(templates))
        rows = []
        for start in range(0, len(labels), step):
            alive()
            some = labels[start : start + step]
            prompts = [template.replace("{}", label) for label in some for template in templates]
            matrix = text_matrix_of(self._batcher.encode_texts(model, prompts, lane), len(some))
            _require_vectors(matrix, some, model)
            rows.append(matrix)
        return np.concatenate(rows)


def _require_vectors(matrix: np.ndarray, labels: Sequence[str], model: TextModel) -> None:
    usable = have_direction(matrix)
    if not usable.all():
        label = labels[int(np.argmin(usable))]
        raise ItemFailure(ErrorCode.CRASHED, why_not(model.precision, f"the label {label[:60]!r}"))


def _size_bytes(matrix: TextMatrix) -> int:
    return matrix.values.numel() * matrix.values.element_size()
