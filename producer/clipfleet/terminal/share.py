"""The share of some work that is done, as a bar on a terminal; elsewhere nothing."""

from __future__ import annotations

from types import TracebackType
from typing import Self

from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn

from clipfleet.terminal.console import stderr


class ShareDone:
    """A bar on stderr. Use it as a context manager."""

    def __init__(self, words: str, *, quiet: bool) -> None:
        """Nothing is shown yet; never if `quiet`."""
        self._bar = Progress(
            TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn(),
            console=stderr, transient=True, disable=quiet or not stderr.is_terminal,
        )  # fmt: skip
        self._task = self._bar.add_task(words, total=1.0)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    def update(self, share: float) -> None:
        """Show the share that is done, from 0 to 1."""
        self._bar.update(self._task, completed=share)

    def end(self) -> None:
        """Remove the bar. Idempotent."""
        self._bar.stop()
