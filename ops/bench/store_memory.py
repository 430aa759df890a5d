"""A listing of many objects against a store of as many rows: memory and seconds of the producer.

    python -m ops.bench.store_memory [--rows 10000000]

The store has so many rows of made-up S3 objects, with vectors of length 4: a comparison reads none of them.
The listing has the same objects but for one of a hundred that has changed, one of a hundred that is new, and
one of a hundred that is gone. It is made in the process that compares, as that of S3 would be; the comparison
runs in a process of its own, as `clipfleet backfill --dry-run` does it, and its peak is the one of that
process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.backfill.rounds import compare
from clipfleet.contract.jobs import SourceDescription
from clipfleet.contract.parts import VERSION_COLUMN
from clipfleet.contract.stores import LISTED_VERSION
from clipfleet.sources.batches import MAX_ROWS, item_batch
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.rows import digests, store_schema
from ops.bench.environment import clean_environment
from ops.bench.process_cost import peak_bytes
from ops.bench.report import Report, bench_parser, positive
from tests.support.documents import ROOT

MOST_BYTES = 1_000_000_000

_DIMENSION = 4
_LISTED_AT = datetime(2026, 11, 1, tzinfo=UTC)
_ROWS_PER_COMMIT = 1_000_000


class MadeUpObjects:
    """Objects with these numbers, as S3 would list them; those that `has_changed` have another ETag."""

    description = SourceDescription(kind="s3", uri="s3://bucket/photos/")

    def __init__(self, first: int, last: int, *, has_changed: bool = False) -> None:
        self._first, self._last = first, last
        self._has_changed = has_changed

    def batches(self) -> Iterator[pa.RecordBatch]:
        for start in range(self._first, self._last, MAX_ROWS):
            numbers = np.arange(start, min(start + MAX_ROWS, self._last))
            texts = pc.utf8_lpad(pc.cast(pa.array(numbers), pa.string()), 10, "0")
            names = pc.binary_join_element_wise("2026/11/", texts, ".jpg", "")
            etags = (numbers * 2_654_435_761 % (1 << 61)) + (self._has_changed & (numbers % 100 == 0))
            versions = pc.binary_join_element_wise("68123", pc.cast(pa.array(etags), pa.string()), " ")
            uris = pc.binary_join_element_wise("s3://bucket/photos/", names, "")
            yield item_batch(start - self._first, names, uris, {VERSION_COLUMN: versions})


def make_store(uri: str, rows: int) -> None:
    """A dataset that knows so many objects."""
    dataset = VectorDataset.create(uri, store_schema(_DIMENSION))
    for first in range(0, rows, _ROWS_PER_COMMIT):
        batches = MadeUpObjects(first, min(first + _ROWS_PER_COMMIT, rows)).batches()
        dataset = dataset.replace(np.empty(0, np.uint64), map(_stored, batches), {})


def _stored(items: pa.RecordBatch) -> pa.RecordBatch:
    """Rows as a commit writes them."""
    items = items.rename_columns(["item_index", "item_id", "uri", LISTED_VERSION])
    count, schema = items.num_rows, store_schema(_DIMENSION)
    vectors = pa.FixedSizeListArray.from_arrays(
        pa.array(np.zeros(count * _DIMENSION, np.float16)), _DIMENSION
    )
    times = pa.repeat(pa.scalar(_LISTED_AT, schema.field("listed_at").type), count)
    columns = {
        "item_id": items["item_id"],
        "uri": items["uri"],
        "version": items[LISTED_VERSION],
        "content_hash": pc.binary_join_element_wise(items["item_id"], "0" * 44, ""),
        "digest": pa.array(digests(items, ["item_id", "uri", LISTED_VERSION])),
        "embedded_at": times,
        "listed_at": times,
        "embedding": vectors.cast(schema.field("embedding").type),
    }
    found = [columns.get(field.name, pa.nulls(count, field.type)) for field in schema]
    return pa.RecordBatch.from_arrays(found, schema=schema)


def run_comparison(uri: str, rows: int) -> None:
    """Compare, in this process; prints seconds, the peak and what was found."""
    began, share = time.monotonic(), rows // 100
    with tempfile.TemporaryDirectory(prefix="clipfleet-bench-") as folder:
        found = compare(
            MadeUpObjects(share, rows + share, has_changed=True),
            VectorDataset.open(uri),
            Path(folder),
            now=datetime.now(UTC),
            most_items=None,
            on_listed=lambda items: None,
        )
        gone = sum(batch.num_rows for batch in found.gone())
    seconds, one = time.monotonic() - began, found.comparison
    print(seconds, peak_bytes(os.getpid()), one.items, one.new, one.to_run - one.new, one.same, gone)


def main() -> int:
    """Print a table; return 1 if a goal is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--rows", type=positive, default=10_000_000)
    parser.add_argument("--compare", metavar="URI", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.compare:
        run_comparison(arguments.compare, arguments.rows)
        return 0
    with (
        Report("store_memory", arguments.json) as report,
        tempfile.TemporaryDirectory(prefix="clipfleet-bench-") as folder,
    ):
        table = report.table(
            {
                "rows": "12,", "listed": "12,", "seconds": "8.1f", "peak MB": "8.0f", "new": "10,",
                "changed": "10,", "same": "12,", "gone": "10,",
            }
        )  # fmt: skip
        uri = f"{folder}/store.lance"
        make_store(uri, arguments.rows)
        words = ["--compare", uri, "--rows", str(arguments.rows)]
        printed = subprocess.run(
            [sys.executable, "-m", "ops.bench.store_memory", *words],
            cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True, check=True,
        ).stdout.split()  # fmt: skip
        seconds, peak = float(printed[0]), int(printed[1])
        items, new, changed, same, gone = map(int, printed[2:])
        table.row(arguments.rows, items, seconds, peak / 1e6, new, changed, same, gone)
        report.goal("peak bytes of the producer", peak, at_most=MOST_BYTES)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
