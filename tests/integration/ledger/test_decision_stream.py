"""The stream of decisions in a real Redis: groups share it, nothing that was not acknowledged is lost."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
import redis

from clipfleet.ledger import keys
from clipfleet.ledger.events import decision_stream
from clipfleet.ledger.events.decision_stream import DecisionStream, StreamedDecision


@pytest.fixture
def client(redis_client: redis.Redis) -> Any:
    return redis_client


Reader = Callable[..., DecisionStream]


@pytest.fixture
def reader(redis_url: str) -> Iterator[Reader]:
    """Makes readers of a group, `team` by default."""
    with ExitStack() as stack:

        def make(group: str = "team", **options: Any) -> DecisionStream:
            stream = DecisionStream(redis_url, group, **options)
            stack.callback(stream.close)
            return stream

        yield make


def add(client: Any, *numbers: int) -> None:
    for number in numbers:
        record = json.dumps({"decision_id": f"dec-{number}"})
        client.xadd(keys.DECISIONS, {"status": "flag", "policy": "uploads", "record": record})
    client.pexpire(keys.DECISIONS, 60_000)


def numbers_of(found: Any) -> list[int]:
    return [int(one.record["decision_id"].removeprefix("dec-")) for one in found]


def read(stream: DecisionStream) -> list[StreamedDecision]:
    return list(stream.read(wait=False))


def take(stream: DecisionStream) -> list[int]:
    """Read and acknowledge."""
    found = read(stream)
    stream.acknowledge(found)
    return numbers_of(found)


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A reader is dead as soon as it has read."""
    monkeypatch.setattr(decision_stream, "_IDLE_MS", 0)


class TestGroups:
    def test_a_new_one_begins_with_what_comes_next_or_with_the_oldest(
        self, client: Any, reader: Reader
    ) -> None:
        add(client, 1, 2)
        late, whole = reader("late"), reader("whole", from_start=True)

        assert (take(late), take(whole)) == ([], [1, 2])
        add(client, 3)
        assert (take(late), take(whole)) == ([3], [3])

    def test_readers_of_one_share_the_decisions(self, client: Any, reader: Reader) -> None:
        first, second = reader(from_start=True), reader(from_start=True)
        add(client, 1, 2)
        assert take(first) == [1, 2]
        add(client, 3)

        assert (take(second), take(first)) == ([3], [])

    def test_one_continues_where_it_stopped(self, client: Any, reader: Reader) -> None:
        first = reader(from_start=True)
        add(client, 1)
        assert take(first) == [1]
        first.close()
        add(client, 2)

        assert take(reader()) == [2]

    def test_a_group_that_reads_before_there_are_decisions(self, client: Any, reader: Reader) -> None:
        stream = reader()
        assert read(stream) == []
        assert client.pttl(keys.DECISIONS) > 0

        add(client, 1)

        assert take(stream) == [1]


class TestDeadReaders:
    def test_what_they_did_not_acknowledge_goes_to_another_one(
        self, client: Any, reader: Reader, at_once: None
    ) -> None:
        dead = reader(from_start=True)
        add(client, 1, 2)
        found = read(dead)
        dead.acknowledge(found[:1])
        add(client, 3)

        other = reader()

        assert take(other) == [2]
        assert take(other) == [3]
        assert take(other) == []

    def test_those_of_a_living_one_stay_with_it(self, client: Any, reader: Reader) -> None:
        living = reader(from_start=True)
        add(client, 1)
        found = read(living)

        assert take(reader()) == []
        living.acknowledge(found)

    def test_a_reader_that_ends_leaves_no_trace_unless_it_has_not_acknowledged(
        self, client: Any, reader: Reader, at_once: None
    ) -> None:
        tidy, killed = reader(), reader(from_start=True)
        add(client, 1)
        read(killed)
        killed.close()
        add(client, 2)

        assert take(tidy) == [1]
        assert take(tidy) == [2]
        tidy.close()

        names = [one["pending"] for one in client.xinfo_consumers(keys.DECISIONS, "team")]
        assert names == [0]  # of the killed one


class TestLosses:
    def test_decisions_that_were_removed_before_the_group_read_them_are_reported(
        self, client: Any, reader: Reader
    ) -> None:
        gaps: list[str] = []
        first = reader(from_start=True)
        add(client, 1)
        assert take(first) == [1]
        add(client, 2, 3, 4)
        client.xtrim(keys.DECISIONS, maxlen=1, approximate=False)

        assert take(reader(on_gap=lambda: gaps.append("gap"))) == [4]
        assert gaps == ["gap"]

    def test_also_of_a_reader_that_was_too_slow(self, client: Any, reader: Reader) -> None:
        gaps: list[str] = []
        slow = reader(from_start=True, on_gap=lambda: gaps.append("gap"))
        add(client, 1)
        assert take(slow) == [1]
        add(client, 2, 3, 4)
        client.xtrim(keys.DECISIONS, maxlen=1, approximate=False)

        assert take(slow) == [4]
        assert take(slow) == []
        assert gaps == ["gap"]

    def test_also_of_a_reader_that_died_before_it_has_handled_them(
        self, client: Any, reader: Reader, at_once: None
    ) -> None:
        gaps: list[str] = []
        add(client, 1, 2)
        read(reader(from_start=True))
        client.xtrim(keys.DECISIONS, maxlen=1, approximate=False)

        assert take(reader(on_gap=lambda: gaps.append("gap"))) == [2]
        assert gaps == ["gap"]

    def test_the_ledger_removes_whole_nodes_of_the_stream(self, client: Any, reader: Reader) -> None:
        gaps: list[str] = []
        stream = reader(from_start=True, on_gap=lambda: gaps.append("gap"))
        assert take(stream) == []
        add(client, *range(450))
        client.xtrim(keys.DECISIONS, maxlen=100, approximate=True)

        assert take(stream)[-1] == 449
        assert gaps == ["gap"]

    def test_nothing_is_reported_of_what_the_group_has_read(self, client: Any, reader: Reader) -> None:
        gaps: list[str] = []
        add(client, 1, 2, 3)
        client.xtrim(keys.DECISIONS, maxlen=1, approximate=False)
        fresh = reader(on_gap=lambda: gaps.append("gap"))
        assert take(fresh) == []
        add(client, 4)
        assert take(fresh) == [4]
        client.xtrim(keys.DECISIONS, maxlen=0, approximate=False)

        assert take(reader(on_gap=lambda: gaps.append("gap"))) == []
        assert gaps == []

    def test_a_redis_that_has_lost_everything_is_read_from_its_start(
        self, client: Any, reader: Reader
    ) -> None:
        stream = reader()
        add(client, 1)
        read(stream)
        client.delete(keys.DECISIONS)
        add(client, 2)

        found = take(stream) or take(stream)

        assert found == [2]

    def test_what_is_no_decision_is_left_out_once(self, client: Any, reader: Reader, at_once: None) -> None:
        stream = reader(from_start=True)
        for fields in ({"x": "y"}, {"status": "flag", "record": "["}, {"status": "odd", "record": "{}"}):
            client.xadd(keys.DECISIONS, fields)
        add(client, 1)

        assert take(stream) == [1]
        assert client.xpending(keys.DECISIONS, "team")["pending"] == 0
