"""A CUDA device for the backend: its streams, its memory and its graphs, by torch. No policy here.

What it relies on (read in torch 2.13; `torch.cuda.graph`, `Stream`, `Event`, notes "CUDA semantics"):

- The allocator hands a freed block out again to the stream that it was made for, at once. So memory that two
  streams use is made once and kept: nothing of it is freed while a pass that uses it is under way, for
  whoever began the pass holds on to it until its event has happened.
- `copy_(..., non_blocking=True)` is only one from or to page-locked memory, and orders nothing by itself.
- `Event(blocking=True)` lets the waiting thread sleep instead of spinning on a core that decoding wants.
- One graph may be recorded at a time in a process. Other threads go on meanwhile: with `thread_local` their
  allocations do not spoil it, as long as nobody synchronises the whole device, nor uses the recording stream.
- A graph may run in another stream than the one that it was recorded in. Its memory is its pool's: graphs of
  one pool must run one after another, and what one gave must be fetched before the next runs. One stream for
  all forward passes sees to both.
- torch has 32 streams, then it hands out the first ones again. So a process makes its few once.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from clipfleet_worker.backends.accelerator import Event, Stream, Work
from clipfleet_worker.device_memory import memory_errors

if TYPE_CHECKING:
    import torch

_REHEARSALS = 3  # torch's own advice before a recording: libraries choose and set up in the first ones


class CudaEvent:
    """See `Event`."""

    def __init__(self, event: torch.cuda.Event) -> None:
        self.event = event

    def wait(self) -> None:
        """See the protocol."""
        with memory_errors():
            self.event.synchronize()


class CudaStream:
    """See `Stream`."""

    def __init__(self, stream: torch.cuda.Stream) -> None:
        self.stream = stream

    def run(self, work: Work) -> None:
        """See the protocol; torch sees no gradients in it."""
        import torch

        with torch.cuda.stream(self.stream), torch.no_grad(), memory_errors():
            work()

    def wait_for(self, event: Event) -> None:
        """See the protocol."""
        if not isinstance(event, CudaEvent):
            raise TypeError(f"{event!r} is no event of CUDA's")
        self.stream.wait_event(event.event)

    def record(self) -> CudaEvent:
        """See the protocol."""
        import torch

        event = torch.cuda.Event(blocking=True)  # type: ignore[no-untyped-call]  # torch has no types here
        event.record(self.stream)
        return CudaEvent(event)


class CudaDevice:
    """See `Accelerator`. Made once per process and device; what is not the streams' is for any thread."""

    def __init__(self, name: str) -> None:
        """Set up CUDA for this process, if nobody has.

        Args:
            name: torch's, such as cuda or cuda:1.
        """
        import torch

        self._device = torch.device(name)
        if self._device.index is None:
            self._device = torch.device("cuda", torch.cuda.current_device())
        self._alone = threading.Lock()
        self._apart_lock = threading.RLock()
        self.copies: Stream = CudaStream(_new_stream(self._device))
        self.forwards: Stream = CudaStream(_new_stream(self._device))
        self._apart = _new_stream(self._device)
        # fp32 means fp32: by default cuDNN would round what goes into its convolutions to TF32.
        torch.backends.cudnn.allow_tf32 = False

    def page_locked(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See the protocol; torch keeps what was freed for the next time."""
        import torch

        with memory_errors():
            return torch.empty(shape, dtype=dtype, pin_memory=True)

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See the protocol."""
        import torch

        with memory_errors():
            made = torch.empty(shape, dtype=dtype, device=self._device)
            self._settle()  # the block may be one that this thread's stream has just freed
        return made

    def place(self, what: Any, dtype: torch.dtype | None = None) -> Any:
        """See the protocol; convolutions get their weights as the pixels are, channels last."""
        import torch

        with memory_errors():
            if isinstance(what, torch.nn.Module):
                for convolution in (part for part in what.modules() if isinstance(part, torch.nn.Conv2d)):
                    convolution.weight.data = convolution.weight.data.contiguous(
                        memory_format=torch.channels_last
                    )
            placed = what.to(device=self._device, dtype=dtype)
            self._settle()
        return placed

    def rehearse(self, work: Work) -> None:
        """See the protocol."""
        with self._beside():
            for _ in range(_REHEARSALS):
                work()
            self._apart.synchronize()

    def new_pool(self) -> Any:
        """See the protocol."""
        import torch

        return torch.cuda.graph_pool_handle()

    def recorded(self, work: Work, pool: Any) -> Work:
        """See the protocol."""
        import torch

        graph = torch.cuda.CUDAGraph()
        with self._apart_lock:
            try:
                with (
                    self._beside(),
                    self.alone(),
                    torch.cuda.graph(graph, pool=pool, stream=self._apart, capture_error_mode="thread_local"),
                ):
                    work()
            except BaseException:
                self._apart = _new_stream(self._device)  # the other one may be recording still
                raise
        replay: Work = graph.replay
        return replay

    def forget_freed(self) -> None:
        """See the protocol."""
        import torch

        with self.alone():  # it synchronises
            torch.cuda.empty_cache()

    @contextmanager
    def alone(self) -> Iterator[None]:
        """While nothing is recorded, nor anything else done that disturbs a recording."""
        with self._alone:
            yield

    @contextmanager
    def _beside(self) -> Iterator[None]:
        import torch

        with self._apart_lock, torch.cuda.stream(self._apart), torch.no_grad(), memory_errors():
            yield

    def _settle(self) -> None:
        import torch

        torch.cuda.current_stream(self._device).synchronize()


def _new_stream(device: torch.device) -> torch.cuda.Stream:
    import torch

    stream: torch.cuda.Stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]  # likewise
    return stream
