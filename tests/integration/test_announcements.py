"""Ends of jobs of which the user's Celery task is to be told: noted once, handed out until they are sent."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import redis
from amqp.exceptions import AccessRefused, PreconditionFailed
from celery import Celery
from kombu.entity import Queue

from clipfleet import keys
from clipfleet.announcements import Announcement, Announcements
from clipfleet.hints import make_app
from clipfleet.ledger import Ledger
from clipfleet_worker.announcer import Announcer
from tests.support.ledger import claim, claim_finish, complete, let_announcement_claims_expire, make_job
from tests.support.waiting import wait_until

TASK = "myapp.tasks.handle"


@pytest.fixture
def announcements(redis_url: str) -> Iterator[Announcements]:
    announcements = Announcements(redis_url)
    yield announcements
    announcements.close()


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    app = make_app(redis_url)
    yield app
    app.close()


def submit(ledger: Ledger, job_id: str = "job", **values: Any) -> None:
    """A job of one chunk with ten items, sealed."""
    job = make_job(job_id).model_copy(update={"on_finished": TASK, **values})
    ledger.submit(job)
    ledger.stage(job_id, 0, 1, 10)
    ledger.seal(job_id, 1, 10)


def finish(ledger: Ledger) -> None:
    complete(ledger, claim(ledger), ok=7, failed=3)
    ledger.finish(claim_finish(ledger), ttl_seconds=600)


def cancel(ledger: Ledger) -> None:
    ledger.cancel("job", ttl_seconds=600)


def fail(ledger: Ledger) -> None:
    ledger.fail("job", "output_unreachable: away", ttl_seconds=600)


@pytest.mark.parametrize(
    ("end", "event"),
    [
        (finish, {"state": "completed_with_errors", "ok": 7, "failed": 3, "reason": ""}),
        (cancel, {"state": "cancelled", "ok": 0, "failed": 0, "reason": ""}),
        (fail, {"state": "failed", "ok": 0, "failed": 0, "reason": "output_unreachable: away"}),
    ],
)
def test_every_end_is_announced_once_with_its_counts(
    ledger: Ledger, announcements: Announcements, end: Callable[[Ledger], None], event: dict[str, Any]
) -> None:
    submit(ledger)
    assert announcements.claim(60) is None

    end(ledger)
    ledger.cancel("job", ttl_seconds=600)  # a repetition changes nothing

    found = announcements.claim(60)
    assert found is not None
    assert (found.task, found.queue) == (TASK, "celery")
    assert found.event == {"job_id": "job", "generation": 0, "total": 10, "output": "/out", **event}
    assert announcements.claim(60) is None


def test_a_job_that_asks_for_none_has_none(ledger: Ledger, announcements: Announcements) -> None:
    submit(ledger, on_finished=None)
    finish(ledger)

    assert announcements.claim(60) is None


def test_what_was_not_sent_is_handed_out_again_until_it_is_dropped(
    ledger: Ledger, announcements: Announcements, redis_client: redis.Redis
) -> None:
    submit(ledger)
    finish(ledger)
    first = announcements.claim(60)
    assert announcements.claim(60) is None

    let_announcement_claims_expire(redis_client)
    again = announcements.claim(60)
    assert again == first
    assert again is not None
    announcements.drop(again)
    announcements.drop(again)

    let_announcement_claims_expire(redis_client)
    assert announcements.claim(60) is None


def test_an_id_repeats_for_the_same_end_only() -> None:
    def task_id(job_id: str, generation: int) -> str:
        return Announcement("", TASK, "celery", {"job_id": job_id, "generation": generation}).task_id

    assert task_id("a", 0) == task_id("a", 0)
    assert len({task_id("a", 0), task_id("a", 1), task_id("b", 0)}) == 3


def test_the_announcer_sends_a_task_that_celery_understands(
    ledger: Ledger, announcements: Announcements, app: Celery, redis_client: redis.Redis
) -> None:
    submit(ledger, on_finished_queue="ends")
    finish(ledger)
    announcer = Announcer(announcements, app)

    assert announcer.announce()
    assert not announcer.announce()

    message = json.loads(redis_client.lpop("ends"))  # type: ignore[arg-type]
    assert message["headers"]["task"] == TASK
    assert message["headers"]["id"] == Announcement("", "", "", {"job_id": "job", "generation": 0}).task_id
    assert redis_client.zcard(keys.ANNOUNCEMENTS) == 0
    redis_client.delete("_kombu.binding.ends")


def test_what_is_noted_just_before_a_worker_stops_is_still_sent(
    ledger: Ledger, announcements: Announcements, app: Celery, redis_client: redis.Redis
) -> None:
    announcer = Announcer(announcements, app)
    announcer.start()
    submit(ledger)
    finish(ledger)

    announcer.stop()

    assert redis_client.llen("celery") == 1
    redis_client.delete("celery", "_kombu.binding.celery")


def test_a_broker_that_is_away_costs_no_announcement(
    ledger: Ledger, announcements: Announcements, redis_client: redis.Redis, app: Celery
) -> None:
    submit(ledger)
    finish(ledger)
    away = make_app("redis://127.0.0.1:1/0")
    assert not Announcer(announcements, away).announce()
    away.close()
    assert redis_client.zcard(keys.ANNOUNCEMENTS) == 1

    let_announcement_claims_expire(redis_client)
    announcer = Announcer(Announcements(ledger._url), app)
    announcer.start()
    wait_until(lambda: redis_client.llen("celery") == 1, "the end is announced")
    announcer.stop()
    redis_client.delete("celery", "_kombu.binding.celery")


def test_a_refusal_of_rabbitmq_is_no_end_of_the_worker(
    ledger: Ledger, announcements: Announcements, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AccessRefused("ACCESS_REFUSED - access to queue 'celery' refused")

    monkeypatch.setattr(app, "send_task", refuse)
    submit(ledger)
    finish(ledger)

    assert not Announcer(announcements, app).announce()


def test_a_queue_that_the_user_made_otherwise_is_taken_as_it_is(
    ledger: Ledger, announcements: Announcements, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ refuses to declare a queue again with other properties, a quorum queue for example."""
    sent: list[str] = []

    def send_task(name: str, *, queue: Queue, **_: object) -> None:
        if not queue.no_declare:
            raise PreconditionFailed("PRECONDITION_FAILED - inequivalent arg 'x-queue-type'")
        sent.append(f"{name} to {queue.name}")

    monkeypatch.setattr(app, "send_task", send_task)
    submit(ledger)
    finish(ledger)

    assert Announcer(announcements, app).announce()
    assert sent == [f"{TASK} to celery"]
    assert announcements.claim(60) is None
