"""`clipfleet-worker up`: keeps a Valkey, on request an S3 store, and a worker running.

With a command it runs that beside them and exits with its exit code. Its own messages go to stderr: stdout is
the command's. It starts no Valkey if CLIPFLEET_REDIS_URL is set.
"""

from __future__ import annotations

import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

from rich.console import Console

from clipfleet.errors import UsageError, WorldError
from clipfleet.redis.connection import masked
from clipfleet.terminal.console import say_error
from clipfleet_worker.machine.child import POLL_SECONDS, Child
from clipfleet_worker.machine.embedded.private_files import holder, note_holder, try_lock, write_private
from clipfleet_worker.machine.embedded.s3 import BUCKET, EmbeddedS3
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from clipfleet_worker.machine.restarts import Restarter
from clipfleet_worker.machine.signals import SignalRecorder

# -P: a file celery.py in the user's folder must not shadow the package
RUN_WORKER = (sys.executable, "-P", "-m", "clipfleet_worker", "run")

_URL = "CLIPFLEET_REDIS_URL"
_READY_FILE = "CLIPFLEET_READY_FILE"  # the worker creates this file once it takes work
_ROOTS = ("CLIPFLEET_FILE_ROOTS", "CLIPFLEET_OUTPUT_ROOTS")
_WORKER_READY_SECONDS = 120.0
_WORKER_STOP_SECONDS = 60.0
_COMMAND_STOP_SECONDS = 10.0
_NOT_FOUND = 127  # the shells' exit code


class Up:
    """One run of the servers, the worker and the command of a folder. Main thread only.

    The folder holds `env` (to be sourced by a shell), `lock`, `worker.log`, `worker.ready`, `valkey/`, `s3/`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        worker_argv: Sequence[str] | None,
        command: Sequence[str] | None = None,
        with_s3: bool = False,
        worker_stop_seconds: float = _WORKER_STOP_SECONDS,
    ) -> None:
        """Describe the run; nothing is created yet.

        Args:
            directory: its folder; created with mode 0700 if need be.
            worker_argv: the worker's command line; None: no worker.
            command: to run beside it; None: run until a signal comes.
            with_s3: whether to start an S3 store.
            worker_stop_seconds: between SIGTERM and SIGKILL; longer than the worker's drain.
        """
        self._directory = directory.absolute()
        self._worker_argv = worker_argv
        self._command = list(command or ())
        self._environ = dict(os.environ)
        self._worker_stop_seconds = worker_stop_seconds
        self._valkey = EmbeddedValkey(self._directory / "valkey")
        self._s3 = EmbeddedS3(self._directory / "s3") if with_s3 else None
        self._signals = SignalRecorder()
        self._restarters: list[Restarter] = []
        self._console = Console(stderr=True)

    def run(self) -> int:
        """Start everything, wait for the end, stop everything.

        Returns:
            The exit code: the command's (128 + N if signal N ended it, 127 if it does not exist), or 0.

        Raises:
            UsageError: the folder cannot be used, or another `up` runs on it.
            WorldError: something cannot be started.
        """
        if self._command and not shutil.which(self._command[0], path=self._environ.get("PATH")):
            say_error(f"{self._command[0]}: command not found, or not executable")
            return _NOT_FOUND
        _make_directory(self._directory)
        try:
            with self._locked(), self._signals, ExitStack() as children:
                return self._run(children)
        except OSError as error:
            raise WorldError(str(error)) from error

    def _run(self, children: ExitStack) -> int:
        settings = self._settings(self._start_redis(children))
        if self._s3 is not None and not self._signals.pending:
            settings |= self._start_s3(self._s3, children)
        if not self._signals.pending:
            exports = (f"export {name}={shlex.quote(value)}\n" for name, value in settings.items())
            write_private(self._directory / "env", "".join(exports))
            if self._worker_argv is not None:
                self._start_worker(self._worker_argv, settings, children)
        if self._signals.pending:
            return self._interrupted()
        if self._command:
            return self._run_command(settings, children)
        self._announce(settings)
        while self._carry_on():
            time.sleep(POLL_SECONDS)
        return self._interrupted()

    def _start_redis(self, children: ExitStack) -> str:
        url = self._environ.get(_URL)
        # A shell that sourced `env` has the URL of this folder's own server, which may be down now.
        if url and not self._valkey.owns(url):
            self._say(f"using Redis at {masked(url)} (CLIPFLEET_REDIS_URL is set)")
            return url
        children.callback(self._valkey.stop)
        if self._valkey.start(self._carry_on):
            self._restarters.append(Restarter(self._valkey.child, self._valkey.start_again))
        return self._valkey.url

    def _start_s3(self, store: EmbeddedS3, children: ExitStack) -> dict[str, str]:
        """Start the store; returns the variables that clients need."""
        children.callback(store.stop)
        if store.start(self._carry_on):
            self._restarters.append(Restarter(store.child, store.start_again))
        return store.environment()

    def _settings(self, url: str) -> dict[str, str]:
        """Variables for the worker, the command and `env`, beside the user's environment."""
        if self._worker_argv is not None:
            return {_URL: url, **roots(self._environ, Path.cwd())}
        return {_URL: url} | {name: self._environ[name] for name in _ROOTS if self._environ.get(name)}

    def _start_worker(self, argv: Sequence[str], settings: Mapping[str, str], children: ExitStack) -> None:
        ready_file = self._directory / "worker.ready"
        worker = Child(
            "worker",
            argv,
            log=self._directory / "worker.log",
            env={**self._environ, **settings, _READY_FILE: str(ready_file)},
            ready_file=ready_file,
            ready_seconds=_WORKER_READY_SECONDS,
            stop_seconds=self._worker_stop_seconds,
        )
        self._say(f"starting the worker, log {worker.log}")
        children.callback(self._stop_worker, worker)
        worker.start()
        if worker.wait_ready(self._carry_on):
            self._restarters.append(Restarter(worker))

    def _stop_worker(self, worker: Child) -> None:
        if not worker.alive:
            return
        self._signals.take()
        self._say("waiting for the worker to drain; press Ctrl-C again to kill it")
        if not worker.stop(lambda: self._signals.pending):
            self._say("the worker was killed; its chunks go to other workers when their leases expire")

    def _run_command(self, settings: Mapping[str, str], children: ExitStack) -> int:
        command = Child(
            self._command[0],
            self._command,
            log=None,
            env={**self._environ, **settings},
            stop_seconds=_COMMAND_STOP_SECONDS,
        )
        children.callback(command.stop)
        command.start()
        while command.alive:
            self._pass_on_signals(command)
            self._tend()
            time.sleep(POLL_SECONDS)
        code = command.exit_code or 0
        return code if code >= 0 else 128 - code

    def _pass_on_signals(self, command: Child) -> None:
        """Stop the command. A Ctrl-C is only passed on: the command decides whether it ends."""
        for number in self._signals.take():
            if number != signal.SIGINT:
                command.stop(number=number)
            elif not _terminal_reaches_our_group():
                command.send(number)

    def _carry_on(self) -> bool:
        self._tend()
        return not self._signals.pending

    def _tend(self) -> None:
        for restarter in self._restarters:
            if message := restarter.poll():
                self._say(message)

    def _interrupted(self) -> int:
        """Exit code after a signal: 0, unless there is a command."""
        received = self._signals.take()
        return 128 + received[0] if self._command and received else 0

    def _announce(self, settings: Mapping[str, str]) -> None:
        self._say(f"clipfleet is up (pid {os.getpid()})")
        self._say(f"  Redis   {masked(settings[_URL])}")
        if self._s3 is not None:
            self._say(f"  S3      {self._s3.endpoint}, bucket {BUCKET}")
        if self._worker_argv is not None:
            self._say(f"  files   read below {settings[_ROOTS[0]]}, written below {settings[_ROOTS[1]]}")
        for child in (restarter.child for restarter in self._restarters):
            self._say(f"  {child.name:<7} pid {child.pid}, log {child.log}")
        self._say(f"In another shell: source {shlex.quote(str(self._directory / 'env'))}")
        self._say("Press Ctrl-C to stop it.")

    def _say(self, text: str) -> None:
        with suppress(OSError):  # without a terminal the children must be stopped all the same
            self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)

    @contextmanager
    def _locked(self) -> Iterator[None]:
        path = self._directory / "lock"
        try:
            descriptor = try_lock(path)
        except OSError as error:
            raise UsageError(f"cannot lock {path}: {error.strerror}") from error
        if descriptor is None:
            raise UsageError(
                f"{self._directory}: `up` already runs on it (pid {holder(path)}); "
                f"use it (source {self._directory / 'env'}), stop it, or give another --dir"
            )
        try:
            note_holder(descriptor, os.getpid())
            yield
        finally:
            os.close(descriptor)


def roots(environ: Mapping[str, str], folder: Path) -> dict[str, str]:
    """The roots that the worker may read and write below: the user's settings, else the folder.

    Raises:
        UsageError: the path of the folder has a comma, which separates the roots.
    """
    values = {name: environ.get(name) or str(folder) for name in _ROOTS}
    defaulted = [name for name in _ROOTS if not environ.get(name)]
    if defaulted and "," in str(folder):
        raise UsageError(
            f"{folder}: a root cannot have a comma in its path; "
            f"set {' and '.join(defaulted)}, or run from another folder"
        )
    return values


def _make_directory(directory: Path) -> None:
    try:
        directory.mkdir(mode=0o700, parents=True)
        (directory / ".gitignore").write_text("*\n")  # the folder holds passwords
    except OSError as error:
        if not (isinstance(error, FileExistsError) and directory.is_dir()):
            raise UsageError(f"cannot use {directory}: {error.strerror}; give another --dir") from error


def _terminal_reaches_our_group() -> bool:
    """Whether a Ctrl-C at the terminal reaches our process group, and so the command."""
    try:
        terminal = os.open("/dev/tty", os.O_RDONLY | os.O_NOCTTY)
    except OSError:
        return False
    try:
        return os.tcgetpgrp(terminal) == os.getpgrp()
    except OSError:
        return False
    finally:
        os.close(terminal)
