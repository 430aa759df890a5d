"""The task boundary: whatever happens inside, the ledger is told, the slot is free, the task ends well."""

from __future__ import annotations

import asyncio
import errno
import itertools
import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

import pytest
from celery import Celery

from clipfleet.contract.jobs import ErrorCode, ItemError, Job, Precision
from clipfleet.contract.parts import ItemStatus, PartCounts
from clipfleet.errors import (
    JobNotFoundError,
    OutputConflictError,
    OutputDamagedError,
    OutputTooNewError,
    OutputUnavailableError,
    OutputUnreachableError,
    RedisUnavailableError,
    SourceUnavailableError,
)
from clipfleet.hints import Hints
from clipfleet.ledger import keys
from clipfleet.ledger.answers import CompleteAnswer
from clipfleet.ledger.jobs import Claim, FinishClaim, Lease, Ledger, WorkerFacts
from clipfleet_worker.chunk import claims as claims_module
from clipfleet_worker.chunk.claims import Claims
from clipfleet_worker.chunk.job_contexts import JobContexts
from clipfleet_worker.chunk.leases import HeldLease, LeaseKeeper
from clipfleet_worker.chunk.open_items import OpenItems
from clipfleet_worker.chunk.pipeline import ChunkResult, Pipeline
from clipfleet_worker.chunk.tally import ChunkEnd
from clipfleet_worker.encode.batcher import BatcherStopped
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.failures import ChunkInterrupted, ModelUnavailableError, WorkerShortageError
from clipfleet_worker.finish.finisher import Finisher
from clipfleet_worker.hints.tasks import Tasks, register
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.loaded import LoadedModel
from tests.support.jobs import JOB_ID, make_claim, make_finish_claim, make_job

RESULT = ChunkResult(PartCounts(2, 1, {"timeout": 1}), {"encode": 0.5})
OTHER_WORKER = WorkerFacts("other", "host", 1, ("demo",))
ME = WorkerFacts("me", "host", 2, ("demo",))


class StrangeEnd(BaseException):
    """What nobody has heard of."""


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
EVERYTHING = [*OUR_BUGS, MemoryError(), RedisUnavailableError("away")]


def named(error: object) -> str:
    return type(error).__name__


@dataclass
class FakeLedger:
    """Hands out the claims it was given; notes what it is told, may fail by the name of the call."""

    claims: list[Claim] = field(default_factory=list)
    finish_claims: list[FinishClaim] = field(default_factory=list)
    others: list[WorkerFacts] = field(default_factory=list)
    errors: dict[str, BaseException] = field(default_factory=dict)
    on_call: dict[str, Callable[[], object]] = field(default_factory=dict)
    told: list[tuple[str, ...]] = field(default_factory=list)
    complete_word: str = "done"

    def answers_from(self, call: str, time: int) -> None:
        """A call that fails does so no more from the given time on."""
        calls = itertools.count(1)
        self.on_call[call] = lambda: next(calls) < time or self.errors.pop(call, None)

    def _fail(self, call: str) -> None:
        self.on_call.get(call, lambda: None)()
        if call in self.errors:
            raise self.errors[call].with_traceback(None)

    def claim(self, *_: object) -> Claim | None:
        self._fail("claim")
        return self.claims.pop(0) if self.claims else None

    def complete(self, claim: Claim, **facts: Any) -> CompleteAnswer:
        self._fail("complete")
        self.told.append(("complete", claim.job_id, str(facts["ok"]), str(facts["failed"])))
        return CompleteAnswer(self.complete_word)

    def release(self, claim: Claim, kind: str, *, reason: str, outage_seconds: float) -> str:
        self._fail("release")
        self.told.append((kind, reason))
        return "released"

    def fail(self, job_id: str, reason: str, *, ttl_seconds: int, holder: Claim | FinishClaim) -> None:
        self.told.append(("fail", job_id, reason))

    def workers(self) -> list[WorkerFacts]:
        self._fail("workers")
        return [ME, *self.others]

    def renew(self, leases: Sequence[Lease], _: float) -> list[str]:
        self.told.append(("renew", *(lease.chunk for lease in leases)))
        return ["held"] * len(leases)

    def claim_finish(self, *_: object) -> FinishClaim | None:
        self._fail("claim_finish")
        return self.finish_claims.pop(0) if self.finish_claims else None

    def postpone_finish(
        self, claim: FinishClaim, delay_seconds: float, reason: str = "", **limits: float
    ) -> str:
        self._fail("postpone_finish")
        self.told.append(("postpone", claim.job_id, f"{delay_seconds:g}", reason))
        assert not reason or limits.keys() == {"outage_seconds", "ttl_seconds", "is_lasting"}
        return "postponed"


@dataclass
class Scene:
    """Stands in for contexts, pipeline, finisher and hints: does what it is told."""

    job: Job = field(default_factory=make_job)
    run_does: Callable[[HeldLease], None] = lambda lease: None
    get_raises: BaseException | None = None
    publish_raises: BaseException | None = None
    finish_raises: BaseException | None = None
    given_up: list[ItemError] = field(default_factory=list)
    published: list[str] = field(default_factory=list)

    def get(self, _: object) -> Scene:
        if self.get_raises is not None:
            raise self.get_raises.with_traceback(None)
        return self

    def run(self, _claim: Claim, _context: object, lease: HeldLease) -> ChunkResult:
        self.run_does(lease)
        return RESULT

    def give_up(self, _claim: Claim, _context: object, _lease: HeldLease, error: ItemError) -> ChunkResult:
        self.given_up.append(error)
        return ChunkResult(PartCounts(0, 3, {error.code: 3}), {})

    def finish(self, *_: object) -> str:
        if self.finish_raises is not None:
            raise self.finish_raises.with_traceback(None)
        return "completed"

    def publish_work(self) -> None:
        if self.publish_raises is not None:
            raise self.publish_raises.with_traceback(None)
        self.published.append("work")

    def publish_finish(self) -> None:
        self.published.append("finish")


class Bench:
    """The tasks with the real claims and leases around doubles, registered with a real Celery app."""

    def __init__(self) -> None:
        self.ledger, self.scene, self.open_items = FakeLedger(), Scene(), OpenItems(1000)
        ledger = cast(Ledger, self.ledger)
        self.models = Models(
            ("demo",), lambda name, *_: cast(LoadedModel, FakeEncoder(name)), kept=1,
            default_precision=Precision.FP32,
        )  # fmt: skip
        self.claims = Claims(
            ledger=ledger, open_items=self.open_items, models=self.models, worker_id="me", lease_seconds=30,
            outage_seconds=3600, job_ttl_seconds=60, slots=2,
        )  # fmt: skip
        self.keeper = LeaseKeeper(ledger, 30)
        self.tasks = Tasks(
            ledger=ledger,
            claims=self.claims,
            contexts=cast(JobContexts, self.scene),
            keeper=self.keeper,
            pipeline=cast(Pipeline, self.scene),
            finisher=cast(Finisher, self.scene),
            hints=cast(Hints, self.scene),
            lease_seconds=30,
        )
        self.app = Celery("test", broker="memory://", set_as_current=False)
        register(self.app, self.tasks)

    def hint(self, name: str = keys.WORK_TASK) -> None:
        """A hint comes; the task must end as Celery wants it, and leave nothing behind."""
        result = self.app.tasks[name].apply(args=("ignored",))
        assert result.state == "SUCCESS", result.traceback
        assert self.open_items.count == 0
        assert self.claims.has_idle_slot(0)
        assert self.held() == ()

    def work(self, error: BaseException | None = None, **claim: Any) -> None:
        """One chunk is there; its processing raises."""
        self.ledger.claims.append(make_claim(self.scene.job, **claim))
        if error is not None:
            self.raise_in_chunk(error)
        self.hint()

    def raise_in_chunk(self, error: BaseException) -> None:
        def fail(_: HeldLease) -> None:
            raise error.with_traceback(None)

        self.scene.run_does = fail

    def leave_once_called(self, call: str) -> None:
        """The worker has to go by then."""
        self.ledger.on_call[call] = self.claims.leave

    def held(self) -> tuple[str, ...]:
        """Chunks whose leases are kept alive now."""
        self.keeper.renew_all()
        return self.ledger.told.pop()[1:]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.app.close()


class TestChunk:
    def test_a_part_in_place_is_told_to_the_ledger(self, bench: Bench) -> None:
        bench.work()

        assert bench.ledger.told == [("complete", JOB_ID, "2", "1")]
        assert bench.scene.published == []

    def test_without_work_the_hint_is_spent(self, bench: Bench) -> None:
        bench.hint()

        assert bench.ledger.told == []
        assert not bench.tasks.work()

    def test_one_hint_in_one_out_while_work_remains(self, bench: Bench) -> None:
        bench.work(more=True)

        assert bench.scene.published == ["work"]

    def test_the_last_chunk_calls_for_the_finishing(self, bench: Bench) -> None:
        bench.ledger.complete_word = "finishing"
        bench.work()

        assert bench.scene.published == ["finish"]

    def test_the_last_chunk_of_a_job_in_redis_has_ended_it(self, bench: Bench) -> None:
        bench.ledger.complete_word = "ended"
        bench.work()

        assert bench.scene.published == []

    def test_a_chunk_whose_rows_redis_has_lost_waits_to_be_done_again(self, bench: Bench) -> None:
        bench.ledger.complete_word = "incomplete"
        bench.work(chunk_id=7)

        assert bench.ledger.told[-1] == (
            "waits",
            "OutputUnavailableError: rows of chunk 7 were lost by Redis",
        )

    @pytest.mark.parametrize(
        "error", [OutputUnavailableError("away"), SourceUnavailableError("away"), MemoryError("away")]
    )
    def test_a_chunk_that_the_world_keeps_from_going_on_waits(
        self, bench: Bench, error: BaseException
    ) -> None:
        bench.work(error)

        assert bench.ledger.told == [("waits", f"{type(error).__name__}: away")]

    def test_the_lease_is_kept_and_the_items_are_counted_meanwhile(self, bench: Bench) -> None:
        seen: list[object] = []
        bench.scene.run_does = lambda _: seen.extend([bench.held(), bench.open_items.count])

        bench.work(chunk_id=7, chunk_size=512)

        assert seen == [("7",), 512]

    def test_what_a_hint_carries_is_ignored(self, bench: Bench) -> None:
        bench.ledger.claims.append(make_claim())
        result = bench.app.tasks[keys.WORK_TASK].apply(args=(1, "x"), kwargs={"job_id": "other"})

        assert result.state == "SUCCESS"
        assert bench.ledger.told == [("complete", JOB_ID, "2", "1")]


class TestOurBugs:
    @pytest.mark.parametrize("error", OUR_BUGS, ids=named)
    def test_anything_unexpected_counts_as_a_failure(
        self, bench: Bench, caplog: pytest.LogCaptureFixture, error: BaseException
    ) -> None:
        with caplog.at_level(logging.ERROR):
            bench.work(error)

        ((kind, reason),) = bench.ledger.told
        assert kind == "failures"
        assert reason.startswith(f"{named(error)}: ")
        (record,) = [one for one in caplog.records if one.name == "clipfleet_worker.chunk.claims"]
        assert (record.job_id, record.chunk_id) == (JOB_ID, 0)  # type: ignore[attr-defined]
        assert record.exc_info and record.exc_info[1] is error

    @pytest.mark.parametrize("error", OUR_BUGS, ids=named)
    def test_opening_the_job_may_fail_like_the_chunk(self, bench: Bench, error: BaseException) -> None:
        bench.scene.get_raises = error
        bench.work()

        assert [kind for kind, _ in bench.ledger.told] == ["failures"]

    def test_a_long_reason_is_cut(self, bench: Bench) -> None:
        bench.work(ValueError("x" * 1000))

        assert len(bench.ledger.told[0][1]) == 300

    @pytest.mark.parametrize("error", EVERYTHING, ids=named)
    def test_a_claim_that_fails_ends_well(self, bench: Bench, error: BaseException) -> None:
        bench.ledger.errors["claim"] = error

        bench.hint()

        assert bench.ledger.told == []
        assert not bench.tasks.work()

    @pytest.mark.parametrize("error", EVERYTHING, ids=named)
    def test_a_hint_that_cannot_be_passed_on_ends_well(self, bench: Bench, error: BaseException) -> None:
        bench.scene.publish_raises = error
        bench.work(more=True)

        assert len(bench.ledger.told) == 1

    @pytest.mark.parametrize("error", EVERYTHING, ids=named)
    def test_a_ledger_that_cannot_be_told_ends_well(self, bench: Bench, error: BaseException) -> None:
        bench.ledger.errors["release"] = error
        bench.leave_once_called("release")
        bench.work(ValueError("bug"))

        assert bench.ledger.told == []

    def test_a_redis_that_is_away_is_told_when_it_comes_back(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(claims_module, "_RETRY_SECONDS", 0.001)
        bench.ledger.errors["release"] = RedisUnavailableError("away")
        bench.ledger.answers_from("release", 3)
        bench.work(ValueError("bug"))

        assert bench.ledger.told == [("failures", "ValueError: bug")]
        assert [record.levelname for record in caplog.records if "failed" in record.message] == ["ERROR"]

    def test_while_the_ledger_is_told_of_a_part_the_lease_has_no_limit(self, bench: Bench) -> None:
        names: list[str] = []
        limits: list[bool] = []

        def look() -> None:
            (lease,) = bench.keeper._snapshot()
            lease._monotonic = lambda: 1e12  # Redis is away for ages
            names.append(lease.step)
            limits.append(lease.is_within_limit)

        bench.ledger.on_call["complete"] = look
        bench.work()

        assert (names, limits) == (["complete"], [True])

    def test_a_chunk_that_cannot_even_be_given_up_ends_the_job(self, bench: Bench) -> None:
        # Given a chunk whose failed rows could not be written either, five times
        bench.work(ValueError("bug"), failures=8)
        bench.work(ValueError("bug"), failures=9)

        released, failed = bench.ledger.told
        assert released == ("failures", "ValueError: bug")
        assert failed == ("fail", JOB_ID, "chunk_failed: bug")


class TestTheWorld:
    @pytest.mark.parametrize(
        "error",
        [OutputUnavailableError("disk full"), RedisUnavailableError("away"), MemoryError("device")],
        ids=named,
    )
    def test_what_may_work_later_waits(self, bench: Bench, error: BaseException) -> None:
        bench.work(error)

        assert bench.ledger.told == [("waits", f"{named(error)}: {error}")]

    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (OSError(errno.EMFILE, "Too many open files"), "too few file descriptors"),
            (RuntimeError("can't start new thread"), "cannot start another thread"),
            (WorkerShortageError("short of something"), "short of something"),
        ],
        ids=repr,
    )
    def test_what_this_worker_lacks_makes_the_job_wait_and_leaves_it_to_others(
        self, bench: Bench, error: Exception, words: str
    ) -> None:
        bench.work(error)

        ((kind, reason),) = bench.ledger.told
        assert kind == "waits"
        assert words in reason
        assert bench.claims.shunned_jobs.current() == [JOB_ID]

    @pytest.mark.parametrize("error", [ChunkInterrupted("lost"), BatcherStopped("stops")], ids=named)
    def test_what_was_taken_from_us_is_given_back_at_once(self, bench: Bench, error: BaseException) -> None:
        bench.work(error)

        assert bench.ledger.told == [("drain", f"{named(error)}: {error}")]

    def test_a_cancelled_chunk_ends_at_its_next_stage(self, bench: Bench) -> None:
        def cancelled(lease: HeldLease) -> None:
            lease.interrupt("cancelled")
            lease.enter("write", 10)

        bench.scene.run_does = cancelled
        bench.work()

        assert bench.ledger.told == [("drain", "ChunkInterrupted: cancelled")]

    def test_another_jobs_part_in_our_place_ends_the_job(self, bench: Bench) -> None:
        bench.work(OutputConflictError("part 0 belongs to job x"))

        assert bench.ledger.told == [("fail", JOB_ID, "output_conflict: part 0 belongs to job x")]


class TestOutOfReach:
    @pytest.mark.parametrize(
        "error", [OutputUnreachableError("no mount"), OutputDamagedError("no mount")], ids=named
    )
    def test_another_worker_may_reach_the_output(self, bench: Bench, error: BaseException) -> None:
        bench.ledger.others.append(OTHER_WORKER)
        bench.work(error)

        assert bench.ledger.told == [("failures", f"{named(error)}: no mount")]
        assert bench.claims.shunned_jobs.current() == [JOB_ID]

    def test_a_worker_that_is_alone_ends_the_job(self, bench: Bench) -> None:
        bench.work(OutputUnreachableError("no mount"))

        assert bench.ledger.told == [("fail", JOB_ID, "output_unreachable: no mount")]

    def test_when_all_have_tried_the_job_ends(self, bench: Bench) -> None:
        bench.ledger.others.append(OTHER_WORKER)
        bench.work(OutputUnreachableError("no mount"), failures=4)

        assert bench.ledger.told == [("fail", JOB_ID, "output_unreachable: no mount")]


class TestOfANewerVersion:
    @pytest.mark.parametrize("is_alone", [True, False])
    def test_a_chunk_is_left_to_others_and_nothing_counts_against_it(
        self, bench: Bench, is_alone: bool
    ) -> None:
        if not is_alone:
            bench.ledger.others.append(OTHER_WORKER)
        bench.work(OutputTooNewError("schema version 9: update it"), failures=4)

        assert bench.ledger.told == [("drain", "OutputTooNewError: schema version 9: update it")]
        assert bench.claims.shunned_jobs.current() == [JOB_ID]

    def test_so_is_a_job_to_be_finished(self, bench: Bench) -> None:
        bench.ledger.finish_claims.append(make_finish_claim(bench.scene.job))
        bench.scene.get_raises = OutputTooNewError("schema version 9: update it")
        bench.hint(keys.FINISH_TASK)

        assert bench.ledger.told == [("postpone", JOB_ID, "0", "")]
        assert bench.claims.shunned_jobs.current() == [JOB_ID]


class TestWithoutModel:
    def test_a_worker_that_is_alone_gives_the_chunk_up_with_the_models_code(self, bench: Bench) -> None:
        bench.work(ModelUnavailableError("no\nweights"))

        assert bench.scene.given_up == [ItemError(ErrorCode.MODEL_UNAVAILABLE, "no weights")]
        assert bench.ledger.told == [("complete", JOB_ID, "0", "3")]

    def test_others_that_serve_the_model_get_the_chunk(self, bench: Bench) -> None:
        bench.ledger.others.append(OTHER_WORKER)
        bench.work(ModelUnavailableError("no weights"))

        assert bench.ledger.told == [("drain", "ModelUnavailableError: no weights")]
        assert bench.models.served() == ()

    def test_others_that_do_not_serve_it_are_no_help(self, bench: Bench) -> None:
        bench.ledger.others.append(WorkerFacts("other", "host", 1, ("another:model",)))
        bench.work(ModelUnavailableError("no weights"))

        assert bench.ledger.told == [("complete", JOB_ID, "0", "3")]

    def test_not_knowing_who_else_is_there_waits(self, bench: Bench) -> None:
        bench.ledger.errors["workers"] = RedisUnavailableError("away")
        bench.work(ModelUnavailableError("no weights"))

        assert bench.ledger.told == [("waits", "RedisUnavailableError: away")]


class TestFinishing:
    def finish(self, bench: Bench, error: BaseException | None = None) -> bool:
        """One job is to be finished; both by a hint and by the worker itself, with the same answer."""
        bench.scene.finish_raises = error
        claim = make_finish_claim(bench.scene.job)
        bench.ledger.finish_claims.append(claim)
        bench.hint(keys.FINISH_TASK)
        told = bench.ledger.told.copy()
        bench.ledger.told.clear()
        bench.ledger.finish_claims.append(claim)
        again = bench.tasks.finish_job()
        assert bench.ledger.told == told
        return again

    def test_it_is_done_and_the_next_one_may_come(self, bench: Bench) -> None:
        assert self.finish(bench)
        assert bench.ledger.told == []

    def test_there_is_none(self, bench: Bench) -> None:
        bench.hint(keys.FINISH_TASK)
        assert not bench.tasks.finish_job()

    def test_the_output_is_away(self, bench: Bench) -> None:
        assert self.finish(bench, OutputUnavailableError("disk full"))

        assert bench.ledger.told == [("postpone", JOB_ID, "5", "disk full")]
        assert bench.claims.shunned_jobs.current() == [JOB_ID]

    def test_a_worker_that_leaves_gives_it_back_at_once_and_takes_no_other(self, bench: Bench) -> None:
        assert not self.finish(bench, ChunkInterrupted("the worker leaves"))

        assert bench.ledger.told == [("postpone", JOB_ID, "0", "")]

    def test_another_jobs_part_ends_the_job(self, bench: Bench) -> None:
        assert self.finish(bench, OutputConflictError("part 0 belongs to job x"))

        assert bench.ledger.told == [("fail", JOB_ID, "output_conflict: part 0 belongs to job x")]

    @pytest.mark.parametrize("error", [*OUR_BUGS, MemoryError()], ids=named)
    def test_anything_unexpected_is_logged_with_the_job_and_tried_again_after_the_lease(
        self, bench: Bench, caplog: pytest.LogCaptureFixture, error: BaseException
    ) -> None:
        with caplog.at_level(logging.ERROR):
            assert not self.finish(bench, error)

        assert bench.ledger.told == []
        assert JOB_ID in caplog.text
        assert named(error) in caplog.text

    @pytest.mark.parametrize("error", EVERYTHING, ids=named)
    def test_a_claim_that_fails_ends_the_round(self, bench: Bench, error: BaseException) -> None:
        # Whoever looks for work without a hint asks until the answer is no: it must not ask for ever.
        bench.ledger.errors["claim_finish"] = error

        bench.hint(keys.FINISH_TASK)

        assert not bench.tasks.finish_job()

    def test_a_redis_that_is_away_is_no_error_of_ours(
        self, bench: Bench, caplog: pytest.LogCaptureFixture
    ) -> None:
        bench.ledger.errors["claim_finish"] = RedisUnavailableError("away")
        with caplog.at_level(logging.WARNING):
            bench.hint(keys.FINISH_TASK)

        assert [record.levelname for record in caplog.records] == ["WARNING"]

    def test_a_postponement_that_fails_ends_well(self, bench: Bench) -> None:
        bench.ledger.errors["postpone_finish"] = RedisUnavailableError("away")

        assert not self.finish(bench, OutputUnavailableError("disk full"))


class TestCounts:
    """What the process counts of its chunks, for its metrics."""

    @pytest.mark.parametrize("word", ["done", "finishing", "ended", "stopped"])
    def test_a_chunk_that_the_ledger_takes_counts_with_its_rows(self, bench: Bench, word: str) -> None:
        bench.ledger.complete_word = word
        bench.work()

        totals = bench.claims.tally.totals()
        assert totals.ends == {ChunkEnd.DONE: 1}
        assert totals.items == {(ItemStatus.OK, ""): 2, (ItemStatus.FAILED, "timeout"): 1}
        assert totals.work_seconds == {"encode": 0.5}

    @pytest.mark.parametrize("word", ["already", "stale", "cancelled", "missing"])
    def test_one_that_it_does_not_take_counts_without_rows(self, bench: Bench, word: str) -> None:
        bench.ledger.complete_word = word
        bench.work()

        totals = bench.claims.tally.totals()
        assert (totals.ends, totals.items) == ({ChunkEnd.LATE: 1}, {})

    def test_of_a_retry_only_what_was_run_counts(self, bench: Bench) -> None:
        kept_and_new = ChunkResult(PartCounts(9, 3, {"timeout": 3}), {}, PartCounts(4, 1, {"timeout": 1}))
        bench.claims.complete(make_claim(bench.scene.job), kept_and_new)

        assert bench.claims.tally.totals().items == {
            (ItemStatus.OK, ""): 4,
            (ItemStatus.FAILED, "timeout"): 1,
        }

    @pytest.mark.parametrize(
        ("error", "end"),
        [
            (ChunkInterrupted("lost"), ChunkEnd.LOST),
            (ChunkInterrupted("cancelled"), ChunkEnd.CANCELLED),
            (ChunkInterrupted("the worker leaves"), ChunkEnd.DRAINED),
            (BatcherStopped("stops"), ChunkEnd.DRAINED),
            (OutputUnavailableError("disk full"), ChunkEnd.WAITED),
            (MemoryError("device"), ChunkEnd.WAITED),
            (OutputUnreachableError("no mount"), ChunkEnd.FAILED),
            (OutputConflictError("another job's"), ChunkEnd.FAILED),
            (ValueError("bug"), ChunkEnd.FAILED),
        ],
        ids=str,
    )
    def test_every_other_end_counts_once(self, bench: Bench, error: BaseException, end: ChunkEnd) -> None:
        bench.work(error)

        totals = bench.claims.tally.totals()
        assert (totals.ends, totals.items) == ({end: 1}, {})
        assert sum(totals.lived) == 1
        assert bench.claims.oldest_held_seconds == 0
