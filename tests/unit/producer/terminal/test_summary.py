"""The words about a job that has ended: what was done, and what to do next."""

from __future__ import annotations

import os
from typing import Any

import pytest

from clipfleet.contract.bottleneck import Meters
from clipfleet.contract.jobs import REDIS_OUTPUT, JobState, Task
from clipfleet.terminal.summary import earlier_headline, headline, limit_lines, reason_lines
from clipfleet.terminal.up_around import UP_VARIABLE, UpAround
from tests.support.jobs import JOB_ID, make_job, make_status
from tests.support.vector_outputs import vectors_of

LABELS = ("cat", "dog")
FAILED, CANCELLED = JobState.FAILED, JobState.CANCELLED


@pytest.mark.parametrize(
    ("status", "line"),
    [
        (
            {"ok": 20, "ran": 20},
            "Done: 20 labelled, 0 failed in 4.0 s (5/s). View them: `clipfleet results /out`",
        ),
        (
            {"state": JobState.COMPLETED_WITH_ERRORS, "ok": 1230, "failed": 2, "ran": 400},
            "Done: 1,230 labelled, 2 failed in 4.0 s (100/s). View them: `clipfleet results /out`",
        ),
        (
            {"state": CANCELLED, "ok": 7, "ran": 7},
            "Cancelled: 7 labelled, 0 failed of 100. View them: `clipfleet results /out`",
        ),
        ({"state": CANCELLED}, "Cancelled: 0 labelled, 0 failed of 100."),
        (
            {"state": CANCELLED, "reason": "60 of 60 rows failed", "failed": 60, "ran": 60},
            "Stopped: 0 labelled, 60 failed of 100. View them: `clipfleet results /out`",
        ),
        (
            {"state": FAILED, "reason": "output_unreachable: /out"},
            "Job failed before any image was processed: output_unreachable: /out",
        ),
        (
            {"state": FAILED, "reason": "no disk", "ok": 32},
            "Job failed: 32 labelled, 0 failed of 100. View them: `clipfleet results /out`",
        ),
    ],
)
def test_how_a_job_has_ended_now(status: dict[str, Any], line: str) -> None:
    assert (
        headline(make_job(labels=LABELS), make_status(**{"state": JobState.COMPLETED, **status}), 4.0) == line
    )


def test_stored_vectors_are_labelled_again() -> None:
    job = make_job("/again", labels=LABELS, vectors=vectors_of(make_job("/vectors")))

    done = headline(job, make_status(state=JobState.COMPLETED, ok=20, failed=1, ran=21), None)
    failed = headline(job, make_status(state=FAILED, reason="model_unavailable: other weights"), None)

    assert done.startswith("Done: 20 labelled again, 1 failed.")
    assert failed == "Job failed before any vector was processed: model_unavailable: other weights"


@pytest.mark.parametrize(
    ("job", "words"),
    [
        (
            {"output": "/my \u00fcber results"},
            "3 embedded, 0 failed. View them: `clipfleet results '/my \u00fcber results'`",
        ),
        ({"output": "s3://bucket/a/b"}, "View them: `clipfleet results s3://bucket/a/b`"),
        ({"output": REDIS_OUTPUT}, f"View them: `clipfleet results {JOB_ID}`"),
    ],
)
def test_the_command_that_is_named_can_be_pasted(job: dict[str, Any], words: str) -> None:
    line = headline(make_job(**job), make_status(state=JobState.COMPLETED, ok=3, ran=3), None)

    assert line.endswith(words)


def test_rows_in_a_redis_that_ends_with_this_command_are_viewed_below_another_up(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv(UP_VARIABLE, UpAround(os.getppid(), "clipfleet-worker up").value())
    done = make_status(state=JobState.COMPLETED, ok=3, ran=3)

    line = headline(make_job(output=REDIS_OUTPUT), done, None)

    assert line.endswith(f"View them: `clipfleet-worker up -- clipfleet results {JOB_ID}`")
    assert headline(make_job(), done, None).endswith("View them: `clipfleet results /out`")


def test_a_job_over_texts_has_no_images() -> None:
    source = {"kind": "txt", "uri": "/texts.txt", "extra_columns": ("text",)}
    job = make_job(task=Task.EMBED_TEXT, text_column="text", source=source)

    assert "before any text was" in headline(job, make_status(state=FAILED, reason="no disk"), 1.0)


def test_a_job_that_had_ended_is_not_reported_as_if_it_had_run() -> None:
    status = make_status(
        state=JobState.COMPLETED_WITH_ERRORS, ok=90, failed=10, ran=100, finished_ms=1_764_540_000_000
    )

    line = earlier_headline(make_job(), status, nothing_was_run=True)

    assert line == (
        "Already completed with errors on 2025-11-30 22:00 UTC; nothing was run: 90 embedded, 10 failed. "
        "View them: `clipfleet results /out`"
    )


def test_a_job_that_ended_during_its_submit_is_continued_by_a_retry_and_the_same_submit() -> None:
    status = make_status(state=CANCELLED, sealed=False, failed=60, reason="60 of 60 failed: `overwrite=True`")
    submit = f"submit again with the same command and `--job-id {JOB_ID}`"

    line = earlier_headline(make_job(), status, nothing_was_run=True)

    assert f"continue it with `clipfleet retry {JOB_ID}`, then {submit}: 0 embedded, 60 failed." in line
    assert list(reason_lines(status)) == [
        "reason: 60 of 60 failed: --overwrite",
        f"not all items are staged: after the retry, {submit}",
    ]


@pytest.mark.parametrize(
    ("meters", "seconds", "lines"),
    [
        ({"load model": 48.0, "write": 2.0}, 60.0,
         ["Mostly spent loading the model (96 %); a larger job, or a running worker, will be faster"]),
        ({"load model": 4.0}, 5.0, []),  # not worth a word
        ({"load model": 48.0}, None, []),  # it had ended before
        ({"write": 9.0, "fetch, decode, encode": 1.0}, 5.0,
         ["limited by write: writing parts takes 90 % of the chunks' time"]),
        ({}, 60.0, []),
    ],
)  # fmt: skip
def test_the_limit_is_named_where_that_helps(
    meters: dict[str, float], seconds: float | None, lines: list[str]
) -> None:
    status = make_status(state=JobState.COMPLETED, ok=100, ran=100, meters=Meters(meters))

    assert list(limit_lines(status, seconds)) == lines
