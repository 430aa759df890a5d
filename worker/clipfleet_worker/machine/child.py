"""One child process: started, watched and stopped.

A child dies with its supervisor, also when that one gets a SIGKILL (`exec_child.py`), unless it is to outlive
it. Its process group dies with the child.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from clipfleet.errors import WorldError
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
        printed: Path | None = None,
        apart: bool | None = None,
        outlives_us: bool = False,
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        is_ready: Callable[[], bool] = lambda: True,
        ready_file: Path | None = None,
        ready_seconds: float = 30.0,
        stop_seconds: float = 10.0,
    ) -> None:
        """Describe the child; nothing runs yet.

        Args:
            name: for messages.
            argv: command and arguments; visible to every user of the machine, so never a secret.
            log: file (mode 0600) that its output is appended to; None: it shares the supervisor's.
            printed: file (mode 0600) that its stdout is appended to, in place of the log.
            apart: whether it has its own session, so that a Ctrl-C reaches the supervisor only; else it is in
                the supervisor's group. Default: whether it has a log.
            outlives_us: whether it keeps running after its supervisor has ended.
            env: its whole environment; None: the supervisor's.
            cwd: its working directory; None: the supervisor's.
            is_ready: probes whether it can do its work; quick; an OSError means not yet.
            ready_file: created by the child as soon as it can do its work; removed before each start.
            ready_seconds: how long `wait_ready` waits.
            stop_seconds: how long `stop` waits between SIGTERM and SIGKILL.
        """
        self.name = name
        self.log = log
        self._printed = printed
        self._apart = log is not None if apart is None else apart
        self._argv = list(argv)
        self._outlives_us = outlives_us
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
        """Whether the process runs; an ended one is reaped."""
        self.reap()
        return self._process is not None and self._process.returncode is None

    @property
    def exit_code(self) -> int | None:
        """As in `subprocess` (negative: the signal that ended it); None: never started, or not reaped yet."""
        return self._process.returncode if self._process else None

    def reap(self) -> None:
        """If the process has ended, kill what is left of its group and collect its exit code."""
        process = self._process
        if process is not None and process.returncode is None and _has_ended(process.pid):
            # Before the process is reaped: as long as it is a zombie, its group's number is not used again.
            self._signal_group(signal.SIGKILL)
            process.wait()

    def start(self, inherit: Sequence[int] = ()) -> None:
        """Start the process and return at once.

        Args:
            inherit: descriptors that the process keeps open until it ends, for example of a lock file.
        """
        if self.alive:
            raise RuntimeError(f"{self.name} is already running")
        if self._ready_file is not None:
            self._ready_file.unlink(missing_ok=True)
        with _appending(self.log) as output, _appending(self._printed) as printed:
            self._log_start = os.fstat(output).st_size if output is not None else 0
            self._process = subprocess.Popen(  # noqa: S603 - argv comes from the caller
                self._argv if self._outlives_us else [*self._tied(), *self._argv],
                stdin=subprocess.DEVNULL if self._apart else None,
                stdout=output if printed is None else printed,
                stderr=output,
                env=self._env,
                cwd=self._cwd,
                start_new_session=self._apart,
                pass_fds=inherit,
            )

    def _tied(self) -> list[str]:
        """What runs a command that dies with this process."""
        return [sys.executable, "-IS", str(_EXEC_CHILD), str(os.getpid())]

    def probe(self) -> bool:
        """Probe whether it can do its work now."""
        try:
            return self.alive and (self._ready_file is None or self._ready_file.exists()) and self._is_ready()
        except OSError:
            return False

    def wait_ready(self, keep_waiting: Callable[[], bool] = lambda: True) -> bool:
        """Wait until the child can do its work.

        Args:
            keep_waiting: called before each probe; False ends the wait.

        Returns:
            False if `keep_waiting` ended it.

        Raises:
            WorldError: the child ended, or was not ready in time; the message quotes the end of its log.
        """
        deadline = time.monotonic() + self._ready_seconds
        while keep_waiting():
            if self.probe():
                return True
            if not self.alive:
                raise WorldError(f"{self.name} ended during its start ({self.ending()}){self._excerpt()}")
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
        """Send a signal, then SIGKILL the whole group after `stop_seconds` or once `hurry` is true.

        Args:
            hurry: polled meanwhile.
            number: the first signal.

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
        """How the last process ended, for messages."""
        self.reap()
        code = self.exit_code
        if code is None:
            return "running"
        return f"exit code {code}" if code >= 0 else f"killed by {signal.Signals(-code).name}"

    def tail(self) -> str:
        """The end of the log since the last start."""
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


def _has_ended(pid: int) -> bool:
    try:
        return os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None
    except ChildProcessError:  # reaped by the kernel: SIGCHLD is ignored in this process
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
