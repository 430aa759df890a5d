"""Probe a GPU and its torch, also for faults of torch that once hit the worker's path.

    python -m ops.gpu.probe facts rates failed_capture unload handle [--dry]

Each probe has a process of its own, because some crash it; the others run also if one fails. `--dry` runs
them on a CPU with the demo model; a probe that needs a device says so.

- `facts`: versions, cores, the device.
- `rates`: open_clip's forward by precision and size of the batch, step by step and as a CUDA graph.
- `failed_capture`: what still works in a process in which the recording of a graph failed.
- `unload`: whether a model answers as before when another one goes (pytorch#193402: graphs share memory).
- `handle`: the same while others are loaded, each in a thread that gets the cuBLAS handle of the one before.
"""

from __future__ import annotations

import argparse
import gc
import importlib.metadata
import multiprocessing
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

PROBE_SECONDS = 240.0
PACKAGES = ("torch", "triton", "torchvision", "numpy", "pyarrow", "pillow", "open_clip_torch", "pytest")
BATCH = 64
SIZES = (64, 16, 4)  # small products are those for which cuBLAS takes a workspace
JUNK_BLOCKS, JUNK_NUMBERS = 64, 8 << 20

T = TypeVar("T")


def facts(dry: bool) -> None:
    """Print versions, cores and the device. Never fails: it prints what is missing."""
    import torch

    print(f"python {sys.version.split()[0]}, torch {torch.__version__} for CUDA {torch.version.cuda}")
    for name in PACKAGES:
        try:
            print(f"  {name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            print(f"  {name} MISSING")
    print(f"{os.cpu_count()} cores, {len(os.sched_getaffinity(0))} of them for us")
    for command in (
        ("lscpu",),
        (
            "nvidia-smi",
            "--format=csv,noheader",
            "--query-gpu=name,driver_version,memory.total,pcie.link.gen.current",
        ),
    ):
        if shutil.which(command[0]) is None:
            print(f"{command[0]} MISSING")
            continue
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout
        kept = ("Model name", "Thread(s)", "L3") if command[0] == "lscpu" else ("",)
        print("\n".join(line for line in said.splitlines() if line.startswith(kept)))
    if torch.cuda.is_available():
        print(f"capability {torch.cuda.get_device_capability()}, built for {torch.cuda.get_arch_list()}")
    elif not dry:
        raise SystemExit("torch sees no CUDA device")


def rates(dry: bool) -> None:
    """Images/s, Python's own time for a pass, and the distance to fp32 on the CPU."""
    import torch
    from torch.nn.functional import cosine_similarity, normalize

    from ops.bench.forward import named, plain_module
    from ops.bench.gpu import recorded

    device = "cpu" if dry else "cuda"
    with named("demo" if dry else "ViT-B-32") as name, torch.inference_mode():
        module = plain_module(name)
        size = module.visual.image_size
        side = size if isinstance(size, int) else size[0]
        batches = (8,) if dry else (256, 64, 1024)
        pixels = torch.randn(max(batches), 3, side, side, generator=torch.Generator().manual_seed(0))
        truth = normalize(module.encode_image(pixels[:8]), dim=-1)
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            module = plain_module(name).to(device, dtype)
            for batch in batches:
                images = pixels[:batch].to(device, dtype).contiguous(memory_format=torch.channels_last)
                step_by_step = _forward(module, images)
                ways = {"step by step": step_by_step} | ({} if dry else {"graph": recorded(step_by_step)})
                for way, run in ways.items():
                    output = run().clone()
                    seconds, python_seconds = _timed(run, 3 if dry else 30)
                    cosine = cosine_similarity(output[:8].float().cpu(), truth).min().item()
                    print(
                        f"{str(dtype).removeprefix('torch.'):9} batch {batch:5} {way:13} "
                        f"{batch / seconds:8.0f} images/s, Python {python_seconds * 1000:5.2f} ms a pass, "
                        f"worst cosine {cosine:.5f}, finite {bool(output.isfinite().all())}"
                    )


def _forward(module: Any, images: Any) -> Callable[[], Any]:
    return lambda: module.encode_image(images, normalize=True)


def _timed(run: Callable[[], Any], passes: int) -> tuple[float, float]:
    import torch

    def wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    for _ in range(3):
        run()
    wait()
    began, cpu = time.perf_counter(), time.thread_time()
    for _ in range(passes):
        run()
    cpu = time.thread_time() - cpu
    wait()
    return (time.perf_counter() - began) / passes, cpu / passes


def failed_capture(dry: bool) -> None:
    """Print what still works in torch after a failed capture; fails only if no capture failed."""
    if dry:
        print("needs a device")
        return
    import torch

    from ops.bench.gpu import recorded

    numbers = torch.ones(64, 64, device="cuda")
    try:
        with torch.cuda.graph(torch.cuda.CUDAGraph()):
            numbers.sum().item()  # synchronises, which is not allowed in a capture
    except RuntimeError as error:
        print(f"the capture failed, as it should: {_first_line(error)}")
    else:
        raise SystemExit("the capture did not fail")
    after: Mapping[str, Callable[[], Any]] = {
        "empty_cache": torch.cuda.empty_cache,
        "a product": lambda: (numbers @ numbers).sum().item(),
        "another capture": lambda: recorded(lambda: numbers * 2)(),
    }
    for name, work in after.items():
        try:
            work()
            print(f"  afterwards {name} works")
        except RuntimeError as error:
            print(f"  AFTERWARDS {name} FAILS: {_first_line(error)}")


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0][:110]


@dataclass(frozen=True)
class Answers:
    """The features of a model for the same inputs, repeatedly, in the thread that owns the device."""

    ask: Callable[[], dict[str, Any]]
    before: dict[str, Any]

    def wrong(self) -> list[str]:
        """The inputs whose features differ from before."""
        import numpy as np

        now = self.ask()
        return [name for name, was in self.before.items() if not np.array_equal(now[name], was)]


class Site:
    """The worker's own device, batcher and way of loading."""

    def __init__(self, name: str, dry: bool) -> None:
        from clipfleet_worker.assembly.device import make_device_set_up
        from clipfleet_worker.encode.batcher import Batcher
        from clipfleet_worker.settings import WorkerSettings

        # OpenVINO's answers depend on the size of the batch; torch's are the same bit for bit.
        settings = WorkerSettings(
            device="cpu" if dry else "cuda", batch_size=BATCH, backend="torch" if dry else "auto"
        )
        self._name = name
        self._device = make_device_set_up(settings)
        self.batcher = Batcher(BATCH)

    def load(self) -> Any:
        """A model, loaded in a thread that then ends, as in a worker."""
        from clipfleet.contract.jobs import Precision
        from clipfleet_worker.models.loader import load_model

        def work() -> Any:
            device = self._device
            return load_model(self._name, Precision.AUTO, device.name, device.make_backend)

        return in_a_thread(work)

    def answers(self, model: Any) -> Answers:
        import numpy as np

        from clipfleet.contract.jobs import Lane

        spec = model.pixel_spec
        shape = (BATCH, spec.height, spec.width, 3)
        pixels = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)

        def ask() -> dict[str, Any]:
            found = {f"{size} images": model.encode_images(pixels[:size]) for size in SIZES}
            return found | {"40 texts": model.encode_texts(["a cat"] * 40)}

        def ask_the_owner() -> dict[str, Any]:
            return self.batcher.call(ask, Lane.NORMAL)

        return Answers(ask_the_owner, ask_the_owner())


@contextmanager
def site(dry: bool) -> Iterator[Site]:
    """A site with a running batcher thread."""
    from ops.bench.forward import named

    with named("demo" if dry else "ViT-B-32") as name:
        made = Site(name, dry)
        made.batcher.start()
        try:
            yield made
        finally:
            made.batcher.stop()


def in_a_thread(work: Callable[[], T]) -> T:
    found: list[T] = []
    thread = threading.Thread(target=lambda: found.append(work()))
    thread.start()
    thread.join()
    if not found:
        raise SystemExit("the thread failed, see above")
    return found[0]


def unload(dry: bool) -> None:
    """Fail if features change, or if the model writes into memory that it has freed."""
    import torch

    with site(dry) as here:
        other, model = here.load(), here.load()
        here.answers(other)
        answers = here.answers(model)
        del other
        gc.collect()
        junk = []
        if not dry:
            torch.cuda.synchronize()
            torch.cuda.empty_cache()
            junk = [
                torch.full((JUNK_NUMBERS,), 7, dtype=torch.int32, device="cuda") for _ in range(JUNK_BLOCKS)
            ]
        rounds = 2 if dry else 50
        wrong = [name for _ in range(rounds) for name in answers.wrong()]
        spoilt = sum(int((block != 7).sum().item()) for block in junk)
    judge(wrong, rounds)
    if spoilt:
        raise SystemExit(f"WRONG: {spoilt} numbers of others' memory were written over")


def handle(dry: bool) -> None:
    """Fail if features change while other models are loaded."""
    with site(dry) as here:
        answers = here.answers(here.load())
        ended = threading.Event()

        def load_others() -> None:
            try:
                for _ in range(1 if dry else 6):
                    here.load()
            finally:
                ended.set()

        threading.Thread(target=load_others).start()
        wrong, rounds = [], 0
        while not ended.is_set():
            wrong += answers.wrong()
            rounds += 1
    judge(wrong, rounds)


def judge(wrong: Sequence[str], rounds: int) -> None:
    """Print the verdict, or exit with it."""
    if wrong:
        raise SystemExit(
            f"WRONG: {len(wrong)} answers in {rounds} rounds, of {', '.join(sorted(set(wrong)))}"
        )
    print(f"as before in {rounds} rounds")


PROBES: Mapping[str, Callable[[bool], None]] = {
    "facts": facts,
    "rates": rates,
    "failed_capture": failed_capture,
    "unload": unload,
    "handle": handle,
}


def main() -> int:
    """Run the probes; return 1 if one failed, else 0."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter, allow_abbrev=False
    )
    parser.add_argument("names", nargs="+", choices=list(PROBES))
    parser.add_argument("--dry", action="store_true")
    options = parser.parse_args()
    return int(any([fails(name, options.dry) for name in options.names]))


def fails(name: str, dry: bool) -> bool:
    """Run a probe in a process of its own; return whether it failed."""
    print(f"--- {name}", flush=True)
    process = multiprocessing.get_context("spawn").Process(target=PROBES[name], args=(dry,))
    process.start()
    process.join(PROBE_SECONDS)
    if process.is_alive():
        process.kill()
        process.join()
        print(f"*** {name} did not end in {PROBE_SECONDS:g} s", flush=True)
    elif process.exitcode:
        print(f"*** {name} ended with {process.exitcode}", flush=True)
    return process.exitcode != 0


if __name__ == "__main__":
    sys.exit(main())
