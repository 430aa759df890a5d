"""Replacing what an ended job left in an output: once no worker writes there, and by one submit at a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from uuid import uuid4

from pydantic import BaseModel, ConfigDict

from clipfleet.contract.jobs import Job
from clipfleet.errors import JobConflictError, JobNotFoundError, OutputConflictError, UsageError
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import JobStatus, Ledger
from clipfleet.outputs import Output
from clipfleet.outputs.job_file import job_of, put_if, put_note, read_note
from clipfleet.redis.patience import OnTrouble, log_trouble
from clipfleet.settings import WRITE_LIMIT_SECONDS

_LOOK_SECONDS = 0.2


class _Clearing(BaseModel):
    """Which submit removes the results of another job."""

    model_config = ConfigDict(frozen=True)

    job_id: str
    token: str  # of the submit: another one of the same job is another one


@dataclass(slots=True)
class Overwriting:
    """What one submit does about another job's results in its output."""

    ledger: Ledger  # knows the job that is there
    output: Output
    job: Job  # the new one
    write_limit_seconds: float = WRITE_LIMIT_SECONDS  # the most that a write begun within a lease may take
    say: OnTrouble = log_trouble  # called with a line for people when others have to be waited for
    sleep: Callable[[float], object] = time.sleep
    _version: str | None = field(default=None, init=False)  # of the job file that is to be replaced
    _holder_id: str | None = field(default=None, init=False)  # the job that it names

    def is_due(self, *, is_wanted: bool) -> bool:
        """Whether another job's results are to be removed first. Returns only once no worker writes there.

        Raises:
            OutputConflictError: they must stay: nobody asked for their removal, or the job is not over.
            UsageError: they are this job's own.
        """
        self._version = self.output.version(keys.JOB_FILE)  # before it is read
        holder = job_of(self.output)
        if holder is not None and holder.job_id == self.job.job_id:
            status: JobStatus | None = None
            with suppress(JobNotFoundError):
                status = self.ledger.status(self.job.job_id)
            if is_wanted and status is not None and status.sealed:
                raise UsageError(
                    f"--overwrite needs a new job id: {self.output.uri} holds {holder.job_id} itself"
                )
            if status is not None or holder.is_same(self.job):  # an interrupted submit goes on
                return False
        if holder is None and not any(self.output.names(keys.PART_PREFIX)):
            return False
        if not is_wanted:
            whose = f"job {holder.job_id}" if holder else "files named part-*"
            raise OutputConflictError(
                f"{self.output.uri} holds {whose}: choose another --output, or replace it with --overwrite"
            )
        if holder is not None:
            self._holder_id = holder.job_id
            self._wait_for_writers(holder.job_id)
        return True

    def _wait_for_writers(self, job_id: str) -> None:
        """Return once no worker can be inside a write of an ended job."""
        is_told = False
        while True:
            try:
                self._require_ended(job_id)
            except JobNotFoundError:  # forgotten days after its end, with all leases
                return
            count, seconds = self.ledger.writers(job_id, self.write_limit_seconds)
            if not count:
                return
            if not is_told:
                chunks = "1 chunk" if count == 1 else f"{count:,} chunks"
                self.say(
                    f"waiting for workers to release {chunks} of job {job_id} in {self.output.uri} "
                    f"(about {seconds:.0f} s if they do not answer)"
                )
                is_told = True
            self.sleep(_LOOK_SECONDS)

    def _require_ended(self, job_id: str) -> None:
        if not self.ledger.status(job_id).state.is_final:
            raise OutputConflictError(
                f"job {job_id} still writes to {self.output.uri}: `clipfleet cancel {job_id}` first"
            )

    def run(self) -> None:
        """Remove the other job's results and put the new job's file in place of its own.

        A submit that was frozen in here, while another one went the same way, removes nothing of that one's.

        Raises:
            JobConflictError: another submit of the same job does the same just now.
            OutputConflictError: another job has taken the output meanwhile, or the old job was retried.
        """
        mine = _Clearing(job_id=self.job.job_id, token=uuid4().hex)
        version = self.output.version(keys.CLEARING)
        if not put_note(self.output, keys.CLEARING, mine, version):
            raise self._lost(mine)

        def confirm() -> None:
            if self._holder_id is not None:
                with suppress(JobNotFoundError):
                    self._require_ended(self._holder_id)
            if self._clearing() != mine or self.output.version(keys.JOB_FILE) != self._version:
                raise self._lost(mine)

        self.output.clear(confirm=confirm)
        confirm()
        data = self.job.model_dump_json(indent=1).encode()
        if not put_if(self.output, keys.JOB_FILE, data, self._version):
            raise self._lost(mine)
        self.output.remove(keys.CLEARING)

    def _clearing(self) -> _Clearing | None:
        return read_note(self.output, keys.CLEARING, _Clearing, "remove it and try again")

    def _lost(self, mine: _Clearing) -> JobConflictError | OutputConflictError:
        clearing, holder = self._clearing(), job_of(self.output)
        if clearing == mine:
            self.output.remove(keys.CLEARING)
            clearing = None
        if self.job.job_id in (clearing and clearing.job_id, holder and holder.job_id):
            return JobConflictError(f"another submit of job {self.job.job_id} is running")
        return OutputConflictError(f"{self.output.uri} was taken by another job in the meantime")
