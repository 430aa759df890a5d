"""A worker that can be made slow at one stage or another: `python -m tests.support.throttled_worker FILE`.

Images with `SLOW_TO_DECODE` behind their end keep a decode thread for long, black ones keep the device, and
while FILE is there each part takes long to write. The model is a fake one; all else is what users run.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path
from typing import cast

import numpy as np

from clipfleet.contract.jobs import DecodeRoute
from clipfleet.settings import checked
from clipfleet_worker.assembly.worker import Worker
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.rasters import Raster
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.pixel_spec import InputSize
from clipfleet_worker.process.drain import end_process
from clipfleet_worker.process.logs import log_to_stderr
from clipfleet_worker.settings import WorkerSettings
from ops.chaos.crash_points import CrashPoint, stand_in_worker

SLOW_TO_DECODE = b"~slow"
_DECODE_SECONDS = 0.06
_ENCODE_SECONDS = 0.03
_WRITE_SECONDS = 1.0


class SlowDecoder(Decoder):
    """Takes its time for images with the mark."""

    def read(self, data: bytes, input_size: InputSize, route: DecodeRoute) -> Raster:
        if data.endswith(SLOW_TO_DECODE):
            time.sleep(_DECODE_SECONDS)
        return super().read(data, input_size, route)


class SlowEncoder(FakeEncoder):
    """Takes its time for black images."""

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        time.sleep(_ENCODE_SECONDS * sum(not image.any() for image in pixels))
        return super().encode_images(pixels)


class SlowWrites:
    """Takes its time for parts, while a file is there."""

    def __init__(self, file: Path) -> None:
        self._file = file

    def reach(self, point: CrashPoint) -> None:
        if point is CrashPoint.MID_WRITE and self._file.exists():
            time.sleep(_WRITE_SECONDS)


def load_slow(name: str, *_: object) -> LoadedModel:
    """See `load_model`: the slow encoder, whatever is asked for."""
    return cast(LoadedModel, SlowEncoder(name))


if __name__ == "__main__":
    log_to_stderr()
    stand_in_worker(SlowWrites(Path(sys.argv[1])).reach)
    worker = Worker(
        checked(WorkerSettings),
        preload=True,
        decoder_class=SlowDecoder,
        load_model=load_slow,
    )
    end_process(worker.run())
