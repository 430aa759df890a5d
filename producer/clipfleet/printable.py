"""Texts of strangers as a terminal or a log may have them. No I/O."""

from __future__ import annotations

import re

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
