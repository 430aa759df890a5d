"""`up --keep` and `up --stop`: an `up` in the background that several commands use, one after the other."""

from __future__ import annotations

import math
import os
import shlex
import shutil
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from clipfleet.errors import UsageError, WorldError
from clipfleet.redis.connection import masked
from clipfleet.terminal.console import say, say_error
from clipfleet.terminal.up_around import UP_VARIABLE
from clipfleet_worker.machine.child import POLL_SECONDS, Child
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from clipfleet_worker.machine.signals import SignalRecorder
from clipfleet_worker.machine.up_folder import RunningUp, UpFolder
from clipfleet_worker.process.exec_child import become, reset_signals

_URL = "CLIPFLEET_REDIS_URL"
_NOT_FOUND = 127  # the shells' exit code
_QUIET_SECONDS = 3.0  # of a stop; then it says what it waits for


class KeptUp:
    """The `up` that runs on a folder without a command of its own, for one command of the user's.

    Args:
        directory: the folder.
        options: those that were given to this `up`; what runs must have the same, or none are given.
    """

    def __init__(self, directory: Path, options: Sequence[str] = ()) -> None:
        self._folder = UpFolder(directory)
        self._options = tuple(options)

    def can_be_used(self) -> bool:
        """Whether one runs on this machine that does not end with a command."""
        up = self._folder.running()
        return up is not None and up.is_for_all

    def run(self, argv: Sequence[str], command: Sequence[str]) -> int:
        """Start one in the background, unless one runs; then become the command.

        Args:
            argv: command line of an `up` without a command on this folder.
            command: the user's; none: return once all is ready.

        Returns:
            The exit code, where there is no command, or an unknown one.

        Raises:
            UsageError: what runs here ends with a command, has other options, uses another Redis, or is on
                another machine.
            WorldError: it could not be started; the message quotes the end of its log.
        """
        if command and not shutil.which(command[0]):
            say_error(f"{command[0]}: command not found, or not executable")
            return _NOT_FOUND
        running = self._folder.running()
        if running is None:
            self._start(argv)
        elif not running.is_for_all:
            raise self._folder.is_in_use(running)
        running = self._wait_until_ready()
        settings = self._folder.settings()
        self._require_same(running, settings)
        if command:
            _warn_outside(settings.get("CLIPFLEET_FILE_ROOTS", ""))
            os.environ.update(settings)
            os.environ.pop(UP_VARIABLE, None)  # the jobs go on after this command
            reset_signals()
            become(list(command))
        say(f"clipfleet is up (pid {running.pid}), log {self._folder.log}")
        return 0

    def _start(self, argv: Sequence[str]) -> None:
        self._folder.make()
        say(f"starting `up` in the background, log {self._folder.log}")
        started = Child(
            "`up`",
            argv,
            log=self._folder.log,
            outlives_us=True,
            is_ready=self._is_ready,
            ready_seconds=math.inf,  # it knows how long its children may take
        )
        started.start()
        try:
            started.wait_ready()
        except WorldError:
            if not self.can_be_used():  # else another one was quicker, and this one has ended
                raise
        except BaseException:
            started.stop()
            raise
        say(f"It keeps running; `{self._folder.command('--stop')}` stops it")

    def _is_ready(self) -> bool:
        up = self._folder.running()
        return up is not None and up.is_ready

    def _require_same(self, running: RunningUp, settings: Mapping[str, str]) -> None:
        """Raise if this command asks for another `up` than the one that runs."""
        if self._options and self._options != running.options:
            words = shlex.join(running.options) or "no options"
            raise UsageError(
                f"{self._folder.path}: `up` already runs on it with {words}; stop it with "
                f"`{self._folder.command('--stop')}` first, or leave out {shlex.join(self._options)}"
            )
        url = os.environ.get(_URL)
        if url and url != settings.get(_URL) and not EmbeddedValkey(self._folder.path / "valkey").owns(url):
            raise UsageError(
                f"CLIPFLEET_REDIS_URL is {masked(url)}, but the `up` that runs on {self._folder.path} uses "
                "another Redis: unset CLIPFLEET_REDIS_URL, or give another --dir"
            )

    def _wait_until_ready(self) -> RunningUp:
        while True:
            up = self._folder.running()
            if up is None:
                raise WorldError(f"{self._folder.path}: `up` has ended; see {self._folder.log}")
            if up.is_ready:
                return up
            time.sleep(POLL_SECONDS)

    def stop(self) -> int:
        """Stop what runs on the folder, and wait for its end.

        The first signal meanwhile, a Ctrl-C for example, kills the worker; the second one ends the wait.

        Returns:
            The exit code: 0, or 128 + N if signal N ended the wait.

        Raises:
            UsageError: what runs ends with a command, or is on another machine.
        """
        up = self._folder.running()
        if up is None:
            say(f"nothing runs on {self._folder.path}")
            return 0
        if not up.is_for_all:
            raise self._folder.is_in_use(up)
        began, is_announced = time.monotonic(), False
        received: list[signal.Signals] = []
        with SignalRecorder() as signals:
            _terminate(up.pid)
            while up.is_alive:  # it releases the folder a little before it ends
                if not is_announced and time.monotonic() - began >= _QUIET_SECONDS:
                    is_announced = True
                    say("Finishing the work in progress. Press Ctrl-C to stop at once")
                if new := signals.take():
                    received += new
                    if len(received) > 1:
                        say(f"`up` (pid {up.pid}) still runs on {self._folder.path}")
                        return 128 + received[1]
                    _terminate(up.pid)
                time.sleep(POLL_SECONDS)
        say(f"Stopped. Jobs that have not ended go on with the next `up` on {self._folder.path}")
        return 0


def _warn_outside(roots: str) -> None:
    """Say so if the worker cannot use the files of the current folder."""
    if roots and not any(Path.cwd().is_relative_to(root) for root in roots.split(",")):
        say(f"the worker reads and writes below {roots} only, not here", style="yellow")


def _terminate(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGTERM)
