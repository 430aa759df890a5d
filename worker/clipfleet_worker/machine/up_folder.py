"""The folder of an `up`: `lock`, `env` (to be sourced by a shell), `up.json`, and the folders of its servers.

It is how other commands find an `up` that runs, and how they use it.
"""

from __future__ import annotations

import os
import shlex
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from clipfleet.errors import UsageError
from clipfleet_worker.machine.child import POLL_SECONDS
from clipfleet_worker.machine.embedded.private_files import holder, note_holder, try_lock, write_private

FOLDER_VARIABLE = "_CLIPFLEET_UP_FOLDER"  # no setting: whose `env` a shell has sourced
DEFAULT = ".clipfleet"  # in the current folder
_LOCK_SECONDS = 0.5  # `running` takes the lock for a moment
_NOTE_SECONDS = 2.0


class RunningUp(BaseModel):
    """An `up` that runs on a folder."""

    model_config = ConfigDict(frozen=True)

    pid: int
    has_command: bool  # it ends with its command, so nobody else can use it
    options: tuple[str, ...] = ()  # of its command line
    is_ready: bool = False


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
            UsageError: the folder cannot be used.
        """
        try:
            self.path.mkdir(mode=0o700, parents=True)
            (self.path / ".gitignore").write_text("*\n")  # the folder holds passwords
        except OSError as error:
            if not (isinstance(error, FileExistsError) and self.path.is_dir()):
                raise UsageError(f"cannot use {self.path}: {error.strerror}; give another --dir") from error

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
                    raise self.is_in_use()
                time.sleep(POLL_SECONDS)
        except OSError as error:
            raise UsageError(f"cannot lock {self._lock}: {error.strerror}") from error
        return descriptor

    def is_in_use(self) -> UsageError:
        """The error for a second `up` that cannot use the first."""
        up = self.running()
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
            UsageError: the folder is another user's.
        """
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
            pid = holder(self._lock)
            with suppress(OSError, ValidationError):
                up = RunningUp.model_validate_json(self._note.read_bytes())
                if str(up.pid) == pid and _is_there(up.pid):
                    return up
            if pid.isdecimal() and time.monotonic() >= deadline:  # of an older version
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
        """Read what `write_settings` wrote last; empty if it is not there."""
        with suppress(OSError, ValueError):
            words = shlex.split(os.fsdecode(self.env_file.read_bytes()))
            return dict(word.split("=", 1) for word in words if word != "export")
        return {}


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # it is another user's
        pass
    return True
