"""Conditions in SQL, before Lance reads them: it panics on some, and ignores what follows a whole one."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

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
_TIMES = "timestamp '2026-11-30' or timestamp '2026-11-30T22:15:00' (UTC)"
# In errors of Lance.
_MISTAKE = "Invalid user input: "
_UNKNOWN = re.compile(r"No field named (.+?)\. ")
_OF_ANOTHER_TYPE = re.compile(
    r"Received literal \w+\((?P<value>.*)\) and could not convert to literal of type '(?P<type>.*)'"
)
_GRAMMAR = re.compile(
    r"\(sql parser error: (.*)\)$|Error tokenizing statement: .* \((.*?)(?: at Line: .*)?\)$"
)
_LAYERS = re.compile(r"(?:LanceError\(\w+\)|Schema error|Error during planning|Parser error): ")
# In messages about a condition, not about a file.
_OF_CONDITIONS = ("filter", "Invalid user input", "parser", "column", "Schema error")
_PANIC, _ABORTED = "PanicException", "Task was aborted"  # a bug of Lance, here or in another thread
_PLACE_IN_LANCE = re.compile(r", /\S+\.rs:\d+:\d+")


@contextmanager
def condition_of(where: str | None, columns: Sequence[str]) -> Iterator[str | None]:
    """The condition as Lance is given it; an invalid one is reported as the user's mistake.

    Args:
        where: the condition, or None.
        columns: that it may name.

    Raises:
        UsageError: it is invalid, by itself or in what is done within.
    """
    if where is None:
        yield None
        return
    try:
        yield whole(where)
    except (ValueError, OSError) as error:
        # Subclasses of ValueError are of Arrow, which has them for files, too.
        if type(error) is ValueError or any(word in str(error) for word in _OF_CONDITIONS):
            raise UsageError(
                f"the condition {where!r} is invalid: {_words_of(error, where, columns)}"
            ) from error
        raise
    except BaseException as error:
        if type(error).__name__ == _PANIC or str(error) == _ABORTED:
            raise _not_read(where) from error
        raise


def whole(where: str) -> str:
    """The condition in brackets, which Lance reads to their end.

    Raises:
        UsageError: it makes Lance panic, or closes a bracket that it has not opened.
    """
    depth = 0
    for token in _TOKENS.finditer(where):
        if token["panics"]:
            raise _not_read(where)
        if token["bracket"]:
            depth += 1 if token["bracket"] == "(" else -1
        if depth < 0:
            raise UsageError(f"the condition {where!r} is invalid: it closes a bracket that is not open")
    return f"({where}\n)"  # on a line of its own: the condition may end in a comment


def _not_read(where: str) -> UsageError:
    """The error of a condition that Lance has no words about."""
    return UsageError(f"the condition {where!r} is invalid: write texts as 'x', and give all values")


def _words_of(error: BaseException, where: str, columns: Sequence[str]) -> str:
    """What an error of Lance says about a condition, in one line, in words of those who wrote it.

    Args:
        error: of Lance.
        where: the condition.
        columns: that it may name.
    """
    text = str(error).replace(f"({where}\n)", " ".join(where.split()))
    # The last mistake says what is wrong, those before it where that was found.
    text = _PLACE_IN_LANCE.sub("", text.splitlines()[0]).rpartition(_MISTAKE)[2]
    if (name := _UNKNOWN.search(text)) is not None:
        return f"no column {name[1]}; columns: {', '.join(columns)}"
    if (value := _OF_ANOTHER_TYPE.search(text)) is not None:
        if value["type"].startswith("Timestamp"):
            return f"{value['value']} is no time: write times as {_TIMES}"
        return f"{value['value']} is not of the type {value['type']} of its column"
    if (of_grammar := _GRAMMAR.search(text)) is not None:
        return _at_its_end(of_grammar[1] or of_grammar[2], where)
    return _LAYERS.sub("", text)


def _at_its_end(text: str, where: str) -> str:
    """What a parser says, which found the bracket of `whole` at the end of the condition."""
    ends = ("found: EOF",) if ")" in where else ("found: EOF", "found: )")
    return next((text.removesuffix(end) + "found: its end" for end in ends if text.endswith(end)), text)
