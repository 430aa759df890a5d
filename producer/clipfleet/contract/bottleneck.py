"""The bottleneck of a job, computed from what its workers measured. No I/O.

As in other streaming systems, the bottleneck is the step that is never idle and not blocked downstream, while
items queue in front of it. For each chunk a worker adds up the seconds of its steps, where its items waited,
and how busy the decode threads and the device were meanwhile, for whatever job: jobs share workers. The
ledger sums these over chunks and workers. Too few measurements give no answer.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Self

from clipfleet.wording import counted

_MIN_ROWS = 16  # one slice
_MIN_CHUNK_SECONDS = 0.5
_MOST = 0.5
_SATURATED = 0.85  # share of the chunks' time from which a step counts as saturated
_BUSY = 0.4  # below this share a step is not the bottleneck
_LOADING = 2 / 3  # loading happens once: it must outweigh all later steps
_FEW = 10.0  # a share this many times smaller is not mentioned
_DEVICE = "on "


class Step(StrEnum):
    """Steps of a chunk, in order; also the names of their meters."""

    READ = "read"  # the job and the staged items
    LOAD = "load model"
    LABELS = "encode labels"  # while items are under way
    ITEMS = "fetch, decode, encode"
    SCORE = "score"
    WRITE = "write"


class Meter(StrEnum):
    """Further measurements, all in seconds, summed over the chunks of a generation."""

    FETCHING = "fetching"  # of items, from the first try to the bytes
    TURNS = "turns"  # part of it: waiting for hosts at their connection cap
    BEYOND = "beyond"  # of items, from the bytes to the features
    READING = "reading"  # of decode threads, on I/O
    DECODING = "decoding"  # of decode threads, for this job
    DECODE_CAPACITY = "decode capacity"  # duration of chunks, times the decode threads
    DECODE_BUSY = "decode busy"  # how much of it was used, by any job
    FORWARD_BUSY = "forward busy"  # how long the device had work meanwhile, for any job


def device_meter(device: str, precision: str) -> str:
    """Name of the meter for the duration of chunks on such a device."""
    return f"{_DEVICE}{device}, {precision}"


class LimitingStep(StrEnum):
    """The bottleneck of a job: the submit, or a step of its chunks."""

    SUBMIT = "submit"
    LOAD = "load"
    LABELS = "labels"
    FETCH = "fetch"
    DECODE = "decode"
    ENCODE = "encode"
    SCORE = "score"
    WRITE = "write"


@dataclass(frozen=True, slots=True)
class Limit:
    """The bottleneck of a job, and the evidence."""

    step: LimitingStep
    text: str

    def __str__(self) -> str:
        return f"{self.step}: {self.text}"


@dataclass(frozen=True, slots=True)
class Meters:
    """Measured seconds of one chunk, or summed over chunks of a job."""

    seconds: Mapping[str, float] = field(default_factory=dict)  # by `Step`, `Meter` or `device_meter`

    @classmethod
    def of_json(cls, text: str) -> Self:
        """Parse the meters that the ledger stores for a job.

        Raises:
            ValueError: no worker wrote this.
        """
        seconds = json.loads(text) if text else {}
        if not isinstance(seconds, dict) or not all(
            isinstance(value, int | float) for value in seconds.values()
        ):
            raise ValueError("not meters of a job")
        return cls(seconds)

    def to_facts(self) -> dict[str, float]:
        """Convert to the ledger's form, rounded to milliseconds."""
        return {name: round(value, 3) for name, value in self.seconds.items()}

    def since(self, earlier: Meters) -> Meters:
        """Subtract an earlier snapshot of the same job."""
        return Meters({name: value - earlier[name] for name, value in self.seconds.items()})

    def __getitem__(self, name: str) -> float:
        return self.seconds.get(name, 0.0)

    @property
    def chunk_seconds(self) -> float:
        """Total duration of the chunks."""
        return sum(self[step] for step in Step)

    @property
    def threads(self) -> float:
        """Mean number of decode threads per worker."""
        return _share(self[Meter.DECODE_CAPACITY], sum(self._by_device.values()))

    @property
    def device(self) -> str:
        """Device and precision of the largest share of the work."""
        by_device = self._by_device
        return max(by_device, key=lambda name: by_device[name], default="").removeprefix(_DEVICE)

    @property
    def decode_share(self) -> float:
        """Share of the chunks' time in which the decode threads were busy."""
        return _share(self[Meter.DECODE_BUSY], self.threads * self.chunk_seconds)

    @property
    def forward_share(self) -> float:
        """Share of the chunks' time in which the device was busy."""
        return _share(self[Meter.FORWARD_BUSY], self.chunk_seconds)

    @property
    def is_saturated(self) -> bool:
        """Whether decode threads or device were busy nearly all the time."""
        return max(self.decode_share, self.forward_share) >= _SATURATED

    @property
    def _by_device(self) -> dict[str, float]:
        return {name: seconds for name, seconds in self.seconds.items() if name.startswith(_DEVICE)}


NO_METERS = Meters()


def limit_of(
    meters: Meters, *, rows: int, starved_seconds: float = 0.0, lasted_seconds: float = 0.0
) -> Limit | None:
    """Find the bottleneck of a job; None if too little was measured, or nothing stands out.

    Args:
        meters: meters of all its chunks, or of the recent ones.
        rows: rows that were run in them.
        starved_seconds: how long the submit was in progress while every staged chunk was claimed.
        lasted_seconds: duration of the job so far.
    """
    if rows < _MIN_ROWS or meters.chunk_seconds < _MIN_CHUNK_SECONDS:
        return None
    starved = _share(starved_seconds, lasted_seconds)
    if starved >= _MOST:
        return Limit(LimitingStep.SUBMIT, f"no work for the workers {_percent(starved)} of the time")
    loading = _share(meters[Step.LOAD], meters.chunk_seconds)
    if loading >= _LOADING:
        return Limit(LimitingStep.LOAD, f"mostly spent loading the model ({_percent(loading)})")
    return _of_steps(meters)


def _of_steps(meters: Meters) -> Limit | None:
    """The bottleneck after model loading."""
    whole = meters.chunk_seconds - meters[Step.LOAD]
    shares = {step: _share(meters[step], whole) for step in (Step.ITEMS, Step.LABELS, Step.SCORE)}
    shares[Step.WRITE] = _share(meters[Step.READ] + meters[Step.WRITE], whole)  # both are spent in the output
    longest = max(shares, key=lambda step: shares[step])
    if shares[Step.ITEMS] >= 1 - _SATURATED and meters.is_saturated:
        longest = Step.ITEMS
    if longest is Step.ITEMS:
        return _of_items(meters)
    if shares[longest] < _BUSY:
        return None
    if longest is Step.WRITE:
        return Limit(LimitingStep.WRITE, _of_output(meters, whole))
    takes = f"takes {_percent(shares[longest])} of the chunks' time"
    if longest is Step.LABELS:
        return Limit(LimitingStep.LABELS, f"encoding their texts {takes}")
    return Limit(LimitingStep.SCORE, f"comparing with the labels {takes}")


def _of_output(meters: Meters, whole: float) -> str:
    """Evidence for a slow output, which also stores the staged items."""
    reading, writing = _share(meters[Step.READ], whole), _share(meters[Step.WRITE], whole)
    if reading < writing / _FEW:
        return f"writing parts takes {_percent(writing)} of the chunks' time"
    if writing < reading / _FEW:
        return f"reading the items takes {_percent(reading)} of the chunks' time"
    return (
        f"writing parts takes {_percent(writing)}, reading the items {_percent(reading)} of the chunks' time"
    )


def _of_items(meters: Meters) -> Limit | None:
    """The bottleneck among fetch, decode and encode."""
    fetching, decode, forward = meters[Meter.FETCHING], meters.decode_share, meters.forward_share
    waiting = fetching + meters[Meter.BEYOND]
    held = _share(meters[Meter.TURNS], waiting)
    if held >= _MOST:  # checked first: what is busy may be busy with another job
        text = f"hosts at their connection caps hold up most of the items ({_percent(held)} of their time)"
        return Limit(LimitingStep.FETCH, text)
    if fetching >= _MOST * waiting > 0 and not meters.is_saturated:
        return Limit(LimitingStep.FETCH, "waiting for connections and answers takes most of the items' time")
    if max(decode, forward) < _BUSY:
        return None
    if forward >= decode:
        kind = f" ({meters.device})" if meters.device else ""
        return Limit(LimitingStep.ENCODE, f"the device is busy {_percent(forward)} of the time{kind}")
    threads = counted(round(meters.threads), "thread")
    reading = _share(meters[Meter.READING], meters[Meter.READING] + meters[Meter.DECODING])
    if reading >= _MOST:
        return Limit(LimitingStep.FETCH, f"reading files takes {_percent(reading)} of the time of {threads}")
    return Limit(LimitingStep.DECODE, f"{threads} busy {_percent(decode)} of the time")


def _share(part: float, whole: float) -> float:
    return part / whole if whole > 0 else 0.0


def _percent(share: float) -> str:
    return f"{100 * min(share, 1.0):.0f} %"
