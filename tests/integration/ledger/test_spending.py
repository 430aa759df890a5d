"""Quotas of the gateway's keys in a real Redis: counted once, per key and UTC day, for all gateways."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from typing import Any

import pytest

from clipfleet.contract.jobs import Lane
from clipfleet.ledger import keys
from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.keys.key import Key, made_key
from clipfleet_gateway.keys.quotas import Quotas


def key_with(quota: int | None, name: str = "nightly") -> Key:
    return made_key(name, "0" * 64, datetime.now(UTC), lane=Lane.NORMAL, quota=quota, sources=())


@pytest.fixture
def quotas(redis_url: str) -> Iterator[Quotas]:
    with Quotas(redis_url) as quotas:
        yield quotas


def refusal(quotas: Quotas, key: Key, count: int, once: str | None = None) -> ApiError | None:
    try:
        quotas.spend(key, count, once=once)
    except ApiError as error:
        return error
    return None


def test_up_to_the_quota_and_what_exceeds_it_counts_nothing(quotas: Quotas) -> None:
    key = key_with(10)

    assert refusal(quotas, key, 7) is None
    error = refusal(quotas, key, 4)
    assert refusal(quotas, key, 3) is None
    assert refusal(quotas, key, 1) is not None

    assert error is not None
    assert (int(error.status), error.code) == (429, "quota_exceeded")
    assert 1 <= int(error.headers["Retry-After"]) <= 86_400
    assert "10 items a day" in error.message


def test_an_act_is_counted_once(quotas: Quotas) -> None:
    key = key_with(10)

    answers = [refusal(quotas, key, 6, "batch_1") for _ in range(3)]
    more = refusal(quotas, key, 5, "batch_2"), refusal(quotas, key, 4, "batch_3"), refusal(quotas, key, 1)

    assert answers == [None] * 3
    assert [one is None for one in more] == [False, True, False]


def test_of_an_act_that_grows_what_it_has_grown_by_is_counted(quotas: Quotas) -> None:
    key = key_with(10)

    answers = [refusal(quotas, key, count, "job_1") for count in (4, 8, 6, 8, 11, 10)]

    assert [one is None for one in answers] == [True, True, True, True, False, True]
    assert refusal(quotas, key, 1) is not None


def test_an_act_that_was_refused_is_tried_again(quotas: Quotas, redis_client: Any) -> None:
    key = key_with(10)
    quotas.spend(key, 10)
    assert refusal(quotas, key, 1, "batch_1") is not None

    redis_client.delete(keys.spent(key.name))  # the day is over

    assert refusal(quotas, key, 10, "batch_1") is None
    assert refusal(quotas, key, 1) is not None


def test_each_key_has_its_own(quotas: Quotas) -> None:
    quotas.spend(key_with(5), 5)
    quotas.spend(key_with(5, "other"), 5, once="batch_1")

    assert refusal(quotas, key_with(5, "other"), 1) is not None
    assert refusal(quotas, key_with(5), 1, "batch_1") is not None


def test_without_a_quota_nothing_is_counted_or_asked() -> None:
    with Quotas("redis://127.0.0.1:1/0") as quotas:
        quotas.spend(key_with(None), 1_000_000)


def test_the_count_ends_with_the_day_and_acts_are_remembered(quotas: Quotas, redis_client: Any) -> None:
    quotas.spend(key_with(5), 3, once="batch_1")
    quotas.spend(key_with(5), 1)

    seconds, microseconds = redis_client.time()
    left_ms = 86_400_000 - (seconds * 1000 + microseconds // 1000) % 86_400_000
    assert redis_client.get(keys.spent("nightly")) == "4"
    assert abs(redis_client.pttl(keys.spent("nightly")) - left_ms) < 60_000
    assert redis_client.pttl(keys.act("nightly", "once:batch_1")) > 29 * 86_400_000
    (call,) = redis_client.keys(keys.act("nightly", "call:*"))
    assert 0 < redis_client.pttl(call) <= 120_000


def test_many_at_a_time_never_exceed_it(quotas: Quotas) -> None:
    key = key_with(100)
    with ThreadPoolExecutor(8) as threads:
        answers = [*threads.map(lambda _: refusal(quotas, key, 3), range(60))]

    assert answers.count(None) == 33
