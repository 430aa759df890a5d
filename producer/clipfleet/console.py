"""What the commands say to people: on stderr, so that stdout holds what was asked for and nothing else."""

from __future__ import annotations

import os

from pydantic_settings import BaseSettings
from rich.console import Console
from rich.table import Table

from clipfleet.settings import doubtful_variables

stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str, style: str = "") -> None:
    """A line for people."""
    stderr.print(text, style=style, markup=False, emoji=False)


def print_table(table: Table) -> None:
    """A table on stdout. No cell is cut: on a narrow terminal the lines are longer than that."""
    console = Console()
    needed = console.measure(table, options=console.options.update(max_width=100_000)).maximum
    Console(width=max(console.width, needed)).print(table)


def say_error(error: Exception | str) -> None:
    """A line about what went wrong and the way out."""
    stderr.print(f"error: {error}", style="red", markup=False, emoji=False)


def warn_of_doubtful_variables(kind: type[BaseSettings], *, has_all: bool) -> None:
    """A line for each variable of the environment that looks like a setting and is none."""
    for name, meant in doubtful_variables(kind, os.environ, has_all=has_all):
        way_out = f"did you mean {meant}?" if meant else "the README lists all settings"
        stderr.print(f"warning: {name} is no setting: {way_out}", style="yellow", markup=False, emoji=False)
