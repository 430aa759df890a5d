"""`clipfleet-worker run` with one alteration: `python -m tests.support.altered_worker ARGUMENT...`.

| arguments | the alteration |
|---|---|
| `POINT N` | dies at the Nth passage of a crash point |
| `POINT hang FILE [SECONDS]` | hangs there and creates the file; SECONDS is how long a write may take |
| `POINT freeze FILE` | stops itself there if the file exists |
| `record FILE` | records each crash point that is reached |
| `load hang FILE` | hangs while it loads a model |
| `standstill SECONDS` | ends when none of its threads has run for so long |
| `throttle FILE` | has a fake model; slow at marked and at black images, and at parts while FILE exists |
| `hasty` | gives a webhook up after 12 attempts in seconds; 1 s for a request, leases of 5 s |
| `harm` | has a decoder that images can harm, see `hostile_decoder` |
"""

from __future__ import annotations

import sys
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from clipfleet.contract.jobs import DecodeRoute, Exif
from clipfleet.settings import checked
from clipfleet.webhooks import schedule
from clipfleet_worker.assembly import webhooks
from clipfleet_worker.assembly.worker import Worker
from clipfleet_worker.chunk import held_lease, pipeline
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.rasters import Raster
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.pixel_spec import InputSize
from clipfleet_worker.process.drain import end_process
from clipfleet_worker.process.logs import log_to_stderr
from clipfleet_worker.process.watchdog import Watchdog
from clipfleet_worker.settings import WorkerSettings
from clipfleet_worker.webhooks import pace
from clipfleet_worker.webhooks.courier import Courier
from ops.chaos.crash_points import CrashPoint, stand_in_worker
from tests.support.crash_points import dies_at, freezes_at, hang, hangs_at, records_in
from tests.support.hostile_decoder import HostileDecoder

SLOW_TO_DECODE = b"~slow"  # behind the end of an image
_DECODE_SECONDS = 0.06
_ENCODE_SECONDS = 0.08
_WRITE_SECONDS = 1.0


def alter(arguments: list[str]) -> dict[str, Any]:
    """Arguments of `Worker`; crash points are put into its classes."""
    match arguments:
        case ["throttle", file]:
            stand_in_worker(partial(slow_write, Path(file)))
            return {"decoder_class": SlowDecoder, "load_model": lambda name, *_: SlowEncoder(name)}
        case ["hasty"]:
            hasten_webhooks()
            return {}
        case ["harm"]:
            return {"decoder_class": HostileDecoder}
        case ["standstill", seconds]:
            return {"watchdog": Watchdog(look_seconds=0.1, standstill_seconds=float(seconds))}
        case ["load", "hang", file]:
            return {"load_model": lambda *_: hang(Path(file))}
        case ["record", file]:
            reach = records_in(Path(file))
        case [point, "hang", file, *limit]:
            for seconds in map(float, limit):
                pipeline.PREPARE_WRITE_LIMIT_SECONDS = seconds  # type: ignore[attr-defined]
                held_lease._HANG_SECONDS = 5 * seconds
            reach = hangs_at(CrashPoint(point), Path(file))
        case [point, "freeze", file]:
            reach = freezes_at(CrashPoint(point), Path(file))
        case [point, passage]:
            reach = dies_at(CrashPoint(point), int(passage))
        case _:
            raise SystemExit(__doc__)
    stand_in_worker(reach)
    return {}


def hasten_webhooks() -> None:
    """The same back-off, in seconds for hours."""
    schedule.DELAYS_SECONDS = tuple(min(0.2 * n, 1.0) for n in range(1, schedule.MAX_ATTEMPTS))
    pace.MAX_PAUSE_SECONDS = 0.5
    webhooks.REQUEST_SECONDS = 1.0
    webhooks.Courier = partial(Courier, lease_seconds=5.0)  # type: ignore[assignment, misc]


class SlowDecoder(Decoder):
    """Slow at images with the mark."""

    def read(
        self, data: bytes, input_size: InputSize, route: DecodeRoute, exif: Exif = Exif.IGNORE
    ) -> Raster:
        if data.endswith(SLOW_TO_DECODE):
            time.sleep(_DECODE_SECONDS)
        return super().read(data, input_size, route, exif)


class SlowEncoder(FakeEncoder):
    """Slow at black images."""

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        time.sleep(_ENCODE_SECONDS * sum(not image.any() for image in pixels))
        return super().encode_images(pixels)


def slow_write(file: Path, point: CrashPoint) -> None:
    if point is CrashPoint.MID_WRITE and file.exists():
        time.sleep(_WRITE_SECONDS)


if __name__ == "__main__":
    log_to_stderr()
    end_process(Worker(checked(WorkerSettings), preload=True, **alter(sys.argv[1:])).run())
