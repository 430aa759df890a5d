"""Options that the commands that make heads share."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipfleet.commands.options import not_empty
from clipfleet.terminal.console import say
from clipfleet.terminal.help import OUTPUT

HeadFile = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FILE", help="file of the head, a .head.safetensors", rich_help_panel=OUTPUT
    ),
]
HeadFileOrDefault = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help="file of the head, a .head.safetensors (default: of its name or kind, or of FILE, here)",
        rich_help_panel=OUTPUT,
    ),
]
HeadName = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        callback=not_empty,
        help="name of the head, which its columns have (default: that of its file)",
        rich_help_panel=OUTPUT,
    ),
]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="replace a file that exists", rich_help_panel=OUTPUT)
]


def say_written(place: Path) -> None:
    """Say where a head is, beside what stdout has."""
    say(f"head -> {place}")
