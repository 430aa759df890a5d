"""A device without a GPU that puts its work off, so that what no event orders goes wrong.

Work of a stream is kept until somebody waits for an event, or until the schedule lets it run. Memory is full
of noise when it is made. See `CudaDevice` for what each method stands for.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable
from enum import Enum
from typing import Any

import torch

from clipfleet_worker.encode.backends.cuda_device import Pass
from clipfleet_worker.encode.backends.torch_backend import Forward


class Schedule(Enum):
    """When work is done that may be done."""

    LATE = "late"  # when somebody waits for it, and then no more than that needs
    COPIES_FIRST = "copies first"  # copies at once, forward passes late
    FORWARDS_FIRST = "forwards first"  # the other way round
    ANYHOW = "anyhow"  # by chance


class FakeEvent:
    """Happens when the work before it in its stream is done."""

    def __init__(self, device: FakeDevice, stream: FakeStream) -> None:
        self.stream = stream
        self.has_happened = False
        self._device = device

    def synchronize(self) -> None:
        while not self.has_happened:
            self.stream.step()
            self._device.by_schedule()
        if self.stream.error is not None:
            raise self.stream.error


class FakeStream:
    """Each step is some work, an event of its own, or one of another stream that it waits for."""

    def __init__(self, device: FakeDevice) -> None:
        self.error: RuntimeError | None = None  # what its work raised; as with CUDA it never recovers
        self._device = device
        self._steps: deque[Callable[[], None] | FakeEvent] = deque()

    def run(self, work: Callable[[], None]) -> None:
        if self is self._device.forwards:
            self._device.before_run(work)
        self._steps.append(work)
        self._device.by_schedule()

    def wait_for(self, event: FakeEvent) -> None:
        self._steps.append(event)

    def record(self) -> FakeEvent:
        event = FakeEvent(self._device, self)
        self._steps.append(event)
        self._device.by_schedule()
        return event

    @property
    def is_stuck(self) -> bool:
        """Nothing to do, or nothing before another stream has got further."""
        head = self._steps[0] if self._steps else None
        is_waiting = isinstance(head, FakeEvent) and head.stream is not self and not head.has_happened
        return head is None or is_waiting

    def step(self) -> None:
        """Do the next thing, and first what it waits for."""
        assert self._steps, "somebody waits for an event that nobody will bring about"
        step = self._steps.popleft()
        if not isinstance(step, FakeEvent):
            self._do(step)
        elif step.stream is self:
            step.has_happened = True
        else:
            while not step.has_happened:
                step.stream.step()

    def _do(self, work: Callable[[], None]) -> None:
        if self.error is not None:
            return
        try:
            with torch.no_grad():
                work()
        except RuntimeError as error:
            self.error = error


class FakeDevice:
    """See the module. `before_run` (of a pass) and `before_recording` may raise, `replayed` may spoil."""

    def __init__(self, schedule: Schedule = Schedule.LATE, seed: int = 0) -> None:
        self.copies, self.forwards = FakeStream(self), FakeStream(self)
        self.before_run: Callable[[Callable[[], None]], None] = lambda work: None
        self.before_recording: Callable[[], None] = lambda: None
        self.replayed: Callable[[torch.Tensor], torch.Tensor] = lambda features: features
        self.replays = 0
        self.forgotten = 0
        self.graphs_off = ""
        self._schedule = schedule
        self._random = random.Random(seed)
        self._noise = torch.Generator().manual_seed(seed)

    def by_schedule(self) -> None:
        """Let streams run that may run now."""
        first = {Schedule.COPIES_FIRST: self.copies, Schedule.FORWARDS_FIRST: self.forwards}
        stream = first.get(self._schedule)
        while stream is not None and not stream.is_stuck:
            stream.step()
        if self._schedule is Schedule.ANYHOW:
            for _ in range(self._random.randrange(4)):
                chosen = self._random.choice((self.copies, self.forwards))
                if not chosen.is_stuck:
                    chosen.step()

    def page_locked(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return self.memory(shape, dtype)

    def memory(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        noise = torch.randint(0, 256, shape, generator=self._noise)
        return noise.to(dtype)

    def place(self, what: Any, dtype: torch.dtype | None = None) -> Any:
        return what.to(dtype=dtype, copy=True) if isinstance(what, torch.Tensor) else what.to(dtype=dtype)

    def recorded(self, forward: Forward, rows: torch.Tensor) -> Pass:
        """A graph writes what it gives to one and the same place each time, so this does, too."""
        self.before_recording()
        with torch.no_grad():
            place = torch.full_like(forward(rows), torch.nan)  # recording computes nothing

        def replay(given: torch.Tensor, features: torch.Tensor) -> None:
            self.replays += 1
            rows.copy_(given)
            place.copy_(self.replayed(forward(rows)))
            features.copy_(place)

        return replay

    def forget_freed(self) -> None:
        self.forgotten += 1
