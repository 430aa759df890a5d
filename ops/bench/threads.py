"""The best numbers of decode threads and forward threads, and the best batch size: for `cores.py`.

    python -m ops.bench.threads [--images 128] [--rounds 7] [--cache FOLDER]

The worker's own decoder and batcher in one process, from bytes to vectors, ViT-B-32: in each round every set
of numbers runs for a second or two, so that a busy machine slows all alike. Reported are medians, and medians
of the ratios to the first set within a round.
"""

from __future__ import annotations

import os
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from clipfleet.contract.jobs import DecodeRoute, Lane, Precision
from clipfleet_worker.assembly.device import make_device_set_up
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.encode.batches import ItemSlice
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.process.cores import cpus
from clipfleet_worker.settings import WorkerSettings
from ops.bench.pile import DEFAULT_CACHE, MODEL, hub_environment, image_folder
from ops.bench.report import Report, bench_parser
from ops.bench.rounds import in_turns, median_ratio

_SLICE = 16


@dataclass(frozen=True, slots=True)
class Numbers:
    """One set of numbers; the rule's batch size is 64."""

    decode: int
    forward: int
    batch: int = 64

    def __str__(self) -> str:
        return f"decode {self.decode}, forward {self.forward}, batch {self.batch}"


def sets_for(cores: int) -> list[Numbers]:
    """The rule's own set, then sets with one number changed."""
    half = max(1, cores // 2)
    found = [Numbers(cores, cores), Numbers(half, cores), Numbers(2 * cores, cores), Numbers(cores, half)]
    return [*found, *(Numbers(cores, cores, batch) for batch in (32, 128))]


def main() -> int:
    """Measure."""
    parser = bench_parser(__doc__)
    parser.add_argument("--images", type=int, default=256)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--precision", type=Precision, default=Precision.AUTO)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="default: %(default)s")
    options = parser.parse_args()
    folder = image_folder(options.cache, options.images)
    os.environ.update(hub_environment(options.cache))
    sets = sets_for(cpus())
    models = {threads: model_with(threads, options.precision) for threads in {one.forward for one in sets}}
    model = models[sets[0].forward]
    files = [path.read_bytes() for path in sorted(folder.glob("*.jpg"))]
    with Report("threads", options.json) as report:
        routes: dict[str, Callable[[], float]] = {
            str(numbers): partial(per_second, numbers, models[numbers.forward], files) for numbers in sets
        }
        found = in_turns(routes, options.rounds)
        rule = next(iter(found.values()))
        title = f"{model.backend_name}, {model.precision}, {cpus()} cores"
        table = report.table({"threads": "<32", "images/s": "8.1f", "by the rule": "12.3f"}, title)
        for name, rates in found.items():
            table.row(name, statistics.median(rates), median_ratio(rates, rule))
        report.fact("images_per_second", found)
    return report.exit_code


def model_with(threads: int, precision: Precision) -> LoadedModel:
    """A model whose passes use a number of threads: backends allot them when a model is loaded."""
    import torch

    torch.set_num_threads(threads)
    device = make_device_set_up(WorkerSettings())
    return load_model(MODEL, precision, device.name, device.make_backend)


def per_second(numbers: Numbers, model: LoadedModel, files: Sequence[bytes]) -> float:
    """Images/s from the first byte to the last vector."""
    decoder = Decoder(max_pixels=100_000_000)
    outcomes = Outcomes(len(files))
    batcher = Batcher(numbers.batch)
    batcher.start()

    def decode(start: int) -> None:
        positions = list(range(start, min(start + _SLICE, len(files))))
        images = [decoder.decode(files[n], model.pixel_spec, DecodeRoute.FAST).pixels for n in positions]
        batcher.submit(ItemSlice(model, Lane.NORMAL, images, positions, outcomes))

    began = time.perf_counter()
    with ThreadPoolExecutor(numbers.decode) as pool:
        list(pool.map(decode, range(0, len(files), _SLICE)))
    outcomes.wait()
    seconds = time.perf_counter() - began
    batcher.stop()
    return len(files) / seconds


if __name__ == "__main__":
    sys.exit(main())
