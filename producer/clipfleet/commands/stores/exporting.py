"""The command `store export`."""

from __future__ import annotations

import json
from enum import StrEnum
from pathlib import Path
from typing import Annotated

import typer

from clipfleet.commands.options import JOB_OPTIONS, AsJson, ExportFolder
from clipfleet.commands.stores.arguments import AsOf, Store
from clipfleet.contract.columns import VectorType
from clipfleet.terminal.console import say
from clipfleet.terminal.help import OUTPUT
from clipfleet.wording import counted


class SnapshotFormat(StrEnum):
    """Formats of a snapshot."""

    PARQUET = "parquet"


def export(
    store: Store,
    to: ExportFolder,
    export_format: Annotated[
        SnapshotFormat, typer.Option("--format", help="format of the files", rich_help_panel=OUTPUT)
    ] = SnapshotFormat.PARQUET,
    vector_type: Annotated[VectorType, JOB_OPTIONS["vector_type"]] = VectorType.FLOAT16,
    as_of: AsOf = None,
    as_json: AsJson = False,
) -> None:
    """Write a snapshot of a store as files that other programs read."""
    from clipfleet.store.extra import require_store

    require_store()
    from clipfleet.exports.snapshot import export_snapshot
    from clipfleet.store.place import store_place
    from clipfleet.store.versions import current_dataset

    place = store_place(store)
    found, dataset = current_dataset(place, as_of)
    facts = {"store": place.uri, "model": found.current.model, "fingerprint": found.current.fingerprint or ""}
    rows = export_snapshot(dataset, Path(to), vector_type, facts)
    if as_json:
        about = {"store": place.uri, "version": dataset.version, "to": to, "format": export_format}
        typer.echo(json.dumps({**about, "rows": rows}))
        return
    say(f"{counted(rows, 'row')} of version {dataset.version} -> {to}")
