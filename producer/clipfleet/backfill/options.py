"""Options of a backfill, from Python or the command line. No pyarrow: `--help` needs them."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from clipfleet.contract.jobs import MAX_CHUNK_SIZE, DecodeRoute, Exif, Lane, Precision
from clipfleet.contract.stores import MAX_KEEP_GONE_DAYS
from clipfleet.submit.options import Options


class BackfillOptions(Options):
    """Options of `Client.backfill`. Those of the vectors are the store's by default."""

    model: str | None = None  # of a new store, or of a migration
    precision: Precision | None = None
    decode: DecodeRoute | None = None
    exif: Exif | None = None
    lane: Lane | None = None  # default: normal; of a migration: bulk
    # Default: 512; fewer in a job of less than 4,096 items, so that several workers share it.
    chunk_size: Annotated[int | None, Field(ge=1, le=MAX_CHUNK_SIZE)] = None
    job_id: str | None = None  # repeat it to resume an interrupted night, or to get the result of one again
    url_column: str | None = None
    id_column: str | None = None
    base_uri: str | None = None  # prefix for bare keys and relative paths in a list
    max_items: Annotated[int | None, Field(ge=1)] = None  # to run; others are left for another night
    # How long rows stay whose items are gone.
    keep_gone_days: Annotated[int, Field(ge=0, le=MAX_KEEP_GONE_DAYS)] = 0


DEFAULT_BACKFILL = BackfillOptions()
