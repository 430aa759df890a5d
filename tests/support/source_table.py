"""A few images and faults, given as every kind of source, with the rows that are due."""

from __future__ import annotations

import base64
import csv
import gzip
import io
import json
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from tests.support.http_site import HttpSite
from tests.support.images import encoded, make_image
from tests.support.s3 import S3Bucket
from tests.support.shards import tar_bytes

GOOD_JPEG, GOOD_PNG = encoded(make_image(1)), encoded(make_image(2), "PNG")
GOOD_WEBP = encoded(make_image(3), "WEBP")
TRUNCATED = encoded(make_image(4))[:-700]
PAGE = b"<html>no picture</html>"
FILES = {
    "a good one.jpg": GOOD_JPEG,
    "empty.jpg": b"",
    "sub/good.png": GOOD_PNG,
    "sub/page.jpg": PAGE,
    "sub/truncated.jpg": TRUNCATED,
    "wörter.webp": GOOD_WEBP,
}
CODES = {"empty.jpg": "empty", "sub/page.jpg": "not_an_image", "sub/truncated.jpg": "broken_image"}


@dataclass(frozen=True)
class Expected:
    """What a row must say."""

    item_id: str
    error_code: str | None = None
    columns: dict[str, Any] = field(default_factory=dict)  # the source's own, by their names in the parts


@dataclass(frozen=True)
class Given:
    """A source as a user names it, and the rows it must lead to, in order."""

    source: Any  # what `Client.classify` takes
    rows: Sequence[Expected]
    stdin: bytes | None = None
    base_uri: str | None = None
    url_column: str | None = None


@dataclass(frozen=True)
class Place:
    """Where a case may put its files; the worker may read all of it."""

    folder: Path
    bucket: S3Bucket
    site: HttpSite


@dataclass(frozen=True)
class Record:
    """A line of a manifest."""

    item_id: str
    uri: str
    error_code: str | None


def _records(place: Place) -> list[Record]:
    """URLs of all kinds and all kinds of faults; some ids are there more than once."""
    for name, data in FILES.items():
        path = place.folder / "images" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    key = place.bucket.put("loose/a b+c.jpg", GOOD_JPEG)
    inline = "data:image/png;base64," + base64.b64encode(GOOD_PNG).decode()
    return [
        Record("same", "images/a good one.jpg", None),
        Record("same", "images/missing.jpg", "not_found"),
        Record("2", str(place.folder / "images/sub/good.png"), None),
        Record("page", place.site.url("/html"), "not_an_image"),
        Record("same", key, None),
        Record("no key", f"{place.bucket.uri}/loose/missing.jpg", "not_found"),
        Record("", inline, None),
        Record("gone", place.site.url("/status/404"), "not_found"),
        Record("down", place.site.url("/status/503"), "server_error"),
        Record("broken off", place.site.url("/truncated"), "incomplete_body"),
        Record("nobody", "http://127.0.0.1:1/a.jpg", "connect_failed"),
        Record("strange", "ftp://example.org/a.jpg", "scheme_refused"),
        Record("nothing", "", "bad_uri"),
        Record("outside", "../../../etc/hostname", "path_refused"),
        Record("inside", "http://169.254.169.254/latest", "address_refused"),
        Record("same", "images/wörter.webp", None),
    ]


def _absolute(place: Place) -> list[Record]:
    """Those that mean the same wherever they are read."""
    return [record for record in _records(place) if not record.uri.startswith(("images/", "../"))]


def _columns(number: int) -> dict[str, str]:
    """The source's own columns; two of them have names of ours."""
    return {"label": f"mine {number}", "status": "todo", "note": f'007, "{number}"'}


def _expected(records: Iterable[Record]) -> list[Expected]:
    renamed = {"label": "source_label", "status": "source_status", "note": "note"}
    return [
        Expected(
            record.item_id or str(number),  # an empty id counts as missing
            record.error_code,
            {renamed[n]: text for n, text in _columns(number).items()},
        )
        for number, record in enumerate(records)
    ]


def _table(records: Iterable[Record]) -> list[dict[str, str]]:
    return [
        {"id": record.item_id, "url": record.uri, **_columns(number)} for number, record in enumerate(records)
    ]


def _separated(records: Sequence[Record], delimiter: str) -> bytes:
    rows = _table(records)
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), delimiter=delimiter, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()


def _json_lines(records: Sequence[Record]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in _table(records)).encode()


def _parquet(records: Sequence[Record]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(_table(records)), buffer, row_group_size=5)
    return buffer.getvalue()


def _plain(records: Sequence[Record]) -> bytes:
    """One URI per line; an empty line is none."""
    return "".join(f"{record.uri}\n" for record in records if record.uri).encode()


def _plain_expected(records: Sequence[Record]) -> list[Expected]:
    codes = [record.error_code for record in records if record.uri]
    return [Expected(str(number), code) for number, code in enumerate(codes)]


MANIFESTS: dict[str, Callable[[Sequence[Record]], bytes]] = {
    "txt": _plain,
    "csv": lambda records: _separated(records, ","),
    "tsv": lambda records: _separated(records, "\t"),
    "jsonl": _json_lines,
    "parquet": _parquet,
}


def _manifest(kind: str, *, gzipped: bool = False, in_bucket: bool = False) -> Callable[[Place], Given]:
    def make(place: Place) -> Given:
        records = _absolute(place) if in_bucket else _records(place)
        data = MANIFESTS[kind](records)
        name = f"list.{kind}"
        if gzipped:
            data, name = gzip.compress(data), f"{name}.gz"
        expected = _plain_expected(records) if kind == "txt" else _expected(records)
        if in_bucket:
            return Given(place.bucket.put(f"lists/{name}", data), expected)
        (place.folder / name).write_bytes(data)
        return Given(place.folder / name, expected)

    return make


def _based(place: Place) -> Given:
    """Bare keys, and a column without a usual name."""
    for name, data in FILES.items():
        place.bucket.put(f"based/{name}", data)
    names = [*FILES, "missing.jpg"]
    text = "where,shelf\n" + "".join(f"{name},{number}\n" for number, name in enumerate(names))
    (place.folder / "keys.csv").write_text(text)
    codes = {**CODES, "missing.jpg": "not_found"}
    rows = [Expected(str(n), codes.get(name), {"shelf": str(n)}) for n, name in enumerate(names)]
    return Given(place.folder / "keys.csv", rows, base_uri=f"{place.bucket.uri}/based/", url_column="where")


def _folder(place: Place) -> Given:
    _records(place)
    return Given(place.folder / "images", [Expected(name, CODES.get(name)) for name in sorted(FILES)])


def _glob(place: Place) -> Given:
    _records(place)
    names = [name for name in sorted(FILES) if name.startswith("sub/")]
    rows = [Expected(name.removeprefix("sub/"), CODES.get(name)) for name in names]
    return Given(str(place.folder / "images" / "sub" / "*"), rows)


def _one_image(place: Place) -> Given:
    _records(place)
    return Given(place.folder / "images" / "wörter.webp", [Expected("wörter.webp")])


def _one_url(place: Place) -> Given:
    return Given(place.site.url("/status/404"), [Expected("404", "not_found")])


def _bucket_prefix(place: Place) -> Given:
    for name, data in FILES.items():
        place.bucket.put(f"prefix/{name}", data)
    place.bucket.put("prefix/readme.txt", b"no picture, by its name")
    return Given(f"{place.bucket.uri}/prefix/", [Expected(name, CODES.get(name)) for name in sorted(FILES)])


def _stdin_lines(place: Place) -> Given:
    records = _absolute(place)
    return Given("-", _plain_expected(records), stdin=_plain(records))


def _stdin_json(place: Place) -> Given:
    records = _absolute(place)
    return Given("-", _expected(records), stdin=_json_lines(records))


def _urls(place: Place) -> Given:
    records = _absolute(place)
    rows = [Expected(str(number), record.error_code) for number, record in enumerate(records)]
    return Given([record.uri for record in records], rows)


def _dicts(place: Place) -> Given:
    records = _absolute(place)
    return Given(_table(records), _expected(records))


def _paths(place: Place) -> Given:
    _records(place)
    paths = [place.folder / "images" / name for name in [*FILES, "missing.jpg"]]
    codes = [*(CODES.get(name) for name in FILES), "not_found"]
    return Given(paths, [Expected(str(number), code) for number, code in enumerate(codes)])


def _bytes(_place: Place) -> Given:
    rows = [Expected(str(number), CODES.get(name)) for number, name in enumerate(FILES)]
    return Given(list(FILES.values()), rows)


def _stream(place: Place) -> Given:
    given = _bytes(place)
    return Given((data for data in given.source), given.rows)


def _shards(place: Place, *, in_bucket: bool) -> Given:
    """Two archives as img2dataset lays them out: `{key}.jpg`, `{key}.txt`, `{key}.json`."""
    rows, uri = [], place.bucket.uri if in_bucket else str(place.folder)
    images = [GOOD_JPEG, TRUNCATED, GOOD_JPEG, b"", GOOD_JPEG]
    for shard, slice_ in enumerate((images[:3], images[3:])):
        members = []
        for number, data in enumerate(slice_):
            key = f"{shard:05d}{number:04d}"
            facts = {"url": f"https://example.org/{key}.jpg", "key": key, "status": "success", "width": 96}
            members += [
                (f"{key}.jpg", data),
                (f"{key}.txt", f"caption of {key}".encode()),
                (f"{key}.json", json.dumps(facts, indent=4).encode()),
            ]
            own = {"txt": f"caption of {key}", "url": facts["url"], "key": key}
            code = {TRUNCATED: "broken_image", b"": "empty"}.get(data)
            rows.append(Expected(key, code, own | {"source_status": "success", "source_width": 96}))
        if in_bucket:
            place.bucket.put(f"{shard:05d}.tar", tar_bytes(members))
        else:
            (place.folder / f"{shard:05d}.tar").write_bytes(tar_bytes(members))
    return Given(f"{uri}/{{00000..00001}}.tar", rows)


def _image_parquet(place: Place) -> Given:
    """As Hugging Face's datasets keep them: a struct of bytes and path."""
    struct = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    cells = [*({"bytes": data, "path": name} for name, data in FILES.items()), {"bytes": None, "path": None}]
    pq.write_table(
        pa.table({"image": pa.array(cells, struct), "label": pa.array(range(len(cells)), pa.int64())}),
        place.folder / "images.parquet",
        row_group_size=2,
    )
    codes = [*((name, CODES.get(name)) for name in FILES), (str(len(FILES)), "empty")]
    rows = [Expected(name, code, {"source_label": number}) for number, (name, code) in enumerate(codes)]
    return Given(place.folder / "images.parquet", rows)


# All kinds of lists in buckets are in tests/integration/test_s3_sources.py, all gzipped ones in unit tests.
SOURCES: dict[str, Callable[[Place], Given]] = {
    "folder": _folder,
    "glob": _glob,
    "image": _one_image,
    **{kind: _manifest(kind) for kind in MANIFESTS},
    "csv.gz": _manifest("csv", gzipped=True),
    "csv with keys": _based,
    "stdin": _stdin_lines,
    "stdin of json": _stdin_json,
    "url": _one_url,
    "urls": _urls,
    "dicts": _dicts,
    "paths": _paths,
    "bytes": _bytes,
    "generator": _stream,
    "tar shards": partial(_shards, in_bucket=False),
    "image parquet": _image_parquet,
    "s3 prefix": _bucket_prefix,
    "s3 csv": _manifest("csv", in_bucket=True),
    "s3 jsonl.gz": _manifest("jsonl", gzipped=True, in_bucket=True),
    "s3 tar shards": partial(_shards, in_bucket=True),
}
