"""Sees every change in the folders of outputs while jobs run, by the kernel's inotify (Linux only)."""

from __future__ import annotations

import ctypes
import os
import select
import struct
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Self

from clipfleet.outputs import objects
from ops.chaos.changes import Act, Change

_MODIFY, _MOVED_FROM, _MOVED_TO, _CREATE, _DELETE = 0x2, 0x40, 0x80, 0x100, 0x200  # of <sys/inotify.h>
_OVERFLOW, _IS_FOLDER = 0x4000, 0x40000000
_ACTS = {
    _MODIFY: Act.MODIFIED, _MOVED_TO: Act.APPEARED, _CREATE: Act.APPEARED, _DELETE: Act.REMOVED,
    _MOVED_FROM: Act.REMOVED,
}  # fmt: skip
_EVENT = struct.Struct("iIII")  # watch, mask, cookie, length of the name
_POLL_MILLISECONDS = 50


class FolderWatcher:
    """Notes what becomes of the objects of all outputs below a folder. A context manager.

    Of a job file it notes that it came in the place of another one.

    Args:
        folder: a new folder in it is the output of the job of this name.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._libc = ctypes.CDLL(None, use_errno=True)
        self._inotify = -1
        # By watch: the job, and where its objects lie in its output; the folder itself is ("", "").
        self._jobs: dict[int, tuple[str, str]] = {}
        self._found: dict[Path, int] = {}  # inodes of parts that came before their folder was watched
        self._internal: dict[int, str] = {}  # likewise: where only another job's file is looked for
        self._changes: list[Change] = []
        self._stopping = threading.Event()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._run, name="folder-watcher", daemon=True)

    def __enter__(self) -> Self:
        self._inotify = self._checked(self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC))
        self._jobs[self._add_watch(self._folder, _CREATE)] = ("", "")
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join()
        os.close(self._inotify)

    @property
    def watched(self) -> set[str]:
        """Folders of outputs that are watched by now, below that of all."""
        internal = {f"{job_id}/{objects.INTERNAL}" for job_id in self._internal.copy().values()}
        outputs = {f"{job_id}/{below}".rstrip("/") for job_id, below in self._jobs.copy().values() if job_id}
        return internal | outputs

    @property
    def changes(self) -> list[Change]:
        """All so far."""
        with self._lock:
            return list(self._changes)

    def _watch_output(self, job_id: str) -> None:
        folder = self._folder / job_id
        self._jobs[self._add_watch(folder, sum(_ACTS))] = (job_id, "")
        for name in (objects.INTERNAL, objects.LAYOUT.data.rstrip("/")):
            if (folder / name).is_dir():
                self._watch_below(job_id, name)

    def _watch_below(self, job_id: str, name: str) -> None:
        folder = self._folder / job_id / name
        if name == objects.INTERNAL:
            self._watch_internal(folder, job_id)
        elif f"{name}/" == objects.LAYOUT.data:
            self._jobs[self._add_watch(folder, sum(_ACTS))] = (job_id, objects.LAYOUT.data)
            for path in sorted(folder.iterdir()):  # a part may follow its folder within a moment
                self._found[path] = path.stat().st_ino
                self._note(Change(job_id, objects.LAYOUT.data + path.name, Act.APPEARED))

    def _watch_internal(self, folder: Path, job_id: str) -> None:
        self._internal[self._add_watch(folder, _MOVED_TO)] = job_id

    def _add_watch(self, folder: Path, mask: int) -> int:
        return self._checked(self._libc.inotify_add_watch(self._inotify, os.fsencode(folder), mask))

    @staticmethod
    def _checked(answer: int) -> int:
        if answer < 0:
            raise OSError(ctypes.get_errno(), "inotify: no folder can be watched")
        return answer

    def _run(self) -> None:
        poll = select.poll()
        poll.register(self._inotify, select.POLLIN)
        while not self._stopping.is_set():
            if poll.poll(_POLL_MILLISECONDS):
                for watch, mask, name in _events(os.read(self._inotify, 1 << 16)):
                    self._take(watch, mask, name)

    def _take(self, watch: int, mask: int, name: str) -> None:
        if mask & _OVERFLOW:
            raise RuntimeError("the kernel has dropped events: fs.inotify.max_queued_events is too low")
        if watch in self._internal:
            if f"{objects.INTERNAL}/{name}" == objects.JOB_FILE:
                self._note(Change(self._internal[watch], objects.JOB_FILE, Act.APPEARED))
            return
        if watch not in self._jobs:
            return
        job_id, below = self._jobs[watch]
        if mask & _IS_FOLDER:
            if not job_id:
                self._watch_output(name)
            elif not below and mask & _CREATE:
                self._watch_below(job_id, name)
            return
        acts = [act for bit, act in _ACTS.items() if mask & bit]
        if job_id and acts and not self._is_known(self._folder / job_id / below / name, acts[0]):
            self._note(Change(job_id, below + name, acts[0]))

    def _is_known(self, path: Path, act: Act) -> bool:
        """Whether this is the event of a part that was found in its folder, too."""
        inode = self._found.pop(path, None)
        if inode is None or act is not Act.APPEARED:
            return False
        try:
            return path.stat().st_ino == inode
        except FileNotFoundError:
            return False

    def _note(self, change: Change) -> None:
        with self._lock:
            self._changes.append(change)


def _events(data: bytes) -> Iterator[tuple[int, int, str]]:
    while data:
        watch, mask, _, length = _EVENT.unpack_from(data)
        name = data[_EVENT.size : _EVENT.size + length].rstrip(b"\0")
        data = data[_EVENT.size + length :]
        yield watch, mask, os.fsdecode(name)
