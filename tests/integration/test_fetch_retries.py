"""Asking again, leaving hosts alone and what others notice of it, with real servers and a short policy."""

from __future__ import annotations

import asyncio
import ipaddress
import socket
from collections import Counter
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.host_breaker import BreakerPolicy, HostBreaker
from clipfleet_worker.fetch.http.address_guard import AddressGuard
from clipfleet_worker.fetch.http.fetcher import HttpFetcher, HttpLimits
from clipfleet_worker.fetch.retrying import ChunkTime, RetryingFetcher, RetryPolicy
from tests.support.http_site import HttpSite

GUARD = AddressGuard((ipaddress.ip_network("127.0.0.0/8"),))
LIMITS = HttpLimits(
    max_image_bytes=100_000,
    fetch_timeout_seconds=20,
    connect_timeout_seconds=20,
    idle_read_timeout_seconds=20,
    host_connections=8,
    total_connections=64,
)
QUICK = RetryPolicy(first_delay_seconds=0.02, max_delay_seconds=0.1)
PATIENT = BreakerPolicy(first_pause_seconds=0.02, max_pause_seconds=0.05)
TWICE = replace(QUICK, attempts=2)
Result = bytes | ItemFailure


@pytest.fixture
def site(tmp_path: Path) -> Iterator[HttpSite]:
    (tmp_path / "a.jpg").write_bytes(b"file")
    with HttpSite(tmp_path) as site:
        yield site


@pytest.fixture
def closed_port() -> int:
    """Of 127.0.0.1, where nobody listens."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port: int = taken.getsockname()[1]
    return port


@asynccontextmanager
async def started(
    policy: RetryPolicy, breaker: BreakerPolicy, limits: HttpLimits
) -> AsyncIterator[RetryingFetcher]:
    fetcher = RetryingFetcher(HttpFetcher(limits, GUARD, breaker=HostBreaker(breaker)), policy)
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()


async def each(fetcher: RetryingFetcher, uris: Sequence[str]) -> list[Result]:
    async def one(uri: str) -> Result:
        try:
            return await fetcher.fetch(uri, ChunkTime(60.0))
        except ItemFailure as failure:
            return failure

    return list(await asyncio.gather(*map(one, uris)))


def fetch(
    uris: Sequence[str],
    *,
    policy: RetryPolicy = QUICK,
    breaker: BreakerPolicy = PATIENT,
    limits: HttpLimits = LIMITS,
) -> list[Result]:
    async def run() -> list[Result]:
        async with started(policy, breaker, limits) as fetcher:
            return await each(fetcher, uris)

    return asyncio.run(run())


def codes(results: Sequence[Result]) -> list[ErrorCode | None]:
    return [None if isinstance(result, bytes) else result.error.code for result in results]


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504])
def test_an_overloaded_host_costs_no_row(site: HttpSite, status: int) -> None:
    path = f"/flaky/{status}/3"
    assert fetch([site.url(path)]) == [b"picture"]
    assert site.requests[path] == 4


@pytest.mark.parametrize(
    ("path", "times"),
    [
        ("/flaky/503/9", 5),
        ("/reset-early", 10),  # aiohttp itself asks a second time each time
        ("/truncated", 2),
        ("/status/404", 1),
        ("/status/403", 1),
        ("/status/501", 1),
        ("/nonsense", 1),
        ("/bytes/100001", 1),
        ("/loop", 6),
    ],
)
def test_how_often_is_asked(site: HttpSite, path: str, times: int) -> None:
    assert codes(fetch([site.url(path)])) != [None]
    assert site.requests[path] == times


def test_a_host_that_hangs_is_asked_twice(site: HttpSite) -> None:
    limits = replace(LIMITS, fetch_timeout_seconds=0.2)
    assert codes(fetch([site.url("/stall")], limits=limits)) == [ErrorCode.TIMEOUT]
    assert site.requests["/stall"] == 2


def test_retry_after_is_kept_and_a_long_one_ends_the_row_at_once(site: HttpSite) -> None:
    results = fetch([site.url("/flaky/429/1?after=1"), site.url("/flaky/429/2?after=86400")])
    assert codes(results) == [None, ErrorCode.RATE_LIMITED]
    assert isinstance(results[1], ItemFailure)
    assert results[1].error.detail == "127.0.0.1: HTTP status 429, Retry-After 86400 s"
    assert site.requests["/flaky/429/2"] == 1


def test_who_waits_holds_no_turn(site: HttpSite) -> None:
    """With one turn for all, and one item that comes back in a minute."""

    async def run() -> list[Result]:
        limits = replace(LIMITS, host_connections=1, total_connections=1)
        async with started(QUICK, PATIENT, limits) as fetcher:
            uri = site.url("/flaky/503/1?after=50")
            waiting = asyncio.create_task(fetcher.fetch(uri, ChunkTime(60.0)))
            while not site.requests["/flaky/503/1"]:
                await asyncio.sleep(0)
            others = await each(fetcher, [site.url("/files/a.jpg")] * 20)
            waiting.cancel()
            await asyncio.gather(waiting, return_exceptions=True)
            return others

    assert asyncio.run(run()) == [b"file"] * 20


def test_a_host_that_comes_back_costs_no_row_though_hundreds_ask_for_it(
    closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody listens there until it is left alone; then all get their images, and few have knocked."""

    async def run() -> tuple[list[Result], int]:
        async with started(QUICK, PATIENT, LIMITS) as fetcher:
            uris = [f"http://127.0.0.1:{closed_port}/bytes/{number}" for number in range(300)]
            asked = asyncio.create_task(each(fetcher, uris))
            while "host_left_alone" not in [getattr(record, "action", "") for record in caplog.records]:
                await asyncio.sleep(0)
            with HttpSite(port=closed_port) as late:
                return await asked, late.most_active

    results, most_active = asyncio.run(run())
    assert results == [bytes(number) for number in range(300)]
    assert most_active <= LIMITS.host_connections


@pytest.mark.parametrize("trouble", ["closed port", "503", "429", "silence"])
def test_a_host_that_is_gone_costs_its_own_rows_only_and_little_time(
    site: HttpSite, closed_port: int, trouble: str
) -> None:
    """Were each of its URLs asked, 400 of a silent host would take 400 / 8 x 0.3 s."""
    path = {"503": "/status/503", "429": "/status/429", "silence": "/stall"}.get(trouble, "/")
    impatient = replace(PATIENT, young_seconds=0.0, first_pause_seconds=60.0, max_pause_seconds=60.0)
    with HttpSite() as bad:
        port = closed_port if trouble == "closed port" else bad.port
        uris = [f"http://127.0.0.1:{port}{path}?{number}" for number in range(400)]
        good = [site.url("/files/a.jpg")] * 400
        mixed = [uri for pair in zip(uris, good, strict=True) for uri in pair]
        # What answers has time to: a busy machine may take a while for it.
        patience = 0.3 if trouble == "silence" else LIMITS.fetch_timeout_seconds
        results = fetch(mixed, breaker=impatient, limits=replace(LIMITS, fetch_timeout_seconds=patience))
        asked = bad.requests[path]

    assert results[1::2] == [b"file"] * 400
    expected = {
        "503": ErrorCode.SERVER_ERROR, "429": ErrorCode.RATE_LIMITED, "silence": ErrorCode.TIMEOUT,
    }.get(trouble, ErrorCode.CONNECT_FAILED)  # fmt: skip
    assert Counter(codes(results[0::2])) == {expected: 400}
    assert asked <= 3 * LIMITS.host_connections
    details = [result.error.detail for result in results[0::2] if isinstance(result, ItemFailure)]
    assert sum(": no request made after " in detail for detail in details) > 300


def test_a_host_of_which_every_other_url_is_bad_gives_all_the_good_ones(site: HttpSite) -> None:
    uris = [site.url(f"/status/503?{number}" if number % 2 else f"/bytes/{number}") for number in range(60)]
    results = fetch(uris, policy=TWICE)
    assert results[0::2] == [bytes(number) for number in range(0, 60, 2)]
    assert set(codes(results[1::2])) == {ErrorCode.SERVER_ERROR}


def test_bad_urls_first_then_good_ones_of_the_same_host(site: HttpSite) -> None:
    """The bad ones look like an outage, which must not outlive the trials."""
    uris = [site.url(f"/status/503?{number}") for number in range(30)]
    uris += [site.url(f"/bytes/{number}") for number in range(100)]
    results = fetch(uris, policy=TWICE)
    assert results[30:] == [bytes(number) for number in range(100)]
    assert set(codes(results[:30])) == {ErrorCode.SERVER_ERROR}


def test_a_host_that_was_left_alone_for_bad_urls_gives_the_good_ones_of_the_next_chunk(
    site: HttpSite,
) -> None:
    """Nobody can tell an outage from a list of bad URLs, but whoever comes later."""

    async def run() -> tuple[list[Result], list[Result]]:
        async with started(QUICK, replace(PATIENT, young_seconds=0.0), LIMITS) as fetcher:
            bad = await each(fetcher, [site.url(f"/status/503?{number}") for number in range(40)])
            return bad, await each(fetcher, [site.url(f"/bytes/{number}") for number in range(60)])

    bad, good = asyncio.run(run())
    assert set(codes(bad)) == {ErrorCode.SERVER_ERROR}
    assert good == [bytes(number) for number in range(60)]
