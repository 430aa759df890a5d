"""Ends a process that takes too much memory, before the kernel kills one at random.

One image may take ten gigabytes inside a decoder, and no thread can be stopped. After the end of the
process its chunks are suspects, and a child with a limit names the image. On a large machine ten gigabytes
are no danger, and yet no image may have them: while one is read the process may grow by so much only.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

from clipfleet_worker.process.cores import control_groups
from clipfleet_worker.process.loop import Loop
from clipfleet_worker.process.watchdog import EXIT_HUNG

log = logging.getLogger(__name__)

_LOOK_SECONDS = 0.1  # a gigabyte takes longer than this to be touched
_SHARE = 0.9  # of what there is; the rest is for children and for others


class Reading:
    """A context around the reading of an image, for one thread; it may be entered again for the next one."""

    def __init__(self, guard: MemoryGuard) -> None:
        self._guard = guard
        self.began_bytes: int | None = None  # what the process had when it began; None: nothing is read now

    def __enter__(self) -> None:
        self.began_bytes = self._guard.used_bytes

    def __exit__(self, *_: object) -> None:
        self.began_bytes = None


class MemoryGuard(Loop):
    """Looks at the memory that only this process has: neither files nor what it shares."""

    def __init__(
        self,
        limit_bytes: int,
        *,
        growth_bytes: int,
        used_bytes: Callable[[], int | None],
        exit_process: Callable[[int], None] = os._exit,
        dump_stacks: Callable[[], None] = lambda: faulthandler.dump_traceback(sys.stderr, all_threads=True),
    ) -> None:
        """Nothing is watched yet.

        Args:
            limit_bytes: beyond these the process ends.
            growth_bytes: by so much it may grow while an image is read, see `Reading`.
            used_bytes: see `own_memory`; None ends the guard: this system does not tell.
            exit_process: called with `EXIT_HUNG`; does not return in production.
            dump_stacks: writes the stacks of all threads where the log goes.
        """
        self.limit_bytes = limit_bytes
        self._growth_bytes = growth_bytes
        self.used_bytes = used_bytes() or 0  # at the last look; 0 where the system does not tell
        self._readings: list[Reading] = []
        self._lock = threading.Lock()
        self._look = used_bytes
        self._exit_process = exit_process
        self._dump_stacks = dump_stacks
        super().__init__("memory-guard", _LOOK_SECONDS, at_once=True)

    def new_reading(self) -> Reading:
        """For a thread that reads images in this process; it is watched as long as the process lives."""
        reading = Reading(self)
        with self._lock:
            self._readings.append(reading)
        return reading

    def check(self) -> bool:
        """Look once, and end the process if it has too much; False where there is nothing to be seen."""
        try:
            used = self._look()
        except OSError:  # no descriptor is free; the next look may find one
            return True
        if used is None:
            return False
        with self._lock:
            self.used_bytes = used
            began = [reading.began_bytes for reading in self._readings]
        growth = used - min((bytes_ for bytes_ in began if bytes_ is not None), default=used)
        if used > self.limit_bytes:
            self._end(
                "%d MiB of memory are more than CLIPFLEET_MAX_MEMORY_BYTES, %d MiB; the process ends, its "
                "leases expire. If no image did it, lower CLIPFLEET_ITEMS_IN_FLIGHT, "
                "CLIPFLEET_BYTES_IN_FLIGHT or CLIPFLEET_DECODE_THREADS",
                used,
                self.limit_bytes,
            )
        elif growth > self._growth_bytes:
            self._end(
                "the process grew by %d MiB while one image was read, more than %d MiB; it ends, its "
                "leases expire",
                growth,
                self._growth_bytes,
            )
        return True

    def _end(self, message: str, used_bytes: int, allowed_bytes: int) -> None:
        log.critical(message, used_bytes >> 20, allowed_bytes >> 20, extra={"action": "too_much_memory"})
        self._dump_stacks()
        self._exit_process(EXIT_HUNG)

    def run_once(self) -> None:
        """Look, as long as there is something to be seen."""
        if not self.check():
            self.request_stop()


def own_memory(process: Path = Path("/proc/self")) -> int | None:
    """Bytes of memory that only this process has; None where the system does not tell."""
    try:
        _, resident, shared, *_ = (process / "statm").read_text().split()
    except FileNotFoundError:  # not Linux
        return None
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def memory_limit(setting_bytes: int, root: Path = Path("/")) -> int:
    """The setting, or nine tenths of what this machine or container has; at least one byte."""
    if setting_bytes:
        return setting_bytes
    available = [_machine_bytes(), *_container_bytes(root)]
    return max(1, int(min(available) * _SHARE))


def _machine_bytes() -> int:
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def _container_bytes(root: Path) -> Iterator[int]:
    for folder, is_second in control_groups("memory", root):
        with suppress(OSError, ValueError):  # not there, or "max"
            yield int((folder / ("memory.max" if is_second else "memory.limit_in_bytes")).read_text())
