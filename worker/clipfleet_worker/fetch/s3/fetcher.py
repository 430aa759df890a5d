"""Gets objects from S3: the first of a bucket through `boto`, all others through the cheaper `direct`.

Endpoint and credentials are the worker's own (`AWS_*`), so no URI can lead elsewhere; which buckets may be
read is a setting. Time, bytes and simultaneous calls are capped. The result is bytes or an `ItemFailure`.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack

from clipfleet.contract.jobs import ErrorCode
from clipfleet.errors import SourceUnavailableError, UsageError
from clipfleet.s3.client import SCHEME, S3Connection, split_s3_uri
from clipfleet_worker.failures import HostLeftAlone, ItemFailure, TransientFailure, too_many_bytes
from clipfleet_worker.fetch import archive_member
from clipfleet_worker.fetch.conditions import UnchangedError, present_inquiry
from clipfleet_worker.fetch.host_breaker import BreakerPolicy, HostBreaker
from clipfleet_worker.fetch.lane_turns import LaneTurns
from clipfleet_worker.fetch.s3.boto import BotoReader, S3Answer, S3Limits, S3Place
from clipfleet_worker.fetch.s3.direct import DirectReader, PlaceOutdatedError
from clipfleet_worker.process.shortages import LenientThreadPool

_STORE = "the store"
_STORE_POLICY = BreakerPolicy(failing_urls=3)  # few are enough: one store serves all objects


class S3Fetcher:
    """See `clipfleet_worker.fetch.AsyncFetcher`. All methods belong to one event loop.

    Args:
        limits: of each object.
        buckets: the only ones that may be read; empty: all that the credentials may read.
        connect: called for the first object, so that a worker that reads none needs no configuration.
        breaker: distinguishes failures of an object from those of the store.
    """

    def __init__(
        self,
        limits: S3Limits,
        buckets: Iterable[str],
        connect: Callable[[], S3Connection],
        breaker: HostBreaker | None = None,
    ) -> None:
        self._breaker = breaker or HostBreaker(_STORE_POLICY)
        self._limits = limits
        self._buckets = frozenset(buckets)
        self._boto = BotoReader(limits, connect)
        self._direct = DirectReader(limits, self._boto.credentials)
        self.places: dict[str, S3Place] = {}  # by bucket, once boto3 found them
        self._pool: ThreadPoolExecutor | None = None
        self._turns = LaneTurns(lambda: limits.connections)

    async def start(self) -> None:
        """Open the session and make the pool, whose threads start on demand."""
        await self._direct.start()
        self._pool = LenientThreadPool(self._limits.connections, thread_name_prefix="s3")

    async def close(self) -> None:
        """Abort requests; calls of boto3 end by themselves, at the latest by their time limit."""
        await self._direct.close()
        if self._pool is not None:
            self._pool.shutdown(wait=False, cancel_futures=True)
            self._pool = None

    async def fetch(self, uri: str) -> bytes:
        """Read an object. The key is taken literally, not percent-decoded.

        Raises:
            UnchangedError: the present inquiry has an ETag, and the object has it still.
            ItemFailure: the object cannot be read.
            SourceUnavailableError: no object can: the store has been down for half a minute.
        """
        inquiry = present_inquiry()
        answer = await self._fetch(uri, "", "" if inquiry is None else inquiry.known.etag)
        if inquiry is not None:
            inquiry.answer = answer.validators
        if answer.data is None:
            raise UnchangedError
        return answer.data

    async def fetch_member(self, uri: str) -> bytes:
        """An image in a tar archive, see `clipfleet.contract.tar_member`; otherwise like `fetch`.

        Raises:
            ItemFailure: also `incomplete_body` if the archive is shorter.
        """
        member = archive_member(uri)
        if member.size_bytes > self._limits.max_image_bytes:
            raise too_many_bytes(self._limits.max_image_bytes)
        if member.size_bytes == 0:
            return b""
        last = member.offset_bytes + member.size_bytes - 1
        # An ETag would be that of the archive.
        answer = await self._fetch(member.archive, f"bytes={member.offset_bytes}-{last}")
        data = answer.data or b""
        if len(data) != member.size_bytes:
            detail = f"{len(data)} of {member.size_bytes} bytes: the archive was changed"
            raise ItemFailure(ErrorCode.INCOMPLETE_BODY, detail)
        return data

    async def _fetch(self, uri: str, byte_range: str, known_etag: str = "") -> S3Answer:
        bucket, key = self._target(uri)
        if self._pool is None:
            raise RuntimeError("start comes first")
        try:
            return await self._in_turn(uri, bucket, key, byte_range, known_etag)
        except (HostLeftAlone, TransientFailure) as failure:
            # While the whole store is down, this is no failure of the object, and no attempt of its own.
            refusal = failure if isinstance(failure, HostLeftAlone) else self._breaker.refusal(_STORE)
            if refusal is None:
                raise
            if refusal.is_old:
                raise SourceUnavailableError(refusal.error.detail) from failure
            if refusal is failure:
                raise
            raise refusal from failure

    async def _in_turn(self, uri: str, bucket: str, key: str, byte_range: str, known_etag: str) -> S3Answer:
        await self._turns.take()
        with ExitStack() as turn:
            turn.callback(self._turns.release)
            with self._breaker.watch(_STORE, uri):
                try:
                    async with asyncio.timeout(self._limits.fetch_timeout_seconds):
                        return await self._get(turn, bucket, key, byte_range, known_etag)
                except TimeoutError:
                    raise self._boto.too_late() from None

    async def _get(
        self, turn: ExitStack, bucket: str, key: str, byte_range: str, known_etag: str
    ) -> S3Answer:
        place = self.places.get(bucket)
        if place is not None:
            try:
                return await self._direct.get(place, bucket, key, byte_range, known_etag)
            except PlaceOutdatedError:
                self._direct.forget_credentials()
                if self.places.get(bucket) is place:
                    del self.places[bucket]
        return await self._get_through_boto(turn, bucket, key, byte_range, known_etag)

    async def _get_through_boto(
        self, turn: ExitStack, bucket: str, key: str, byte_range: str, known_etag: str
    ) -> S3Answer:
        future = asyncio.get_running_loop().run_in_executor(
            self._pool, self._boto.get, bucket, key, byte_range, known_etag
        )
        # From here on the turn ends with the thread's call, also after a cancellation: otherwise calls would
        # pile up in the pool.
        turn.pop_all()
        future.add_done_callback(lambda _: self._turns.release())
        learned = await asyncio.shield(future)
        if learned.place is not None:
            self.places[bucket] = learned.place
        return learned.answer

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
            # Literally a valid key, but a store or proxy that resolves it would lead elsewhere.
            raise ItemFailure(ErrorCode.BUCKET_REFUSED, "a key with `.` or `..` may lead out of its bucket")
        return bucket, key
