"""Gets images over http and https: one session with keep-alive for the whole process, in one event loop.

Everything a server can do is bounded: connections per host and in all, time to connect, silence, time per
URL, header, redirects, bytes on the wire, in memory and after inflating. No cookies, no credentials, no
Referer, no proxy from the environment. The result is bytes or an `ItemFailure`. Retries are in `retrying`;
only aiohttp repeats a request once if the server hangs up before it answers: a kept connection may be stale.
"""

from __future__ import annotations

import asyncio
import ssl
from dataclasses import dataclass

import aiohttp
from aiohttp.abc import AbstractResolver

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure, TransientFailure
from clipfleet_worker.fetch.conditions import Inquiry, UnchangedError, present_inquiry, validators_of
from clipfleet_worker.fetch.host_breaker import HostBreaker
from clipfleet_worker.fetch.http.address_guard import AddressGuard
from clipfleet_worker.fetch.http.body import ArrivingBytes, BodyReader
from clipfleet_worker.fetch.http.failures import failure_before_answer, failure_of_status
from clipfleet_worker.fetch.http.host_turns import HostTurns
from clipfleet_worker.fetch.http.metered_sockets import MeteredSockets
from clipfleet_worker.fetch.http.resolver import GuardedResolver, SystemResolver
from clipfleet_worker.fetch.http.robots import RobotsTxt, refusal_of
from clipfleet_worker.fetch.http.session import SessionLimits, open_session
from clipfleet_worker.fetch.http.target import Target, next_target, target_of

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_CLOSE = {"Connection": "close"}


@dataclass(frozen=True, slots=True, kw_only=True)
class HttpLimits:
    """What one URL may cost."""

    max_image_bytes: int  # largest body, on the wire and after inflating
    fetch_timeout_seconds: float  # per URL, with redirects, without the wait for a turn at a busy host
    connect_timeout_seconds: float  # TCP and TLS, per address
    idle_read_timeout_seconds: float  # longest silence of a server
    host_connections: int  # requests to one host at a time, of all workers together
    total_connections: int  # requests to all hosts at a time
    max_redirects: int = 5
    max_head_bytes: int = 65_536  # all lines of a header, of which aiohttp accepts 128
    max_header_bytes: int = 16_384  # longest header line
    arriving_bytes: int = 1 << 30  # of all bodies under way, beyond which they are read one after the other


class HttpFetcher:
    """See `clipfleet_worker.fetch.AsyncFetcher`. All methods belong to one event loop.

    `fetch` waits until its host has a free turn; its caller bounds that by cancelling.

    Args:
        limits: of each URL.
        guard: checks every address before a connection to it is made.
        contact: the operator's address or URL; part of the User-Agent.
        breaker: keeps requests from hosts that are down.
        respects_robots_tag: whether a response whose `X-Robots-Tag` refuses this program is not read.
        robots_txt: the rules of sites; None: they are not fetched.
        resolver: turns names into addresses, by default the system's. Its answers are guarded; it is closed
            with the fetcher.
        tls: to trust other certificates than the system's.
    """

    def __init__(
        self,
        limits: HttpLimits,
        guard: AddressGuard,
        *,
        contact: str = "",
        breaker: HostBreaker | None = None,
        respects_robots_tag: bool = True,
        robots_txt: RobotsTxt | None = None,
        resolver: AbstractResolver | None = None,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._limits = limits
        self._guard = guard
        self._contact = contact
        self._resolver = GuardedResolver(resolver or SystemResolver(), guard)
        self._tls = tls
        self._breaker = breaker or HostBreaker()
        self._respects_robots_tag = respects_robots_tag
        self._robots_txt = robots_txt
        self.turns = HostTurns(limits.host_connections, limits.total_connections)
        self.refused_hosts = self._resolver.requests  # look-ups of names without an allowed address
        self._session: aiohttp.ClientSession | None = None
        self._sockets = MeteredSockets()
        self._bodies = BodyReader(limits.max_image_bytes, ArrivingBytes(limits.arriving_bytes))

    async def start(self) -> None:
        """Open the session in the running loop."""
        self._session = open_session(
            self._guard,
            self._resolver,
            self._sockets,
            SessionLimits(
                connect_timeout_seconds=self._limits.connect_timeout_seconds,
                idle_read_timeout_seconds=self._limits.idle_read_timeout_seconds,
                max_header_bytes=self._limits.max_header_bytes,
            ),
            contact=self._contact,
            tls=self._tls,
        )

    async def close(self) -> None:
        """Close all connections; idempotent."""
        if self._session is not None:
            await self._session.close()
        await self._resolver.close()

    async def fetch(self, uri: str) -> bytes:
        """The body of a 200 response, after at most `max_redirects` redirects; it may be empty.

        Raises:
            UnchangedError: the present inquiry has a condition, and the server of this URI says so.
            ItemFailure: anything else.
        """
        return await self._follow(target_of(uri), present_inquiry(), must_be_allowed=True)

    async def _rules_at(self, url: str) -> bytes:
        """A robots.txt, which needs no permission."""
        return await self._follow(target_of(url), None, must_be_allowed=False)

    async def _follow(self, target: Target, inquiry: Inquiry | None, *, must_be_allowed: bool) -> bytes:
        loop = asyncio.get_running_loop()
        seconds = self._limits.fetch_timeout_seconds
        for _ in range(self._limits.max_redirects + 1):
            if must_be_allowed and self._robots_txt is not None:
                await self._robots_txt.require_allowed(target, self._rules_at)
            # Hop by hop, so that no fetch holds a turn at one host while it waits for one at another.
            async with self.turns.at(target.host):
                started = loop.time()
                with self._breaker.watch(target.origin, target.text):
                    answer = await self._hop(target, inquiry, seconds, must_be_allowed)
            if answer is None:
                raise UnchangedError
            if isinstance(answer, bytes):
                return answer
            seconds -= loop.time() - started
            target = next_target(target, answer)
            inquiry = None  # validators are those of the item's address; where it leads may change
        raise ItemFailure(
            ErrorCode.TOO_MANY_REDIRECTS,
            f"more than {self._limits.max_redirects}, the last one to {target.host}",
        )

    async def _hop(
        self, target: Target, inquiry: Inquiry | None, seconds: float, must_be_allowed: bool
    ) -> bytes | str | None:
        """The body, or the location of a redirect; None: the image is unchanged."""
        try:
            async with asyncio.timeout(seconds):
                return await self._exchange(target, inquiry, must_be_allowed)
        except TimeoutError:
            limit = self._limits.fetch_timeout_seconds
            detail = f"{target.host}: not finished within {limit:g} s"
            raise TransientFailure(ErrorCode.TIMEOUT, detail) from None

    async def _exchange(
        self, target: Target, inquiry: Inquiry | None, must_be_allowed: bool
    ) -> bytes | str | None:
        if self._session is None:
            raise RuntimeError("HttpFetcher.start was not called")
        # aiohttp keeps any number of idle connections: with images on very many hosts, too many file
        # descriptors. So no connection is kept once there are as many open sockets as turns.
        kept_or_used = len(self._sockets) - self.turns.slow
        headers = {} if inquiry is None else inquiry.headers
        if kept_or_used > self._limits.total_connections:
            headers = headers | _CLOSE
        try:
            response = await self._session.get(target.url, headers=headers, allow_redirects=False)
        except (aiohttp.ClientError, OSError, ValueError) as error:
            raise failure_before_answer(target.host, error) from error
        try:
            if must_be_allowed:
                self._require_no_refusal(target.host, response)
            return await self._answer(target.host, inquiry, response)
        finally:
            # A no-op if the whole body has arrived: that connection is in the pool again.
            response.close()

    def _require_no_refusal(self, host: str, response: aiohttp.ClientResponse) -> None:
        refusal = refusal_of(response.headers.getall("X-Robots-Tag", ()))
        if refusal is not None and self._respects_robots_tag and response.status in (200, 304):
            raise ItemFailure(ErrorCode.ROBOTS_REFUSED, f"{host}: X-Robots-Tag says {refusal}")

    async def _answer(
        self, host: str, inquiry: Inquiry | None, response: aiohttp.ClientResponse
    ) -> bytes | str | None:
        source = self._sockets.behind(response)
        head_bytes = sum(len(name) + len(value) + 4 for name, value in response.raw_headers)
        if head_bytes > self._limits.max_head_bytes:
            raise ItemFailure(
                ErrorCode.HTTP_ERROR, f"{host}: a header of more than {self._limits.max_head_bytes} bytes"
            )
        status = response.status
        is_unchanged = status == 304 and inquiry is not None and inquiry.is_conditional
        if status == 200 or is_unchanged:
            body = None if is_unchanged else await self._bodies.read(host, response, source)
            if source is not None:
                source.start_anew()
            if inquiry is not None:
                inquiry.answer = validators_of(response.headers)
            return body
        if status in _REDIRECTS and (location := response.headers.get("Location")):
            return location
        raise failure_of_status(host, status, response.headers)
