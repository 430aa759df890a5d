"""Shards for WebDataset: each image with its row.

    00000.tar         NUMBER.jpg (or .png, ...), NUMBER.json with the row, and NUMBER.cls with the place of
                      the label among the names; NUMBER is the `item_index`
    classnames.txt    the names, one a line

Where rows have labels of several sets, or several labels, there is only the row.
"""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.exports.images import LACK, READERS, extension_of, image_of, no_image, stem_of
from clipfleet.exports.new_folder import ExportCounts
from clipfleet.parts import read_ahead
from clipfleet.parts.json_rows import json_dicts, json_line
from clipfleet.results.label_sets import label_sets_of
from clipfleet.results.rows import RowReader

NAMES = "classnames.txt"
_SHARD_BYTES = 1 << 30
_SHARD_ROWS = 10_000


def export_webdataset(reader: RowReader, folder: Path) -> ExportCounts:
    """Write the rows whose images can be read from here, see `image_of`.

    Raises:
        UsageError: there is none.
        SourceUnavailableError: see `image_of`.
    """
    label_set = _only_set(reader)
    numbers = {label: number for number, label in enumerate(label_set.labels)} if label_set else {}
    if label_set is not None:
        (folder / NAMES).write_text("".join(f"{label}\n" for label in label_set.labels), encoding="utf-8")
    schema = reader.read().schema
    rows = _Rows(reader, [name for name in schema.names if name != "embedding"])
    written = 0
    with _Shards(folder) as shards:
        for row, image in read_ahead(_with_image, rows, depth=READERS):
            if image is None:
                continue
            written += 1
            members = {extension_of(image): image, "json": json_line(row).encode()}
            if row.get("label") in numbers:
                members["cls"] = str(numbers[row["label"]]).encode()
            shards.add(stem_of(row), members)
    if not written:
        raise no_image(reader)
    return ExportCounts(written, left_out=rows.count - written, lack=LACK)


def _only_set(reader: RowReader) -> LabelSet | None:
    """The label set, if there is one of which each row has one label at most."""
    job = reader.job()
    if job is None or len(job.label_sets) != 1 or job.label_sets[0].kind is LabelKind.MULTI:
        return None
    return label_sets_of(reader)[0]


def _with_image(row: dict[str, Any]) -> tuple[dict[str, Any], bytes | None]:
    return row, image_of(row)


class _Rows:
    """The rows as objects, counted as they are read."""

    def __init__(self, reader: RowReader, columns: list[str]) -> None:
        self._reader, self._columns = reader, columns
        self.count = 0

    def __iter__(self) -> Iterator[dict[str, Any]]:
        for batch in self._reader.read(self._columns).batches:
            for row in json_dicts(batch):
                self.count += 1
                yield row


class _Shards(ExitStack):
    """Archives that are begun one after the other."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self._folder = folder
        self._archive: tarfile.TarFile | None = None
        self._shards = self._rows = self._bytes = 0

    def add(self, key: str, members: Mapping[str, bytes]) -> None:
        """Add the files of one row, by their extensions."""
        size_bytes = sum(map(len, members.values()))
        if self._archive is None or self._rows == _SHARD_ROWS or self._bytes + size_bytes > _SHARD_BYTES:
            self.close()
            path = self._folder / f"{self._shards:05d}.tar"
            self._archive = self.enter_context(tarfile.TarFile(path, "w"))
            self._shards, self._rows, self._bytes = self._shards + 1, 0, 0
        for extension, data in members.items():
            info = tarfile.TarInfo(f"{key}.{extension}")
            info.size = len(data)
            self._archive.addfile(info, io.BytesIO(data))
        self._rows += 1
        self._bytes += size_bytes
