"""The workers of a run: kept alive with back-off as `clipfleet-worker up` does it, and ended on purpose."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from clipfleet_worker.machine.restarts import RestartPolicy
from ops.chaos.armed import ARMED, Strike, arm, armed_in, disarm, struck_in
from ops.chaos.claims import CLAIMS_FILE
from ops.chaos.history import History

_READY_SECONDS = 120.0
_STOP_SECONDS = 60.0
# Like the policy of `up`, for workers that die for reasons that are not theirs.
_POLICY = RestartPolicy(first_seconds=0.1, longest_seconds=2.0, reset_seconds=2.0)


@dataclass
class LiveWorker:
    """One worker process, from the order to start it to its end."""

    number: int  # in the run
    ready_file: Path
    started_at: float
    pid: int | None = None
    ended_by: str = ""  # what the harness did to end it
    asked_at: float = 0.0  # when that was
    is_frozen: bool = False
    is_limited: bool = False  # it has less of something than workers need

    @property
    def is_ready(self) -> bool:
        """Whether it takes work."""
        return self.pid is not None and self.ready_file.exists()


@dataclass
class Slot:
    """A place for one worker at a time."""

    number: int
    folder: Path
    worker: LiveWorker | None = None
    delay: float = 0.0
    due_at: float = 0.0  # when the next worker is to be started
    limits: Mapping[str, int] = field(default_factory=dict)  # of its next workers, see `resource.RLIMIT_*`
    freezes: dict[int, float] = field(
        default_factory=dict
    )  # seconds of those that are armed, by number of the fault
    frozen: LiveWorker | None = None  # by itself, within a step
    thaws_at: float = 0.0

    @property
    def armed(self) -> Path:
        """Folder of its crash points."""
        return self.folder / ARMED


@dataclass
class Ended:
    """A worker that is over."""

    number: int
    slot: int
    code: int
    ended_by: str  # empty: it ended by itself
    struck_by: int | None = None  # number of the crash point's fault
    at: float = 0.0  # time.monotonic()
    took_seconds: float = 0.0  # from the signal to the end
    is_last: bool = False  # the whole fleet was stopped
    is_limited: bool = False


class Fleet:
    """Call `tend` often: it starts what is due and takes note of what has ended. One thread only."""

    def __init__(
        self, folder: Path, slots: int, environment: Mapping[str, str], history: History, *, body: str
    ) -> None:
        """Nothing is started yet.

        Args:
            folder: for logs, claims and the slots' folders.
            slots: how many workers run at a time.
            environment: the whole environment of the workers.
            history: is told of every start and end.
            body: which of the nursery's programs the workers run.
        """
        self._folder = folder
        self._environment = dict(environment)
        self._history = history
        self.body = body
        self._numbers = 0
        self._is_stopping = False
        self._nursery: subprocess.Popen[str] | None = None
        self._reports: queue.Queue[Mapping[str, Any]] = queue.Queue()
        self._reader = threading.Thread(target=self._read_reports, name="nursery-reports", daemon=True)
        self._known_strikes: set[int] = set()
        self.slots = [Slot(number, folder / f"slot-{number}") for number in range(slots)]
        self.ended: list[Ended] = []
        self.frozen: list[tuple[int, float]] = []  # numbers of workers, and when
        self.claims_folder = folder / "claims"
        for path in (self.claims_folder, *(slot.armed for slot in self.slots)):
            path.mkdir(parents=True)

    def start(self) -> None:
        """Start the nursery, then the first workers; returns when all take work."""
        self._nursery = subprocess.Popen(
            [sys.executable, "-P", "-m", "ops.chaos.nursery"],
            env=self._environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=(self._folder / "nursery.log").open("w"),
            text=True,
            bufsize=1,
        )
        self._reader.start()
        if self._report(_READY_SECONDS) is None:
            raise RuntimeError(f"the nursery is not ready: see {self._folder / 'nursery.log'}")
        deadline = time.monotonic() + _READY_SECONDS
        while not all(slot.worker and slot.worker.is_ready for slot in self.slots):
            self.tend()
            if time.monotonic() > deadline:
                raise RuntimeError(
                    f"the workers are not ready after {_READY_SECONDS:g} s: see {self._folder}"
                )
            time.sleep(0.02)

    def tend(self) -> None:
        """Take note of what ended, start what is due."""
        while report := self._report():
            self._take(report)
        for slot in self.slots:
            self._tend_frozen(slot)
            if slot.worker is None and not self._is_stopping and time.monotonic() >= slot.due_at:
                self._launch(slot)

    def ready_worker(self, slot: int) -> LiveWorker | None:
        """The worker of a slot, if it takes work and nothing is under way against it."""
        worker = self.slots[slot].worker
        if worker is None or not worker.is_ready or worker.is_frozen or worker.ended_by:
            return None
        return worker

    def end(self, slot: int, number: signal.Signals) -> None:
        """SIGKILL or SIGTERM; its end is noted by `tend`."""
        worker = self._worker(slot)
        if self._signal(worker, number):
            worker.ended_by, worker.asked_at = number.name, time.monotonic()

    def freeze(self, slot: int) -> LiveWorker:
        """SIGSTOP: its machine sleeps."""
        worker = self._worker(slot)
        if self._signal(worker, signal.SIGSTOP):
            worker.is_frozen = True
            self.frozen.append((worker.number, time.monotonic()))
        return worker

    def thaw(self, worker: LiveWorker) -> None:
        """SIGCONT."""
        worker.is_frozen = False
        self._signal(worker, signal.SIGCONT)

    def arm(self, slot: int, number: int, point: str, passage: int, *, freeze_seconds: float = 0.0) -> None:
        """Let the worker of a slot, or the next one there, die at a crash point, or freeze for a time."""
        if freeze_seconds:
            self.slots[slot].freezes[number] = freeze_seconds
        strike = Strike.FREEZE if freeze_seconds else Strike.DEATH
        arm(self.slots[slot].armed, number, point, passage, strike)

    def limit(self, slot: int, limits: Mapping[str, int]) -> None:
        """End the worker of a slot; those that come after it have these limits of resources, or none."""
        self.slots[slot].limits = limits
        if self.slots[slot].worker is not None:
            self.end(slot, signal.SIGTERM)

    def is_armed(self, slot: int) -> bool:
        """Whether a crash point there has not struck yet."""
        return armed_in(self.slots[slot].armed) is not None

    @property
    def any_armed(self) -> bool:
        """Whether any crash point has not struck yet."""
        return any(self.is_armed(slot.number) for slot in self.slots)

    def disarm(self) -> int:
        """Take back all crash points that were not reached; returns how many."""
        return sum(disarm(slot.armed) for slot in self.slots)

    def stop(self) -> None:
        """SIGTERM to all; those that stay are killed, which their exit codes show."""
        self._is_stopping = True
        for slot in self.slots:
            worker = slot.worker
            if worker is not None and worker.pid is not None:
                if worker.is_frozen:
                    self.thaw(worker)
                self.end(slot.number, signal.SIGTERM)
        self._wait_for_ends()
        if self._nursery is not None:
            self._pipe(self._nursery.stdin).close()
            self._nursery.wait(_STOP_SECONDS)
            self._reader.join()
            self._pipe(self._nursery.stdout).close()

    def _tend_frozen(self, slot: Slot) -> None:
        """Thaw a worker that froze within a step when its time is over."""
        for number in struck_in(slot.armed, Strike.FREEZE) & slot.freezes.keys():
            seconds = slot.freezes.pop(number)
            worker = slot.worker
            if worker is not None:
                if worker.ended_by:  # it has been asked to leave, and has little time for that
                    seconds = 0.0
                worker.is_frozen = True
                slot.frozen, slot.thaws_at = worker, time.monotonic() + seconds
                self.frozen.append((worker.number, time.monotonic()))
                self._history.note("frozen_in_step", number=number, worker=worker.number)
        if slot.frozen is not None and time.monotonic() >= slot.thaws_at:
            self.thaw(slot.frozen)
            slot.frozen = None

    def _wait_for_ends(self) -> None:
        deadline = time.monotonic() + _STOP_SECONDS
        while any(slot.worker for slot in self.slots):
            self.tend()
            if time.monotonic() > deadline:
                for slot in self.slots:
                    if slot.worker is not None and slot.worker.pid is not None:
                        self._signal(slot.worker, signal.SIGKILL)
            time.sleep(0.02)

    # --- The nursery ---

    def _launch(self, slot: Slot) -> None:
        self._numbers += 1
        ready_file = slot.folder / f"{self._numbers}.ready"
        slot.worker = LiveWorker(self._numbers, ready_file, time.monotonic(), is_limited=bool(slot.limits))
        order = {
            "number": self._numbers,
            "body": self.body,
            "folder": str(slot.folder),
            "log": str(self._folder / f"worker-{slot.number}.log"),
            "limits": dict(slot.limits),
            "environment": {
                "CLIPFLEET_READY_FILE": str(ready_file),
                CLAIMS_FILE: str(self.claims_folder / f"{self._numbers}.jsonl"),
            },
        }
        nursery = self._running_nursery()
        self._pipe(nursery.stdin).write(f"{json.dumps(order)}\n")
        self._pipe(nursery.stdin).flush()

    def _take(self, report: Mapping[str, Any]) -> None:
        number = report.get("started", report.get("ended"))
        slot = next(slot for slot in self.slots if slot.worker and slot.worker.number == number)
        worker = slot.worker
        if worker is None:
            return
        if "started" in report:
            worker.pid = report["pid"]
            self._history.note("worker_started", worker=number, slot=slot.number, pid=worker.pid)
            return
        struck = struck_in(slot.armed, Strike.DEATH) - self._known_strikes
        self._known_strikes |= struck
        by = "crash point" if struck and not worker.ended_by else worker.ended_by
        ended = Ended(
            number=worker.number,
            slot=slot.number,
            code=report["code"],
            ended_by=by,
            struck_by=min(struck, default=None),
            at=report["at"],
            took_seconds=report["at"] - worker.asked_at if worker.asked_at else 0.0,
            is_last=self._is_stopping,
            is_limited=worker.is_limited,
        )
        self.ended.append(ended)
        self._history.note(
            "worker_ended", worker=number, slot=slot.number, code=ended.code, by=by, strike=ended.struck_by
        )
        slot.worker = None
        slot.delay = _POLICY.delay(slot.delay, ended.at - worker.started_at)
        slot.due_at = time.monotonic() + slot.delay

    def _read_reports(self) -> None:
        for line in self._pipe(self._running_nursery().stdout):
            self._reports.put(json.loads(line))
        self._reports.put({})

    def _report(self, wait_seconds: float = 0.0) -> Mapping[str, Any] | None:
        try:
            report = self._reports.get(wait_seconds > 0, wait_seconds)
        except queue.Empty:
            return None
        if not report:
            raise RuntimeError(f"the nursery has ended: see {self._folder / 'nursery.log'}")
        return report

    def _running_nursery(self) -> subprocess.Popen[str]:
        if self._nursery is None:
            raise RuntimeError("the fleet was not started yet")
        return self._nursery

    @staticmethod
    def _pipe(pipe: IO[str] | None) -> IO[str]:
        if pipe is None:
            raise RuntimeError("the nursery has no pipes")
        return pipe

    def _worker(self, slot: int) -> LiveWorker:
        worker = self.slots[slot].worker
        if worker is None:
            raise RuntimeError(f"no worker in slot {slot}")
        return worker

    @staticmethod
    def _signal(worker: LiveWorker, number: signal.Signals) -> bool:
        """False if it has just ended by itself: the nursery's report of that is on its way."""
        if worker.pid is None:
            raise RuntimeError(f"worker {worker.number} was not started yet")
        with suppress(ProcessLookupError):
            os.kill(worker.pid, number)
            return True
        return False
