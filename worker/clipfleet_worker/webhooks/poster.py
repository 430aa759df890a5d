"""Sends one webhook request: through the address guard, without redirects, within a time limit.

The status of the answer decides. Its body is of no use: a little of it is read, so that the connection can be
used again. Error texts name the host and the reason, and repeat nothing else of the URL, which may hold a
secret.
"""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver
from aiohttp.http_exceptions import HttpProcessingError

from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.http.address_guard import AddressGuard
from clipfleet_worker.fetch.http.failures import failure_before_answer, retry_after_seconds
from clipfleet_worker.fetch.http.metered_sockets import MeteredSockets
from clipfleet_worker.fetch.http.resolver import GuardedResolver, SystemResolver
from clipfleet_worker.fetch.http.session import SessionLimits, open_session
from clipfleet_worker.fetch.http.target import Target, target_of

_CONNECT_SECONDS = 10.0
_KEEP_ALIVE_SECONDS = 2.0  # servers close idle connections after 5 s; a POST that meets that has failed
_HEADER_BYTES = 16_384
_READ_BYTES, _READ_SECONDS = 4096, 1.0  # of an answer's body


@dataclass(frozen=True, slots=True)
class Answer:
    """How a request ended."""

    error: str = ""  # empty: delivered
    status: int | None = None  # None: no answer
    retry_after_seconds: float | None = None

    @property
    def is_delivered(self) -> bool:
        """Whether the receiver has taken the event."""
        return not self.error


class Poster:
    """Belongs to one event loop.

    Args:
        guard: checks every address before a connection to it is made.
        contact: the operator's address or URL; part of the User-Agent.
        timeout_seconds: of a request, from the look-up of the name to the status.
        resolver: turns names into addresses, by default the system's; it is closed with this object.
        tls: to trust other certificates than the system's.
    """

    def __init__(
        self,
        guard: AddressGuard,
        *,
        contact: str = "",
        timeout_seconds: float,
        resolver: AbstractResolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._guard = guard
        self._contact = contact
        self._timeout_seconds = timeout_seconds
        self._resolver = GuardedResolver(resolver or SystemResolver(), guard)
        self._tls = tls
        self._sockets = MeteredSockets()
        self._session: aiohttp.ClientSession | None = None

    async def start(self) -> None:
        """Open the session in the running loop."""
        limits = SessionLimits(
            connect_timeout_seconds=min(_CONNECT_SECONDS, self._timeout_seconds),
            idle_read_timeout_seconds=self._timeout_seconds,
            max_header_bytes=_HEADER_BYTES,
            keep_alive_seconds=_KEEP_ALIVE_SECONDS,
        )
        self._session = open_session(
            self._guard, self._resolver, self._sockets, limits, contact=self._contact, tls=self._tls
        )

    async def close(self) -> None:
        """Close all connections; idempotent."""
        if self._session is not None:
            await self._session.close()
        await self._resolver.close()

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        """Send a body as JSON; never raises for what a receiver or a network does."""
        try:
            target = target_of(url)
        except ItemFailure as failure:
            return Answer(failure.error.detail)
        try:
            async with asyncio.timeout(self._timeout_seconds):
                response = await self._send(target, headers, body)
        except TimeoutError:
            return Answer(f"{target.host}: no answer within {self._timeout_seconds:g} s")
        except ItemFailure as failure:
            return Answer(failure.error.detail)
        try:
            return _answer_of(target.host, response)
        finally:
            await _drain(response)

    async def _send(self, target: Target, headers: Mapping[str, str], body: bytes) -> aiohttp.ClientResponse:
        if self._session is None:
            raise RuntimeError("Poster.start was not called")
        own = {"Content-Type": "application/json", **headers}
        try:
            return await self._session.post(target.url, data=body, headers=own, allow_redirects=False)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise failure_before_answer(target.host, error) from error


def _answer_of(host: str, response: aiohttp.ClientResponse) -> Answer:
    status = response.status
    if 200 <= status < 300:
        return Answer(status=status)
    note = ", a redirect, which is not followed" if 300 <= status < 400 else ""
    asked = retry_after_seconds(response.headers)
    return Answer(f"{host}: HTTP status {status}{note}", status, asked)


async def _drain(response: aiohttp.ClientResponse) -> None:
    """Read what there is of a short body, which releases the connection; else close it."""
    with suppress(TimeoutError, aiohttp.ClientError, HttpProcessingError, OSError, RuntimeError):
        async with asyncio.timeout(_READ_SECONDS):
            left = _READ_BYTES
            while left > 0 and (part := await response.content.read(left)):
                left -= len(part)
    response.close()  # a no-op if the whole body has arrived: that connection is in the pool again
