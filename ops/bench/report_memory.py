"""A report of many rows: memory, seconds and the size of the page.

    python -m ops.bench.report_memory [--rows 1000000] [--labels 20]

The rows are made up: five scores in each, three of a hundred failed. An image of 3 kB stands for each
thumbnail, so that the page is as large as it can be. The report is made in a process of its own, as
`clipfleet report` makes it, and its peak is the one of that process.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.contract.parts import part_schema
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.report.building import Wanted, make_report
from clipfleet.report.page import write_page
from clipfleet.results.part_rows import PartRows
from ops.bench.environment import clean_environment
from ops.bench.process_cost import peak_bytes
from ops.bench.report import Report, bench_parser, positive
from tests.support.documents import ROOT
from tests.support.jobs import make_job, place_job
from tests.support.rows import note_manifest

MOST_BYTES, MOST_PAGE_BYTES = 500_000_000, 60_000_000
_ROWS_PER_PART = 4096
_THUMBNAIL_BYTES = 3000
_TOP_K = 5


def make_output(folder: Path, rows: int, labels: int) -> None:
    """A finished output of a job with a multi set."""
    output = FolderOutput(folder)
    names = tuple(f"label {number}" for number in range(labels))
    label_set = LabelSet(labels=names, kind=LabelKind.MULTI)
    job = make_job(output.uri, task="classify", label_sets=(label_set,), job_id="j", top_k=_TOP_K)
    place_job(output, job)
    schema = part_schema(None, accepted_columns=job.accepted_columns)
    parts, chance = [], np.random.default_rng(1)
    for number, first in enumerate(range(0, rows, _ROWS_PER_PART)):
        count = min(_ROWS_PER_PART, rows - first)
        parts.append(objects.LAYOUT.part(number))
        with output.scratch() as path:
            pq.write_table(_part(chance, first, count, np.array(names), schema), path)
            output.publish(path, parts[-1])
    note_manifest(output, parts, job_id=job.job_id)


def _part(
    chance: np.random.Generator, first: int, count: int, names: np.ndarray, schema: pa.Schema
) -> pa.Table:
    p = np.sort(chance.beta(0.3, 0.8, (count, _TOP_K)), axis=1)[:, ::-1]
    labels = names[np.argsort(chance.random((count, len(names))), axis=1)[:, :_TOP_K]]
    has_failed = chance.random(count) < 0.03
    rows = []
    for place in range(count):
        index = first + place
        row = {
            "item_index": index, "item_id": f"2026/11/{index:010d}.jpg", "status": "ok",
            "uri": f"https://host{index % 50}.example.com/2026/11/{index:010d}.jpg",
        }  # fmt: skip
        if has_failed[place]:
            row |= {"status": "failed", "error_code": "timeout", "error_detail": "no answer within 20 s"}
        else:
            accepted = labels[place][p[place] >= 0.5].tolist()
            row |= {
                "labels": labels[place].tolist(), "scores": p[place].tolist(), "accepted": accepted,
                "label": accepted[0] if accepted else None, "score": float(p[place][0]), "width": 640,
                "height": 480, "content_hash": f"{index:064x}", "model_fingerprint": "0123456789abcdef",
            }  # fmt: skip
        rows.append(row)
    return pa.Table.from_pylist(rows, schema)


def run_report(folder: Path) -> None:
    """Write the page, in this process; prints seconds, the peak and the size."""
    began, page = time.monotonic(), folder / "report.html"

    def thumbnails(indexes: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        return ((index, bytes(_THUMBNAIL_BYTES)) for index in indexes)

    found = make_report(PartRows(FolderOutput(folder / "out")), Wanted())
    images = write_page(page, found, thumbnails)
    print(time.monotonic() - began, peak_bytes(os.getpid()), page.stat().st_size, images)


def main() -> int:
    """Print a table; return 1 if a goal is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--rows", type=positive, default=1_000_000)
    parser.add_argument("--labels", type=positive, default=20)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.folder:
        run_report(arguments.folder)
        return 0
    with (
        Report("report_memory", arguments.json) as report,
        tempfile.TemporaryDirectory(prefix="clipfleet-bench-") as folder,
    ):
        table = report.table(
            {
                "rows": "12,",
                "labels": "8,",
                "seconds": "8.1f",
                "peak MB": "8.0f",
                "page MB": "8.1f",
                "images": "8,",
            }
        )
        make_output(Path(folder) / "out", arguments.rows, arguments.labels)
        printed = subprocess.run(
            [sys.executable, "-m", "ops.bench.report_memory", "--folder", folder],
            cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True, check=True,
        ).stdout.split()  # fmt: skip
        seconds, (peak, size, images) = float(printed[0]), map(int, printed[1:])
        table.row(arguments.rows, arguments.labels, seconds, peak / 1e6, size / 1e6, images)
        report.goal("peak bytes of the producer", peak, at_most=MOST_BYTES)
        report.goal("bytes of the page", size, at_most=MOST_PAGE_BYTES)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
