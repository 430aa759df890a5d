"""What the commands say to people: always on stderr, so that stdout holds results and nothing else."""

from __future__ import annotations

from rich.console import Console

stderr = Console(stderr=True, highlight=False, soft_wrap=True)


def say(text: str, style: str = "") -> None:
    """A line for people."""
    stderr.print(text, style=style, markup=False, emoji=False)


def say_error(error: Exception | str) -> None:
    """A line about what went wrong and the way out."""
    stderr.print(f"error: {error}", style="red", markup=False, emoji=False)
