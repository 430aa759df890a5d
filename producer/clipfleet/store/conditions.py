"""Conditions in SQL, before Lance reads them: it panics on some, and ignores what follows a whole one."""

from __future__ import annotations

import re

from clipfleet.errors import UsageError

# Texts, names and comments first: what they hold is no part of the grammar.
_TOKENS = re.compile(
    r"""
    '(?:[^']|'')*' | "(?:[^"]|"")*" | `[^`]*` | --[^\n]* | /\*.*?\*/
    | (?P<panics>
        \b[NBR](?=')           # a text of another kind: N'x'
        | [$?] | (?<![\w\]:]):(?=\w)  # a placeholder for a value: $1, ?, :name; a text between dollars
    )
    | (?P<bracket>[()])
    """,
    re.VERBOSE | re.DOTALL | re.IGNORECASE,
)
_PLACE_IN_LANCE = re.compile(r", /\S+\.rs:\d+:\d+")


def whole(where: str) -> str:
    """The condition in brackets, which Lance reads to their end.

    Raises:
        UsageError: it makes Lance panic, or closes a bracket that it has not opened.
    """
    depth = 0
    for token in _TOKENS.finditer(where):
        if token["panics"]:
            raise not_read(where)
        if token["bracket"]:
            depth += 1 if token["bracket"] == "(" else -1
        if depth < 0:
            raise UsageError(f"the condition {where!r} is invalid: it closes a bracket that is not open")
    return f"({where}\n)"  # on a line of its own: the condition may end in a comment


def not_read(where: str) -> UsageError:
    """The error of a condition that Lance has no words about."""
    return UsageError(f"the condition {where!r} is invalid: write texts as 'x', and give all values")


def words_of(error: BaseException, where: str) -> str:
    """What an error of Lance says about a condition, in one line, without where in Lance that is."""
    text = str(error).replace(f"({where}\n)", where)
    return _PLACE_IN_LANCE.sub("", text.splitlines()[0])
