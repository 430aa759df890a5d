"""What the commands say to people: on stderr, so that stdout holds what was asked for and nothing else."""

from __future__ import annotations

from rich.console import Console
from rich.table import Table

from clipfleet.printable import printable_lines

stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str, style: str = "") -> None:
    """A line for people."""
    stderr.print(printable_lines(text), style=style, markup=False, emoji=False)


def say_trouble(text: str) -> None:
    """A line about something that may end by itself."""
    say(text, style="yellow")


def print_table(table: Table) -> None:
    """A table on stdout. No cell is cut: on a narrow terminal the lines are longer than that."""
    console = Console()
    needed = console.measure(table, options=console.options.update(max_width=100_000)).maximum
    Console(width=max(console.width, needed)).print(table)


def say_error(error: Exception | str) -> None:
    """A line about what went wrong and the way out."""
    stderr.print(f"error: {printable_lines(str(error))}", style="red", markup=False, emoji=False)
