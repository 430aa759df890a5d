"""Reads bodies of responses: bounded on the wire, after inflating, and in memory for all of them at once."""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import aiohttp
from aiohttp.http_exceptions import HttpProcessingError

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure, TransientFailure, too_many_bytes
from clipfleet_worker.fetch.http.metered_sockets import MeteredSocket

_GZIP_OR_ZLIB = 32 + zlib.MAX_WBITS
_RAW_DEFLATE = -zlib.MAX_WBITS


class ArrivingBytes:
    """Counts the bytes of all incomplete bodies; belongs to one event loop.

    Args:
        limit: above it only the oldest body is read on, so that bodies are completed, or time out, one after
            the other.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.count = 0  # bytes in memory now
        self._bodies: dict[object, int] = {}  # bytes of each, the oldest first
        self._freed = asyncio.Event()

    @contextmanager
    def of_a_body(self) -> Iterator[object]:
        """Around the reading of one body; yields a handle for `add`."""
        body = object()
        self._bodies[body] = 0
        try:
            yield body
        finally:
            self.count -= self._bodies.pop(body)
            self._freed.set()
            self._freed = asyncio.Event()

    async def add(self, body: object, count: int) -> None:
        """Count bytes that arrived; returns when more may be read."""
        self._bodies[body] += count
        self.count += count
        while self.count > self._limit and next(iter(self._bodies)) is not body:
            await self._freed.wait()


@dataclass(frozen=True, slots=True)
class BodyReader:
    """Reads bodies of one fetcher."""

    max_bytes: int  # of one body, as it is sent and after inflating
    arriving: ArrivingBytes

    async def read(self, host: str, response: aiohttp.ClientResponse, source: MeteredSocket | None) -> bytes:
        """The whole body, inflated; it may be empty.

        Args:
            host: its name, for messages.
            response: one whose body is unread.
            source: the connection; None if the whole response has arrived.

        Raises:
            ItemFailure: the body is too large, incomplete or cannot be inflated.
        """
        if (response.content_length or 0) > self.max_bytes:
            raise too_many_bytes(self.max_bytes)
        with self.arriving.of_a_body() as body:
            try:
                data = await self._all_parts(body, response.content, source)
            except TimeoutError:
                raise TransientFailure(
                    ErrorCode.TIMEOUT, f"{host}: sent no more of the body in time"
                ) from None
            except (aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError) as error:
                # HttpProcessingError, RuntimeError: broken chunks, depending on aiohttp's parser and timing.
                # Its C parser (3.14) may also leave the reader waiting; the time limit ends that.
                raise _broken_off(host, source) from error
            if source is not None and source.is_broken and _ends_with_connection(response):
                raise _broken_off(
                    host, source
                )  # aiohttp accepts any end of the connection as that of the body
        encoding = response.headers.get("Content-Encoding")
        return await self._inflated(data, encoding.strip().lower()) if encoding else data

    async def _all_parts(
        self, body: object, content: aiohttp.StreamReader, source: MeteredSocket | None
    ) -> bytes:
        parts = []
        total = 0
        while part := await content.readany():
            total += len(part)
            if total > self.max_bytes:
                raise too_many_bytes(self.max_bytes)
            parts.append(part)
            if source is not None:
                source.allow(len(part))
            await self.arriving.add(body, len(part))
        return b"".join(parts)

    async def _inflated(self, data: bytes, encoding: str) -> bytes:
        # Not requested, so rare. Values that are no compression (utf-8, base64, aws-chunked: left over from
        # uploads to object stores) are ignored, as in browsers.
        if encoding in ("br", "zstd"):
            raise ItemFailure(
                ErrorCode.HTTP_ERROR, f"the server sent {encoding} though identity was requested"
            )
        if not data or encoding not in ("gzip", "x-gzip", "deflate"):
            return data
        return await asyncio.to_thread(_inflate, data, self.max_bytes)


def _broken_off(host: str, source: MeteredSocket | None) -> ItemFailure:
    if source is not None and source.is_flooded:
        return ItemFailure(ErrorCode.TOO_MANY_BYTES, f"{host}: sent far more than belongs to the body")
    return TransientFailure(ErrorCode.INCOMPLETE_BODY, f"{host}: the body broke off")


def _ends_with_connection(response: aiohttp.ClientResponse) -> bool:
    chunked = "chunked" in response.headers.get("Transfer-Encoding", "").lower()
    return response.content_length is None and not chunked


def _inflate(body: bytes, limit: int) -> bytes:
    for window_bits in (_GZIP_OR_ZLIB, _RAW_DEFLATE):  # some servers' "deflate" lacks the zlib header
        inflater = zlib.decompressobj(window_bits)
        try:
            inflated = inflater.decompress(body, limit + 1)
        except zlib.error:
            continue
        if len(inflated) > limit:
            raise too_many_bytes(limit)
        if not inflater.eof:
            raise ItemFailure(ErrorCode.INCOMPLETE_BODY, "the compressed body broke off")
        return inflated
    raise ItemFailure(ErrorCode.HTTP_ERROR, "the compressed body is broken")
