"""Asking again, leaving hosts alone and what others notice of it, with real servers and a short policy."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.host_breaker import BreakerPolicy, HostBreaker
from clipfleet_worker.fetch.http.fetcher import HttpFetcher, HttpLimits
from clipfleet_worker.fetch.retrying import ChunkTime, RetryingFetcher, RetryPolicy
from tests.support.fetching import LIMITS, LOOPBACK, codes, ends, opened
from tests.support.http_site import HttpSite
from tests.support.scenarios import in_loop

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


def fetcher_of(limits: HttpLimits, breaker: BreakerPolicy, policy: RetryPolicy) -> RetryingFetcher:
    return RetryingFetcher(HttpFetcher(limits, LOOPBACK, breaker=HostBreaker(breaker)), policy)


async def each(fetcher: RetryingFetcher, uris: Sequence[str]) -> list[Result]:
    return await ends(lambda uri: fetcher.fetch(uri, ChunkTime(60.0)), uris)


def fetch(
    uris: Sequence[str],
    *,
    limits: HttpLimits = LIMITS,
    breaker: BreakerPolicy = PATIENT,
    policy: RetryPolicy = QUICK,
) -> list[Result]:
    async def run() -> list[Result]:
        async with opened(fetcher_of(limits, breaker, policy)) as fetcher:
            return await each(fetcher, uris)

    return asyncio.run(run())


@pytest.mark.parametrize("status", [429, 503])
def test_an_overloaded_host_costs_no_row(site: HttpSite, status: int) -> None:
    path = f"/flaky/{status}/3"
    assert fetch([site.url(path)]) == [b"picture"]
    assert site.requests[path] == 4


@pytest.mark.parametrize(
    ("path", "times"),
    {
        "/flaky/503/9": 5,
        "/reset-early": 10,  # aiohttp itself asks a second time each time
        "/truncated": 2,
        "/stall": 2,
        "/status/404": 1,
        "/status/501": 1,
        "/nonsense": 1,
        "/bytes/100001": 1,
        "/loop": 6,
    }.items(),
)
def test_how_often_is_asked(site: HttpSite, path: str, times: int) -> None:
    limits = replace(LIMITS, fetch_timeout_seconds=0.2) if path == "/stall" else LIMITS
    (end,) = fetch([site.url(path)], limits=limits)
    assert isinstance(end, ItemFailure)
    assert site.requests[path] == times


def test_retry_after_is_kept_and_a_long_one_ends_the_row_at_once(site: HttpSite) -> None:
    kept, long = fetch([site.url("/flaky/429/1?after=1"), site.url("/flaky/429/2?after=86400")])
    assert kept == b"picture"
    assert str(long) == "rate_limited: 127.0.0.1: HTTP status 429, Retry-After 86400 s"
    assert site.requests["/flaky/429/2"] == 1


@in_loop
async def test_who_waits_holds_no_turn(site: HttpSite) -> None:
    """With one turn for all, and one item that comes back in a minute."""
    limits = replace(LIMITS, host_connections=1, total_connections=1)
    async with opened(fetcher_of(limits, PATIENT, QUICK)) as fetcher:
        waiting = asyncio.create_task(fetcher.fetch(site.url("/flaky/503/1?after=50"), ChunkTime(60.0)))
        while not site.requests["/flaky/503/1"]:
            await asyncio.sleep(0)
        assert await each(fetcher, [site.url("/files/a.jpg")] * 20) == [b"file"] * 20
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)


@in_loop
async def test_a_host_that_comes_back_costs_nothing(
    closed_port: int, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody listens there until it is left alone; then hundreds get their images, and few have knocked."""
    async with opened(fetcher_of(LIMITS, PATIENT, QUICK)) as fetcher:
        uris = [f"http://127.0.0.1:{closed_port}/bytes/{number}" for number in range(300)]
        asked = asyncio.create_task(each(fetcher, uris))
        while "host_left_alone" not in [getattr(record, "action", "") for record in caplog.records]:
            await asyncio.sleep(0)
        with HttpSite(port=closed_port) as late:
            assert await asked == [bytes(number) for number in range(300)]
            assert late.most_active <= LIMITS.host_connections


@pytest.mark.parametrize(
    ("path", "code"),
    {
        None: ErrorCode.CONNECT_FAILED,  # a closed port
        "/status/503": ErrorCode.SERVER_ERROR,
        "/status/429": ErrorCode.RATE_LIMITED,
        "/stall": ErrorCode.TIMEOUT,
    }.items(),
)
def test_a_host_that_is_gone_costs_its_own_rows_only_and_little_time(
    site: HttpSite, closed_port: int, path: str | None, code: ErrorCode
) -> None:
    """Were each of its URLs asked, 400 of a silent host would take 400 / 8 x 0.3 s."""
    impatient = replace(PATIENT, young_seconds=0.0, first_pause_seconds=60.0, max_pause_seconds=60.0)
    # What answers has time to: a busy machine may take a while for it.
    limits = replace(LIMITS, fetch_timeout_seconds=0.3) if path == "/stall" else LIMITS
    good = [site.url("/files/a.jpg")] * 400
    with HttpSite() as bad:
        root = bad.url(path) if path else f"http://127.0.0.1:{closed_port}/"
        uris = [f"{root}?{number}" for number in range(400)]
        mixed = [uri for pair in zip(uris, good, strict=True) for uri in pair]
        results = fetch(mixed, breaker=impatient, limits=limits)
        assert bad.requests[path or "/"] <= 3 * LIMITS.host_connections

    assert results[1::2] == [b"file"] * 400
    assert codes(results[0::2]) == [code] * 400
    assert sum(": no request made after " in str(result) for result in results[0::2]) > 300


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


@in_loop
async def test_a_host_that_was_left_alone_for_bad_urls_gives_good_ones_later(site: HttpSite) -> None:
    """Nobody can tell an outage from a list of bad URLs, but the next chunk shows it."""
    async with opened(fetcher_of(LIMITS, replace(PATIENT, young_seconds=0.0), QUICK)) as fetcher:
        bad = await each(fetcher, [site.url(f"/status/503?{number}") for number in range(40)])
        good = await each(fetcher, [site.url(f"/bytes/{number}") for number in range(60)])
    assert set(codes(bad)) == {ErrorCode.SERVER_ERROR}
    assert good == [bytes(number) for number in range(60)]
