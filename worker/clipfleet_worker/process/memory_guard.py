"""Ends a process that uses too much memory, before the kernel kills one at random.

A decoder may need ten gigabytes for one image, and a thread cannot be stopped. After the end of the process
its chunks are suspects, and a decode child with a limit finds the image. The growth of the process while it
reads an image is limited, too, so that large machines reject the same images.
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

_LOOK_SECONDS = 0.1  # touching a gigabyte takes longer
_SHARE = 0.9  # of the available memory; the rest is for child processes and others


class Reading:
    """A context around each image that one thread reads; reusable."""

    def __init__(self, guard: MemoryGuard) -> None:
        self._guard = guard
        self.began_bytes: int | None = None  # memory of the process when it began; None: no image is read now

    def __enter__(self) -> None:
        self.began_bytes = self._guard.used_bytes

    def __exit__(self, *_: object) -> None:
        self.began_bytes = None


class MemoryGuard(Loop):
    """Watches the private memory of this process: without files and shared memory."""

    def __init__(
        self,
        limit_bytes: int,
        *,
        growth_bytes: int,
        used_bytes: Callable[[], int | None],
        exit_process: Callable[[int], None] = os._exit,
        dump_stacks: Callable[[], None] = lambda: faulthandler.dump_traceback(sys.stderr, all_threads=True),
    ) -> None:
        """Prepare; nothing is watched yet.

        Args:
            limit_bytes: above it the process ends.
            growth_bytes: the most that the process may grow while an image is read, see `Reading`.
            used_bytes: see `own_memory`; None ends the guard: the system does not report it.
            exit_process: called with `EXIT_HUNG`; does not return in production.
            dump_stacks: writes the stacks of all threads to the log.
        """
        self.limit_bytes = limit_bytes
        self._growth_bytes = growth_bytes
        self.used_bytes = used_bytes() or 0  # at the last check; 0 if the system does not report it
        self._readings: list[Reading] = []
        self._lock = threading.Lock()
        self._look = used_bytes
        self._exit_process = exit_process
        self._dump_stacks = dump_stacks
        super().__init__("memory-guard", _LOOK_SECONDS, at_once=True)

    def new_reading(self) -> Reading:
        """Make a context for a thread that reads images; it is watched as long as the process lives."""
        reading = Reading(self)
        with self._lock:
            self._readings.append(reading)
        return reading

    def check(self) -> bool:
        """End the process if it uses too much memory; False if the system does not report it."""
        try:
            used = self._look()
        except OSError:  # no descriptor is free; the next check may get one
            return True
        if used is None:
            return False
        with self._lock:
            self.used_bytes = used
            began = [reading.began_bytes for reading in self._readings]
        growth = used - min((bytes_ for bytes_ in began if bytes_ is not None), default=used)
        if used > self.limit_bytes:
            self._end(
                "the process uses %d MiB of memory, CLIPFLEET_MAX_MEMORY_BYTES is %d MiB; it ends, its "
                "leases expire. If no image is the reason, lower CLIPFLEET_ITEMS_IN_FLIGHT, "
                "CLIPFLEET_BYTES_IN_FLIGHT or CLIPFLEET_DECODE_THREADS",
                used,
                self.limit_bytes,
            )
        elif growth > self._growth_bytes:
            self._end(
                "the process grew by %d MiB while one image was read, the limit is %d MiB; it ends, its "
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
        """Check; stop if the system does not report its memory."""
        if not self.check():
            self.request_stop()


def own_memory(process: Path = Path("/proc/self")) -> int | None:
    """Private memory of this process in bytes; None if the system does not report it."""
    try:
        _, resident, shared, *_ = (process / "statm").read_text().split()
    except FileNotFoundError:  # not Linux
        return None
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def memory_limit(setting_bytes: int, root: Path = Path("/")) -> int:
    """The setting, or 90 % of the memory of this machine or container; at least one byte."""
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
