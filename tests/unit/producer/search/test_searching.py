"""A search finds what a product with all vectors finds, among the rows that a condition holds for."""

from __future__ import annotations

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.errors import UsageError
from clipfleet.labels.metrics import unit
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from clipfleet.search.searching import Wanted, search_rows
from tests.support.stored_vectors import place_vectors, unit_vectors, vector_rows

ROWS, PART = 3000, 256
VECTORS = unit_vectors(1, ROWS, 32)
QUERY = unit_vectors(2, 1, 32)[0]


@pytest.fixture
def reader(output: FolderOutput) -> PartRows:
    """An output of many parts; every seventh row has failed."""
    tables = []
    for start in range(0, ROWS, PART):
        indexes = range(start, min(start + PART, ROWS))
        tables.append(
            vector_rows(
                start, VECTORS[start : start + PART], "f" * 16,
                failed={index for index in indexes if index % 7 == 0},
                shelf=pa.array([f"shelf {index % 3}" for index in indexes]),
            )
        )  # fmt: skip
    place_vectors(output, tables, source={"kind": "csv", "uri": "/list.csv", "extra_columns": ("shelf",)})
    return PartRows(output)


def best(top: int, keep: np.ndarray) -> list[str]:
    cosines = unit(VECTORS.astype(np.float16)) @ QUERY
    order = [index for index in np.argsort(-cosines, kind="stable") if keep[index]]
    return [f"item-{index:08d}" for index in order[:top]]


INDEXES = np.arange(ROWS)
OK = INDEXES % 7 != 0


def test_the_best_rows_in_order(reader: PartRows) -> None:
    found = search_rows(reader, QUERY * 5, Wanted(100))

    assert found["item_id"].to_pylist() == best(100, OK)
    assert found.column_names == ["similarity", "item_id", "uri"]
    scores = found["similarity"].to_pylist()
    assert scores == sorted(scores, reverse=True)
    assert 0.3 < scores[0] < 1


@pytest.mark.parametrize(
    ("where", "keep"),
    [
        ("shelf = 'shelf 1'", OK & (INDEXES % 3 == 1)),
        ("Item_Index > 2990 OR width = 641", OK & ((INDEXES > 2990) | (INDEXES % 7 == 1))),
        ("uri LIKE '%/05/%' AND content_hash IS NOT NULL", OK & (INDEXES % 97 == 5)),
        ("1 = 1", OK),
        ("shelf = 'none'", np.zeros(ROWS, bool)),
    ],
)
def test_only_rows_that_the_condition_holds_for(reader: PartRows, where: str, keep: np.ndarray) -> None:
    found = search_rows(reader, QUERY, Wanted(10, where=where))

    assert found["item_id"].to_pylist() == best(10, keep)


def test_further_columns(reader: PartRows) -> None:
    found = search_rows(reader, QUERY, Wanted(3, ("item_id", "uri", "shelf", "width")))

    row = found.to_pylist()[0]
    index = int(row["item_id"].rpartition("-")[2])
    assert (row["shelf"], row["width"]) == (f"shelf {index % 3}", 640 + index % 7)


@pytest.mark.parametrize(
    "where",
    [
        "colour = 'red'",
        "width = 'wide'",
        "width >",
        "width",
        "shelf = 'a' AND (width > 3",
        "shelf = N'x'",
        "shelf = $$x$$",
        "width = ?",
        "width / 0 = 1",
    ],
)
def test_a_condition_that_is_invalid(reader: PartRows, where: str) -> None:
    with pytest.raises(UsageError, match=r"the condition .* is invalid"):
        search_rows(reader, QUERY, Wanted(3, where=where))


def test_a_column_that_is_unknown(reader: PartRows) -> None:
    with pytest.raises(UsageError, match="no column 'colour'; their columns are item_index, "):
        search_rows(reader, QUERY, Wanted(3, ("item_id", "colour")))


def test_an_output_without_vectors(output: FolderOutput) -> None:
    place_vectors(output, [vector_rows(0, VECTORS[:3], "f" * 16, failed=range(3))])

    with pytest.raises(UsageError, match="no row has a vector"):
        search_rows(PartRows(output), QUERY, Wanted(3))
