"""Items without an id are named by their URIs where that is wanted: stores must not know them by position."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.sources import ReadOptions, Source, source_of
from clipfleet.sources.stdin import StdinSource

OPTIONS = ReadOptions(named_by_uri=True)
URLS = ["https://host/a.jpg", "https://user:secret@host/b.jpg"]
NAMES = ["https://host/a.jpg", "https://host/b.jpg"]


@pytest.fixture
def piped() -> Iterator[int]:
    reader, writer = os.pipe()
    os.write(writer, "\n".join(URLS).encode())
    os.close(writer)
    yield reader
    os.close(reader)


def listed(kind: str, folder: Path) -> Source:
    path = folder / f"list.{kind}"
    match kind:
        case "txt":
            path.write_text("\n".join(URLS))
        case "csv":
            path.write_text("\n".join(["url,note", *(f"{url},x" for url in URLS)]))
        case "jsonl":
            path.write_text("\n".join(f'{{"url": "{url}"}}' for url in URLS))
        case "parquet":
            pq.write_table(pa.table({"url": URLS}), path)
        case _:
            return source_of(URLS, OPTIONS)
    return source_of(path, OPTIONS)


def ids(source: Source) -> list[str]:
    return [name for batch in source.batches() for name in batch["item_id"].to_pylist()]


@pytest.mark.parametrize("kind", ["txt", "csv", "jsonl", "parquet", "iterable"])
def test_of_a_list(kind: str, tmp_path: Path) -> None:
    assert ids(listed(kind, tmp_path)) == NAMES


def test_of_standard_input(piped: int) -> None:
    assert ids(StdinSource(OPTIONS, descriptor=piped)) == NAMES


def test_only_where_an_id_is_missing(tmp_path: Path) -> None:
    (tmp_path / "list.jsonl").write_text(
        '{"url": "https://host/a.jpg", "id": "x"}\n{"url": "https://host/b.jpg"}'
    )

    assert ids(source_of(tmp_path / "list.jsonl", OPTIONS)) == ["x", NAMES[1]]


@pytest.mark.parametrize("kind", ["csv", "jsonl", "parquet", "iterable"])
@pytest.mark.parametrize(("named_by_uri", "expected"), [(True, ["x", NAMES[1]]), (False, ["x", "1"])])
def test_an_empty_id_is_none(kind: str, named_by_uri: bool, expected: list[str], tmp_path: Path) -> None:
    options, path = ReadOptions(named_by_uri=named_by_uri), tmp_path / f"list.{kind}"
    rows = [{"id": "x", "url": URLS[0]}, {"id": "", "url": URLS[1]}]
    match kind:
        case "csv":
            path.write_text("\n".join(["id,url", *(f"{row['id']},{row['url']}" for row in rows)]))
        case "jsonl":
            path.write_text("\n".join(json.dumps(row) for row in rows))
        case "parquet":
            pq.write_table(pa.Table.from_pylist(rows), path)

    assert ids(source_of(rows if kind == "iterable" else path, options)) == expected
