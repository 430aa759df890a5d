"""Braces of a shell in the names of shards: `{00000..00009}` and `{a,b}`."""

from __future__ import annotations

import re
from collections.abc import Iterator

_BRACE = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")


def expand_braces(text: str) -> Iterator[str]:
    """All names that a text stands for, in the order of a shell; numbers keep their zeros in front.

    Braces that hold neither a comma nor a range of numbers mean themselves.
    """
    for brace in _BRACE.finditer(text):
        choices = _choices(brace[1])
        if choices is not None:
            for choice in choices:
                for rest in expand_braces(text[brace.end() :]):
                    yield f"{text[: brace.start()]}{choice}{rest}"
            return
    yield text


def _choices(inside: str) -> Iterator[str] | None:
    numbers = _RANGE.fullmatch(inside)
    if numbers is None:
        return iter(inside.split(",")) if "," in inside else None
    first, last = int(numbers[1]), int(numbers[2])
    is_padded = any(text.startswith("0") and len(text) > 1 for text in numbers.groups())
    width = max(map(len, numbers.groups())) if is_padded else 0
    steps = range(first, last + 1) if first <= last else range(first, last - 1, -1)
    return (str(number).zfill(width) for number in steps)
