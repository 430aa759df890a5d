"""What is said after a Ctrl-C, with and without an `up` around the command."""

from __future__ import annotations

import os

import pytest

from clipfleet.contract.jobs import JobState
from clipfleet.terminal.interrupted import (
    words_after_backfilling,
    words_after_evaluating,
    words_after_submitting,
    words_after_watching,
    words_after_watching_all,
)
from clipfleet.terminal.up_around import UP_VARIABLE, UpAround
from tests.support.jobs import make_status

UP = "clipfleet-worker up --dir 'a b'"
ALONE, ITS_COMMAND, BELOW_ITS_COMMAND = None, os.getppid(), 0


@pytest.fixture
def around(monkeypatch: pytest.MonkeyPatch, pid: int | None) -> None:
    monkeypatch.delenv(UP_VARIABLE, raising=False)
    if pid is not None:
        monkeypatch.setenv(UP_VARIABLE, UpAround(pid, UP).value())


@pytest.mark.usefixtures("around")
@pytest.mark.parametrize(
    ("pid", "said"),
    [
        (
            ALONE,
            "The job goes on without this terminal. Watch it again with `clipfleet watch j`, "
            "end it with `clipfleet cancel j`",
        ),
        (ITS_COMMAND, f"Paused: 1,256 of 30,000 done so far. Continue with `{UP} -- clipfleet watch j`"),
        (
            BELOW_ITS_COMMAND,
            "The job goes on while a worker runs. Watch it again with `clipfleet watch j`; "
            f"once `up` has ended, continue with `{UP} -- clipfleet watch j`",
        ),
    ],
)
def test_after_watching(said: str) -> None:
    assert words_after_watching("j", make_status(total=30_000, ok=1_250, failed=6)) == said


@pytest.mark.usefixtures("around")
@pytest.mark.parametrize("pid", [ITS_COMMAND])
def test_before_anything_was_shown_no_count_is_said() -> None:
    assert words_after_watching("j", None) == f"Paused. Continue with `{UP} -- clipfleet watch j`"


@pytest.mark.usefixtures("around")
@pytest.mark.parametrize(
    ("pid", "said"),
    [
        (ALONE, "The jobs go on without this terminal. Watch them again with `clipfleet watch --all`"),
        (ITS_COMMAND, f"Paused. Continue with `{UP} -- clipfleet watch --all`"),
        (
            BELOW_ITS_COMMAND,
            "The jobs go on while a worker runs. Watch them again with `clipfleet watch --all`; "
            f"once `up` has ended, continue with `{UP} -- clipfleet watch --all`",
        ),
    ],
)
def test_after_watching_all_jobs(said: str) -> None:
    assert words_after_watching_all() == said


@pytest.mark.usefixtures("around")
@pytest.mark.parametrize(
    ("pid", "given", "said"),
    [
        (
            ALONE,
            ["embed", "a b", "--job-id", "j"],
            "The submit was interrupted. Resume it with `clipfleet embed 'a b' --job-id j`, "
            "or end the job with `clipfleet cancel j`",
        ),
        (
            ITS_COMMAND,
            ["embed", "--", "-x"],
            f"Paused during the submit. Continue with `{UP} -- clipfleet embed --job-id j -- -x`",
        ),
        (
            BELOW_ITS_COMMAND,
            ["embed", "x", "--job-id=j"],
            "The submit was interrupted. Resume it with `clipfleet embed x --job-id=j`, or end the job with "
            f"`clipfleet cancel j`; once `up` has ended, write `{UP} --` before it",
        ),
    ],
)
def test_after_submitting(given: list[str], said: str) -> None:
    assert words_after_submitting("j", given) == said


@pytest.mark.usefixtures("around")
@pytest.mark.parametrize(
    ("pid", "before"), [(ALONE, ""), (ITS_COMMAND, f"{UP} -- "), (BELOW_ITS_COMMAND, "")]
)
def test_before_there_is_a_job_no_cancel_is_offered(before: str) -> None:
    said = words_after_submitting("j", ["embed", "-", "--sample", "9"], is_known=False)

    assert said == f"Nothing was submitted. Run it again with `{before}clipfleet embed - --sample 9`"


@pytest.mark.usefixtures("around")
@pytest.mark.parametrize(("pid", "before"), [(ALONE, ""), (ITS_COMMAND, f"{UP} -- ")])
def test_during_an_evaluation(before: str) -> None:
    said = words_after_evaluating(["evaluate", "a root"])

    assert said == f"Nothing is lost. Continue with `{before}clipfleet evaluate 'a root'`"


@pytest.mark.usefixtures("around")
@pytest.mark.parametrize("pid", [ALONE])
@pytest.mark.parametrize(
    ("state", "job"),
    [(None, "a job that was submitted"), ("running", "job j"), ("completed", "a job that was submitted")],
)
def test_after_a_backfill_the_job_that_goes_on_is_named(state: str | None, job: str) -> None:
    last = None if state is None else make_status(job_id="j", state=JobState(state))

    assert words_after_backfilling(last, ["backfill", "photos"]) == (
        f"Nothing is lost; {job} goes on without this terminal. Continue with `clipfleet backfill photos`"
    )
