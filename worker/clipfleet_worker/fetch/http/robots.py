"""The permissions of sites: a response's `X-Robots-Tag`, and robots.txt.

The tag is read as in img2dataset: for all programs, or for this one. robots.txt follows RFC 9309: fetched
once per site and kept for an hour.

A site without one (404, 403 and the like) allows everything. While a robots.txt cannot be fetched (5xx, no
response), nothing is allowed: items fail with the code of that failure, so that a retry may help. Delays
between requests are not part of the RFC and not supported.
"""

from __future__ import annotations

import asyncio
import time
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import TypeVar

from protego import Protego

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import HostLeftAlone, ItemFailure, TransientFailure
from clipfleet_worker.fetch.http.target import Target

USER_AGENT = "clipfleet"  # the name of this program in the rules of sites

# `none` is short for noindex and nofollow.
_REFUSALS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})

_READ_BYTES = 512_000  # the RFC asks for at least 500 KiB; the rest is ignored
_KEPT_SECONDS = 3600.0
_KEPT_SITES = 10_000
_KEPT_BYTES = 16 << 20  # of all texts together; parsed they take several times more
_SMALL_BYTES = 32_768  # larger ones are parsed and searched outside the event loop

_FIRST_PAUSE_SECONDS = 5.0  # before a failed fetch is repeated; doubles
_MAX_PAUSE_SECONDS = 300.0
_PATIENCE = 3  # failures in a row after which items no longer wait

_NO_RULES = frozenset(
    {ErrorCode.NOT_FOUND, ErrorCode.ACCESS_DENIED, ErrorCode.HTTP_ERROR, ErrorCode.TOO_MANY_REDIRECTS}
)

T = TypeVar("T")
Get = Callable[[str], Awaitable[bytes]]  # raises ItemFailure


def refusal_of(values: Iterable[str]) -> str | None:
    """The first directive that refuses this program; None if there is none.

    Args:
        values: of each `X-Robots-Tag` header: `noai, noindex`, or `clipfleet: noai` for one program only.
    """
    for value in values:
        agent = "*"
        for part in value.lower().split(","):
            name, colon, rest = part.partition(":")
            directive = name.strip()
            if colon and directive not in _WITH_VALUE:
                agent, directive = directive, rest.strip()
            if agent in ("*", USER_AGENT) and directive in _REFUSALS:
                return directive
    return None


class RobotsTxt:
    """The rules of all sites; belongs to one event loop."""

    def __init__(self, *, monotonic: Callable[[], float] = time.monotonic) -> None:
        self._monotonic = monotonic
        self._sites: OrderedDict[str, _Site] = OrderedDict()
        self._bytes = 0
        self._under_way: dict[str, asyncio.Task[_Site]] = {}

    async def require_allowed(self, target: Target, get: Get) -> None:
        """Check a request against the site's rules.

        Args:
            target: the request.
            get: fetches a robots.txt, without a check.

        Raises:
            ItemFailure: `robots_refused`, or why the rules cannot be fetched now.
        """
        site = await self._site(f"{target.scheme}://{target.url.host_port_subcomponent}", get)
        if site.failure is not None:
            raise site.of_an_item(site.failure)
        if not await site.allows(str(target.url)):
            raise ItemFailure(ErrorCode.ROBOTS_REFUSED, f"{target.host}: robots.txt disallows it")

    async def _site(self, origin: str, get: Get) -> _Site:
        known = self._sites.get(origin)
        if known is not None and self._monotonic() < known.ends:
            self._sites.move_to_end(origin)
            return known
        task = self._under_way.get(origin)
        if task is None:
            task = asyncio.create_task(self._load(origin, get, known))
            self._under_way[origin] = task
            task.add_done_callback(lambda _: self._under_way.pop(origin, None))
        # The first caller may be cancelled; others wait for the same result.
        return await asyncio.shield(task)

    async def _load(self, origin: str, get: Get, before: _Site | None) -> _Site:
        try:
            text = (await get(f"{origin}/robots.txt"))[:_READ_BYTES]
        except HostLeftAlone as refusal:  # the breaker decides about the next attempt
            return _Site(0.0, failure=refusal)
        except ItemFailure as failure:
            if failure.error.code in _NO_RULES:
                site = _Site(self._monotonic() + _KEPT_SECONDS)
            else:
                failures = 1 + (before.failures if before is not None else 0)
                pause = min(_MAX_PAUSE_SECONDS, _FIRST_PAUSE_SECONDS * 2 ** min(failures - 1, 10))
                site = _Site(self._monotonic() + pause, failure=failure, failures=failures)
        else:
            rules = await _beside_the_loop(len(text), lambda: _parse(text))
            site = _Site(self._monotonic() + _KEPT_SECONDS, rules, len(text))
        self._keep(origin, site)
        return site

    def _keep(self, origin: str, site: _Site) -> None:
        if (before := self._sites.pop(origin, None)) is not None:
            self._bytes -= before.size_bytes
        self._sites[origin] = site
        self._bytes += site.size_bytes
        while len(self._sites) > _KEPT_SITES or self._bytes > _KEPT_BYTES:
            _, oldest = self._sites.popitem(last=False)
            self._bytes -= oldest.size_bytes


@dataclass(frozen=True, slots=True)
class _Site:
    ends: float  # when it is fetched again
    rules: Protego | None = None  # None: everything is allowed
    size_bytes: int = 0  # of the text
    failure: ItemFailure | None = None  # why it could not be fetched
    failures: int = 0  # in a row

    def of_an_item(self, failure: ItemFailure) -> ItemFailure:
        """The failure of an item whose site's rules could not be fetched."""
        code, detail = failure.error.code, f"robots.txt: {failure.error.detail}"
        if isinstance(failure, HostLeftAlone):
            return HostLeftAlone(code, detail, wait_seconds=failure.wait_seconds, is_old=failure.is_old)
        if isinstance(failure, TransientFailure) and self.failures < _PATIENCE:
            return TransientFailure(code, detail, retry_after_seconds=failure.retry_after_seconds)
        return ItemFailure(code, detail)

    async def allows(self, url: str) -> bool:
        rules = self.rules
        if rules is None:
            return True
        return await _beside_the_loop(self.size_bytes, lambda: bool(rules.can_fetch(url, USER_AGENT)))


def _parse(text: bytes) -> Protego:
    return Protego.parse(text.decode("utf-8-sig", errors="replace"))


async def _beside_the_loop(size_bytes: int, work: Callable[[], T]) -> T:
    """At once where it takes no time; in a thread where rules without end would hold up all other hosts."""
    return work() if size_bytes <= _SMALL_BYTES else await asyncio.to_thread(work)
