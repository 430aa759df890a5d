"""Reading sources in tests: all rows, after the checks that hold for every source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipfleet.contract.parts import INLINE_COLUMN, VERSION_COLUMN
from clipfleet.errors import SourceError
from clipfleet.sources import ReadOptions, Source, open_source
from clipfleet.sources.batches import MAX_ROWS


def table_of(source: Source | str | Path, **options: str) -> pa.Table:
    """All items as they are staged."""
    opened = open_source(str(source), ReadOptions(**options)) if isinstance(source, str | Path) else source
    batches = list(opened.batches())
    found = pa.Table.from_batches(batches)
    assert found["item_index"].to_pylist() == list(range(len(found)))
    assert all(batch.num_rows <= MAX_ROWS for batch in batches)
    assert all(batch.schema.equals(batches[0].schema) for batch in batches)
    carried = [name for name in found.column_names[3:] if name not in (INLINE_COLUMN, VERSION_COLUMN)]
    assert carried == list(opened.description.extra_columns)
    return found.drop_columns([name for name in (VERSION_COLUMN,) if name in found.column_names])


def items(source: Source | str | Path, **options: str) -> list[dict[str, Any]]:
    """All items as dicts, without their index."""
    return table_of(source, **options).drop_columns(["item_index"]).to_pylist()


def ids(source: Source | str | Path, **options: str) -> list[str]:
    return [row["item_id"] for row in items(source, **options)]


def uris(source: Source | str | Path, **options: str) -> list[str]:
    return [row["uri"] for row in items(source, **options)]


def problem(source: str | Path, **options: str) -> str:
    """What opening or reading a source raises."""
    with pytest.raises(SourceError) as caught:
        list(open_source(str(source), ReadOptions(**options)).batches())
    return str(caught.value)
