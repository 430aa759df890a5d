"""Forward passes on the CPU: torch and OpenVINO, fp32 and bf16, images and texts, by size of the batch.

Every backend is as in a worker, from uint8 pixels and texts to L2-normalised features. `open_clip` is the
forward of a plain loop: its own module in fp32, from normalised pixels and texts. All of them alternate, so
that a busy machine slows all alike. Rates are medians, ratios medians of neighbouring runs. With `--cpu` the
seconds are CPU time instead of wall time. ViT-B-32 has random weights, which do not change the speed.

    python -m ops.bench.forward
    python -m ops.bench.forward --models demo --rounds 9 --cpu
"""

from __future__ import annotations

import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from importlib.resources import as_file, files
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import safetensors.torch
import torch

from clipfleet.contract.jobs import DEMO_MODEL, Precision
from clipfleet_worker.encode.backends.cpu_backends import cpu_backends
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from ops.bench.report import Report, Table, bench_parser, positive
from ops.bench.rounds import in_turns, median_ratio

ROUND_SECONDS = 0.5  # of each route, estimated from its first pass
PLAIN = "open_clip fp32"


def main() -> int:
    """Measure and report."""
    parser = bench_parser(__doc__)
    parser.add_argument("--models", nargs="+", choices=["ViT-B-32", "demo"], default=["ViT-B-32", "demo"])
    parser.add_argument("--batches", type=positive, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--rounds", type=positive, default=5, help="runs of each route")
    parser.add_argument(
        "--threads", type=positive, help="torch's and OpenVINO's; default: torch's own choice"
    )
    parser.add_argument("--cpu", action="store_true", help="CPU time instead of the clock's")
    options = parser.parse_args()
    if options.threads:
        torch.set_num_threads(options.threads)
    clock = time.process_time if options.cpu else time.perf_counter
    with Report("forward", options.json) as report:
        report.fact("threads", torch.get_num_threads())
        report.fact("clock", "CPU" if options.cpu else "wall")
        loading = report.table({"model": "<8", "route": "<14", "load s": "6.1f"}, "loading, in CPU seconds")
        for model in options.models:
            with named(model) as name:
                routes = load_all(model, name, loading)
                plain = plain_module(name)
            for what, runners in (
                ("images", image_runners(routes, plain)),
                ("texts", text_runners(routes, plain)),
            ):
                table = report.table(
                    {
                        "batch": "5",
                        "route": "<14",
                        f"{what}/s": "9.1f",
                        "to open_clip": "6.2f",
                        "to torch": "6.2f",
                    },
                    f"{model}, {what}",
                )
                for batch in options.batches:
                    measure(
                        table, batch, {n: run(batch) for n, run in runners.items()}, options.rounds, clock
                    )
    return report.exit_code


@contextmanager
def named(model: str) -> Iterator[str]:
    """A model's full name; the weights of ViT-B-32 are made, and removed afterwards."""
    if model == "demo":
        yield DEMO_MODEL
        return
    with tempfile.TemporaryDirectory(prefix="clipfleet-bench-") as folder:
        configuration: dict[str, Any] = open_clip.get_model_config(model)
        torch.manual_seed(0)
        weights = open_clip.CLIP(**configuration).state_dict()
        safetensors.torch.save_file(weights, Path(folder) / "open_clip_model.safetensors")
        (Path(folder) / "open_clip_config.json").write_text(json.dumps({"model_cfg": configuration}))
        yield f"local-dir:{folder}"


def load_all(model: str, name: str, loading: Table) -> dict[str, LoadedModel]:
    """Every backend that is installed in both precisions, by the name of its route."""
    routes = {}
    for precision in (Precision.FP32, Precision.BF16):
        for backend in ("torch", *(["openvino"] if find_spec("openvino") else [])):
            began = time.process_time()
            loaded = load_model(name, precision, "cpu", cpu_backends(backend))
            route = f"{loaded.backend_name} {precision}"
            loading.row(model, route, time.process_time() - began)
            routes[route] = loaded
    return routes


def plain_module(name: str) -> Any:
    """The module, loaded as in open_clip's README."""
    with as_file(files("clipfleet_worker") / "demo_model") as demo:
        module, _, _ = open_clip.create_model_and_transforms(
            f"local-dir:{demo}" if name == DEMO_MODEL else name
        )
    return module.eval()


Runner = Callable[[], Any]


def image_runners(routes: Mapping[str, LoadedModel], plain: Any) -> dict[str, Callable[[int], Runner]]:
    """The functions that encode a batch of images of this size, by route."""
    spec = next(iter(routes.values())).pixel_spec
    random = np.random.default_rng(0)

    def with_plain(count: int) -> Runner:
        normalised = torch.randn(count, 3, spec.height, spec.width)
        return lambda: plain_forward(plain.encode_image, normalised)

    def with_model(model: LoadedModel, count: int) -> Runner:
        pixels = random.integers(0, 256, (count, spec.height, spec.width, 3), dtype=np.uint8)
        return lambda: model.encode_images(pixels)

    ours = {route: partial(with_model, model) for route, model in routes.items()}
    return {PLAIN: with_plain, **ours}


def text_runners(routes: Mapping[str, LoadedModel], plain: Any) -> dict[str, Callable[[int], Runner]]:
    """The functions that encode this number of prompts, by route."""

    def with_plain(count: int) -> Runner:
        texts, length = prompts(count), plain.context_length
        return lambda: plain_forward(plain.encode_text, open_clip.tokenize(texts, length))

    def with_model(model: LoadedModel, count: int) -> Runner:
        return lambda: model.encode_texts(prompts(count))

    ours = {route: partial(with_model, model) for route, model in routes.items()}
    return {PLAIN: with_plain, **ours}


def plain_forward(encode: Any, batch: torch.Tensor) -> Any:
    with torch.inference_mode():
        return encode(batch, normalize=True)


def prompts(count: int) -> list[str]:
    return [f"a photo of a thing that is number {number}" for number in range(count)]


def measure(
    table: Table, batch: int, runners: Mapping[str, Runner], rounds: int, clock: Callable[[], float]
) -> None:
    """Measure and print one row for each route."""

    def timed(run: Runner) -> Callable[[], float]:
        run()
        began = clock()
        run()
        repeats = max(1, round(ROUND_SECONDS / max(clock() - began, 1e-6)))

        def rate() -> float:
            began = clock()
            for _ in range(repeats):
                run()
            return batch * repeats / (clock() - began)

        return rate

    found = in_turns({route: timed(run) for route, run in runners.items()}, rounds)
    for route, rates in found.items():
        torchs = found[f"torch {route.partition(' ')[2]}"]
        ratios: Sequence[float] = [median_ratio(rates, found[PLAIN]), median_ratio(rates, torchs)]
        table.row(batch, route, statistics.median(rates), *ratios)


if __name__ == "__main__":
    sys.exit(main())
