"""The stream of decisions in a real Redis: groups share it, nothing is lost with a reader or with Redis."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import ExitStack, closing
from typing import Any

import pytest
import redis

from clipfleet.contract.webhooks import DecisionEvent
from clipfleet.ledger import keys
from clipfleet.ledger.events import decision_stream
from clipfleet.ledger.events.decision_stream import DecisionStream
from clipfleet.ledger.jobs import Ledger
from tests.support.ledger import add_job, claim


@pytest.fixture
def client(redis_client: redis.Redis) -> Any:
    return redis_client


@pytest.fixture
def ledger(redis_url: str) -> Iterator[Ledger]:
    with closing(Ledger(redis_url)) as ledger:
        yield ledger


class Readers:
    """Readers of the stream, closed at the end."""

    def __init__(self, url: str, opened: ExitStack) -> None:
        self._url = url
        self._opened = opened
        self.gaps = 0

    def open(self, group: str = "g", **options: Any) -> DecisionStream:
        stream = DecisionStream(self._url, group, on_gap=self._note_gap, **options)
        self._opened.callback(stream.close)
        return stream

    def _note_gap(self) -> None:
        self.gaps += 1


@pytest.fixture
def readers(redis_url: str) -> Iterator[Readers]:
    with ExitStack() as opened:
        yield Readers(redis_url, opened)


def announce(ledger: Ledger, *numbers: int) -> None:
    """Decisions with these numbers, of one chunk."""
    job_id = f"job-{numbers[0]}"
    add_job(ledger, job_id)
    events = [DecisionEvent("flag", f"evt-{job_id}-{n}", "uploads", json.dumps({"n": n})) for n in numbers]
    ledger.complete(claim(ledger), ok=10, failed=0, codes={}, work_seconds={}, decisions=events)


def read(stream: DecisionStream) -> list[int]:
    """The numbers of the next entries, which stay unacknowledged."""
    return [one.record["n"] for one in stream.read(wait=False)]


def test_a_new_group_begins_at_the_end_or_at_the_start(ledger: Ledger, readers: Readers) -> None:
    announce(ledger, 1, 2)
    late, whole = readers.open("late"), readers.open("whole", from_start=True)

    assert read(late) == []
    assert read(whole) == [1, 2]
    announce(ledger, 3)
    assert read(late) == [3]


def test_readers_of_a_group_share_and_continue(ledger: Ledger, readers: Readers) -> None:
    one, other = readers.open(from_start=True), readers.open(from_start=True)
    announce(ledger, 1, 2)

    found = one.read(wait=False)
    one.acknowledge(found)
    announce(ledger, 3)

    assert read(other) == [3]
    assert read(one) == []
    assert read(readers.open("another", from_start=True)) == [1, 2, 3]


def test_what_a_reader_did_not_acknowledge_goes_to_another_one(
    ledger: Ledger, readers: Readers, monkeypatch: pytest.MonkeyPatch
) -> None:
    announce(ledger, 1, 2)
    dead = readers.open(from_start=True)
    assert read(dead) == [1, 2]
    living = readers.open()

    assert read(living) == []
    monkeypatch.setattr(decision_stream, "_IDLE_MS", 0)
    assert read(living) == [1, 2]


def test_a_reader_that_leaves_takes_nothing_with_it(
    ledger: Ledger, readers: Readers, client: Any, redis_url: str
) -> None:
    announce(ledger, 1)
    done, dead = DecisionStream(redis_url, "g", from_start=True), DecisionStream(redis_url, "g")
    done.acknowledge(done.read(wait=False))
    done.close()
    announce(ledger, 2)
    assert read(dead) == [2]
    dead.close()

    (consumer,) = client.xinfo_consumers(keys.DECISIONS, "g")
    assert consumer["pending"] == 1


def test_entries_that_were_removed_before_they_were_read_are_noticed(
    ledger: Ledger, readers: Readers, client: Any
) -> None:
    announce(ledger, 1)
    read(readers.open(from_start=True))
    announce(ledger, 2)
    client.xtrim(keys.DECISIONS, maxlen=1, approximate=False)
    read(readers.open())
    assert readers.gaps == 0, "the group had read the one that is gone"

    announce(ledger, 3, 4)
    client.xtrim(keys.DECISIONS, maxlen=1, approximate=False)
    assert read(readers.open()) == [4]
    assert readers.gaps == 1


def test_a_redis_that_has_lost_the_stream_is_read_again(
    ledger: Ledger, readers: Readers, client: Any
) -> None:
    stream = readers.open(from_start=True)
    announce(ledger, 1)
    assert read(stream) == [1]
    client.unlink(keys.DECISIONS)
    announce(ledger, 2)

    found = [*read(stream), *read(stream)]

    assert found == [2]


def test_what_is_no_decision_is_left_out(ledger: Ledger, readers: Readers, client: Any) -> None:
    stream = readers.open(from_start=True)
    read(stream)
    for fields in ({"x": "y"}, {"status": "maybe", "record": "{}"}, {"status": "flag", "record": "[1]"}):
        client.xadd(keys.DECISIONS, fields)
    announce(ledger, 1)

    assert read(stream) == [1]
    (group,) = client.xinfo_groups(keys.DECISIONS)
    assert group["pending"] == 1
