"""The folder of an `up`: `lock`, `env` (to be sourced by a shell), `up.json`, and the folders of its servers.

It is how other commands find an `up` that runs, and how they use it.
"""

from __future__ import annotations

import os
import pwd
import shlex
import socket
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Self

from pydantic import BaseModel, ConfigDict, ValidationError

from clipfleet.errors import UsageError
from clipfleet_worker.machine.child import POLL_SECONDS
from clipfleet_worker.machine.embedded.private_files import (
    holder,
    is_private,
    note_holder,
    read_private,
    try_lock,
    write_private,
)

FOLDER_VARIABLE = "_CLIPFLEET_UP_FOLDER"  # no setting: whose `env` a shell has sourced
DEFAULT = ".clipfleet"  # in the current folder
# All that `env` has. Not any AWS_*: clients run programs that the file AWS_CONFIG_FILE names
_NAMES = frozenset(
    {
        "CLIPFLEET_REDIS_URL",
        "CLIPFLEET_FILE_ROOTS",
        "CLIPFLEET_OUTPUT_ROOTS",
        "AWS_ENDPOINT_URL",
        "AWS_ENDPOINT_URL_S3",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
        "AWS_SESSION_TOKEN",
        "AWS_DEFAULT_REGION",
        "AWS_REGION",
        "OPENAI_BASE_URL",
        "OPENAI_API_KEY",
        FOLDER_VARIABLE,
    }
)
_LOCK_SECONDS = 0.5  # `running` takes the lock for a moment
_NOTE_SECONDS = 2.0


class RunningUp(BaseModel):
    """An `up` that runs on a folder."""

    model_config = ConfigDict(frozen=True)

    pid: int
    pid_space: str = ""  # see `_pid_space`; empty: not known
    host: str = ""  # for messages
    started: str = ""  # see `_start_of`
    has_command: bool  # it ends with its command, so nobody else can use it
    options: tuple[str, ...] = ()  # of its command line
    is_ready: bool = False

    @classmethod
    def this_process(
        cls, *, has_command: bool, options: tuple[str, ...] = (), is_ready: bool = False
    ) -> Self:
        """Describe the `up` that this process is."""
        return cls(
            pid=os.getpid(),
            pid_space=_pid_space(),
            host=socket.gethostname(),
            started=_start_of(os.getpid()),
            has_command=has_command,
            options=options,
            is_ready=is_ready,
        )

    @property
    def is_here(self) -> bool:
        """Whether its pid means anything to this process: same machine, same container."""
        return self.pid_space in ("", _pid_space())

    @property
    def is_alive(self) -> bool:
        """Whether the process with its pid is still the same one; only if it `is_here`."""
        return _start_of(self.pid) == self.started and _is_there(self.pid)

    @property
    def is_for_all(self) -> bool:
        """Whether other commands of this machine can use and stop it."""
        return self.is_here and not self.has_command


class UpFolder:
    """One folder. Nothing is created before `make`."""

    def __init__(self, path: Path) -> None:
        self.path = path.absolute()
        self.log = self.path / "up.log"  # of an `up` in the background
        self.env_file = self.path / "env"
        self._lock = self.path / "lock"
        self._note = self.path / "up.json"

    def make(self) -> None:
        """Create the folder with mode 0700, unless it exists.

        Raises:
            UsageError: the folder cannot be used, or another user can write to it.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True)
            (self.path / ".gitignore").write_text("*\n")  # the folder holds passwords
        except OSError as error:
            if not (isinstance(error, FileExistsError) and self.path.is_dir()):
                raise UsageError(f"cannot use {self.path}: {error.strerror}; give another --dir") from error
        self._require_private()

    def _require_private(self) -> None:
        """Raise if another user can choose which servers are used, or which process is stopped."""
        for path in (self.path, self._lock, self._note, self.env_file):
            try:
                status = path.stat()
            except OSError:  # it is not there, or `make` reports it
                continue
            if status.st_uid != os.geteuid():
                raise UsageError(f"{path}: it belongs to {_user(status.st_uid)}; give another --dir")
            if not is_private(status):
                raise UsageError(f"{path}: other users can write to it; give another --dir")

    def command(self, *options: str) -> str:
        """The command line of an `up` on this folder, for a shell in the current one."""
        named = [] if self.path == Path(DEFAULT).absolute() else ["--dir", str(self.path)]
        return shlex.join(["clipfleet-worker", "up", *named, *options])

    @contextmanager
    def held(self, up: RunningUp) -> Iterator[None]:
        """Hold the folder for an `up`.

        Raises:
            UsageError: another one holds it.
        """
        descriptor = self._locked()
        try:
            self.note(up)
            note_holder(descriptor, up.pid)
            yield
        finally:
            os.close(descriptor)

    def _locked(self) -> int:
        deadline = time.monotonic() + _LOCK_SECONDS
        try:
            while (descriptor := try_lock(self._lock)) is None:
                if time.monotonic() >= deadline:
                    raise self.is_in_use(self.running())
                time.sleep(POLL_SECONDS)
        except OSError as error:
            raise UsageError(f"cannot lock {self._lock}: {error.strerror}") from error
        return descriptor

    def is_in_use(self, up: RunningUp | None) -> UsageError:
        """The error for a command that can neither use nor stop an `up`; None: it has just ended."""
        if up is not None and not up.is_here:
            return UsageError(f"{self.path}: `up` runs on {up.host}; stop it there, or give another --dir")
        if up is not None and up.has_command:
            way_out = "wait for the end of its command, or give another --dir"
        else:
            way_out = (
                f"use it (`{self.command('--')} COMMAND`), stop it (`{self.command('--stop')}`), "
                "or give another --dir"
            )
        return UsageError(f"{self.path}: `up` already runs on it (pid {holder(self._lock)}); {way_out}")

    def note(self, up: RunningUp) -> None:
        """Record what runs here, for `running`."""
        write_private(self._note, up.model_dump_json())

    def running(self) -> RunningUp | None:
        """The `up` that holds the folder; None if there is none, whatever files a killed one has left.

        Raises:
            UsageError: another user can write to the folder.
        """
        self._require_private()
        try:
            if not self._lock.exists():
                return None
        except OSError:  # a name that cannot be: `make` reports it
            return None
        try:
            return self._holder()
        except OSError as error:
            raise UsageError(f"cannot lock {self._lock}: {error.strerror}") from error

    def _holder(self) -> RunningUp | None:
        deadline = time.monotonic() + _NOTE_SECONDS
        while (descriptor := try_lock(self._lock)) is None:
            pid, is_late = holder(self._lock), time.monotonic() >= deadline
            with suppress(OSError, ValidationError):
                up = RunningUp.model_validate_json(read_private(self._note))
                # Late: the note may be an old one, of another machine, while one of this machine starts
                if str(up.pid) == pid and (up.is_alive if up.is_here else is_late):
                    return up
            if pid.isdecimal() and is_late:  # of an older version
                return RunningUp(pid=int(pid), has_command=True)
            time.sleep(POLL_SECONDS)  # it has just locked, and records itself next
        os.close(descriptor)
        return None

    def write_settings(self, settings: Mapping[str, str]) -> None:
        """Write the variables that clients need, for a shell and for `settings`."""
        exported = {**settings, FOLDER_VARIABLE: str(self.path)}
        text = "".join(f"export {name}={shlex.quote(value)}\n" for name, value in exported.items())
        write_private(self.env_file, text)

    def settings(self) -> dict[str, str]:
        """Read what `write_settings` wrote last; empty if another user can have written it, or without it."""
        with suppress(OSError, ValueError):
            words = shlex.split(os.fsdecode(read_private(self.env_file)))
            read = dict(word.split("=", 1) for word in words if word != "export")
            return {name: value for name, value in read.items() if name in _NAMES}
        return {}


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return f"user {uid}"


def _pid_space() -> str:
    """Where a pid means one process: a boot of a machine, and a PID namespace (container) of it."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # not Linux
        return socket.gethostname()


def _start_of(pid: int) -> str:
    """Clock ticks from the boot to the start of a process; empty if it has ended, or outside Linux."""
    try:
        status = Path(f"/proc/{pid}/stat").read_bytes()
    except OSError:
        return ""
    fields = status.rpartition(b")")[2].split()  # from field 3; its name, field 2, may have blanks
    if fields[0] in (b"Z", b"X"):  # in a container without an init, a zombie may stay for good
        return ""
    return fields[19].decode()


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True
