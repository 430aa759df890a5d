"""Where the time of one chunk went, for `clipfleet.contract.bottleneck`.

Its steps, the waits of its items, and how busy the shared steps were meanwhile.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from clipfleet.contract.bottleneck import Meter, Meters, Step, device_meter
from clipfleet_worker.chunk.held_lease import CLAIMED
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.process.counts import Busy

_LITTLE = 0.01
_NOTHING: Mapping[str, float] = {}


@dataclass(frozen=True, slots=True)
class StepsBusy:
    """How busy the steps are that all chunks share."""

    decode: Busy  # threads
    forward: Busy  # the device thread

    def since(self, earlier: StepsBusy) -> StepsBusy:
        """The difference to an earlier reading."""
        return StepsBusy(self.decode.since(earlier.decode), self.forward.since(earlier.forward))


def chunk_meters(
    meanwhile: StepsBusy,
    steps: Mapping[str, float],
    model: LoadedModel,
    seconds: Mapping[str, float] = _NOTHING,
    waits: Mapping[str, float] = _NOTHING,
) -> Meters:
    """Measure a chunk.

    Args:
        meanwhile: how busy the shared steps were.
        steps: seconds by `Step`.
        model: of its job.
        seconds: working time of its items, see `Outcomes`.
        waits: of its items, likewise.
    """
    reading = waits.get(Meter.READING, 0.0)
    by_step = {str(step): steps.get(step, 0.0) for step in Step}
    by_step[Step.READ] += steps.get(CLAIMED, 0.0)
    of_items: dict[str, float] = {
        Meter.FETCHING: seconds.get("fetch", 0.0) - reading,
        Meter.TURNS: waits.get(Meter.TURNS, 0.0),
        Meter.BEYOND: waits.get(Meter.BEYOND, 0.0),
    }
    of_threads: dict[str, float] = {
        Meter.READING: reading,
        Meter.DECODING: seconds.get("decode", 0.0),
    }
    of_steps: dict[str, float] = {
        device_meter(model.device, model.precision): meanwhile.forward.capacity_seconds,
        Meter.DECODE_CAPACITY: meanwhile.decode.capacity_seconds,
        Meter.DECODE_BUSY: meanwhile.decode.seconds,
        Meter.FORWARD_BUSY: meanwhile.forward.seconds,
    }
    return Meters({**_most(by_step), **_most(of_items), **_most(of_threads), **of_steps})


def _most(seconds: Mapping[str, float]) -> dict[str, float]:
    """Drop values below 1 % of the sum: each meter costs the ledger about two microseconds."""
    least = _LITTLE * sum(seconds.values())
    return {name: value for name, value in seconds.items() if value > least}
