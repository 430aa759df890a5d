"""The image size up to which one decode thread at a time is faster: for `cores.py`.

    python -m ops.bench.turns [--rounds 5]

A thread per core reads and decodes slices of JPEGs of one size for a model of one size; in each round once
side by side, once in turns, a slice each, for a fifth of a second, so that a busy machine slows both alike.
Reported are microseconds per image of one thread alone, and the median ratio of the rates: below one, images
are large.
"""

from __future__ import annotations

import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from pathlib import Path

from clipfleet.contract.jobs import DecodeRoute
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.fetch.file import FileFetcher
from clipfleet_worker.pixel_spec import PixelSpec
from clipfleet_worker.process.cores import SMALL_IMAGE_SECONDS, cpus
from clipfleet_worker.settings import WorkerSettings
from ops.bench.decode import spec_of
from ops.bench.report import Report, bench_parser, positive
from ops.bench.rounds import in_turns, median_ratio
from tests.support.images import encoded, make_image

_SECONDS = 0.2
_SLICE = 32
_DISTINCT = 16
_MODEL_SIZES = (8, 64, 224)
_SIDES = (32, 64, 128, 192, 256, 320, 480, 640)


def main() -> int:
    """Print a table."""
    parser = bench_parser(__doc__)
    parser.add_argument("--rounds", type=positive, default=5)
    options = parser.parse_args()
    with Report("turns", options.json) as report, tempfile.TemporaryDirectory() as folder:
        title = f"{cpus()} threads; small: below {1e6 * SMALL_IMAGE_SECONDS:.0f} us"
        table = report.table({"model": "5", "image": "7", "us alone": "8.0f", "in turns": "8.2f"}, title)
        for side in _SIDES:
            paths = _images(Path(folder), side)
            for size in _MODEL_SIZES:
                alone, ratio = measure(paths, spec_of(size), options.rounds)
                table.row(size, side, 1e6 * alone, ratio)
    return report.exit_code


def measure(paths: Sequence[str], spec: PixelSpec, rounds: int) -> tuple[float, float]:
    """Seconds per image of one thread, and the rate in turns divided by that side by side."""
    lock = threading.Lock()
    routes = {
        "alone": partial(_per_second, paths, spec, 1, nullcontext()),
        "side by side": partial(_per_second, paths, spec, cpus(), nullcontext()),
        "in turns": partial(_per_second, paths, spec, cpus(), lock),
    }
    found = in_turns(routes, rounds)
    return 1 / max(found["alone"]), median_ratio(found["in turns"], found["side by side"])


def _per_second(
    paths: Sequence[str], spec: PixelSpec, threads: int, turn: AbstractContextManager[object]
) -> float:
    limits = WorkerSettings()
    decoder = Decoder(limits.max_pixels, limits.max_decode_bytes)
    files = FileFetcher([Path(paths[0]).parent], limits.max_image_bytes)
    began = time.perf_counter()

    def read_on(_: int) -> int:
        count = 0
        while time.perf_counter() - began < _SECONDS:
            with turn:
                for number in range(_SLICE):
                    data = files.read(paths[number % len(paths)])
                    decoder.decode(data, spec, DecodeRoute.FAST)
            count += _SLICE
        return count

    with ThreadPoolExecutor(threads) as pool:
        count = sum(pool.map(read_on, range(threads)))
    return count / (time.perf_counter() - began)


def _images(folder: Path, side: int) -> list[str]:
    paths = [folder / f"{side}-{number}.jpg" for number in range(_DISTINCT)]
    for number, path in enumerate(paths):
        path.write_bytes(encoded(make_image(number, side, side * 3 // 4), quality=85))
    return [str(path) for path in paths]


if __name__ == "__main__":
    sys.exit(main())
