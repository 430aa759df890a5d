"""How chunks end: what the ledger records, which jobs are shunned afterwards, and what is counted."""

from __future__ import annotations

import errno
from typing import cast

import pytest

from clipfleet.contract.jobs import ErrorCode, ItemError, Precision
from clipfleet.contract.parts import ItemStatus, PartCounts
from clipfleet.errors import (
    OutputConflictError,
    OutputDamagedError,
    OutputTooNewError,
    OutputUnavailableError,
    OutputUnreachableError,
    RedisUnavailableError,
    SourceUnavailableError,
)
from clipfleet.ledger.answers import CompleteAnswer
from clipfleet.ledger.jobs import Ledger, WorkerFacts
from clipfleet_worker.chunk import endings as endings_module
from clipfleet_worker.chunk.endings import Endings, ShunnedJobs
from clipfleet_worker.chunk.held_chunk import HeldChunk
from clipfleet_worker.chunk.pipeline import ChunkResult
from clipfleet_worker.chunk.tally import ChunkEnd
from clipfleet_worker.encode.batcher import BatcherStopped
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.failures import ChunkInterrupted, WorkerShortageError
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.loaded import LoadedModel
from tests.support.doubles import Clock
from tests.support.jobs import JOB_ID, make_claim, make_finish_claim, make_job
from tests.support.recording_ledger import OTHER_WORKER, RecordingLedger

RESULT = ChunkResult(PartCounts(2, 1, {"timeout": 1}), {"encode": 0.5})
NO_FILES = OSError(errno.EMFILE, "Too many open files")
NO_THREAD = RuntimeError("can't start new thread")


class Bench:
    def __init__(self) -> None:
        self.ledger, self.clock = RecordingLedger(), Clock()
        self.models = Models(
            ("demo",), lambda name, *_: cast(LoadedModel, FakeEncoder(name)), kept=1,
            default_precision=Precision.FP32,
        )  # fmt: skip
        self.endings = Endings(
            ledger=cast(Ledger, self.ledger),
            models=self.models,
            worker_id="me",
            outage_seconds=3600,
            job_ttl_seconds=60,
            monotonic=self.clock,
        )

    def held(self, failures: int = 0) -> HeldChunk:
        return HeldChunk(make_claim(chunk_id=7, failures=failures), self.clock.now)

    def release(self, error: BaseException, failures: int = 0) -> list[tuple[str, ...]]:
        self.endings.release(self.held(failures), error)
        return self.ledger.told


@pytest.fixture
def bench() -> Bench:
    return Bench()


@pytest.mark.parametrize(
    ("error", "kind", "end", "shuns"),
    [
        (ChunkInterrupted("lost"), "drain", ChunkEnd.LOST, False),
        (ChunkInterrupted("cancelled"), "drain", ChunkEnd.CANCELLED, False),
        (ChunkInterrupted("the worker drains"), "drain", ChunkEnd.DRAINED, False),
        (BatcherStopped("stops"), "drain", ChunkEnd.DRAINED, False),
        (OutputTooNewError("schema version 9: update it"), "drain", ChunkEnd.DRAINED, True),
        (OutputUnavailableError("disk full"), "waits", ChunkEnd.WAITED, True),
        (SourceUnavailableError("away"), "waits", ChunkEnd.WAITED, True),
        (WorkerShortageError("short of something"), "waits", ChunkEnd.WAITED, True),
        (RedisUnavailableError("away"), "waits", ChunkEnd.WAITED, False),
        (MemoryError("device"), "waits", ChunkEnd.WAITED, False),
        (OutputUnreachableError("no mount"), "failures", ChunkEnd.FAILED, True),
        (OutputDamagedError("no mount"), "failures", ChunkEnd.FAILED, True),
        (ValueError("bug"), "failures", ChunkEnd.FAILED, False),
    ],
    ids=repr,
)
def test_a_chunk_without_a_part_is_released_and_counted_by_what_went_wrong(
    bench: Bench, error: BaseException, kind: str, end: ChunkEnd, shuns: bool
) -> None:
    bench.ledger.others.append(OTHER_WORKER)

    assert bench.release(error, failures=3) == [(kind, f"{type(error).__name__}: {error}")]
    assert bench.endings.shunned_jobs.current() == [JOB_ID] * shuns
    totals = bench.endings.tally.totals()
    assert (totals.ends, totals.items, sum(totals.lived)) == ({end: 1}, {}, 1)


@pytest.mark.parametrize(
    ("error", "words"), [(NO_FILES, "too few file descriptors"), (NO_THREAD, "cannot start another thread")]
)
def test_what_this_worker_lacks_makes_the_job_wait_for_others(
    bench: Bench, error: Exception, words: str
) -> None:
    ((kind, reason),) = bench.release(error)

    assert kind == "waits"
    assert words in reason
    assert bench.endings.shunned_jobs.current() == [JOB_ID]


@pytest.mark.parametrize(
    ("error", "failures", "is_alone", "reason"),
    [
        (
            OutputConflictError("of job x"),
            0,
            False,
            "output_conflict: of job x",
        ),
        (OutputUnreachableError("no mount"), 0, True, "output_unreachable: no mount"),
        (OutputUnreachableError("no mount"), 4, False, "output_unreachable: no mount"),  # all have tried
        (ValueError("bug"), 9, False, "chunk_failed: bug"),  # not even failed rows could be written
    ],
    ids=repr,
)
def test_a_job_whose_rows_cannot_be_written_fails(
    bench: Bench, error: Exception, failures: int, is_alone: bool, reason: str
) -> None:
    bench.ledger.others += [] if is_alone else [OTHER_WORKER]

    assert bench.release(error, failures) == [("fail", JOB_ID, reason)]


@pytest.mark.parametrize(
    ("error", "failures"), [(OutputTooNewError("update it"), 4), (ValueError("bug"), 8)], ids=repr
)
def test_else_it_goes_on_also_where_no_other_worker_is(bench: Bench, error: Exception, failures: int) -> None:
    ((kind, _),) = bench.release(error, failures)

    assert kind in ("drain", "failures")


def test_a_long_reason_is_cut(bench: Bench) -> None:
    assert len(bench.release(ValueError("x" * 1000))[0][1]) == 300


def test_while_redis_is_away_the_release_is_retried(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endings_module, "_RETRY_SECONDS", 0.001)
    bench.ledger.goes_away("release")
    bench.ledger.answers_from("release", 3)

    assert bench.release(ValueError("bug")) == [("failures", "ValueError: bug")]
    assert [record.levelname for record in caplog.records if "failed" in record.message] == ["ERROR"]


@pytest.mark.parametrize("call", ["release", "complete"])
def test_a_worker_that_drains_retries_nothing(bench: Bench, call: str) -> None:
    bench.ledger.goes_away(call)
    bench.endings.drain()

    assert bench.release(ValueError("bug")) == [] or call == "complete"
    assert bench.endings.complete(bench.held(), RESULT) == (None if call == "complete" else "done")


class TestCompleting:
    @pytest.mark.parametrize("word", ["done", "finishing", "ended", "stopped"])
    def test_a_chunk_that_the_ledger_counts_is_counted_with_its_rows(self, bench: Bench, word: str) -> None:
        bench.ledger.complete_answer = CompleteAnswer(word)
        bench.endings.complete(bench.held(), RESULT)

        totals = bench.endings.tally.totals()
        assert totals.ends == {ChunkEnd.DONE: 1}
        assert totals.items == {(ItemStatus.OK, ""): 2, (ItemStatus.FAILED, "timeout"): 1}
        assert totals.work_seconds == {"encode": 0.5}

    @pytest.mark.parametrize("word", ["already", "stale", "cancelled", "missing"])
    def test_one_that_it_does_not_count_is_counted_without_rows(self, bench: Bench, word: str) -> None:
        bench.ledger.complete_answer = CompleteAnswer(word)
        bench.endings.complete(bench.held(), RESULT)

        totals = bench.endings.tally.totals()
        assert (totals.ends, totals.items) == ({ChunkEnd.LATE: 1}, {})

    def test_of_a_retry_only_the_rows_that_were_run_count(self, bench: Bench) -> None:
        kept_and_new = ChunkResult(PartCounts(9, 3, {"timeout": 3}), {}, PartCounts(4, 1, {"timeout": 1}))
        bench.endings.complete(bench.held(), kept_and_new)

        assert bench.endings.tally.totals().items == {
            (ItemStatus.OK, ""): 4,
            (ItemStatus.FAILED, "timeout"): 1,
        }


class TestWithoutModel:
    NO_WEIGHTS = ItemError(ErrorCode.MODEL_UNAVAILABLE, "no weights")

    @pytest.mark.parametrize("models", [(), ("another:model",), ("demo",)])
    def test_only_workers_that_serve_the_model_get_the_chunk(
        self, bench: Bench, models: tuple[str, ...]
    ) -> None:
        bench.ledger.others += [WorkerFacts("other", "host", 1, models)] if models else []
        error = bench.endings.release_without_model(bench.held(), "demo", ValueError("no\nweights"))

        if "demo" in models:
            assert (error, bench.ledger.told) == (None, [("drain", "ValueError: no\nweights")])
            assert bench.models.served() == ()
        else:
            assert (error, bench.ledger.told) == (self.NO_WEIGHTS, [])


class TestFinishes:
    @pytest.mark.parametrize(
        ("error", "told"),
        [
            (OutputTooNewError("update it"), ("postpone", JOB_ID, "0", "")),
            (OutputUnavailableError("disk full"), ("postpone", JOB_ID, "5", "disk full")),
            (OutputUnreachableError("no mount"), ("postpone", JOB_ID, "5", "no mount")),
        ],
        ids=repr,
    )
    def test_a_finish_whose_output_cannot_be_used_is_postponed_and_its_job_shunned(
        self, bench: Bench, error: Exception, told: tuple[str, ...]
    ) -> None:
        bench.endings.postpone_finish(make_finish_claim(make_job()), error)

        assert bench.ledger.told == [told]
        assert bench.endings.shunned_jobs.current() == [JOB_ID]


class TestShunnedJobs:
    def test_a_job_that_waits_is_shunned_longer_each_time_up_to_a_bound(self) -> None:
        clock = Clock()
        shunned = ShunnedJobs(clock)
        spans = []
        for _ in range(7):
            shunned.wait("job")
            shunned.wait("job")  # its other chunks fail at the same time: that is the same trouble
            began = clock.now
            while shunned.current():
                clock.now += 0.5
            spans.append(clock.now - began)

        assert spans == [1, 2, 4, 8, 15, 15, 15]

    def test_a_complete_chunk_resets_the_wait(self) -> None:
        clock = Clock()
        shunned = ShunnedJobs(clock)
        for _ in range(3):
            shunned.wait("job")
            clock.now += 60
        shunned.forget("job")
        shunned.wait("job")
        clock.now += 1

        assert shunned.current() == []
