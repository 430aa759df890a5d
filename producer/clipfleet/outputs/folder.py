"""An output in a folder of a local or shared file system.

A hard link from a finished temporary file makes a file visible: atomically, and only if the name is free.
"""

from __future__ import annotations

import errno
import fcntl
import os
import time
import uuid
from collections.abc import Callable, Collection, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import TypeVar

import pyarrow as pa

from clipfleet.errors import OutputUnavailableError
from clipfleet.outputs import objects
from clipfleet.outputs.scratch import output_errors

_NO_HARD_LINKS = frozenset({errno.EPERM, errno.ENOTSUP, errno.ENOSYS, errno.EMLINK, errno.EXDEV})
_NO_LOCKS = frozenset({errno.ENOLCK, errno.ENOTSUP, errno.ENOSYS})

T = TypeVar("T")
Confirm = Callable[[], object]  # raises to prevent a change


def unconditionally() -> None:
    """A `Confirm` that allows every change."""


class FolderOutput:
    """See `clipfleet.outputs.Output`. The first write creates the folder."""

    has_conditional_writes = True

    def __init__(self, folder: Path) -> None:
        # Not resolve(): a symbolic link in the path may point elsewhere on another machine.
        with suppress(RuntimeError):  # no such user or home: an ordinary name
            folder = folder.expanduser()
        self._folder = folder.absolute()
        self.uri = str(self._folder)

    # --- Paths: overridden by `BoundFolderOutput` ---

    @contextmanager
    def _holder(self, name: str) -> Iterator[Path]:
        """Folder of an object, as a path that is valid inside the context."""
        yield (self._folder / name).parent

    @contextmanager
    def _found(self, name: str) -> Iterator[Path]:
        """Path of an object to read, valid inside the context. May raise `FileNotFoundError`."""
        yield self._folder / name

    def _make_folder(self, name: str) -> None:
        """Make a folder of the output, unless it is there."""
        (self._folder / name).mkdir(parents=True, exist_ok=True)

    # --- Writing ---

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """Reserve a path below `_clipfleet/tmp/`, on the same file system as the parts."""
        with ExitStack() as stack:
            with output_errors(self._folder / objects.TMP):
                self._make_folder(objects.TMP)
                folder = stack.enter_context(self._holder(f"{objects.TMP}/scratch"))
            path = folder / uuid.uuid4().hex
            try:
                yield path
            finally:
                # The published file stays, so failing to remove a leftover is no error.
                with suppress(OSError):
                    path.unlink(missing_ok=True)

    def publish(
        self, scratch: Path, name: str, *, replace: bool = False, confirm: Confirm = unconditionally
    ) -> bool:
        """Sync the file, then link it to its name."""
        with output_errors(self._folder / name), _needed(scratch), self._made_holder(name) as folder:
            target = folder / Path(name).name
            _sync_file(scratch)
            confirm()
            if replace:
                scratch.replace(target)
            elif not _link_if_absent(scratch, target):
                return False
            _sync_folder(target.parent)
        return True

    @contextmanager
    def _made_holder(self, name: str) -> Iterator[Path]:
        below = name.rpartition("/")[0]
        if below not in ("", objects.INTERNAL):  # the latter is made with the folder for scratch files
            self._make_folder(below)
        with self._holder(name) as folder:
            yield folder

    def _seen(self, name: str, look: Callable[[Path], T]) -> T | None:
        """Apply `look` to the path of an object; None if it does not exist."""
        with output_errors(self._folder / name):
            try:
                with self._found(name) as path:
                    return look(path)
            except FileNotFoundError:
                return None

    def version(self, name: str) -> str | None:
        return self._seen(name, lambda path: _version(path.stat()))

    def replace_if(
        self, scratch: Path, name: str, version: str, *, confirm: Confirm = unconditionally
    ) -> bool:
        """Replace a file under its lock. Raises `OutputUnavailableError` while another writer holds it."""
        with output_errors(self._folder / name), _needed(scratch), self._holder(name) as folder:
            target = folder / Path(name).name
            _sync_file(scratch)
            try:
                # The old file is the lock; a late holder sees another file at the path.
                with target.open("rb+") as file:
                    _lock(file.fileno())
                    if {version} != {_version(os.fstat(file.fileno())), _version(target.stat())}:
                        return False
                    confirm()
                    scratch.replace(target)
            except FileNotFoundError:
                return False
            _sync_folder(target.parent)
        return True

    def create(self, name: str, data: bytes, *, confirm: Confirm = unconditionally) -> bool:
        return self._write(name, data, confirm, replace=False)

    def replace(self, name: str, data: bytes, *, confirm: Confirm = unconditionally) -> None:
        self._write(name, data, confirm, replace=True)

    def _write(self, name: str, data: bytes, confirm: Confirm, *, replace: bool) -> bool:
        with self.scratch() as path:
            with output_errors(path):
                path.write_bytes(data)
            return self.publish(path, name, replace=replace, confirm=confirm)

    def read(self, name: str) -> bytes | None:
        return self._seen(name, Path.read_bytes)

    def open(self, name: str) -> pa.NativeFile:
        file = self._seen(name, lambda path: pa.OSFile(str(path), "rb"))
        if file is None:
            raise FileNotFoundError(self._folder / name)
        return file

    def names(self, prefix: str) -> Iterator[str]:
        below, _, start = prefix.rpartition("/")
        found = self._entries(below, lambda entry: entry.name.startswith(start) and entry.is_file())
        yield from (f"{below}/{name}" if below else name for name in found)

    def folders(self, name: str) -> Iterator[str]:
        yield from self._entries(name, os.DirEntry.is_dir)

    def _entries(self, name: str, is_wanted: Callable[[os.DirEntry[str]], bool]) -> list[str]:
        """Names in a folder, sorted; none if it does not exist."""
        with output_errors(self._folder / name):
            try:
                with self._holder(f"{name}/x" if name else "x") as folder, os.scandir(folder) as entries:
                    return sorted(entry.name for entry in entries if is_wanted(entry))
            except FileNotFoundError:
                return []

    def remove(self, name: str) -> None:
        with output_errors(self._folder / name):
            try:
                with self._holder(name) as folder:
                    (folder / Path(name).name).unlink()
                    _sync_folder(folder)
            except FileNotFoundError:
                return

    def remove_folder(self, name: str) -> None:
        with suppress(OSError), self._holder(f"{name}/x") as folder:
            for below, _, _ in os.walk(folder, topdown=False):
                Path(below).rmdir()  # fails, and ends it, if it has a file

    def sweep(self, kept: Collection[str], *, confirm: Confirm = unconditionally) -> None:
        self.sweep_scratch()
        for prefix in (objects.STAGED_PREFIX, objects.FOOTER_PREFIX):
            for name in set(self.names(prefix)).difference(kept):
                confirm()
                with suppress(OutputUnavailableError):
                    self.remove(name)

    def sweep_scratch(self, *, idle_seconds: float = 0.0) -> None:
        """Remove scratch files, but not their folder: a writer may be about to create one."""
        before = time.time() - idle_seconds
        with suppress(OSError), self._holder(f"{objects.TMP}/scratch") as folder:
            for path in folder.glob("*"):
                with suppress(OSError):
                    if not idle_seconds or path.stat().st_mtime < before:
                        path.unlink()

    def clear(self, *, confirm: Confirm = unconditionally) -> None:
        found = [objects.SUCCESS, objects.MANIFEST]
        for layout in objects.LAYOUTS:
            found += [layout.errors, *self.names(layout.part_prefix)]
        found += [
            name for name in self.names(f"{objects.INTERNAL}/") if not name.startswith(objects.KEPT_BY_CLEAR)
        ]
        for name in found:
            confirm()
            self.remove(name)
        self.sweep_scratch()


@contextmanager
def _needed(scratch: Path) -> Iterator[None]:
    """Report a missing scratch file as swept, not as a fault of the output."""
    try:
        yield
    except FileNotFoundError as error:
        if scratch.exists() or not scratch.parent.is_dir():
            raise
        raise OutputUnavailableError(f"{scratch}: removed when its job ended") from error


def _link_if_absent(source: Path, target: Path) -> bool:
    try:
        target.hardlink_to(source)
    except FileExistsError:
        # On NFS the reply to a successful link can be lost, and its retry fails: the file is ours then.
        return target.samefile(source)
    except OSError as error:
        if error.errno not in _NO_HARD_LINKS:
            raise
        # No hard links (some network shares): two writers of one chunk may both write, one after the other.
        # Each writes the whole part, so there is still one row per input.
        if target.exists():
            return False
        source.replace(target)
    return True


def _version(status: os.stat_result) -> str:
    # Inode numbers are reused soon, but not with the same mtime.
    return f"{status.st_ino}-{status.st_mtime_ns}-{status.st_size}"


def _lock(descriptor: int) -> None:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise OSError(error.errno, "another writer is replacing it") from error
    except OSError as error:
        # No locks: the comparison right before the rename must do.
        if error.errno not in _NO_LOCKS:
            raise


def _sync_file(path: Path) -> None:
    with path.open("rb+") as file:
        os.fsync(file.fileno())


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno != errno.EINVAL:  # some file systems cannot sync a folder
            raise
    finally:
        os.close(descriptor)
