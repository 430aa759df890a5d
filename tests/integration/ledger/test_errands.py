"""What is left to do for ended jobs: users are told of the ends, outputs are swept; until it is done."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from amqp.exceptions import AccessRefused, PreconditionFailed
from celery import Celery
from kombu.entity import Queue

from clipfleet.contract.jobs import Job
from clipfleet.hints import make_app
from clipfleet.ledger import keys
from clipfleet.ledger.errands import Announcement, Errands
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet_worker.chunk.job_contexts import JobContexts
from clipfleet_worker.finish.errands import Announcer, Sweeper
from tests.support import jobs
from tests.support import ledger as steps
from tests.support.ledger import add_job, claim, claim_finish, complete, let_errands_be_due
from tests.support.waiting import wait_until

TASK = "myapp.tasks.handle"


@pytest.fixture
def errands(redis_url: str) -> Iterator[Errands]:
    with closing(Errands(redis_url)) as errands:
        yield errands


@pytest.fixture
def app(redis_url: str) -> Iterator[Celery]:
    with make_app(redis_url) as app:
        yield app


@pytest.fixture
def announcer(errands: Errands, app: Celery) -> Announcer:
    return Announcer(errands, app)


def submit(ledger: Ledger, **values: Any) -> None:
    """A job of one chunk whose end is announced."""
    add_job(ledger, job=steps.make_job().model_copy(update={"on_finished": TASK, **values}))


def finish(ledger: Ledger) -> None:
    complete(ledger, claim(ledger), ok=7, failed=3)
    ledger.finish(claim_finish(ledger), ttl_seconds=600)


@pytest.fixture
def ended(ledger: Ledger) -> None:
    """A job has ended, and its user is not told yet."""
    submit(ledger)
    finish(ledger)


def announcement(errands: Errands) -> Announcement | None:
    """The next one that is due."""
    return errands.claim_announcement(60)


def cancel(ledger: Ledger) -> None:
    ledger.cancel("job", ttl_seconds=600)


def fail(ledger: Ledger) -> None:
    ledger.fail("job", "output_unreachable: away", ttl_seconds=600)


ENDS = [
    (finish, {"state": "completed_with_errors", "ok": 7, "failed": 3, "reason": ""}),
    (cancel, {"state": "cancelled", "ok": 0, "failed": 0, "reason": ""}),
    (fail, {"state": "failed", "ok": 0, "failed": 0, "reason": "output_unreachable: away"}),
]


@pytest.mark.parametrize(("end", "event"), ENDS)
def test_every_end_is_announced_once_with_its_counts(
    ledger: Ledger, errands: Errands, end: Callable[[Ledger], None], event: dict[str, Any]
) -> None:
    submit(ledger)
    assert announcement(errands) is None

    end(ledger)
    cancel(ledger)  # a repetition changes nothing

    found = announcement(errands)
    assert found is not None
    assert (found.task, found.queue) == (TASK, "celery")
    assert found.event == {"job_id": "job", "generation": 0, "total": 10, "output": "/out", **event}
    assert announcement(errands) is None


def test_a_job_that_asks_for_none_has_none(ledger: Ledger, errands: Errands) -> None:
    submit(ledger, on_finished=None)
    finish(ledger)

    assert announcement(errands) is None


@pytest.mark.usefixtures("ended")
def test_one_that_was_not_sent_comes_until_it_is_dropped(errands: Errands, redis_client: redis.Redis) -> None:
    first = announcement(errands)
    assert announcement(errands) is None

    let_errands_be_due(redis_client)
    again = announcement(errands)
    assert again == first
    assert again is not None
    errands.drop(again)
    errands.drop(again)

    let_errands_be_due(redis_client)
    assert announcement(errands) is None


def task_id(job_id: str, generation: int) -> str:
    return Announcement("", TASK, "celery", {"job_id": job_id, "generation": generation}).task_id


def test_an_id_repeats_for_the_same_end_only() -> None:
    assert task_id("a", 0) == task_id("a", 0)
    assert len({task_id("a", 0), task_id("a", 1), task_id("b", 0)}) == 3


def test_celery_understands_the_task(ledger: Ledger, announcer: Announcer, redis_client: redis.Redis) -> None:
    submit(ledger, on_finished_queue="ends")
    finish(ledger)
    announcer.run_once()

    message = json.loads(redis_client.lpop("ends"))  # type: ignore[arg-type]
    assert (message["headers"]["task"], message["headers"]["id"]) == (TASK, task_id("job", 0))
    assert not redis_client.exists(keys.ANNOUNCEMENTS)


def test_a_stop_announces_a_late_end(ledger: Ledger, announcer: Announcer, redis_client: redis.Redis) -> None:
    announcer.start()
    submit(ledger)
    finish(ledger)

    announcer.stop()

    assert redis_client.llen("celery") == 1


@pytest.mark.usefixtures("ended")
def test_a_broker_may_be_away(errands: Errands, redis_client: redis.Redis, announcer: Announcer) -> None:
    with make_app("redis://127.0.0.1:1/0") as away:
        Announcer(errands, away).run_once()
    assert redis_client.zcard(keys.ANNOUNCEMENTS) == 1

    let_errands_be_due(redis_client)
    announcer.run_once()

    assert redis_client.llen("celery") == 1


@pytest.mark.usefixtures("ended")
def test_rabbitmq_may_refuse_it(announcer: Announcer, app: Celery, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AccessRefused("ACCESS_REFUSED - access to queue 'celery' refused")

    monkeypatch.setattr(app, "send_task", refuse)

    assert not announcer.do_one()


@pytest.mark.usefixtures("ended")
def test_a_queue_that_the_user_made_otherwise_is_taken_as_it_is(
    errands: Errands, announcer: Announcer, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    """RabbitMQ refuses to declare a queue again with other properties, a quorum queue for example."""
    sent: list[str] = []

    def send_task(name: str, *, queue: Queue, **_: object) -> None:
        if not queue.no_declare:
            raise PreconditionFailed("PRECONDITION_FAILED - inequivalent arg 'x-queue-type'")
        sent.append(f"{name} to {queue.name}")

    monkeypatch.setattr(app, "send_task", send_task)

    assert announcer.do_one()
    assert sent == [f"{TASK} to celery"]
    assert announcement(errands) is None


# --- sweeps ---


@dataclass(frozen=True)
class Bench:
    ledger: Ledger
    client: redis.Redis
    sweeper: Sweeper
    folder: Path

    def add(self, job_id: str = "job", *, name: str = "") -> Job:
        """A job of one chunk, with what a worker was writing when it was killed."""
        job = jobs.make_job(self.folder / (name or job_id), job_id=job_id)
        jobs.place_job(FolderOutput(Path(job.output)), job)
        add_job(self.ledger, job=job)
        self.leave_scratch(job)
        return job

    def leave_scratch(self, job: Job) -> None:
        (Path(job.output) / objects.TMP).mkdir(exist_ok=True)
        (Path(job.output) / objects.TMP / "half-written").write_bytes(b"half")

    def is_clean(self, job: Job) -> bool:
        return not [*(Path(job.output) / objects.TMP).iterdir()]

    def sweep_all(self) -> int:
        count = 0
        while self.sweeper.do_one():
            count += 1
        return count

    def sweep_later(self) -> int:
        let_errands_be_due(self.client)
        return self.sweep_all()


@pytest.fixture
def bench(
    ledger: Ledger, redis_client: redis.Redis, errands: Errands, store: RedisStore, tmp_path: Path
) -> Bench:
    sweeper = Sweeper(errands, JobContexts(ledger, store, (tmp_path,)))
    return Bench(ledger, redis_client, sweeper, tmp_path)


@pytest.mark.parametrize("end", [cancel, fail])
def test_an_unfinished_job_is_swept_at_once_and_again(bench: Bench, end: Callable[[Ledger], None]) -> None:
    job = bench.add()
    claim(bench.ledger)
    assert bench.sweep_all() == 0
    end(bench.ledger)

    assert bench.sweep_all() == 1
    assert bench.is_clean(job)

    bench.leave_scratch(job)  # somebody was late, and was killed
    assert bench.sweep_all() == 0
    assert bench.sweep_later() == 1
    assert bench.is_clean(job)
    assert bench.client.exists(keys.SWEEPS) == 0


def test_a_finished_job_is_swept_once_more_later(bench: Bench) -> None:
    job = bench.add()
    finish(bench.ledger)

    assert bench.sweep_all() == 0  # its finisher has done so
    assert bench.sweep_later() == 1
    assert bench.is_clean(job)


def test_an_output_that_holds_another_job_by_now_is_left_alone(bench: Bench) -> None:
    old = bench.add("old", name="output")
    bench.ledger.cancel("old", ttl_seconds=600)
    assert bench.sweep_all() == 1
    output = FolderOutput(Path(old.output))
    output.clear()
    output.remove(objects.JOB_FILE)
    new = bench.add("new", name="output")

    assert bench.sweep_later() == 1
    assert not bench.is_clean(new)


def test_a_job_that_was_retried_is_left_to_its_next_end(bench: Bench) -> None:
    job = bench.add()
    cancel(bench.ledger)
    bench.ledger.drafts.begin("job", "token")
    bench.ledger.drafts.retry("job", "token", steps.draft(1), generation=1)

    assert bench.sweep_all() == 0
    assert not bench.is_clean(job)

    cancel(bench.ledger)
    assert bench.sweep_all() == 1
    assert bench.is_clean(job)


def test_an_output_that_is_away_is_swept_when_it_is_back(bench: Bench) -> None:
    job = bench.add()
    cancel(bench.ledger)
    hidden = Path(job.output).rename(bench.folder / "unmounted")

    assert bench.sweep_all() == 1
    hidden.rename(job.output)
    assert bench.sweep_all() == 0  # not at once
    assert bench.sweep_later() == 1
    assert bench.is_clean(job)


def test_rows_in_redis_leave_nothing_to_sweep(bench: Bench) -> None:
    add_job(bench.ledger, job=jobs.make_job("redis://", job_id="job"))
    cancel(bench.ledger)

    assert bench.client.exists(keys.SWEEPS) == 0


def test_an_output_that_hangs_delays_no_announcement_and_little_of_the_stop(
    bench: Bench, announcer: Announcer, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, may_end = threading.Event(), threading.Event()

    def hang(_: FolderOutput) -> None:
        hangs.set()
        may_end.wait(60)

    monkeypatch.setattr(FolderOutput, "sweep_scratch", hang)
    monkeypatch.setattr("clipfleet_worker.finish.errands._STOP_SECONDS", 0.1)
    sweeper = Sweeper(bench.sweeper._errands, bench.sweeper._contexts)
    bench.add("hanging")
    bench.ledger.cancel("hanging", ttl_seconds=600)
    sweeper.start()
    announcer.start()
    assert hangs.wait(60)

    submit(bench.ledger)
    finish(bench.ledger)
    wait_until(lambda: bench.client.llen("celery") == 1, "the end is announced")
    announcer.stop()
    sweeper.stop()

    assert not may_end.is_set()  # nobody waited for the sweep
    may_end.set()
    wait_until(lambda: not sweeper._thread.is_alive(), "the sweep has ended")
