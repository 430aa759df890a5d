"""The task boundary: whatever happens inside, the ledger records it, the slot is free, the task succeeds."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, cast

import pytest
from celery import Celery

from clipfleet.contract.jobs import ErrorCode, ItemError
from clipfleet.contract.parts import PartCounts
from clipfleet.errors import JobNotFoundError, OutputConflictError, OutputTooNewError
from clipfleet.errors import OutputUnavailableError as OutputAway
from clipfleet.errors import RedisUnavailableError as RedisAway
from clipfleet.ledger import keys
from clipfleet.ledger.answers import CompleteAnswer
from clipfleet.ledger.jobs import Claim
from clipfleet_worker.chunk.claims import Claims
from clipfleet_worker.chunk.endings import Endings
from clipfleet_worker.chunk.held_lease import HeldLease
from clipfleet_worker.chunk.leases import LeaseKeeper
from clipfleet_worker.chunk.open_items import OpenItems
from clipfleet_worker.chunk.pipeline import ChunkResult
from clipfleet_worker.failures import ChunkInterrupted, ModelUnavailableError
from clipfleet_worker.finish.committing import NoStoreExtraError, StoreBusyError
from clipfleet_worker.hints.tasks import Tasks, register
from clipfleet_worker.models.cache import Models
from tests.support.doubles import Clock
from tests.support.jobs import JOB_ID, make_claim, make_finish_claim, make_job
from tests.support.recording_ledger import RecordingLedger

RESULT = ChunkResult(PartCounts(2, 1, {"timeout": 1}), {"encode": 0.5})


class StrangeEnd(BaseException):
    """An unknown exception."""


OUR_BUGS = [
    ZeroDivisionError("bug"),
    RecursionError("too deep"),
    OSError(5, "Input/output error"),
    JobNotFoundError("gone"),
    SystemExit(3),
    KeyboardInterrupt(),
    GeneratorExit(),
    asyncio.CancelledError(),
    BaseExceptionGroup("several", [SystemExit(1), ValueError("x")]),
    StrangeEnd(),
]
EVERYTHING = [*OUR_BUGS, MemoryError(), RedisAway("away")]


def named(error: object) -> str:
    return type(error).__name__


class Scene:
    """Replaces contexts, pipeline, finisher and hints; `raises` has errors by the name of the call."""

    def __init__(self) -> None:
        self.job = make_job()
        self.run_does: Callable[[HeldLease], object] = lambda lease: None
        self.raises: dict[str, BaseException | None] = {}
        self.given_up: list[ItemError] = []
        self.published: list[str] = []

    def _called(self, name: str) -> None:
        error = self.raises.get(name)
        if error is not None:
            raise error.with_traceback(None)

    def get(self, _: object) -> Scene:
        self._called("get")
        return self

    def run(self, _claim: Claim, _context: object, lease: HeldLease) -> ChunkResult:
        self._called("run")
        self.run_does(lease)
        return RESULT

    def give_up(self, _claim: Claim, _context: object, _lease: HeldLease, error: ItemError) -> ChunkResult:
        self.given_up.append(error)
        return ChunkResult(PartCounts(0, 3, {error.code: 3}), {})

    def finish(self, *_: object) -> str:
        self._called("finish")
        return "completed"

    def publish_work(self) -> None:
        self._called("publish_work")
        self.published.append("work")

    def publish_finish(self) -> None:
        self.published.append("finish")


class Bench:
    """The tasks with the real claims, endings and leases around doubles, in a real Celery app."""

    def __init__(self) -> None:
        self.ledger, self.scene, self.open_items = RecordingLedger(), Scene(), OpenItems(1000)
        ledger, self.clock = self.ledger, Clock()
        models = cast(Models, SimpleNamespace(served=lambda: ("demo",)))
        self.endings = Endings(
            ledger=ledger, models=models, worker_id="me", outage_seconds=3600, job_ttl_seconds=60
        )
        self.claims = Claims(
            ledger=ledger, open_items=self.open_items, models=models,
            shunned_jobs=self.endings.shunned_jobs, lease_seconds=30, slots=2,
        )  # fmt: skip
        self.keeper = LeaseKeeper(ledger, 30, running_time=self.clock)
        scene = cast(Any, self.scene)
        self.tasks = Tasks(
            ledger=ledger, claims=self.claims, endings=self.endings, contexts=scene, keeper=self.keeper,
            pipeline=scene, finisher=scene, hints=scene, lease_seconds=30,
        )  # fmt: skip
        self.app = Celery("test", broker="memory://", set_as_current=False)
        register(self.app, self.tasks)

    def hint(self, name: str = keys.WORK_TASK) -> None:
        """A hint comes; the task must end as Celery wants it, and leave nothing behind."""
        # What a hint carries is ignored.
        result = self.app.tasks[name].apply(args=(1, "x"), kwargs={"job_id": "other"})
        assert result.state == "SUCCESS", result.traceback
        assert self.open_items.count == 0
        assert self.claims.has_idle_slot(0)
        assert self.keeper.phases() == []

    def work(self, error: BaseException | None = None, **claim: Any) -> list[tuple[str, ...]]:
        """One chunk is there; its processing raises. Returns what the ledger records."""
        self.ledger.offer(make_claim(self.scene.job, **claim))
        self.scene.raises["run"] = error
        self.hint()
        return self.ledger.told


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.app.close()


class TestChunk:
    # The last chunk calls for the finish; that of a job in Redis is its end.
    @pytest.mark.parametrize(("word", "published"), [("done", []), ("finishing", ["finish"]), ("ended", [])])
    def test_a_part_in_place_is_recorded(self, bench: Bench, word: str, published: list[str]) -> None:
        bench.ledger.replies["complete"] = CompleteAnswer(word)

        assert bench.work() == [("complete", JOB_ID, "2", "1")]
        assert bench.scene.published == published

    def test_without_work_the_hint_is_spent(self, bench: Bench) -> None:
        for task in (keys.WORK_TASK, keys.FINISH_TASK):
            bench.hint(task)

        assert bench.ledger.told == []
        assert not bench.tasks.work()
        assert not bench.tasks.finish_job()

    def test_one_hint_in_one_out_while_work_remains(self, bench: Bench) -> None:
        bench.work(more=True)

        assert bench.scene.published == ["work"]

    def test_a_chunk_whose_rows_redis_has_lost_waits_to_be_done_again(self, bench: Bench) -> None:
        bench.ledger.replies["complete"] = CompleteAnswer.INCOMPLETE

        (_, told) = bench.work(chunk_id=7)
        assert told == ("waits", "OutputUnavailableError: Redis has lost rows of chunk 7")

    def test_the_lease_is_kept_and_the_items_are_counted_meanwhile(self, bench: Bench) -> None:
        seen: list[object] = []
        bench.scene.run_does = lambda _: seen.extend([bench.keeper.renew_all(), bench.open_items.count])

        bench.work(chunk_id=7, chunk_size=512)

        assert seen == [True, 512]
        assert bench.ledger.renewed == [["7"]]

    def test_a_cancelled_chunk_ends_at_its_next_step(self, bench: Bench) -> None:
        bench.scene.run_does = lambda lease: (lease.interrupt("cancelled"), lease.enter("write", 10))

        assert bench.work() == [("drain", "ChunkInterrupted: cancelled")]

    def test_while_redis_is_away_the_record_of_a_part_has_no_limit(self, bench: Bench) -> None:
        seen: list[object] = []

        def look() -> None:
            bench.clock.now += 1e12
            seen.extend([*(phase.name for phase in bench.keeper.phases()), bench.keeper.hanging()])

        bench.ledger.before["complete"] = look
        bench.work()

        assert seen == ["complete", []]

    def test_a_chunk_is_given_up_where_no_worker_serves_its_model(self, bench: Bench) -> None:
        assert bench.work(ModelUnavailableError("no\nweights")) == [("complete", JOB_ID, "0", "3")]
        assert bench.scene.given_up == [ItemError(ErrorCode.MODEL_UNAVAILABLE, "no weights")]

    def test_while_redis_cannot_list_the_workers_it_waits(self, bench: Bench) -> None:
        bench.ledger.goes_away("workers")

        assert bench.work(ModelUnavailableError("no weights")) == [("waits", "RedisUnavailableError: away")]


@pytest.mark.parametrize("error", OUR_BUGS, ids=named)
@pytest.mark.parametrize("where", ["run", "get"])
def test_anything_unexpected_counts_as_a_failure(
    bench: Bench, caplog: pytest.LogCaptureFixture, error: BaseException, where: str
) -> None:
    bench.scene.raises["get"] = error if where == "get" else None
    ((kind, reason),) = bench.work(error)

    assert kind == "failures"
    assert reason.startswith(f"{named(error)}: ")
    (record,) = [one for one in caplog.records if one.name == "clipfleet_worker.chunk.endings"]
    assert (record.job_id, record.chunk_id) == (JOB_ID, 0)  # type: ignore[attr-defined]
    assert record.exc_info and record.exc_info[1] is error


@pytest.mark.parametrize("error", EVERYTHING, ids=named)
class TestItEndsWell:
    def test_a_claim(self, bench: Bench, error: BaseException) -> None:
        bench.ledger.replies["claim"] = error

        bench.hint()

        assert bench.ledger.told == []
        assert not bench.tasks.work()

    def test_a_hint_that_cannot_be_passed_on(self, bench: Bench, error: BaseException) -> None:
        bench.scene.raises["publish_work"] = error

        assert len(bench.work(more=True)) == 1

    def test_a_release(self, bench: Bench, error: BaseException) -> None:
        bench.ledger.replies["release"] = error
        bench.ledger.before["release"] = bench.endings.drain

        assert bench.work(ValueError("bug")) == []

    def test_a_claim_to_finish(self, bench: Bench, caplog: Any, error: BaseException) -> None:
        # The puller asks until the answer is no: it must not ask for ever.
        bench.ledger.replies["claim_finish"] = error
        bench.hint(keys.FINISH_TASK)

        assert not bench.tasks.finish_job()
        assert caplog.records[0].levelname == ("WARNING" if isinstance(error, RedisAway) else "ERROR")


class TestFinishing:
    def finish(self, bench: Bench, error: BaseException | None = None) -> bool:
        """One job is to be finished; both by a hint and by the worker itself, with the same answer."""
        bench.scene.raises["finish"] = error
        bench.ledger.replies["claim_finish"] = [make_finish_claim(bench.scene.job)] * 2
        bench.hint(keys.FINISH_TASK)
        told = bench.ledger.told.copy()
        again = bench.tasks.finish_job()
        assert bench.ledger.told == told * 2
        bench.ledger.told = told
        return again

    @pytest.mark.parametrize(
        ("error", "told", "goes_on"),
        [
            (None, [], True),
            (OutputAway("disk full"), [("postpone", JOB_ID, "5", "disk full")], True),
            (OutputTooNewError("update it"), [("postpone", JOB_ID, "0")], True),
            (ChunkInterrupted("the worker drains"), [("postpone", JOB_ID, "0")], False),
            (StoreBusyError("busy"), [("postpone", JOB_ID, "2")], True),
            (NoStoreExtraError(), [("postpone", JOB_ID, "0")], True),
            (OutputConflictError("of job x"), [("fail", JOB_ID, "output_conflict: of job x")], True),
        ],
        ids=named,
    )
    def test_each_end_is_recorded_and_the_next_job_may_come_unless_the_worker_drains(
        self, bench: Bench, error: BaseException | None, told: list[tuple[str, ...]], goes_on: bool
    ) -> None:
        assert self.finish(bench, error) is goes_on
        assert bench.ledger.told == told

    @pytest.mark.parametrize("error", [*OUR_BUGS, MemoryError()], ids=named)
    def test_a_bug_is_logged_with_the_job_and_its_status_shows_the_reason(
        self, bench: Bench, caplog: pytest.LogCaptureFixture, error: BaseException
    ) -> None:
        assert not self.finish(bench, error)

        assert bench.ledger.told == [("postpone", JOB_ID, "5", f"{named(error)}: {error}")]
        assert bench.endings.shunned_jobs.current() == [JOB_ID]
        assert JOB_ID in caplog.text
        assert named(error) in caplog.text

    def test_a_postponement_that_fails_ends_well(self, bench: Bench) -> None:
        bench.ledger.goes_away("postpone_finish")

        assert not self.finish(bench, OutputAway("disk full"))
