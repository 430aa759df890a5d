"""Messages of the commands, on stderr: stdout carries results only.

Control characters in foreign text are escaped, so that they cannot affect a terminal or a log.
"""

from __future__ import annotations

import re
import sys

from rich.console import Console
from rich.table import Table

# Cursor movement, colours, line ends, bidirectional overrides, lone surrogates.
_COMMANDS = re.compile("[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")
_COMMANDS_IN_A_LINE = re.compile(_COMMANDS.pattern.replace("\x00-\x1f", "\x00-\x09\x0b-\x1f"))

_OPTION = re.compile("`([a-z][a-z_]*)=(?:True)?`")
_RENAMED = {
    "part_format": "format",
    "kind": "as",
    "keep_gone_days": "keep_gone",
}  # the others are called alike


def printable(text: str) -> str:
    r"""Escape control characters, line ends included, as `\n`, `\x1b` and the like."""
    return _COMMANDS.sub(_spelled, text)


def printable_lines(text: str) -> str:
    """Escape control characters other than line feeds."""
    return _COMMANDS_IN_A_LINE.sub(_spelled, text)


def with_options(text: str) -> str:
    """Replace options as errors name them (`overwrite=True`) by those of the command line (--overwrite)."""
    return _OPTION.sub(lambda found: "--" + _RENAMED.get(found[1], found[1]).replace("_", "-"), text)


def _spelled(command: re.Match[str]) -> str:
    return command[0].encode("unicode_escape").decode("ascii")


stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str, style: str = "") -> None:
    """Print a message."""
    stderr.print(printable_lines(text), style=style, markup=False, emoji=False)


def say_trouble(text: str) -> None:
    """Print a warning of the library, about a condition that may pass by itself."""
    say(with_options(text), style="yellow")


def terminal_width() -> int | None:
    """Columns of the terminal that stdout is; None if it is none."""
    return Console().width if sys.stdout.isatty() else None


def print_table(table: Table) -> None:
    """Print a table on stdout. Cells are never cut: lines may be wider than the terminal."""
    console = Console()
    needed = console.measure(table, options=console.options.update(max_width=100_000)).maximum
    # With a height, or a dumb terminal is taken to be 80 columns wide.
    Console(width=max(console.width, needed), height=console.height).print(table)


def say_error(error: Exception | str) -> None:
    """Print an error; in the text of an exception, options are named as on the command line."""
    text = error if isinstance(error, str) else with_options(str(error))
    say(f"error: {text}", style="red")
