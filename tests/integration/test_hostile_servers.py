"""Servers that drip, flood, lie and loop: each URL ends as a row with the right code, within its own time."""

from __future__ import annotations

import resource
from collections.abc import Iterator, Sequence
from dataclasses import replace

import pytest

from clipfleet.contract.jobs import ErrorCode, ItemError
from clipfleet_worker.fetch.http.body import ArrivingBytes
from clipfleet_worker.fetch.http.fetcher import HttpFetcher, HttpLimits
from clipfleet_worker.fetch.loop import FetchedSlice, FetchLoop, FetchRequest
from clipfleet_worker.fetch.retrying import RetryingFetcher, RetryPolicy
from clipfleet_worker.fetch.waiting_bytes import WaitingBytes
from clipfleet_worker.outcomes import Outcomes
from tests.support.fetching import LIMITS, LOOPBACK, opened
from tests.support.hostile_site import WAYS, HostileSite
from tests.support.scenarios import in_loop

GOOD = b"a picture"
PATIENT = replace(
    LIMITS,
    max_image_bytes=2_000_000,
    fetch_timeout_seconds=60.0,
    connect_timeout_seconds=60.0,
    idle_read_timeout_seconds=60.0,
    host_connections=16,
    total_connections=256,
)
BRIEF = replace(
    PATIENT, fetch_timeout_seconds=2.0, connect_timeout_seconds=1.0, idle_read_timeout_seconds=1.0
)
CHUNK_DEADLINE_SECONDS = 120.0  # far beyond the limits of a URL: nothing may need it

TIMEOUT, TOO_MANY_BYTES, HTTP_ERROR = ErrorCode.TIMEOUT, ErrorCode.TOO_MANY_BYTES, ErrorCode.HTTP_ERROR
INCOMPLETE = ErrorCode.INCOMPLETE_BODY
WAYS_BY_CODE: dict[ErrorCode | None, str] = {
    TIMEOUT: "stall drip-header drip-header-lines drip-body drip-chunks silent-body drip-continue",
    TOO_MANY_BYTES: (
        "endless endless-chunks tiny-chunks huge-length gzip-bomb chunk-extension chunk-extensions"
    ),
    HTTP_ERROR: (
        "header-half-megabyte header-megabyte header-lines header-line status-line continue-flood trailers "
        "trailer length-too-short length-negative length-overflow length-words two-lengths length-and-chunks "
        "chunk-size-overflow http-0.9 http-2 smtp switching nul-header"
    ),
    INCOMPLETE: "length-too-long chunk-size-negative chunks-cut reset-in-body reset-in-open-body",
    ErrorCode.CONNECT_FAILED: "close close-in-header reset reset-in-header",
    ErrorCode.TOO_MANY_REDIRECTS: "redirect-loop redirect-body redirect-long",
    ErrorCode.NOT_FOUND: "not-found-body",
    None: "answers",  # the first one counts, and it is empty
}
EXPECTED = {way: code for code, ways in WAYS_BY_CODE.items() for way in ways.split()}
# Depending on how the pieces arrive, aiohttp blames the head or the body.
ALSO = {
    "trailers": INCOMPLETE,
    "trailer": INCOMPLETE,
    "chunk-size-overflow": INCOMPLETE,
    "chunk-size-negative": HTTP_ERROR,
    "length-too-short": None,  # the declared bytes, should the rest come later
}


@pytest.fixture(scope="module")
def site() -> Iterator[HostileSite]:
    with HostileSite(GOOD) as running:
        yield running


def outcomes_of(uris: Sequence[str], limits: HttpLimits, attempts: int = 1) -> list[ItemError | None]:
    """Fetched by the loop of a worker; None for what arrived."""
    fetcher = RetryingFetcher(HttpFetcher(limits, LOOPBACK), RetryPolicy(attempts=attempts))
    loop = FetchLoop(fetcher, WaitingBytes(1 << 30), CHUNK_DEADLINE_SECONDS)
    outcomes = Outcomes(len(uris))
    arrived = ItemError(ErrorCode.EMPTY, "arrived")

    def arrive(fetched: FetchedSlice) -> None:
        for position, _ in fetched:
            outcomes.fail(position, arrived)

    loop.start()
    try:
        loop.fetch(FetchRequest(list(enumerate(uris)), outcomes, arrive))
        outcomes.wait()
    finally:
        loop.stop()
    return [None if error == arrived else error for error in outcomes.errors]


def require_expected(ways: Sequence[str], ends: Sequence[ItemError | None]) -> None:
    codes = [(way, end and end.code) for way, end in zip(ways, ends, strict=True)]
    wrong = [(way, code) for way, code in codes if code not in (EXPECTED[way], ALSO.get(way, EXPECTED[way]))]
    assert wrong == []


def test_all_ways_are_tried() -> None:
    assert set(EXPECTED) == set(WAYS)


def test_slow_and_silent_servers_end_within_the_time_of_their_url(site: HostileSite) -> None:
    ways = [way for way, code in EXPECTED.items() if code is TIMEOUT]
    ends = outcomes_of([site.url(f"/{way}", host=f"127.1.1.{1 + n}") for n, way in enumerate(ways)], BRIEF)
    require_expected(ways, ends)
    assert not [end for end in ends if end is not None and "chunk's" in end.detail]


@pytest.mark.figures
def test_floods_lies_and_loops_are_ended_before_any_time_is_up(site: HostileSite) -> None:
    """Many at once, each at a host of its own, with good ones among them that all arrive."""
    ways = [way for way, code in EXPECTED.items() if code is not TIMEOUT] * 2
    uris = [site.url(f"/{way}", host=f"127.1.2.{1 + number}") for number, way in enumerate(ways)]
    good = [site.url(f"/good/{number}") for number in range(200)]

    ends = outcomes_of([*uris, *good], PATIENT)

    assert ends[len(uris) :] == [None] * len(good)
    require_expected(ways, ends[: len(uris)])
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    print(f"{len(uris)} hostile URLs at once: {peak} MiB at most in this process")


def test_a_server_that_takes_tls_and_says_nothing(site: HostileSite) -> None:
    (end,) = outcomes_of([site.url("/good", scheme="https")], BRIEF)
    assert end and end.code is TIMEOUT


@in_loop
async def test_kept_connections_start_anew_with_each_request() -> None:
    """What a connection may bring counts for one answer, not for its life."""
    with HostileSite(bytes(60_000)) as large:
        async with opened(HttpFetcher(PATIENT, LOOPBACK)) as fetcher:
            for _ in range(40):
                assert await fetcher.fetch(large.url("/good")) == bytes(60_000)
        assert large.connections == 1


def test_bodies_under_way_share_a_bounded_memory(site: HostileSite, monkeypatch: pytest.MonkeyPatch) -> None:
    """Sixty endless ones at once: one after the other reaches the limit of a body."""
    most: list[int] = []
    add = ArrivingBytes.add

    async def watched(self: ArrivingBytes, body: object, count: int) -> None:
        most.append(self.count + count)
        await add(self, body, count)

    monkeypatch.setattr(ArrivingBytes, "add", watched)
    limits = replace(PATIENT, arriving_bytes=4_000_000)
    uris = [site.url("/endless", host=f"127.1.2.{1 + number}") for number in range(60)]

    ends = outcomes_of(uris, limits)

    assert [end and end.code for end in ends] == [TOO_MANY_BYTES] * 60
    # The bound, the oldest one, and of each other one the part that it was stopped after.
    assert max(most) <= 4_000_000 + 2_000_000 + 60 * 600_000
    assert max(most) < 60 * 2_000_000 / 2


def test_floods_are_not_asked_for_again(site: HostileSite) -> None:
    before = dict(site.requests)
    ways = ["chunk-extension", "header-line", "gzip-bomb", "endless"]
    outcomes_of([site.url(f"/{way}") for way in ways], PATIENT, attempts=3)
    assert {way: site.requests[way] - before.get(way, 0) for way in ways} == dict.fromkeys(ways, 1)
