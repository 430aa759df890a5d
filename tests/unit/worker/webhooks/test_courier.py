"""The courier between an outbox and a sender that are doubles: what it claims, records and does not delay."""

from __future__ import annotations

import asyncio
import json
import logging
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

import pytest
from typing_extensions import override

from clipfleet.contract.webhooks import Delivery, Endpoint, EventType, new_secret, secret_id
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.events.outbox import Outbox
from clipfleet.webhooks.schedule import DELAYS_SECONDS, MAX_ATTEMPTS
from clipfleet.webhooks.signing import verify
from clipfleet_worker.webhooks import courier
from clipfleet_worker.webhooks.courier import Courier
from clipfleet_worker.webhooks.poster import Answer
from tests.support.waiting import wait_until

HANG = Answer("hangs")
TAKEN = Answer(status=200)
SECRET, NEWER = new_secret(), new_secret()
NOW = datetime(2026, 12, 3, tzinfo=UTC)


def endpoint(number: int, **changes: Any) -> Endpoint:
    made = Endpoint.new(f"https://{number}.example/hook", SECRET, now=NOW)
    return made.model_copy(update={"endpoint_id": f"whe-{number:012x}", **changes})


def rotated(to: Endpoint) -> Endpoint:
    """An endpoint that is signed with `NEWER`, too."""
    return to.model_copy(update={"secret_ids": (secret_id(NEWER), *to.secret_ids)})


def delivery(number: int, to: Endpoint, **changes: Any) -> Delivery:
    given = {
        "endpoint_id": to.endpoint_id, "event_id": f"evt-{number}", "type": EventType.DECISION_FLAG,
        "data": f'{{"n":{number}}}', "created_ms": 1_796_300_000_000, "attempts": 0, "token": "t",
    }  # fmt: skip
    return Delivery(**{**given, **changes})


class ScriptedOutbox(Outbox):
    """Hands out what a test has put into it, and remembers what it is told. Redis may be away."""

    def __init__(self) -> None:
        self.known: list[Endpoint] = []
        self.due: list[Delivery] = []
        self.told: list[tuple[Any, ...]] = []
        self.claims: list[tuple[str, int]] = []
        self.is_away = self.loses_claims = False
        self.reads = 0
        self.stored_secrets = (SECRET,)
        self.secret_reads = 0

    @override
    def secrets(self, endpoint: Endpoint) -> tuple[str, ...]:
        self._require_redis()
        self.secret_reads += 1
        return tuple(one for one in self.stored_secrets if secret_id(one) in endpoint.secret_ids)

    @override
    def endpoints(self) -> list[Endpoint]:
        self._require_redis()
        self.reads += 1
        return list(self.known)

    @override
    def claim(
        self, token: str, limit: int, lease_seconds: float, busy: Collection[str] = ()
    ) -> list[Delivery]:
        self._require_redis()
        self.claims.append((token, limit))
        if self.loses_claims:
            raise RedisUnavailableError("no reply")
        found = [one for one in self.due if one.endpoint_id not in busy][:limit]
        self.due = [one for one in self.due if one not in found]
        return found

    @override
    def delivered(self, delivery: Delivery) -> None:
        self._tell("delivered", delivery.event_id)

    @override
    def retry(self, delivery: Delivery, delay_seconds: float, error: str) -> None:
        self._tell("retry", delivery.event_id, delay_seconds, error)

    @override
    def fail(self, delivery: Delivery, error: str) -> None:
        self._tell("fail", delivery.event_id, error)

    @override
    def release(self, deliveries: Sequence[Delivery], delay_seconds: float = 0.0) -> None:
        self._tell("release", *(one.event_id for one in deliveries))

    @override
    def disable(self, delivery: Delivery, error: str) -> None:
        self._tell("disable", delivery.event_id, error)

    def _tell(self, *what: Any) -> None:
        self._require_redis()
        self.told.append(what)

    def _require_redis(self) -> None:
        if self.is_away:
            raise RedisUnavailableError("away")


class ScriptedPoster:
    """Answers by URL; at first with 200."""

    def __init__(self) -> None:
        self.answers: dict[str, Answer | Exception] = {}
        self.sent: list[tuple[str, Mapping[str, str], bytes]] = []
        self.open: Counter[str] = Counter()
        self.most_open: Counter[str] = Counter()
        self.is_closed = False

    async def start(self) -> None: ...

    async def close(self) -> None:
        self.is_closed = True

    async def post(self, url: str, headers: Mapping[str, str], body: bytes) -> Answer:
        self.sent.append((url, headers, body))
        self.open[url] += 1
        self.most_open[url] = max(self.most_open[url], self.open[url])
        try:
            answer = self.answers.get(url, TAKEN)
            if answer is HANG:
                await asyncio.Event().wait()
            await asyncio.sleep(0)
        finally:
            self.open[url] -= 1
        if isinstance(answer, Exception):
            raise answer
        return answer


class Bench:
    """A running courier."""

    def __init__(self) -> None:
        self.outbox, self.poster = ScriptedOutbox(), ScriptedPoster()
        poster: Any = self.poster
        self.courier = Courier(self.outbox, poster, poll_seconds=0.01, lease_seconds=5, stop_seconds=0.2)

    def start(self, *endpoints: Endpoint) -> None:
        self.outbox.known = list(endpoints)
        self.courier.start()

    def told(self, count: int = 1) -> list[tuple[Any, ...]]:
        """What the outbox is told; waits for so much."""
        wait_until(lambda: len(self.outbox.told) >= count, f"{count} ends are recorded")
        return self.outbox.told


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.outbox.is_away = False
    bench.courier.stop()
    assert not bench.courier._thread.is_alive()


class TestEnds:
    def test_a_delivery_is_signed_with_all_secrets_and_recorded(self, bench: Bench) -> None:
        to = rotated(endpoint(1))
        bench.outbox.stored_secrets = (NEWER, SECRET)
        bench.outbox.due = [delivery(7, to)]
        bench.start(to)

        assert bench.told() == [("delivered", "evt-7")]
        ((url, headers, body),) = bench.poster.sent
        assert (url, headers["webhook-id"]) == (to.url, "evt-7")
        for secret in (NEWER, SECRET):
            assert verify(body, headers, secret)["data"] == {"n": 7}
        assert json.loads(body)["type"] == "decision.flag"

    def test_secrets_are_read_once_and_after_a_rotation(self, bench: Bench) -> None:
        to = endpoint(1)
        bench.start(to)
        wait_until(lambda: bench.outbox.reads >= 3, "the endpoints are read again")
        assert bench.outbox.secret_reads == 1

        bench.outbox.stored_secrets = (NEWER, SECRET)
        bench.outbox.known = [rotated(to)]
        wait_until(lambda: bench.outbox.secret_reads == 2, "the secrets are read again")
        bench.outbox.due = [delivery(7, to)]
        bench.told()
        ((_, headers, body),) = bench.poster.sent
        assert verify(body, headers, NEWER)["id"] == "evt-7"

    def test_without_a_secret_nothing_is_sent(self, bench: Bench) -> None:
        to = endpoint(1)
        bench.outbox.stored_secrets = ()
        bench.outbox.due = [delivery(7, to)]
        bench.start(to)

        ((what, event_id, _, error),) = bench.told()
        assert (what, event_id, bench.poster.sent) == ("retry", "evt-7", [])
        assert f"`clipfleet webhooks rotate {to.endpoint_id}`" in error

    def test_a_failed_attempt_is_tried_again_later(self, bench: Bench) -> None:
        to = endpoint(1)
        bench.poster.answers[to.url] = Answer("1.example: HTTP status 500", 500)
        bench.outbox.due = [delivery(7, to, attempts=3)]
        bench.start(to)

        ((what, event_id, delay, error),) = bench.told()
        assert (what, event_id, error) == ("retry", "evt-7", "1.example: HTTP status 500")
        assert 0.8 * DELAYS_SECONDS[3] <= delay <= DELAYS_SECONDS[3]

    def test_retry_after_is_kept(self, bench: Bench) -> None:
        to = endpoint(1)
        bench.poster.answers[to.url] = Answer("busy", 429, 77)
        bench.outbox.due = [delivery(7, to)]
        bench.start(to)

        assert bench.told() == [("retry", "evt-7", 77, "busy")]

    def test_after_the_last_attempt_it_has_failed(self, bench: Bench) -> None:
        to = endpoint(1)
        bench.poster.answers[to.url] = Answer("no answer")
        bench.outbox.due = [delivery(7, to, attempts=MAX_ATTEMPTS - 1)]
        bench.start(to)

        assert bench.told() == [("fail", "evt-7", "no answer")]

    def test_a_receiver_that_is_gone_is_disabled(self, bench: Bench) -> None:
        to = endpoint(1)
        bench.poster.answers[to.url] = Answer("HTTP status 410", 410)
        bench.outbox.due = [delivery(7, to)]
        bench.start(to)

        assert bench.told() == [("disable", "evt-7", "HTTP status 410")]

    def test_an_event_that_is_damaged_fails_and_holds_up_no_other(self, bench: Bench) -> None:
        to = endpoint(1)
        bench.outbox.due = [delivery(1, to, data="{"), delivery(2, to)]
        bench.start(to)

        assert sorted(bench.told(2)) == [
            ("delivered", "evt-2"), ("fail", "evt-1", "the data of the event is damaged")
        ]  # fmt: skip

    def test_a_fault_of_ours_is_logged_and_tried_again(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        to = endpoint(1)
        bench.poster.answers[to.url] = KeyError("bug")
        bench.outbox.due = [delivery(7, to)]
        bench.start(to)

        ((what, _, _, error),) = bench.told()
        assert (what, error) == ("retry", "a fault of clipfleet: KeyError")
        assert "Traceback" in caplog.text

    def test_no_secret_is_logged(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        caplog.set_level(logging.DEBUG, logger=courier.__name__)
        to, gone = endpoint(1), endpoint(2)
        bench.poster.answers[gone.url] = Answer("gone", 410)
        bench.outbox.due = [delivery(1, to), delivery(2, gone)]
        bench.start(to, gone)

        bench.told(2)
        assert "evt-1" in caplog.text
        assert "whsec" not in caplog.text


class TestEndpoints:
    def test_without_endpoints_nothing_is_claimed(self, bench: Bench) -> None:
        bench.start()

        wait_until(lambda: bench.outbox.reads >= 3, "it looks for endpoints")
        assert bench.outbox.claims == []

    def test_one_that_is_added_later_is_found(self, bench: Bench) -> None:
        first, second = endpoint(1), endpoint(2)
        bench.start(first)
        bench.outbox.due = [delivery(2, second)]

        assert bench.told() == [("release", "evt-2")], "not known yet"
        bench.outbox.known.append(second)
        reads = bench.outbox.reads
        wait_until(lambda: bench.outbox.reads >= reads + 2, "the endpoints are read again")
        bench.outbox.due = [delivery(3, second)]
        wait_until(lambda: ("delivered", "evt-3") in bench.outbox.told, "it is known")

    def test_one_that_hangs_delays_no_other(self, bench: Bench) -> None:
        bad, good = endpoint(1), endpoint(2)
        bench.poster.answers[bad.url] = HANG
        bench.outbox.due = [delivery(n, bad) for n in range(50)] + [delivery(n, good) for n in range(50, 90)]
        bench.start(bad, good)

        assert {what for what, *_ in bench.told(40)} == {"delivered"}
        assert bench.poster.most_open[bad.url] == 2
        assert 2 <= bench.poster.most_open[good.url] <= 16

    def test_one_that_is_away_is_asked_once_in_a_while(self, bench: Bench) -> None:
        away, good = endpoint(1), endpoint(2)
        bench.poster.answers[away.url] = Answer("no answer")
        bench.outbox.due = [delivery(n, away) for n in range(50)] + [delivery(n, good) for n in range(50, 90)]
        bench.start(away, good)

        wait_until(lambda: sum(what == "delivered" for what, *_ in bench.outbox.told) == 40, "the others")
        assert len([url for url, *_ in bench.poster.sent if url == away.url]) <= 4


class TestRedis:
    def test_an_end_is_recorded_once_redis_is_back(self, bench: Bench) -> None:
        to = endpoint(1)
        bench.outbox.due = [delivery(7, to)]

        def taken_while_away(url: str) -> Answer:
            bench.outbox.is_away = True
            return TAKEN

        bench.poster.answers = _Answering(taken_while_away)  # type: ignore[assignment]
        bench.start(to)
        wait_until(lambda: bench.outbox.is_away, "it was taken")
        assert bench.outbox.told == []
        bench.outbox.is_away = False

        assert bench.told() == [("delivered", "evt-7")]
        assert len(bench.poster.sent) == 1

    def test_a_claim_without_an_answer_is_repeated_with_its_token(self, bench: Bench) -> None:
        to = endpoint(1)
        bench.outbox.loses_claims = True
        bench.outbox.due = [delivery(7, to)]
        bench.start(to)
        wait_until(lambda: len(bench.outbox.claims) >= 2, "it claims again")
        bench.outbox.loses_claims = False

        assert bench.told() == [("delivered", "evt-7")]
        tokens = [token for token, _ in bench.outbox.claims]
        assert tokens[0] == tokens[1]

    def test_one_warning_for_each_time_it_is_away(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.outbox.is_away = True
        bench.start(endpoint(1))
        wait_until(lambda: "webhooks wait: away" in caplog.text, "it says so")
        bench.outbox.is_away = False
        wait_until(lambda: bench.outbox.claims, "it claims")

        assert caplog.text.count("webhooks wait") == 1


class TestStop:
    def test_what_is_due_is_delivered_at_the_end(self) -> None:
        bench = Bench()
        courier: Any = bench.courier
        courier._poll_seconds = 3600
        to = endpoint(1)
        bench.start(to)
        wait_until(lambda: bench.outbox.claims, "it has looked, and rests for an hour")
        bench.outbox.due = [delivery(7, to)]
        bench.courier.stop()

        assert bench.outbox.told == [("delivered", "evt-7")]
        assert bench.poster.is_closed

    def test_a_wake_is_a_look(self) -> None:
        bench = Bench()
        courier: Any = bench.courier
        courier._poll_seconds = 3600
        to = endpoint(1)
        bench.start(to)
        wait_until(lambda: bench.outbox.claims, "it has looked, and rests for an hour")
        bench.outbox.due = [delivery(7, to)]
        bench.courier.wake()

        assert bench.told() == [("delivered", "evt-7")]
        bench.courier.stop()

    def test_what_is_not_answered_is_released(self) -> None:
        bench = Bench()
        to = endpoint(1)
        bench.poster.answers[to.url] = HANG
        bench.outbox.due = [delivery(7, to)]
        bench.start(to)
        wait_until(lambda: bench.poster.sent, "it is sent")
        bench.courier.stop()

        assert bench.outbox.told == [("release", "evt-7")]
        assert not bench.courier._thread.is_alive()

    def test_a_courier_that_was_not_started_stops(self) -> None:
        courier = Bench().courier
        courier.wake()
        courier.stop()


class _Answering(dict[str, Any]):
    """Answers that are made when they are asked for."""

    def __init__(self, answer: Any) -> None:
        super().__init__()
        self._answer = answer

    @override
    def get(self, key: str, default: Any = None) -> Any:
        return self._answer(key)
