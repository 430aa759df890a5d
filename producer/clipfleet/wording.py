"""Words of messages that depend on a number."""

from __future__ import annotations

_UNITS = ("KiB", "MiB", "GiB", "TiB")


def counted(number: int, noun: str) -> str:
    """A number with its noun: `1 worker`, `2,000 workers`."""
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def size_words(size_bytes: int) -> str:
    """A size of files: `700 bytes`, `34.2 KiB`, `1.5 GiB`."""
    if size_bytes < 1 << 10:
        return counted(size_bytes, "byte")
    exponent = min((size_bytes.bit_length() - 1) // 10, len(_UNITS))
    return f"{size_bytes / (1 << 10 * exponent):,.1f} {_UNITS[exponent - 1]}"
