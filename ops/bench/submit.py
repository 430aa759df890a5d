"""The cost of a submit: memory, time to the first chunk that can be claimed, total time. No worker runs.

    python -m ops.bench.submit [--rows 1000000] [--kinds parquet,csv,stdin] [--chunk-size 512]

Each manifest is made here, and read by the real command in a process of its own, whose peak memory (VmHWM)
the kernel records. Time counts from the start of that process, its imports included; `net rows/s` subtracts
the time of a submit of a single row. Redis is the growth of the server's memory. `parquet` has URLs, ids and
two more columns, `parquet-url` URLs only, `parquet-wide` five columns, `parquet-path` relative paths.
`trickle` is standard input with a hundred lines a second and no end: only its first chunk is measured.
"""

from __future__ import annotations

import os
import re
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipfleet.contract.jobs import DEFAULT_CHUNK_SIZE
from clipfleet.errors import JobNotFoundError
from clipfleet.ledger.jobs import Ledger
from clipfleet.redis.connection import connect
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from ops.bench.environment import clean_environment
from ops.bench.report import Report, Table, bench_parser, names_of, positive

MAX_PRODUCER_MB = 300
MAX_FIRST_CHUNK_SECONDS = 5.0
MIN_PARQUET_ROWS_PER_SECOND = 200_000
MAX_REDIS_BYTES_PER_ITEM = 64

_KINDS = "parquet,parquet-url,parquet-wide,parquet-path,csv,jsonl,stdin,trickle"
_BLOCK_ROWS = 1 << 20
_TRICKLE_SECONDS = 6.0
_POLL_SECONDS = 0.01


@dataclass(frozen=True, slots=True)
class Measured:
    """One submit."""

    first_chunk_seconds: float
    seconds: float
    peak_mb: float
    redis_bytes: int  # growth of the server's memory


def _blocks(rows: int) -> Iterator[pa.Table]:
    """A manifest of URLs, ids and two more columns, in blocks."""
    for start in range(0, rows, _BLOCK_ROWS):
        index = pa.array(range(start, min(start + _BLOCK_ROWS, rows)), pa.int64())
        text = pc.cast(index, pa.string())
        scattered = pc.cast(pc.bit_wise_and(pc.multiply(index, 2654435761), 2**32 - 1), pa.string())
        yield pa.table(
            {
                "url": pc.binary_join_element_wise("https://images.example/", scattered, text, "/"),
                "id": pc.binary_join_element_wise("image-", text, ""),
                "shelf": index,
                "caption": pc.binary_join_element_wise("an image called ", scattered, ""),
                "path": pc.binary_join_element_wise("shelves", scattered, text, "/"),
                "width": pc.bit_wise_and(index, 4095),
                "quality": pc.divide(pc.cast(index, pa.float64()), 7.0),
                "is_public": pc.equal(pc.bit_wise_and(index, 1), 0),
            }
        )


def _make_parquet(path: Path, rows: int, columns: Sequence[str] = ("url", "id", "shelf", "caption")) -> None:
    writer: pq.ParquetWriter | None = None
    for block in (block.select(columns) for block in _blocks(rows)):
        writer = writer or pq.ParquetWriter(path, block.schema)
        writer.write_table(block, row_group_size=_BLOCK_ROWS)  # as large as pyarrow makes them by default
    if writer is not None:
        writer.close()


def _make_text(path: Path, rows: int, header: str, line: str, columns: tuple[str, ...]) -> None:
    with path.open("w") as file:
        file.write(header)
        for block in _blocks(rows):
            values = zip(*(block[name].to_pylist() for name in columns), strict=True)
            file.writelines(line.format(*row) for row in values)


_WIDE = ["url", "id", "shelf", "caption", "width", "quality", "is_public"]
MANIFESTS: dict[str, tuple[str, Callable[[Path, int], None]]] = {
    "parquet": ("manifest.parquet", _make_parquet),
    "parquet-url": ("urls.parquet", partial(_make_parquet, columns=["url"])),
    "parquet-wide": ("wide.parquet", partial(_make_parquet, columns=_WIDE)),
    "parquet-path": ("paths.parquet", partial(_make_parquet, columns=["path", "id", "shelf"])),
    "csv": (
        "manifest.csv",
        lambda path, rows: _make_text(
            path, rows, "url,id,shelf,caption\n", "{},{},{},{}\n", ("url", "id", "shelf", "caption")
        ),
    ),
    "jsonl": (
        "manifest.jsonl",
        lambda path, rows: _make_text(
            path, rows, "", '{{"url": "{}", "id": "{}", "shelf": {}}}\n', ("url", "id", "shelf")
        ),
    ),
    "stdin": ("lines.txt", lambda path, rows: _make_text(path, rows, "", "{}\n", ("url",))),
}


class Bench:
    """A ledger, and submits into it one after the other."""

    def __init__(self, folder: Path, server: EmbeddedValkey, chunk_size: int) -> None:
        self._folder = folder
        self._server = server
        self._chunk_size = chunk_size
        self._ledger = Ledger(server.url)
        self._client = connect(server.url)

    def close(self) -> None:
        """Close the connections."""
        self._client.close()
        self._ledger.close()

    def submit(self, kind: str, rows: int) -> Measured:
        """Make a manifest, submit it, and remove it."""
        name, make = MANIFESTS[kind]
        path = self._folder / name
        make(path, rows)
        job_id = f"{kind}-{rows}"
        with path.open("rb") as lines:
            source = "-" if kind == "stdin" else str(path)
            measured = self._measure(job_id, source, lines if kind == "stdin" else subprocess.DEVNULL)
        path.unlink()
        status = self._ledger.status(job_id)
        if (status.total, status.sealed) != (rows, True):
            raise SystemExit(f"{kind}: {status.total} of {rows} items were submitted")
        return measured

    def trickle(self) -> float:
        """Seconds to the first chunk of lines that arrive slowly."""
        reading, writing = os.pipe()
        process, began = self._start("trickle", "-", reading)
        first = None
        number = 0
        while time.monotonic() - began < _TRICKLE_SECONDS:
            number += 1
            os.write(writing, b"https://pictures.example/%d.jpg\n" % number)
            first = first or (time.monotonic() - began if self._chunks("trickle") else None)
            time.sleep(_POLL_SECONDS)
        for descriptor in (reading, writing):
            os.close(descriptor)
        process.wait()
        return first if first is not None else float("inf")

    def _measure(self, job_id: str, source: str, stdin: int | BinaryIO) -> Measured:
        used = self._used_bytes()
        process, began = self._start(job_id, source, stdin)
        first = None
        peak_mb = 0.0
        while process.poll() is None:
            peak_mb = max(peak_mb, _peak_mb(process.pid))
            first = first or (time.monotonic() - began if self._chunks(job_id) else None)
            time.sleep(_POLL_SECONDS)
        seconds = time.monotonic() - began
        if process.returncode != 0:
            raise SystemExit(f"{job_id}: the submit ended with code {process.returncode}")
        grown = self._used_bytes() - used
        return Measured(first if first is not None else seconds, seconds, peak_mb, grown)

    def _used_bytes(self) -> int:
        """Memory of the server, as it reports it."""
        return int(self._client.info("memory")["used_memory"])

    def _start(
        self, job_id: str, source: str, stdin: int | BinaryIO
    ) -> tuple[subprocess.Popen[bytes], float]:
        output = str(self._folder / f"out-{job_id}")
        words = ["embed", source, "--output", output, "--job-id", job_id, "--model", "demo", "--no-wait"]
        words += ["--chunk-size", str(self._chunk_size)]
        began = time.monotonic()
        process = subprocess.Popen(
            [sys.executable, "-m", "clipfleet", *words],
            env={**clean_environment(), "CLIPFLEET_REDIS_URL": self._server.url},
            stdin=stdin,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        return process, began

    def _chunks(self, job_id: str) -> int:
        with suppress(JobNotFoundError):
            return self._ledger.status(job_id).chunks
        return 0


def _peak_mb(pid: int) -> float:
    with suppress(OSError):
        found = re.search(r"^VmHWM:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
        if found:
            return int(found[1]) / 1024
    return 0.0


def main() -> int:
    """Print a table; return 1 if a bar is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--rows", type=positive, default=1_000_000)
    parser.add_argument(
        "--kinds", type=names_of([*MANIFESTS, "trickle"]), default=_KINDS, help="default: all"
    )
    parser.add_argument("--chunk-size", type=positive, default=DEFAULT_CHUNK_SIZE)
    arguments = parser.parse_args()
    with (
        Report("submit", arguments.json) as report,
        tempfile.TemporaryDirectory(prefix="clipfleet-bench-") as folder,
        EmbeddedValkey(Path(folder) / "valkey") as server,
        closing(Bench(Path(folder), server, arguments.chunk_size)) as bench,
    ):
        table = report.table(
            {
                "source": "<12",
                "first chunk s": "13.2f",
                "in all s": "8.1f",
                "rows/s": "9,.0f",
                "net rows/s": "10,.0f",
                "peak MB": "8.0f",
                "Redis B/row": "11.2f",
            },
            f"submit of {arguments.rows:,} rows, no worker",
        )
        bench.submit("parquet-url", 2)  # to warm the disk's cache
        start_seconds = bench.submit("parquet", 1).seconds
        report.fact("seconds of a submit of one row", start_seconds)
        found = [
            (kind, _measure(bench, kind, arguments.rows, start_seconds, table)) for kind in arguments.kinds
        ]
        for kind, measured in found:
            if kind.startswith("parquet"):
                report.goal(
                    f"{kind}: rows/s",
                    arguments.rows / measured.seconds,
                    at_least=MIN_PARQUET_ROWS_PER_SECOND,
                )
            if kind != "trickle":  # only its first chunk is measured
                report.goal(
                    f"{kind}: bytes of Redis per queued item",
                    measured.redis_bytes / arguments.rows,
                    at_most=MAX_REDIS_BYTES_PER_ITEM,
                )
                report.goal(f"{kind}: peak MB", measured.peak_mb, at_most=MAX_PRODUCER_MB)
            report.goal(
                f"{kind}: seconds to the first chunk",
                measured.first_chunk_seconds,
                at_most=MAX_FIRST_CHUNK_SECONDS,
            )
    return report.exit_code


def _measure(bench: Bench, kind: str, rows: int, start_seconds: float, table: Table) -> Measured:
    if kind == "trickle":
        measured = Measured(bench.trickle(), 0.0, 0.0, 0)
        table.row(kind, measured.first_chunk_seconds, "-", "-", "-", "-", "-")
        return measured
    measured = bench.submit(kind, rows)
    net_seconds = max(0.001, measured.seconds - start_seconds)
    table.row(
        kind, measured.first_chunk_seconds, measured.seconds, rows / measured.seconds, rows / net_seconds,
        measured.peak_mb, measured.redis_bytes / rows,
    )  # fmt: skip
    return measured


if __name__ == "__main__":
    sys.exit(main())
