"""Where the time of a chunk goes: its steps, the waits of its items, how busy the steps are meanwhile."""

from __future__ import annotations

from typing import cast

from clipfleet.contract.bottleneck import Meter, Meters, Step
from clipfleet_worker.chunk.meter import StepsBusy, chunk_meters
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.process.counts import BusyMeter
from tests.support.doubles import Clock

MODEL = cast(LoadedModel, FakeEncoder())


class Bench:
    """Two decode threads and a device, with a clock."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.decode, self.forward = BusyMeter(2, self.clock), BusyMeter(1, self.clock)
        self.clock.now += 100  # of other chunks

    def look(self) -> StepsBusy:
        return StepsBusy(self.decode.read(), self.forward.read())

    def work(self) -> StepsBusy:
        """A chunk of sixteen seconds."""
        began = self.look()
        self.clock.now += 2
        with self.decode:
            self.clock.now += 3
        self.clock.now += 7
        with self.forward:
            self.clock.now += 4
        return self.look().since(began)


def test_how_busy_the_steps_were_meanwhile() -> None:
    told = chunk_meters(Bench().work(), {}, MODEL)

    assert told == Meters(
        {
            "on cpu, fp32": 16.0, Meter.DECODE_CAPACITY: 32.0,
            Meter.DECODE_BUSY: 3.0, Meter.FORWARD_BUSY: 4.0,
        }
    )  # fmt: skip


def test_steps_and_waits_without_those_that_matter_little() -> None:
    outcomes = Outcomes(3)
    outcomes.add_seconds("fetch", 31.0)
    outcomes.add_seconds("decode", 5.0)
    outcomes.add_wait(Meter.READING, 1.0)
    outcomes.add_wait(Meter.BEYOND, 10.0)
    outcomes.add_wait(Meter.TURNS, 20.0)
    steps = {"claimed": 1.0, "read": 2.0, "load model": 0.1, "fetch, decode, encode": 13.0, "write": 4.0}

    told = chunk_meters(Bench().work(), steps, MODEL, outcomes.seconds, outcomes.waits)

    assert told.seconds.items() >= {
        Step.READ: 3.0, Step.ITEMS: 13.0, Step.WRITE: 4.0, Meter.FETCHING: 30.0,
        Meter.TURNS: 20.0, Meter.BEYOND: 10.0, Meter.READING: 1.0, Meter.DECODING: 5.0,
    }.items()  # fmt: skip
    assert Step.LOAD not in told.seconds
