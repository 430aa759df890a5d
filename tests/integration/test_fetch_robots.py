"""`X-Robots-Tag` and robots.txt with a real site: what is not read, and what is not even asked for."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from urllib.parse import quote

import pytest

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.assembly.fetch import make_http_fetcher
from clipfleet_worker.fetch.http.fetcher import HttpFetcher
from clipfleet_worker.fetch.http.robots import RobotsTxt
from clipfleet_worker.settings import WorkerSettings
from tests.support.fetching import LIMITS, LOOPBACK, codes, ends, opened
from tests.support.http_site import HttpSite

REFUSED = ErrorCode.ROBOTS_REFUSED
Result = bytes | ErrorCode


@pytest.fixture
def site() -> Iterator[HttpSite]:
    with HttpSite() as site:
        yield site


def fetch(*uris: str, tag: bool = True, txt: bool = False, by: HttpFetcher | None = None) -> list[Result]:
    robots_txt = RobotsTxt() if txt else None
    chosen = by or HttpFetcher(LIMITS, LOOPBACK, respects_robots_tag=tag, robots_txt=robots_txt)

    async def run() -> list[Result]:
        async with opened(chosen):
            return codes(await ends(chosen.fetch, uris))

    return asyncio.run(run())


class TestTag:
    @pytest.mark.parametrize("query", ["tag=noai", "tag=all&tag=noimageindex", "tag=clipfleet:%20noai"])
    def test_refused(self, site: HttpSite, query: str) -> None:
        assert fetch(site.url(f"/tagged?{query}")) == [REFUSED]
        assert fetch(site.url(f"/tagged?{query}"), tag=False) == [b"picture"]

    @pytest.mark.parametrize("query", ["", "tag=nofollow", "tag=otherbot:%20noai", "tag=max-snippet:%205"])
    def test_not_refused(self, site: HttpSite, query: str) -> None:
        assert fetch(site.url(f"/tagged?{query}")) == [b"picture"]

    def test_what_is_not_there_is_called_so(self, site: HttpSite) -> None:
        assert fetch(site.url("/tagged?status=404&tag=noindex")) == [ErrorCode.NOT_FOUND]

    def test_after_a_redirect(self, site: HttpSite) -> None:
        to = quote("/tagged?tag=noai", safe="")
        assert fetch(site.url(f"/redirect?to={to}")) == [REFUSED]


class TestTxt:
    def test_what_it_disallows_is_not_asked_for(self, site: HttpSite) -> None:
        site.robots_txt = "User-agent: *\nDisallow: /bytes/7\n"
        urls = [site.url(path) for path in ("/bytes/7", "/bytes/8", "/bytes/7?x")]
        assert fetch(*urls, txt=True) == [REFUSED, bytes(8), REFUSED]
        assert site.requests == {"/bytes/8": 1, "/robots.txt": 1}

    def test_by_default_nobody_asks_for_it(self, site: HttpSite) -> None:
        site.robots_txt = "User-agent: *\nDisallow: /\n"
        assert fetch(site.url("/bytes/7")) == [bytes(7)]
        assert site.requests["/robots.txt"] == 0

    def test_redirects_are_bound_by_the_rules_of_where_they_lead(self, site: HttpSite) -> None:
        with HttpSite(host="127.0.0.2") as other:
            other.robots_txt = "User-agent: clipfleet\nDisallow: /bytes/\n"
            there = [quote(other.url(path), safe="") for path in ("/bytes/1", "/html")]
            results = fetch(*(site.url(f"/redirect?to={to}") for to in there), txt=True)
            assert other.requests["/bytes/1"] == 0
        assert results == [REFUSED, b"<html>no image</html>"]

    @pytest.mark.parametrize(
        ("status", "answer", "requests"),
        [
            (403, bytes(7), 1),  # without one everything is allowed
            (404, bytes(7), 1),
            (503, ErrorCode.SERVER_ERROR, 0),  # one that cannot be fetched allows nothing
            (429, ErrorCode.RATE_LIMITED, 0),
        ],
    )
    def test_a_site_without_one_and_one_that_cannot_be_fetched(
        self, site: HttpSite, status: int, answer: Result, requests: int
    ) -> None:
        site.robots_txt = status
        assert fetch(site.url("/bytes/7"), txt=True) == [answer]
        assert site.requests["/bytes/7"] == requests

    def test_an_internal_address_is_refused_before_its_robots_txt_is_asked_for(self) -> None:
        assert fetch("http://10.0.0.1/a.jpg", txt=True) == [ErrorCode.ADDRESS_REFUSED]


@pytest.mark.parametrize(
    ("robots", "expected"),
    {
        None: [REFUSED, bytes(7)],
        "none": [b"picture", bytes(7)],
        "txt": [b"picture", REFUSED],
        "tag,txt": [REFUSED, REFUSED],
    }.items(),
)
def test_the_setting_arrives_in_the_fetcher_of_a_worker(
    site: HttpSite, monkeypatch: pytest.MonkeyPatch, robots: str | None, expected: list[Result]
) -> None:
    site.robots_txt = "User-agent: *\nDisallow: /bytes/\n"
    monkeypatch.setenv("CLIPFLEET_ALLOW_PRIVATE", "127.0.0.1/32")
    if robots is not None:
        monkeypatch.setenv("CLIPFLEET_ROBOTS", robots)
    fetcher = make_http_fetcher(WorkerSettings())
    assert fetch(site.url("/tagged?tag=noai"), site.url("/bytes/7"), by=fetcher) == expected
