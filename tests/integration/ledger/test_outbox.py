"""Webhook events in a real Redis: for whom they are, leases, failures, replays, and what may be planted."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import closing
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import redis

from clipfleet.contract.jobs import Job
from clipfleet.contract.webhooks import DecisionEvent, Delivery, Endpoint, EventType, new_secret
from clipfleet.errors import UsageError
from clipfleet.ledger import keys
from clipfleet.ledger.answers import CompleteAnswer
from clipfleet.ledger.events.outbox import MAX_ENDPOINTS, Outbox
from clipfleet.ledger.jobs import Ledger
from tests.support.endpoints import add_endpoint, make_gone
from tests.support.ledger import add_job, claim, claim_finish, make_job, new_token

FLAG, DONE = EventType.DECISION_FLAG, EventType.BATCH_COMPLETED


@pytest.fixture
def outbox(redis_url: str) -> Iterator[Outbox]:
    with closing(Outbox(redis_url)) as outbox:
        yield outbox


@pytest.fixture
def ledger(redis_url: str) -> Iterator[Ledger]:
    with closing(Ledger(redis_url)) as ledger:
        yield ledger


@pytest.fixture
def client(redis_client: redis.Redis) -> Any:
    return redis_client


Add = Callable[..., Endpoint]


@pytest.fixture
def add(outbox: Outbox) -> Add:
    """Adds an endpoint."""

    def add(name: str = "a", **values: Any) -> Endpoint:
        return add_endpoint(outbox, f"https://{name}.example/hook", **values)[0]

    return add


def publish(outbox: Outbox, *names: str, event_type: EventType = DONE) -> None:
    for name in names:
        assert outbox.publish(f"evt-{name}", event_type, json.dumps({"id": name}))


def take(outbox: Outbox, limit: int = 100, **options: Any) -> list[Delivery]:
    return outbox.claim(new_token(), limit, 60, **options)


def ids(deliveries: list[Delivery]) -> list[str]:
    return [one.event_id for one in deliveries]


def values_of(client: Any, key: str) -> str:
    """All that is in a key, as text."""
    reads = {
        "string": client.get, "hash": client.hgetall, "stream": client.xrange,
        "list": lambda name: client.lrange(name, 0, -1), "zset": lambda name: client.zrange(name, 0, -1),
    }  # fmt: skip
    return str(reads[client.type(key)](key))


def let_all_be_due(client: Any, endpoint: Endpoint) -> None:
    key = keys.webhook(endpoint.endpoint_id, keys.PENDING)
    for event in client.zrange(key, 0, -1):
        client.zadd(key, {event: 1})


class TestEndpoints:
    def test_they_are_as_they_were_added(self, outbox: Outbox, add: Add) -> None:
        one = add("a", events=(FLAG, DONE), policies=("uploads",))
        other = add("b")

        assert outbox.endpoints() == [one, other]
        assert outbox.endpoint(other.endpoint_id) == other

    def test_one_that_is_removed_takes_its_deliveries_with_it(
        self, outbox: Outbox, add: Add, client: Any
    ) -> None:
        endpoint = add()
        publish(outbox, *map(str, range(2100)))
        outbox.fail(take(outbox, 1)[0], "HTTP status 500")

        assert outbox.remove_endpoint(endpoint.endpoint_id)
        assert not outbox.remove_endpoint(endpoint.endpoint_id)
        assert outbox.endpoints() == take(outbox) == outbox.failures() == []
        assert [key for key in client.scan_iter() if "webhook" in key or ":event:" in key] == []

    def test_there_is_a_bound(self, outbox: Outbox, add: Add, client: Any) -> None:
        client.hset(keys.WEBHOOKS, mapping={f"whe-{n:012x}": "{}" for n in range(MAX_ENDPOINTS - 1)})
        endpoint = add()

        with pytest.raises(UsageError, match="100 endpoints already"):
            add("b")
        assert outbox.endpoints() == [endpoint]  # the others cannot be read


class TestPublishing:
    def test_an_event_is_for_the_endpoints_that_want_it(self, outbox: Outbox, add: Add) -> None:
        everything, batches = add("a"), add("b", events=(DONE,))
        flags = add("c", events=(FLAG,), policies=("uploads",))
        publish(outbox, "batch")
        for policy in ("uploads", "other"):
            outbox.publish(f"evt-{policy}", FLAG, "{}", policy)

        found: dict[str, set[str]] = {}
        for one in take(outbox):
            found.setdefault(one.endpoint_id, set()).add(one.event_id)
        assert found == {
            everything.endpoint_id: {"evt-batch", "evt-uploads", "evt-other"},
            batches.endpoint_id: {"evt-batch"},
            flags.endpoint_id: {"evt-uploads"},
        }

    def test_once(self, outbox: Outbox, add: Add) -> None:
        add()
        publish(outbox, "1")
        (delivery,) = take(outbox)
        outbox.delivered(delivery)

        assert not outbox.publish("evt-1", DONE, "{}")
        assert take(outbox) == []

    def test_what_is_delivered_is_what_was_published(self, outbox: Outbox, add: Add) -> None:
        endpoint = add()
        data = json.dumps({"text": 'a "quote"\nä \U0001f600'}, ensure_ascii=False, indent=1)
        outbox.publish("evt-1", FLAG, data, "uploads")

        (found,) = take(outbox)

        assert (found.endpoint_id, found.event_id) == (endpoint.endpoint_id, "evt-1")
        assert (found.type, found.data, found.attempts) == (FLAG, data, 0)
        age = datetime.now(UTC) - datetime.fromtimestamp(found.created_ms / 1000, UTC)
        assert timedelta(seconds=-5) < age < timedelta(minutes=5)

    def test_what_is_too_much_is_listed_as_failed(self, outbox: Outbox, add: Add, client: Any) -> None:
        endpoint = add()
        key = keys.webhook(endpoint.endpoint_id, keys.PENDING)
        client.zadd(key, {f"evt-old-{n}": 1e15 for n in range(100_000)})
        publish(outbox, "1")

        (failure,) = outbox.failures(endpoint.endpoint_id)
        assert (failure.event_id, failure.error) == ("evt-1", "too many deliveries were pending")
        client.unlink(key)
        assert outbox.replay(endpoint.endpoint_id) == 1
        assert ids(take(outbox)) == ["evt-1"]

    def test_its_data_stands_once_until_the_last_endpoint_has_it(
        self, outbox: Outbox, add: Add, client: Any
    ) -> None:
        endpoints = [add("a"), add("b"), add("c")]
        make_gone(outbox, endpoints[2].endpoint_id)
        for one in take(outbox):
            outbox.delivered(one)
        gone = keys.event("evt-gone")
        publish(outbox, "1", "2")
        assert sorted(client.scan_iter(keys.event("*"))) == [keys.event("evt-1"), keys.event("evt-2"), gone]

        one, *others = [delivery for delivery in take(outbox) if delivery.event_id == "evt-1"]
        outbox.delivered(one)
        outbox.delivered(one)
        assert [delivery.data for delivery in others] == ['{"id": "1"}']
        outbox.delivered(others[0])
        assert outbox.enable(endpoints[2].endpoint_id)
        assert outbox.replay(endpoints[2].endpoint_id, ["evt-1"]) == 1
        (last,) = take(outbox)
        assert last.data == '{"id": "1"}'
        outbox.delivered(last)

        assert sorted(client.scan_iter(keys.event("*"))) == [keys.event("evt-2"), gone]
        for endpoint in endpoints:
            outbox.remove_endpoint(endpoint.endpoint_id)
        assert list(client.scan_iter(keys.event("*"))) == []

    def test_an_event_that_comes_again_is_not_held_twice(self, outbox: Outbox, add: Add, client: Any) -> None:
        endpoint = add()
        for _ in range(2):
            publish(outbox, "1")
            client.unlink(keys.published("evt-1"))
        outbox.fail(take(outbox)[0], "HTTP status 400")
        publish(outbox, "1")

        (delivery,) = take(outbox)
        assert (delivery.attempts, outbox.failures()) == (0, [])
        outbox.delivered(delivery)
        assert list(client.scan_iter(keys.event("*"))) == []
        assert outbox.backlog() == {endpoint.endpoint_id: 0}


class TestClaims:
    def test_the_same_token_gets_the_same_ones(self, outbox: Outbox, add: Add) -> None:
        add()
        publish(outbox, "1", "2", "3")
        token = new_token()
        first = outbox.claim(token, 2, 60)

        assert outbox.claim(token, 2, 60) == first
        assert ids(take(outbox)) == ["evt-3"]

    def test_a_lease_that_has_expired_is_taken_over(self, outbox: Outbox, add: Add, client: Any) -> None:
        endpoint = add()
        publish(outbox, "1")
        (late,) = take(outbox)
        assert take(outbox) == []
        let_all_be_due(client, endpoint)
        (current,) = take(outbox)

        outbox.delivered(late)
        outbox.retry(late, 0, "late")
        outbox.fail(late, "late")
        outbox.release([late])

        assert outbox.backlog() == {endpoint.endpoint_id: 1}
        assert take(outbox) == []
        outbox.delivered(current)
        assert outbox.backlog() == {endpoint.endpoint_id: 0}

    def test_endpoints_take_turns(self, outbox: Outbox, add: Add) -> None:
        many = add("a", events=(DONE,))
        publish(outbox, *(f"a{n}" for n in range(50)))
        few = add("b", events=(FLAG,))
        publish(outbox, "b0", "b1", event_type=FLAG)

        first = take(outbox, 6)

        assert sorted(one.endpoint_id for one in first) == sorted(
            [*[many.endpoint_id] * 4, *[few.endpoint_id] * 2]
        )

    def test_one_with_many_old_ones_delays_no_other(self, outbox: Outbox, add: Add) -> None:
        add("huge", events=(DONE,))
        publish(outbox, *(f"old-{n}" for n in range(20)))
        small = add("small", events=(FLAG,))
        publish(outbox, "new", event_type=FLAG)

        found = [take(outbox, 1)[0] for _ in range(3)]

        assert small.endpoint_id in [one.endpoint_id for one in found]

    def test_none_of_an_endpoint_that_is_busy(self, outbox: Outbox, add: Add) -> None:
        busy, idle = add("a"), add("b")
        publish(outbox, "1")

        assert [one.endpoint_id for one in take(outbox, busy=[busy.endpoint_id])] == [idle.endpoint_id]

    def test_attempts_are_counted_and_the_next_one_is_due_later(
        self, outbox: Outbox, add: Add, client: Any
    ) -> None:
        endpoint = add()
        publish(outbox, "1")
        outbox.retry(take(outbox)[0], 3600, "HTTP status 503")

        assert take(outbox) == []
        assert outbox.last_errors() == {endpoint.endpoint_id: "HTTP status 503"}
        let_all_be_due(client, endpoint)
        (again,) = take(outbox)
        assert again.attempts == 1
        outbox.delivered(again)
        assert outbox.last_errors() == {}

    def test_what_is_released_is_due_at_once(self, outbox: Outbox, add: Add) -> None:
        add()
        publish(outbox, "1", "2")
        outbox.release(take(outbox))

        assert [(one.event_id, one.attempts) for one in take(outbox)] == [("evt-1", 0), ("evt-2", 0)]


class TestFailures:
    def fail(self, outbox: Outbox, *names: str) -> None:
        publish(outbox, *names)
        for delivery in take(outbox, 2000):
            outbox.fail(delivery, "HTTP status 400")

    def test_they_are_listed_and_replayed_under_the_same_id(self, outbox: Outbox, add: Add) -> None:
        endpoint = add()
        self.fail(outbox, "1", "2", "3")

        assert outbox.failure_counts() == {endpoint.endpoint_id: 3}
        found = outbox.failures(limit=2)
        assert len(found) == 2
        assert {(one.attempts, one.error, one.type) for one in found} == {(1, "HTTP status 400", DONE)}
        assert outbox.replay(endpoint.endpoint_id, ["evt-2", "evt-unknown"]) == 1
        assert [(one.event_id, one.attempts, one.data) for one in take(outbox)] == [
            ("evt-2", 0, '{"id": "2"}')
        ]
        assert outbox.replay(endpoint.endpoint_id) == 2
        assert outbox.replay(endpoint.endpoint_id) == 0
        assert ids(take(outbox)) == ["evt-1", "evt-3"]

    def test_a_range_of_time(self, outbox: Outbox, add: Add, client: Any) -> None:
        endpoint = add()
        self.fail(outbox, *(f"{n:04}" for n in range(1500)))
        now = datetime.now(UTC)
        key = keys.webhook(endpoint.endpoint_id, keys.FAILED)
        hour_ago = (now - timedelta(hours=1)).timestamp() * 1000
        client.zadd(key, {f"evt-{n:04}": hour_ago for n in range(1200)})

        half = now - timedelta(minutes=30)
        assert outbox.replay(endpoint.endpoint_id, until=half - timedelta(hours=2)) == 0
        assert outbox.replay(endpoint.endpoint_id, until=half) == 1200
        assert outbox.replay(endpoint.endpoint_id, since=half) == 300

    def test_they_are_kept_for_a_week(self, outbox: Outbox, add: Add, client: Any) -> None:
        endpoint = add()
        self.fail(outbox, "old")
        key = keys.webhook(endpoint.endpoint_id, keys.FAILED)
        client.zadd(key, {"evt-old": (datetime.now(UTC) - timedelta(days=8)).timestamp() * 1000})

        assert outbox.failures() == []
        self.fail(outbox, "new")
        assert client.zrange(key, 0, -1) == ["evt-new"]
        assert list(client.scan_iter(keys.event("*"))) == [keys.event("evt-new")]

    def test_an_endpoint_that_is_disabled_gets_nothing_until_it_is_enabled(
        self, outbox: Outbox, add: Add
    ) -> None:
        endpoint = add()
        publish(outbox, *map(str, range(2100)))
        (attempt,) = take(outbox, 1)
        outbox.disable(attempt, "HTTP status 410")
        publish(outbox, "later")

        (found,) = outbox.endpoints()
        assert found.disabled == "HTTP status 410"
        assert take(outbox) == []
        assert outbox.failure_counts() == {endpoint.endpoint_id: 2101}
        failures = {one.event_id: (one.attempts, one.error) for one in outbox.failures(limit=3000)}
        assert failures.pop(attempt.event_id) == (1, "HTTP status 410")
        assert set(failures.values()) == {(0, "the endpoint is disabled: HTTP status 410")}
        with pytest.raises(UsageError, match="it is disabled: enable it first"):
            outbox.replay(endpoint.endpoint_id)
        assert outbox.enable(endpoint.endpoint_id)
        assert not outbox.enable(endpoint.endpoint_id)
        assert outbox.replay(endpoint.endpoint_id) == 2101
        assert outbox.backlog() == {endpoint.endpoint_id: 2101}

    def test_what_is_under_way_while_its_endpoint_is_disabled_ends_as_its_attempt_does(
        self, outbox: Outbox, add: Add
    ) -> None:
        endpoint = add()
        publish(outbox, "1", "2", "3", "4")
        gone, arrives, fails = take(outbox, 3)

        outbox.disable(gone, "410 Gone")
        outbox.delivered(arrives)
        outbox.retry(fails, 60, "refused")

        assert ids(take(outbox)) == []
        assert {one.event_id for one in outbox.failures()} == {"evt-1", fails.event_id, "evt-4"}
        assert outbox.backlog()[endpoint.endpoint_id] == 0

    def test_an_attempt_from_before_an_endpoint_was_enabled_does_not_disable_it(
        self, outbox: Outbox, add: Add
    ) -> None:
        endpoint = add()
        publish(outbox, "1", "2", "3")
        gone, late, arrived = take(outbox, 3)
        outbox.disable(gone, "410 Gone")
        outbox.enable(endpoint.endpoint_id)

        outbox.disable(late, "410 Gone")
        outbox.delivered(arrived)

        assert outbox.endpoint(endpoint.endpoint_id).disabled is None
        assert ids(take(outbox)) == ["evt-2", "evt-3"], "they are sent anew"
        assert [one.event_id for one in outbox.failures()] == ["evt-1"]

    def test_a_call_that_is_repeated_after_an_endpoint_was_enabled_does_not_disable_it(
        self, outbox: Outbox, add: Add
    ) -> None:
        endpoint = add()
        publish(outbox, "1", "2")
        (gone,) = take(outbox, 1)
        outbox.disable(gone, "410 Gone")
        outbox.enable(endpoint.endpoint_id)

        outbox.disable(gone, "410 Gone")

        assert outbox.endpoint(endpoint.endpoint_id).disabled is None

    def test_what_is_under_way_while_its_endpoint_is_removed_leaves_nothing(
        self, outbox: Outbox, add: Add, client: Any
    ) -> None:
        endpoint = add()
        publish(outbox, "1", "2", "3", "4", "5")
        one, two, three, four, five = take(outbox)
        outbox.remove_endpoint(endpoint.endpoint_id)

        outbox.delivered(one)
        outbox.retry(two, 0, "refused")
        outbox.fail(three, "refused")
        outbox.release([four])
        outbox.disable(five, "410 Gone")

        assert outbox.endpoints() == take(outbox) == outbox.failures() == []
        assert outbox.last_errors() == {}
        assert [key for key in client.scan_iter() if "webhook" in key or ":event:" in key] == []
        with pytest.raises(UsageError, match="no such endpoint"):
            outbox.enable(endpoint.endpoint_id)


class TestSecrets:
    def test_they_lie_apart_from_all_that_is_read_by_others(
        self, outbox: Outbox, add: Add, client: Any
    ) -> None:
        endpoint = add()
        (secret,) = outbox.secrets(endpoint)
        newer = new_secret()
        outbox.rotate(endpoint.endpoint_id, newer)
        publish(outbox, "1")
        take(outbox)

        for key in client.scan_iter():
            if key != keys.webhook_secrets(endpoint.endpoint_id):
                dumped = values_of(client, key)
                assert key.startswith("clipfleet:")
                assert secret not in dumped, key
                assert newer not in dumped, key
        assert client.pttl(keys.webhook_secrets(endpoint.endpoint_id)) > 399 * 86400 * 1000

    def test_of_two_rotations_at_a_time_one_is_made(
        self, outbox: Outbox, add: Add, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endpoint = add()
        (oldest,) = outbox.secrets(endpoint)
        first, second = new_secret(), new_secret()
        with monkeypatch.context() as patch:
            patch.setattr(outbox, "endpoint", lambda endpoint_id: endpoint)  # as both have read it
            outbox.rotate(endpoint.endpoint_id, first)
            outbox.rotate(endpoint.endpoint_id, first)  # a call that is repeated
            with pytest.raises(UsageError, match="by another caller at this moment"):
                outbox.rotate(endpoint.endpoint_id, second)

        assert outbox.secrets(outbox.endpoint(endpoint.endpoint_id)) == (first, oldest)
        outbox.finish_rotation(endpoint.endpoint_id)
        assert outbox.secrets(outbox.endpoint(endpoint.endpoint_id)) == (first,)

    def test_a_rotation_brings_back_no_endpoint(
        self, outbox: Outbox, add: Add, client: Any, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        endpoint = add()
        outbox.remove_endpoint(endpoint.endpoint_id)
        monkeypatch.setattr(outbox, "endpoint", lambda endpoint_id: endpoint)

        with pytest.raises(UsageError, match="by another caller at this moment"):
            outbox.rotate(endpoint.endpoint_id, new_secret())
        assert outbox.endpoints() == []
        assert not client.exists(keys.webhook_secrets(endpoint.endpoint_id))

    def test_a_rotation_keeps_an_endpoint_disabled(self, outbox: Outbox, add: Add) -> None:
        endpoint = add()
        make_gone(outbox, endpoint.endpoint_id)
        outbox.rotate(endpoint.endpoint_id, new_secret())

        assert outbox.endpoint(endpoint.endpoint_id).disabled == "HTTP status 410"

    def test_what_is_planted_is_no_secret(self, outbox: Outbox, add: Add, client: Any) -> None:
        endpoint = add()
        key = keys.webhook_secrets(endpoint.endpoint_id)
        client.hset(key, endpoint.secret_ids[0], new_secret())
        assert outbox.secrets(endpoint) == ()
        client.unlink(key)
        assert outbox.secrets(endpoint) == ()
        client.set(key, "x")
        assert outbox.secrets(endpoint) == ()

        newer = new_secret()
        outbox.rotate(endpoint.endpoint_id, newer)
        assert outbox.secrets(outbox.endpoint(endpoint.endpoint_id)) == (newer,)


class TestPlanted:
    @pytest.mark.parametrize("kind", ["set", "string"])
    def test_keys_of_another_kind_are_replaced(
        self, outbox: Outbox, ledger: Ledger, add: Add, client: Any, kind: str
    ) -> None:
        endpoint = add()
        suffixes = [keys.webhook(endpoint.endpoint_id, suffix) for suffix in keys.WEBHOOK_SUFFIXES]
        for number, key in enumerate(
            [keys.DECISIONS, keys.WEBHOOKS_OFF, keys.WEBHOOK_TROUBLE, keys.WEBHOOK_TURNS, *suffixes]
        ):
            client.unlink(key)
            client.set(key, "x") if kind == "string" else client.sadd(key, "x")
            add_job(ledger, f"job-{number}")
            claimed = claim(ledger)
            event = DecisionEvent("flag", f"evt-{number}", "uploads", "{}")
            answer = ledger.complete(claimed, ok=10, failed=0, codes={}, work_seconds={}, decisions=[event])
            assert answer is CompleteAnswer.FINISHING, key
            found = take(outbox)
            assert f"evt-{number}" in ids(found), key
            for delivery in found:
                outbox.delivered(delivery)
            ledger.cancel(f"job-{number}", ttl_seconds=60)

    def test_an_endpoint_whose_lists_hold_anything_harms_no_job(
        self, outbox: Outbox, ledger: Ledger, add: Add, client: Any
    ) -> None:
        add()
        client.hset(keys.WEBHOOKS, "whe-000000000000", '{"events": [NaN, null, {}], "policies": [1e999]}')
        add_job(ledger, "plain")

        ledger.cancel("plain", ttl_seconds=60)

        assert ledger.status("plain").state == "cancelled"
        assert [json.loads(one.data)["job_id"] for one in take(outbox)] == ["plain"]

    @pytest.mark.parametrize("suffix", [keys.PENDING, keys.FAILED, None])
    def test_an_event_is_not_lost_with_a_key_that_is_repaired(
        self, outbox: Outbox, add: Add, client: Any, suffix: str | None
    ) -> None:
        endpoint = add()
        client.set(keys.webhook(endpoint.endpoint_id, suffix) if suffix else keys.event("evt-1"), "x")

        assert outbox.publish("evt-1", DONE, "{}")
        assert ids(take(outbox)) == ["evt-1"]

    def test_what_cannot_be_read_blocks_nothing(self, outbox: Outbox, add: Add, client: Any) -> None:
        endpoint = add()
        client.hset(keys.WEBHOOKS, "whe-000000000000", "[1, 2")
        for name, body in {"a": "x", "b": "no.type\n1\n{}", "c": "batch.completed\nsoon\n{}"}.items():
            client.zadd(keys.webhook(endpoint.endpoint_id, keys.PENDING), {f"evt-{name}": 1})
            client.hset(keys.event(f"evt-{name}"), "body", body)
        publish(outbox, "good")

        assert ids(take(outbox)) == ["evt-good"]
        assert outbox.endpoints() == [endpoint]
        assert outbox.backlog()[endpoint.endpoint_id] == 1

    def test_a_stream_that_takes_no_more_entries_is_begun_anew(
        self, ledger: Ledger, outbox: Outbox, add: Add, client: Any
    ) -> None:
        add()
        client.xadd(keys.DECISIONS, {"x": "y"}, id="18446744073709551615-18446744073709551615")
        add_job(ledger)
        event = DecisionEvent("flag", "evt-1", "uploads", "{}")

        answer = ledger.complete(claim(ledger), ok=10, failed=0, codes={}, work_seconds={}, decisions=[event])

        assert answer is CompleteAnswer.FINISHING
        assert [fields["status"] for _, fields in client.xrange(keys.DECISIONS)] == ["flag"]
        assert ids(take(outbox)) == ["evt-1"]
        assert ledger.status("job").state == "finishing"

    @pytest.mark.parametrize("planted", ["many", "1.5", ""])
    def test_one_whose_count_of_attempts_cannot_be_read_is_listed_as_failed(
        self, outbox: Outbox, add: Add, client: Any, planted: str
    ) -> None:
        endpoint = add()
        publish(outbox, "a", "b")
        client.hset(keys.webhook(endpoint.endpoint_id, keys.ATTEMPTS), "evt-a", planted)

        for delivery in take(outbox):
            outbox.retry(delivery, 0, "refused")

        assert ids(take(outbox)) == ["evt-b"]
        (failure,) = outbox.failures()
        assert (failure.event_id, failure.attempts) == ("evt-a", 1)
        assert outbox.replay(endpoint.endpoint_id) == 1
        assert [one.attempts for one in take(outbox)] == [0]


class TestDecisions:
    def events(self, count: int, name: str = "d") -> list[DecisionEvent]:
        statuses = ("flag", "allow", "undecided", "review")
        return [
            DecisionEvent(statuses[n % 4], f"evt-{name}-{n}", "uploads", json.dumps({"n": n}))
            for n in range(count)
        ]

    def complete(self, ledger: Ledger, claimed: Any, events: list[DecisionEvent]) -> CompleteAnswer:
        return ledger.complete(
            claimed, ok=8, failed=2, codes={"timeout": 2}, work_seconds={"fetch": 1.0}, decisions=events
        )

    def test_they_are_announced_once_with_their_chunk(
        self, ledger: Ledger, outbox: Outbox, add: Add, client: Any
    ) -> None:
        add(events=(FLAG,))
        add_job(ledger, chunks=2)
        claimed = claim(ledger)

        assert self.complete(ledger, claimed, self.events(6)) is CompleteAnswer.DONE
        assert self.complete(ledger, claimed, self.events(6)) is CompleteAnswer.ALREADY

        entries = [fields for _, fields in client.xrange(keys.DECISIONS)]
        assert [json.loads(one["record"])["n"] for one in entries] == [*range(6)]
        assert {(one["status"], one["policy"]) for one in entries} == {
            (status, "uploads") for status in ("flag", "allow", "undecided", "review")
        }
        assert ids(take(outbox)) == ["evt-d-0", "evt-d-4"]
        assert ledger.status("job").codes == {"timeout": 2}

    def test_a_whole_large_chunk(self, ledger: Ledger, outbox: Outbox, add: Add, client: Any) -> None:
        add()
        add_job(ledger)

        answer = self.complete(ledger, claim(ledger), self.events(4096))

        assert answer is CompleteAnswer.FINISHING
        assert client.xlen(keys.DECISIONS) == 4096
        assert len(take(outbox, 5000)) == 4096

    @pytest.mark.parametrize("end", ["cancelled", "stale"])
    def test_of_a_chunk_that_does_not_count_nothing_is_announced(
        self, ledger: Ledger, outbox: Outbox, add: Add, client: Any, end: str
    ) -> None:
        add(events=(FLAG,))
        add_job(ledger, chunks=2)
        claimed = claim(ledger)
        if end == "cancelled":
            ledger.cancel("job", ttl_seconds=60)
        else:
            client.hset(keys.job("job"), "generation", 1)

        assert self.complete(ledger, claimed, self.events(4)) == end
        assert client.xlen(keys.DECISIONS) == 0
        assert take(outbox) == []


class TestEndsOfJobs:
    def test_one_event_for_each_generation(self, ledger: Ledger, outbox: Outbox, add: Add) -> None:
        add(events=(EventType.JOB_COMPLETED,))
        add_job(ledger, "nightly.1")
        ledger.complete(claim(ledger), ok=7, failed=3, codes={"timeout": 3}, work_seconds={})
        finish = claim_finish(ledger)
        for _ in range(2):
            ledger.finish(finish, ttl_seconds=60)

        (found,) = take(outbox)

        assert json.loads(found.data) == {
            "job_id": "nightly.1", "generation": 0, "state": "completed_with_errors", "total": 10, "ok": 7,
            "failed": 3, "output": "/out", "reason": "",
        }  # fmt: skip
        assert "." not in found.event_id

    def test_early_ends(self, ledger: Ledger, outbox: Outbox, add: Add) -> None:
        add()
        add_job(ledger)
        ledger.cancel("job", ttl_seconds=60)

        (found,) = take(outbox)
        assert (found.type, json.loads(found.data)["state"]) == ("job.cancelled", "cancelled")

    @pytest.mark.parametrize(
        "job_id",
        ["door-0123456789abcdef", "evaluate-texts-0123456789abcdef-abcdef", "replay-old-0123456789abcdef"],
    )
    def test_steps_of_other_programs_are_not_told(
        self, ledger: Ledger, outbox: Outbox, add: Add, job_id: str
    ) -> None:
        add()
        jobs: list[Job] = [make_job(job_id), make_job(f"{job_id[:6]}")]
        for job in jobs:
            add_job(ledger, job=job)
            ledger.cancel(job.job_id, ttl_seconds=60)

        assert [json.loads(one.data)["job_id"] for one in take(outbox)] == [jobs[1].job_id]
