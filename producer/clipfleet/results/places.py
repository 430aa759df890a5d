"""Opens the rows that a user names by their place: those of an output, or of a store at one version."""

from __future__ import annotations

import re

from clipfleet.errors import UsageError
from clipfleet.outputs import open_output
from clipfleet.results.part_rows import PartRows
from clipfleet.results.store_rows import StoreRows, store_rows
from clipfleet.store.extra import require_store
from clipfleet.store.place import STORE_FILE, StorePlace
from clipfleet.store.versions import dataset_of

_FINGERPRINT = re.compile(r"[0-9a-f]{16}")


def open_rows(uri: str, as_of: str | None = None) -> PartRows | StoreRows:
    """Open the rows of a folder or an S3 prefix. Of an output nothing is read yet.

    Args:
        uri: path or `s3://` URI.
        as_of: of a store, see `store_rows`.

    Raises:
        UsageError: `as_of` is given, and there is no store. Otherwise see `store_rows`.
    """
    output = open_output(uri)
    if output.version(STORE_FILE) is not None:
        return store_rows(StorePlace(output), as_of)
    if as_of is not None:
        raise UsageError(f"{output.uri} is no store: only stores have versions, leave `as_of=` out")
    return PartRows(output)


def open_version(name: str) -> StoreRows | None:
    """Open what `STORE@VERSION`, `STORE@DATE` or `STORE@FINGERPRINT` names; None: it names something else.

    Raises:
        UsageError: the store has no such version. Otherwise see `store_rows`.
    """
    uri, _, version = name.rpartition("@")
    if not uri or "/" in version:
        return None
    output = open_output(uri)
    if output.version(STORE_FILE) is None:
        return None
    place = StorePlace(output)
    if _FINGERPRINT.fullmatch(version):
        require_store()
        return StoreRows(place, *dataset_of(place, version))
    return store_rows(place, version)
