"""Replaces the results of an ended job, once no worker writes, by one submit at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import chain
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from clipfleet.contract.jobs import Job, JobState
from clipfleet.errors import (
    JobConflictError,
    JobNotFoundError,
    JobUnreadableError,
    OutputConflictError,
    UsageError,
)
from clipfleet.ledger.jobs import JobStatus, Ledger
from clipfleet.outputs import Output, objects
from clipfleet.outputs.job_file import job_of, put_if, put_note, read_note
from clipfleet.redis.patience import OnTrouble, log_trouble
from clipfleet.settings import WRITE_LIMIT_SECONDS
from clipfleet.wording import counted

_LOOK_SECONDS = 0.2


class _Clearing(BaseModel):
    """Names the submit that removes the results of another job."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    token: str  # of the submit, as the same job may be submitted twice


@dataclass(slots=True)
class Overwriting:
    """Removes another job's results from the output of a submit."""

    ledger: Ledger  # of the old job
    output: Output
    job: Job  # the new job
    write_limit_seconds: float = WRITE_LIMIT_SECONDS  # upper bound of a write that starts within a lease
    say: OnTrouble = log_trouble  # called with a message when it waits for workers
    sleep: Callable[[float], object] = time.sleep
    _version: str | None = field(default=None, init=False)  # of the job file to replace
    _holder_id: str | None = field(default=None, init=False)  # the job in it

    def is_due(self, *, is_wanted: bool) -> bool:
        """Whether another job's results must be removed first. Returns once no worker writes there.

        What a job left that failed before its first row is removed in any case.

        Raises:
            OutputConflictError: removal was not requested, or the other job has not ended.
            UsageError: the results are this job's own.
        """
        self._version = self.output.version(
            objects.JOB_FILE
        )  # read first, so that later changes are detected
        holder = job_of(self.output)
        if holder is not None and holder.job_id == self.job.job_id:
            status: JobStatus | None = None
            with suppress(JobNotFoundError):
                status = self.ledger.status(self.job.job_id)
            if is_wanted and status is not None and status.sealed:
                raise UsageError(
                    f"`overwrite=True` needs a new job id: {self.output.uri} holds {holder.job_id} itself"
                )
            if status is not None or holder.is_same(self.job):  # resume an interrupted submit
                return False
        if holder is None and not any(self._part_names()):
            return False
        if not is_wanted and not self._is_debris(holder):
            whose = f"job {holder.job_id}" if holder else "files named part-*"
            raise OutputConflictError(
                f"{self.output.uri} holds {whose}: choose another `output=`, "
                "or replace it with `overwrite=True`"
            )
        if holder is not None:
            self._holder_id = holder.job_id
            self._wait_for_writers(holder.job_id)
        return True

    def _is_debris(self, holder: Job | None) -> bool:
        """Whether a job has left staged items only: it failed, or its submit was refused, before any row.

        Returns once no worker writes there.
        """
        if holder is None:
            return False
        with suppress(JobNotFoundError, JobUnreadableError):
            if not self.ledger.job(holder.job_id).is_same(holder):  # that of another Redis
                return False
            status = self.ledger.status(holder.job_id)
            is_given_up = status.state is JobState.FAILED or (status.state.is_final and not status.sealed)
            if is_given_up and not (status.ok or status.failed or status.generation):
                self._wait_for_writers(holder.job_id)  # the last part may be late
                return not any(self._part_names())
        return False

    def _part_names(self) -> Iterator[str]:
        return chain.from_iterable(self.output.names(layout.part_prefix) for layout in objects.LAYOUTS)

    def _wait_for_writers(self, job_id: str) -> None:
        """Block until no worker can be inside a write of an ended job."""
        is_announced = False
        while True:
            try:
                self._require_ended(job_id)
            except JobNotFoundError:  # expired days after its end, with all leases
                return
            count, seconds = self.ledger.writers(job_id, self.write_limit_seconds)
            if not count:
                return
            if not is_announced:
                chunks = counted(count, "chunk")
                self.say(
                    f"waiting for workers to release {chunks} of job {job_id} in {self.output.uri} "
                    f"(about {seconds:.0f} s if they do not answer)"
                )
                is_announced = True
            self.sleep(_LOOK_SECONDS)

    def _require_ended(self, job_id: str) -> None:
        if not self.ledger.status(job_id).state.is_final:
            raise OutputConflictError(
                f"job {job_id} still writes to {self.output.uri}: `clipfleet cancel {job_id}` first"
            )

    def run(self) -> None:
        """Remove the other job's results and replace its job file.

        A submit that was suspended in here while another one did the same removes nothing of the latter.

        Raises:
            JobConflictError: another submit of the same job is doing the same.
            OutputConflictError: another job has taken the output, or the old job was retried.
        """
        mine = _Clearing(job_id=self.job.job_id, token=uuid4().hex)
        version = self.output.version(objects.CLEARING)
        if not put_note(self.output, objects.CLEARING, mine, version):
            raise self._lost(mine)

        def confirm() -> None:
            if self._holder_id is not None:
                with suppress(JobNotFoundError):
                    self._require_ended(self._holder_id)
            if self._clearing() != mine or self.output.version(objects.JOB_FILE) != self._version:
                raise self._lost(mine)

        self.output.clear(confirm=confirm)
        confirm()
        data = self.job.model_dump_json(indent=1).encode()
        if not put_if(self.output, objects.JOB_FILE, data, self._version):
            raise self._lost(mine)
        self.output.remove(objects.CLEARING)

    def _clearing(self) -> _Clearing | None:
        return read_note(self.output, objects.CLEARING, _Clearing, "remove it and try again")

    def _lost(self, mine: _Clearing) -> JobConflictError | OutputConflictError:
        clearing, holder = self._clearing(), job_of(self.output)
        if clearing == mine:
            self.output.remove(objects.CLEARING)
            clearing = None
        if self.job.job_id in (clearing and clearing.job_id, holder and holder.job_id):
            return JobConflictError(f"another submit of job {self.job.job_id} is running")
        return OutputConflictError(f"{self.output.uri} was taken by another job in the meantime")
