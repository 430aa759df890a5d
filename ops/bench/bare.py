"""The ceilings: the bare forward and the bare decode of one model, each alone on all cores.

    python -m ops.bench.bare FOLDER [--precision auto] [--seconds 12]

The forward is the backend's own, on batches in memory, at the faster batch size. The decode is the worker's
route on bytes in memory, in one thread per core. The forward is measured for as long as a thousand images
take: in these seconds a CPU slows down by a tenth under matrix products. Prints one line of JSON, images/s
of both. The backend is that of the environment.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from clipfleet.contract.jobs import DecodeRoute, Precision
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.encode.backends.cpu_backends import cpu_backends
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.process.cores import cpus
from clipfleet_worker.process.device import pick_device
from clipfleet_worker.settings import WorkerSettings
from ops.bench.pile import MODEL

_BATCHES = (32, 64)
_FILES = 128
_DECODE_SECONDS = 4.0
_SHORT_SECONDS = 2.0  # to try each batch size


def main() -> None:
    """Measure both."""
    parser = argparse.ArgumentParser()
    parser.add_argument("folder", type=Path)
    parser.add_argument("--precision", type=Precision, default=Precision.AUTO)
    parser.add_argument("--seconds", type=float, default=12.0)
    options = parser.parse_args()
    settings = WorkerSettings()
    device = pick_device(settings.device)
    model = load_model(MODEL, options.precision, device, cpu_backends(settings.backend, device))
    spec = model.pixel_spec
    decoder = Decoder(settings.max_pixels, settings.max_decode_bytes)
    files = [path.read_bytes() for path in sorted(options.folder.glob("*.jpg"))[:_FILES]]
    pixels = [decoder.decode(data, spec, DecodeRoute.FAST).pixels for data in files[: max(_BATCHES)]]
    batches = [np.stack(pixels[:size]) for size in _BATCHES]

    def decode(data: bytes) -> None:
        decoder.decode(data, spec, DecodeRoute.FAST)

    with ThreadPoolExecutor(cpus()) as pool:
        decoded = rate(lambda: sum(1 for _ in pool.map(decode, files)), _DECODE_SECONDS)

    def forward_rate(batch: np.ndarray, seconds: float) -> float:
        under_way = [model.begin_images(batch) for _ in range(model.batches_in_flight - 1)]

        def pass_on() -> int:
            under_way.append(model.begin_images(batch))
            return len(under_way.pop(0).result())

        found = rate(pass_on, seconds)
        for one in under_way:
            one.result()
        return found

    best = max(batches, key=lambda batch: forward_rate(batch, _SHORT_SECONDS))
    forward = forward_rate(best, options.seconds)
    print(json.dumps({"forward": forward, "decode": decoded, "backend": model.backend_name}))


def rate(work: Callable[[], int], seconds: float) -> float:
    """Images/s of work repeated for some seconds, after one run to warm up."""
    work()
    began, done = time.perf_counter(), 0
    while time.perf_counter() - began < seconds:
        done += work()
    return done / (time.perf_counter() - began)


if __name__ == "__main__":
    main()
