"""What a job does after a Ctrl-C, in words, with the commands that continue it.

A job pauses if `clipfleet-worker up` ends with this command; otherwise it continues in the background.
"""

from __future__ import annotations

import shlex
import sys
from collections.abc import Sequence

from clipfleet.ledger.status import JobStatus
from clipfleet.terminal.up_around import UpAround, afterwards


def words_after_watching(job_id: str, last: JobStatus | None) -> str:
    """For a Ctrl-C while a job runs; `last` is what was shown last."""
    watch = shlex.join(["clipfleet", "watch", job_id])
    up = UpAround.of_environment()
    if up is None:
        cancel = shlex.join(["clipfleet", "cancel", job_id])
        return f"The job goes on without this terminal. Watch it again with `{watch}`, end it with `{cancel}`"
    if up.ends_with_us:
        done = "" if last is None else f": {last.done:,} of {last.total:,} done so far"
        return f"Paused{done}. Continue with `{up.again} -- {watch}`"
    return (
        f"The job goes on while a worker runs. Watch it again with `{watch}`; "
        f"once `up` has ended, continue with `{up.again} -- {watch}`"
    )


def words_after_watching_all() -> str:
    """For a Ctrl-C while all jobs are followed."""
    watch = "clipfleet watch --all"
    up = UpAround.of_environment()
    if up is None:
        return f"The jobs go on without this terminal. Watch them again with `{watch}`"
    if up.ends_with_us:
        return f"Paused. Continue with `{up.again} -- {watch}`"
    return (
        f"The jobs go on while a worker runs. Watch them again with `{watch}`; "
        f"once `up` has ended, continue with `{up.again} -- {watch}`"
    )


def words_after_submitting(
    job_id: str, arguments: Sequence[str] | None = None, *, is_known: bool = True
) -> str:
    """For a Ctrl-C during the submit.

    Args:
        job_id: of the job.
        arguments: of this program, by default `sys.argv[1:]`.
        is_known: whether Redis knows the job, or that cannot be said.
    """
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not is_known:
        return f"Nothing was submitted. Run it again with `{afterwards('clipfleet', *given)}`"
    if not any(word == "--job-id" or word.startswith("--job-id=") for word in given):
        given[1:1] = ["--job-id", job_id]  # behind the command's name
    submit = shlex.join(["clipfleet", *given])
    up = UpAround.of_environment()
    if up is not None and up.ends_with_us:
        return f"Paused during the submit. Continue with `{up.again} -- {submit}`"
    cancel = shlex.join(["clipfleet", "cancel", job_id])
    words = f"The submit was interrupted. Resume it with `{submit}`, or end the job with `{cancel}`"
    return words if up is None else f"{words}; once `up` has ended, write `{up.again} --` before it"


def words_after_evaluating(arguments: Sequence[str] | None = None) -> str:
    """For a Ctrl-C during an evaluation, whose jobs the same command continues; `arguments` as above."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    return f"Nothing is lost. Continue with `{afterwards('clipfleet', *given)}`"


def words_after_backfilling(last: JobStatus | None, arguments: Sequence[str] | None = None) -> str:
    """For a Ctrl-C during a backfill; `last` is what was shown last, `arguments` as above."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    again = afterwards("clipfleet", *given)
    job = "a job that was submitted" if last is None or last.state.is_final else f"job {last.job_id}"
    return f"Nothing is lost; {job} goes on without this terminal. Continue with `{again}`"
