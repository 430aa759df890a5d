"""Texts as items: from lines, from a column of any table, from strings and dicts of a program."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.errors import SourceError
from clipfleet.sources import SourceLike
from clipfleet.sources.texts import TextSource, text_source_of

TEXTS = ["a photo of a cat", "./not/a/path", "https://h.example/a.jpg", "żółw, wielki", "/abs"]


def opened(source: SourceLike, text_column: str | None = None, id_column: str | None = None) -> TextSource:
    return text_source_of(source, text_column=text_column, id_column=id_column)


def rows(source: TextSource) -> list[dict[str, Any]]:
    batches = list(source.batches())
    assert all(tuple(batch.schema.names[3:]) == source.description.extra_columns for batch in batches)
    return [row for batch in batches for row in batch.to_pylist()]


def column(source: TextSource, name: str) -> list[Any]:
    return [row[name] for row in rows(source)]


@pytest.mark.parametrize("name", ["texts.txt", "texts.txt.gz"])
def test_lines(tmp_path: Path, name: str) -> None:
    data = "\n".join(["", *TEXTS, "  "]).encode()
    (tmp_path / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    source = opened(str(tmp_path / name))

    assert rows(source) == [
        {"item_index": n, "item_id": str(n), "uri": "", "text": text} for n, text in enumerate(TEXTS)
    ]
    assert (source.text_column, source.description.extra_columns) == ("text", ("text",))


@pytest.mark.parametrize("name", ["caption", "Text", "text"])
def test_a_column_of_a_csv_that_is_called_as_usual(tmp_path: Path, name: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(f"id,{name},url\na,one,http://h/1\nb,,http://h/2\nb,./three,\n")
    source = opened(path)

    assert column(source, name) == ["one", "", "./three"]
    assert column(source, "item_id") == ["a", "b", "b"]
    assert column(source, "uri") == ["", "", ""]
    assert column(source, "url") == ["http://h/1", "http://h/2", ""]
    assert source.text_column == name


def test_a_column_that_is_named(tmp_path: Path) -> None:
    (tmp_path / "t.tsv").write_text("Label\tcaption\nmine\tx\n")
    source = opened(tmp_path / "t.tsv", text_column="label", id_column="caption")

    assert rows(source) == [{"item_index": 0, "item_id": "x", "uri": "", "Label": "mine"}]


def test_jsonl_and_parquet(tmp_path: Path) -> None:
    (tmp_path / "t.jsonl").write_text('{"caption": "one", "n": 1}\n{"caption": null, "n": 2}\n{"n": 3}\n')
    table = pa.table({"caption": ["one", None, "./x"], "n": [1, 2, 3], "image": [b"a", b"b", b"c"]})
    pq.write_table(table, tmp_path / "t.parquet")

    assert [(row["caption"], row["n"]) for row in rows(opened(tmp_path / "t.jsonl"))] == [
        ("one", 1), ("", 2), ("", 3),
    ]  # fmt: skip
    parquet = opened(tmp_path / "t.parquet")
    assert column(parquet, "caption") == ["one", "", "./x"]
    assert parquet.description.extra_columns == ("caption", "n")


def test_an_errors_file_of_ours(tmp_path: Path) -> None:
    path = tmp_path / "_errors.jsonl"
    failed = {"item_index": 7, "item_id": "x", "uri": "", "error_code": "crashed", "error_detail": "d"}
    path.write_text(json.dumps(failed | {"text": "t"}))

    assert rows(opened(path)) == [{"item_index": 0, "item_id": "x", "uri": "", "text": "t"}]


@pytest.mark.parametrize(
    ("name", "content", "text_column", "problem"),
    [
        (
            "t.csv",
            "a,b\n1,2\n",
            None,
            "no column named text, caption; the columns are a, b: .*`text_column=`",
        ),
        ("t.csv", "a,b\n1,2\n", "c", "`text_column=` 'c' not found; the columns are a, b"),
        ("t.csv", "text\n", None, "no rows"),
        ("t.txt", "", None, "empty"),
        ("t.txt", "one\n", "text", "`text_column=` and `id_column=` apply to tables only"),
    ],
)
def test_what_has_no_texts(tmp_path: Path, name: str, content: str, text_column: Any, problem: str) -> None:
    (tmp_path / name).write_text(content)

    with pytest.raises(SourceError, match=problem):
        rows(opened(tmp_path / name, text_column))


def test_folders_and_images_are_no_texts(tmp_path: Path) -> None:
    with pytest.raises(SourceError, match=r"not a source of texts; texts come from a \.txt"):
        opened(tmp_path)
    with pytest.raises(SourceError, match="item 1 is bytes, not text"):
        rows(opened(["a", b"picture"]))
