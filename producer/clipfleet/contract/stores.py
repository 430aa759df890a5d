"""What a job that fills a store knows of it, and names of the further columns of its items and rows.

No I/O, and no pyarrow: `--help` needs it.
"""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

from pydantic import Field

from clipfleet.contract.label_sets import Fingerprint, FrozenModel

MAX_KEEP_GONE_DAYS = 36_500  # as good as for ever
STORE_ID_PATTERN = r"^[0-9a-f]{32}$"

StoreId = Annotated[str, Field(pattern=STORE_ID_PATTERN)]


class StoreTarget(FrozenModel):
    """The store that a job fills, as it was when the source was compared with it."""

    uri: str  # absolute path of a folder, or s3://BUCKET/PREFIX
    store_id: StoreId  # another store at the same place has another one
    migration_id: StoreId | None = None  # of a job that fills the dataset which is to become the current one
    fingerprint: Fingerprint | None = None  # of its vectors, in any precision; None: the first model decides
    base_version: Annotated[int, Field(ge=0)] = 0  # of the dataset; 0: there was none
    listed_at: datetime  # when the listing of the source began, by the clock of Redis
    # How long rows stay whose items are gone.
    keep_gone_days: Annotated[int, Field(ge=0, le=MAX_KEEP_GONE_DAYS)] = 0
    # Items of the source that the job does not run: those that are the same for certain, and those above the
    # limit of one night.
    same: Annotated[int, Field(ge=0)] = 0
    left: Annotated[int, Field(ge=0)] = 0


# Of the staged items of such a job, null where nothing is known: the version that the source lists and a
# digest of the whole item, for the store; and what the store knows of the image, for the fetch.
LISTED_VERSION = "_version"
DIGEST = "_digest"  # int64; the others are strings
KNOWN_ETAG = "_etag"
KNOWN_LAST_MODIFIED = "_last_modified"
KNOWN_HASH = "_content_hash"

# Of its rows: version and digest as they were staged, ETag and Last-Modified of the answer, and these.
SIZE_BYTES = "_size_bytes"  # int64, of the image's file
IS_COPIED = "_is_copied"  # bool: the vector is that of an equal image in the store
STORE_COLUMNS = (
    LISTED_VERSION, DIGEST, KNOWN_ETAG, KNOWN_LAST_MODIFIED, KNOWN_HASH, SIZE_BYTES, IS_COPIED,
)  # fmt: skip
