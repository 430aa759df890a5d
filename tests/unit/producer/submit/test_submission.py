"""One submit, step by step: what is made in which order, what is refused before anything is lost."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, ClassVar, cast
from unittest.mock import Mock

import pyarrow as pa
import pytest

from clipfleet.contract.jobs import Job, JobState, SourceDescription, read_job
from clipfleet.errors import (
    ClipfleetError,
    JobConflictError,
    OutputConflictError,
    OutputUnavailableError,
    OutputUnreachableError,
    RedisUnavailableError,
    SourceChangedError,
    SourceError,
    UsageError,
)
from clipfleet.heads.files import HeadFile
from clipfleet.hints import MAX_HINTS, Hints
from clipfleet.ledger.answers import SealAnswer, StageAnswer
from clipfleet.ledger.memory import MemoryLedger
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.sources.batches import item_batch
from clipfleet.store.gone_items import read_gone
from clipfleet.submit.submission import Submission
from tests.support.heads import head_file
from tests.support.jobs import make_job, place_job
from tests.support.ledger import bring_into
from tests.support.ledger_replies import RepliesLedger

ITEMS = 5
WRITES = ("submit", "stage", "hint", "seal", "cancel")
SUBMITTED = ["_clipfleet/items-00000000-3.staged", "_clipfleet/job.json", "_clipfleet/staged.json"]
ENDED = [JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS, JobState.CANCELLED, JobState.FAILED]


class FakeHints:
    """Counts what is published, and adds it to the calls of the ledger."""

    def __init__(self, ledger: RepliesLedger) -> None:
        self.counts: list[int] = []
        self._calls = ledger.calls

    def publish_work(self, count: int = 1) -> None:
        self._calls.append(("hint", (), {}))
        self.counts.append(count)


class FakeSource:
    """Some items; may fail after some of them."""

    description = SourceDescription(kind="folder", uri="/images")

    def __init__(self, items: int = ITEMS, error: Exception | None = None) -> None:
        self._items = items
        self._error = error

    def batches(self) -> Iterator[pa.RecordBatch]:
        for number in range(self._items):
            yield item_batch(number, None, pa.array([f"/images/{number}.jpg"], pa.string()))
        if self._error is not None:
            raise self._error


class Bench:
    def __init__(self, folder: Path) -> None:
        self.output = FolderOutput(folder)
        self.job = make_job(folder, chunk_size=2)
        self.ledger = RepliesLedger()
        self.hints = FakeHints(self.ledger)

    def submit(
        self,
        source: FakeSource | None = None,
        *,
        overwrite: bool = False,
        heads: Sequence[HeadFile] = (),
        gone: Sequence[str] | None = None,
        resumes: bool = False,
        **values: Any,
    ) -> None:
        job = self.job.model_copy(update={"heads": tuple(one.of_job for one in heads), **values})
        submission = Submission(
            self.ledger, cast(Hints, self.hints), self.output, job, heads=heads, resumes=resumes
        )
        if gone is not None:
            batch = pa.RecordBatch.from_pydict({"item_id": gone, "digest": [1] * len(gone)})
            submission.gone = lambda: [batch]
        submission.run(source or FakeSource(), overwrite=overwrite)

    def names(self) -> list[str]:
        """Everything that lies in the output, as far as a user may miss it."""
        found = (path for path in Path(self.output.uri).rglob("*") if path.is_file())
        return sorted(str(path.relative_to(self.output.uri)) for path in found)

    def occupy(self, state: JobState | None = None, **job: Any) -> Job:
        """Another job lies in the output, with a part; the ledger knows it by its state, or not at all."""
        other = make_job(self.output.uri, **{"job_id": "other", **job})
        place_job(self.output, other)
        self.output.create(objects.LAYOUT.part(0), b"rows")
        if state is not None:
            self.know(other, state)
        return other

    def know(self, job: Job, state: JobState) -> None:
        """The ledger has a job in this state."""
        bring_into(self.ledger, state, job)
        self.ledger.calls.clear()

    def cancel(self) -> None:
        self.ledger.cancel(self.job.job_id, ttl_seconds=60)

    def break_at(self, call: str) -> None:
        """A submit for which Redis is away at this call."""
        self.ledger.replies[call] = RedisUnavailableError("away")
        with pytest.raises(RedisUnavailableError):
            self.submit()
        self.ledger.replies.clear()
        self.hints.counts.clear()

    @property
    def writes(self) -> list[str]:
        """The calls that change the ledger, and the hints, in order."""
        return [name for name, _, _ in self.ledger.calls if name in WRITES]

    @property
    def state(self) -> JobState:
        return self.ledger.status(self.job.job_id).state


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "out")


def refuses(bench: Bench, error: type[ClipfleetError], words: str, **options: Any) -> None:
    """The submit is refused, and nothing in the output has changed."""
    before = bench.names()
    with pytest.raises(error, match=words):
        bench.submit(**options)
    assert bench.names() == before


class TestOrder:
    def test_items_are_in_place_before_the_ledger_has_them_and_workers_come_last(self, bench: Bench) -> None:
        bench.submit()

        assert bench.writes == ["submit", "stage", "hint", "seal"]
        assert bench.ledger.staged_files(bench.job.job_id) == [(0, 3)]
        assert bench.hints.counts == [3]
        assert bench.names() == SUBMITTED
        assert read_job(bench.output.read(objects.JOB_FILE) or b"") == bench.job

    def test_the_number_of_hints_is_bounded_whatever_the_jobs_size(self, bench: Bench) -> None:
        bench.submit(FakeSource(MAX_HINTS * 3), chunk_size=1)

        assert sum(bench.hints.counts) == MAX_HINTS

    @pytest.mark.parametrize("call", ["submit", "stage", "seal"])
    def test_after_a_failure_the_same_submit_goes_on_and_wakes_workers(self, bench: Bench, call: str) -> None:
        bench.break_at(call)

        bench.submit()

        status = bench.ledger.status(bench.job.job_id)
        assert (status.chunks, status.total, status.state) == (3, ITEMS, JobState.RUNNING)
        assert bench.hints.counts == [3]
        assert "cancel" not in bench.writes

    @pytest.mark.parametrize("state", [*ENDED, JobState.RUNNING])
    def test_an_ended_or_sealed_job_is_left_as_it_is(self, bench: Bench, state: JobState) -> None:
        bench.know(bench.job, state)

        bench.submit()

        assert bench.writes == ["submit"]
        assert bench.names() == []


class TestHeads:
    HEADS = head_file(4, 2), head_file(4, 2, name="mood", seed=1)
    NAMES: ClassVar = [objects.head_file(one.of_job.sha256) for one in HEADS]

    @pytest.fixture
    def at_stage(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
        """What lies in the output each time a file of chunks becomes claimable."""
        seen, stage = list[list[str]](), bench.ledger.stage

        def watched(*given: Any) -> StageAnswer:
            seen.append(bench.names())
            return stage(*given)

        monkeypatch.setattr(bench.ledger, "stage", watched)
        return seen

    def test_they_are_in_place_before_a_worker_may_need_them(
        self, bench: Bench, at_stage: list[list[str]]
    ) -> None:
        bench.submit(heads=self.HEADS)

        assert set(self.NAMES) < set(at_stage[0])
        assert [bench.output.read(name) for name in self.NAMES] == [one.data for one in self.HEADS]

    @pytest.mark.parametrize("lost", ["all", "one", "damaged"])
    def test_a_submit_that_goes_on_puts_back_what_is_missing(
        self, bench: Bench, at_stage: list[list[str]], lost: str
    ) -> None:
        bench.ledger.replies["stage"] = RedisUnavailableError("away")
        with pytest.raises(RedisUnavailableError):
            bench.submit(heads=self.HEADS)
        bench.ledger.replies.clear()
        for name in self.NAMES if lost == "all" else self.NAMES[:1]:
            bench.output.remove(name)
            if lost == "damaged":
                bench.output.create(name, b"half")

        bench.submit(heads=self.HEADS)

        assert [bench.output.read(name) for name in self.NAMES] == [one.data for one in self.HEADS]
        assert set(self.NAMES) < set(at_stage[-1])

    def test_those_of_a_job_that_is_replaced_are_removed(self, bench: Bench) -> None:
        other = bench.occupy(JobState.COMPLETED, heads=(self.HEADS[0].of_job,))
        bench.output.create(self.NAMES[0], self.HEADS[0].data)

        bench.submit(heads=self.HEADS[1:], overwrite=True)

        assert other.heads
        assert [*bench.output.names(objects.HEAD_PREFIX)] == self.NAMES[1:]

    def test_nothing_is_placed_where_another_job_lies(self, bench: Bench) -> None:
        bench.occupy(JobState.COMPLETED)

        refuses(bench, OutputConflictError, "overwrite=True", heads=self.HEADS)

    def test_another_content_of_the_same_name_is_another_job(self, bench: Bench) -> None:
        bench.break_at("stage")

        refuses(bench, JobConflictError, "heads", heads=self.HEADS)


class TestGoneItems:
    """Of a job that fills a store: its finish must find the whole list."""

    def test_they_are_in_place_before_the_job_can_be_finished(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen, stage = [], bench.ledger.stage
        monkeypatch.setattr(bench.ledger, "stage", lambda *given: seen.append(bench.names()) or stage(*given))

        bench.submit(gone=["a", "b"])

        assert objects.GONE in seen[0]
        (batch,) = read_gone(bench.output)
        assert batch.to_pydict() == {"item_id": ["a", "b"], "digest": [1, 1]}

    def test_a_submit_that_goes_on_has_the_list_of_its_own_comparison(self, bench: Bench) -> None:
        bench.ledger.replies["stage"] = RedisUnavailableError("away")
        with pytest.raises(RedisUnavailableError):
            bench.submit(gone=["a", "b"])
        bench.ledger.replies.clear()

        bench.submit(gone=["b"])

        assert [name for batch in read_gone(bench.output) for name in batch["item_id"].to_pylist()] == ["b"]

    def test_other_jobs_have_none(self, bench: Bench) -> None:
        bench.submit()

        assert [*read_gone(bench.output)] == []
        assert objects.GONE not in bench.names()


class TestSource:
    def test_one_that_is_empty_leaves_nothing_behind(self, bench: Bench) -> None:
        with pytest.raises(SourceError, match="no image"):
            bench.submit(FakeSource(0, SourceError("no image in it")))

        assert bench.writes == []
        assert not Path(bench.output.uri).exists()

    def test_one_that_breaks_off_cancels_a_job_that_was_made_for_it(self, bench: Bench) -> None:
        with pytest.raises(SourceError, match="line 4"):
            bench.submit(FakeSource(3, SourceError("line 4")))

        assert bench.state is JobState.CANCELLED

    def test_one_that_breaks_off_leaves_a_resumed_job_alone(self, bench: Bench) -> None:
        bench.ledger.submit(bench.job)

        with pytest.raises(SourceError):
            bench.submit(FakeSource(3, SourceError("line 4")))

        assert "cancel" not in bench.writes

    def test_one_that_changed_leaves_the_job_alone(self, bench: Bench) -> None:
        bench.break_at("seal")

        with pytest.raises(SourceChangedError):
            bench.submit(FakeSource(ITEMS - 1))

        assert bench.state is JobState.SUBMITTING
        assert "cancel" not in bench.writes


class TestUnreachableOutput:
    @pytest.mark.parametrize("resumes", [False, True])
    def test_a_new_job_is_cancelled_unless_the_caller_resumes(self, bench: Bench, resumes: bool) -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(bench.output, "create", Mock(side_effect=OutputUnreachableError("not mounted")))
            with pytest.raises(OutputUnreachableError):
                bench.submit(resumes=resumes)

        assert bench.state is (JobState.SUBMITTING if resumes else JobState.CANCELLED)
        if resumes:
            bench.submit(resumes=True)
            assert bench.state is JobState.RUNNING


class TestOccupiedOutput:
    def test_another_jobs_is_refused_and_the_ways_out_are_told(self, bench: Bench) -> None:
        bench.occupy(JobState.COMPLETED)

        refuses(bench, OutputConflictError, "holds job other: choose another `output=`.*`overwrite=True`")
        assert bench.writes == []

    def test_parts_of_an_unknown_job_are_refused_too(self, bench: Bench) -> None:
        bench.output.create(objects.LAYOUT.part(0), b"rows")

        refuses(bench, OutputConflictError, r"holds files named part-\*")

    @pytest.mark.parametrize("overwrite", [False, True])
    def test_a_job_file_that_cannot_be_read_is_refused(self, bench: Bench, overwrite: bool) -> None:
        bench.output.create(objects.JOB_FILE, b"{}")

        refuses(bench, OutputConflictError, "choose another `output=`", overwrite=overwrite)

    def test_other_files_are_no_hindrance_and_stay(self, bench: Bench) -> None:
        bench.output.create("notes.txt", b"mine")

        bench.submit()

        assert bench.names() == [*SUBMITTED, "notes.txt"]

    @pytest.mark.parametrize("state", [*ENDED, None])
    def test_one_that_ended_or_is_unknown_is_overwritten(self, bench: Bench, state: JobState | None) -> None:
        bench.occupy(state)
        bench.output.create("notes.txt", b"mine")

        bench.submit(overwrite=True)

        assert bench.names() == [*SUBMITTED, "notes.txt"]

    @pytest.mark.parametrize("state", [state for state in JobState if not state.is_final])
    def test_a_job_that_still_writes_is_not_overwritten(self, bench: Bench, state: JobState) -> None:
        bench.occupy(state)

        refuses(bench, OutputConflictError, "`clipfleet cancel other` first", overwrite=True)

    def test_a_job_does_not_overwrite_itself(self, bench: Bench) -> None:
        bench.submit()

        refuses(bench, UsageError, "`overwrite=True` needs a new job id", overwrite=True)

    def test_a_job_that_has_ended_does_not_overwrite_its_successor(self, bench: Bench) -> None:
        bench.occupy(JobState.COMPLETED)
        bench.know(bench.job, JobState.COMPLETED)

        refuses(bench, JobConflictError, "is completed: `overwrite=True` needs a new job id", overwrite=True)

    def test_a_submit_that_is_refused_has_removed_nothing(self, bench: Bench) -> None:
        bench.occupy(JobState.COMPLETED)

        refuses(bench, SourceError, "empty", overwrite=True, source=FakeSource(0, SourceError("empty")))
        bench.ledger.replies["submit"] = RedisUnavailableError("away")
        refuses(bench, RedisUnavailableError, "away", overwrite=True)
        bench.ledger.replies.clear()
        bench.ledger.submit(bench.job.model_copy(update={"top_k": 9}))
        refuses(bench, JobConflictError, "differs in", overwrite=True)

    def test_of_two_submits_into_one_output_the_second_leaves_no_job(self, bench: Bench) -> None:
        bench.ledger.before["submit"] = bench.occupy  # after the look at the output

        with pytest.raises(OutputConflictError, match="taken by another job in the meantime"):
            bench.submit()
        assert bench.state is JobState.CANCELLED


class TestMeanwhile:
    def test_an_ended_job_is_given_no_items(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        """By now another job may have its output."""
        publish = bench.output.publish

        def late(*arguments: Any, **options: Any) -> bool:
            bench.cancel()
            return publish(*arguments, **options)

        bench.ledger.before["submit"] = lambda: monkeypatch.setattr(bench.output, "publish", late)

        with pytest.raises(JobConflictError, match="accepts no more items: it is cancelled"):
            bench.submit()
        assert bench.names() == [objects.JOB_FILE]

    def test_a_submit_after_a_full_disk(self, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> bool:
            raise OutputUnavailableError("disk full")

        with monkeypatch.context() as patch, pytest.raises(OutputUnavailableError, match="disk full"):
            patch.setattr(bench.output, "create", full)
            bench.submit()

        bench.submit()
        assert bench.state is JobState.RUNNING

    @pytest.mark.parametrize(
        ("call", "answer", "words"),
        [
            ("stage", StageAnswer.GAP, "another submit of job .* is running"),
            ("stage", None, "accepts no more items: it is cancelled"),
            ("seal", SealAnswer.MISMATCH, "changed by another program"),
        ],
    )
    def test_others_interfere(self, bench: Bench, call: str, answer: Any, words: str) -> None:
        bench.ledger.replies[call] = answer
        if answer is None:
            bench.ledger.before[call] = bench.cancel

        with pytest.raises(JobConflictError, match=words):
            bench.submit()

    def test_a_file_the_ledger_knows_already_is_no_error(self, bench: Bench) -> None:
        job_id = bench.job.job_id
        bench.ledger.before["stage"] = lambda: MemoryLedger.stage(bench.ledger, job_id, 0, 3, ITEMS)

        bench.submit()

        assert bench.ledger.status(job_id).sealed


def test_of_two_submits_at_once_the_second_takes_the_chunk_size_that_the_first_has_chosen(
    bench: Bench,
) -> None:
    bench.ledger.submit(bench.job.model_copy(update={"chunk_size": 16}))
    late = Submission(
        bench.ledger, cast(Hints, bench.hints), bench.output, bench.job, chooses_chunk_size=True
    )

    assert not late.run(FakeSource())

    assert late.job.chunk_size == 16
