"""`clipfleet-worker up`: keeps a Valkey, a worker and, on request, an S3 store and a gateway running.

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
from collections.abc import Mapping, Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from rich.console import Console

from clipfleet.errors import UsageError, WorldError
from clipfleet.redis.connection import masked
from clipfleet.terminal.console import say_error
from clipfleet.terminal.up_around import UP_VARIABLE, UpAround
from clipfleet_worker.machine.child import POLL_SECONDS, Child
from clipfleet_worker.machine.embedded.gateway import EmbeddedGateway
from clipfleet_worker.machine.embedded.s3 import BUCKET, EmbeddedS3
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from clipfleet_worker.machine.restarts import Restarter
from clipfleet_worker.machine.signals import SignalRecorder
from clipfleet_worker.machine.up_folder import FOLDER_VARIABLE, RunningUp, UpFolder

# -P: a file celery.py in the user's folder must not shadow the package
PROGRAM = (sys.executable, "-P", "-m", "clipfleet_worker")
RUN_WORKER = (*PROGRAM, "run")

_URL = "CLIPFLEET_REDIS_URL"
_READY_FILE = "CLIPFLEET_READY_FILE"  # the worker creates this file once it takes work
_ROOTS = ("CLIPFLEET_FILE_ROOTS", "CLIPFLEET_OUTPUT_ROOTS")
_WORKER_READY_SECONDS = 120.0
_WORKER_STOP_SECONDS = 60.0
_COMMAND_STOP_SECONDS = 10.0
_QUIET_SECONDS = 5.0  # of a drain that nobody has asked for; then it is announced
_LEASE_SECONDS = 30.0
_NOT_FOUND = 127  # the shells' exit code


class Up:
    """One run of the servers, the worker and the command of a folder. Main thread only.

    Beside the files of `UpFolder` and `EmbeddedGateway` the folder holds `worker.log`, `worker.ready`,
    `valkey/`, `s3/`.
    """

    def __init__(
        self,
        directory: Path,
        *,
        worker_argv: Sequence[str] | None,
        command: Sequence[str] | None = None,
        with_s3: bool = False,
        gateway_port: int | None = None,
        roots: Sequence[Path] = (),
        options: Sequence[str] = (),
        worker_stop_seconds: float = _WORKER_STOP_SECONDS,
        lease_seconds: float = _LEASE_SECONDS,
    ) -> None:
        """Describe the run; nothing is created yet.

        Args:
            directory: its folder; created with mode 0700 if need be.
            worker_argv: the worker's command line; None: no worker.
            command: to run beside it; None: run until a signal comes.
            with_s3: whether to start an S3 store.
            gateway_port: of the gateway to start; None: no gateway.
            roots: folders that the worker may read and write below; none: those of the environment, else the
                current folder.
            options: command line options of such a run, for messages and other commands.
            worker_stop_seconds: between SIGTERM and SIGKILL; longer than the worker's drain.
            lease_seconds: of the worker's chunks, for messages.
        """
        self._folder = UpFolder(directory)
        self._directory = self._folder.path
        self._roots = list(roots)
        self._options = tuple(options)
        self._lease_seconds = lease_seconds
        self._worker_argv = worker_argv
        self._command = list(command or ())
        self._environ = dict(os.environ)
        self._worker_stop_seconds = worker_stop_seconds
        self._valkey = EmbeddedValkey(self._directory / "valkey")
        self._s3 = EmbeddedS3(self._directory / "s3") if with_s3 else None
        self._gateway = None if gateway_port is None else EmbeddedGateway(self._directory, gateway_port)
        self._signals = SignalRecorder()
        self._was_interrupted = False
        self._has_own_redis = False
        self._works = False  # the worker has been ready
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
        self._folder.make()
        try:
            with self._folder.held(self._as_running()), self._signals, ExitStack() as children:
                return self._run(children)
        except OSError as error:
            raise WorldError(str(error)) from error

    def _as_running(self, *, is_ready: bool = False) -> RunningUp:
        return RunningUp.this_process(
            has_command=bool(self._command), options=self._options, is_ready=is_ready
        )

    def _run(self, children: ExitStack) -> int:
        settings = self._settings(self._start_redis(children))
        if self._s3 is not None and not self._signals.pending:
            settings |= self._start_s3(self._s3, children)
        if not self._signals.pending:
            self._folder.write_settings(settings)
            if self._worker_argv is not None:
                self._start_worker(self._worker_argv, settings, children)
        if self._gateway is not None and not self._signals.pending:
            settings |= self._start_gateway(self._gateway, settings, children)
            self._folder.write_settings(settings)
        if self._signals.pending:
            return self._interrupted()
        if self._command:
            return self._run_command(settings, children)
        self._announce(settings)
        self._folder.note(self._as_running(is_ready=True))
        while self._carry_on():
            time.sleep(POLL_SECONDS)
        return self._interrupted()

    def _start_redis(self, children: ExitStack) -> str:
        url = self._environ.get(_URL)
        # A shell that sourced `env` has the URL of this folder's own server, which may be down now.
        if url and not self._valkey.owns(url):
            self._say(self._joining_words(url))
            return url
        self._has_own_redis = True
        children.callback(self._valkey.stop)
        if self._valkey.start(self._carry_on):
            self._restarters.append(Restarter(self._valkey.child, self._valkey.start_again))
        return self._valkey.url

    def _joining_words(self, url: str) -> str:
        origin = UpFolder(Path(self._environ.get(FOLDER_VARIABLE) or self._directory))
        if origin.path == self._directory or origin.settings().get(_URL) != url:
            return f"using Redis at {masked(url)} (CLIPFLEET_REDIS_URL is set)"
        if origin.running() is None:
            raise UsageError(
                f"CLIPFLEET_REDIS_URL is of the `up` of {origin.path}, whose `env` this shell has sourced "
                "and which has ended: start `up` in a new shell"
            )
        theirs = origin.settings().get(_ROOTS[0])
        return (
            f"joining the Redis of {origin.path}, whose `env` this shell has sourced. Its workers share all "
            f"jobs, and read and write below {theirs} only; for a Redis and a worker of {Path.cwd()}, "
            "start `up` in a new shell"
        )

    def _start_s3(self, store: EmbeddedS3, children: ExitStack) -> dict[str, str]:
        """Start the store; returns the variables that clients need."""
        children.callback(store.stop)
        if store.start(self._carry_on):
            self._restarters.append(Restarter(store.child, store.start_again))
        return store.environment()

    def _settings(self, url: str) -> dict[str, str]:
        """Variables for the worker, the command and `env`, beside the user's environment."""
        if self._worker_argv is not None:
            return {_URL: url, **roots(self._environ, Path.cwd(), self._roots)}
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
            self._works = True
            self._restarters.append(Restarter(worker))

    def _start_gateway(
        self, gateway: EmbeddedGateway, settings: Mapping[str, str], children: ExitStack
    ) -> dict[str, str]:
        """Start the gateway; returns the variables that its clients need."""
        children.callback(gateway.stop, lambda: self._signals.pending)
        if gateway.start({**self._environ, **settings}, self._carry_on):
            self._restarters.append(Restarter(gateway.child))
            self._say(f"the gateway listens at {gateway.url}, {self._key_words(gateway)}")
        return gateway.environment()

    def _stop_worker(self, worker: Child) -> None:
        if not worker.alive:
            return
        self._take_signals()
        silent_until = time.monotonic() + (0 if self._was_interrupted and self._works else _QUIET_SECONDS)
        is_announced = False

        def hurry() -> bool:
            nonlocal is_announced
            if is_announced:
                return self._signals.pending
            if self._take_signals() or time.monotonic() >= silent_until:
                is_announced = True
                again = " again" if self._was_interrupted else ""
                self._say(f"Finishing the work in progress. Press Ctrl-C{again} to stop at once")
            return False

        if not worker.stop(hurry):
            by = "the next `up` here" if self._has_own_redis else "another worker"
            self._say(
                f"Worker stopped. Its unfinished work will be picked up by {by} "
                f"in about {self._lease_seconds:g} s"
            )

    def _run_command(self, settings: Mapping[str, str], children: ExitStack) -> int:
        command = Child(
            self._command[0],
            self._command,
            log=None,
            env={**self._environ, **settings, UP_VARIABLE: self._around().value()},
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

    def _around(self) -> UpAround:
        """What the command knows of this run."""
        pid = os.getpid() if self._has_own_redis else 0
        return UpAround(pid, self._folder.command(*self._options))

    def _pass_on_signals(self, command: Child) -> None:
        """Stop the command. A Ctrl-C is only passed on: the command decides whether it ends."""
        for number in self._take_signals():
            if number != signal.SIGINT:
                command.stop(number=number)
            elif not _terminal_reaches_our_group():
                command.send(number)

    def _take_signals(self) -> list[signal.Signals]:
        taken = self._signals.take()
        self._was_interrupted |= bool(taken)
        return taken

    def _carry_on(self) -> bool:
        self._tend()
        return not self._signals.pending

    def _tend(self) -> None:
        for restarter in self._restarters:
            if message := restarter.poll():
                self._say(message)

    def _interrupted(self) -> int:
        """Exit code after a signal: 0, unless there is a command."""
        received = self._take_signals()
        return 128 + received[0] if self._command and received else 0

    def _announce(self, settings: Mapping[str, str]) -> None:
        self._say(f"clipfleet is up (pid {os.getpid()})")
        self._say(f"  Redis   {masked(settings[_URL])}")
        if self._s3 is not None:
            self._say(f"  S3      {self._s3.endpoint}, bucket {BUCKET}")
        if self._worker_argv is not None:
            self._say(f"  files   read below {settings[_ROOTS[0]]}, written below {settings[_ROOTS[1]]}")
        if self._gateway is not None:
            self._say(f"  place   {self._gateway.place}: keys, files and results of the gateway")
        for child in (restarter.child for restarter in self._restarters):
            self._say(f"  {child.name:<7} pid {child.pid}, log {child.log}")
        self._say(f"In another shell: source {shlex.quote(str(self._folder.env_file))}")
        self._say("Press Ctrl-C to stop it.")

    def _key_words(self, gateway: EmbeddedGateway) -> str:
        key = gateway.key()
        if key is None:
            return "with the keys that it had before: `clipfleet-gateway keys add NAME` makes another one"
        shown = f"its first key is {key}, also" if gateway.has_new_key else "with the key"
        return f"{shown} OPENAI_API_KEY in {self._folder.env_file}"

    def _say(self, text: str) -> None:
        with suppress(OSError):  # without a terminal the children must be stopped all the same
            self._console.print(text, markup=False, highlight=False, emoji=False, soft_wrap=True)


def roots(environ: Mapping[str, str], folder: Path, given: Sequence[Path] = ()) -> dict[str, str]:
    """The roots that the worker may read and write below: those given, else the user's, else the folder.

    Raises:
        UsageError: the path of a root has a comma, which separates the roots.
    """
    defaults = [path.absolute() for path in given] or [folder]
    names = _ROOTS if given else [name for name in _ROOTS if not environ.get(name)]
    for path in defaults:
        if names and "," in str(path):
            raise UsageError(
                f"{path}: a root cannot have a comma in its path; "
                f"set {' and '.join(names)}, or run from another folder"
            )
    value = ",".join(map(str, defaults))
    return {name: value if name in names else environ[name] for name in _ROOTS}


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
