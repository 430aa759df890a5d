"""What every source promises: the same rows for the same images, in order, in one schema."""

from __future__ import annotations

import gzip
import io
import json
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.contract.parts import INLINE_COLUMN
from clipfleet.sources import ReadOptions, Source, source_of
from clipfleet.sources.sampled import SampledSource
from clipfleet.sources.stdin import StdinSource
from clipfleet.sources.texts import text_source_of
from tests.support.s3 import S3Bucket
from tests.support.shards import tar_bytes
from tests.support.sources import items

NAMES = ("a b.jpg", "sub/c.png", "w\u00f6rter.webp")
NOTES = ("007", "x,\ty", "two\nlines")


@dataclass(frozen=True)
class Pile:
    """A folder with the images; lists go there, too."""

    folder: Path
    request: pytest.FixtureRequest

    @property
    def s3(self) -> S3Bucket:
        bucket: S3Bucket = self.request.getfixturevalue("s3")
        return bucket

    def write(self, name: str, data: bytes) -> str:
        (self.folder / name).write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
        return str(self.folder / name)

    def put(self, data: bytes, key: str) -> str:
        return self.s3.put(key, data)


@pytest.fixture
def pile(tmp_path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Pile:
    monkeypatch.chdir(tmp_path)
    for name in NAMES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return Pile(tmp_path, request)


def records(field: str = "url") -> list[dict[str, str]]:
    return [{field: n, "id": f"id {n}", "note": note} for n, note in zip(NAMES, NOTES, strict=True)]


def separated(separator: str) -> bytes:
    rows = [["url", "id", "note"], *(list(record.values()) for record in records())]
    return "".join(separator.join(f'"{field}"' for field in row) + "\n" for row in rows).encode()


def lines() -> bytes:
    return "".join(f"{name}\n" for name in NAMES).encode()


def json_lines() -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records()).encode()


def parquet(name: str = "url") -> bytes:
    held = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(records(name)), held)
    return held.getvalue()


def from_stdin(data: bytes) -> Source:
    reading, writing = os.pipe()
    os.write(writing, data)
    os.close(writing)
    return StdinSource(ReadOptions(), descriptor=reading)


def put_images(pile: Pile) -> str:
    for name in NAMES:
        pile.s3.put(f"p/{name}", name.encode())
    return f"{pile.s3.uri}/p"


WITH_IDS = [f"id {name}" for name in NAMES]
BY_INDEX = ["0", "1", "2"]
Open = Callable[[Pile], Any]

# Kind -> the source, the ids of its items, and whether it has columns of its own.
KINDS: dict[str, tuple[Open, list[str], bool]] = {
    "folder": (lambda pile: pile.folder, list(NAMES), False),
    "pattern": (lambda pile: f"{pile.folder}/**/*.*", list(NAMES), False),
    "txt": (lambda pile: pile.write("l.txt", lines()), BY_INDEX, False),
    "txt.gz": (lambda pile: pile.write("l.txt.gz", lines()), BY_INDEX, False),
    "csv": (lambda pile: pile.write("l.csv", separated(",")), WITH_IDS, True),
    "csv.gz": (lambda pile: pile.write("l.csv.gz", separated(",")), WITH_IDS, True),
    "tsv": (lambda pile: pile.write("l.tsv", separated("\t")), WITH_IDS, True),
    "TSV.gz": (lambda pile: pile.write("l.TSV.gz", separated("\t")), WITH_IDS, True),
    "jsonl": (lambda pile: pile.write("l.jsonl", json_lines()), WITH_IDS, True),
    "JSONL.gz": (lambda pile: pile.write("l.JSONL.gz", json_lines()), WITH_IDS, True),
    "ndjson.gz": (lambda pile: pile.write("l.ndjson.gz", json_lines()), WITH_IDS, True),
    "parquet": (lambda pile: pile.write("l.parquet", parquet()), WITH_IDS, True),
    "stdin": (lambda _: from_stdin(lines()), BY_INDEX, False),
    "stdin, JSON": (lambda _: from_stdin(json_lines()), WITH_IDS, True),
    "list": (lambda _: list(NAMES), BY_INDEX, False),
    "list of dicts": (lambda _: records(), WITH_IDS, True),
    "generator": (lambda _: iter(records()), WITH_IDS, True),
    "data frame": (lambda _: pandas.DataFrame(records()), WITH_IDS, True),
    "Arrow table": (lambda _: pa.Table.from_pylist(records()), WITH_IDS, True),
    "s3 prefix": (put_images, list(NAMES), False),
    "s3 pattern": (lambda pile: f"{put_images(pile)}/**/*.*", list(NAMES), False),
    "s3 csv": (lambda pile: pile.put(separated(","), "p/l.csv"), WITH_IDS, True),
    "s3 parquet": (lambda pile: pile.put(parquet(), "p/l.parquet"), WITH_IDS, True),
}


# What names one image; in "s3" it exists.
ONE_IMAGE: dict[str, tuple[Open, str]] = {
    "path": (lambda pile: pile.folder / "sub/c.png", "c.png"),
    "file URL": (lambda pile: f"file://{pile.folder}/sub/c.png", "c.png"),
    "s3": (lambda pile: pile.put(b"x", "p/c.png"), "c.png"),
    "https": (lambda _: "https://user:s3cret@h.example/p/c.png?size=9#x", "c.png"),
    "https, nothing after the host": (lambda _: "https://h.example/?id=c.png", "0"),
    "http, any name": (lambda _: "HTTP://h.example/p/*.c", "*.c"),
    "data": (lambda _: "data:image/png;base64,AAAA", "0"),
}


def opened(pile: Pile, kind: str, sample: int | None = None) -> Source:
    given = KINDS[kind][0](pile)
    if not isinstance(given, StdinSource):
        return source_of(given, ReadOptions(sample=sample))
    return given if sample is None else SampledSource(given, sample)


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_images_are_the_same_rows_in_the_same_order(pile: Pile, kind: str) -> None:
    found = items(opened(pile, kind))

    _, ids, has_columns = KINDS[kind]
    base = f"{pile.s3.uri}/p" if kind.startswith("s3") else pile.folder
    assert [row["uri"] for row in found] == [f"{base}/{name}" for name in NAMES]
    assert [row["item_id"] for row in found] == ids
    assert [row.get("note") for row in found] == (list(NOTES) if has_columns else [None] * 3)
    assert all(not row.get(INLINE_COLUMN) for row in found)


@pytest.mark.parametrize("kind", sorted({*KINDS} - {"stdin", "stdin, JSON", "generator"}))
def test_the_same_source_has_the_same_description(pile: Pile, kind: str) -> None:
    given = KINDS[kind][0](pile)

    first, second = (source_of(given, ReadOptions()).description for _ in range(2))
    assert first == second


@pytest.mark.parametrize("kind", KINDS)
def test_a_sample_is_the_same_rows_each_time_in_the_order_of_the_source(pile: Pile, kind: str) -> None:
    every = items(opened(pile, kind))
    source = opened(pile, kind, 2)

    found = items(source)

    assert [row for row in every if row in found] == found
    assert isinstance(source, SampledSource) and (len(found), source.whole_items) == (2, 3)
    assert items(opened(pile, kind, 2)) == found
    assert source.description.extra_columns == opened(pile, kind).description.extra_columns
    others = [opened(pile, kind, sample).description for sample in (None, 1)]
    assert source.description not in others


@pytest.mark.parametrize("kind", ONE_IMAGE)
def test_one_image_is_a_source_of_one_row(pile: Pile, kind: str) -> None:
    make, item_id = ONE_IMAGE[kind]
    given = make(pile)
    source = source_of(given, ReadOptions())

    assert items(source) == [{"item_id": item_id, "uri": str(given).removeprefix("file://")}]
    assert source.description == source_of(given, ReadOptions()).description
    assert "s3cret" not in source.description.model_dump_json()


@pytest.mark.parametrize("place", ["local", "s3"])
def test_images_inside_a_shard_are_rows_in_its_order(pile: Pile, place: str) -> None:
    data = tar_bytes((f"{number}.{end}", b"x") for number in range(3) for end in ("jpg", "json"))
    source = pile.write("shard.tar", data) if place == "local" else pile.put(data, "shard.tar")

    found = items(source_of(source, ReadOptions()))

    assert [row["item_id"] for row in found] == ["0", "1", "2"]
    assert all(row["uri"].startswith("tar+") for row in found)
    sampled = items(source_of(source, ReadOptions(sample=2)))
    assert len(sampled) == 2 and [row for row in found if row in sampled] == sampled


def as_texts(data: bytes) -> bytes:
    return data.replace(b'"url"', b'"text"')


TEXTS: dict[str, Open] = {
    "txt": lambda pile: pile.write("t.txt", lines()),
    "csv": lambda pile: pile.write("t.csv", as_texts(separated(","))),
    "tsv": lambda pile: pile.write("t.tsv", as_texts(separated("\t"))),
    "jsonl": lambda pile: pile.write("t.jsonl", as_texts(json_lines())),
    "parquet": lambda pile: pile.write("t.parquet", parquet("text")),
    "list": lambda _: list(NAMES),
    "generator": lambda _: iter(records("text")),
}


@pytest.mark.parametrize("kind", TEXTS)
def test_the_same_texts_are_the_same_rows(pile: Pile, kind: str) -> None:
    found = items(text_source_of(TEXTS[kind](pile), text_column=None, id_column=None))

    assert [(row["uri"], row["text"]) for row in found] == [("", name) for name in NAMES]
    sampled = items(text_source_of(TEXTS[kind](pile), text_column=None, id_column=None, sample=2))
    assert len(sampled) == 2 and [row for row in found if row in sampled] == sampled
