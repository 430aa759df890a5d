"""What a job does after a Ctrl-C, in words, with the commands that continue it.

A job pauses if `clipfleet-worker up` ends with this command; else it goes on without this terminal.
"""

from __future__ import annotations

import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

from clipfleet.ledger.status import JobStatus

UP_VARIABLE = "_CLIPFLEET_UP"  # no setting: `up` sets it for its command


@dataclass(frozen=True, slots=True)
class UpAround:
    """The `up` under which a command runs, as an environment variable carries it."""

    pid: int  # 0: its Redis is not its own, and outlives it
    again: str  # the command line of that `up`, for a shell, without its command

    @classmethod
    def of_environment(cls) -> Self | None:
        """The `up` of this process; None: there is none."""
        pid, _, again = os.environ.get(UP_VARIABLE, "").partition(" ")
        return cls(int(pid), again) if pid.isdecimal() else None

    def value(self) -> str:
        """Value of the variable."""
        return f"{self.pid} {self.again}"

    @property
    def ends_with_us(self) -> bool:
        """Whether it ends with this very process, as this is its command, not a child of its command."""
        return self.pid == os.getppid()


def words_after_watching(job_id: str, last: JobStatus | None) -> str:
    """For a Ctrl-C while a job runs; `last` is what was shown last."""
    watch = shlex.join(["clipfleet", "watch", job_id])
    up = UpAround.of_environment()
    if up is None:
        cancel = shlex.join(["clipfleet", "cancel", job_id])
        return f"The job goes on without this terminal. Watch it again with `{watch}`, end it with `{cancel}`"
    if up.ends_with_us:
        done = "" if last is None else f": {last.ok + last.failed:,} of {last.total:,} done"
        return f"Paused{done}. Continue with `{up.again} -- {watch}`"
    return (
        f"The job goes on while a worker runs. Watch it again with `{watch}`; "
        f"once `up` has ended, continue with `{up.again} -- {watch}`"
    )


def words_after_submitting(job_id: str, arguments: Sequence[str] | None = None) -> str:
    """For a Ctrl-C during the submit; `arguments` are those of this program, by default `sys.argv[1:]`."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if not any(word == "--job-id" or word.startswith("--job-id=") for word in given):
        given[1:1] = ["--job-id", job_id]  # behind the command's name
    submit = shlex.join(["clipfleet", *given])
    up = UpAround.of_environment()
    if up is not None and up.ends_with_us:
        return f"Paused during the submit. Continue with `{up.again} -- {submit}`"
    cancel = shlex.join(["clipfleet", "cancel", job_id])
    words = f"The submit was interrupted. Resume it with `{submit}`, or end the job with `{cancel}`"
    return words if up is None else f"{words}; once `up` has ended, write `{up.again} --` before it"
