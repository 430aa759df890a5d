"""The group `store`: commands on a store that `backfill` fills."""

from __future__ import annotations

import typer

from clipfleet.commands.stores import changing, exporting, indexing, maintaining, reading
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
    (changing.changes, "clipfleet store changes s3://vectors/photos --since 41"),
    (exporting.export, "clipfleet store export s3://vectors/photos --to photos-parquet"),
    (indexing.index, "clipfleet store index s3://vectors/photos"),
    (maintaining.compact, "clipfleet store compact s3://vectors/photos"),
    (maintaining.vacuum, "clipfleet store vacuum s3://vectors/photos --keep 14d"),
    (maintaining.forget, "clipfleet store forget s3://vectors/photos cats/7.jpg"),
):
    add_command(stores_app, _example)(_function)
