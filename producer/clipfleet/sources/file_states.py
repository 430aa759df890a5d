"""Versions of local files: their sizes and times of change."""

from __future__ import annotations

import os

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.sources.uris import local_path

MISSING = "-"  # of an inaccessible file, which becomes a failed row


def file_states(uris: pa.Array) -> pa.Array | None:
    """Size and mtime (ns) of the local files among the items, as text; None if there are none."""
    is_local = pc.or_(pc.starts_with(uris, "/"), pc.starts_with(uris, "file:", ignore_case=True))
    if not pc.any(is_local, min_count=0).as_py():
        return None
    pairs = zip(uris.to_pylist(), is_local.to_pylist(), strict=True)
    return pa.array([_file_state(uri) if is_file else None for uri, is_file in pairs], pa.string())


def _file_state(uri: str) -> str:
    try:
        state = os.stat(local_path(uri))  # noqa: PTH116 - a Path costs more than the stat
    except (OSError, ValueError):
        return MISSING
    return f"{state.st_size} {state.st_mtime_ns}"
