"""Objects from S3 through a client that answers what a test wants: codes, limits, turns. The session of our
own, and the real thing: `tests/integration/test_fetch_s3.py`.
"""

from __future__ import annotations

import asyncio
import io
import threading
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import (
    ClientError,
    ConnectTimeoutError,
    EndpointConnectionError,
    NoCredentialsError,
    ParamValidationError,
    ReadTimeoutError,
    ResponseStreamingError,
    SSLError,
)

from clipfleet.contract.jobs import ErrorCode, Lane
from clipfleet.contract.tar_member import TarMember
from clipfleet.errors import SourceUnavailableError, UsageError
from clipfleet.s3.client import S3Connection
from clipfleet_worker.failures import HostLeftAlone, ItemFailure, TransientFailure
from clipfleet_worker.fetch.host_breaker import BreakerPolicy, HostBreaker
from clipfleet_worker.fetch.lane_turns import set_lane
from clipfleet_worker.fetch.s3.boto import S3Limits
from clipfleet_worker.fetch.s3.fetcher import S3Fetcher
from tests.support.doubles import Clock

MAX_BYTES = 3_000_000


class Store:
    """Objects by (bucket, key): bytes, or an exception, or a function that gives one of them."""

    def __init__(self, objects: dict[tuple[str, str], Any] | None = None) -> None:
        self.objects = objects or {}
        self.calls: list[dict[str, str]] = []
        # It never tells what it sent, so that all objects are asked for through it.
        self.meta = SimpleNamespace(events=SimpleNamespace(register=lambda *_: None))

    def get_object(self, **wanted: str) -> dict[str, Any]:
        self.calls.append(wanted)
        content = self.objects[wanted["Bucket"], wanted["Key"]]
        if callable(content):
            content = content()
        if isinstance(content, Exception):
            raise content
        if "Range" in wanted:
            first, last = wanted["Range"].removeprefix("bytes=").split("-")
            content = content[int(first) : int(last) + 1]
        return {"Body": io.BytesIO(content), "ContentLength": len(content)}


def connection(store: Store) -> S3Connection:
    """To this store, without credentials."""
    return S3Connection(store, None, True)


def fetch(store: Store, *uris: str, buckets: tuple[str, ...] = ()) -> list[Any]:
    """What becomes of each URI: bytes, or the error."""

    async def run() -> list[Any]:
        limits = S3Limits(max_image_bytes=MAX_BYTES, fetch_timeout_seconds=30.0, connections=4)
        fetcher = S3Fetcher(limits, buckets, lambda: connection(store))
        await fetcher.start()
        try:
            calls = [(fetcher.fetch_member if uri.startswith("tar+") else fetcher.fetch)(uri) for uri in uris]
            found = await asyncio.gather(*calls, return_exceptions=True)
            return [one.error.code if isinstance(one, ItemFailure) else one for one in found]
        finally:
            await fetcher.close()

    return asyncio.run(run())


def answer(status: int, code: str) -> ClientError:
    return ClientError(
        {"Error": {"Code": code, "Message": "m"}, "ResponseMetadata": {"HTTPStatusCode": status}}, "GetObject"
    )


@pytest.mark.parametrize(
    ("uri", "key"),
    [
        ("s3://b/x.jpg", "x.jpg"),
        ("S3://b/a b/100%25?x=1#y+z.jpg", "a b/100%25?x=1#y+z.jpg"),
        ("s3://b//x", "/x"),
    ],
)
def test_the_key_is_what_stands_after_the_bucket(uri: str, key: str) -> None:
    assert fetch(Store({("b", key): b"picture"}), uri) == [b"picture"]


@pytest.mark.parametrize("uri", ["s3://", "s3://b", "s3://b/", "s3:///x", "s3:x", "s3://b c/x"])
def test_what_names_no_object_is_a_bad_uri(uri: str) -> None:
    store = Store()

    assert fetch(store, uri) == [ErrorCode.BAD_URI]
    assert store.calls == []


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (answer(404, "NoSuchKey"), ErrorCode.NOT_FOUND),
        (answer(404, "NoSuchBucket"), ErrorCode.NOT_FOUND),
        (answer(403, "AccessDenied"), ErrorCode.ACCESS_DENIED),
        (answer(403, "InvalidAccessKeyId"), ErrorCode.ACCESS_DENIED),
        (NoCredentialsError(), ErrorCode.ACCESS_DENIED),
        (answer(503, "SlowDown"), ErrorCode.RATE_LIMITED),
        (answer(500, "InternalError"), ErrorCode.SERVER_ERROR),
        (answer(403, "InvalidObjectState"), ErrorCode.ACCESS_DENIED),
        (answer(416, "InvalidRange"), ErrorCode.HTTP_ERROR),
        (answer(301, "PermanentRedirect"), ErrorCode.HTTP_ERROR),
        (EndpointConnectionError(endpoint_url="http://s"), ErrorCode.CONNECT_FAILED),
        (ConnectTimeoutError(endpoint_url="http://s"), ErrorCode.CONNECT_FAILED),
        (ReadTimeoutError(endpoint_url="http://s"), ErrorCode.TIMEOUT),
        (ResponseStreamingError(error="broken"), ErrorCode.INCOMPLETE_BODY),
        (SSLError(endpoint_url="http://s", error="certificate"), ErrorCode.TLS_FAILED),
        (ParamValidationError(report="Invalid bucket name"), ErrorCode.BAD_URI),
    ],
)
def test_every_refusal_has_its_code(error: Exception, code: ErrorCode) -> None:
    assert fetch(Store({("b", "x"): error}), "s3://b/x") == [code]


def test_only_buckets_of_the_setting_are_asked() -> None:
    store = Store({("mine", "x"): b"1", ("other", "x"): b"2"})

    found = fetch(
        store, "s3://mine/x", "s3://other/x", "tar+s3://other/x#offset=0&size=1&name=a", buckets=("mine",)
    )

    assert found == [b"1", ErrorCode.BUCKET_REFUSED, ErrorCode.BUCKET_REFUSED]
    assert [call["Bucket"] for call in store.calls] == ["mine"]


def test_too_many_bytes_are_not_read_even_where_the_size_lies() -> None:
    class Liar(Store):
        def get_object(self, **wanted: str) -> dict[str, Any]:
            return {**super().get_object(**wanted), "ContentLength": 1}

    objects = {("b", "x"): b"x" * (MAX_BYTES + 1), ("b", "y"): b"y" * MAX_BYTES}

    for store in (Store(dict(objects)), Liar(dict(objects))):
        assert fetch(store, "s3://b/x", "s3://b/y") == [ErrorCode.TOO_MANY_BYTES, b"y" * MAX_BYTES]


def test_a_store_that_hangs_is_a_timeout_and_keeps_its_turn() -> None:
    release = threading.Event()
    entered = threading.Event()

    def hang() -> bytes:
        entered.set()
        release.wait(30)
        return b"late"

    store = Store({("b", "slow"): hang, ("b", "next"): b"n"})

    async def run() -> None:
        limits = S3Limits(max_image_bytes=MAX_BYTES, fetch_timeout_seconds=0.05, connections=1)
        fetcher = S3Fetcher(limits, (), lambda: connection(store))
        await fetcher.start()
        with pytest.raises(ItemFailure) as raised:
            await fetcher.fetch("s3://b/slow")
        assert raised.value.error.code is ErrorCode.TIMEOUT
        # The only turn is still taken: the next one waits for it, and that is not counted as its time.
        waiting = asyncio.create_task(fetcher.fetch("s3://b/next"))
        done, _ = await asyncio.wait([waiting], timeout=0.2)
        assert not done
        release.set()
        assert await waiting == b"n"
        await fetcher.close()

    asyncio.run(run())
    assert entered.is_set()


def test_an_object_of_a_better_lane_does_not_wait_for_those_before_it() -> None:
    release, asked = threading.Event(), []

    def answer(name: str) -> Callable[[], bytes]:
        def read() -> bytes:
            asked.append(name)
            release.wait(30)
            return b"x"

        return read

    names = ["first", "bulk", "high"]
    store = Store({("b", name): answer(name) for name in names})

    async def run() -> None:
        limits = S3Limits(max_image_bytes=MAX_BYTES, fetch_timeout_seconds=30, connections=1)
        fetcher = S3Fetcher(limits, (), lambda: connection(store))
        await fetcher.start()

        async def fetch_in(lane: Lane, name: str) -> None:
            set_lane(lane)
            await fetcher.fetch(f"s3://b/{name}")

        lanes = (Lane.BULK, Lane.BULK, Lane.HIGH)
        calls = [asyncio.create_task(fetch_in(lane, name)) for lane, name in zip(lanes, names, strict=True)]
        await asyncio.sleep(0)  # all of them ask for their turn, in this order
        release.set()
        await asyncio.gather(*calls)
        await fetcher.close()

    asyncio.run(run())
    assert asked == ["first", "high", "bulk"]


def test_a_configuration_that_cannot_be_used_is_told_with_each_item() -> None:
    def refuse() -> Any:
        raise UsageError("cannot use S3: no such profile")

    async def run() -> str:
        limits = S3Limits(max_image_bytes=1, fetch_timeout_seconds=9, connections=1)
        fetcher = S3Fetcher(limits, (), refuse)
        await fetcher.start()
        with pytest.raises(ItemFailure) as raised:
            await fetcher.fetch("s3://b/x")
        await fetcher.close()
        return str(raised.value)

    assert asyncio.run(run()) == "access_denied: cannot use S3: no such profile"


def test_the_client_is_made_once_and_only_when_it_is_needed() -> None:
    made: list[S3Connection] = []

    def connect() -> S3Connection:
        made.append(connection(Store({("b", "x"): b"1"})))
        return made[-1]

    async def run() -> None:
        limits = S3Limits(max_image_bytes=9, fetch_timeout_seconds=9, connections=4)
        fetcher = S3Fetcher(limits, (), connect)
        await fetcher.start()
        assert made == []
        await asyncio.gather(*(fetcher.fetch("s3://b/x") for _ in range(9)))
        await fetcher.close()

    asyncio.run(run())
    assert len(made) == 1


class TestStoreThatIsAway:
    """Three objects that fail in a row are no accident."""

    @staticmethod
    def away() -> Exception:
        return EndpointConnectionError(endpoint_url="http://s")

    def ends(self, store: Store, clock: Clock, *uris: str) -> list[Any]:
        """One after the other; each costs a second."""
        breaker = HostBreaker(BreakerPolicy(failing_urls=3), monotonic=clock)

        async def run() -> list[Any]:
            limits = S3Limits(max_image_bytes=MAX_BYTES, fetch_timeout_seconds=30.0, connections=1)
            fetcher = S3Fetcher(limits, (), lambda: connection(store), breaker)
            await fetcher.start()
            found: list[Any] = []
            for uri in uris:
                try:
                    found.append(await fetcher.fetch(uri))
                except (ItemFailure, SourceUnavailableError) as error:
                    found.append(error)
                clock.now += 1
            await fetcher.close()
            return found

        return asyncio.run(run())

    def test_objects_wait_for_it_and_then_their_chunk_does(self) -> None:
        keys = [f"k{number}" for number in range(60)]
        store = Store({("b", key): self.away for key in keys})

        found = self.ends(store, Clock(), *(f"s3://b/{key}" for key in keys))

        assert [type(one) for one in found[:2]] == [TransientFailure] * 2  # their own attempts
        assert {type(one) for one in found[2:32]} == {HostLeftAlone}  # no attempts: nobody's fault
        assert {type(one) for one in found[33:]} == {SourceUnavailableError}
        assert "in a row" in str(found[-1])
        assert len(store.calls) < 20

    def test_a_single_bad_object_is_a_row(self) -> None:
        store = Store({("b", "bad"): self.away, ("b", "good"): b"g"})
        found = self.ends(store, Clock(), *["s3://b/bad"] * 40, "s3://b/good")
        assert {type(one) for one in found[:-1]} == {TransientFailure}
        assert found[-1] == b"g"

    def test_once_it_is_back_all_is_well(self) -> None:
        answers = iter([self.away() for _ in range(4)])
        objects: dict[tuple[str, str], Any] = {
            ("b", f"k{number}"): lambda: next(answers, b"back") for number in range(20)
        }
        found = self.ends(Store(objects), Clock(), *(f"s3://b/k{number}" for number in range(20)))
        assert found[-10:] == [b"back"] * 10

    def test_turns_are_given_back_by_those_that_are_not_asked(self) -> None:
        """With one connection: were one kept, the test would hang."""
        store = Store({("b", f"k{number}"): self.away for number in range(200)})
        assert len(self.ends(store, Clock(), *(f"s3://b/k{number}" for number in range(200)))) == 200


class TestPieces:
    def uri(self, offset: int, size: int) -> str:
        return TarMember("s3://b/a b.tar", "x.jpg", offset, size).uri()

    def test_exactly_these_bytes_are_asked_for(self) -> None:
        store = Store({("b", "a b.tar"): bytes(range(100))})

        assert fetch(store, self.uri(10, 5), self.uri(0, 0)) == [bytes(range(10, 15)), b""]
        assert [call["Range"] for call in store.calls] == ["bytes=10-14"]

    def test_a_member_that_is_too_large_is_not_asked_for(self) -> None:
        store = Store()

        assert fetch(store, self.uri(0, MAX_BYTES + 1)) == [ErrorCode.TOO_MANY_BYTES]
        assert store.calls == []

    @pytest.mark.parametrize("uri", ["tar+s3://b/x.tar", "tar+s3://b/x.tar#offset=1&size=a&name=", "tar+s3:"])
    def test_a_name_that_is_none(self, uri: str) -> None:
        assert fetch(Store(), uri) == [ErrorCode.BAD_URI]


@pytest.mark.parametrize(
    "key", ["../other/x.jpg", "a/../../other/x.jpg", "/../other/x.jpg", ".", "..\\other\\x"]
)
def test_a_key_that_may_lead_out_of_its_bucket_is_refused_where_buckets_are_listed(key: str) -> None:
    store = Store({("mine", key): b"x"})

    assert fetch(store, f"s3://mine/{key}", buckets=("mine",)) == [ErrorCode.BUCKET_REFUSED]
    assert fetch(store, f"s3://mine/{key}") == [b"x"]  # to the letter it is a key like any other
    assert len(store.calls) == 1


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestTimeTooSkewed"])
def test_trouble_of_ours_is_no_fault_of_an_object(code: str) -> None:
    (found,) = fetch(Store({("b", "x.jpg"): answer(403, code)}), "s3://b/x.jpg")

    assert isinstance(found, SourceUnavailableError)
    assert code in str(found)
