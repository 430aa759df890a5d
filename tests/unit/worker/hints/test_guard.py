"""Which messages are hints, and that errors of a broker connection are not taken for messages."""

from __future__ import annotations

import json
from types import SimpleNamespace
from typing import Any
from unittest.mock import Mock

import pytest
from celery import Celery
from kombu.utils.json import loads

from clipfleet.hints import Hints, make_app
from clipfleet.ledger import keys
from clipfleet_worker.hints.guard import HintGuard, problem_of
from tests.support.doubles import Clock


class Message:
    """As kombu hands it to Celery."""

    def __init__(self, body: object = None, content_type: str = "application/json", **headers: Any) -> None:
        self.headers = {"task": keys.WORK_TASK, "id": "1", "timelimit": [None, None], **headers}
        self.body = json.dumps([[], {}, {"chord": None}]).encode() if body is None else body
        self.content_type, self.content_encoding, self.errors = content_type, "utf-8", list[object]()
        self.acknowledged, self.rejected = False, 0

    def reject(self) -> None:
        self.acknowledged, self.rejected = True, self.rejected + 1


class TestProblem:
    def test_what_our_producers_publish_is_a_hint(self) -> None:
        app: Celery = make_app("memory://")
        sent: list[Message] = []
        with app.connection_for_write() as connection, app.producer_pool.acquire() as producer:
            queue = connection.SimpleQueue(keys.QUEUE)
            for task in (keys.WORK_TASK, keys.FINISH_TASK):
                app.send_task(task, producer=producer, argsrepr="-", kwargsrepr="-")
                sent.append(queue.get(timeout=60))
        assert [problem_of(message) for message in sent] == [None, None]
        Hints(app, "memory://").close()

    @pytest.mark.parametrize(
        ("headers", "problem"),
        [
            ({"task": "os.system"}, "another task"),
            ({"task": [keys.WORK_TASK]}, "another task"),
            ({"id": None}, "no id"),
            ({"id": "a\nb"}, "no id"),
            ({"eta": "2999-01-01T00:00:00"}, "it has a time"),
            ({"expires": 1}, "it has a time"),
            ({"timelimit": [1, 1]}, "headers that no hint has"),
            ({"stamps": {"x": "y"}}, "headers that no hint has"),
            ({"argsrepr": "x" * 2000}, "headers that no hint has"),
            ({"content_type": "application/x-python-serialize"}, "no JSON in UTF-8"),
            ({"body": b"[[1], {}, {}]"}, "it has arguments"),
            ({"body": b'[[], {}, {"chord": {"task": "x"}}]'}, "it has arguments"),
            ({"body": "[[], {}, {}]".encode("utf-16")}, "it has arguments"),
            ({"body": b"[" * 1990}, "it has arguments"),
            ({"body": b"[[], {}, {}]" + b" " * 3000}, "it has arguments"),
        ],
    )
    def test_what_is_none(self, headers: dict[str, Any], problem: str) -> None:
        assert problem_of(Message(**headers)) == problem


class TestGuard:
    def test_a_hint_reaches_celery(self) -> None:
        handled: list[object] = []
        guard, message = HintGuard(), Message()
        guard.guarded(handled.append)(message)
        assert (handled, message.rejected, guard.refused) == ([message], 0, {})

    def test_what_celery_cannot_handle_is_dropped_and_errors_of_the_connection_pass(self) -> None:
        guard, message = HintGuard(), Message()
        guard.guarded(Mock(side_effect=KeyError("delivery_info")))(message)
        assert message.rejected == 1
        assert guard.refused == {"Celery cannot handle it (KeyError)": 1}

        with pytest.raises(ConnectionResetError):
            guard.guarded(Mock(side_effect=ConnectionResetError("gone")))(message)

    def test_a_flood_is_logged_once_a_minute(self, caplog: pytest.LogCaptureFixture) -> None:
        clock = Clock()
        guard = HintGuard(clock)
        for _ in range(1000):
            guard.note("no JSON")
        assert len(caplog.records) == 1
        clock.now += 60
        guard.note("no JSON")
        assert "1001 messages" in caplog.records[1].getMessage()
        assert guard.refused == {"no JSON": 1001}


class TestRedisChannel:
    """Kombu's channel as far as the guard sees it: `handlers` read an entry, the transport delivers it."""

    def channel(self, entry: str) -> SimpleNamespace:
        transport = SimpleNamespace(_deliver=Mock())
        channel = SimpleNamespace(connection=transport, handlers={}, deliver=transport._deliver)
        channel.handlers["BRPOP"] = lambda: transport._deliver(loads(entry), keys.QUEUE)
        return channel

    @pytest.mark.parametrize(
        "entry", ["", "there is work", "[" * 100_000, "42", "{}", '{"__type__": "decimal", "__value__": "x"}']
    )
    def test_an_entry_that_is_not_a_message_is_dropped(self, entry: str) -> None:
        channel, guard = self.channel(entry), HintGuard()
        guard.guard_redis(channel)
        channel.handlers["BRPOP"]()
        channel.deliver.assert_not_called()
        assert sum(guard.refused.values()) == 1

    def test_an_error_of_kombu_itself_passes(self) -> None:
        channel = self.channel("{}")
        channel.handlers["BRPOP"] = Mock(side_effect=AttributeError("no attribute 'parse_response'"))
        HintGuard().guard_redis(channel)
        with pytest.raises(AttributeError):
            channel.handlers["BRPOP"]()

    def test_the_channel_of_another_broker_stays_as_it_is(self) -> None:
        channel = SimpleNamespace(connection=SimpleNamespace())
        HintGuard().guard_redis(channel)
        assert vars(channel.connection) == {}
