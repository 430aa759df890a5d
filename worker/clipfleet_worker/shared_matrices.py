"""Text matrices of large label sets in Redis, so that one worker encodes them and the others take them over.

Nothing depends on it: while Redis does not answer, or has no room, every worker encodes for itself.
"""

from __future__ import annotations

import logging
import struct
import time
import uuid
from collections.abc import Callable

import numpy as np
import redis
from redis.exceptions import LockError
from redis.lock import Lock

from clipfleet import keys
from clipfleet.errors import RedisUnavailableError
from clipfleet.redis_connection import connect, redis_errors
from clipfleet_worker.cache_counts import CacheCounts

log = logging.getLogger(__name__)

_KEEP_SECONDS = 86_400  # after the last use
_MAX_BYTES = 64 * 1024 * 1024  # larger ones are not shared: they would hold up the ledger
_LOCK_SECONDS = 60.0  # renewed before every slice; a worker that died delays the others so long
_POLL_SECONDS = 0.5
_HEADER = struct.Struct("<II")  # labels, dimension; then float32, little-endian

Alive = Callable[[], None]
Encode = Callable[[Alive], np.ndarray]


class SharedMatrices:
    """By model and label set."""

    def __init__(self, url: str, *, client: redis.Redis | None = None) -> None:
        self._url = url
        self._redis = client or connect(url, decode=False)
        self.requests = CacheCounts()

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def get(
        self,
        model_fingerprint: str,
        label_set_hash: str,
        shape: tuple[int, int],
        encode: Encode,
        alive: Alive,
    ) -> np.ndarray:
        """The matrix, float32 (labels, d): taken over, waited for, or encoded here and shared.

        Args:
            model_fingerprint: with the hash, what the matrix is known by.
            label_set_hash: see there.
            shape: (labels, d); what is found in another one was not made by a worker.
            encode: makes the matrix; must call what it is given before each slice.
            alive: called while another worker encodes, and before each slice.
        """
        name = keys.text_matrix(model_fingerprint, label_set_hash)
        try:
            lock = self._turn(
                name, keys.text_matrix(model_fingerprint, label_set_hash, ":lock"), shape, alive
            )
        except RedisUnavailableError as error:
            log.warning("text matrix not shared: %s", error, extra={"action": "matrix_not_shared"})
            return encode(alive)
        self.requests.note(hit=isinstance(lock, np.ndarray))
        if isinstance(lock, np.ndarray):
            return lock
        try:
            matrix = encode(lambda: self._go_on(lock, alive))
            self._save(name, matrix)
            return matrix
        finally:
            self._quietly(lock.release)

    def _turn(self, name: str, lock_name: str, shape: tuple[int, int], alive: Alive) -> np.ndarray | Lock:
        """The matrix as soon as it is there, or the right to encode it."""
        lock: Lock = self._redis.lock(lock_name, timeout=_LOCK_SECONDS, thread_local=False)
        token = uuid.uuid4().hex
        with redis_errors(self._url):
            while True:
                if (found := self._load(name, shape)) is not None:
                    return found
                if lock.acquire(blocking=False, token=token):
                    if (found := self._load(name, shape)) is None:
                        return lock
                    lock.release()
                    return found
                alive()
                time.sleep(_POLL_SECONDS)

    def _go_on(self, lock: Lock, alive: Alive) -> None:
        alive()
        self._quietly(lock.reacquire)

    def _quietly(self, call: Callable[[], object]) -> None:
        """A lock that was lost costs a second encoding, nothing else."""
        try:
            with redis_errors(self._url):
                call()
        except (LockError, RedisUnavailableError) as error:
            log.info("lock of a text matrix: %s", error, extra={"action": "matrix_lock_lost"})

    def _load(self, name: str, shape: tuple[int, int]) -> np.ndarray | None:
        data: bytes | None = self._redis.getex(name, ex=_KEEP_SECONDS)  # type: ignore[assignment]  # or async
        if data is None or len(data) < _HEADER.size:
            return None
        if _HEADER.unpack_from(data) != shape or len(data) != _HEADER.size + 4 * shape[0] * shape[1]:
            return None
        values = np.frombuffer(data, dtype="<f4", offset=_HEADER.size).reshape(shape)
        # A copy that may be written to.
        return values.astype(np.float32) if np.isfinite(values).all() else None

    def _save(self, name: str, matrix: np.ndarray) -> None:
        if matrix.nbytes > _MAX_BYTES:
            return
        data = _HEADER.pack(*matrix.shape) + np.ascontiguousarray(matrix, dtype="<f4").tobytes()
        try:
            with redis_errors(self._url):
                self._redis.set(name, data, ex=_KEEP_SECONDS)
        except RedisUnavailableError as error:
            log.warning("text matrix not shared: %s", error, extra={"action": "matrix_not_shared"})
