"""Gets objects from S3: one client of its own session for the whole process, its calls in a pool of threads.

Endpoint and credentials are the worker's own (`AWS_*`), so no URI can lead elsewhere; which buckets may be
read is a setting. Time, bytes and simultaneous calls are capped. What comes back is bytes or an
`ItemFailure`.
"""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from botocore.exceptions import ClientError

from clipfleet.contract import ErrorCode
from clipfleet.errors import SourceUnavailableError, UsageError
from clipfleet.s3 import SCHEME, S3Client, S3Problem, explain, failures_of_calls, split_s3_uri
from clipfleet_worker.failures import HostLeftAlone, ItemFailure, TransientFailure, too_many_bytes
from clipfleet_worker.fetch.host_breaker import BreakerPolicy, HostBreaker
from clipfleet_worker.fetch.turn_waits import waiting_for

_READ_BYTES = 1 << 20

_CODES = {
    S3Problem.NO_OBJECT: ErrorCode.NOT_FOUND,
    S3Problem.NO_BUCKET: ErrorCode.NOT_FOUND,
    S3Problem.DENIED: ErrorCode.ACCESS_DENIED,
    S3Problem.NO_CREDENTIALS: ErrorCode.ACCESS_DENIED,
    S3Problem.MISCONFIGURED: ErrorCode.HTTP_ERROR,
    S3Problem.REFUSED: ErrorCode.HTTP_ERROR,
    S3Problem.THROTTLED: ErrorCode.RATE_LIMITED,
    S3Problem.AWAY: ErrorCode.SERVER_ERROR,
}
# No object is to blame for these, and they pass: its chunk waits.
_OURS = (S3Problem.EXPIRED, S3Problem.CLOCK)
# By name, as botocore's own; first what says most.
_NETWORK_CODES = {
    "ParamValidationError": ErrorCode.BAD_URI,
    "SSLError": ErrorCode.TLS_FAILED,
    "ConnectTimeoutError": ErrorCode.CONNECT_FAILED,
    "ReadTimeoutError": ErrorCode.TIMEOUT,
    "ResponseStreamingError": ErrorCode.INCOMPLETE_BODY,
    "IncompleteReadError": ErrorCode.INCOMPLETE_BODY,
    "ConnectionClosedError": ErrorCode.INCOMPLETE_BODY,
    "ProtocolError": ErrorCode.INCOMPLETE_BODY,
    "EndpointConnectionError": ErrorCode.CONNECT_FAILED,
    "ProxyConnectionError": ErrorCode.CONNECT_FAILED,
}


_TRANSIENT = frozenset(
    {
        ErrorCode.RATE_LIMITED,
        ErrorCode.SERVER_ERROR,
        ErrorCode.CONNECT_FAILED,
        ErrorCode.TIMEOUT,
        ErrorCode.INCOMPLETE_BODY,
    }
)

_STORE = "the store"
_STORE_POLICY = BreakerPolicy(failing_urls=3)  # it answers for all its objects, so that few tell enough


@dataclass(frozen=True, slots=True, kw_only=True)
class S3Limits:
    """What one object may cost."""

    max_image_bytes: int
    fetch_timeout_seconds: float  # from the request to the last byte; waiting for a turn is not counted
    connections: int  # objects at a time


class S3Fetcher:
    """See `clipfleet_worker.fetch.AsyncFetcher`. All methods belong to one event loop.

    Args:
        limits: see there.
        buckets: the only ones that may be read; empty: all that the credentials may.
        make_client: called with the first object, so that a worker without any needs no configuration.
        breaker: tells the troubles of an object from those of the store.
    """

    def __init__(
        self,
        limits: S3Limits,
        buckets: Iterable[str],
        make_client: Callable[[], S3Client],
        breaker: HostBreaker | None = None,
    ) -> None:
        self._breaker = breaker or HostBreaker(_STORE_POLICY)
        self._limits = limits
        self._buckets = frozenset(buckets)
        self._make_client = make_client
        self._client: S3Client | None = None
        self._client_lock = threading.Lock()
        self._pool: ThreadPoolExecutor | None = None
        self._turns = asyncio.Semaphore(limits.connections)

    async def start(self) -> None:
        """Make the pool; its threads start when they are needed."""
        self._pool = ThreadPoolExecutor(self._limits.connections, thread_name_prefix="s3")

    async def close(self) -> None:
        """Calls under way end by themselves, at the latest by their time limit."""
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    async def fetch(self, uri: str) -> bytes:
        """See the protocol. The key is taken as it stands, not percent-decoded.

        Raises:
            ItemFailure: the object cannot be had.
            SourceUnavailableError: none can: the store has been away for half a minute.
        """
        return await self._fetch(uri, "")

    async def fetch_piece(self, uri: str, offset_bytes: int, size_bytes: int) -> bytes:
        """Exactly these bytes of an object; otherwise like `fetch`.

        Raises:
            ItemFailure: also `incomplete_body` where the object ends before.
        """
        if size_bytes > self._limits.max_image_bytes:
            raise too_many_bytes(self._limits.max_image_bytes)
        if size_bytes == 0:
            return b""
        data = await self._fetch(uri, f"bytes={offset_bytes}-{offset_bytes + size_bytes - 1}")
        if len(data) != size_bytes:
            raise ItemFailure(
                ErrorCode.INCOMPLETE_BODY, f"{len(data)} of {size_bytes} bytes: the archive was changed"
            )
        return data

    async def _fetch(self, uri: str, byte_range: str) -> bytes:
        bucket, key = self._target(uri)
        if self._pool is None:
            raise RuntimeError("start comes first")
        try:
            return await self._in_turn(uri, partial(self._get, bucket, key, byte_range))
        except (HostLeftAlone, TransientFailure) as failure:
            # While the store as a whole is away this is no fault of the object's, and no attempt of its own.
            refusal = failure if isinstance(failure, HostLeftAlone) else self._breaker.refusal(_STORE)
            if refusal is None:
                raise
            if refusal.is_old:
                raise SourceUnavailableError(refusal.error.detail) from failure
            if refusal is failure:
                raise
            raise refusal from failure

    async def _in_turn(self, uri: str, call: Callable[[], bytes]) -> bytes:
        if self._turns.locked():
            with waiting_for(f"all of {self._limits.connections} connections to the S3 store are in use"):
                await self._turns.acquire()
        else:
            await self._turns.acquire()
        with ExitStack() as turn:
            turn.callback(self._turns.release)
            with self._breaker.watch(_STORE, uri):
                future = asyncio.get_running_loop().run_in_executor(self._pool, call)
                # From here on the turn ends with the thread, whoever waits for it or not: else calls would
                # pile up in the pool.
                turn.pop_all()
                future.add_done_callback(lambda _: self._turns.release())
                try:
                    async with asyncio.timeout(self._limits.fetch_timeout_seconds):
                        return await asyncio.shield(future)
                except TimeoutError:
                    raise self._too_late() from None

    def _target(self, uri: str) -> tuple[str, str]:
        try:
            bucket, key = split_s3_uri(SCHEME + uri[len(SCHEME) :])  # a scheme may be in capitals
        except UsageError as error:
            raise ItemFailure(ErrorCode.BAD_URI, str(error)) from error
        if not key:
            raise ItemFailure(ErrorCode.BAD_URI, "a bucket, not an object")
        if self._buckets and bucket not in self._buckets:
            raise ItemFailure(ErrorCode.BUCKET_REFUSED, f"bucket {bucket} is not one of CLIPFLEET_S3_BUCKETS")
        if self._buckets and not {".", ".."}.isdisjoint(re.split(r"[/\\]", key)):
            # To the letter that is a key like any other; a store or proxy that resolves it leads elsewhere.
            raise ItemFailure(ErrorCode.BUCKET_REFUSED, "a key with `.` or `..` may lead out of its bucket")
        return bucket, key

    def _get(self, bucket: str, key: str, byte_range: str) -> bytes:
        """In a thread of the pool."""
        ends = time.monotonic() + self._limits.fetch_timeout_seconds
        wanted = {"Bucket": bucket, "Key": key} | ({"Range": byte_range} if byte_range else {})
        try:
            answer = self._connected().get_object(**wanted)
            with closing(answer["Body"]) as body:
                if answer["ContentLength"] > self._limits.max_image_bytes:
                    raise too_many_bytes(self._limits.max_image_bytes)
                return self._read_all(body, ends)
        except failures_of_calls() as error:
            failure = explain(error)
            if failure.problem in _OURS:
                raise SourceUnavailableError(f"{SCHEME}{bucket}: {failure.detail}") from error
            raise _failure(error) from error

    def _read_all(self, body: Any, ends: float) -> bytes:
        parts = []
        total = 0
        while part := body.read(_READ_BYTES):
            total += len(part)
            if total > self._limits.max_image_bytes:
                raise too_many_bytes(self._limits.max_image_bytes)
            if time.monotonic() > ends:
                raise self._too_late()
            parts.append(part)
        return parts[0] if len(parts) == 1 else b"".join(parts)

    def _connected(self) -> S3Client:
        with self._client_lock:
            if self._client is None:
                try:
                    self._client = self._make_client()
                except UsageError as error:
                    raise ItemFailure(ErrorCode.ACCESS_DENIED, str(error)) from error
            return self._client

    def _too_late(self) -> ItemFailure:
        return TransientFailure(
            ErrorCode.TIMEOUT, f"not there after {self._limits.fetch_timeout_seconds:g} s"
        )


def _failure(error: Exception) -> ItemFailure:
    failure = explain(error)
    named = (_NETWORK_CODES.get(kind.__name__) for kind in type(error).__mro__)
    code = next((code for code in named if code is not None), None)
    if code is None and not isinstance(error, ClientError) and failure.problem is S3Problem.AWAY:
        code = ErrorCode.CONNECT_FAILED
    code = code or _CODES[failure.problem]
    kind = TransientFailure if code in _TRANSIENT else ItemFailure
    return kind(code, failure.detail)
