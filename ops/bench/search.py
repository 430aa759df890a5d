"""Search and duplicates at size: the time of an exact search, and whether all planted groups are found.

    python -m ops.bench.search [--rows 1000000] [--duplicates-of 100000]

A store and an output hold the same made-up vectors of length 512. An exact search is compared with reading
the column of the vectors in the same process: of the store through Lance, of the output from Parquet files.
Both find the files in the cache of the operating system, and take turns; the best of several rounds counts.
A second output has planted pairs, each an item and a copy with noise: these groups must be found, and nothing
else. The peaks are those of processes of their own.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa

from clipfleet.labels.metrics import unit
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.places import open_rows
from clipfleet.results.rows import RowReader, batches_with_vectors
from clipfleet.results.store_rows import StoreRows
from clipfleet.search.duplicates import duplicates
from clipfleet.search.searching import Wanted, search
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import EmbeddedBy, store_place
from clipfleet.store.rows import store_schema
from ops.bench.environment import clean_environment
from ops.bench.process_cost import peak_bytes
from ops.bench.report import Report, bench_parser, positive
from tests.support.documents import ROOT
from tests.support.stored_vectors import place_vectors, vector_rows

MOST_RATIO = 2.0
MOST_BYTES = 1_000_000_000
GROUPS = 500

_DIMENSION, _TOP, _ROUNDS = 512, 50, 3
_ROWS_PER_PART = 8192
_ROWS_PER_COMMIT = 1 << 18
_FINGERPRINT = "0123456789abcdef"
_LISTED_AT = datetime(2026, 11, 1, tzinfo=UTC)
_NOISE = 0.002  # of each number: cosines of about 0.999


def made_up(first: int, rows: int) -> np.ndarray:
    """Vectors about as those of images are: their mean is far from 0, float32 (rows, 512)."""
    centre = unit(np.random.default_rng(7).standard_normal((1, _DIMENSION), np.float32))
    own = np.random.default_rng(first + 1).standard_normal((rows, _DIMENSION), np.float32)
    return unit(centre + own / _DIMENSION**0.5)


def blocks(rows: int, size: int = _ROWS_PER_PART) -> Iterator[tuple[int, int]]:
    """The first row and the number of rows of each block."""
    for first in range(0, rows, size):
        yield first, min(size, rows - first)


def make_output(uri: str, rows: int) -> None:
    """An output whose rows have made-up vectors."""
    parts = (vector_rows(first, made_up(first, count), _FINGERPRINT) for first, count in blocks(rows))
    place_vectors(FolderOutput(Path(uri)), parts)


def make_store(uri: str, rows: int) -> None:
    """A store with the rows of `make_output`."""
    place = store_place(uri)
    place.create(EmbeddedBy(model="demo", fingerprint=_FINGERPRINT, dimension=_DIMENSION))
    dataset = VectorDataset.create(place.dataset_uri(_FINGERPRINT), store_schema(_DIMENSION))
    for first, count in blocks(rows, _ROWS_PER_COMMIT):
        stored = (_stored(first + start, some) for start, some in blocks(count))
        dataset = dataset.replace(np.empty(0, np.uint64), stored, {})


def _stored(first: int, count: int) -> pa.RecordBatch:
    rows, schema = vector_rows(first, made_up(first, count), _FINGERPRINT), store_schema(_DIMENSION)
    columns = {name: rows[name].combine_chunks() for name in rows.column_names}
    columns["digest"] = pa.array(range(first, first + count), pa.int64())
    columns["listed_at"] = pa.repeat(pa.scalar(_LISTED_AT, schema.field("listed_at").type), count)
    found = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema]
    return pa.RecordBatch.from_arrays(found, schema=schema)


def make_duplicates(uri: str, rows: int) -> set[tuple[int, int]]:
    """An output with `GROUPS` planted pairs; returns them by the numbers of their rows."""
    vectors = np.concatenate([made_up(first, count) for first, count in blocks(rows)])
    rng = np.random.default_rng(3)
    places = np.sort(rng.permutation(rows)[: 2 * GROUPS].reshape(GROUPS, 2), axis=1)
    noise = rng.normal(0, _NOISE, (GROUPS, _DIMENSION))
    vectors[places[:, 1]] = vectors[places[:, 0]] + noise
    parts = (
        vector_rows(first, vectors[first : first + count], _FINGERPRINT) for first, count in blocks(rows)
    )
    place_vectors(FolderOutput(Path(uri)), parts)
    return {(int(one), int(other)) for one, other in places}


def seconds_of(work: Callable[[], object]) -> float:
    """How long it takes."""
    began = time.monotonic()
    work()
    return time.monotonic() - began


def read_column(reader: RowReader) -> None:
    """Read all vectors, and do nothing with them."""
    if isinstance(reader, StoreRows):
        for _ in reader.dataset.batches(["embedding"]):
            pass
        return
    for _ in batches_with_vectors(reader.read(["embedding"])):
        pass


def run_search(uri: str) -> None:
    """Search and read in turns, in this process; prints the best of both, and the peak."""
    reader, query = open_rows(uri), made_up(0, 1)[0]
    searches, reads = [], []
    for _ in range(_ROUNDS):
        reads.append(seconds_of(lambda: read_column(reader)))
        searches.append(seconds_of(lambda: search(reader, query, Wanted(_TOP), exact=True)))
    first = search(reader, query, Wanted(1), exact=True).rows["item_id"][0].as_py()
    if first != "item-00000000":
        raise SystemExit(f"{uri}: item 0 is not the nearest one to itself, but {first}")
    print(min(searches), min(reads), peak_bytes(os.getpid()))


def run_duplicates(uri: str) -> None:
    """Find the duplicates, in this process; prints seconds, the peak and the groups."""
    began = time.monotonic()
    with duplicates(open_rows(uri), 0.97) as found:
        groups = ["-".join(str(int(one.item_id[5:])) for one in group.members) for group in found.groups]
    print(time.monotonic() - began, peak_bytes(os.getpid()), *groups)


def in_process(what: str, uri: str) -> list[str]:
    """What this module prints in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "ops.bench.search", what, uri],
        cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True, check=True,
    ).stdout.split()  # fmt: skip


def measure_search(report: Report, folder: str, rows: int) -> None:
    """Search a store and an output."""
    table = report.table(
        {
            "place": "<8",
            "rows": "12,",
            "search s": "9.2f",
            "read s": "9.2f",
            "ratio": "6.2f",
            "peak MB": "8.0f",
        }
    )
    for kind, make in (("store", make_store), ("output", make_output)):
        uri = f"{folder}/{kind}"
        make(uri, rows)
        searched, read, peak = map(float, in_process("--search", uri))
        table.row(kind, rows, searched, read, searched / read, peak / 1e6)
        report.goal(f"exact search of the {kind} / reading its column", searched / read, at_most=MOST_RATIO)
        report.goal(f"peak bytes of a search of the {kind}", peak, at_most=MOST_BYTES)


def measure_duplicates(report: Report, folder: str, rows: int) -> None:
    """Find planted groups."""
    table = report.table(
        {"rows": "12,", "seconds": "8.1f", "peak MB": "8.0f", "planted": "8,", "found": "8,", "others": "8,"}
    )
    planted = make_duplicates(f"{folder}/duplicates", rows)
    seconds, peak, *groups = in_process("--duplicates", f"{folder}/duplicates")
    found = {tuple(map(int, group.split("-"))) for group in groups}
    others = len(found - planted)
    table.row(rows, float(seconds), int(peak) / 1e6, len(planted), len(found & planted), others)
    report.goal("planted groups that are found", len(found & planted), at_least=len(planted))
    report.goal("other groups", others, at_most=0)


def main() -> int:
    """Print tables; return 1 if a goal is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--rows", type=positive, default=1_000_000)
    parser.add_argument("--duplicates-of", type=positive, default=100_000)
    parser.add_argument("--search", metavar="URI", help=argparse.SUPPRESS)
    parser.add_argument("--duplicates", metavar="URI", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.search:
        run_search(arguments.search)
        return 0
    if arguments.duplicates:
        run_duplicates(arguments.duplicates)
        return 0
    with (
        Report("search", arguments.json) as report,
        tempfile.TemporaryDirectory(prefix="clipfleet-bench-") as folder,
    ):
        measure_search(report, folder, arguments.rows)
        measure_duplicates(report, folder, arguments.duplicates_of)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
