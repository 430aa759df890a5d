"""A GPU: the worker's encoder beside the bare forward pass, and images/s from JPEGs by several processes.

`bare` is the ceiling: open_clip's own forward, repeated on a batch in device memory, eagerly or as a CUDA
graph, the faster of the two. `backend` copies batches and keeps as many in flight as a worker, `batcher` is
the thread that does so in a worker. They alternate; rates are medians, ratios medians of neighbouring runs.
Then 1, 2, 4 and 8 processes, each with its own model and its share of the cores, decode JPEGs in memory and
encode them, all at the same time. Without a device it says so and exits with 2. `--dry` runs it on a CPU,
with the demo model and no goals.

    python -m ops.bench.gpu
    python -m ops.bench.gpu --processes 1,2,4,8,16 --seconds 30
"""

from __future__ import annotations

import multiprocessing
import os
import statistics
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import torch

from clipfleet.contract.jobs import DecodeRoute, Lane, Precision
from clipfleet_worker.assembly.device import make_device_set_up
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.encode.backends import PendingFeatures
from clipfleet_worker.encode.backends.torch_backend import torch_dtype
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.encode.batches import ItemSlice
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.process.cores import cpus
from clipfleet_worker.settings import WorkerSettings
from ops.bench.forward import named, plain_module
from ops.bench.report import Report, bench_parser, positive, positives
from ops.bench.rounds import in_turns, median_ratio
from tests.support.images import encoded, photo

NO_DEVICE = 2
SLICE = 16  # items that a worker decodes and submits together
CHUNK = 512
CHUNKS_UNDER_WAY = 4
LEAST_OF_CEILING = 0.85
END_TO_END_PER_SECOND, END_TO_END_CORES = 10_000, 16
START_SECONDS = 240.0  # until all processes have loaded their model

Bring = Callable[[Sequence[int]], list[np.ndarray]]
Barrier = threading.Barrier  # that of multiprocessing has the same methods

_barrier: Barrier | None = None  # of a child process: it can be inherited, not sent


@dataclass(frozen=True)
class Plan:
    """The models, batch sizes and times to measure."""

    model: str  # its full name
    precision: Precision
    device: str
    batch: int
    seconds: float  # of each run that begins with JPEGs


class Bench:
    """One model on one device, as a worker has it, and images for it."""

    def __init__(self, plan: Plan) -> None:
        settings = WorkerSettings(device=plan.device, batch_size=plan.batch, precision=plan.precision)
        device = make_device_set_up(settings)
        self.batch = plan.batch
        self.device = device.name
        self.model = load_model(plan.model, plan.precision, device.name, device.make_backend)
        spec = self.model.pixel_spec
        shape = (plan.batch, spec.height, spec.width, 3)
        self.images = list(np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8))
        self._decoder = Decoder(100_000_000)
        self._batcher = Batcher(plan.batch)

    @contextmanager
    def working(self) -> Iterator[None]:
        """Run the batcher's thread within the context."""
        self._batcher.start()
        try:
            yield
        finally:
            self._batcher.stop()

    def fed(self, passes: int) -> float:
        """Images/s of the backend, fed as by the batcher."""
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

    def through_batcher(self, seconds: float) -> float:
        """Images/s through the thread that owns the device, in slices as decode threads bring them."""
        return self._steadily(lambda places: [self.images[place % self.batch] for place in places], seconds)

    def from_jpegs(self, files: Sequence[bytes], seconds: float) -> float:
        """Images/s from bytes in memory, decoded on all cores that this process may use."""
        spec = self.model.pixel_spec

        def decode(places: Sequence[int]) -> list[np.ndarray]:
            data = (files[place % len(files)] for place in places)
            return [self._decoder.decode(one, spec, DecodeRoute.FAST).pixels for one in data]

        return self._steadily(decode, seconds)

    def _steadily(self, bring: Bring, seconds: float) -> float:
        """Images/s while some chunks are under way at any time; how the last ones end does not count."""
        under_way: deque[Outcomes] = deque()
        done, began = 0, time.perf_counter()
        with ThreadPoolExecutor(cpus()) as pool:
            while not done or time.perf_counter() - began < seconds:
                under_way.append(self._submit(pool, bring))
                if len(under_way) == CHUNKS_UNDER_WAY:
                    done += _encoded(under_way.popleft())
            rate = done / (time.perf_counter() - began)
            for outcomes in under_way:
                _encoded(outcomes)
        return rate

    def _submit(self, pool: ThreadPoolExecutor, bring: Bring) -> Outcomes:
        outcomes = Outcomes(CHUNK)

        def submit(positions: list[int]) -> None:
            slice_ = ItemSlice(self.model, Lane.NORMAL, bring(positions), positions, outcomes)
            self._batcher.submit(slice_)

        for start in range(0, CHUNK, SLICE):
            future = pool.submit(submit, list(range(start, start + SLICE)))
            future.add_done_callback(partial(_raise_in, outcomes))
        return outcomes


class Bare:
    """open_clip's forward and nothing else, on pixels in device memory."""

    def __init__(self, plan: Plan, device: str, precision: Precision, size: tuple[int, int]) -> None:
        dtype = torch_dtype(precision)
        module = plain_module(plan.model).to(device, dtype)
        images = torch.randn(plan.batch, 3, *size).to(device, dtype, memory_format=torch.channels_last)
        self._images = images
        self._forward = partial(module.encode_image, images)
        self._is_gpu = device != "cpu"
        self.routes: dict[str, Callable[[], Any]] = {"bare, step by step": self._forward}
        if self._is_gpu:
            self.routes["bare, recorded"] = recorded(self._forward)

    def rate(self, route: str, passes: int) -> float:
        """Images/s."""
        work = self.routes[route]
        return len(self._images) / self._seconds(work, passes)

    def transfer_share(self, passes: int) -> float:
        """Time that the pixels of a batch, uint8, take to the device, as a part of their pass."""
        count, _, height, width = self._images.shape
        pixels = torch.empty(count, height, width, 3, dtype=torch.uint8, pin_memory=self._is_gpu)
        there = torch.empty_like(pixels, device=self._images.device)
        copying = self._seconds(lambda: there.copy_(pixels, non_blocking=True), passes)
        return copying / min(self._seconds(work, passes) for work in self.routes.values())

    def _seconds(self, work: Callable[[], Any], passes: int) -> float:
        with torch.inference_mode():
            work()
            self._wait()
            began = time.perf_counter()
            for _ in range(passes):
                work()
            self._wait()
        return (time.perf_counter() - began) / passes

    def _wait(self) -> None:
        if self._is_gpu:
            torch.cuda.synchronize(self._images.device)


def recorded(work: Callable[[], Any]) -> Callable[[], Any]:
    """The same as a CUDA graph. Each call overwrites the tensor that it returns."""
    stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]  # torch has no type for it
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.stream(stream), torch.inference_mode():
        for _ in range(3):
            work()
    torch.cuda.synchronize()
    with torch.inference_mode(), torch.cuda.graph(graph):
        output = work()

    def replay() -> Any:
        graph.replay()
        return output

    return replay


def _raise_in(outcomes: Outcomes, future: Future[None]) -> None:
    error = future.exception()
    if error is not None:
        outcomes.interrupt(error)


def _encoded(outcomes: Outcomes) -> int:
    outcomes.wait()
    failed = next((error for error in outcomes.errors if error is not None), None)
    if failed is not None:
        raise RuntimeError(f"an image failed: {failed.code} {failed.detail}")
    return len(outcomes.features)


def print_encoder(report: Report, plan: Plan, passes: int, rounds: int) -> None:
    """Print the ceiling and the share of it that is reached."""
    bench = Bench(plan)
    spec = bench.model.pixel_spec
    bare = Bare(plan, bench.device, bench.model.precision, (spec.height, spec.width))
    report.fact("precision", bench.model.precision)
    report.fact("certificate", str(bench.model.certificate))
    with bench.working():
        found = in_turns(
            {
                **{route: partial(bare.rate, route, passes) for route in bare.routes},
                "backend": lambda: bench.fed(passes),
                "batcher": lambda: bench.through_batcher(plan.seconds / 4),
            },
            rounds,
        )
    ceiling = [max(rates) for rates in zip(*(found[route] for route in bare.routes), strict=True)]
    table = report.table({"route": "<18", "images/s": "9.0f", "of the ceiling": "6.2f"})
    for route, rates in found.items():
        table.row(route, statistics.median(rates), median_ratio(rates, ceiling))
    share = bare.transfer_share(passes)
    report.fact("transfer of the pixels, as a part of the pass", share)
    print(f"the pixels of a batch take {share:.0%} of the time of its pass to the device")
    if bench.device != "cpu":
        for route in ("backend", "batcher"):
            ratio = median_ratio(found[route], ceiling)
            report.goal(f"{route} / ceiling", ratio, at_least=LEAST_OF_CEILING)


def print_processes(report: Report, plan: Plan, counts: Sequence[int], files: Sequence[bytes]) -> None:
    """Print the rates from JPEGs in memory, by the number of processes on the device."""
    table = report.table(
        {"processes": "9", "images/s": "9.0f", "core us an image": "9.0f"}, "from JPEGs of 640x480 in memory"
    )
    best = 0.0
    for count in counts:
        found = run_together(plan, count, files)
        rate = sum(images_per_second for images_per_second, _ in found)
        table.row(count, rate, statistics.mean(microseconds for _, microseconds in found))
        best = max(best, rate)
    if plan.device != "cpu" and cpus() >= END_TO_END_CORES:
        report.goal("images/s from JPEGs, best of these", best, at_least=END_TO_END_PER_SECOND)


def run_together(plan: Plan, count: int, files: Sequence[bytes]) -> list[tuple[float, float]]:
    """Images/s and microseconds of a core an image, of each of so many processes at the same time."""
    spawn = multiprocessing.get_context("spawn")  # a forked process cannot use CUDA
    cores = sorted(os.sched_getaffinity(0))
    shares = [
        cores[n * len(cores) // count : (n + 1) * len(cores) // count] or cores[:1] for n in range(count)
    ]
    barrier = spawn.Barrier(count)
    with ProcessPoolExecutor(count, mp_context=spawn, initializer=_inherit, initargs=(barrier,)) as pool:
        # Each waits for all the others, so no process gets two of them.
        futures = [pool.submit(_work, plan, share, files) for share in shares]
        return [future.result() for future in futures]


def _inherit(barrier: Barrier) -> None:
    global _barrier
    _barrier = barrier


def _work(plan: Plan, cores: Sequence[int], files: Sequence[bytes]) -> tuple[float, float]:
    if _barrier is None:
        raise RuntimeError("not in a child process")
    try:
        os.sched_setaffinity(0, cores)
        torch.set_num_threads(len(cores))
        bench = Bench(plan)
        with bench.working():
            bench.from_jpegs(files, 0.1)
            _barrier.wait(START_SECONDS)
            began, cpu = time.perf_counter(), time.process_time()
            rate = bench.from_jpegs(files, plan.seconds)
            images = rate * (time.perf_counter() - began)
            return rate, (time.process_time() - cpu) / images * 1e6
    except BaseException:
        _barrier.abort()  # else the others wait for this one
        raise


def jpegs(count: int) -> list[bytes]:
    """Images of 640 x 480 with the detail of a phone's photographs."""
    images = (photo(seed, 160, 120).resize((640, 480)) for seed in range(count))
    return [encoded(image, quality=85, subsampling="4:2:0") for image in images]


def main() -> int:
    """Measure and report."""
    parser = bench_parser(__doc__)
    parser.add_argument("--model", choices=["ViT-B-32", "demo"], default="ViT-B-32")
    parser.add_argument("--precision", type=Precision, default=Precision.AUTO)
    parser.add_argument("--batch", type=positive, default=256)
    parser.add_argument("--passes", type=positive, default=100, help="batches of one run of a route")
    parser.add_argument("--rounds", type=positive, default=5, help="runs of each route")
    parser.add_argument("--processes", type=positives, default=[1, 2, 4, 8], metavar="N,N,...")
    parser.add_argument("--seconds", type=float, default=12.0, help="of each number of processes")
    parser.add_argument("--dry", action="store_true", help="on a CPU, small and short")
    options = parser.parse_args()
    if options.dry:
        parser.set_defaults(model="demo", batch=8, passes=2, rounds=1, processes=[1, 2], seconds=0.5)
        options = parser.parse_args()
    elif not torch.cuda.is_available():
        print(f"bench gpu: torch {torch.__version__} sees no CUDA device here", file=sys.stderr)
        return NO_DEVICE
    with Report("gpu", options.json) as report, named(options.model) as name:
        device = "cpu" if options.dry else "cuda"
        plan = Plan(name, options.precision, device, options.batch, options.seconds)
        print_processes(report, plan, options.processes, jpegs(64))
        print_encoder(report, plan, options.passes, options.rounds)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
