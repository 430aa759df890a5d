"""A CUDA device: its bare forward, what of it the worker's way of feeding it reaches, and the way from JPEGs.

`bare` is the ceiling: the pass of a whole batch, again and again on pixels that lie on the device; the faster
one of the worker's own, by the way that was certified, and of open_clip's step by step. `backend` copies
batches and has two under way, `batcher` is the thread that does so in a worker, `jpegs` begins with the bytes
of JPEGs in memory and decodes them on all cores. They take turns; rates are medians, ratios medians of
neighbouring runs.
Without a device it says so and exits with 2.

    python -m ops.bench.gpu
    python -m ops.bench.gpu --model demo --batch 64 --rounds 3
"""

from __future__ import annotations

import statistics
import sys
import time
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import numpy as np
import torch

from clipfleet.contract import DecodeRoute, Lane, Precision
from clipfleet_worker.backends import Backend, PendingFeatures, Towers
from clipfleet_worker.backends.cuda_backend import CudaBackend
from clipfleet_worker.backends.cuda_device import CudaDevice
from clipfleet_worker.backends.torch_backend import torch_dtype
from clipfleet_worker.batcher import Batcher
from clipfleet_worker.batches import ItemSlice
from clipfleet_worker.control_groups import processors
from clipfleet_worker.decode import Decoder
from clipfleet_worker.model import load_model
from clipfleet_worker.outcomes import Outcomes
from ops.bench.forward import named
from ops.bench.report import Report, bench_parser, positive
from ops.bench.rounds import in_turns, median_ratio
from tests.support.pictures import encoded, photo

NO_DEVICE = 2
SLICE = 16  # items that a worker decodes and submits together
CHUNK = 512
LEAST_OF_CEILING = 0.85
END_TO_END_PER_SECOND, END_TO_END_CORES = 10_000, 16


class Bench:
    """One model on one device, and pictures for it."""

    def __init__(self, name: str, precision: Precision, batch: int) -> None:
        self.device = CudaDevice("cuda")
        self.batch = batch
        self._stepwise: Callable[[], None] | None = None
        self.model = load_model(name, precision, "cuda", self._make_backend)
        spec = self.model.pixel_spec
        random = np.random.default_rng(0)
        shape = (batch, spec.height, spec.width, 3)
        self.images = list(random.integers(0, 256, shape, dtype=np.uint8))

    def _make_backend(self, towers: Towers, _: str) -> Backend:
        self.backend = CudaBackend(towers, self.device, self.batch)
        spec, dtype = towers.pixel_spec, torch_dtype(towers.precision)
        images = self.device.place(torch.randn(self.batch, 3, spec.height, spec.width), dtype)
        images = images.contiguous(memory_format=torch.channels_last)
        self._stepwise = partial(towers.module.encode_image, images)  # its weights are on the device now
        return self.backend

    def bare_certified(self, passes: int) -> float:
        """Images/s of the worker's own pass."""
        rows = self.device.memory((self.batch, *self.images[0].shape), torch.uint8)
        features = self.device.page_locked((self.batch, self.model.embedding_dimension), torch.float32)
        return self._rate_on_device(partial(self.backend._images, rows, features), self.batch, passes)

    def bare_stepwise(self, passes: int) -> float:
        """Images/s of open_clip's forward, step by step."""
        if self._stepwise is None:
            raise RuntimeError("no model")
        return self._rate_on_device(self._stepwise, self.batch, passes)

    def _rate_on_device(self, work: Callable[[], None], images: int, passes: int) -> float:
        self.device.forwards.record().synchronize()
        began = time.perf_counter()
        for _ in range(passes):
            self.device.forwards.run(work)
        self.device.forwards.record().synchronize()
        return images * passes / (time.perf_counter() - began)

    def fed(self, passes: int) -> float:
        """Images/s of the backend as the batcher feeds it."""
        under_way: deque[PendingFeatures] = deque()
        began = time.perf_counter()
        for _ in range(passes):
            pixels = np.stack(self.images, out=self.model.new_pixels(self.batch))
            under_way.append(self.model.begin_images(pixels))
            if len(under_way) == self.model.batches_in_flight:
                under_way.popleft().result()
        while under_way:
            under_way.popleft().result()
        return self.batch * passes / (time.perf_counter() - began)

    def through_batcher(self, passes: int) -> float:
        """Images/s through the thread that owns the device, in slices as decode threads bring them."""
        return self._through_batcher(self.batch * passes, lambda places: [self.images[n] for n in places])

    def from_jpegs(self, files: Sequence[bytes], passes: int) -> float:
        """Images/s from bytes in memory, decoded on all cores."""
        decoder, spec = Decoder(100_000_000), self.model.pixel_spec

        def decode(places: Sequence[int]) -> list[np.ndarray]:
            data = (files[n % len(files)] for n in places)
            return [decoder.decode(one, spec, DecodeRoute.FAST).pixels for one in data]

        return self._through_batcher(self.batch * passes, decode)

    def _through_batcher(self, images: int, bring: Callable[[Sequence[int]], list[np.ndarray]]) -> float:
        batcher = Batcher(self.batch)
        batcher.start()
        chunks = [Outcomes(min(CHUNK, images - start)) for start in range(0, images, CHUNK)]

        def submit(outcomes: Outcomes, start: int) -> None:
            positions = list(range(start, min(start + SLICE, len(outcomes.features))))
            pixels = bring([position % self.batch for position in positions])
            batcher.submit(ItemSlice(self.model, Lane.NORMAL, pixels, positions, outcomes))

        began = time.perf_counter()
        with ThreadPoolExecutor(processors()) as pool:
            for outcomes in chunks:
                for start in range(0, len(outcomes.features), SLICE):
                    pool.submit(submit, outcomes, start).add_done_callback(partial(_raise_in, outcomes))
            for outcomes in chunks:
                outcomes.wait()
        seconds = time.perf_counter() - began
        batcher.stop()
        return images / seconds

    def transfer_share(self, passes: int) -> float:
        """Time that the pixels of a batch take to the device, as a part of its pass."""
        pixels = np.stack(self.images)
        began = time.perf_counter()
        for _ in range(passes):
            self.backend._ring.send(pixels)
            self.device.copies.record().synchronize()
        copied = time.perf_counter() - began
        began = time.perf_counter()
        for _ in range(passes):  # `send` copies within the machine's memory first
            self.backend._ring.lend(len(pixels))[...] = pixels
        within = time.perf_counter() - began
        return (copied - within) / passes * self.bare_certified(passes) / self.batch


def _raise_in(outcomes: Outcomes, future: object) -> None:
    error = future.exception()  # type: ignore[attr-defined]  # a Future
    if error is not None:
        outcomes.interrupt(error)


def main() -> int:
    """Measure and report."""
    parser = bench_parser(__doc__)
    parser.add_argument("--model", choices=["ViT-B-32", "demo"], default="ViT-B-32")
    parser.add_argument("--precision", type=Precision, default=Precision.AUTO)
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--passes", type=positive, default=100, help="batches of one run of a route")
    parser.add_argument("--rounds", type=positive, default=5, help="runs of each route")
    options = parser.parse_args()
    if not torch.cuda.is_available():
        print(f"bench gpu: torch {torch.__version__} sees no CUDA device here", file=sys.stderr)
        return NO_DEVICE
    with Report("gpu", options.json) as report, named(options.model) as name:
        bench = Bench(name, options.precision, options.batch)
        report.fact("precision", bench.model.precision)
        report.fact("certificate", str(bench.model.certificate))
        report.fact("batch that fits", bench.backend.largest_batch)
        tell_rates(report, bench, options.passes, options.rounds)
    return report.exit_code


def tell_rates(report: Report, bench: Bench, passes: int, rounds: int) -> None:
    """The ceiling and what is reached of it."""
    files = jpegs(64, 640, 480, "4:2:0")
    found = in_turns(
        {
            "bare, certified": lambda: bench.bare_certified(passes),
            "bare, step by step": lambda: bench.bare_stepwise(passes),
            "backend": lambda: bench.fed(passes),
            "batcher": lambda: bench.through_batcher(passes),
            "jpegs": lambda: bench.from_jpegs(files, max(1, passes // 4)),
        },
        rounds,
    )
    ceiling = [max(pair) for pair in zip(found["bare, certified"], found["bare, step by step"], strict=True)]
    table = report.table({"route": "<18", "images/s": "9.0f", "of the ceiling": "6.2f"})
    for route, rates in found.items():
        table.row(route, statistics.median(rates), median_ratio(rates, ceiling))
    share = bench.transfer_share(passes)
    report.fact("transfer of the pixels, as a part of the pass", share)
    print(f"the pixels of a batch take {share:.0%} of the time of its pass to the device")
    for route in ("backend", "batcher"):
        report.goal(f"{route} / ceiling", median_ratio(found[route], ceiling), at_least=LEAST_OF_CEILING)
    if processors() >= END_TO_END_CORES:
        rate = statistics.median(found["jpegs"])
        report.goal("images/s from JPEGs in memory", rate, at_least=END_TO_END_PER_SECOND)


def jpegs(count: int, width: int, height: int, subsampling: str) -> list[bytes]:
    """Photographs, as from a telephone."""
    images = (photo(seed, width // 4, height // 4).resize((width, height)) for seed in range(count))
    return [encoded(image, quality=85, subsampling=subsampling) for image in images]


if __name__ == "__main__":
    sys.exit(main())
