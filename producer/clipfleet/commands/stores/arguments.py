"""Arguments and options that commands of stores share."""

from __future__ import annotations

from typing import Annotated

import typer

from clipfleet.commands.options import not_empty
from clipfleet.terminal.help import SOURCE


def _store(value: str) -> str:
    """Refuse a blank name, which would be the current folder."""
    if not value.strip():
        raise typer.BadParameter("empty value: give the folder or S3 prefix of a store")
    return value


Store = Annotated[
    str, typer.Argument(metavar="STORE", callback=_store, help="the folder or S3 prefix of a store")
]
AsOf = Annotated[
    str | None,
    typer.Option(
        "--as-of",
        metavar="VERSION|DATE",
        callback=not_empty,
        help="read the store as it was: a version of `clipfleet store log`, or a date (UTC, its end)",
        rich_help_panel=SOURCE,
    ),
]
