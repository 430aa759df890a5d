"""Those who want something of the system: each brings one job after the other, and waits for its end."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol, TypeVar

from ops.chaos.history import History
from ops.chaos.material import Material, Site
from ops.chaos.workload import JobPlan, OutputKind, OverwrittenAfter, plan_before

Waiting = TypeVar("Waiting")

COUNT = 6  # a multiple of the kinds of output


@dataclass(frozen=True, slots=True)
class Crash:
    """How a producer dies."""

    number: int  # of the fault
    point: str


@dataclass(frozen=True, slots=True)
class Overwrite:
    """How a job comes by an output that another one has."""

    number: int  # of the fault
    output: OutputKind
    part_format: str
    after: OverwrittenAfter
    delay_seconds: float  # from that one's end to the submit
    freeze: Callable[[], None] = lambda: None  # one of the workers, within a write; safe from any thread


@dataclass(frozen=True, slots=True)
class Before:
    """The job whose output is overwritten."""

    plan: JobPlan
    manifest: Path
    how: Overwrite


@dataclass(frozen=True, slots=True)
class Wish:
    """One job that is to be done."""

    plan: JobPlan
    manifest: Path  # its items, as CSV with the columns `id` and `url`
    folder: Path  # an output in a folder goes below this one
    crash: Crash | None = None  # the program that submits it dies there, and is started again
    before: Before | None = None


class Service(Protocol):
    """The system as a customer sees it. What fails for the world's sake it tries again."""

    def plan(self, seed: int, number: int) -> JobPlan:
        """The job of this number, as far as the system can do it."""
        ...

    def fulfil(self, wish: Wish, heal: Callable[[], None]) -> None:
        """From the submit to the last end; `heal` is called before a retry."""
        ...


class Customers:
    """A thread each; each has one kind of output, so that a store that is away stops only some of them."""

    def __init__(
        self,
        folder: Path,
        seed: int,
        site: Site,
        material: Material,
        history: History,
        service: Callable[[], AbstractContextManager[Service]],
    ) -> None:
        """Nothing is submitted yet.

        Args:
            folder: for outputs and manifests.
            seed: decides the jobs.
            site: is told when a job's sick images are well.
            material: what the jobs read.
            history: is told of what fails.
            service: opened once by each customer, in its own thread.
        """
        self._material = material
        self._folder = folder
        self._seed = seed
        self._site = site
        self._history = history
        self._service = service
        self._closing = threading.Event()
        self._crashes: queue.Queue[Crash] = queue.Queue()
        self._overwrites: dict[OutputKind, queue.Queue[Overwrite]] = {
            kind: queue.Queue() for kind in OutputKind
        }
        self._overwritten: list[str] = []
        self._plans: dict[str, JobPlan] = {}
        self._waiting_since: dict[str, float] = {}  # for the ends of which job, by `time.monotonic`
        self._failures: list[str] = []
        self._lock = threading.Lock()
        self._threads = [
            threading.Thread(target=self._come, args=(number,), name=f"customer-{number}", daemon=True)
            for number in range(COUNT)
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

    def overwrite_next(self, how: Overwrite) -> None:
        """The next job with such an output finds another one there, and replaces it."""
        self._overwrites[how.output].put(how)

    def write_manifest(self, plan: JobPlan) -> Path:
        """The source of a job."""
        manifest = self._folder / "manifests" / f"{plan.job_id}.csv"
        self._material.write_manifest(manifest, plan)
        return manifest

    @property
    def overwritten(self) -> list[str]:
        """Jobs whose output was taken by another one."""
        with self._lock:
            return list(self._overwritten)

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

    def waited_for(self, seconds: float) -> list[str]:
        """Jobs whose customer has waited longer than this, the job before in its output included."""
        with self._lock:
            return [
                job_id for job_id, since in self._waiting_since.items() if time.monotonic() - since > seconds
            ]

    def _come(self, number: int) -> None:
        with self._service() as service:
            while not self._closing.is_set():
                plan = service.plan(self._seed, number)
                number += COUNT
                overwrite = _next(self._overwrites[plan.output])
                if overwrite is not None:
                    plan = replace(plan, part_format=overwrite.part_format)
                with self._lock:
                    self._plans[plan.job_id] = plan
                try:
                    self._bring(service, plan, overwrite)
                except Exception as error:  # of any kind: the checker reports it
                    self._fail(plan, error)

    def _bring(self, service: Service, plan: JobPlan, overwrite: Overwrite | None) -> None:
        manifest = self.write_manifest(plan)
        with self._lock:
            self._waiting_since[plan.job_id] = time.monotonic()
        wish = Wish(
            plan,
            manifest,
            self._folder / "out",
            crash=None if overwrite else _next(self._crashes),
            before=None if overwrite is None else self._before(plan, overwrite),
        )
        service.fulfil(wish, lambda: self._site.heal(plan.job_id))
        with self._lock:
            del self._waiting_since[plan.job_id]

    def _before(self, plan: JobPlan, how: Overwrite) -> Before:
        before = plan_before(plan, is_slow=how.after is OverwrittenAfter.CANCEL)
        with self._lock:
            self._overwritten.append(before.job_id)
        return Before(before, self.write_manifest(before), how)

    def _fail(self, plan: JobPlan, error: BaseException) -> None:
        line = f"{plan.job_id}: {type(error).__name__}: {error}"
        with self._lock:
            self._failures.append(line)
        self._history.note("customer_failed", job=plan.job_id, error=line)


def _next(waiting: queue.Queue[Waiting]) -> Waiting | None:
    try:
        return waiting.get_nowait()
    except queue.Empty:
        return None
