"""What a worker costs per image beside decode and forward: CPU time, not rates.

    python -m ops.bench.overhead [--items 100000] [--rounds 3]

A folder of 64x64 JPEGs is embedded by a real worker process with a fake encoder: real Valkey, real Celery,
files read below CLIPFLEET_FILE_ROOTS, Parquet parts in a folder. Its user and system time counts, its
children's too, from the moment it takes work to the end of the job. From that goes the time of a bare loop
in a process of its own that opens, reads and decodes the same files with the worker's own decoder. Bare loop
and worker take turns; what is left is the overhead, and its bar is 60 microseconds.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import closing
from pathlib import Path

from clipfleet.contract import DecodeRoute, JobState
from clipfleet.ledger import Ledger
from clipfleet_worker.decode import Decoder
from clipfleet_worker.settings import WorkerSettings
from clipfleet_worker.testing import FakeEncoder
from ops.bench.process_cost import CpuSeconds, cpu_seconds
from ops.bench.report import Report, Table, bench_parser
from tests.support.cluster import Cluster
from tests.support.documents import ROOT
from tests.support.pictures import encoded, picture

MAX_OVERHEAD_MICROSECONDS = 60.0

_DISTINCT = 64
_PER_FOLDER = 1000
_POLL_SECONDS = 0.05
_SIDE = 64
_QUALITY = 85


def make_pictures(folder: Path, count: int) -> None:
    """So many JPEGs, few of them distinct."""
    distinct = [encoded(picture(seed, _SIDE, _SIDE), quality=_QUALITY) for seed in range(_DISTINCT)]
    for number in range(count):
        path = folder / f"{number // _PER_FOLDER:04d}" / f"{number:07d}.jpg"
        if number % _PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(distinct[number % _DISTINCT])


def bare_loop(folder: Path) -> None:
    """Read and decode every picture; prints user and system seconds. `--bare` runs it in a process."""
    paths = [str(path) for path in sorted(folder.glob("*/*.jpg"))]
    limits, spec = WorkerSettings(), FakeEncoder().pixel_spec
    decoder = Decoder(limits.max_pixels, limits.max_decode_bytes)
    decoder.decode(Path(paths[0]).read_bytes(), spec, DecodeRoute.FAST)  # loads what is loaded once
    before = os.times()
    for path in paths:
        with open(path, "rb") as file:  # noqa: PTH123 - bare
            decoder.decode(file.read(), spec, DecodeRoute.FAST)
    after = os.times()
    print(after.user - before.user, after.system - before.system)


def bare_cost(folder: Path, count: int) -> CpuSeconds:
    """CPU seconds per image of the bare loop."""
    words = [sys.executable, "-m", "ops.bench.overhead", "--bare", str(folder)]
    found = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, check=True)
    user, system = map(float, found.stdout.split())
    return CpuSeconds(user / count, system / count)


def worker_cost(cluster: Cluster, folder: Path, name: str, count: int) -> tuple[CpuSeconds, float]:
    """CPU seconds per image of a worker that is started for one job and stopped; and images per second."""
    worker = cluster.start_worker(program=("ops.bench.fake_worker",))
    before = cpu_seconds(worker.pid)
    began = time.monotonic()
    submit = cluster.start("embed", folder, "--output", cluster.folder / name, "--job-id", name,
                           "--model", "demo", "--no-wait")  # fmt: skip
    if submit.wait():
        raise SystemExit(f"the submit failed: {submit.communicate()[1]}")
    with closing(Ledger(cluster.server.url)) as ledger:
        while not (status := ledger.status(name)).state.is_final:
            time.sleep(_POLL_SECONDS)
    seconds = time.monotonic() - began
    cost = cpu_seconds(worker.pid) - before
    if (status.state, status.ok) != (JobState.COMPLETED, count):
        raise SystemExit(f"{status.ok} of {count} pictures, {status.state}: {cluster.logs()}")
    worker.terminate()
    return CpuSeconds(cost.user / count, cost.system / count), count / seconds


def run_rounds(table: Table, count: int, rounds: int) -> list[float]:
    """Bare loop and worker in turns; the overhead of each round in microseconds."""
    found = []
    with tempfile.TemporaryDirectory(prefix="clipfleet-overhead-") as temporary:
        folder = Path(temporary) / "pictures"
        make_pictures(folder, count)
        with Cluster(Path(temporary)) as cluster:
            for number in range(1, rounds + 1):
                bare = bare_cost(folder, count)
                worker, rate = worker_cost(cluster, folder, f"round-{number}", count)
                found.append(1e6 * (worker.total - bare.total))
                costs = (bare.user, bare.system, worker.user, worker.system)
                table.row(number, *(1e6 * cost for cost in costs), found[-1], rate)
    return found


def main() -> int:
    """Print a table; 1 if the bar is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--items", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bare", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.bare:
        bare_loop(options.bare)
        return 0
    with Report("overhead", options.json) as report:
        columns = ("bare user", "bare system", "worker user", "worker system", "overhead")
        table = report.table(
            {"round": "5", **dict.fromkeys(columns, "8.1f"), "images/s": "8.0f"},
            f"CPU microseconds per image, {options.items:,} images",
        )
        overheads = run_rounds(table, options.items, options.rounds)
        report.goal(
            "overhead, microseconds per image",
            statistics.median(overheads),
            at_most=MAX_OVERHEAD_MICROSECONDS,
        )
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
