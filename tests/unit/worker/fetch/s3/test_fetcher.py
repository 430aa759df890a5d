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
from unittest.mock import MagicMock

import pytest
from botocore import exceptions as boto

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
from tests.support.fetching import codes, ends, opened
from tests.support.scenarios import in_loop

MAX_BYTES = 3_000_000


class Store:
    """Objects by (bucket, key): bytes, or an exception, or a function that gives one of them."""

    def __init__(
        self, objects: dict[tuple[str, str], Any] | None = None, announced: int | None = None
    ) -> None:
        self.objects = objects or {}
        self.announced = announced  # as the size of each object, whatever it is
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
        return {"Body": io.BytesIO(content), "ContentLength": self.announced or len(content)}


def fetcher_of(store: Store, *buckets: str, breaker: HostBreaker | None = None, **limits: float) -> S3Fetcher:
    defaults = {"max_image_bytes": MAX_BYTES, "fetch_timeout_seconds": 30.0, "connections": 4}
    without_credentials = S3Connection(store, None, True)
    return S3Fetcher(S3Limits(**defaults | limits), buckets, lambda: without_credentials, breaker)


def fetch(store: Store, *uris: str, buckets: tuple[str, ...] = ()) -> list[Any]:
    """What becomes of each URI: bytes, or the code."""

    async def run() -> list[Any]:
        async with opened(fetcher_of(store, *buckets)) as fetcher:
            members = fetcher.fetch_member
            return await ends(lambda uri: (members if uri.startswith("tar+") else fetcher.fetch)(uri), uris)

    return codes(asyncio.run(run()))


def answer(status: int, code: str) -> boto.ClientError:
    metadata = {"HTTPStatusCode": status}
    return boto.ClientError({"Error": {"Code": code}, "ResponseMetadata": metadata}, "GetObject")


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
        (answer(404, "NoSuchKey"), "not_found"),
        (answer(404, "NoSuchBucket"), "not_found"),
        (answer(403, "AccessDenied"), "access_denied"),
        (answer(403, "InvalidAccessKeyId"), "access_denied"),
        (boto.NoCredentialsError(), "access_denied"),
        (answer(503, "SlowDown"), "rate_limited"),
        (answer(500, "InternalError"), "server_error"),
        (answer(403, "InvalidObjectState"), "access_denied"),
        (answer(416, "InvalidRange"), "http_error"),
        (answer(301, "PermanentRedirect"), "http_error"),
        (boto.EndpointConnectionError(endpoint_url="http://s"), "connect_failed"),
        (boto.ConnectTimeoutError(endpoint_url="http://s"), "connect_failed"),
        (boto.ReadTimeoutError(endpoint_url="http://s"), "timeout"),
        (boto.ResponseStreamingError(error="broken"), "incomplete_body"),
        (boto.SSLError(endpoint_url="http://s", error="certificate"), "tls_failed"),
        (boto.ParamValidationError(report="Invalid bucket name"), "bad_uri"),
    ],
)
def test_every_refusal_has_its_code(error: Exception, code: str) -> None:
    assert fetch(Store({("b", "x"): error}), "s3://b/x") == [code]


def test_only_buckets_of_the_setting_are_asked() -> None:
    store = Store({("mine", "x"): b"1", ("other", "x"): b"2"})

    member = "tar+s3://other/x#offset=0&size=1&name=a"

    found = fetch(store, "s3://mine/x", "s3://other/x", member, buckets=("mine",))

    assert found == [b"1", ErrorCode.BUCKET_REFUSED, ErrorCode.BUCKET_REFUSED]
    assert [call["Bucket"] for call in store.calls] == ["mine"]


@pytest.mark.parametrize("announced", [None, 1], ids=["honest", "lying"])
def test_too_many_bytes_are_not_read(announced: int | None) -> None:
    store = Store({("b", "x"): b"x" * (MAX_BYTES + 1), ("b", "y"): b"y" * MAX_BYTES}, announced)

    assert fetch(store, "s3://b/x", "s3://b/y") == [ErrorCode.TOO_MANY_BYTES, b"y" * MAX_BYTES]


@in_loop
async def test_a_store_that_hangs_is_a_timeout_and_keeps_its_turn() -> None:
    release = threading.Event()
    store = Store({("b", "slow"): lambda: release.wait(30) and b"late", ("b", "next"): b"n"})

    async with opened(fetcher_of(store, fetch_timeout_seconds=0.5, connections=1)) as fetcher:
        with pytest.raises(ItemFailure, match=r"^timeout: "):
            await fetcher.fetch("s3://b/slow")
        # The only turn is still taken: the next one waits for it, and that is not counted as its time.
        waiting = asyncio.create_task(fetcher.fetch("s3://b/next"))
        done, _ = await asyncio.wait([waiting], timeout=0.7)
        assert not done
        release.set()
        assert await waiting == b"n"
    assert [call["Key"] for call in store.calls] == ["slow", "next"]


@in_loop
async def test_an_object_of_a_better_lane_does_not_wait_for_those_before_it() -> None:
    release = threading.Event()
    store = Store({("b", name): lambda: release.wait(30) and b"x" for name in ("first", "bulk", "high")})

    async with opened(fetcher_of(store, connections=1)) as fetcher:
        calls = []
        for lane, name in ((Lane.BULK, "first"), (Lane.BULK, "bulk"), (Lane.HIGH, "high")):
            set_lane(lane)
            calls.append(asyncio.create_task(fetcher.fetch(f"s3://b/{name}")))
        await asyncio.sleep(0)  # all of them ask for their turn, in this order
        release.set()
        await asyncio.gather(*calls)

    assert [call["Key"] for call in store.calls] == ["first", "high", "bulk"]


@in_loop
async def test_a_configuration_that_cannot_be_used_is_reported_with_each_item() -> None:
    connect = MagicMock(side_effect=UsageError("cannot use S3: no such profile"))
    limits = S3Limits(max_image_bytes=1, fetch_timeout_seconds=9, connections=1)

    async with opened(S3Fetcher(limits, (), connect)) as fetcher:
        with pytest.raises(ItemFailure, match=r"^access_denied: cannot use S3: no such profile$"):
            await fetcher.fetch("s3://b/x")


@in_loop
async def test_the_client_is_made_once_and_only_when_it_is_needed() -> None:
    connect = MagicMock(return_value=S3Connection(Store({("b", "x"): b"1"}), None, True))
    limits = S3Limits(max_image_bytes=9, fetch_timeout_seconds=9, connections=4)

    async with opened(S3Fetcher(limits, (), connect)) as fetcher:
        connect.assert_not_called()
        await asyncio.gather(*(fetcher.fetch("s3://b/x") for _ in range(9)))

    connect.assert_called_once()


class TestStoreThatIsAway:
    """Three objects that fail in a row are no accident."""

    @staticmethod
    def away() -> Exception:
        return boto.EndpointConnectionError(endpoint_url="http://s")

    def ends(self, answer: Callable[[], Any], count: int, *uris: str) -> tuple[list[Any], Store]:
        """Of so many objects, or of these, one after the other; each costs a second."""
        keys = [f"k{number}" for number in range(count)]
        store = Store({("b", key): answer for key in [*keys, "bad"]} | {("b", "good"): b"g"})
        clock, found = Clock(), []
        breaker = HostBreaker(BreakerPolicy(failing_urls=3), monotonic=clock)

        async def run() -> None:
            async with opened(fetcher_of(store, breaker=breaker, connections=1)) as fetcher:
                for uri in uris or [f"s3://b/{key}" for key in keys]:
                    try:
                        found.append(await fetcher.fetch(uri))
                    except (ItemFailure, SourceUnavailableError) as error:
                        found.append(error)
                    clock.now += 1

        asyncio.run(run())
        return found, store

    def test_objects_wait_for_it_and_then_their_chunk_does(self) -> None:
        """Those that are not asked for keep no turn: with one connection, the test would hang."""
        found, store = self.ends(self.away, 200)

        assert [type(one) for one in found[:2]] == [TransientFailure] * 2  # their own attempts
        assert {type(one) for one in found[2:32]} == {HostLeftAlone}  # no attempts: nobody's fault
        assert {type(one) for one in found[33:]} == {SourceUnavailableError}
        assert "in a row" in str(found[-1])
        assert len(store.calls) < 50

    def test_a_single_bad_object_is_a_row(self) -> None:
        found, _ = self.ends(self.away, 0, *["s3://b/bad"] * 40, "s3://b/good")
        assert {type(one) for one in found[:-1]} == {TransientFailure}
        assert found[-1] == b"g"

    def test_once_it_is_back_all_is_well(self) -> None:
        answers = iter([self.away() for _ in range(4)])
        found, _ = self.ends(lambda: next(answers, b"back"), 20)
        assert found[-10:] == [b"back"] * 10


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


@pytest.mark.parametrize("key", ["../o/x.jpg", "a/../../o/x.jpg", "/../o/x.jpg", ".", "..\\o\\x"])
def test_with_listed_buckets_a_key_that_may_lead_out_of_its_own_is_refused(key: str) -> None:
    store = Store({("mine", key): b"x"})

    assert fetch(store, f"s3://mine/{key}", buckets=("mine",)) == [ErrorCode.BUCKET_REFUSED]
    assert fetch(store, f"s3://mine/{key}") == [b"x"]  # to the letter it is a key like any other
    assert len(store.calls) == 1


@pytest.mark.parametrize("code", ["ExpiredToken", "RequestTimeTooSkewed"])
def test_trouble_of_ours_is_no_fault_of_an_object(code: str) -> None:
    with pytest.raises(SourceUnavailableError, match=code):
        fetch(Store({("b", "x.jpg"): answer(403, code)}), "s3://b/x.jpg")
