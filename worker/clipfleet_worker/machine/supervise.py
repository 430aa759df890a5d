"""Child processes of one supervisor: started, watched, restarted with back-off and stopped from one loop.

Knows nothing of Redis or CLIP and owns no thread. A child dies with its supervisor, also when that one gets a
SIGKILL (`exec_child.py`), and its process group dies with the child. Signal handlers only take notes; the
loop acts on them.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Self

from clipfleet.errors import ClipfleetError, WorldError
from clipfleet_worker.process import exec_child

POLL_SECONDS = 0.05

_EXEC_CHILD = Path(exec_child.__file__)
_TAIL_BYTES = 4096


class Child:
    """One child process, which may be started again after its end.

    Start it from the main thread, or one that lives as long: the kernel ties the child to that thread.
    """

    def __init__(
        self,
        name: str,
        argv: Sequence[str],
        *,
        log: Path | None,
        apart: bool | None = None,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        is_ready: Callable[[], bool] = lambda: True,
        ready_file: Path | None = None,
        ready_seconds: float = 30.0,
        stop_seconds: float = 10.0,
    ) -> None:
        """Describe the child; nothing runs yet.

        Args:
            name: what messages call it.
            argv: command and arguments; visible to every user of the machine, so never a secret.
            log: file (mode 0600) that its output is appended to; None: it goes where the supervisor's goes.
            apart: whether it has a session of its own, so that a Ctrl-C reaches the supervisor only; else it
                shares the terminal and the group. Default: where it has a log.
            env: its whole environment; None: the supervisor's.
            cwd: its working directory; None: the supervisor's.
            is_ready: whether it can do its work; quick, and an OSError means not yet.
            ready_file: made by the child as soon as it can do its work; removed before each start.
            ready_seconds: how long `wait_ready` waits.
            stop_seconds: how long `stop` waits between SIGTERM and SIGKILL.
        """
        self.name = name
        self.log = log
        self._apart = log is not None if apart is None else apart
        self._argv = list(argv)
        self._env = env
        self._cwd = cwd
        self._is_ready = is_ready
        self._ready_file = ready_file
        self._ready_seconds = ready_seconds
        self._stop_seconds = stop_seconds
        self._process: subprocess.Popen[bytes] | None = None
        self._log_start = 0

    @property
    def pid(self) -> int | None:
        """Process id of the running or last process."""
        return self._process.pid if self._process else None

    @property
    def alive(self) -> bool:
        """Whether the process runs."""
        return self._process is not None and self.exit_code is None

    @property
    def exit_code(self) -> int | None:
        """As `subprocess` has it (negative: the signal that ended it); None: running, or never started."""
        process = self._process
        if process is not None and process.returncode is None and _has_ended(process.pid):
            # Before the process is reaped: as long as it is a zombie, nobody else can get the group's number.
            self._signal_group(signal.SIGKILL)
            process.wait()
        return process.returncode if process else None

    def start(self, inherit: Sequence[int] = ()) -> None:
        """Start the process and return at once.

        Args:
            inherit: descriptors that the process keeps open until it ends, for example of a lock file.
        """
        if self.alive:
            raise RuntimeError(f"{self.name} runs already")
        if self._ready_file is not None:
            self._ready_file.unlink(missing_ok=True)
        with _appending(self.log) as output:
            self._log_start = os.fstat(output).st_size if output is not None else 0
            self._process = subprocess.Popen(  # noqa: S603 - argv comes from the caller
                [sys.executable, "-IS", str(_EXEC_CHILD), str(os.getpid()), *self._argv],
                stdin=subprocess.DEVNULL if self._apart else None,
                stdout=output,
                stderr=output,
                env=self._env,
                cwd=self._cwd,
                start_new_session=self._apart,
                pass_fds=inherit,
            )

    def probe(self) -> bool:
        """Whether it can do its work now."""
        try:
            return self.alive and (self._ready_file is None or self._ready_file.exists()) and self._is_ready()
        except OSError:
            return False

    def wait_ready(self, keep_waiting: Callable[[], bool] = lambda: True) -> bool:
        """Wait until the child can do its work.

        Args:
            keep_waiting: asked before each look; False ends the wait.

        Returns:
            False if `keep_waiting` ended it.

        Raises:
            WorldError: the child ended, or was not ready in time; the message has the end of its log.
        """
        deadline = time.monotonic() + self._ready_seconds
        while keep_waiting():
            if self.probe():
                return True
            if not self.alive:
                raise WorldError(f"{self.name} ended while it started ({self.ending()}){self._excerpt()}")
            if time.monotonic() >= deadline:
                raise WorldError(f"{self.name} was not ready in {self._ready_seconds:g} s{self._excerpt()}")
            time.sleep(POLL_SECONDS)
        return False

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the process itself, if it runs."""
        if self._process is not None and self.alive:
            os.kill(self._process.pid, number)

    def stop(
        self, hurry: Callable[[], bool] = lambda: False, number: signal.Signals = signal.SIGTERM
    ) -> bool:
        """Ask it to end, and SIGKILL the whole group after `stop_seconds` or as soon as `hurry` says so.

        Args:
            hurry: asked again and again.
            number: the signal that asks.

        Returns:
            False if it had to be killed.
        """
        self.send(number)
        deadline = time.monotonic() + self._stop_seconds
        while self.alive and time.monotonic() < deadline and not hurry():
            time.sleep(POLL_SECONDS)
        in_time = not self.alive
        self.kill()
        return in_time

    def kill(self) -> None:
        """SIGKILL the whole group now and wait for the end."""
        if self._process is not None and self.alive:
            self._signal_group(signal.SIGKILL)
            self._process.wait()

    def ending(self) -> str:
        """How the last process ended, in words."""
        code = self.exit_code
        if code is None:
            return "running"
        return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    def tail(self) -> str:
        """The end of what was written to the log since the last start."""
        if self.log is None:
            return ""
        with suppress(OSError), self.log.open("rb") as file:
            end = file.seek(0, os.SEEK_END)
            file.seek(max(self._log_start, end - _TAIL_BYTES))
            return file.read().decode(errors="replace").strip()
        return ""

    def _excerpt(self) -> str:
        tail = self.tail()
        return f"; the end of {self.log}:\n{tail}" if tail else ""

    def _signal_group(self, number: signal.Signals) -> None:
        if self._process is None:
            return
        with suppress(ProcessLookupError):
            if self._apart:
                os.killpg(self._process.pid, number)
            else:  # the group is the supervisor's own
                os.kill(self._process.pid, number)


@dataclass(frozen=True)
class RestartPolicy:
    """How long to wait before a child that died is started again."""

    first_seconds: float = 0.5  # after the first death
    longest_seconds: float = 30.0  # the wait doubles up to this
    reset_seconds: float = 60.0  # the next death of a child that lived this long is a first one

    def delay(self, previous_seconds: float, lived_seconds: float) -> float:
        """Seconds to wait now.

        Args:
            previous_seconds: the wait before the process that just died; 0 if there was none.
            lived_seconds: how long that process lived.
        """
        if previous_seconds <= 0 or lived_seconds >= self.reset_seconds:
            return self.first_seconds
        return min(previous_seconds * 2, self.longest_seconds)


class Restarter:
    """Keeps a child running, later and later if it keeps dying. The loop calls `poll`."""

    def __init__(
        self,
        child: Child,
        start: Callable[[], None] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Watch a child that was started just now.

        Args:
            child: what is kept running.
            start: starts it again without waiting for it; default `child.start`.
            clock: seconds that only go forward.
        """
        self.child = child
        self._start = start or child.start
        self._policy = RestartPolicy()
        self._clock = clock
        self._started = clock()
        self._delay = 0.0
        self._due: float | None = None  # when to start it again, while it is dead
        self._returning = False  # started again, not seen ready since

    def poll(self) -> str | None:
        """Look after the child once; never waits.

        Returns:
            What the user should know, if anything happened.
        """
        if self._due is not None:
            return self._start_again() if self._clock() >= self._due else None
        if not self.child.alive:
            return self._schedule(f"ended ({self.child.ending()})", self.child.tail())
        if self._returning and self.child.probe():
            self._returning = False
            return f"{self.child.name} is back"
        return None

    def _start_again(self) -> str | None:
        self._due = None
        self._started = self._clock()
        self._returning = True
        try:
            self._start()
        except (OSError, ClipfleetError) as error:
            return self._schedule("could not be started", str(error))
        return None

    def _schedule(self, what: str, details: str) -> str:
        now = self._clock()
        self._delay = self._policy.delay(self._delay, now - self._started)
        self._due = now + self._delay
        last_line = f"; last words: {details.splitlines()[-1].strip()}" if details else ""
        return f"{self.child.name} {what}, starting it again in {self._delay:g} s{last_line}"


class SignalRecorder:
    """Takes note of SIGINT, SIGTERM and SIGHUP instead of acting on them, while entered. Main thread only.

    Args:
        more: other signals that it shall take note of.
    """

    def __init__(self, *more: signal.Signals) -> None:
        self._numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, *more)
        self._received: list[signal.Signals] = []
        self._previous: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        for number in self._numbers:
            if signal.getsignal(number) is not signal.SIG_IGN:  # else: nohup, or a script's background job
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)
        self._previous.clear()

    @property
    def pending(self) -> bool:
        """Whether a signal came that nobody took yet."""
        return bool(self._received)

    def take(self) -> list[signal.Signals]:
        """The signals since the last call, oldest first."""
        taken, self._received = self._received, []
        return taken

    def _note(self, number: int, _frame: FrameType | None) -> None:
        self._received.append(signal.Signals(number))


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # reaped behind our back: SIGCHLD is ignored in this process
        return True


@contextmanager
def _appending(log: Path | None) -> Iterator[int | None]:
    if log is None:
        yield None
        return
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
    try:
        yield descriptor
    finally:
        os.close(descriptor)
