"""Those who want something of the system: each submits a job, waits for its end, perhaps retries it, again.

What fails for the world's sake is repeated as the message says, with the same job id.
"""

from __future__ import annotations

import json
import queue
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TypeVar

from clipfleet.client import Client, JobHandle
from clipfleet.contract import Lane, PartFormat
from clipfleet.errors import ClipfleetError, JobConflictError, WorldError
from clipfleet.job_options import JobOptions
from clipfleet.settings import Settings
from clipfleet_worker.embedded_s3 import BUCKET
from ops.chaos.history import History
from ops.chaos.material import Material, Site
from ops.chaos.servers import LEASE_SECONDS
from ops.chaos.workload import LABELS, JobPlan, OutputKind, plan_job

Answer = TypeVar("Answer")
_AGAIN_SECONDS = 0.5
_SUBMIT_SECONDS = 120.0  # of a producer in a process of its own


@dataclass(frozen=True, slots=True)
class Crash:
    """How the next producer dies."""

    number: int  # of the fault
    point: str


class Customers:
    """A thread each; each has one kind of output, so that a store that is away stops only some of them."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        *,
        redis_url: str,
        environment: Mapping[str, str],
        site: Site,
        history: History,
        count: int = 6,
    ) -> None:
        """Nothing is submitted yet.

        Args:
            folder: for outputs, manifests and pictures.
            seed: decides the jobs.
            redis_url: as producers see it.
            environment: of producers in processes of their own.
            site: is told when a job's sick pictures are well.
            history: is told of every submit and end.
            count: how many; a multiple of the kinds of output.
        """
        self._folder = folder
        self._seed = seed
        self._settings = Settings(redis_url=redis_url, lease_seconds=LEASE_SECONDS)
        self._environment = dict(environment)
        self._site = site
        self._history = history
        self._material = Material(folder / "pictures", site.url)
        self._closing = threading.Event()
        self._crashes: queue.Queue[Crash] = queue.Queue()
        self._plans: dict[str, JobPlan] = {}
        self._failures: list[str] = []
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._serve, args=(number, count), name=f"customer-{number}", daemon=True)
            for number in range(count)
        ]
        for name in ("manifests", "out"):
            (folder / name).mkdir()

    def start(self) -> None:
        """Let them come."""
        for thread in self._threads:
            thread.start()

    def close(self) -> None:
        """No new jobs; those that were begun go on to their end."""
        self._closing.set()

    @property
    def are_done(self) -> bool:
        """Whether all jobs that were begun have ended."""
        return not any(thread.is_alive() for thread in self._threads)

    def crash_next_producer(self, crash: Crash) -> None:
        """The next submit is made by a program that dies at a crash point, then by one that does not."""
        self._crashes.put(crash)

    @property
    def plans(self) -> list[JobPlan]:
        """All jobs that were begun, in the order of their names."""
        with self._lock:
            return [self._plans[job_id] for job_id in sorted(self._plans)]

    @property
    def failures(self) -> list[str]:
        """What no customer should have met."""
        with self._lock:
            return list(self._failures)

    @property
    def picture_hashes(self) -> list[str]:
        """See `Material.hashes`."""
        return self._material.hashes

    # --- In the threads ---

    def _serve(self, number: int, step: int) -> None:
        with Client(self._settings) as client:
            while not self._closing.is_set():
                plan = plan_job(self._seed, number)
                number += step
                with self._lock:
                    self._plans[plan.job_id] = plan
                try:
                    self._bring(client, plan)
                except (ClipfleetError, subprocess.SubprocessError, TimeoutError) as error:
                    self._fail(plan, error)

    def _fail(self, plan: JobPlan, error: BaseException) -> None:
        line = f"{plan.job_id}: {type(error).__name__}: {error}"
        with self._lock:
            self._failures.append(line)
        self._history.note("customer_failed", job=plan.job_id, error=line)

    def _bring(self, client: Client, plan: JobPlan) -> None:
        """One job from its submit to its last end."""
        self._material.write_manifest(self._manifest(plan), plan)
        submitted_at = self._history.note(
            "submit", job=plan.job_id, items=len(plan.items), output=plan.output
        )
        job = self._submit(client, plan)
        self._wait(job, 0, submitted_at)
        if plan.is_retried:
            self._site.heal(plan.job_id)
            retried_at = self._history.note("retry", job=plan.job_id)
            self._insist(plan, lambda: self._retry(job))
            self._wait(job, 1, retried_at)

    def _submit(self, client: Client, plan: JobPlan) -> JobHandle:
        try:
            crash = self._crashes.get_nowait()
        except queue.Empty:
            return self._insist(plan, lambda: submit(client, plan, self._manifest(plan), self._output(plan)))
        self._submit_by_program(plan, crash)
        return self._insist(plan, lambda: client.job(plan.job_id))

    def _submit_by_program(self, plan: JobPlan, crash: Crash) -> None:
        """A producer that dies, then others until one gets through."""
        code = self._run_producer(plan, crash.point)
        self._history.note("producer_ended", job=plan.job_id, fault=crash.number, code=code)
        while code != 0:
            code = self._run_producer(plan, "")
            self._history.note("producer_ended", job=plan.job_id, fault=crash.number, code=code)
            time.sleep(_AGAIN_SECONDS if code else 0)

    def _run_producer(self, plan: JobPlan, point: str) -> int:
        order = {"plan": asdict(plan), "manifest": str(self._manifest(plan)), "output": self._output(plan)}
        with (self._folder / "producers.log").open("a") as log:
            return subprocess.run(
                [sys.executable, "-P", "-m", "ops.chaos.producer", point],
                env=self._environment,
                input=json.dumps(order),
                text=True,
                stdout=log,
                stderr=log,
                timeout=_SUBMIT_SECONDS,
                check=False,
            ).returncode

    def _retry(self, job: JobHandle) -> None:
        if job.status().generation == 0:  # else an attempt got through whose answer was lost
            job.retry()

    def _wait(self, job: JobHandle, generation: int, since: float) -> None:
        """Until the job has ended in a generation; a status of the one before is an old answer."""
        while True:
            status = job.wait()
            if status.generation >= generation:
                break
            time.sleep(_AGAIN_SECONDS)
        ended_at = self._history.note(
            "job_ended", job=job.job_id, state=status.state, generation=status.generation, ok=status.ok,
            failed=status.failed, reason=status.reason,
        )  # fmt: skip
        self._history.note("job_took", job=job.job_id, seconds=round(ended_at - since, 2))

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

    def _manifest(self, plan: JobPlan) -> Path:
        return self._folder / "manifests" / f"{plan.job_id}.csv"

    def _output(self, plan: JobPlan) -> str | None:
        match plan.output:
            case OutputKind.FOLDER:
                return str(self._folder / "out" / plan.job_id)
            case OutputKind.S3:
                return f"s3://{BUCKET}/{plan.job_id}"
            case OutputKind.REDIS:
                return None


def submit(client: Client, plan: JobPlan, manifest: Path, output: str | None) -> JobHandle:
    """Submit a job; an equal one that is there already is resumed."""
    options = JobOptions(
        output=output, model="demo", lane=Lane(plan.lane), chunk_size=plan.chunk_size, job_id=plan.job_id,
        part_format=PartFormat(plan.part_format),
    )  # fmt: skip
    if plan.task == "classify":
        return client.classify(manifest, LABELS, options=options)
    return client.embed(manifest, options=options)
