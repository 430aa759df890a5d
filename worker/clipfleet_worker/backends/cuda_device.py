"""A CUDA device for the backend: its streams, its memory and its graphs, by torch. No policy here.

What it relies on (read in torch 2.13; `torch.cuda.graph`, `Stream`, `Event`, notes "CUDA semantics"):

- The allocator hands a freed block out again to the stream that it was made for, at once. So memory that two
  streams use is made once and kept: nothing of it is freed while a pass that uses it is under way, for
  whoever began the pass holds on to it until its event has happened.
- `copy_(..., non_blocking=True)` is only one from or to page-locked memory, and orders nothing by itself.
- `Event(blocking=True)` lets the waiting thread sleep instead of spinning on a core that decoding wants.
- A graph keeps the address of cuBLAS's workspace, which torch caches by thread and stream and frees with any
  graph of that stream. With an empty cache the workspace is made in the graph's own memory: so the cache is
  emptied right before and right after a recording, and only the batcher's thread records.
- `thread_local`: what other threads do meanwhile, such as bringing weights here, does not spoil a recording.
- torch before 2.13 takes a recording that failed for one that never ends; later ones leave memory behind. So
  neither this process nor the next one tries again, and `empty_cache`, which may trip over it, is not called.
- torch has 32 streams, then it hands out the first ones again. So a process makes its few once.
"""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import torch

from clipfleet.contract import short_hash
from clipfleet_worker.backends.accelerator import Accelerator, Event, Forward, Graph, Stream, Work
from clipfleet_worker.backends.torch_backend import keep_fp32
from clipfleet_worker.device_memory import memory_errors
from clipfleet_worker.failures import first_line

log = logging.getLogger(__name__)

_FIRST_WITH_GRAPHS = (2, 13)  # of torch


class _CudaStream:
    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types here

    def run(self, work: Work) -> None:
        with torch.cuda.stream(self.stream), torch.no_grad(), memory_errors():
            work()

    def wait_for(self, event: Event) -> None:
        self.stream.wait_event(event)  # type: ignore[arg-type]  # one that `record` gave

    def record(self) -> Event:
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # likewise
        event.record(self.stream)
        return event


class CudaDevice(Accelerator):
    """Made once per process; what is not the streams' is for any thread."""

    def __init__(self, name: str, cache: Path) -> None:
        """Set up CUDA for this process, if nobody has.

        Args:
            name: torch's, such as cuda or cuda:1.
            cache: the folder that remembers a recording that failed.
        """
        self._device = torch.device(name)
        if self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        keep_fp32()
        self.copies: Stream = _CudaStream(self._device)
        self.forwards: Stream = _CudaStream(self._device)
        self._recording = _CudaStream(self._device)
        key = [torch.cuda.get_device_name(self._device), torch.__version__]
        self._failed_before = cache / f"graphs-off-{short_hash(key)}"
        self._has_failed = False
        self.graphs_off = why_no_graphs(torch.__version__, self._failed_before)

    def page_locked(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See the protocol; torch keeps what was freed for the next time."""
        with memory_errors():
            return torch.empty(shape, dtype=dtype, pin_memory=True)

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See the protocol."""
        with memory_errors():
            made = torch.empty(shape, dtype=dtype, device=self._device)
            self._settle()  # the block may be one that this thread's stream has just freed
        return made

    def place(self, what: Any, dtype: torch.dtype | None = None) -> Any:
        """See the protocol; convolutions get their weights as the pixels are, channels last."""
        with memory_errors():
            for part in what.modules() if isinstance(what, torch.nn.Module) else ():
                if isinstance(part, torch.nn.Conv2d):
                    part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)
            placed = what.to(device=self._device, dtype=dtype)
            self._settle()
        return placed

    def recorded(self, forward: Forward, rows: torch.Tensor) -> Graph:
        """See the protocol."""
        self._recording.run(lambda: forward(rows))  # libraries choose and set up the first time
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        context = torch.cuda.graph(graph, stream=self._recording.stream, capture_error_mode="thread_local")
        torch._C._cuda_clearCublasWorkspaces()
        try:
            with torch.no_grad(), memory_errors(), context:
                features = forward(rows)
        except (RuntimeError, MemoryError) as error:
            self._has_failed = True
            self.graphs_off = f"a recording failed: {first_line(error)}"
            if not isinstance(error, MemoryError):  # which may be there the next time
                note_failure(self._failed_before, self.graphs_off)
            raise
        finally:
            torch._C._cuda_clearCublasWorkspaces()
        return Graph(rows, features, graph.replay)

    def forget_freed(self) -> None:
        """See the protocol."""
        if not self._has_failed:
            torch.cuda.empty_cache()

    def _settle(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()


def why_no_graphs(torch_version: str, failed_before: Path) -> str:
    """Why a process must not record graphs; empty if it may."""
    if tuple(int(number) for number in torch_version.split(".")[:2]) < _FIRST_WITH_GRAPHS:
        return f"torch {torch_version} is older than {'.'.join(map(str, _FIRST_WITH_GRAPHS))}"
    if failed_before.exists():
        return f"{failed_before.read_text()} (remove {failed_before} to try again)"
    return ""


def note_failure(file: Path, what: str) -> None:
    """For the next process: one that has lost its device by it must not meet the same again."""
    try:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        file.write_text(what)
    except OSError as error:
        log.warning("%s; it will be tried again: %s", what, error, extra={"action": "cache_unusable"})
