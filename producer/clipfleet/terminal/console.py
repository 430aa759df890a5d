"""What the commands say to people: on stderr, so that stdout holds what was asked for and nothing else.

Texts of strangers are made such that a terminal or a log may have them.
"""

from __future__ import annotations

import re

from rich.console import Console
from rich.table import Table

# What moves a cursor, changes colours, ends a line, turns words around, or is no character at all.
_COMMANDS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COMMANDS_IN_A_LINE = re.compile(_COMMANDS.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))


def printable(text: str) -> str:
    r"""The text in one line, with `\n`, `\x1b` and their like in place of what a terminal would obey."""
    return _COMMANDS.sub(_spelled, text)


def printable_lines(text: str) -> str:
    """Likewise, but lines may end."""
    return _COMMANDS_IN_A_LINE.sub(_spelled, text)


def _spelled(command: re.Match[str]) -> str:
    return command[0].encode("unicode_escape").decode("ascii")


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
