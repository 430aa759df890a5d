"""The group `store`: commands on a store that `backfill` fills."""

from __future__ import annotations

import typer

from clipfleet.commands.stores import exporting, indexing, reading
from clipfleet.terminal.help import Group, add_command, epilog

stores_app = typer.Typer(
    help="Show and maintain stores, which keep the current vectors of a collection and earlier versions.",
    epilog=epilog("clipfleet store info s3://vectors/photos"),
    cls=Group,
    no_args_is_help=True,
)

for _function, _example in (
    (reading.info, "clipfleet store info s3://vectors/photos"),
    (reading.log, "clipfleet store log s3://vectors/photos"),
    (exporting.export, "clipfleet store export s3://vectors/photos --to photos-parquet"),
    (indexing.index, "clipfleet store index s3://vectors/photos"),
):
    add_command(stores_app, _example)(_function)
