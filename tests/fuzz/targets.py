"""What is fuzzed: each reader of something that a stranger, or a user in a hurry, has written.

A target takes bytes and ends: with what was read, or with an error that its caller is promised. Anything else
is a bug, an error of more than one line included: it would be shown to people.
"""

from __future__ import annotations

import atexit
import gzip
import hashlib
import io
import json
import os
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet.contract.jobs import DecodeRoute, Exif, PartFormat, read_job
from clipfleet.contract.parts import PartIdentity, count_rows, part_schema
from clipfleet.errors import ClipfleetError
from clipfleet.labels.sets import read_label_lines, read_label_set
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.job_file import generation_of, job_of, staged_files
from clipfleet.outputs.staged import StagedReader
from clipfleet.parts import part_files
from clipfleet.results.part_rows import PartRows
from clipfleet.sources import open_source
from clipfleet.sources.files import BY_NAME
from clipfleet.sources.stdin import StdinSource
from clipfleet.submit.options import read_job_spec
from tests.support.jobs import JOB_ID, make_job, stage_items
from tests.support.rows import classified, embedded, failed
from tests.support.shards import img2dataset_shard, tar_bytes

Run = Callable[[bytes], object]
_PIPE_BYTES = 60_000  # what a pipe holds without a reader


@dataclass(frozen=True)
class Target:
    """One reader."""

    name: str
    seeds: Callable[[], list[bytes]]  # what it reads without complaint
    make: Callable[[Path], Run]  # a folder of its own -> what reads bytes; raises what the reader may raise
    allowed: tuple[type[Exception], ...] = (ClipfleetError,)
    named: Callable[[Exception], str] = lambda error: type(error).__name__  # in figures

    def outcome(self, run: Run, data: bytes) -> str:
        """`ok`, or the error that was due; raises what was not."""
        try:
            run(data)
        except self.allowed as error:
            message = str(error)
            if not message.strip() or "\n" in message:
                raise AssertionError(f"not one line: {message!r}") from error
            return self.named(error)
        return "ok"


def _file(name: str, read: Callable[[Path], object]) -> Callable[[Path], Run]:
    def make(folder: Path) -> Run:
        path = folder / name

        def run(data: bytes) -> None:
            path.write_bytes(data)
            read(path)

        return run

    return make


def _validate(batches: Iterable[pa.RecordBatch]) -> None:
    for batch in batches:
        batch.validate(full=True)


def _source(ending: str) -> Callable[[Path], Run]:
    return _file(f"list{ending}", lambda path: _validate(open_source(str(path)).batches()))


def _stdin(_: Path) -> Run:
    def run(data: bytes) -> None:
        reading, writing = os.pipe()
        os.write(writing, data[:_PIPE_BYTES])
        os.close(writing)
        try:
            _validate(StdinSource(BY_NAME, descriptor=reading).batches())
        finally:
            os.close(reading)

    return run


def _read_label_set(path: Path) -> None:
    read_label_set(str(path))


def _read_job_file(path: Path) -> None:
    read_job_spec(path).made_label_sets()


def _in_output(name: str, read: Callable[[FolderOutput], object]) -> Callable[[Path], Run]:
    def make(folder: Path) -> Run:
        output = FolderOutput(folder / "out")
        path = Path(output.uri, name)
        path.parent.mkdir(parents=True)
        return _file(str(path), lambda _: read(output))(folder)

    return make


def _read_parts(output: FolderOutput) -> None:
    _validate(PartRows(output).read().batches)


def _read_part(part_format: PartFormat, job_id: str | None) -> Callable[[FolderOutput], None]:
    files = part_files(part_format, job_id)

    def read(output: FolderOutput) -> None:
        with files.open(output, files.name(0)) as part:
            try:
                part.footer()
            except ValueError:
                return  # no part of ours: whoever adopts parts asks for this
            _validate(part.batches())

    return read


def _detached_footer(folder: Path) -> Run:
    """The footer of a JSONL part, beside a part that is whole."""
    content = _jsonl_part()[0]
    name = objects.detached_footer(_JSONL_PART, JOB_ID, hashlib.sha256(content).hexdigest())
    run = _in_output(name, _read_part(PartFormat.JSONL, JOB_ID))(folder)
    FolderOutput(folder / "out").replace(_JSONL_PART, content)
    return run


def _staged_items(output: FolderOutput) -> None:
    with StagedReader(output, job_id=JOB_ID) as reader:
        reader.read_chunk(0, 1, 0).validate(full=True)
        reader.count_items(0, 1)


def _finished_at(output: FolderOutput) -> None:
    Path(output.uri, objects.SUCCESS).touch()
    PartRows(output).finished_at()


def _examples(output: FolderOutput) -> None:
    PartRows(output).failure_examples()


def _image(_: Path) -> Run:
    from clipfleet_worker.decode.decoder import Decoder
    from tests.fuzz.images import SPEC

    decoder = Decoder(max_pixels=4_000_000)

    def run(data: bytes) -> None:
        pixels = decoder.decode(data, SPEC, DecodeRoute.FAST).pixels
        assert pixels.shape == (SPEC.height, SPEC.width, 3)
        decoder.decode(data, SPEC, DecodeRoute.EXACT)

    return run


def _boxed_image(_: Path) -> Run:
    """As a worker reads AVIF and HEIF: whatever a file does to its child, there is an outcome."""
    from clipfleet_worker.decode.child_process import DecodeLimits
    from clipfleet_worker.decode.children import DecodeChildren
    from clipfleet_worker.decode.decoder import Decoder
    from clipfleet_worker.decode.step import DecodeStep
    from clipfleet_worker.settings import WorkerSettings
    from tests.fuzz.images import SPEC

    settings = WorkerSettings()
    decoder = Decoder(max_pixels=4_000_000)
    children = DecodeChildren(decoder, DecodeLimits(settings.decode_seconds, settings.decode_memory))
    atexit.register(children.kill_all)
    step = DecodeStep(decoder, children)

    def run(data: bytes) -> None:
        pixels = step.decode(data, SPEC, DecodeRoute.FAST, Exif.APPLY).pixels
        assert pixels.shape == (SPEC.height, SPEC.width, 3)

    return run


def _data_uri(_: Path) -> Run:
    from clipfleet_worker.fetch.routes import read_data_uri

    return lambda data: read_data_uri("data:" + data.decode(errors="replace"), 1_000_000)


def _images() -> list[bytes]:
    from tests.fuzz.images import image_seeds

    return image_seeds()


def _avifs() -> list[bytes]:
    from tests.fuzz.images import avif_seeds

    return avif_seeds()


def _heifs() -> list[bytes]:
    from tests.fuzz.images import heif_seeds

    return heif_seeds()


_JSONL_PART = objects.LAYOUT.part(0, PartFormat.JSONL)
_read_parquet_part = _read_part(PartFormat.PARQUET, JOB_ID)
_URLS = b"https://example.org/a.jpg\n/pictures/b.png\n\n s3://bucket/c%20d.jpg \ndata:,x\n"
_CSV = (
    b'url,id,"caption, long",score\nhttps://example.org/a.jpg,1,"says ""hi""",0.5\n'
    b'b.png,2,"two\nlines",\ns3://bucket/c.jpg,3,\xc3\xa9,7\n'
)
_RECORDS: list[dict[str, Any]] = [
    {"url": "https://example.org/a.jpg", "id": 1, "n": 1.5, "ok": True, "tags": ["a", {"b": None}]},
    {"url": "b.png", "id": "two", "n": 2, "ok": None, "more": "x" * 50},
    {"url": None, "id": 3, "n": "three", "big": 2**70},
]
_ERROR_FIELDS = ("item_index", "item_id", "uri", "error_code", "error_detail", "retryable")
_ERRORS = [
    dict(zip((*_ERROR_FIELDS, "caption"), values, strict=False))
    for values in (
        (4, "x", "https://example.org/4.jpg", "not_found", "404", False, "four"),
        (9, "y", "b.png", "timeout", "30 s", True),
    )
]
_YAML_LABELS = (
    b"name: animals\nlabels: [cat, 'dog', \"a b\"]\ntemplates:\n  - a photo of a {}\n  - '{}'\n",
    b"- cat\n- dog # a comment\n- yes\n- 2024-01-01\n",
    b"labels: &names [cat, dog]\ntemplates: a {}\n",
)
_JSON_LABELS = (b'{"labels": ["cat", "dog"], "templates": ["a {}"]}', b'["cat", "dog"]')
_YAML_JOB = (
    b"source: list.csv\noutput: out\nmodel: demo\nlabel_sets:\n  things: [pie, stadium]\n  kinds:\n"
    b"    labels: [food, building]\n    templates: ['a drawing of {}', '{}']\nembedding: true\ntop_k: 2\n"
)


def _lines(records: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(record) + "\n" for record in records).encode()


def _gzipped(data: bytes) -> bytes:
    return gzip.compress(data, mtime=0)


def _parquet(table: pa.Table, **options: Any) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, **options)
    return buffer.getvalue()


def _parquet_lists() -> list[bytes]:
    urls = pa.array([f"https://example.org/{number}.jpg" for number in range(40)])
    images = pa.array([b"\xff\xd8\xff" + bytes(number) for number in range(40)])
    structs = pa.array([{"bytes": b"x" * number, "path": f"{number}.png"} for number in range(40)])
    nested = pa.array([[{"a": number, "b": [1.5, None]}] for number in range(40)])
    return [
        _parquet(pa.table({"url": urls, "id": pa.array(range(40)), "nested": nested})),
        _parquet(pa.table({"image": images, "label": urls}), compression="zstd", row_group_size=16),
        _parquet(pa.table({"image": structs, "url": urls}), compression="none"),
        _parquet(pa.table({"url": urls.dictionary_encode(), "x": images}), use_dictionary=False),
    ]


def _tars() -> list[bytes]:
    return [
        img2dataset_shard(range(3)),
        tar_bytes([("a/b.jpg", b"x" * 600), ("a/b.cls", b"7"), ("a/b.json", b'{"k": 1}'), ("c.d.png", b"")]),
    ]


@contextmanager
def _output() -> Iterator[FolderOutput]:
    with TemporaryDirectory() as folder:
        yield FolderOutput(Path(folder))


def _part(part_format: PartFormat) -> list[bytes]:
    """A part, and what else was written with it, of each sort of row."""
    rows = [embedded(0, 0.5, 0.25), failed(1), classified(2)]
    table = pa.Table.from_pylist(rows, part_schema(2, [pa.field("caption", pa.string())]))
    files = part_files(part_format, JOB_ID)
    with _output() as output:
        with output.scratch() as path:
            files.write(output, path, PartIdentity(JOB_ID, 0, 0), table, count_rows(table))
            output.publish(path, files.name(0))
        footers = [one.read_bytes() for one in Path(output.uri, "_clipfleet").rglob("*") if one.is_file()]
        return [Path(output.uri, files.name(0)).read_bytes(), *footers]


def _parquet_part() -> list[bytes]:
    return _part(PartFormat.PARQUET)[:1]


def _jsonl_part() -> list[bytes]:
    return _part(PartFormat.JSONL)


def _staged() -> list[bytes]:
    with _output() as output:
        stage_items(output, make_job(), [f"/p/{number}.jpg" for number in range(30)], caption=["x"] * 30)
        return [Path(output.uri, objects.LAYOUT.staged_file(0, 1)).read_bytes()]


def _jobs() -> list[bytes]:
    return [
        make_job(labels=("cat", "dog")).model_dump_json().encode(),
        make_job(part_format=PartFormat.JSONL).model_dump_json().encode(),
    ]


_STAGED_JSON = b'{"files": [[0, 1], [1, 256]], "items": 700, "is_sealed": true}'
_GENERATION_JSON = b'{"number": 2, "codes": ["timeout"]}'
_MANIFEST = json.dumps(
    {
        "job": {"job_id": "job"},
        "finished_at": "2026-11-24T12:00:00+00:00",
        "total": 3,
        "parts": [{"name": "data/part-00000000.parquet", "rows": 3, "failed": 0}],
    }
).encode()

TARGETS: dict[str, Target] = {
    target.name: target
    for target in (
        Target("txt", lambda: [_URLS], _source(".txt")),
        Target("txt.gz", lambda: [_gzipped(_URLS)], _source(".txt.gz")),
        Target("csv", lambda: [_CSV], _source(".csv")),
        Target("tsv", lambda: [_CSV.replace(b",", b"\t")], _source(".tsv")),
        Target("jsonl", lambda: [_lines(_RECORDS)], _source(".jsonl")),
        Target("jsonl.gz", lambda: [_gzipped(_lines(_RECORDS))], _source(".jsonl.gz")),
        Target("_errors.jsonl", lambda: [_lines(_ERRORS)], _source("-errors.jsonl")),
        Target("parquet", _parquet_lists, _source(".parquet")),
        Target("tar", _tars, _source(".tar")),
        Target("stdin", lambda: [_URLS, _lines(_RECORDS)], _stdin),
        Target("label-set.yaml", lambda: [*_YAML_LABELS], _file("set.yaml", _read_label_set)),
        Target("label-set.json", lambda: [*_JSON_LABELS], _file("set.json", _read_label_set)),
        Target("labels.txt", lambda: [b"cat\n\n dog \n\xc3\xa9\n"], _file("labels.txt", read_label_lines)),
        Target("job.yaml", lambda: [_YAML_JOB], _file("job.yaml", _read_job_file)),
        Target("part.parquet", _parquet_part, _in_output(objects.LAYOUT.part(0), _read_parts)),
        Target("part.parquet footer", _parquet_part, _in_output(objects.LAYOUT.part(0), _read_parquet_part)),
        Target("part.jsonl", lambda: _jsonl_part()[:1], _in_output(_JSONL_PART, _read_parts)),
        Target("part.jsonl footer", lambda: _jsonl_part()[1:], _detached_footer),
        Target("staged items", _staged, _in_output(objects.LAYOUT.staged_file(0, 1), _staged_items)),
        Target("job.json", _jobs, lambda _: read_job),
        Target("job.json of an output", _jobs, _in_output(objects.JOB_FILE, job_of)),
        Target("staged.json", lambda: [_STAGED_JSON], _in_output(objects.STAGED_FILES, staged_files)),
        Target("generation.json", lambda: [_GENERATION_JSON], _in_output(objects.GENERATION, generation_of)),
        Target("_manifest.json", lambda: [_MANIFEST], _in_output(objects.MANIFEST, _finished_at)),
        Target(
            "errors.jsonl of an output",
            lambda: [_lines(_ERRORS)],
            _in_output(objects.LAYOUT.errors, _examples),
        ),
    )
}


def _planted(folder: Path) -> Run:
    """What a producer plants in Redis, by hand: which is said by the hash of the bytes."""
    from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
    from tests.support.planting import SITUATIONS, Case, World, random_plant

    server = EmbeddedValkey(folder)
    server.start()
    atexit.register(server.stop)
    world = World(server.url)
    cases = [Case(situation, world) for situation in SITUATIONS]

    def run(data: bytes) -> None:
        seed = int.from_bytes(hashlib.sha256(data).digest()[:8])
        cases[seed % len(cases)].check(random_plant(seed))

    return run


def server_targets() -> dict[str, Target]:
    """Those that need a Redis server, and the worker's extra."""
    return {"planted": Target("planted", lambda: [b"seed"], _planted, ())}


def worker_targets() -> dict[str, Target]:
    """Those that need the worker's extra."""
    from clipfleet_worker.failures import ItemFailure

    def code(error: Exception) -> str:
        assert isinstance(error, ItemFailure)
        return error.error.code

    uris = [b"image/png;base64,iVBORw0KGgo=", b",hello%20world", b";base64,-_-_"]
    return {
        "image": Target("image", _images, _image, (ItemFailure,), code),
        "avif": Target("avif", _avifs, _boxed_image, (ItemFailure,), code),
        "heif": Target("heif", _heifs, _boxed_image, (ItemFailure,), code),
        "data-uri": Target("data-uri", lambda: uris, _data_uri, (ItemFailure,)),
    }
