"""Objects of a real store: the first of a bucket through boto3, the others over the worker's own session.

Whatever goes wrong comes to the same on both ways; where place or credentials change, the second one goes
back to the first by itself.
"""

from __future__ import annotations

import asyncio
import base64
import hashlib
import socket
import ssl
import zlib
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from clipfleet.contract.jobs import ErrorCode
from clipfleet.contract.tar_member import TarMember
from clipfleet.errors import SourceUnavailableError
from clipfleet.s3.client import connect
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.host_breaker import BreakerPolicy, HostBreaker
from clipfleet_worker.fetch.s3.boto import S3Limits
from clipfleet_worker.fetch.s3.fetcher import S3Fetcher
from tests.support.fetching import opened
from tests.support.http_site import CERTIFICATE
from tests.support.raw_server import RawServer
from tests.support.s3 import S3Bucket
from tests.support.s3_front import Fault, Rule, S3Front
from tests.support.scenarios import in_loop

pytestmark = pytest.mark.long

MAX_BYTES = 300_000
GOOD = b"good" * 1000


@dataclass(slots=True)
class Reading:
    """A fetcher, and how often boto3 was called by it."""

    fetcher: S3Fetcher
    boto_calls: list[str] = field(default_factory=list)

    async def end(self, uri: str) -> Any:
        """Bytes, or the code, or the message of a chunk that waits."""
        try:
            return await self.fetcher.fetch(uri)
        except ItemFailure as failure:
            return failure.error.code
        except SourceUnavailableError as error:
            return str(error)

    async def ends(self, *uris: str) -> list[Any]:
        """One after the other."""
        return [await self.end(uri) for uri in uris]


@asynccontextmanager
async def reading(seconds: float = 20.0, silence_seconds: float = 10.0) -> AsyncIterator[Reading]:
    limits = S3Limits(
        max_image_bytes=MAX_BYTES,
        fetch_timeout_seconds=seconds,
        connections=8,
        idle_read_timeout_seconds=silence_seconds,
    )
    calls: list[str] = []

    def connected() -> Any:
        connection = connect(attempts=1, read_timeout_seconds=silence_seconds)
        events = connection.client.meta.events
        events.register("before-call.s3.GetObject", lambda params, **_: calls.append(params["url_path"]))
        return connection

    breaker = HostBreaker(BreakerPolicy(failing_urls=1000))
    async with opened(S3Fetcher(limits, (), connected, breaker)) as fetcher:
        yield Reading(fetcher, calls)


@pytest.fixture
def front(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Front]:
    with S3Front(s3.endpoint) as front:
        for name, value in front.environment({}).items():
            monkeypatch.setenv(name, value)
        yield front


@pytest.mark.parametrize(
    "key", ["x", "a b+c/ä ü~(1)'!*.jpg", "100%25?x=1#y&z.jpg", "日本/\U0001f600.webp", "..a/.b/c.."]
)
@in_loop
async def test_any_key_is_read_both_ways(s3: S3Bucket, key: str) -> None:
    uri = s3.put(key, GOOD)

    async with reading() as one:
        assert await one.ends(uri, uri, uri) == [GOOD] * 3
        assert len(one.boto_calls) == 1


@in_loop
async def test_many_at_a_time_and_pieces_of_an_archive(s3: S3Bucket) -> None:
    bodies = [b"%d" % number * 5000 for number in range(40)]
    uris = [s3.put(f"{number}", body) for number, body in enumerate(bodies)]
    archive = s3.put("a b.tar", bytes(range(256)) * 4)

    async with reading() as one:
        assert await asyncio.gather(*(one.end(uri) for uri in uris * 3)) == bodies * 3
        calls = len(one.boto_calls)
        assert calls < 40  # those that began before the first one had ended
        piece = await one.fetcher.fetch_member(TarMember(archive, "x", 10, 5).uri())
        assert piece == bytes(range(10, 15))
        with pytest.raises(ItemFailure, match=r"^incomplete_body: .* the archive was changed"):
            await one.fetcher.fetch_member(TarMember(archive, "x", 1020, 5).uri())
        assert len(one.boto_calls) == calls


@in_loop
async def test_limits_and_emptiness(s3: S3Bucket) -> None:
    uris = [s3.put(str(size), b"x" * size) for size in (MAX_BYTES, MAX_BYTES + 1, 0)]
    missing = [f"{s3.uri}/none", "s3://no-such-bucket-here/x"]

    async with reading() as one:
        for _ in range(2):
            assert await one.ends(*uris) == [b"x" * MAX_BYTES, ErrorCode.TOO_MANY_BYTES, b""]
        assert await one.ends(*missing) == [ErrorCode.NOT_FOUND] * 2
        assert len(one.boto_calls) == 2


# Trouble for which boto3 is asked again, since it may find a way out.
_BACK_TO_BOTO = (Fault.EXPIRED_TOKEN, Fault.INVALID_ACCESS_KEY)
_FAULTS = [
    fault for fault in Fault if not fault.name.startswith("DONE_BUT") and fault is not Fault.WRONG_ETAG
]


@pytest.mark.parametrize("fault", _FAULTS)
@in_loop
async def test_a_fault_comes_to_the_same_on_both_ways(s3: S3Bucket, front: S3Front, fault: Fault) -> None:
    good, bad = s3.put("good", GOOD), s3.put("bad", GOOD)

    async with reading(silence_seconds=0.3) as through_boto, reading(silence_seconds=0.3) as direct:
        assert await direct.end(good) == GOOD
        with front.broken_by(Rule(fault=fault, method="GET", path="*/bad")):
            expected, found = await through_boto.end(bad), await direct.end(bad)
        assert found == expected != GOOD
        assert len(direct.boto_calls) == (2 if fault in _BACK_TO_BOTO else 1)
        assert await direct.end(bad) == GOOD


@in_loop
async def test_the_whole_time_is_bounded_and_turns_come_back(s3: S3Bucket, front: S3Front) -> None:
    good, bad = s3.put("good", GOOD), s3.put("bad", GOOD)

    async with reading(seconds=0.5) as one:
        for _ in range(60):  # on a busy machine so little time may be too little for boto3's beginning
            if await one.end(good) == GOOD and one.fetcher.places:
                break
        calls = len(one.boto_calls)
        with front.broken_by(Rule(fault=Fault.STALL, path="*/bad")):
            late = await asyncio.gather(*(one.end(bad) for _ in range(16)))  # twice as many as turns
            assert late == [ErrorCode.TIMEOUT] * 16
            waiting = [asyncio.create_task(one.end(bad)) for _ in range(20)]
            await asyncio.sleep(0)
            for task in waiting:  # a drain
                task.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
        assert GOOD in await one.ends(*[good] * 20)
        assert len(one.boto_calls) == calls


@in_loop
async def test_credentials_that_change_are_found(
    s3: S3Bucket, front: S3Front, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    uri, file = s3.put("x", GOOD), tmp_path / "credentials"
    key, secret = s3.environment["AWS_ACCESS_KEY_ID"], s3.environment["AWS_SECRET_ACCESS_KEY"]
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(file))
    text = f"[default]\naws_access_key_id = {key}\naws_secret_access_key = {secret}\n"
    file.write_text(text)

    async with reading() as one:
        assert await one.ends(uri, uri) == [GOOD] * 2
        with front.broken_by(Rule(fault=Fault.EXPIRED_TOKEN, access_key=key)):
            assert "renew the credentials" in await one.end(uri)
        file.unlink()
        assert await one.end(uri) is ErrorCode.ACCESS_DENIED
        file.write_text(text)
        calls = len(one.boto_calls)
        assert await one.ends(uri, uri, uri) == [GOOD] * 3
        assert len(one.boto_calls) == calls + 1  # found again, and done with boto3


class RawStore(RawServer):
    """A store that sends what it is told to, byte by byte; each answer ends its connection.

    Args:
        answers: by the last part of the path.
        tls: to speak HTTPS.
    """

    def __init__(self, answers: dict[str, bytes], tls: ssl.SSLContext | None = None) -> None:
        super().__init__(())
        self._answers = answers
        self._tls = tls
        self.requests: list[str] = []

    @property
    def host(self) -> str:
        """Address and port."""
        return f"127.0.0.1:{self.port}"

    def _answer(self, connection: socket.socket) -> None:
        with suppress(OSError):
            if self._tls:
                connection = self._tls.wrap_socket(connection, server_side=True)
            head = b""
            while b"\r\n\r\n" not in head and (part := connection.recv(65_536)):
                head += part
            if head:
                self.requests.append(head.decode("latin-1"))
                connection.sendall(self._answers[head.split(b" ")[1].decode().rpartition("/")[2]])
            connection.close()


def answer(body: bytes, *headers: str, status: str = "200 OK", length: bool = True) -> bytes:
    lines = [f"HTTP/1.1 {status}", *headers, "Connection: close"]
    if length:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join([*lines, "", ""]).encode() + body


def good_with_sums_of(data: bytes) -> dict[str, bytes]:
    """`GOOD` with each kind of checksum, as the store sends it."""
    sums = {
        "crc32": zlib.crc32(data).to_bytes(4, "big"),
        "sha1": hashlib.sha1(data).digest(),  # noqa: S324 - it is one of the store's
        "sha256": hashlib.sha256(data).digest(),
    }
    values = {kind: base64.b64encode(value).decode() for kind, value in sums.items()}
    return {kind: answer(GOOD, f"x-amz-checksum-{kind}: {value}") for kind, value in values.items()}


def point_to(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have clients ask there."""
    keys = {"AWS_ACCESS_KEY_ID": "k", "AWS_SECRET_ACCESS_KEY": "s", "AWS_REGION": "eu-west-3"}
    for name, value in (keys | {"AWS_ENDPOINT_URL": endpoint}).items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_ENDPOINT_URL_S3", raising=False)


def ends_at(monkeypatch: pytest.MonkeyPatch, answers: dict[str, bytes]) -> list[Any]:
    """What becomes of each key after `good`, and that none of them was asked for through boto3."""

    async def run() -> list[Any]:
        async with reading() as one:
            assert await one.end("s3://bucket/good") == GOOD
            found = await one.ends(*(f"s3://bucket/{key}" for key in answers))
            assert len(one.boto_calls) == 1
            return found

    with RawStore({"good": answer(GOOD), **answers}) as store:
        point_to(f"http://{store.host}", monkeypatch)
        return asyncio.run(run())


def test_bytes_that_do_not_fit_their_checksum_are_not_taken(monkeypatch: pytest.MonkeyPatch) -> None:
    right, wrong = good_with_sums_of(GOOD), good_with_sums_of(b"other")
    others = {
        "parts": answer(GOOD, "x-amz-checksum-crc32: AAAAAA==-3"),
        "type": answer(GOOD, "x-amz-checksum-type: FULL_OBJECT"),
    }

    assert ends_at(monkeypatch, right | others) == [GOOD] * 5
    assert ends_at(monkeypatch, wrong) == [ErrorCode.INCOMPLETE_BODY] * 3


def test_bodies_of_all_kinds(monkeypatch: pytest.MonkeyPatch) -> None:
    chunked, body = "Transfer-Encoding: chunked", b"5\r\nhello\r\n0\r\n\r\n"
    incomplete = ErrorCode.INCOMPLETE_BODY
    kinds = {
        "chunked": (answer(body, chunked, length=False), b"hello"),
        "cut": (answer(body[:7], chunked, length=False), incomplete),
        "endless": (answer(GOOD, length=False), incomplete),  # is it all?
        "gzip": (answer(GOOD, "Content-Encoding: gzip"), GOOD),  # the object as it is
        "flood": (answer(b"x" * (MAX_BYTES + 1)), ErrorCode.TOO_MANY_BYTES),
        "not-http": (b"SSH-2.0-OpenSSH_9.9\r\n", incomplete),
        "silent": (b"", incomplete),
        "html": (answer(b"<html>no", status="502 Bad Gateway"), ErrorCode.SERVER_ERROR),
        "bare": (answer(b"", status="404 Not Found"), ErrorCode.NOT_FOUND),
    }

    found = ends_at(monkeypatch, {name: sent for name, (sent, _) in kinds.items()})

    assert found == [expected for _, expected in kinds.values()]


@in_loop
async def test_a_bucket_that_is_elsewhere_now_is_asked_for_through_boto3(s3: S3Bucket) -> None:
    uri = s3.put("x", GOOD)
    moved = b"<Error><Code>PermanentRedirect</Code><Message>m</Message></Error>"

    with RawStore({"x": answer(moved, status="301 Moved Permanently")}) as store:
        async with reading() as one:
            assert await one.end(uri) == GOOD
            place = one.fetcher.places[s3.name]
            outdated = replace(place, root=f"http://{store.host}/{s3.name}/", host=store.host)
            one.fetcher.places[s3.name] = outdated
            assert await one.end(uri) == GOOD
            assert (len(store.requests), len(one.boto_calls)) == (1, 2)
            assert one.fetcher.places[s3.name] == place


async def ends_of_good() -> list[Any]:
    """Of an object that is read three times, and how often boto3 was called."""
    async with reading() as one:
        return [*await one.ends(*["s3://bucket/good"] * 3), len(one.boto_calls)]


class TestTls:
    @pytest.fixture
    def store(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawStore]:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(CERTIFICATE)
        with RawStore({"good": answer(GOOD)}, context) as store:
            point_to(f"https://{store.host}", monkeypatch)
            yield store

    @in_loop
    async def test_the_bundle_of_the_environment_is_trusted(
        self, store: RawStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(CERTIFICATE))
        assert await ends_of_good() == [GOOD, GOOD, GOOD, 1]
        assert len(store.requests) == 3

    @in_loop
    async def test_both_ways_trust_the_same(self, store: RawStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.delenv("AWS_CA_BUNDLE", raising=False)
        monkeypatch.setenv("REQUESTS_CA_BUNDLE", str(CERTIFICATE))  # botocore looks there
        monkeypatch.setenv("CURL_CA_BUNDLE", "/nowhere.pem")  # and not there
        assert await ends_of_good() == [GOOD, GOOD, GOOD, 1]
        monkeypatch.delenv("REQUESTS_CA_BUNDLE")
        assert connect().ca_bundle is True

    @in_loop
    async def test_no_other_certificate_is(self, store: RawStore) -> None:
        assert (await ends_of_good())[:3] == [ErrorCode.TLS_FAILED] * 3
        assert store.requests == []

    @in_loop
    async def test_nor_on_the_way_of_our_own(self, store: RawStore, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("AWS_CA_BUNDLE", str(CERTIFICATE))
        async with reading() as one:
            assert await one.end("s3://bucket/good") == GOOD
            place = one.fetcher.places["bucket"]
            one.fetcher.places["bucket"] = replace(place, tls=ssl.create_default_context())
            assert await one.end("s3://bucket/good") is ErrorCode.TLS_FAILED
        assert len(store.requests) == 1


@in_loop
async def test_what_a_proxy_leads_to_is_left_to_boto3(monkeypatch: pytest.MonkeyPatch) -> None:
    with RawStore({"good": answer(GOOD)}) as proxy:
        point_to("http://store.test", monkeypatch)
        monkeypatch.setenv("HTTP_PROXY", f"http://{proxy.host}")
        monkeypatch.setenv("NO_PROXY", "")
        assert await ends_of_good() == [GOOD, GOOD, GOOD, 3]
