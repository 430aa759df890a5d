"""What robots.txt allows, how often it is fetched, and what holds if it cannot be; which tags refuse."""

from __future__ import annotations

import asyncio
import threading

import pytest

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import HostLeftAlone, ItemFailure, TransientFailure
from clipfleet_worker.fetch.http import robots as robots_module
from clipfleet_worker.fetch.http.robots import RobotsTxt, refusal_of
from clipfleet_worker.fetch.http.target import target_of
from tests.support.doubles import Clock
from tests.support.scenarios import in_loop

REFUSED = ErrorCode.ROBOTS_REFUSED
RULES = b"""\xef\xbb\xbf# rules of a site
User-agent: *
Disallow: /private/
Allow: /private/open/
Disallow: /*.gif$

User-agent: otherbot
Disallow: /
"""


class Web:
    """Sites by origin: a text, or a failure; counts what is asked for."""

    def __init__(self) -> None:
        self.sites: dict[str, bytes | ItemFailure] = {}
        self.asked: list[str] = []
        self.clock = Clock()
        self.robots = RobotsTxt(monotonic=self.clock)

    async def get(self, url: str) -> bytes:
        self.asked.append(url)
        await asyncio.sleep(0)
        found = self.sites.get(url.removesuffix("/robots.txt"), ItemFailure(ErrorCode.NOT_FOUND, "404"))
        if isinstance(found, ItemFailure):
            raise found
        return found

    async def verdict(self, url: str) -> ItemFailure | None:
        try:
            await self.robots.require_allowed(target_of(url), self.get)
        except ItemFailure as failure:
            return failure
        return None

    def failure(self, url: str) -> ItemFailure:
        failure = asyncio.run(self.verdict(url))
        assert failure is not None
        return failure

    def codes(self, *urls: str) -> list[ErrorCode | None]:
        async def run() -> list[ItemFailure | None]:
            return await asyncio.gather(*map(self.verdict, urls))

        return [verdict and verdict.error.code for verdict in asyncio.run(run())]


@pytest.fixture
def web() -> Web:
    web = Web()
    web.sites["http://h"] = RULES
    return web


@pytest.mark.parametrize(
    ("path", "is_allowed"),
    {
        "/": True,
        "/a.jpg": True,
        "/private/a.jpg": False,
        "/private/open/a.jpg": True,  # the longest rule counts
        "/b.gif": False,
        "/b.gif?x=1": True,  # $ is the end of path and query
        "/Private/a.jpg": True,
        "/%70rivate/a.jpg": False,
        "/private": True,
    }.items(),
)
def test_rules(web: Web, path: str, is_allowed: bool) -> None:
    assert web.codes(f"http://h{path}") == [None if is_allowed else REFUSED]


def test_a_group_of_our_own_counts_instead_of_everybody_s(web: Web) -> None:
    web.sites["http://h"] = b"User-agent: ClipFleet\nDisallow: /only-us/\n\n" + RULES
    assert web.codes("http://h/only-us/a", "http://h/private/a") == [REFUSED, None]


def test_the_detail_names_the_host_and_hides_the_rest(web: Web) -> None:
    assert web.failure("http://h/private/a?token=secret").error.detail == "h: robots.txt disallows it"


@pytest.mark.parametrize(
    "text", [b"", b"\0\xff\xfe<html>", b"Disallow: /", b"User-agent\n:::\nDisallow", b"\n" * 9]
)
def test_texts_without_rules_allow_everything(web: Web, text: bytes) -> None:
    web.sites["http://h"] = text
    assert web.codes("http://h/private/a") == [None]


class TestHowOften:
    def test_once_for_many_who_ask_together_and_after_one_another(self, web: Web) -> None:
        assert set(web.codes(*(f"http://h/{number}" for number in range(50)))) == {None}
        assert web.codes("http://h/again") == [None]
        assert web.asked == ["http://h/robots.txt"]

    def test_each_scheme_host_and_port_is_a_site(self, web: Web) -> None:
        web.codes("http://h/a", "https://h/a", "http://h:8080/a", "http://H:80/a", "http://i/a")
        sites = {url.removesuffix("/robots.txt") for url in web.asked}
        assert sites == {"http://h", "http://h:8080", "http://i", "https://h"}

    def test_it_is_read_again_after_an_hour(self, web: Web) -> None:
        web.codes("http://h/private/a")
        web.sites["http://h"] = b""
        web.clock.now += 3599
        assert web.codes("http://h/private/a") == [REFUSED]
        web.clock.now += 2
        assert web.codes("http://h/private/a") == [None]

    @in_loop
    async def test_one_who_is_cancelled_leaves_the_answer_to_the_others(self, web: Web) -> None:
        first = asyncio.create_task(web.verdict("http://h/private/a"))
        second = asyncio.create_task(web.verdict("http://h/private/b"))
        await asyncio.sleep(0)
        first.cancel()

        assert await second is not None
        assert len(web.asked) == 1

    def test_what_is_kept_is_bounded(self, web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(robots_module, "_KEPT_SITES", 10)
        web.codes(*(f"http://host{number}/a" for number in range(30)))
        assert len(web.robots._sites) == 10
        monkeypatch.setattr(robots_module, "_KEPT_BYTES", 1000)
        for number in range(30):
            web.sites[f"http://large{number}"] = b"#" * 300
        web.codes(*(f"http://large{number}/a" for number in range(30)))
        assert len(web.robots._sites) == 3
        assert web.robots._bytes == 900


class TestWhereItCannotBeHad:
    @pytest.mark.parametrize("code", ["not_found", "access_denied", "http_error", "too_many_redirects"])
    def test_a_site_without_rules_allows_everything(self, web: Web, code: str) -> None:
        web.sites["http://h"] = ItemFailure(ErrorCode(code), "h: HTTP status 4xx")
        assert web.codes("http://h/private/a", "http://h/b") == [None, None]
        assert len(web.asked) == 1

    @pytest.mark.parametrize(
        "code", ["server_error", "rate_limited", "timeout", "connect_failed", "dns_failed", "incomplete_body"]
    )
    def test_one_that_cannot_answer_allows_nothing_now(self, web: Web, code: str) -> None:
        web.sites["http://h"] = TransientFailure(ErrorCode(code), "h: trouble", retry_after_seconds=7)
        failure = web.failure("http://h/a")
        assert isinstance(failure, TransientFailure)
        assert str(failure) == f"{code}: robots.txt: h: trouble"
        assert failure.retry_after_seconds == 7

    @pytest.mark.parametrize("code", ["address_refused", "tls_failed", "bad_uri"])
    def test_what_waiting_will_not_mend_is_final(self, web: Web, code: str) -> None:
        web.sites["http://h"] = ItemFailure(ErrorCode(code), "h: no")
        failure = web.failure("http://h/a")
        assert not isinstance(failure, TransientFailure)
        assert failure.error.code == code

    def test_a_host_that_is_left_alone_is_waited_for_as_its_items_are(self, web: Web) -> None:
        refusal = HostLeftAlone(ErrorCode.TIMEOUT, "h: not asked", wait_seconds=3.0, is_old=True)
        web.sites["http://h"] = refusal
        for _ in range(5):
            failure = web.failure("http://h/a")
            assert isinstance(failure, HostLeftAlone)
            assert (failure.wait_seconds, failure.is_old) == (3.0, True)
        assert len(web.asked) == 5

    def test_it_is_asked_again_after_a_pause_that_grows_and_nobody_waits_for_ever(self, web: Web) -> None:
        web.sites["http://h"] = TransientFailure(ErrorCode.SERVER_ERROR, "h: HTTP status 503")
        kinds, pauses, last = [], [], web.clock.now
        for _ in range(2000):
            before = len(web.asked)
            failure = web.failure("http://h/a")
            if len(web.asked) > before:
                pauses.append(web.clock.now - last)
                last = web.clock.now
                kinds.append(isinstance(failure, TransientFailure))
            web.clock.now += 1
        assert pauses[:8] == [0, 5, 10, 20, 40, 80, 160, 300]
        assert kinds[:4] == [True, True, False, False]

    def test_once_it_answers_its_rules_hold(self, web: Web) -> None:
        web.sites["http://h"] = ItemFailure(ErrorCode.SERVER_ERROR, "h: HTTP status 503")
        web.codes("http://h/b")
        web.sites["http://h"] = RULES
        web.clock.now += 5
        assert web.codes("http://h/b", "http://h/private/a") == [None, REFUSED]
        assert web.codes("http://h/b") == [None]


def test_endless_rules_do_not_hold_up_the_loop(web: Web, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor are they read to the end."""
    threads: list[str] = []

    class Watched(robots_module.Protego):
        def can_fetch(self, url: str, user_agent: str) -> bool:
            threads.append(threading.current_thread().name)
            return bool(super().can_fetch(url, user_agent))

    monkeypatch.setattr(robots_module, "Protego", Watched)
    rules = b"".join(b"Disallow: /*a*b%d\n" % number for number in range(40_000))
    web.sites["http://h"] = b"User-agent: *\nDisallow: /private/\n" + rules + b"Disallow: /last\n"
    codes = web.codes("http://h/last", "http://h/private/" + "a" * 2000)
    assert codes == [None, REFUSED]
    assert threads and threading.main_thread().name not in threads


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([""], None),
        (["all"], None),
        (["nofollow"], None),
        (["noarchive, nosnippet, notranslate"], None),
        (["noai"], "noai"),
        (["noimageai"], "noimageai"),
        (["noindex"], "noindex"),
        (["noimageindex"], "noimageindex"),
        (["none"], "none"),
        (["NoAI"], "noai"),
        (["nofollow,  noimageai ,noarchive"], "noimageai"),
        (["nofollow", "noai"], "noai"),
        (["noai-training"], None),
        # For one program: for us, for somebody else, for everybody.
        (["clipfleet: noai"], "noai"),
        (["ClipFleet:noai"], "noai"),
        (["clipfleet: nofollow, noindex"], "noindex"),
        (["googlebot: noindex"], None),
        (["googlebot: nofollow, noindex"], None),
        (["googlebot: noindex", "clipfleet: noai"], "noai"),
        (["googlebot: noindex, clipfleet: noai"], "noai"),
        (["*: noai"], "noai"),
        (["not-clipfleet: noai"], None),
        # Directives that have a value are no names of programs.
        (["max-snippet: 20, noai"], "noai"),
        (["max-image-preview: large"], None),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], None),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"], "noindex"),
        (["googlebot: max-snippet: 20, noindex"], None),
        ([":", "::", ",:,", ": noai"], None),
    ],
)
def test_which_robots_tags_refuse_this_program(values: list[str], expected: str | None) -> None:
    assert refusal_of(values) == expected
