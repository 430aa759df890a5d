"""Replacing another job's results: when nobody writes there any more, and by one submit at a time."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipfleet.contract.jobs import JobState
from clipfleet.errors import JobConflictError, JobNotFoundError, OutputConflictError
from clipfleet.outputs import objects
from clipfleet.outputs.folder import Confirm, FolderOutput, unconditionally
from clipfleet.outputs.job_file import job_of
from clipfleet.outputs.overwriting import Overwriting
from tests.support.jobs import make_status, place_job
from tests.support.ledger import make_job
from tests.support.ledger_replies import RepliesLedger


class SteppedOutput(FolderOutput):
    """Lets something happen right before an object is removed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.before_removal: dict[str, Callable[[], object]] = {}

    def clear(self, *, confirm: Confirm = unconditionally) -> None:
        def confirmed() -> None:
            for name in [name for name in self.before_removal if self.read(name) is not None]:
                self.before_removal.pop(name)()
            confirm()

        super().clear(confirm=confirmed)


class Bench:
    def __init__(self, folder: Path) -> None:
        self.output = SteppedOutput(folder)
        self.ledger = RepliesLedger()
        self.ledger_has(JobState.CANCELLED)
        self.said: list[str] = []
        self.pauses = 0
        self.on_pause: Callable[[], object] = lambda: None
        place_job(self.output, make_job("before", output=self.output.uri))
        for name in (objects.LAYOUT.part(0), objects.LAYOUT.staged_file(0, 1), objects.SUCCESS):
            self.output.create(name, b"theirs")

    def submit(self, job_id: str = "ours", **changes: Any) -> Overwriting:
        job = make_job(job_id, output=self.output.uri).model_copy(update=changes)
        return Overwriting(
            self.ledger, self.output, job, write_limit_seconds=30, say=self.said.append, sleep=self._sleep
        )

    def due(self, job_id: str = "ours") -> Overwriting:
        """A submit that has found that it may overwrite."""
        submit = self.submit(job_id)
        assert submit.is_due(is_wanted=True)
        return submit

    def ledger_has(self, state: JobState | None) -> None:
        """The state in which the ledger has the job that is to be replaced; None: it has forgotten it."""
        status = JobNotFoundError("before") if state is None else make_status(job_id="before", state=state)
        self.ledger.replies["status"] = status

    def left_by_a_job_without_rows(self, **facts: Any) -> None:
        """Staged items only, and what the ledger has of the job."""
        for name in (objects.LAYOUT.part(0), objects.SUCCESS):
            self.output.remove(name)
        self.ledger.replies["status"] = make_status(job_id="before", **facts)
        self.ledger.replies["job"] = make_job("before", output=self.output.uri)

    def _sleep(self, _: float) -> None:
        self.pauses += 1
        self.on_pause()

    def overwrite(self, job_id: str = "ours") -> None:
        """All that a submit does, up to the first staged file."""
        self.due(job_id).run()
        self.output.create(objects.LAYOUT.staged_file(0, 1), f"items of {job_id}".encode())

    def names(self) -> list[str]:
        return [*self.output.names(""), *self.output.names(f"{objects.INTERNAL}/")]

    def holder(self) -> str | None:
        job = job_of(self.output)
        return job and job.job_id


@pytest.fixture
def bench(tmp_path: Path) -> Bench:
    return Bench(tmp_path / "out")


class TestWaiting:
    def test_workers_that_may_still_write_are_waited_for_and_told_of_once(self, bench: Bench) -> None:
        bench.ledger.replies["writers"] = [(3, 41.6), (2, 40.0), (1, 39.0)]

        bench.due()

        assert bench.pauses == 3
        assert bench.said == [
            f"waiting for workers to release 3 chunks of job before in {bench.output.uri} "
            "(about 42 s if they do not answer)"
        ]

    def test_a_job_that_nobody_holds_is_not_waited_for(self, bench: Bench) -> None:
        bench.due()
        assert (bench.pauses, bench.said) == (0, [])

    def test_a_job_that_the_ledger_has_forgotten_has_no_leases(self, bench: Bench) -> None:
        bench.ledger_has(None)
        bench.due()

    def test_a_job_that_was_retried_meanwhile_is_not_overwritten(self, bench: Bench) -> None:
        bench.ledger.replies["writers"] = [(1, 40.0)]
        bench.on_pause = lambda: bench.ledger_has(JobState.RUNNING)

        with pytest.raises(OutputConflictError, match="`clipfleet cancel before` first"):
            bench.submit().is_due(is_wanted=True)


class TestWithoutOverwrite:
    @pytest.mark.parametrize(
        "facts",
        [{"state": JobState.FAILED}, {"state": JobState.CANCELLED, "sealed": False}],
        ids=["failed", "its submit was refused"],
    )
    def test_what_a_job_left_that_failed_before_its_first_row_is_removed(
        self, bench: Bench, facts: dict[str, Any]
    ) -> None:
        bench.left_by_a_job_without_rows(**facts)
        submit = bench.submit()

        assert submit.is_due(is_wanted=False)
        submit.run()

        assert bench.names() == [objects.JOB_FILE]
        assert bench.holder() == "ours"

    @pytest.mark.parametrize(
        "facts",
        [
            {"state": JobState.FAILED, "ok": 1},
            {"state": JobState.FAILED, "failed": 1},
            {"state": JobState.FAILED, "generation": 1},
            {"state": JobState.CANCELLED},  # `retry` continues it
            {"state": JobState.RUNNING},
        ],
        ids=str,
    )
    def test_any_other_job_keeps_its_output(self, bench: Bench, facts: dict[str, Any]) -> None:
        bench.left_by_a_job_without_rows(**facts)

        with pytest.raises(OutputConflictError, match="holds job before: choose another `output=`"):
            bench.submit().is_due(is_wanted=False)

        assert bench.output.read(objects.LAYOUT.staged_file(0, 1)) == b"theirs"

    def test_a_failed_job_of_this_id_in_another_redis_says_nothing_about_this_one(self, bench: Bench) -> None:
        bench.left_by_a_job_without_rows(state=JobState.FAILED)
        bench.ledger.replies["job"] = make_job("before", output="/elsewhere")

        with pytest.raises(OutputConflictError, match="holds job before"):
            bench.submit().is_due(is_wanted=False)

    @pytest.mark.parametrize("layout", objects.LAYOUTS, ids=["today", "the first"])
    def test_a_part_that_comes_late_is_a_row(self, bench: Bench, layout: objects.Layout) -> None:
        bench.left_by_a_job_without_rows(state=JobState.FAILED)
        bench.ledger.replies["writers"] = [(1, 40.0)]
        bench.on_pause = lambda: bench.output.create(layout.part(3), b"theirs")

        with pytest.raises(OutputConflictError, match="holds job before"):
            bench.submit().is_due(is_wanted=False)

    def test_a_job_that_is_retried_meanwhile_keeps_its_output(self, bench: Bench) -> None:
        bench.left_by_a_job_without_rows(state=JobState.FAILED)
        submit = bench.submit()
        assert submit.is_due(is_wanted=False)
        bench.ledger_has(JobState.RUNNING)

        with pytest.raises(OutputConflictError, match="`clipfleet cancel before` first"):
            submit.run()

        assert bench.holder() == "before"


class TestTakingOver:
    def test_it_is_the_other_jobs_until_all_is_removed_and_ours_at_once(self, bench: Bench) -> None:
        holders: list[str | None] = []
        bench.output.before_removal[objects.SUCCESS] = lambda: holders.append(bench.holder())

        bench.due().run()

        assert [*holders, bench.holder()] == ["before", "ours"]
        assert bench.names() == [objects.JOB_FILE]

    def test_one_that_was_interrupted_goes_on(self, bench: Bench) -> None:
        submit = bench.due()

        def killed() -> None:
            raise KeyboardInterrupt

        bench.output.before_removal[objects.SUCCESS] = killed
        with pytest.raises(KeyboardInterrupt):
            submit.run()

        bench.overwrite()

        assert bench.names() == [objects.LAYOUT.staged_file(0, 1), objects.JOB_FILE]
        assert bench.holder() == "ours"

    @pytest.mark.parametrize(("other", "error"), [("third", OutputConflictError), ("ours", JobConflictError)])
    @pytest.mark.parametrize("when", ["before the first removal", "in the midst of them"])
    def test_one_that_was_frozen_while_another_did_the_same_removes_nothing(
        self, bench: Bench, other: str, error: type[Exception], when: str
    ) -> None:
        submit = bench.due()
        if when == "in the midst of them":
            bench.output.before_removal[objects.SUCCESS] = lambda: bench.overwrite(other)
        else:
            bench.overwrite(other)

        with pytest.raises(error, match=r"in the meantime|another submit"):
            submit.run()

        assert bench.output.read(objects.LAYOUT.staged_file(0, 1)) == f"items of {other}".encode()
        assert bench.holder() == other

    def test_a_job_that_is_retried_while_its_results_are_removed_keeps_the_rest(self, bench: Bench) -> None:
        submit = bench.due()
        bench.output.before_removal[objects.LAYOUT.part(0)] = lambda: bench.ledger_has(JobState.RUNNING)

        with pytest.raises(OutputConflictError, match="`clipfleet cancel before` first"):
            submit.run()

        assert bench.holder() == "before"
        assert bench.output.read(objects.LAYOUT.part(0)) == b"theirs"

    def test_a_forgotten_job_of_the_same_id_is_another_job(self, bench: Bench) -> None:
        submit = bench.submit("before", top_k=3)
        bench.ledger_has(None)
        with pytest.raises(OutputConflictError, match="holds job before: choose another `output=`"):
            submit.is_due(is_wanted=False)

        assert submit.is_due(is_wanted=True)
        submit.run()

        assert bench.names() == [objects.JOB_FILE]
