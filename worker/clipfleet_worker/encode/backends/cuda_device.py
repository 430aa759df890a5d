"""A CUDA device for the backend: its streams, its memory and its graphs, by torch. No policy here.

`tests/support/fake_device.py` delays all work as long as it may, so that a missing event shows there.

What it relies on (read in torch 2.13; `torch.cuda.graph`, `Stream`, `Event`, notes "CUDA semantics"):

- The allocator reuses a freed block at once for the stream that it was made for. So memory that two streams
  use is made once and kept: none of it is freed while a pass that uses it is under way, because the caller
  that began the pass holds it until its event has happened.
- `copy_(..., non_blocking=True)` is only asynchronous from or to page-locked memory, and orders nothing.
- `Event(blocking=True)` lets the waiting thread sleep instead of spinning on a core that decoding needs.
- A graph keeps the address of cuBLAS's workspace, which torch caches by thread and stream and frees with any
  graph of that stream. With an empty cache the workspace is made in the graph's own memory: so the cache is
  emptied right before and right after a recording, and only the batcher's thread records.
- `thread_local`: work of other threads, such as copying weights to the device, does not spoil a recording.
- torch before 2.13 treats a failed recording as one that never ends; later ones leak memory. So neither this
  process nor the next one tries again, and `empty_cache`, which may fail because of it, is not called.
- torch has 32 streams and then reuses the first ones. So a process makes its few once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from clipfleet_worker.encode.backends.torch_backend import Forward, keep_fp32
from clipfleet_worker.encode.kept_arrays import keep, kept_file, recall
from clipfleet_worker.failures import first_line
from clipfleet_worker.process.device import memory_errors

_FIRST_WITH_GRAPHS = (2, 13)  # of torch
_KIND = "graphs-off"  # of what is kept

Work = Callable[[], object]
Pass = Callable[[torch.Tensor, torch.Tensor], object]  # of rows, into features; queued when it is called


class Stream:
    """Work that the device does in this order, independently of other streams."""

    def __init__(self, device: torch.device) -> None:
        self.stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # torch has no types here

    def run(self, work: Work) -> None:
        """Queue work, without gradients; returns before it is done.

        Raises:
            MemoryError: the device has no memory for it now.
            RuntimeError: it cannot be queued.
        """
        with torch.cuda.stream(self.stream), torch.no_grad(), memory_errors():
            work()

    def wait_for(self, event: torch.cuda.Event) -> None:
        """Let later work wait for an event of another stream; the caller does not wait."""
        self.stream.wait_event(event)

    def record(self) -> torch.cuda.Event:
        """An event that happens when all work up to now is done; waiting for it raises the errors of that."""
        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch has no types here
        event.record(self.stream)
        return event


class CudaDevice:
    """One per process, shared by all its models; except for the streams it is thread-safe."""

    def __init__(self, name: str) -> None:
        """Initialise CUDA for this process; the name is torch's, such as cuda or cuda:1."""
        self._device = torch.device(name)
        if self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        keep_fp32()
        self.copies = Stream(self._device)  # from page-locked memory to the device's
        self.forwards = Stream(self._device)  # forward passes, and their features back to the machine
        self._recording = Stream(self._device)
        self._key = torch.cuda.get_device_name(self._device), torch.__version__
        self._has_failed = False
        # Why graphs are no longer recorded or replayed; empty while they are.
        self.graphs_off = why_no_graphs(torch.__version__, self._key)

    def page_locked(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Page-locked memory of the machine, which the device reads and writes directly; torch caches it."""
        with memory_errors():
            return torch.empty(shape, dtype=dtype, pin_memory=True)

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """Uninitialised memory of the device."""
        with memory_errors():
            made = torch.empty(shape, dtype=dtype, device=self._device)
            self._settle()  # the block may be one that this thread's stream has just freed
        return made

    def place(self, what: Any, dtype: torch.dtype | None = None) -> Any:
        """Move a module, or copy a tensor, to the device; returns when that is done.

        Convolutions get their weights in the layout of the pixels, channels last.
        """
        with memory_errors():
            for part in what.modules() if isinstance(what, torch.nn.Module) else ():
                if isinstance(part, torch.nn.Conv2d):
                    part.weight.data = part.weight.data.contiguous(memory_format=torch.channels_last)
            placed = what.to(device=self._device, dtype=dtype)
            self._settle()
        return placed

    def recorded(self, forward: Forward, rows: torch.Tensor) -> Pass:
        """A graph of so many rows, which it keeps; in the batcher's thread. Raises as `Stream.run` does."""
        self._recording.run(lambda: forward(rows))  # libraries initialise lazily
        torch.cuda.synchronize(self._device)
        graph = torch.cuda.CUDAGraph()
        stream = self._recording.stream
        context = torch.cuda.graph(graph, stream=stream, capture_error_mode="thread_local")
        torch._C._cuda_clearCublasWorkspaces()
        try:
            with torch.cuda.stream(stream), torch.no_grad(), memory_errors(), context:
                features = forward(rows)
        except Exception as error:
            self._has_failed = True
            self.graphs_off = f"a recording failed: {first_line(error)}"
            if not isinstance(error, MemoryError):  # after which the next process may try again
                why = np.frombuffer(self.graphs_off.encode(), dtype=np.uint8)
                keep(_KIND, self._key, {"why": why})
            raise
        finally:
            torch._C._cuda_clearCublasWorkspaces()

        def replay(given: torch.Tensor, wanted: torch.Tensor) -> None:
            rows.copy_(given, non_blocking=True)
            graph.replay()
            wanted.copy_(features, non_blocking=True)

        return replay

    def forget_freed(self) -> None:
        """Release torch's unused memory of the device, for other uses and other processes."""
        if not self._has_failed:
            torch.cuda.empty_cache()

    def _settle(self) -> None:
        torch.cuda.current_stream(self._device).synchronize()


def why_no_graphs(torch_version: str, key: Sequence[str]) -> str:
    """Why a process must not record graphs; empty if it may."""
    if tuple(int(number) for number in torch_version.split(".")[:2]) < _FIRST_WITH_GRAPHS:
        return f"torch {torch_version} is older than {'.'.join(map(str, _FIRST_WITH_GRAPHS))}"
    failed_before = recall(_KIND, key)
    if not failed_before:
        return ""
    return f"{failed_before['why'].tobytes().decode()} (remove {kept_file(_KIND, key)} to try again)"
