"""The HTTP fetcher against real servers: what comes back, how failures are called, where it never goes."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import socket
import ssl
import threading
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
from aiohttp.abc import AbstractResolver, ResolveResult
from hypothesis import given, settings
from hypothesis import strategies as st

from clipfleet import __version__
from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.http.address_guard import AddressGuard, AddressRefusedError
from clipfleet_worker.fetch.http.fetcher import HttpFetcher
from tests.support.fetching import LIMITS, LOOPBACK, codes, ends, opened
from tests.support.http_site import CERTIFICATE, HttpSite
from tests.support.raw_server import NeverConnected, RawServer
from tests.support.scenarios import in_loop
from tests.support.waiting import wait_until

SHORT = 0.2
# 127.0.0.1 plays the public internet, the other loopback addresses the internal network.
GUARD = AddressGuard((ipaddress.ip_network("127.0.0.1/32"),))
PUBLIC, INTERNAL = "127.0.0.1", "127.0.0.2"
TIMEOUT, REFUSED = ErrorCode.TIMEOUT, ErrorCode.ADDRESS_REFUSED
DECODED = ("gzip", "zlib", "raw-deflate", "utf-8", "aws-chunked", "base64", "identity")
USUAL_HEADERS = {"Host", "User-Agent", "Accept-Encoding", "Accept"}


class FakeResolver(AbstractResolver):
    """Answers by a table; a list of answers is gone through, one for each question."""

    def __init__(self, answers: dict[str, list[list[str]]]) -> None:
        self._answers = {name: iter(answer) for name, answer in answers.items()}
        self.questions: list[str] = []

    async def resolve(
        self, host: str, port: int = 0, family: socket.AddressFamily = socket.AF_INET
    ) -> list[ResolveResult]:
        self.questions.append(host)
        if host not in self._answers:
            raise socket.gaierror(socket.EAI_NONAME, "no such name")
        families = {True: socket.AF_INET6, False: socket.AF_INET}
        return [
            ResolveResult(hostname=host, host=one, port=port, family=families[":" in one], proto=0, flags=0)
            for one in next(self._answers[host])
        ]

    async def close(self) -> None: ...


def always(**names: Sequence[str]) -> FakeResolver:
    """A resolver that knows `<name>.test` for each keyword."""
    answers = {f"{name}.test": itertools.repeat(list(addresses)) for name, addresses in names.items()}
    return FakeResolver(answers)  # type: ignore[arg-type]


def public(*names: str) -> FakeResolver:
    return always(**{name: [PUBLIC] for name in names})


def fetcher_of(
    *, guard: AddressGuard = GUARD, resolver: AbstractResolver | None = None, tls: Any = None, **limits: Any
) -> HttpFetcher:
    contact = "ops@example.org"
    return HttpFetcher(replace(LIMITS, **limits), guard, contact=contact, resolver=resolver, tls=tls)


def together(uris: Sequence[str], **options: Any) -> list[bytes | ErrorCode]:
    async def run() -> list[bytes | ErrorCode]:
        async with opened(fetcher_of(**options)) as fetcher:
            return codes(await ends(fetcher.fetch, uris))

    return asyncio.run(run())


def fetch(uri: str, **options: Any) -> bytes:
    async def run() -> bytes:
        async with opened(fetcher_of(**options)) as fetcher:
            return await fetcher.fetch(uri)

    return asyncio.run(run())


def echo(uri: str) -> Any:
    return json.loads(fetch(uri))


def failure(uri: str, **options: Any) -> ItemFailure:
    with pytest.raises(ItemFailure) as raised:
        fetch(uri, **options)
    return raised.value


def code(uri: str, **options: Any) -> ErrorCode:
    return failure(uri, **options).error.code


def redirect(site: HttpSite, to: str) -> str:
    return site.url(f"/redirect?to={quote(to, safe='')}")


@pytest.fixture
def site(tmp_path: Path) -> Iterator[HttpSite]:
    (tmp_path / "a b.jpg").write_bytes(b"file")
    with HttpSite(tmp_path) as site:
        yield site


@pytest.fixture
def internal() -> Iterator[NeverConnected]:
    port = NeverConnected(INTERNAL)
    yield port
    port.check()


class TestAnswers:
    @pytest.mark.parametrize(
        ("path", "body"),
        {
            "/bytes/0": b"",
            "/bytes/70000": bytes(70_000),
            "/chunked/70000": bytes(70_000),
            "/empty": b"",
            "/html": b"<html>no image</html>",
            "/files/a%20b.jpg": b"file",
            "/files/a b.jpg": b"file",
            "/files/a%20b.jpg#fragment": b"file",
            "/encoded/empty": b"",
            **dict.fromkeys((f"/encoded/{how}" for how in DECODED), b"picture"),
        }.items(),
    )
    def test_body(self, site: HttpSite, path: str, body: bytes) -> None:
        assert fetch(site.url(path)) == body

    def test_body_that_ends_with_the_connection(self) -> None:
        with RawServer([b"HTTP/1.0 200 OK\r\n\r\nabc", b"def"]) as server:
            assert fetch(server.url("/")) == b"abcdef"

    def test_default_resolver_and_a_name(self, site: HttpSite) -> None:
        assert fetch(f"http://localhost:{site.port}/empty") == b""

    @pytest.mark.parametrize(
        ("written", "sent"),
        [
            # Signed URLs: bytes count, nothing may be re-quoted.
            ("/echo/a%2Fb%3a?x=d%2Fe%3A%7E+f&y=%20", "/echo/a%2Fb%3a?x=d%2Fe%3A%7E+f&y=%20"),
            ("/echo/~x,(y)*'!;=:@$&", "/echo/~x,(y)*'!;=:@$&"),
            ("/echo//double//", "/echo//double//"),
            ("/echo?a=1?b=/c", "/echo?a=1?b=/c"),
            ("/echo/x#y?z", "/echo/x"),
            # What cannot stand on the wire is quoted.
            ("/echo/a b", "/echo/a%20b"),
            ("/echo/ä", "/echo/%C3%A4"),
            ("/echo/100%", "/echo/100%25"),
            ("/echo/a|b", "/echo/a%7Cb"),
            ('/echo/"<>', "/echo/%22%3C%3E"),
            # Dot segments are the client's business.
            ("/x/../echo/./y", "/echo/y"),
        ],
    )
    def test_path_and_query_on_the_wire(self, site: HttpSite, written: str, sent: str) -> None:
        assert echo(site.url(written))["path"] == sent

    def test_request_headers(self, site: HttpSite) -> None:
        headers = echo(site.url("/echo"))["headers"]
        assert headers["User-Agent"] == f"clipfleet/{__version__} (+ops@example.org)"
        assert headers["Accept-Encoding"] == "identity"
        assert headers.keys() == USUAL_HEADERS

    @in_loop
    async def test_nothing_is_remembered_and_nothing_passed_on(self, site: HttpSite) -> None:
        async with opened(fetcher_of()) as fetcher:
            await fetcher.fetch(site.url("/cookie"))
            headers = json.loads(await fetcher.fetch(site.url("/redirect?to=/echo")))["headers"]
        assert headers.keys() == USUAL_HEADERS

    def test_proxies_of_the_environment_are_ignored(
        self, site: HttpSite, internal: NeverConnected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{INTERNAL}:{internal.port}")
        assert fetch(site.url("/empty")) == b""

    @in_loop
    async def test_use_before_start_is_our_bug_and_closing_twice_is_none(self, site: HttpSite) -> None:
        fetcher = fetcher_of()
        with pytest.raises(RuntimeError, match="start"):
            await fetcher.fetch(site.url("/empty"))
        async with opened(fetcher):
            await fetcher.close()


BAD_URIS = (
    "http: http:// http:///path http:/path http:path http://[::1 http://[::1]x/ http://host:port/ "
    "http://host:99999/ http://host:-1/ http://host:+80/ http://host:8_0/ http://host:٨٠/ http://[::1]:+80/ "
    "http:////host/ http://host%40@other/ http://ho\u00adst/ http://host\ufeff/ http://a%20b/ http://a..b/ "
    "http://./ http://*/ http://\u202e/ http://host/\x00 http://host/\x7f http://host/\ud800 "
    "http://user@host/ http://user:secret@host/ http://:secret@host/ http://@host/ http://host\\@other/ "
    "http://user:secret@host:80/x?y#z"
)
WITH_SPACES = ("http://host: 80/", "http://a b/", "http://host/\n", "http://ho\tst/")
TOO_LONG = ("http://" + "a" * 64 + ".test/", "http://" + "a." * 127 + "test/")


class TestCodes:
    """More kinds are in test_hostile_servers.py."""

    @pytest.mark.parametrize(
        ("expected", "paths"),
        {
            "not_found": "/status/404 /status/410 /no-such-path",
            "access_denied": "/status/401 /status/403",
            "rate_limited": "/status/429",
            "server_error": "/status/500 /status/503 /status/599",
            "http_error": "/status/400 /status/451 /status/201 /status/204 /status/206 /status/304 "
            "/status/302 /nonsense /big-header /encoded/broken /encoded/br /encoded/zstd",
            "incomplete_body": "/truncated /reset /bad-chunk /encoded/cut",
            "connect_failed": "/reset-early",
            "too_many_redirects": "/loop",
            "too_many_bytes": "/bytes/100001 /chunked/100001 /endless /bomb",
        }.items(),
    )
    def test_what_a_server_can_do(self, site: HttpSite, paths: str, expected: str) -> None:
        for path in paths.split():
            found = failure(site.url(f"{path}?token=secret"), max_image_bytes=100_000).error
            assert found.code == expected, path
            assert "secret" not in found.detail and "token" not in found.detail

    def test_bomb_whose_compressed_form_fits(self, site: HttpSite) -> None:
        assert code(site.url("/bomb"), max_image_bytes=1 << 20) is ErrorCode.TOO_MANY_BYTES

    @pytest.mark.parametrize("path", ["/bytes/5000", "/chunked/5000"])
    def test_exactly_the_limit(self, site: HttpSite, path: str) -> None:
        assert len(fetch(site.url(path), max_image_bytes=5000)) == 5000
        assert code(site.url(path), max_image_bytes=4999) is ErrorCode.TOO_MANY_BYTES

    def test_announced_size_is_refused_without_reading(self) -> None:
        with RawServer([b"HTTP/1.1 200 OK\r\nContent-Length: 99999999\r\n\r\n"]) as server:
            assert code(server.url("/")) is ErrorCode.TOO_MANY_BYTES

    @pytest.mark.parametrize(
        "first", [b"", b"3\r\nabc\r\n", b"100000\r\n" + bytes(1 << 20) + b"\r\n"], ids=len
    )
    def test_broken_chunks_after_the_head(self, first: bytes) -> None:
        """aiohttp's C parser may leave the reader waiting then, until the time limit."""
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        with RawServer([head + first, b"zz\r\n"]) as server:
            answer = code(server.url("/"), max_image_bytes=2 << 20, fetch_timeout_seconds=SHORT)
        assert answer in (ErrorCode.INCOMPLETE_BODY, TIMEOUT)

    @pytest.mark.parametrize("reply", [b"HTTP/1.1 abc OK\r\n\r\n", b"HTTP/1.1 200 OK\r\nno colon\r\n\r\nabc"])
    def test_answers_that_are_no_http(self, reply: bytes) -> None:
        with RawServer([reply]) as server:
            assert code(server.url("/")) is ErrorCode.HTTP_ERROR

    def test_connection_refused(self) -> None:
        with socket.create_server((PUBLIC, 0)) as taken:
            port = taken.getsockname()[1]
        assert str(failure(f"http://{PUBLIC}:{port}/")) == f"connect_failed: {PUBLIC}: Connection refused"

    def test_no_such_name(self) -> None:
        assert code("http://none.test/", resolver=always()) is ErrorCode.DNS_FAILED
        assert code("http://empty.test/", resolver=always(empty=[])) is ErrorCode.DNS_FAILED

    @pytest.mark.parametrize("uri", [*BAD_URIS.split(" "), *WITH_SPACES, *TOO_LONG])
    def test_bad_uri(self, uri: str) -> None:
        error = failure(uri, resolver=always()).error
        assert error.code is ErrorCode.BAD_URI
        assert "secret" not in error.detail

    @pytest.mark.parametrize("uri", ["", "file:///etc/passwd", "ftp://h/x", "/etc/x", "x.jpg", "data:,x"])
    def test_other_schemes(self, uri: str) -> None:
        assert code(uri) is ErrorCode.SCHEME_REFUSED

    @settings(deadline=None, max_examples=200)
    @given(st.text(alphabet=st.sampled_from(list("/?#@[]%.:\\ a0x1é①\ud800")), max_size=30))
    def test_no_url_raises_anything_else(self, rest: str) -> None:
        class Closed(AddressGuard):
            def check(self, host: str, port: int) -> None:
                raise AddressRefusedError("nowhere")

        found = code(f"http://{rest}", guard=Closed(), resolver=always())
        assert found in (ErrorCode.BAD_URI, ErrorCode.DNS_FAILED, REFUSED)


class TestTimeouts:
    @pytest.mark.parametrize(
        ("path", "limit"),
        [
            ("/stall", "fetch"),
            ("/stall", "idle_read"),
            ("/drip", "fetch"),  # never silent long enough for the other one
            ("/redirect?to=/stall", "fetch"),  # a redirect does not start the clock again
        ],
    )
    def test_slow_server(self, site: HttpSite, path: str, limit: str) -> None:
        assert code(site.url(path), **{f"{limit}_timeout_seconds": SHORT}) is TIMEOUT

    def test_body_that_falls_silent(self) -> None:
        seen = threading.Event()

        def parts() -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
            seen.wait()

        with RawServer(parts()) as server:
            answer = code(server.url("/"), idle_read_timeout_seconds=SHORT)
            seen.set()
        assert answer is TIMEOUT

    def test_connection_that_is_never_accepted(self) -> None:
        with socket.socket() as listener, ExitStack() as waiting:
            listener.bind((PUBLIC, 0))
            listener.listen(0)
            port = listener.getsockname()[1]
            for _ in range(4):  # the queue of the listener is full after one or two
                client = waiting.enter_context(socket.socket())
                client.setblocking(False)
                client.connect_ex((PUBLIC, port))
            for limit in ("connect", "fetch"):
                found = code(f"http://{PUBLIC}:{port}/", **{f"{limit}_timeout_seconds": SHORT})
                assert found is TIMEOUT

    def test_name_server_that_never_answers(self) -> None:
        class Silent(FakeResolver):
            async def resolve(self, *arguments: Any, **options: Any) -> list[ResolveResult]:
                await asyncio.Event().wait()
                return []

        assert code("http://silent.test/", resolver=Silent({}), fetch_timeout_seconds=SHORT) is TIMEOUT


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_followed(self, site: HttpSite, status: int) -> None:
        assert fetch(site.url(f"/redirect?status={status}&to=/bytes/3")) == bytes(3)

    @pytest.mark.parametrize("status", [300, 304, 305, 306])
    def test_not_followed(self, site: HttpSite, status: int) -> None:
        assert code(site.url(f"/redirect?status={status}&to=/bytes/3")) is ErrorCode.HTTP_ERROR

    def test_how_many(self, site: HttpSite) -> None:
        assert fetch(site.url("/redirects/5")) == b"<html>no image</html>"
        assert code(site.url("/redirects/6")) is ErrorCode.TOO_MANY_REDIRECTS
        assert code(site.url("/redirects/1"), max_redirects=0) is ErrorCode.TOO_MANY_REDIRECTS
        assert fetch(site.url("/html"), max_redirects=0) == b"<html>no image</html>"

    @pytest.mark.parametrize(
        ("location", "sent"),
        {
            "echo/relative": "/echo/relative",
            "./echo/x/../y": "/echo/y",
            "/echo/a%2Fb?c=%2F#d": "/echo/a%2Fb?c=%2F",
            "/echo/a b": "/echo/a%20b",
            "/echo/ä": "/echo/%C3%A4",
            " /echo/x ": "/echo/x",
            "//{netloc}/echo/x": "/echo/x",
            "http://{netloc}/echo/x": "/echo/x",
            "HTTP://{netloc}/echo/x": "/echo/x",
        }.items(),
    )
    def test_forms_of_a_location(self, site: HttpSite, location: str, sent: str) -> None:
        assert echo(redirect(site, location.format(netloc=f"{PUBLIC}:{site.port}")))["path"] == sent

    def test_location_in_latin_1(self, site: HttpSite) -> None:
        head = f"HTTP/1.1 302 Found\r\nLocation: {site.url('/echo/')}".encode()
        with RawServer([head + b"\xe4\r\nContent-Length: 0\r\n\r\n"]) as server:
            assert echo(server.url("/"))["path"] == "/echo/%E4"

    @pytest.mark.parametrize(
        ("location", "expected"),
        {
            "file:///etc/passwd": "scheme_refused",
            "data:image/png;base64,AAAA": "scheme_refused",
            "javascript:alert(1)": "scheme_refused",
            "ftp://127.0.0.1/": "scheme_refused",
            "http://user:secret@127.0.0.1/": "bad_uri",
            "//user@127.0.0.1/": "bad_uri",
            "http://[::1": "bad_uri",
            "http://host:port/": "bad_uri",
            "http://none.test/": "dns_failed",
            "/status/404": "not_found",
            "/truncated": "incomplete_body",
            "http://8.8.8.8:22/": "address_refused",
        }.items(),
    )
    def test_every_hop_is_checked(self, site: HttpSite, location: str, expected: str) -> None:
        error = failure(redirect(site, location), resolver=always()).error
        assert error.code == expected
        assert "secret" not in error.detail


class TestTls:
    @pytest.fixture
    def secure(self) -> Iterator[HttpSite]:
        with HttpSite(tls=True) as site:
            yield site

    @pytest.fixture
    def trusting(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(CERTIFICATE))

    def test_not_trusted(self, secure: HttpSite) -> None:
        error = failure(secure.url("/bytes/3")).error
        assert error.code is ErrorCode.TLS_FAILED
        assert "self-signed" in error.detail.replace("self signed", "self-signed")
        assert not secure.requests

    def test_other_name(self, secure: HttpSite, trusting: ssl.SSLContext) -> None:
        resolver = public("site", "other")
        uris = [f"https://{name}.test:{secure.port}/empty" for name in ("site", "other")]
        assert together(uris, tls=trusting, resolver=resolver) == [b"", ErrorCode.TLS_FAILED]

    def test_server_without_tls_and_plain_http_to_one_with_it(self, site: HttpSite, secure: HttpSite) -> None:
        assert code(site.url("/empty").replace("http:", "https:")) is ErrorCode.TLS_FAILED
        assert code(secure.url("/empty").replace("https:", "http:")) is ErrorCode.CONNECT_FAILED

    def test_redirects_go_up_and_not_down(self, site: HttpSite, secure: HttpSite, trusting: Any) -> None:
        assert fetch(redirect(site, secure.url("/bytes/3")), tls=trusting) == bytes(3)
        refusal = failure(redirect(secure, site.url("/bytes/3")), tls=trusting)
        assert str(refusal) == "scheme_refused: redirected from https to http"
        assert site.requests["/bytes/3"] == 0


INTERNAL_NOTATIONS = (
    "127.0.0.2 127.0.0.2. 127.2 127.0.2 2130706434 017700000002 0177.0.0.2 0x7f000002 0x7f.0.0.2 "
    "0x7F.0X0.0.0x2 ①②⑦.⓪.⓪.② 127。0。0。2 \uff11\uff12\uff17.0.0.2 127.0.0.2\u2024 [::ffff:127.0.0.2] "
    "[::ffff:7f00:2] [0:0:0:0:0:FFFF:7F00:0002] [::127.0.0.2] [64:ff9b::7f00:2] [2002:7f00:2::] [::1] [::] "
    "[fe80::1%25lo] [fe80::1%lo] 0.0.0.0 0 localhost.test"
)


class TestAddresses:
    @pytest.mark.parametrize("host", INTERNAL_NOTATIONS.split())
    @pytest.mark.parametrize("redirected", [False, True], ids=["direct", "redirected"])
    def test_no_notation_reaches_an_internal_address(
        self, site: HttpSite, internal: NeverConnected, host: str, redirected: bool
    ) -> None:
        uri = f"http://{host}:{internal.port}/"
        resolver = None if host.startswith("0x") else always(localhost=[INTERNAL])
        assert code(redirect(site, uri) if redirected else uri, resolver=resolver) is REFUSED

    def test_details_hide_the_address_behind_a_name(self) -> None:
        detail = failure("http://intranet.test/", resolver=always(intranet=["10.20.30.40"])).error.detail
        assert detail.startswith("intranet.test: not a public address (private)")
        assert "10.20" not in detail

    @pytest.mark.parametrize("answers", [[INTERNAL, PUBLIC], [PUBLIC, INTERNAL], ["::1", INTERNAL, PUBLIC]])
    def test_name_with_an_internal_and_a_public_address(self, site: HttpSite, answers: list[str]) -> None:
        forbidden = socket.create_server((INTERNAL, site.port))
        forbidden.setblocking(False)
        with forbidden:
            assert fetch(f"http://mixed.test:{site.port}/empty", resolver=always(mixed=answers)) == b""
            with pytest.raises(BlockingIOError):
                forbidden.accept()

    def test_mixed_name_whose_public_address_is_dead(self, internal: NeverConnected) -> None:
        """No fallback to the internal one."""
        resolver = always(mixed=[PUBLIC, INTERNAL])
        assert code(f"http://mixed.test:{internal.port}/", resolver=resolver) is ErrorCode.CONNECT_FAILED

    def test_several_public_addresses_of_which_one_is_dead(self, site: HttpSite) -> None:
        resolver = always(two=["127.0.0.9", PUBLIC])
        assert fetch(f"http://two.test:{site.port}/empty", guard=LOOPBACK, resolver=resolver) == b""

    @in_loop
    async def test_name_that_changes_its_address(self, site: HttpSite, internal: NeverConnected) -> None:
        """DNS rebinding: harmless when asked first, internal when asked again."""
        resolver = FakeResolver({"rebind.test": [[PUBLIC], [INTERNAL], [INTERNAL]]})
        async with opened(fetcher_of(resolver=resolver)) as fetcher:
            assert await fetcher.fetch(f"http://rebind.test:{site.port}/empty") == b""
            again = await ends(fetcher.fetch, [f"http://rebind.test:{internal.port}/empty"])
        assert codes(again) == [REFUSED]
        assert resolver.questions == ["rebind.test", "rebind.test"]

    def test_name_that_changes_it_between_redirects(self, site: HttpSite, internal: NeverConnected) -> None:
        resolver = FakeResolver({"rebind.test": [[PUBLIC], [INTERNAL]]})
        uri = redirect(site, f"http://rebind.test:{internal.port}/").replace(PUBLIC, "rebind.test", 1)
        assert code(uri, resolver=resolver) is REFUSED

    def test_guard_alone_holds_where_a_resolver_lies(self, internal: NeverConnected) -> None:
        """A name server's answer that the resolver's filter lets through is still seen at the socket."""

        class Blind(AddressGuard):
            calls = 0

            def check(self, host: str, port: int) -> None:
                self.calls += 1
                if self.calls > 1:
                    super().check(host, port)

        guard, resolver = Blind(), always(lie=[INTERNAL])
        assert code(f"http://lie.test:{internal.port}/", guard=guard, resolver=resolver) is REFUSED
        assert guard.calls == 2

    @pytest.mark.parametrize(("name", "expected"), [("none", ErrorCode.DNS_FAILED), ("inside", REFUSED)])
    def test_a_bad_name_is_not_asked_for_with_each_image(self, name: str, expected: ErrorCode) -> None:
        resolver = always(inside=[INTERNAL])
        uris = [f"http://{name}.test/{number}" for number in range(50)]
        assert together(uris, resolver=resolver) == [expected] * 50
        assert resolver.questions == [f"{name}.test"]


class TestConnections:
    @in_loop
    async def test_connections_are_kept(self, site: HttpSite) -> None:
        async with opened(fetcher_of()) as fetcher:
            for path in ["/bytes/50000"] * 5 + ["/status/404", "/empty", "/redirect?to=/empty", "/empty"]:
                with suppress(ItemFailure):
                    await fetcher.fetch(site.url(path))
        assert site.requests["/empty"] == 3
        assert len(site.connections) == 1

    @in_loop
    async def test_kept_connection_that_the_server_has_closed(self) -> None:
        """Closed by the server without a word after the first answer: asked again on a new one."""
        with RawServer([b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"]) as server:
            async with opened(fetcher_of()) as fetcher:
                assert [await fetcher.fetch(server.url("/")) for _ in range(4)] == [b"x"] * 4

    def test_turns_per_host(self, site: HttpSite) -> None:
        """`/meet/4` answers when four are there: fewer than the cap would hang, more be counted."""
        together([site.url("/meet/4")] * 24, host_connections=4)
        assert site.most_active == len(site.connections) == 4

    def test_turns_in_all(self, site: HttpSite) -> None:
        uris = [f"http://{name}.test:{site.port}/meet/3" for name in "abcd"] * 6
        together(uris, resolver=public(*"abcd"), host_connections=2, total_connections=3)
        assert site.most_active == 3

    def test_waiting_for_a_turn_is_not_the_url_s_time(self, site: HttpSite) -> None:
        uris = [site.url("/stall")] * 2 + [site.url("/empty")]
        answers = together(uris, host_connections=1, fetch_timeout_seconds=0.5)
        assert answers == [TIMEOUT] * 2 + [b""]

    def test_redirects_between_two_busy_hosts_do_not_lock_each_other_out(self, site: HttpSite) -> None:
        def uri(here: str, there: str) -> str:
            to = redirect(site, f"http://{there}.test:{site.port}/bytes/1")
            return to.replace(PUBLIC, f"{here}.test", 1)

        uris = [uri("a", "b"), uri("b", "a")] * 20
        answers = together(uris, resolver=public("a", "b"), host_connections=1, total_connections=2)
        assert answers == [b"\0"] * 40

    @pytest.mark.parametrize(("turns", "fewest", "most"), [(3, 0, 6), (40, 30, 30)])
    @in_loop
    async def test_idle_ones_are_bounded(self, site: HttpSite, turns: int, fewest: int, most: int) -> None:
        names = [f"host{number}" for number in range(30)]
        resolver = public(*names)
        async with opened(fetcher_of(resolver=resolver, total_connections=turns)) as fetcher:
            for name in names:
                await fetcher.fetch(f"http://{name}.test:{site.port}/empty")
            wait_until(lambda: site.open_connections <= most, "few connections are open")
            assert site.open_connections >= fewest

    def test_nothing_stays_open_after_close(self, site: HttpSite) -> None:
        together([site.url("/bytes/9"), site.url("/truncated"), site.url("/endless")] * 4)
        wait_until(lambda: site.open_connections == 0, "all connections are closed")
