"""The text matrices of label sets: encoded once, cached on the device, shared between workers.

Those of large label sets are cached in Redis, too: one worker encodes them, the others read them. This is
best effort: while Redis does not answer, or has no room, every worker encodes for itself.
"""

from __future__ import annotations

import logging
import struct
import threading
import time
import uuid
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING

import numpy as np
import redis
from redis.exceptions import LockError
from redis.lock import Lock

from clipfleet.contract.jobs import ErrorCode, Lane
from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect, redis_errors
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.encode.batches import Encoder
from clipfleet_worker.encode.unit_vectors import have_direction, why_not
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.models.open_clip_models import preset_label_set
from clipfleet_worker.process.counts import CacheCounts
from clipfleet_worker.process.device import memory_errors
from clipfleet_worker.score.ranking import prompts_of, text_matrix_of

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

# Up to this size a matrix is kept as it is multiplied; a larger one would take too much of the device.
_DOUBLE_BYTES = 128 * 1024 * 1024
_KEPT_BYTES = 512 * 1024 * 1024  # of the device's memory; the newest matrix is kept at any size
_PROMPTS_PER_PASS = 256
_SHARED_FROM_PROMPTS = 1000  # encoding fewer is faster than reading them from Redis
_POLL_SECONDS = 0.5  # while another thread or worker encodes the same label set
_SHARED_SECONDS = 86_400  # after the last use
_SHARED_BYTES = 64 * 1024 * 1024  # larger ones are not shared: they would delay the ledger
_LOCK_SECONDS = 60.0  # renewed before every slice; how long a dead worker delays the others
_HEADER = struct.Struct("<II")  # labels, dimension; then float32, little-endian

Alive = Callable[[], None]
Slices = Sequence[Callable[[], np.ndarray]]  # each encodes some of the labels


@dataclass(frozen=True, slots=True)
class TextMatrix:
    """A label set encoded by a model."""

    labels: tuple[str, ...]  # of the set, or of its preset
    values: torch.Tensor  # float64 (labels, d), if large float32; L2-normalised, on the model's device


class TextMatrices:
    """Text matrices by model and prompts of a label set; each is encoded once.

    Args:
        batcher: encodes the prompts.
        url: of the Redis in which large ones are shared; None: they are not shared.
    """

    def __init__(self, batcher: Batcher, url: str | None = None) -> None:
        self._batcher = batcher
        self._url = url
        self._redis = None if url is None else connect(url, decode=False)
        self._matrices: OrderedDict[tuple[str, str], TextMatrix] = OrderedDict()  # least recently used first
        self._encoding: dict[tuple[str, str], threading.Lock] = {}
        self._lock = threading.Lock()
        self.requests = CacheCounts()
        self.shared_requests = CacheCounts()

    def close(self) -> None:
        """Close the connections."""
        if self._redis is not None:
            self._redis.close()

    def get(
        self, model: Encoder, label_set: LabelSet, lane: Lane, alive: Alive, what: str = "label"
    ) -> TextMatrix:
        """The matrix of a label set; blocks while it is encoded, in slices and in the given lane.

        Args:
            model: encodes the prompts.
            label_set: the label set.
            lane: of the job that needs it.
            alive: called before each slice and while another one encodes; what it raises ends the call.
            what: the word for a label in error messages.

        Raises:
            MemoryError: the device has no room for the matrix now.
            ItemFailure: `crashed` for a label without a vector; every image of the job fails with it.
        """
        key = (model.fingerprint, label_set.prompts_hash)
        with self._lock:
            encoding = self._encoding.setdefault(key, threading.Lock())
        while not encoding.acquire(timeout=_POLL_SECONDS):
            alive()
        try:
            kept = self._kept(key)
            self.requests.note(hit=kept is not None)
            return kept or self._keep(key, self._made(model, label_set, lane, alive, what))
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
            while (
                len(self._matrices) > 1
                and sum(one.values.nbytes for one in self._matrices.values()) > _KEPT_BYTES
            ):
                gone, _ = self._matrices.popitem(last=False)
                self._encoding.pop(gone, None)
        return matrix

    def _made(self, model: Encoder, label_set: LabelSet, lane: Lane, alive: Alive, what: str) -> TextMatrix:
        import torch

        labels, templates = label_set.labels, label_set.templates
        if label_set.preset is not None:
            labels, templates = preset_label_set(label_set.preset)
        step = max(1, _PROMPTS_PER_PASS // len(templates))
        slices = [
            partial(self._encode, model, labels[start : start + step], templates, lane, what)
            for start in range(0, len(labels), step)
        ]
        values = None
        if self._redis is not None and len(labels) * len(templates) >= _SHARED_FROM_PROMPTS:
            shared = _Shared(self._redis, model, label_set, len(labels))
            values = self._taken_over(shared, slices, alive)
        if values is None:
            values = _whole(slices, alive)
        with memory_errors():
            kind = torch.float64 if 2 * values.nbytes <= _DOUBLE_BYTES else torch.float32
            return TextMatrix(labels, torch.from_numpy(values).to(model.device, kind))

    def _taken_over(self, shared: _Shared, slices: Slices, alive: Alive) -> np.ndarray | None:
        """The matrix that another worker has made, or that is made here for all; None while Redis is away."""
        try:
            with redis_errors(str(self._url)):
                while (found := shared.load()) is None and not shared.acquire():
                    alive()
                    time.sleep(_POLL_SECONDS)
        except RedisUnavailableError as error:
            log.warning("text matrix not shared: %s", error, extra={"action": "matrix_not_shared"})
            return None
        self.shared_requests.note(hit=found is not None)
        if found is not None:
            return found

        def go_on() -> None:
            alive()
            self._quietly(shared.lock.reacquire)

        try:
            values = _whole(slices, go_on)
            self._quietly(lambda: shared.save(values))
            return values
        finally:
            self._quietly(shared.lock.release)

    def _quietly(self, call: Callable[[], object]) -> None:
        """Call, and log errors only: a matrix that is not shared, or a lost lock, costs a second encoding."""
        try:
            with redis_errors(str(self._url)):
                call()
        except (LockError, RedisUnavailableError) as error:
            log.info("text matrix not shared: %s", error, extra={"action": "matrix_not_shared"})

    def _encode(
        self, model: Encoder, labels: Sequence[str], templates: Sequence[str], lane: Lane, what: str
    ) -> np.ndarray:
        prompts = prompts_of(labels, templates)
        matrix = text_matrix_of(self._batcher.encode_texts(model, prompts, lane), len(labels))
        usable = have_direction(matrix)
        if not usable.all():
            label = labels[int(np.argmin(usable))]
            raise ItemFailure(ErrorCode.CRASHED, why_not(model.precision, f"the {what} {label[:60]!r}"))
        return matrix


class _Shared:
    """One matrix in Redis, float32 (labels, d), and the right to encode it."""

    def __init__(self, client: redis.Redis, model: Encoder, label_set: LabelSet, labels: int) -> None:
        self._redis = client
        self._name = keys.text_matrix(model.fingerprint, label_set.prompts_hash)
        self._shape = labels, model.embedding_dimension  # a value of another shape is ignored
        lock_name = keys.text_matrix(model.fingerprint, label_set.prompts_hash, ":lock")
        self.lock: Lock = client.lock(lock_name, timeout=_LOCK_SECONDS, thread_local=False)
        self._token = uuid.uuid4().hex

    def acquire(self) -> bool:
        """Acquire the lock; False if another worker holds it, or the matrix is there by now."""
        if not self.lock.acquire(blocking=False, token=self._token):
            return False
        if self.load() is None:
            return True
        self.lock.release()
        return False

    def load(self) -> np.ndarray | None:
        """The matrix, if it is there."""
        data: bytes | None = self._redis.getex(self._name, ex=_SHARED_SECONDS)  # type: ignore[assignment]  # or async
        if data is None or len(data) != _HEADER.size + 4 * self._shape[0] * self._shape[1]:
            return None
        values = np.frombuffer(data, dtype="<f4", offset=_HEADER.size).reshape(self._shape)
        if _HEADER.unpack_from(data) != self._shape or not np.isfinite(values).all():
            return None
        return values.astype(np.float32)  # a copy that may be written to

    def save(self, matrix: np.ndarray) -> None:
        """Store the matrix for other workers."""
        if matrix.nbytes <= _SHARED_BYTES:
            data = _HEADER.pack(*matrix.shape) + np.ascontiguousarray(matrix, dtype="<f4").tobytes()
            self._redis.set(self._name, data, ex=_SHARED_SECONDS)


def _whole(slices: Slices, go_on: Alive) -> np.ndarray:
    """All slices in one; `go_on` is called before each."""
    rows = []
    for encode in slices:
        go_on()
        rows.append(encode())
    return np.concatenate(rows)
