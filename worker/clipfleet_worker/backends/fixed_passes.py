"""Forward passes of one tower at a few batch sizes, each recorded as a graph; other batches are filled up.

Of fixed size and at a fixed place a pass can be recorded, and is queued in one step. The largest one is
compiled, too: each takes seconds at every start, minutes at the first, and the others run when there is
little to do. What does not fit the device is halved, for good. Nothing here knows pixels or texts, nor who
wants features.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from clipfleet_worker.backends.accelerator import Accelerator, Work

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

Forward = Callable[["torch.Tensor"], "torch.Tensor"]  # rows (n, ...) -> features float32 (n, d), normalised

# What torch, its compilers and CUDA raise where a pass cannot be compiled or recorded; it runs without, then.
_CANNOT = (
    RuntimeError,
    OSError,
    ImportError,
    AssertionError,
    AttributeError,
    KeyError,
    TypeError,
    ValueError,
)


class FixedPasses:
    """One tower of a model. All but `warm_up` belongs to the batcher's thread."""

    def __init__(
        self,
        tower: str,
        device: Accelerator,
        forward: Forward,
        filling: torch.Tensor,
        sizes: Sequence[int],
        *,
        compiled: Forward | None = None,
    ) -> None:
        """Nothing is on the device yet but `filling`.

        Args:
            tower: for the log.
            device: where the passes run.
            forward: queues a pass, by torch, in its current stream.
            filling: one row, on the device, for places that a batch leaves empty. Not just anything: what
                makes a pass fail must not be in the next one, too.
            sizes: of batches, ascending.
            compiled: the same as `forward`, compiled when it is called first.
        """
        self._tower = tower
        self._device = device
        self._plain, self._compiled = forward, compiled
        self._filling = filling
        self._sizes = list(sizes)
        self._pool: Any = None
        self._passes: list[_FixedPass] = []  # ascending, once they are set up
        self._can_record = True

    @property
    def largest(self) -> int:
        """Rows that go through the device at a time; less than at first once that was too much."""
        return self._sizes[-1]

    def warm_up(self) -> None:
        """Compile and record; does nothing the second time.

        Raises:
            MemoryError: not enough memory for one row.
        """
        while not self._passes:
            pool = self._device.new_pool()
            try:
                # The largest first: the others find room in its memory.
                self._passes = [self._set_up(size, pool) for size in reversed(self._sizes)][::-1]
            except MemoryError as error:
                reason = self._reason_to_halve(error)
            else:
                return
            self._halve(reason)

    def begin(self, rows: torch.Tensor) -> torch.Tensor:
        """Queue the passes of some rows in the device's forward stream.

        Args:
            rows: (n, ...) on the device, or page-locked; they must stay until the device is done.

        Returns:
            Page-locked features float32 (n, d); there once the device is done.

        Raises:
            MemoryError: not enough memory for one row.
            RuntimeError: the pass failed.
        """
        import torch

        self.warm_up()
        features = self._device.page_locked((len(rows), self._passes[0].dimension), torch.float32)
        start = 0
        while start < len(rows):
            fixed = self._pass_for(len(rows) - start)
            part = slice(start, start + fixed.size)
            try:
                self._device.forwards.run(partial(fixed.run, rows[part], features[part]))
            except MemoryError as error:
                reason = self._reason_to_halve(error)
            else:
                start += fixed.size
                continue
            del fixed  # its memory is to be free
            self._device.forwards.record().wait()  # not before the device is done with it
            self._halve(reason)
            self.warm_up()
        return features

    def _pass_for(self, rows: int) -> _FixedPass:
        return next((fixed for fixed in self._passes if fixed.size >= rows), self._passes[-1])

    def _reason_to_halve(self, error: MemoryError) -> str:
        """What it says: the exception itself holds on to the memory that is to be freed."""
        if self.largest == 1:
            raise error
        return str(error)

    def _halve(self, reason: str) -> None:
        """Have half the largest size from now on; nothing is set up then."""
        largest, half = self.largest, self.largest // 2
        log.warning(
            "no memory on the device for %d %s at a time, from now on %d: %s",
            largest,
            self._tower,
            half,
            reason,
            extra={"action": "batch_halved"},
        )
        self._sizes = [*(size for size in self._sizes if size < half), half]
        self._passes = []
        self._device.forget_freed()

    def _set_up(self, size: int, pool: Any) -> _FixedPass:
        memory = self._device.memory((size, *self._filling.shape), self._filling.dtype)
        compiled = self._compiled if size == self.largest else None
        fixed = _FixedPass(memory, self._filling, compiled or self._plain)
        try:
            self._device.rehearse(fixed.rehearse)
        except _CANNOT as error:
            if compiled is None:
                raise
            self._tell(error, "not compiled")
            self._compiled = None
            return self._set_up(size, pool)
        if self._can_record:
            try:
                fixed.use(self._device.recorded(fixed.compute, pool))
            except _CANNOT as error:
                self._tell(error, "not recorded as a graph")
                self._can_record = False
                self._device.rehearse(fixed.rehearse)  # if the device itself is out of order, this fails too
        return fixed

    def _tell(self, error: Exception, what: str) -> None:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0][:200]
        log.warning(
            "the forward pass of %s is %s, which costs speed only: %s",
            self._tower,
            what,
            reason,
            extra={"action": "pass_not_fast"},
        )


class _FixedPass:
    """One size: its input and, once recorded, its output stay where they are."""

    def __init__(self, memory: torch.Tensor, filling: torch.Tensor, forward: Forward) -> None:
        self.size = len(memory)
        self._input = memory
        self._filling = filling
        self._forward = forward
        self._output: torch.Tensor | None = None
        self._replay: Work | None = None

    @property
    def dimension(self) -> int:
        """Of the features."""
        return int(self._given.shape[1])

    @property
    def _given(self) -> torch.Tensor:
        if self._output is None:
            raise RuntimeError("a pass gives nothing before its rehearsal")
        return self._output

    def compute(self) -> None:
        """From the input to the output, by torch; this is what a graph repeats."""
        self._output = self._forward(self._input)

    def rehearse(self) -> None:
        """Compute something harmless: what is in the input by chance may be no token."""
        self._input[:] = self._filling
        self.compute()

    def use(self, replay: Work) -> None:
        """Do it by a graph from now on."""
        self._replay = replay

    def repeat(self) -> None:
        """Queue the pass of what is in the input."""
        if self._replay is None:
            self.compute()
        else:
            self._replay()

    def run(self, rows: torch.Tensor, features: torch.Tensor) -> None:
        """Queue all steps of a batch of at most `size` rows, in the current stream."""
        count = len(rows)
        self._input[:count].copy_(rows, non_blocking=True)
        self._input[count:] = self._filling
        self.repeat()
        features.copy_(self._given[:count], non_blocking=True)
