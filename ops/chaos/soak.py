"""Work without faults for a long time: whether memory and descriptors of the workers stay where they are."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

_MEBIBYTES_PER_KIBIBYTE = 1 / 1024
_WARM_UP_SHARE = 0.2  # of a soak: buffers and caches fill
_FEWEST_SAMPLES = 10
_MAX_RISE_SHARE = 0.05  # of the memory, within the soak
_MAX_RISE_MEBIBYTES = 10.0  # or this, if it is more
_MAX_RISE_DESCRIPTORS = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    """A worker at a time."""

    worker: int
    at_seconds: float
    rss_mebibytes: float
    descriptors: int


@dataclass(frozen=True, slots=True)
class Growth:
    """How a worker changed within a soak, by the line of least squares."""

    worker: int
    seconds: float
    rss_mebibytes: float  # mean
    rss_rise: float  # mebibytes
    descriptors: float  # mean
    descriptors_rise: float

    @property
    def is_flat(self) -> bool:
        """Whether it stays within the bars."""
        allowed = max(_MAX_RISE_SHARE * self.rss_mebibytes, _MAX_RISE_MEBIBYTES)
        return self.rss_rise <= allowed and self.descriptors_rise <= _MAX_RISE_DESCRIPTORS

    def __str__(self) -> str:
        per_hour = 3600 / self.seconds
        return (
            f"worker {self.worker}, {self.seconds:.0f} s: memory {self.rss_mebibytes:.0f} MB, "
            f"{self.rss_rise:+.1f} MB ({self.rss_rise * per_hour:+.1f} MB/h); "
            f"descriptors {self.descriptors:.0f}, {self.descriptors_rise:+.1f}"
        )


def sample(worker: int, pid: int, at_seconds: float) -> Sample | None:
    """What the kernel says of a process; None if it has ended."""
    with suppress(OSError, ValueError, StopIteration):
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
        kibibytes = next(int(line.split()[1]) for line in lines if line.startswith("VmRSS:"))
        descriptors = sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())
        return Sample(worker, at_seconds, kibibytes * _MEBIBYTES_PER_KIBIBYTE, descriptors)
    return None


def growths(samples: Iterable[Sample]) -> list[Growth]:
    """Of each worker that was there for long enough, after its warm-up."""
    by_worker: dict[int, list[Sample]] = {}
    for one in samples:
        by_worker.setdefault(one.worker, []).append(one)
    warm = [taken[int(len(taken) * _WARM_UP_SHARE) :] for taken in by_worker.values()]
    return [_growth(taken) for taken in warm if len(taken) >= _FEWEST_SAMPLES]


def _growth(samples: Sequence[Sample]) -> Growth:
    times = [one.at_seconds for one in samples]
    memory = [one.rss_mebibytes for one in samples]
    descriptors = [float(one.descriptors) for one in samples]
    seconds = times[-1] - times[0]
    return Growth(
        worker=samples[0].worker,
        seconds=seconds,
        rss_mebibytes=statistics.fmean(memory),
        rss_rise=statistics.linear_regression(times, memory).slope * seconds,
        descriptors=statistics.fmean(descriptors),
        descriptors_rise=statistics.linear_regression(times, descriptors).slope * seconds,
    )
