"""What limits a job, told from where its time went: arithmetic on what its workers have measured. No I/O.

As in other streaming systems the stage that limits is the one that is never idle and waits for nobody
behind it, while items pile up in front of it. So for each chunk a worker adds up its steps, where its items
waited, and how busy the decode threads and the device were meanwhile, whoever's work that was: jobs share
workers. The ledger sums that up over chunks and workers; too little of it says nothing.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

_MIN_ROWS = 16  # one slice
_MIN_CHUNK_SECONDS = 0.5
_MOST = 0.5
_SATURATED = 0.85  # of the time in a worker's hands: nothing else would make it faster
_BUSY = 0.4  # a stage that is less busy than this limits nothing
_LOADING = 2 / 3  # loading happens once: it must outweigh all that comes after it
_FEW = 10.0  # times less is not worth a word
_DEVICE = "on "
_HELD_BY, _HELD_BY_SECONDS = "held_by", "held_by_seconds"


class Step(StrEnum):
    """What a worker does with a chunk, one after the other; also the names of their meters."""

    READ = "read"  # the job and the staged items
    LOAD = "load model"
    LABELS = "encode labels"  # while items are under way
    ITEMS = "fetch, decode, encode"
    SCORE = "score"
    WRITE = "write"


class Meter(StrEnum):
    """What else workers measure; all in seconds, summed over the chunks of a generation."""

    FETCHING = "fetching"  # of items, from the first try to the bytes
    TURNS = "turns"  # part of it: waiting because as many connections are open as may be
    BEYOND = "beyond"  # of items, from the bytes to the features
    READING = "reading"  # of decode threads, reading files and the like
    DECODING = "decoding"  # of decode threads, for this job
    DECODE_CAPACITY = "decode capacity"  # how long items were under way, times the decode threads
    DECODE_BUSY = "decode busy"  # how much of it was used, for whatever job
    FORWARD_BUSY = "forward busy"  # how long the device had work meanwhile, for whatever job
    DECODE_BUSY_ALL = "decode busy all"  # the same over all steps of the chunks
    FORWARD_BUSY_ALL = "forward busy all"


def device_meter(device: str, precision: str) -> str:
    """Name of the meter of how long chunks had items under way for such a device."""
    return f"{_DEVICE}{device}, {precision}"


class Stage(StrEnum):
    """Who limits a job."""

    SUBMIT = "submit"
    MODEL = "model"
    LABELS = "labels"
    FETCH = "fetch"
    DECODE = "decode"
    FORWARD = "forward"
    SCORE = "score"
    SINK = "sink"


@dataclass(frozen=True, slots=True)
class Limit:
    """The stage that limits a job, and how that shows."""

    stage: Stage
    text: str

    def __str__(self) -> str:
        return f"{self.stage}: {self.text}"


@dataclass(frozen=True, slots=True)
class Meters:
    """Sums over chunks, of a job or of one chunk."""

    seconds: Mapping[str, float] = field(default_factory=dict)  # by `Step`, `Meter` or `device_meter`
    held_by: str = ""  # what most item seconds of `TURNS` were spent on, in words
    held_by_seconds: float = 0.0  # at least so many of them

    @classmethod
    def of_json(cls, text: str) -> Self:
        """From what the ledger holds of a job.

        Raises:
            ValueError: no worker has said this.
        """
        told = json.loads(text) if text else {}
        if not isinstance(told, dict):
            raise ValueError("these are no meters")
        held_by = told.pop(_HELD_BY, "")
        if not isinstance(held_by, str) or not all(isinstance(value, int | float) for value in told.values()):
            raise ValueError("these are no meters")
        held_by_seconds = told.pop(_HELD_BY_SECONDS, 0.0)
        return cls(told, held_by, held_by_seconds)

    def to_facts(self) -> dict[str, float | str]:
        """As the ledger takes them, to the millisecond."""
        facts: dict[str, float | str] = {name: round(value, 3) for name, value in self.seconds.items()}
        if self.held_by:
            facts |= {_HELD_BY: self.held_by, _HELD_BY_SECONDS: round(self.held_by_seconds, 3)}
        return facts

    def since(self, earlier: Meters) -> Meters:
        """What came after an earlier look at the same job; what held it is told of the whole."""
        seconds = {name: value - earlier[name] for name, value in self.seconds.items()}
        turns = self[Meter.TURNS]
        share = self.held_by_seconds / turns if turns else 0.0
        return Meters(seconds, self.held_by, share * seconds.get(Meter.TURNS, 0.0))

    def __getitem__(self, name: str) -> float:
        return self.seconds.get(name, 0.0)

    @property
    def chunk_seconds(self) -> float:
        """How long chunks were in workers' hands."""
        return sum(self[step] for step in Step)

    @property
    def under_way_seconds(self) -> float:
        """How long chunks had items between their start and their features."""
        return sum(seconds for name, seconds in self.seconds.items() if name.startswith(_DEVICE))

    @property
    def threads(self) -> float:
        """Decode threads of a worker, on average."""
        return _share(self[Meter.DECODE_CAPACITY], self.under_way_seconds)

    @property
    def device(self) -> str:
        """Device and precision of most of the work."""
        by_device = {name: seconds for name, seconds in self.seconds.items() if name.startswith(_DEVICE)}
        return max(by_device, key=lambda name: by_device[name], default="").removeprefix(_DEVICE)


NO_METERS = Meters()


def limit_of(
    meters: Meters, *, rows: int, starved_seconds: float = 0.0, lasted_seconds: float = 0.0
) -> Limit | None:
    """What limits a job; None where too little was measured, or nothing stands out.

    Args:
        meters: of all its chunks, or of those that ended lately.
        rows: that were run for them.
        starved_seconds: how long the job was not all submitted, and all that was had been claimed.
        lasted_seconds: how long it has lasted.
    """
    if rows < _MIN_ROWS or meters.chunk_seconds < _MIN_CHUNK_SECONDS:
        return None
    starved = _share(starved_seconds, lasted_seconds)
    if starved >= _MOST:
        return Limit(Stage.SUBMIT, f"no work for the workers {_percent(starved)} of the time")
    loading = _share(meters[Step.LOAD], meters.chunk_seconds)
    if loading >= _LOADING:
        return Limit(Stage.MODEL, f"waiting for it to load takes {_percent(loading)} of the chunks' time")
    return _of_steps(meters)


def _of_steps(meters: Meters) -> Limit | None:
    """Of what comes after the loading."""
    whole = meters.chunk_seconds - meters[Step.LOAD]
    shares = {step: _share(meters[step], whole) for step in (Step.ITEMS, Step.LABELS, Step.SCORE)}
    shares[Step.WRITE] = _share(meters[Step.READ] + meters[Step.WRITE], whole)  # both are the output's time
    longest = max(shares, key=lambda step: shares[step])
    if shares[Step.ITEMS] >= 1 - _SATURATED and _is_saturated(meters):
        longest = Step.ITEMS
    if longest is Step.ITEMS:
        return _of_items(meters)
    if shares[longest] < _BUSY:
        return None
    if longest is Step.WRITE:
        return Limit(Stage.SINK, _of_output(meters, whole))
    takes = f"takes {_percent(shares[longest])} of the chunks' time"
    if longest is Step.LABELS:
        return Limit(Stage.LABELS, f"encoding their texts {takes}")
    return Limit(Stage.SCORE, f"comparing with the labels {takes}")


def _of_output(meters: Meters, whole: float) -> str:
    """Of an output that is slow; the staged items lie there, too."""
    reading, writing = _share(meters[Step.READ], whole), _share(meters[Step.WRITE], whole)
    if reading < writing / _FEW:
        return f"writing parts takes {_percent(writing)} of the chunks' time"
    if writing < reading / _FEW:
        return f"reading the staged items takes {_percent(reading)} of the chunks' time"
    return (
        f"writing parts takes {_percent(writing)}, reading the staged items {_percent(reading)} "
        "of the chunks' time"
    )


def _of_items(meters: Meters) -> Limit | None:
    """Of fetch, decode and forward."""
    fetching, turns = meters[Meter.FETCHING], meters[Meter.TURNS]
    waiting = fetching + meters[Meter.BEYOND]
    is_held = turns >= _MOST * waiting > 0
    if is_held or (fetching >= _MOST * waiting > 0 and not _is_saturated(meters)):
        return Limit(Stage.FETCH, _of_fetching(meters))
    decode = _share(meters[Meter.DECODE_BUSY], meters[Meter.DECODE_CAPACITY])
    forward = _share(meters[Meter.FORWARD_BUSY], meters.under_way_seconds)
    if max(decode, forward) < _BUSY:
        return None
    if forward >= decode:
        kind = f" ({meters.device})" if meters.device else ""
        return Limit(Stage.FORWARD, f"the device is busy {_percent(forward)} of the time{kind}")
    count = round(meters.threads)
    threads = "1 thread" if count == 1 else f"{count} threads"
    reading = _share(meters[Meter.READING], meters[Meter.READING] + meters[Meter.DECODING])
    if reading >= _MOST:
        return Limit(Stage.FETCH, f"reading files takes {_percent(reading)} of the time of {threads}")
    return Limit(Stage.DECODE, f"{threads} busy {_percent(decode)} of the time")


def _of_fetching(meters: Meters) -> str:
    turns, fetching = meters[Meter.TURNS], meters[Meter.FETCHING]
    if turns < _BUSY * fetching:
        return "waiting for answers takes most of the items' time"
    if meters.held_by and meters.held_by_seconds >= _MOST * turns:
        return meters.held_by
    return "several hosts at their connection caps"


def _is_saturated(meters: Meters) -> bool:
    """Whether decode threads or the device were busy nearly all the time that chunks were there."""
    whole = meters.chunk_seconds
    decode = _share(meters[Meter.DECODE_BUSY_ALL], meters.threads * whole)
    return max(decode, _share(meters[Meter.FORWARD_BUSY_ALL], whole)) >= _SATURATED


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _percent(share: float) -> str:
    return f"{100 * min(share, 1.0):.0f} %"
