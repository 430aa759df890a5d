"""The HTTP fetcher against real servers: what comes back, how failures are called, where it never goes."""

from __future__ import annotations

import asyncio
import ipaddress
import itertools
import json
import socket
import ssl
import threading
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import asynccontextmanager, nullcontext
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
from clipfleet_worker.fetch.http.fetcher import HttpFetcher, HttpLimits
from tests.support.http_site import CERTIFICATE, HttpSite
from tests.support.raw_server import NeverConnected, RawServer
from tests.support.waiting import wait_until

LIMITS = HttpLimits(
    max_image_bytes=100_000,
    fetch_timeout_seconds=20,
    connect_timeout_seconds=20,
    idle_read_timeout_seconds=20,
    host_connections=8,
    total_connections=16,
)
SHORT = 0.2
# 127.0.0.1 plays the public internet, the other loopback addresses the internal network.
GUARD = AddressGuard((ipaddress.ip_network("127.0.0.1/32"),))
PUBLIC, INTERNAL = "127.0.0.1", "127.0.0.2"


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
        return [
            ResolveResult(
                hostname=host,
                host=address,
                port=port,
                family=socket.AF_INET6 if ":" in address else socket.AF_INET,
                proto=0,
                flags=socket.AI_NUMERICHOST,
            )
            for address in next(self._answers[host])
        ]

    async def close(self) -> None: ...


def always(**names: Sequence[str]) -> FakeResolver:
    """A resolver that knows `<name>.test` for each keyword."""
    return FakeResolver(
        {f"{name}.test": itertools.repeat(list(addresses)) for name, addresses in names.items()}  # type: ignore[misc]
    )


@asynccontextmanager
async def started(
    *, guard: AddressGuard = GUARD, resolver: AbstractResolver | None = None, tls: Any = None, **limits: float
) -> AsyncIterator[HttpFetcher]:
    fetcher = HttpFetcher(
        replace(LIMITS, **limits),  # type: ignore[arg-type]
        guard,
        contact="ops@example.org",
        resolver=resolver,
        tls=tls,
    )
    await fetcher.start()
    try:
        yield fetcher
    finally:
        await fetcher.close()


def fetch(uri: str, **options: Any) -> bytes:
    async def run() -> bytes:
        async with started(**options) as fetcher:
            return await fetcher.fetch(uri)

    return asyncio.run(run())


def failure(uri: str, **options: Any) -> ItemFailure:
    with pytest.raises(ItemFailure) as raised:
        fetch(uri, **options)
    return raised.value


def code(uri: str, **options: Any) -> ErrorCode:
    return failure(uri, **options).error.code


@pytest.fixture
def site(tmp_path: Path) -> Iterator[HttpSite]:
    (tmp_path / "a b.jpg").write_bytes(b"file")
    with HttpSite(tmp_path) as site:
        yield site


@pytest.fixture
def secure_site() -> Iterator[HttpSite]:
    with HttpSite(tls=True) as site:
        yield site


@pytest.fixture
def trusting() -> ssl.SSLContext:
    return ssl.create_default_context(cafile=str(CERTIFICATE))


@pytest.fixture
def internal() -> Iterator[NeverConnected]:
    port = NeverConnected(INTERNAL)
    yield port
    port.check()


class TestAnswers:
    @pytest.mark.parametrize(
        ("path", "body"),
        [
            ("/bytes/0", b""),
            ("/bytes/70000", bytes(70_000)),
            ("/chunked/70000", bytes(70_000)),
            ("/empty", b""),
            ("/html", b"<html>no image</html>"),
            ("/files/a%20b.jpg", b"file"),
            ("/files/a b.jpg", b"file"),
            ("/files/a%20b.jpg#fragment", b"file"),
        ],
    )
    def test_body(self, site: HttpSite, path: str, body: bytes) -> None:
        assert fetch(site.url(path)) == body

    def test_body_that_ends_with_the_connection(self) -> None:
        with RawServer([b"HTTP/1.0 200 OK\r\n\r\nabc", b"def"]) as server:
            assert fetch(server.url("/")) == b"abcdef"

    @pytest.mark.parametrize(
        "how", ["gzip", "zlib", "raw-deflate", "utf-8", "aws-chunked", "base64", "identity"]
    )
    def test_content_encoding(self, site: HttpSite, how: str) -> None:
        assert fetch(site.url(f"/encoded/{how}")) == b"picture"

    def test_nothing_declared_as_gzip(self, site: HttpSite) -> None:
        assert fetch(site.url("/encoded/empty")) == b""

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
        assert json.loads(fetch(site.url(written)))["path"] == sent

    def test_request_headers(self, site: HttpSite) -> None:
        headers = json.loads(fetch(site.url("/echo")))["headers"]
        assert headers["User-Agent"] == f"clipfleet/{__version__} (+ops@example.org)"
        assert headers["Accept-Encoding"] == "identity"
        assert headers.keys() == {"Host", "User-Agent", "Accept-Encoding", "Accept"}

    def test_nothing_is_remembered_and_nothing_passed_on(self, site: HttpSite) -> None:
        async def run() -> Any:
            async with started() as fetcher:
                await fetcher.fetch(site.url("/cookie"))
                return json.loads(await fetcher.fetch(site.url("/redirect?to=/echo")))["headers"]

        assert asyncio.run(run()).keys() == {"Host", "User-Agent", "Accept-Encoding", "Accept"}

    def test_proxies_of_the_environment_are_ignored(
        self, site: HttpSite, internal: NeverConnected, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://{INTERNAL}:{internal.port}")
        assert fetch(site.url("/empty")) == b""

    def test_use_before_start_is_our_bug(self, site: HttpSite) -> None:
        fetcher = HttpFetcher(LIMITS, GUARD)
        with pytest.raises(RuntimeError, match="start"):
            asyncio.run(fetcher.fetch(site.url("/empty")))

    def test_close_twice(self) -> None:
        async def run() -> None:
            async with started() as fetcher:
                await fetcher.close()

        asyncio.run(run())


class TestCodes:
    @pytest.mark.parametrize(
        ("expected", "paths"),
        [
            (ErrorCode.NOT_FOUND, "/status/404 /status/410 /no-such-path"),
            (ErrorCode.ACCESS_DENIED, "/status/401 /status/403"),
            (ErrorCode.RATE_LIMITED, "/status/429"),
            (ErrorCode.SERVER_ERROR, "/status/500 /status/503 /status/599"),
            (ErrorCode.HTTP_ERROR, "/status/400 /status/451 /status/201 /status/204 /status/206 /status/304"),
            (ErrorCode.HTTP_ERROR, "/status/302 /nonsense /big-header"),  # a redirect without a Location
            (ErrorCode.HTTP_ERROR, "/encoded/broken /encoded/br /encoded/zstd"),
            (ErrorCode.INCOMPLETE_BODY, "/truncated /reset /bad-chunk /encoded/cut"),
            (ErrorCode.CONNECT_FAILED, "/reset-early"),
            (ErrorCode.TOO_MANY_REDIRECTS, "/loop"),
            (ErrorCode.TOO_MANY_BYTES, "/bytes/100001 /chunked/100001 /endless /bomb"),
        ],
    )
    def test_what_a_server_can_do(self, site: HttpSite, paths: str, expected: ErrorCode) -> None:
        found = {path: code(site.url(path), max_image_bytes=100_000) for path in paths.split()}

        assert found == dict.fromkeys(paths.split(), expected)

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
        "reply",
        [
            b"",
            b"HTTP/1.1 200",
            b"HTTP/1.1 200 OK\r\nContent-Le",
        ],
    )
    def test_end_before_the_answer(self, reply: bytes) -> None:
        with RawServer([reply]) as server:
            assert code(server.url("/")) is ErrorCode.CONNECT_FAILED

    @pytest.mark.parametrize(
        "first", [b"", b"3\r\nabc\r\n", b"100000\r\n" + bytes(1 << 20) + b"\r\n"], ids=len
    )
    def test_broken_chunks_after_the_head(self, first: bytes) -> None:
        """aiohttp's C parser may leave the reader waiting then, until the time limit."""
        head = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
        with RawServer([head + first, b"zz\r\n"]) as server:
            answer = code(server.url("/"), max_image_bytes=2 << 20, fetch_timeout_seconds=SHORT)
        assert answer in (ErrorCode.INCOMPLETE_BODY, ErrorCode.TIMEOUT)

    @pytest.mark.parametrize(
        "reply",
        [
            b"HTTP/1.1 abc OK\r\n\r\n",
            b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 7\r\n\r\nabcdefg",
            b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\nabc",
            b"HTTP/1.1 200 OK\r\nno colon\r\n\r\nabc",
            b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03",
        ],
    )
    def test_answers_that_are_no_http(self, reply: bytes) -> None:
        with RawServer([reply]) as server:
            assert code(server.url("/")) is ErrorCode.HTTP_ERROR

    def test_header_without_end(self) -> None:
        head = itertools.chain([b"HTTP/1.1 200 OK\r\n"], (b"x-%d: y\r\n" % n for n in itertools.count()))
        with RawServer(head) as server:
            assert code(server.url("/")) is ErrorCode.HTTP_ERROR

    def test_answers_without_end_before_the_answer(self) -> None:
        with RawServer(itertools.repeat(b"HTTP/1.1 100 Continue\r\n\r\n")) as server:
            assert code(server.url("/"), fetch_timeout_seconds=SHORT) in (
                ErrorCode.TIMEOUT,
                ErrorCode.HTTP_ERROR,
            )

    def test_connection_refused(self) -> None:
        with socket.create_server((PUBLIC, 0)) as taken:
            port = taken.getsockname()[1]
        error = failure(f"http://{PUBLIC}:{port}/").error
        assert error.code is ErrorCode.CONNECT_FAILED
        assert error.detail == f"{PUBLIC}: Connection refused"

    def test_no_such_name(self) -> None:
        assert code("http://none.test/", resolver=always()) is ErrorCode.DNS_FAILED
        assert code("http://empty.test/", resolver=always(empty=[])) is ErrorCode.DNS_FAILED

    @pytest.mark.parametrize(
        "uri",
        [
            "",
            "http:",
            "http://",
            "http:///path",
            "http:/path",
            "http:path",
            "http://[::1",
            "http://[::1]x/",
            "http://host:port/",
            "http://host:99999/",
            "http://host:-1/",
            "http://host:+80/",
            "http://host:8_0/",
            "http://host:٨٠/",
            "http://host: 80/",
            "http://[::1]:+80/",
            "http:////host/",
            "http://host%40@other/",
            "http://ho\u00adst/",
            "http://host\ufeff/",
            "http://a b/",
            "http://a%20b/",
            "http://a..b/",
            "http://./",
            "http://*/",
            "http://" + "a" * 64 + ".test/",
            "http://" + "a." * 127 + "test/",
            "http://\u202e/",
            "http://host/\x00",
            "http://host/\n",
            "http://ho\tst/",
            "http://host/\x7f",
            "http://host/\ud800",
            "http://user@host/",
            "http://user:secret@host/",
            "http://:secret@host/",
            "http://@host/",
            "http://host\\@other/",
            "http://user:secret@host:80/x?y#z",
        ],
    )
    def test_bad_uri(self, uri: str) -> None:
        error = failure(uri, resolver=always()).error
        assert error.code is ErrorCode.BAD_URI if uri else ErrorCode.SCHEME_REFUSED
        assert "secret" not in error.detail

    @pytest.mark.parametrize("uri", ["file:///etc/passwd", "ftp://host/x", "/etc/passwd", "x.jpg", "data:,x"])
    def test_other_schemes(self, uri: str) -> None:
        assert code(uri) is ErrorCode.SCHEME_REFUSED

    @settings(deadline=None, max_examples=200)
    @given(st.text(alphabet=st.sampled_from(list("/?#@[]%.:\\ a0x1é①\ud800")), max_size=30))
    def test_no_url_raises_anything_else(self, rest: str) -> None:
        class Closed(AddressGuard):
            def check(self, host: str, port: int) -> None:
                raise AddressRefusedError("nowhere")

        resolver = FakeResolver({})
        assert code(f"http://{rest}", guard=Closed(), resolver=resolver) in (
            ErrorCode.BAD_URI,
            ErrorCode.DNS_FAILED,
            ErrorCode.ADDRESS_REFUSED,
        )

    def test_details_name_the_host_and_hide_the_rest(self, site: HttpSite) -> None:
        for path in ("/status/404", "/truncated", "/reset-early", "/nonsense", "/bytes/100001", "/loop"):
            detail = failure(site.url(f"{path}?token=secret")).error.detail
            assert "secret" not in detail
            assert "token" not in detail


class TestTimeouts:
    def test_server_that_never_answers(self, site: HttpSite) -> None:
        assert code(site.url("/stall"), fetch_timeout_seconds=SHORT) is ErrorCode.TIMEOUT
        assert code(site.url("/stall"), idle_read_timeout_seconds=SHORT) is ErrorCode.TIMEOUT

    def test_body_that_drips(self, site: HttpSite) -> None:
        """Never silent long enough for the idle limit: the total one ends it."""
        assert code(site.url("/drip"), fetch_timeout_seconds=SHORT) is ErrorCode.TIMEOUT

    def test_body_that_falls_silent(self) -> None:
        seen = threading.Event()

        def parts() -> Iterator[bytes]:
            yield b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc"
            seen.wait()

        with RawServer(parts()) as server:
            answer = code(server.url("/"), idle_read_timeout_seconds=SHORT)
            seen.set()
        assert answer is ErrorCode.TIMEOUT

    def test_connection_that_is_never_accepted(self) -> None:
        with socket.socket() as listener:
            listener.bind((PUBLIC, 0))
            listener.listen(0)
            port = listener.getsockname()[1]
            waiting = []
            try:
                for _ in range(4):  # the queue of the listener is full after one or two
                    waiting.append(socket.socket())
                    waiting[-1].setblocking(False)
                    waiting[-1].connect_ex((PUBLIC, port))
                uri = f"http://{PUBLIC}:{port}/"
                assert code(uri, connect_timeout_seconds=SHORT) is ErrorCode.TIMEOUT
                assert code(uri, fetch_timeout_seconds=SHORT) is ErrorCode.TIMEOUT
            finally:
                for opened in waiting:
                    opened.close()

    def test_name_server_that_never_answers(self) -> None:
        class Silent(FakeResolver):
            async def resolve(self, *arguments: Any, **options: Any) -> list[ResolveResult]:
                await asyncio.Event().wait()
                return []

        assert (
            code("http://silent.test/", resolver=Silent({}), fetch_timeout_seconds=SHORT) is ErrorCode.TIMEOUT
        )

    def test_redirects_do_not_start_the_clock_again(self, site: HttpSite) -> None:
        uri = site.url("/redirect?to=/stall")
        assert code(uri, fetch_timeout_seconds=SHORT) is ErrorCode.TIMEOUT


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
        [
            ("echo/relative", "/echo/relative"),
            ("./echo/x/../y", "/echo/y"),
            ("/echo/a%2Fb?c=%2F#d", "/echo/a%2Fb?c=%2F"),
            ("/echo/a b", "/echo/a%20b"),
            ("/echo/ä", "/echo/%C3%A4"),
            (" /echo/x ", "/echo/x"),
            ("//{netloc}/echo/x", "/echo/x"),
            ("http://{netloc}/echo/x", "/echo/x"),
            ("HTTP://{netloc}/echo/x", "/echo/x"),
        ],
    )
    def test_forms_of_a_location(self, site: HttpSite, location: str, sent: str) -> None:
        to = quote(location.format(netloc=f"{PUBLIC}:{site.port}"), safe="")
        assert json.loads(fetch(site.url(f"/redirect?to={to}")))["path"] == sent

    def test_location_in_latin_1(self, site: HttpSite) -> None:
        head = f"HTTP/1.1 302 Found\r\nLocation: {site.url('/echo/')}".encode()
        with RawServer([head + b"\xe4\r\nContent-Length: 0\r\n\r\n"]) as server:
            assert json.loads(fetch(server.url("/")))["path"] == "/echo/%E4"

    @pytest.mark.parametrize(
        ("location", "expected"),
        [
            ("file:///etc/passwd", ErrorCode.SCHEME_REFUSED),
            ("ftp://host/x", ErrorCode.SCHEME_REFUSED),
            ("data:image/png;base64,AAAA", ErrorCode.SCHEME_REFUSED),
            ("javascript:alert(1)", ErrorCode.SCHEME_REFUSED),
            ("http://user:secret@127.0.0.1/", ErrorCode.BAD_URI),
            ("//user@127.0.0.1/", ErrorCode.BAD_URI),
            ("http://[::1", ErrorCode.BAD_URI),
            ("http://host:port/", ErrorCode.BAD_URI),
            ("http://none.test/", ErrorCode.DNS_FAILED),
            ("/status/404", ErrorCode.NOT_FOUND),
            ("/truncated", ErrorCode.INCOMPLETE_BODY),
            ("http://8.8.8.8:22/", ErrorCode.ADDRESS_REFUSED),
        ],
    )
    def test_every_hop_is_checked(self, site: HttpSite, location: str, expected: ErrorCode) -> None:
        error = failure(site.url(f"/redirect?to={quote(location, safe='')}"), resolver=always()).error
        assert error.code is expected
        assert "secret" not in error.detail


class TestTls:
    def test_trusted(self, secure_site: HttpSite, trusting: ssl.SSLContext) -> None:
        assert fetch(secure_site.url("/bytes/3"), tls=trusting) == bytes(3)

    def test_not_trusted(self, secure_site: HttpSite) -> None:
        error = failure(secure_site.url("/bytes/3")).error
        assert error.code is ErrorCode.TLS_FAILED
        assert "self-signed" in error.detail.replace("self signed", "self-signed")
        assert not secure_site.requests

    def test_other_name(self, secure_site: HttpSite, trusting: ssl.SSLContext) -> None:
        resolver = always(site=[PUBLIC], other=[PUBLIC])
        assert fetch(f"https://site.test:{secure_site.port}/empty", tls=trusting, resolver=resolver) == b""
        uri = f"https://other.test:{secure_site.port}/empty"
        assert code(uri, tls=trusting, resolver=resolver) is ErrorCode.TLS_FAILED

    def test_server_without_tls(self, site: HttpSite) -> None:
        assert code(site.url("/empty").replace("http:", "https:")) is ErrorCode.TLS_FAILED

    def test_plain_http_to_a_tls_port(self, secure_site: HttpSite) -> None:
        assert code(secure_site.url("/empty").replace("https:", "http:")) is ErrorCode.CONNECT_FAILED

    def test_redirect_up_is_followed_and_down_is_refused(
        self, site: HttpSite, secure_site: HttpSite, trusting: ssl.SSLContext
    ) -> None:
        up = site.url(f"/redirect?to={secure_site.url('/bytes/3')}")
        assert fetch(up, tls=trusting) == bytes(3)
        down = secure_site.url(f"/redirect?to={site.url('/bytes/3')}")
        error = failure(down, tls=trusting).error
        assert error.code is ErrorCode.SCHEME_REFUSED
        assert error.detail == "redirected from https to http"
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
        if redirected:
            uri = site.url(f"/redirect?to={quote(uri, safe='')}")
        error = failure(uri, resolver=resolver).error
        assert error.code is ErrorCode.ADDRESS_REFUSED

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
        guard = AddressGuard((ipaddress.ip_network("127.0.0.0/8"),))
        resolver = always(two=["127.0.0.9", PUBLIC])
        assert fetch(f"http://two.test:{site.port}/empty", guard=guard, resolver=resolver) == b""

    def test_name_that_changes_its_address(self, site: HttpSite, internal: NeverConnected) -> None:
        """DNS rebinding: harmless when asked first, internal when asked again."""
        resolver = FakeResolver({"rebind.test": [[PUBLIC], [INTERNAL], [INTERNAL]]})

        async def run() -> list[ErrorCode | bytes]:
            answers: list[ErrorCode | bytes] = []
            async with started(resolver=resolver) as fetcher:
                for port in (site.port, internal.port):
                    try:
                        answers.append(await fetcher.fetch(f"http://rebind.test:{port}/empty"))
                    except ItemFailure as failure:
                        answers.append(failure.error.code)
            return answers

        assert asyncio.run(run()) == [b"", ErrorCode.ADDRESS_REFUSED]
        assert resolver.questions == ["rebind.test", "rebind.test"]

    def test_name_that_changes_its_address_between_redirects(
        self, site: HttpSite, internal: NeverConnected
    ) -> None:
        resolver = FakeResolver({"rebind.test": [[PUBLIC], [INTERNAL]]})
        to = quote(f"http://rebind.test:{internal.port}/", safe="")
        uri = f"http://rebind.test:{site.port}/redirect?to={to}"
        assert code(uri, resolver=resolver) is ErrorCode.ADDRESS_REFUSED

    def test_guard_alone_holds_where_a_resolver_lies(self, internal: NeverConnected) -> None:
        """A name server's answer that the resolver's filter lets through is still seen at the socket."""

        class Blind(AddressGuard):
            def __init__(self) -> None:
                super().__init__((ipaddress.ip_network("127.0.0.1/32"),))
                self.calls = 0

            def check(self, host: str, port: int) -> None:
                self.calls += 1
                if self.calls > 1:
                    super().check(host, port)

        guard = Blind()
        uri = f"http://lie.test:{internal.port}/"
        assert code(uri, guard=guard, resolver=always(lie=[INTERNAL])) is ErrorCode.ADDRESS_REFUSED
        assert guard.calls == 2

    @pytest.mark.parametrize(
        ("name", "expected"), [("none", ErrorCode.DNS_FAILED), ("inside", ErrorCode.ADDRESS_REFUSED)]
    )
    def test_name_without_a_good_answer_is_not_asked_for_with_each_image(
        self, name: str, expected: ErrorCode
    ) -> None:
        resolver = always(inside=[INTERNAL])
        uris = [f"http://{name}.test/{number}" for number in range(50)]
        assert asyncio.run(fetch_together(uris, resolver=resolver)) == [expected] * 50
        assert resolver.questions == [f"{name}.test"]

    def test_ports_of_public_addresses(self) -> None:
        for port in (22, 25, 6379, 8080):
            error = failure(f"http://8.8.8.8:{port}/").error
            assert error.code is ErrorCode.ADDRESS_REFUSED
            assert f"port {port}" in error.detail
        error = failure("http://public.test:8080/", resolver=always(public=["8.8.8.8"])).error
        assert error.code is ErrorCode.ADDRESS_REFUSED


class TestConnections:
    def test_connections_are_kept(self, site: HttpSite) -> None:
        async def run() -> None:
            async with started() as fetcher:
                for _ in range(5):
                    await fetcher.fetch(site.url("/bytes/50000"))
                for path in ("/status/404", "/redirect?to=/empty"):
                    with pytest.raises(ItemFailure) if "404" in path else nullcontext():
                        await fetcher.fetch(site.url(path))
                    await fetcher.fetch(site.url("/empty"))

        asyncio.run(run())
        assert len(site.connections) == 1

    def test_kept_connection_that_the_server_has_closed(self) -> None:
        """Closed by the server without a word after the first answer: asked again on a new one."""
        with RawServer([b"HTTP/1.1 200 OK\r\nContent-Length: 1\r\n\r\nx"]) as server:

            async def run() -> list[bytes]:
                async with started() as fetcher:
                    return [await fetcher.fetch(server.url("/")) for _ in range(4)]

            assert asyncio.run(run()) == [b"x"] * 4

    def test_turns_per_host(self, site: HttpSite) -> None:
        """`/meet/4` answers when four are there: fewer than the cap would hang, more be counted."""
        asyncio.run(fetch_together([site.url("/meet/4")] * 24, host_connections=4))
        assert site.most_active == 4
        assert len(site.connections) == 4

    def test_turns_in_all(self, site: HttpSite) -> None:
        uris = [f"http://{name}.test:{site.port}/meet/3" for name in "abcd"] * 6
        resolver = always(a=[PUBLIC], b=[PUBLIC], c=[PUBLIC], d=[PUBLIC])
        asyncio.run(fetch_together(uris, resolver=resolver, host_connections=2, total_connections=3))
        assert site.most_active == 3

    def test_hosts_do_not_wait_for_each_other(self, site: HttpSite) -> None:
        async def run() -> None:
            resolver = always(slow=[PUBLIC], quick=[PUBLIC])
            async with started(resolver=resolver, host_connections=1, total_connections=2) as fetcher:
                slow = [
                    asyncio.create_task(fetcher.fetch(f"http://slow.test:{site.port}/stall"))
                    for _ in range(5)
                ]
                for _ in range(10):
                    await fetcher.fetch(f"http://quick.test:{site.port}/empty")
                await cancelled(slow)

        asyncio.run(run())

    def test_waiting_for_a_turn_is_not_the_url_s_time(self, site: HttpSite) -> None:
        uris = [site.url("/stall")] * 2 + [site.url("/empty")]
        answers = asyncio.run(fetch_together(uris, host_connections=1, fetch_timeout_seconds=0.5))
        assert answers == [ErrorCode.TIMEOUT] * 2 + [b""]

    def test_cancelled_fetches_give_their_turns_back(self, site: HttpSite) -> None:
        async def run() -> bytes:
            async with started(host_connections=2) as fetcher:
                stalled = [asyncio.create_task(fetcher.fetch(site.url("/stall"))) for _ in range(6)]
                while site.active < 2:
                    await asyncio.sleep(0)
                await cancelled(stalled)
                return await fetcher.fetch(site.url("/bytes/2"))

        assert asyncio.run(run()) == bytes(2)

    def test_redirects_between_two_busy_hosts_do_not_lock_each_other_out(self, site: HttpSite) -> None:
        def uri(here: str, there: str) -> str:
            to = quote(f"http://{there}.test:{site.port}/bytes/1", safe="")
            return f"http://{here}.test:{site.port}/redirect?to={to}"

        uris = [uri("a", "b"), uri("b", "a")] * 20
        answers = asyncio.run(
            fetch_together(
                uris, resolver=always(a=[PUBLIC], b=[PUBLIC]), host_connections=1, total_connections=2
            )
        )
        assert answers == [b"\0"] * 40

    def test_failures_of_some_do_not_disturb_others(self, site: HttpSite) -> None:
        paths = ["/bytes/9", "/status/500", "/truncated", "/reset", "/endless", "/loop", "/bytes/9"] * 6
        answers = asyncio.run(fetch_together([site.url(path) for path in paths]))
        expected = {
            "/bytes/9": bytes(9),
            "/status/500": ErrorCode.SERVER_ERROR,
            "/truncated": ErrorCode.INCOMPLETE_BODY,
            "/reset": ErrorCode.INCOMPLETE_BODY,
            "/endless": ErrorCode.TOO_MANY_BYTES,
            "/loop": ErrorCode.TOO_MANY_REDIRECTS,
        }
        assert answers == [expected[path] for path in paths]

    @pytest.mark.parametrize(("turns", "most_kept"), [(3, 6), (40, 30)])
    def test_idle_connections_to_many_hosts_are_bounded(
        self, site: HttpSite, turns: int, most_kept: int
    ) -> None:
        names = [f"host{number}" for number in range(30)]

        async def run() -> None:
            resolver = always(**{name: [PUBLIC] for name in names})
            async with started(resolver=resolver, total_connections=turns) as fetcher:
                for name in names:
                    await fetcher.fetch(f"http://{name}.test:{site.port}/empty")
                wait_until(lambda: site.open_connections <= most_kept, "few connections are open")
                if turns >= len(names):
                    assert site.open_connections == len(names)

        asyncio.run(run())

    def test_nothing_stays_open_after_close(self, site: HttpSite) -> None:
        asyncio.run(fetch_together([site.url("/bytes/9"), site.url("/truncated"), site.url("/endless")] * 4))
        wait_until(lambda: site.open_connections == 0, "all connections are closed")


async def fetch_together(uris: list[str], **options: Any) -> list[bytes | ErrorCode]:
    async with started(**options) as fetcher:

        async def one(uri: str) -> bytes | ErrorCode:
            try:
                return await fetcher.fetch(uri)
            except ItemFailure as failure:
                return failure.error.code

        return await asyncio.gather(*(one(uri) for uri in uris))


async def cancelled(tasks: list[asyncio.Task[bytes]]) -> None:
    for task in tasks:
        task.cancel()
    await asyncio.gather(*tasks, return_exceptions=True)
