"""The front that breaks S3 for other tests: what it lets through arrives as it was, the rest is noticed."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from botocore.exceptions import BotoCoreError, ClientError

from clipfleet.s3.client import make_client
from tests.support.s3 import S3Bucket
from tests.support.s3_front import Fault, Rule, S3Front

BODY = bytes(range(256)) * 1000


@pytest.fixture
def client(front: S3Front) -> Any:
    """One that calls through the front, once."""
    return make_client(attempts=1)


def put(client: Any, s3: S3Bucket, key: str = "x", **more: str) -> None:
    client.put_object(Bucket=s3.name, Key=key, Body=BODY, **more)


def get(client: Any, s3: S3Bucket, key: str = "x", **more: str) -> bytes:
    data: bytes = client.get_object(Bucket=s3.name, Key=key, **more)["Body"].read()
    return data


def test_without_rules_nothing_changes(client: Any, s3: S3Bucket) -> None:
    key = "a b/käse+50%25=&?#.bin"
    put(client, s3, key, IfNoneMatch="*")

    assert get(client, s3, key) == BODY
    assert client.head_object(Bucket=s3.name, Key=key)["ContentLength"] == len(BODY)
    assert get(client, s3, key, Range="bytes=5-9") == BODY[5:10]
    with pytest.raises(ClientError, match="PreconditionFailed"):
        put(client, s3, key, IfNoneMatch="*")
    assert [one["Key"] for one in client.list_objects_v2(Bucket=s3.name)["Contents"]] == [key]
    client.delete_objects(Bucket=s3.name, Delete={"Objects": [{"Key": key}]})
    assert s3.keys() == []


def test_what_the_store_has_done_is_recorded(front: S3Front, client: Any, s3: S3Bucket) -> None:
    put(client, s3, IfNoneMatch="*")
    with pytest.raises(ClientError, match="PreconditionFailed"):
        put(client, s3, IfNoneMatch="*")
    with front.broken_by(Rule(fault=Fault.DONE_BUT_500)), pytest.raises(ClientError, match="InternalError"):
        put(client, s3)
    client.delete_object(Bucket=s3.name, Key="x")

    done = [(one.request.method, one.request.is_conditional) for one in front.done]
    assert done == [("PUT", True), ("PUT", False), ("DELETE", False)]
    assert {one.request.path for one in front.done} == {f"{s3.name}/x"}
    assert front.done[0].content == front.done[1].content == hashlib.sha256(BODY).hexdigest()


def test_each_fault_is_noticed_once(front: S3Front, client: Any, s3: S3Bucket) -> None:
    """One test for all: a bucket and a client for each would take most of the time."""
    impatient = make_client(attempts=1, read_timeout_seconds=0.5)
    in_answer = {Fault.RESET_IN_ANSWER, Fault.TRUNCATED, Fault.STALL_IN_ANSWER, Fault.WRONG_ETAG}
    for fault in Fault:
        if fault in in_answer:
            s3.put("x", BODY)
        front.place(Rule(fault=fault, path=f"{s3.name}/x"))
        caller = impatient if "STALL" in fault.name else client

        if fault is Fault.WRONG_ETAG:
            assert client.head_object(Bucket=s3.name, Key="x")["ETag"] == f'"{"0" * 32}"'
        else:
            with pytest.raises((BotoCoreError, ClientError)) as told:
                get(caller, s3) if fault in in_answer else put(caller, s3)
            if isinstance(told.value, ClientError):
                assert str(told.value.response["ResponseMetadata"]["HTTPStatusCode"]) in fault.value
        assert front.hits[fault], fault
        front.heal()

        was_done = fault.name.startswith("DONE_BUT") or fault in in_answer
        assert s3.keys() == (["x"] if was_done else []), fault
        put(client, s3)
        assert get(client, s3) == BODY
        s3.client.delete_object(Bucket=s3.name, Key="x")


def broken(client: Any, s3: S3Bucket, *keys: str, **more: str) -> list[str]:
    """The keys whose puts fail."""
    failed = []
    for key in keys:
        try:
            put(client, s3, key, **more)
        except ClientError:
            failed.append(key)
    return failed


def test_rules_look_at_method_path_condition_and_key(front: S3Front, client: Any, s3: S3Bucket) -> None:
    s3.put("part-1", BODY)
    front.place(
        Rule(fault=Fault.INTERNAL_ERROR, method="PUT", path="*/part-*", conditional=True),
        Rule(fault=Fault.EXPIRED_TOKEN, access_key="someone-else"),
    )

    assert broken(client, s3, "part-2", "other", IfNoneMatch="*") == ["part-2"]
    assert broken(client, s3, "part-3") == []
    client.head_object(Bucket=s3.name, Key="part-1")
    assert front.hits == {Fault.INTERNAL_ERROR: 1}


def test_rules_count(front: S3Front, client: Any, s3: S3Bucket) -> None:
    front.place(Rule(fault=Fault.SLOW_DOWN, skip=1, times=2))

    assert broken(client, s3, "a", "b", "c", "d") == ["b", "c"]


def test_chance_follows_from_the_seed(front: S3Front, client: Any, s3: S3Bucket) -> None:
    names, rule = [f"key-{n}" for n in range(40)], Rule(fault=Fault.UNAVAILABLE, method="PUT", chance=0.5)
    with front.broken_by(rule):
        first = broken(client, s3, *names)
    with S3Front(s3.endpoint, seed=1) as other, pytest.MonkeyPatch.context() as patch:
        other.place(rule)
        for name, value in other.environment({}).items():
            patch.setenv(name, value)
        second = broken(make_client(attempts=1), s3, *reversed(names))

    assert 5 < len(first) < 35
    assert sorted(second) == sorted(first)
