"""How chunks end: what the ledger records, which jobs are shunned afterwards, and what is counted."""

from __future__ import annotations

import errno
from typing import Any, cast

import pytest

from clipfleet import errors
from clipfleet.contract.bottleneck import Meters
from clipfleet.contract.jobs import ErrorCode, ItemError, Precision
from clipfleet.contract.parts import ItemStatus, PartCounts
from clipfleet.ledger.answers import CompleteAnswer
from clipfleet.ledger.jobs import WorkerFacts
from clipfleet_worker.chunk import endings as endings_module
from clipfleet_worker.chunk.endings import Endings, ShunnedJobs
from clipfleet_worker.chunk.held_chunk import HeldChunk
from clipfleet_worker.chunk.pipeline import ChunkResult
from clipfleet_worker.chunk.tally import ChunkEnd
from clipfleet_worker.encode.batcher import BatcherStopped
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.failures import ChunkInterrupted, ChunkLostError, WorkerShortageError
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.loaded import LoadedModel
from tests.support.doubles import Clock
from tests.support.jobs import JOB_ID, make_claim, make_finish_claim, make_job, make_status
from tests.support.recording_ledger import OTHER_WORKER, RecordingLedger

RESULT = ChunkResult(PartCounts(2, 1, {"timeout": 1}), {"encode": 0.5})


OUTAGE_SECONDS = 3600
LIMITS = {"outage_seconds": OUTAGE_SECONDS, "ttl_seconds": 60}
PEERS = [OTHER_WORKER]
ELSEWHERE = WorkerFacts("elsewhere", "host", 3, ("another",))  # serves another model
REFUSING = WorkerFacts("refusing", "host", 4, ("demo",), refused_jobs=("x", JOB_ID))


class Bench:
    def __init__(self) -> None:
        self.ledger, self.clock = RecordingLedger(), Clock()
        self.ledger.replies["status"] = make_status(model="demo")
        self.models = Models(
            ("demo",), lambda name, *_: cast(LoadedModel, FakeEncoder(name)), kept=1,
            default_precision=Precision.FP32,
        )  # fmt: skip
        self.endings = Endings(
            ledger=self.ledger, models=self.models, worker_id="me", outage_seconds=OUTAGE_SECONDS,
            job_ttl_seconds=60, monotonic=self.clock,
        )  # fmt: skip

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
        (errors.OutputTooNewError("schema version 9: update it"), "drain", ChunkEnd.DRAINED, True),
        (errors.OutputUnavailableError("disk full"), "waits", ChunkEnd.WAITED, True),
        (errors.SourceUnavailableError("away"), "waits", ChunkEnd.WAITED, True),
        (WorkerShortageError("short of something"), "waits", ChunkEnd.WAITED, True),
        (errors.RedisUnavailableError("away"), "waits", ChunkEnd.WAITED, False),
        (MemoryError("device"), "waits", ChunkEnd.WAITED, False),
        (errors.OutputUnreachableError("no mount"), "failures", ChunkEnd.FAILED, True),
        (errors.OutputDamagedError("no part"), "failures", ChunkEnd.FAILED, False),
        (ValueError("bug"), "failures", ChunkEnd.FAILED, False),
    ],
    ids=repr,
)
def test_a_chunk_without_a_part_is_released_and_counted_by_what_went_wrong(
    bench: Bench, error: BaseException, kind: str, end: ChunkEnd, shuns: bool
) -> None:
    bench.ledger.others += [OTHER_WORKER] * 4

    assert bench.release(error, failures=3) == [(kind, f"{type(error).__name__}: {error}")]
    assert bench.ledger.keywords("release")[0]["outage_seconds"] == OUTAGE_SECONDS
    assert bench.endings.shunned_jobs.current() == [JOB_ID] * shuns
    totals = bench.endings.tally.totals()
    assert (totals.ends, totals.items, sum(totals.lived)) == ({end: 1}, {}, 1)


def test_what_this_worker_lacks_makes_the_job_wait(bench: Bench) -> None:
    ((kind, reason),) = bench.release(OSError(errno.EMFILE, "Too many open files"))

    assert kind == "waits"
    assert "too few file descriptors" in reason
    assert bench.endings.shunned_jobs.current() == [JOB_ID]


@pytest.mark.parametrize(
    ("error", "failures", "others", "told"),
    [
        (errors.OutputConflictError("of x"), 0, PEERS, ("fail", JOB_ID, "output_conflict: of x")),
        # Nobody else could do it, and waiting does not help:
        (errors.OutputRefusedError("no"), 0, [], ("fail", JOB_ID, "output_unreachable: no")),
        (errors.OutputRefusedError("no"), 0, [ELSEWHERE], ("fail", JOB_ID, "output_unreachable: no")),
        # One that serves the model may reach it, whatever the chunk has met before:
        (errors.OutputRefusedError("no"), 0, PEERS, ("drain", "OutputRefusedError: no")),
        (errors.OutputRefusedError("no"), 4, PEERS, ("drain", "OutputRefusedError: no")),
        (errors.OutputRefusedError("no"), 0, [REFUSING, *PEERS], ("drain", "OutputRefusedError: no")),
        # None of them may:
        (errors.OutputRefusedError("no"), 0, [REFUSING], ("fail", JOB_ID, "output_unreachable: no")),
        # A mount may return:
        (errors.OutputUnreachableError("no"), 3, [], ("failures", "OutputUnreachableError: no")),
        (errors.OutputUnreachableError("no"), 4, [], ("fail", JOB_ID, "output_unreachable: no")),
        (errors.OutputUnreachableError("no"), 4, PEERS, ("fail", JOB_ID, "output_unreachable: no")),
        # Not even failed rows could be written:
        (ValueError("bug"), 9, PEERS, ("fail", JOB_ID, "chunk_failed: bug")),
        (ChunkLostError("lost"), 0, PEERS, ("fail", JOB_ID, "chunk_failed: lost")),
        (ValueError("bug"), 8, [], ("failures", "ValueError: bug")),
        (errors.OutputTooNewError("update it"), 4, [], ("drain", "OutputTooNewError: update it")),
    ],
    ids=repr,
)
def test_a_job_whose_rows_cannot_be_written_fails_and_no_other(
    bench: Bench, error: Exception, failures: int, others: list[WorkerFacts], told: tuple[str, ...]
) -> None:
    bench.ledger.others += others

    assert bench.release(error, failures) == [told]
    for keywords in bench.ledger.keywords("fail"):  # else it ended a job that another worker holds by now
        assert (keywords["holder"].chunk_id, keywords["ttl_seconds"]) == (7, 60)
        assert bench.endings.tally.totals().ends == {ChunkEnd.FAILED: 1}


@pytest.mark.parametrize(("others", "is_soon"), [([], True), ([ELSEWHERE], True), (PEERS, False)])
def test_a_missing_mount_is_tried_again_soon_unless_another_worker_may_have_it(
    bench: Bench, others: list[WorkerFacts], is_soon: bool
) -> None:
    bench.ledger.others += others
    for _ in range(4):
        bench.release(errors.OutputUnreachableError("no mount"))
        bench.clock.now += 2.5

    assert bench.endings.shunned_jobs.current() == ([] if is_soon else [JOB_ID])


def test_what_this_worker_refuses_is_reported_and_tried_again_when_heartbeats_have_come(bench: Bench) -> None:
    bench.ledger.others += PEERS
    bench.release(errors.OutputRefusedError("no"))
    assert bench.endings.refused_jobs == (JOB_ID,)
    assert bench.endings.shunned_jobs.current() == [JOB_ID]

    bench.clock.now += 16
    assert bench.endings.shunned_jobs.current() == []


@pytest.mark.parametrize("error", [errors.JobNotFoundError("none"), errors.JobUnreadableError("damaged")])
def test_a_job_of_an_unknown_model_may_be_of_another_worker(bench: Bench, error: Exception) -> None:
    bench.ledger.replies["status"] = error

    assert bench.release(errors.OutputRefusedError("no")) == [("failures", "OutputRefusedError: no")]


def test_a_long_reason_is_cut(bench: Bench) -> None:
    assert len(bench.release(ValueError("x" * 1000))[0][1]) == 300


def test_while_redis_is_away_the_release_is_retried(
    bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(endings_module, "_RETRY_SECONDS", 0.001)
    bench.ledger.replies["release"] = [errors.RedisUnavailableError("away")] * 2

    assert bench.release(ValueError("bug")) == [("failures", "ValueError: bug")]
    assert [record.levelname for record in caplog.records if "failed" in record.message] == ["ERROR"]


@pytest.mark.parametrize("call", ["release", "complete"])
def test_a_worker_that_drains_retries_nothing(bench: Bench, call: str) -> None:
    bench.ledger.goes_away(call)
    bench.endings.drain()

    assert bench.release(ValueError("bug")) == [] or call == "complete"
    assert bench.endings.complete(bench.held(), RESULT) == (None if call == "complete" else "done")


OF_ALL = {(ItemStatus.OK, ""): 2, (ItemStatus.FAILED, "timeout"): 1}


@pytest.mark.parametrize(
    ("words", "end", "items", "work_seconds"),
    [
        (["done", "finishing", "ended", "stopped"], ChunkEnd.DONE, OF_ALL, {"encode": 0.5}),
        (["already", "stale", "cancelled", "missing"], ChunkEnd.LATE, {}, {}),
    ],
)
def test_a_chunk_that_the_ledger_counts_is_counted_with_its_rows_another_without(
    bench: Bench, words: list[str], end: ChunkEnd, items: dict[Any, int], work_seconds: dict[str, float]
) -> None:
    for number, word in enumerate(words, 1):
        bench.ledger.replies["complete"] = CompleteAnswer(word)
        bench.endings.complete(bench.held(), RESULT)

        totals = bench.endings.tally.totals()
        assert totals.ends == {end: number}
        assert totals.items == {item: count * number for item, count in items.items()}
        assert totals.work_seconds == {step: seconds * number for step, seconds in work_seconds.items()}


@pytest.mark.parametrize("is_away", [False, True])
def test_releases_of_all_tell_whether_redis_was_there(bench: Bench, is_away: bool) -> None:
    if is_away:
        bench.ledger.goes_away("release")

    assert bench.endings.release_all([bench.held(), bench.held()], "the worker drains") is not is_away
    assert len(bench.ledger.named("release")) == (1 if is_away else 2)


def test_the_ledger_hears_what_a_chunk_has_cost_and_measured(bench: Bench) -> None:
    meters = Meters({"fetching": 2.0})
    ran = PartCounts(2, 1, {"timeout": 1})

    result = ChunkResult(PartCounts(9, 3, {"timeout": 3}), {"encode": 0.5}, ran, meters)
    bench.endings.complete(bench.held(), result)

    assert bench.ledger.keywords("complete") == [
        {
            "ok": 9, "failed": 3, "codes": {"timeout": 3}, "work_seconds": {"encode": 0.5}, "ran": (3, 1),
            "meters": meters, "ttl_seconds": 60, "decisions": None,
        }
    ]  # fmt: skip


def test_after_a_complete_chunk_its_job_is_shunned_for_a_moment_only(bench: Bench) -> None:
    for _ in range(2):
        bench.endings.shunned_jobs.wait(JOB_ID)
        bench.clock.now += 60
    bench.endings.complete(bench.held(), RESULT)

    bench.endings.shunned_jobs.wait(JOB_ID)
    bench.clock.now += 1

    assert bench.endings.shunned_jobs.current() == []


def test_of_a_retry_only_the_rows_that_were_run_count(bench: Bench) -> None:
    kept_and_new = ChunkResult(PartCounts(9, 3, {"timeout": 3}), {}, PartCounts(2, 1, {"timeout": 1}))
    bench.endings.complete(bench.held(), kept_and_new)

    assert bench.endings.tally.totals().items == OF_ALL


@pytest.mark.parametrize("models", [(), ("another:model",), ("demo",)])
def test_only_workers_that_serve_the_model_get_the_chunk(bench: Bench, models: tuple[str, ...]) -> None:
    bench.ledger.others += [WorkerFacts("other", "host", 1, models)] if models else []
    error = bench.endings.release_without_model(bench.held(), "demo", ValueError("no\nweights"))

    if "demo" in models:
        assert (error, bench.ledger.told) == (None, [("drain", "ValueError: no\nweights")])
        assert bench.models.served() == ()
    else:
        no_weights = ItemError(ErrorCode.MODEL_UNAVAILABLE, "no weights")
        assert (error, bench.ledger.told) == (no_weights, [])


@pytest.mark.parametrize(
    ("error", "told", "limits"),
    [
        (errors.OutputTooNewError("update it"), ("0",), {}),
        (errors.OutputUnavailableError("disk full"), ("5", "disk full"), LIMITS | {"is_lasting": False}),
        (errors.OutputUnreachableError("no mount"), ("5", "no mount"), LIMITS | {"is_lasting": True}),
    ],
    ids=repr,
)
def test_a_finish_without_its_output_is_postponed_and_its_job_shunned(
    bench: Bench, error: Exception, told: tuple[str, ...], limits: dict[str, Any]
) -> None:
    bench.endings.postpone_finish(make_finish_claim(make_job()), error)

    assert bench.ledger.told == [("postpone", JOB_ID, *told)]
    assert bench.ledger.keywords("postpone_finish") == [limits]
    assert bench.endings.shunned_jobs.current() == [JOB_ID]


def test_a_finish_that_fails_unexpectedly_soon_pauses_its_job(bench: Bench) -> None:
    bench.endings.postpone_faulty_finish(make_finish_claim(make_job()), ValueError("a bug"))

    assert bench.ledger.told == [("postpone", JOB_ID, "5", "ValueError: a bug")]
    assert bench.ledger.keywords("postpone_finish") == [LIMITS | {"outage_seconds": 600, "is_lasting": False}]


class TestShunnedJobs:
    def test_a_job_that_waits_is_shunned_longer_each_time_up_to_a_bound(self) -> None:
        shunned, spans = ShunnedJobs(clock := Clock()), []
        for _ in range(7):
            shunned.wait("job")
            shunned.wait("job")  # its other chunks fail at the same time: that is the same trouble
            began = clock.now
            while shunned.current():
                clock.now += 0.5
            spans.append(clock.now - began)

        assert spans == [1, 2, 4, 8, 15, 15, 15]

    def test_a_complete_chunk_resets_the_wait(self) -> None:
        shunned = ShunnedJobs(clock := Clock())
        for _ in range(3):
            shunned.wait("job")
            clock.now += 60
        shunned.forget("job")
        shunned.wait("job")
        clock.now += 1

        assert shunned.current() == []


def test_the_end_of_a_stores_job_is_left_to_others_with_one_line_in_the_log(
    bench: Bench, caplog: pytest.LogCaptureFixture
) -> None:
    jobs = [make_job(job_id=job_id) for job_id in ("first", "second")]
    for job in jobs:
        bench.endings.pass_on_finish(make_finish_claim(job))

    assert bench.endings.shunned_jobs.current() == ["first", "second"]
    assert bench.ledger.told == [("postpone", "first", "0"), ("postpone", "second", "0")]
    assert caplog.text.count("clipfleet[store]") == 1
