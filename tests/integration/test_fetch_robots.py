"""`X-Robots-Tag` and robots.txt with a real site: what is not read, and what is not even asked for."""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote

import pytest

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.assembly.fetch import make_http_fetcher
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.http.address_guard import AddressGuard
from clipfleet_worker.fetch.http.fetcher import HttpFetcher, HttpLimits
from clipfleet_worker.fetch.http.robots import RobotsTxt
from clipfleet_worker.settings import WorkerSettings
from tests.support.http_site import HttpSite

LIMITS = HttpLimits(
    max_image_bytes=100_000,
    fetch_timeout_seconds=20,
    connect_timeout_seconds=20,
    idle_read_timeout_seconds=20,
    host_connections=8,
    total_connections=16,
)
GUARD = AddressGuard((ipaddress.ip_network("127.0.0.0/8"),))
Result = bytes | ErrorCode


@pytest.fixture
def site(tmp_path: Path) -> Iterator[HttpSite]:
    with HttpSite(tmp_path) as site:
        yield site


def fetch(
    *uris: str, tag: bool = True, txt: bool = False, fetcher: HttpFetcher | None = None
) -> list[Result]:
    robots_txt = RobotsTxt() if txt else None
    chosen = fetcher or HttpFetcher(LIMITS, GUARD, respects_robots_tag=tag, robots_txt=robots_txt)

    async def one(uri: str) -> Result:
        try:
            return await chosen.fetch(uri)
        except ItemFailure as failure:
            return failure.error.code

    async def run() -> list[Result]:
        await chosen.start()
        try:
            return list(await asyncio.gather(*map(one, uris)))
        finally:
            await chosen.close()

    return asyncio.run(run())


class TestTag:
    @pytest.mark.parametrize("query", ["tag=noai", "tag=all&tag=noimageindex", "tag=clipfleet:%20noai"])
    def test_refused(self, site: HttpSite, query: str) -> None:
        assert fetch(site.url(f"/tagged?{query}")) == [ErrorCode.ROBOTS_REFUSED]
        assert fetch(site.url(f"/tagged?{query}"), tag=False) == [b"picture"]

    @pytest.mark.parametrize("query", ["", "tag=nofollow", "tag=otherbot:%20noai", "tag=max-snippet:%205"])
    def test_not_refused(self, site: HttpSite, query: str) -> None:
        assert fetch(site.url(f"/tagged?{query}")) == [b"picture"]

    def test_what_is_not_there_is_called_so(self, site: HttpSite) -> None:
        assert fetch(site.url("/tagged?status=404&tag=noindex")) == [ErrorCode.NOT_FOUND]

    def test_after_a_redirect(self, site: HttpSite) -> None:
        to = quote("/tagged?tag=noai", safe="")
        assert fetch(site.url(f"/redirect?to={to}")) == [ErrorCode.ROBOTS_REFUSED]


class TestTxt:
    def test_what_it_disallows_is_not_asked_for(self, site: HttpSite) -> None:
        site.robots_txt = "User-agent: *\nDisallow: /bytes/7\n"
        urls = [site.url(path) for path in ("/bytes/7", "/bytes/8", "/bytes/7?x")]
        assert fetch(*urls, txt=True) == [ErrorCode.ROBOTS_REFUSED, bytes(8), ErrorCode.ROBOTS_REFUSED]
        assert site.requests["/bytes/7"] == 0
        assert site.requests["/robots.txt"] == 1

    def test_by_default_nobody_asks_for_it(self, site: HttpSite) -> None:
        site.robots_txt = "User-agent: *\nDisallow: /\n"
        assert fetch(site.url("/bytes/7")) == [bytes(7)]
        assert site.requests["/robots.txt"] == 0

    def test_redirects_are_bound_by_the_rules_of_where_they_lead(self, site: HttpSite) -> None:
        with HttpSite(host="127.0.0.2") as other:
            other.robots_txt = "User-agent: clipfleet\nDisallow: /bytes/\n"
            uris = [
                site.url(f"/redirect?to={quote(other.url(path), safe='')}") for path in ("/bytes/1", "/html")
            ]
            results = fetch(*uris, txt=True)
            assert other.requests["/bytes/1"] == 0
        assert results == [ErrorCode.ROBOTS_REFUSED, b"<html>no image</html>"]

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
    [
        (None, [ErrorCode.ROBOTS_REFUSED, bytes(7)]),
        ("none", [b"picture", bytes(7)]),
        ("txt", [b"picture", ErrorCode.ROBOTS_REFUSED]),
        ("tag,txt", [ErrorCode.ROBOTS_REFUSED, ErrorCode.ROBOTS_REFUSED]),
    ],
)
def test_the_setting_arrives_in_the_fetcher_of_a_worker(
    site: HttpSite, monkeypatch: pytest.MonkeyPatch, robots: str | None, expected: list[Result]
) -> None:
    site.robots_txt = "User-agent: *\nDisallow: /bytes/\n"
    monkeypatch.setenv("CLIPFLEET_ALLOW_PRIVATE", "127.0.0.1/32")
    if robots is not None:
        monkeypatch.setenv("CLIPFLEET_ROBOTS", robots)
    fetcher = make_http_fetcher(WorkerSettings())
    assert fetch(site.url("/tagged?tag=noai"), site.url("/bytes/7"), fetcher=fetcher) == expected
