"""What is left to do for ended jobs: users are told of the ends, outputs are swept; until it is done."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
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
from clipfleet.outputs.folder import FolderOutput
from clipfleet_worker.chunk.job_contexts import JobContexts
from clipfleet_worker.finish.errands import Announcer, Sweeper
from tests.support import jobs
from tests.support import ledger as steps
from tests.support.ledger import add_job, claim, claim_finish, complete, draft, let_errands_be_due, make_job
from tests.support.waiting import wait_until

TASK = "myapp.tasks.handle"


@pytest.fixture
def errands(redis_url: str) -> Iterator[Errands]:
    errands = Errands(redis_url)
    yield errands
    errands.close()


@pytest.fixture
def contexts(ledger: Ledger, redis_url: str, tmp_path: Path) -> Iterator[JobContexts]:
    store = RedisStore(redis_url)
    yield JobContexts(ledger, store, (tmp_path,))
    store.close()


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


def announcement(errands: Errands) -> Announcement | None:
    """The next one that is due."""
    return errands.claim_announcement(60)


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
    ledger: Ledger, errands: Errands, end: Callable[[Ledger], None], event: dict[str, Any]
) -> None:
    submit(ledger)
    assert announcement(errands) is None

    end(ledger)
    ledger.cancel("job", ttl_seconds=600)  # a repetition changes nothing

    found = announcement(errands)
    assert found is not None
    assert (found.task, found.queue) == (TASK, "celery")
    assert found.event == {"job_id": "job", "generation": 0, "total": 10, "output": "/out", **event}
    assert announcement(errands) is None


def test_a_job_that_asks_for_none_has_none(ledger: Ledger, errands: Errands) -> None:
    submit(ledger, on_finished=None)
    finish(ledger)

    assert announcement(errands) is None


def test_what_was_not_sent_is_handed_out_again_until_it_is_dropped(
    ledger: Ledger, errands: Errands, redis_client: redis.Redis
) -> None:
    submit(ledger)
    finish(ledger)
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


def test_an_id_repeats_for_the_same_end_only() -> None:
    def task_id(job_id: str, generation: int) -> str:
        return Announcement("", TASK, "celery", {"job_id": job_id, "generation": generation}).task_id

    assert task_id("a", 0) == task_id("a", 0)
    assert len({task_id("a", 0), task_id("a", 1), task_id("b", 0)}) == 3


def test_the_announcer_sends_a_task_that_celery_understands(
    ledger: Ledger, errands: Errands, app: Celery, redis_client: redis.Redis
) -> None:
    submit(ledger, on_finished_queue="ends")
    finish(ledger)
    Announcer(errands, app).turn()

    message = json.loads(redis_client.lpop("ends"))  # type: ignore[arg-type]
    assert message["headers"]["task"] == TASK
    assert message["headers"]["id"] == Announcement("", "", "", {"job_id": "job", "generation": 0}).task_id
    assert not redis_client.exists(keys.ANNOUNCEMENTS)
    redis_client.delete("_kombu.binding.ends")


def test_what_is_noted_just_before_a_worker_stops_is_still_sent(
    ledger: Ledger, errands: Errands, app: Celery, redis_client: redis.Redis
) -> None:
    announcer = Announcer(errands, app)
    announcer.start()
    submit(ledger)
    finish(ledger)

    announcer.stop()

    assert redis_client.llen("celery") == 1
    redis_client.delete("celery", "_kombu.binding.celery")


def test_a_broker_that_is_away_costs_no_announcement(
    ledger: Ledger, errands: Errands, redis_client: redis.Redis, app: Celery
) -> None:
    submit(ledger)
    finish(ledger)
    away = make_app("redis://127.0.0.1:1/0")
    Announcer(errands, away).turn()
    away.close()
    assert redis_client.zcard(keys.ANNOUNCEMENTS) == 1

    let_errands_be_due(redis_client)
    announcer = Announcer(errands, app)
    announcer.start()
    wait_until(lambda: redis_client.llen("celery") == 1, "the end is announced")
    announcer.stop()
    redis_client.delete("celery", "_kombu.binding.celery")


def test_a_refusal_of_rabbitmq_is_no_end_of_the_worker(
    ledger: Ledger, errands: Errands, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AccessRefused("ACCESS_REFUSED - access to queue 'celery' refused")

    monkeypatch.setattr(app, "send_task", refuse)
    submit(ledger)
    finish(ledger)

    assert not Announcer(errands, app).do_one()


def test_a_queue_that_the_user_made_otherwise_is_taken_as_it_is(
    ledger: Ledger, errands: Errands, app: Celery, monkeypatch: pytest.MonkeyPatch
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

    assert Announcer(errands, app).do_one()
    assert sent == [f"{TASK} to celery"]
    assert announcement(errands) is None


# --- sweeps ---


@dataclass(frozen=True)
class Bench:
    ledger: Ledger
    client: redis.Redis
    sweeper: Sweeper
    folder: Path

    def add(self, job_id: str, *, name: str = "") -> Job:
        """A job of one chunk that a worker holds, with what it was writing when it was killed."""
        job = jobs.make_job(self.folder / (name or job_id), job_id=job_id)
        jobs.place_job(FolderOutput(Path(job.output)), job)
        add_job(self.ledger, job=job, chunks=1)
        self.leave_scratch(job)
        return job

    def leave_scratch(self, job: Job) -> None:
        (Path(job.output) / keys.TMP).mkdir(exist_ok=True)
        (Path(job.output) / keys.TMP / "half-written").write_bytes(b"half")

    def scratch_files(self, job: Job) -> list[str]:
        return [path.name for path in (Path(job.output) / keys.TMP).iterdir()]

    def sweep_all(self) -> int:
        count = 0
        while self.sweeper.do_one():
            count += 1
        return count


@pytest.fixture
def bench(
    ledger: Ledger,
    redis_client: redis.Redis,
    errands: Errands,
    contexts: JobContexts,
    tmp_path: Path,
) -> Bench:
    return Bench(ledger, redis_client, Sweeper(errands, contexts), tmp_path)


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_a_job_that_was_not_finished_is_swept_at_once_and_once_more(bench: Bench, end: str) -> None:
    job = bench.add("job")
    claim(bench.ledger)
    assert bench.sweep_all() == 0
    if end == "cancelled":
        bench.ledger.cancel("job", ttl_seconds=600)
    else:
        bench.ledger.fail("job", "no disk", ttl_seconds=600)

    assert bench.sweep_all() == 1
    assert bench.scratch_files(job) == []

    bench.leave_scratch(job)  # somebody was late, and was killed
    assert bench.sweep_all() == 0
    let_errands_be_due(bench.client)
    assert bench.sweep_all() == 1
    assert bench.scratch_files(job) == []
    assert bench.client.exists(keys.SWEEPS) == 0


def test_a_finished_job_is_swept_once_more_later(bench: Bench) -> None:
    job = bench.add("job")
    complete(bench.ledger, claim(bench.ledger))
    bench.ledger.finish(claim_finish(bench.ledger), ttl_seconds=600)

    assert bench.sweep_all() == 0  # its finisher has done so
    let_errands_be_due(bench.client)
    assert bench.sweep_all() == 1
    assert bench.scratch_files(job) == []


def test_an_output_that_holds_another_job_by_now_is_left_alone(bench: Bench) -> None:
    old = bench.add("old", name="output")
    bench.ledger.cancel("old", ttl_seconds=600)
    assert bench.sweep_all() == 1
    output = FolderOutput(Path(old.output))
    output.clear()
    output.remove(keys.JOB_FILE)
    new = bench.add("new", name="output")

    let_errands_be_due(bench.client)
    assert bench.sweep_all() == 1
    assert bench.scratch_files(new) == ["half-written"]


def test_a_job_that_was_retried_is_left_to_its_next_end(bench: Bench) -> None:
    job = bench.add("job")
    bench.ledger.cancel("job", ttl_seconds=600)
    token = steps.new_token()
    bench.ledger.drafts.begin("job", token)
    bench.ledger.drafts.retry("job", token, draft(1), generation=1)

    assert bench.sweep_all() == 0
    assert bench.scratch_files(job) == ["half-written"]

    bench.ledger.cancel("job", ttl_seconds=600)
    assert bench.sweep_all() == 1
    assert bench.scratch_files(job) == []


def test_an_output_that_is_away_is_swept_when_it_is_back(bench: Bench) -> None:
    job = bench.add("job")
    bench.ledger.cancel("job", ttl_seconds=600)
    hidden = Path(job.output).rename(bench.folder / "unmounted")

    assert bench.sweep_all() == 1
    hidden.rename(job.output)
    assert bench.sweep_all() == 0  # not at once
    let_errands_be_due(bench.client)
    assert bench.sweep_all() == 1
    assert bench.scratch_files(job) == []


def test_rows_in_redis_leave_nothing_to_sweep(bench: Bench) -> None:
    add_job(bench.ledger, job=jobs.make_job("redis://", job_id="here"), chunks=1)
    bench.ledger.cancel("here", ttl_seconds=600)

    assert bench.client.exists(keys.SWEEPS) == 0


def test_an_output_that_hangs_delays_no_announcement_and_little_of_the_stop(
    bench: Bench, errands: Errands, app: Celery, monkeypatch: pytest.MonkeyPatch
) -> None:
    hangs, may_end = threading.Event(), threading.Event()

    def hang(_: FolderOutput) -> None:
        hangs.set()
        may_end.wait(60)

    monkeypatch.setattr(FolderOutput, "sweep_scratch", hang)
    monkeypatch.setattr("clipfleet_worker.finish.errands._STOP_SECONDS", 0.1)
    sweeper, announcer = Sweeper(errands, bench.sweeper._contexts), Announcer(errands, app)
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
    bench.client.delete("celery", "_kombu.binding.celery")
