"""The command `store changes`."""

from __future__ import annotations

import json
import re
from datetime import datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipfleet.commands.options import AsJson, not_empty
from clipfleet.commands.stores.arguments import AsOf, Store
from clipfleet.errors import UsageError
from clipfleet.terminal.help import SOURCE

if TYPE_CHECKING:
    from clipfleet.store.dataset import VectorDataset

_OF_A_MODEL = re.compile(r"([0-9a-f]{16}):(.+)", re.ASCII)
_EVERYTHING = "0"

Since = Annotated[
    str,
    typer.Option(
        metavar="VERSION|DATE",
        callback=not_empty,
        help="what is known already: `since` of the last line of an earlier answer, a version, or a date "
        "(UTC, its end); 0: nothing",
        rich_help_panel=SOURCE,
    ),
]


def changes(store: Store, since: Since, as_of: AsOf = None, as_json: AsJson = False) -> None:
    """Print what has changed since a version, as JSON lines, for another database; --json changes nothing."""
    from clipfleet.store.extra import require_store

    require_store()
    from clipfleet.store.maintenance.changes import changes
    from clipfleet.store.place import store_place
    from clipfleet.store.versions import current_dataset

    found, after = current_dataset(store_place(store), as_of)
    fingerprint = found.current.fingerprint or ""
    before = _before(after, fingerprint, since)
    if before is not None and before.version > after.version:
        raise UsageError(
            f"--since {since} is version {before.version}, and --as-of {as_of} the earlier version "
            f"{after.version}: give --since the earlier one"
        )
    for some in changes(before, after):
        if isinstance(some, list):
            for item_id in some:
                typer.echo(json.dumps({"op": "delete", "item_id": item_id}))
            continue
        for row in some.to_pylist():
            typer.echo(json.dumps({"op": "upsert", **row}, default=_spelled))
    typer.echo(json.dumps({"op": "end", "version": after.version, "since": f"{fingerprint}:{after.version}"}))


def _before(after: VectorDataset, fingerprint: str, since: str) -> VectorDataset | None:
    """The version that is known; None: nothing is."""
    from clipfleet.store.versions import version_at

    named = _OF_A_MODEL.fullmatch(since)
    if named is not None and named[1] != fingerprint:
        raise UsageError(
            f"--since {since}: the store has vectors of another model by now, {fingerprint}: "
            "empty the other database, and fill it with --since 0"
        )
    version = since if named is None else named[2]
    if version == _EVERYTHING:
        return None
    try:
        return version_at(after, version)
    except UsageError as error:
        raise UsageError(f"{error}; --since 0 prints everything") from None


def _spelled(value: Any) -> Any:
    if isinstance(value, datetime):
        return value.isoformat()
    if isinstance(value, bytes):
        return value.hex()
    return float(value) if hasattr(value, "__float__") else str(value)
