"""clipfleet as a customer sees it: `Client`, or a program that submits and may die meanwhile."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Self, TypeVar

from clipfleet.client import Client, JobHandle
from clipfleet.contract.jobs import Lane, PartFormat
from clipfleet.errors import JobConflictError, UsageError, WorldError
from clipfleet.settings import Settings
from clipfleet.submit.options import JobOptions
from clipfleet_worker.machine.embedded.s3 import BUCKET
from ops.chaos import survey
from ops.chaos.customers import Before, Wish
from ops.chaos.findings import Findings, Inspector
from ops.chaos.history import History
from ops.chaos.servers import LEASE_SECONDS, WRITE_LIMIT_SECONDS
from ops.chaos.workload import LABELS, JobPlan, OutputKind, OverwrittenAfter, plan_job

Answer = TypeVar("Answer")
_AGAIN_SECONDS = 0.5
_LOOK_SECONDS = 0.05
_READABLE_SECONDS = 120.0  # an outage of a store is over by then
_SUBMIT_SECONDS = 120.0  # of a producer in a process of its own


class ClipfleetService:
    """See `ops.chaos.customers.Service`. A context manager, of one thread."""

    def __init__(
        self,
        redis_url: str,
        environment: Mapping[str, str],
        history: History,
        log: Path,
        inspector: Inspector,
        findings: Findings,
    ) -> None:
        """Nothing is sent yet.

        Args:
            redis_url: as producers see it.
            environment: of producers in processes of their own.
            history: is told of every submit and end.
            log: what those producers print is appended here.
            inspector: looks at each job when it has ended.
            findings: is told what it found.
        """
        self._client = Client(
            Settings(
                redis_url=redis_url, lease_seconds=LEASE_SECONDS, write_limit_seconds=WRITE_LIMIT_SECONDS
            )
        )
        self._environment = dict(environment)
        self._history = history
        self._log = log
        self._inspector = inspector
        self._findings = findings

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()

    def plan(self, seed: int, number: int) -> JobPlan:
        """See the protocol."""
        return plan_job(seed, number)

    def fulfil(self, wish: Wish, heal: Callable[[], None]) -> None:
        """See the protocol."""
        plan = wish.plan
        if wish.before is not None:
            self._leave_behind(wish.before, _output(wish))
        since = self._history.note("submit", job=plan.job_id, items=len(plan.items), output=plan.output)
        job = self._submit(wish)
        self._wait(job, 0, since)
        self._inspect(plan, job, 0)
        if plan.is_retried:
            heal()
            since = self._history.note("retry", job=plan.job_id)
            self._insist(plan, lambda: self._retry(job))
            self._wait(job, 1, since)
            self._inspect(plan, job, 1)

    def _leave_behind(self, before: Before, output: str | None) -> None:
        """A job that has ended, some of whose workers still sleep or do not know it yet."""
        plan, how = before.plan, before.how
        self._history.note("before", job=plan.job_id, fault=how.number)
        job = self._insist(plan, lambda: submit(self._client, plan, before.manifest, output))
        how.freeze()
        if how.after is OverwrittenAfter.CANCEL:
            while not (status := self._insist(plan, job.status)).leased_chunks and not status.state.is_final:
                time.sleep(_LOOK_SECONDS)
            self._insist(plan, job.cancel)
        ended = job.wait()
        self._history.note("before_ended", job=plan.job_id, state=ended.state)
        time.sleep(how.delay_seconds)

    def _submit(self, wish: Wish) -> JobHandle:
        if wish.crash is None:
            return self._insist(wish.plan, lambda: self._submit_once(wish))
        code = self._run_producer(wish, wish.crash.point)
        while code != 0:
            time.sleep(_AGAIN_SECONDS)
            code = self._run_producer(wish, "")
        return self._insist(wish.plan, lambda: self._client.job(wish.plan.job_id))

    def _submit_once(self, wish: Wish) -> JobHandle:
        plan, output = wish.plan, _output(wish)
        if wish.before is not None:
            try:
                return submit(self._client, plan, wish.manifest, output, overwrite=True)
            except UsageError as error:
                if f"holds {plan.job_id} itself" not in str(error):
                    raise
                # An attempt before has taken the output, and was then cut off.
        return submit(self._client, plan, wish.manifest, output)

    def _inspect(self, plan: JobPlan, job: JobHandle, generation: int) -> None:
        """Read what a customer reads as soon as the job has ended."""
        if generation == 0:
            plan = replace(plan, is_retried=False)
        give_up_at = time.monotonic() + _READABLE_SECONDS
        while True:
            try:
                left = survey.left_of(job, plan)
            except WorldError as error:
                left = None
                self._history.note("customer_waits", job=plan.job_id, error=str(error)[:200])
            if left is not None and not left.is_away:
                self._findings.add(self._inspector.look_at(plan, left))
                return
            if time.monotonic() > give_up_at:  # the checker looks once more when nothing breaks
                self._history.note("not_inspected", job=plan.job_id, problem=left.problem if left else "")
                return
            time.sleep(_AGAIN_SECONDS)

    def _run_producer(self, wish: Wish, point: str) -> int:
        """Submit by a program of its own; returns its exit code."""
        order = {"plan": asdict(wish.plan), "manifest": str(wish.manifest), "output": _output(wish)}
        with self._log.open("a") as log:
            code = subprocess.run(
                [sys.executable, "-P", "-m", "ops.chaos.producer", point],
                env=self._environment,
                input=json.dumps(order),
                text=True,
                stdout=log,
                stderr=log,
                timeout=_SUBMIT_SECONDS,
                check=False,
            ).returncode
        fault = wish.crash.number if wish.crash else None
        self._history.note("producer_ended", job=wish.plan.job_id, fault=fault, code=code)
        return code

    def _retry(self, job: JobHandle) -> None:
        if job.status().generation == 0:  # else an attempt got through whose answer was lost
            job.retry()

    def _wait(self, job: JobHandle, generation: int, since: float) -> None:
        """Until the job has ended in a generation; a status of the one before is an old answer."""
        while (status := job.wait()).generation < generation:
            time.sleep(_AGAIN_SECONDS)
        self._history.note(
            "job_ended", job=job.job_id, state=status.state, generation=status.generation, ok=status.ok,
            failed=status.failed, reason=status.reason, took_seconds=round(self._history.now() - since, 2),
        )  # fmt: skip

    def _insist(self, plan: JobPlan, call: Callable[[], Answer]) -> Answer:
        """Repeat what the world did not let through."""
        while True:
            try:
                return call()
            except WorldError as error:
                self._history.note("customer_waits", job=plan.job_id, error=str(error)[:200])
            except JobConflictError as error:
                # An attempt of ours whose connection was lost may still be under way.
                if "another" not in str(error):
                    raise
                self._history.note("customer_waits", job=plan.job_id, error=str(error)[:200])
            time.sleep(_AGAIN_SECONDS)


def submit(
    client: Client, plan: JobPlan, manifest: Path, output: str | None, *, overwrite: bool = False
) -> JobHandle:
    """Submit a job; an equal one that is there already is resumed."""
    options = JobOptions(
        output=output, model="demo", lane=Lane(plan.lane), chunk_size=plan.chunk_size, job_id=plan.job_id,
        part_format=PartFormat(plan.part_format), overwrite=overwrite,
    )  # fmt: skip
    if plan.task == "classify":
        return client.classify(manifest, LABELS, options=options)
    return client.embed(manifest, options=options)


def _output(wish: Wish) -> str | None:
    match wish.plan.output:
        case OutputKind.FOLDER:
            return str(wish.folder / wish.plan.job_id)
        case OutputKind.S3:
            return f"s3://{BUCKET}/{wish.plan.job_id}"
        case OutputKind.REDIS:
            return None
