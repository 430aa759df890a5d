"""The CPU time of a worker per image, without decode and forward.

    python -m ops.bench.overhead [--items 100000] [--rounds 3]

A folder of 64x64 JPEGs is embedded by a real worker process with a fake encoder: real Valkey, real Celery,
files read below CLIPFLEET_FILE_ROOTS, Parquet parts in a folder. Counted is its user and system time, with
that of its children, from the submit to the end of the job. Its start is not: a thousand images go first,
with which the worker loads what it needs once, torch above all, as a real one does with its model.

Subtracted is the time of a bare loop that opens, reads and decodes the same files with the worker's own
decoder, in as many processes as the worker has decode threads: CPUs that share a core or a cache slow one
another down, which is not our overhead. Bare loop and worker alternate. The rest is the overhead; its bar is
60 microseconds.
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

from clipfleet.contract.jobs import DecodeRoute
from clipfleet.ledger.jobs import Ledger
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.process.cores import decode_threads
from clipfleet_worker.settings import WorkerSettings
from ops.bench.process_cost import CpuSeconds, cpu_seconds
from ops.bench.report import Report, Table, bench_parser, positive
from tests.support.cluster import Cluster
from tests.support.documents import ROOT
from tests.support.images import encoded, make_image

MAX_OVERHEAD_MICROSECONDS = 60.0

_DISTINCT = 64
_PER_FOLDER = 1000
_POLL_SECONDS = 0.2
_SIDE = 64
_QUALITY = 85


def make_images(folder: Path, count: int) -> None:
    """Make a number of JPEGs, few of them distinct."""
    distinct = [encoded(make_image(seed, _SIDE, _SIDE), quality=_QUALITY) for seed in range(_DISTINCT)]
    for number in range(count):
        path = folder / f"{number // _PER_FOLDER:04d}" / f"{number:07d}.jpg"
        if number % _PER_FOLDER == 0:
            path.parent.mkdir(parents=True)
        path.write_bytes(distinct[number % _DISTINCT])


def bare_loop(folder: Path, first: int, step: int) -> None:
    """Read and decode some of the images, after a first one; prints user and system seconds."""
    paths = [str(path) for path in sorted(folder.glob("*/*.jpg"))]
    limits, spec = WorkerSettings(), FakeEncoder().pixel_spec
    decoder = Decoder(limits.max_pixels, limits.max_decode_bytes)
    decoder.decode(Path(paths[0]).read_bytes(), spec, DecodeRoute.FAST)  # loads what is loaded once
    before = os.times()
    for path in paths[first::step]:
        with open(path, "rb") as file:  # noqa: PTH123 - bare
            decoder.decode(file.read(), spec, DecodeRoute.FAST)
    after = os.times()
    print(after.user - before.user, after.system - before.system)


def bare_cost(folder: Path, count: int) -> CpuSeconds:
    """CPU seconds per image of the bare loop."""
    loops = decode_threads(WorkerSettings().decode_threads)
    words = [sys.executable, "-m", "ops.bench.overhead", "--bare", str(folder)]
    processes = [
        subprocess.Popen([*words, str(first), str(loops)], cwd=ROOT, stdout=subprocess.PIPE, text=True)
        for first in range(loops)
    ]
    answers = [process.communicate()[0].split() for process in processes]
    user, system = (sum(float(answer[n]) for answer in answers) for n in (0, 1))
    return CpuSeconds(user / count, system / count)


def worker_cost(cluster: Cluster, folder: Path, name: str, count: int) -> tuple[CpuSeconds, float]:
    """CPU seconds per image of a worker that is started for one job and stopped; and images per second."""
    worker = cluster.start_worker(program=("ops.bench.fake_worker",))
    with closing(Ledger(cluster.server.url)) as ledger:
        run_job(cluster, ledger, folder / "0000", f"{name}-first")
        before, began = cpu_seconds(worker.pid), time.monotonic()
        done = run_job(cluster, ledger, folder, name)
        cost, seconds = cpu_seconds(worker.pid) - before, time.monotonic() - began
    if done != count:
        raise SystemExit(f"{done} of {count} images: {cluster.logs()}")
    worker.terminate()
    return CpuSeconds(cost.user / count, cost.system / count), count / seconds


def run_job(cluster: Cluster, ledger: Ledger, folder: Path, name: str) -> int:
    """Embed a folder and wait for the end of the job; the number of images with a vector."""
    submit = cluster.start("embed", folder, "--output", cluster.folder / name, "--job-id", name,
                           "--model", "demo", "--no-wait")  # fmt: skip
    if submit.wait():
        raise SystemExit(f"the submit has failed: {submit.communicate()[1]}")
    while not (status := ledger.status(name)).state.is_final:
        time.sleep(_POLL_SECONDS)
    return status.ok


def run_rounds(table: Table, count: int, rounds: int) -> list[float]:
    """Run bare loop and worker alternately; the overhead of each round in microseconds."""
    found = []
    with tempfile.TemporaryDirectory(prefix="clipfleet-overhead-") as temporary:
        folder = Path(temporary) / "images"
        make_images(folder, count)
        with Cluster(Path(temporary)) as cluster:
            for number in range(1, rounds + 1):
                bare = bare_cost(folder, count)
                worker, rate = worker_cost(cluster, folder, f"round-{number}", count)
                found.append(1e6 * (worker.total - bare.total))
                costs = (bare.user, bare.system, worker.user, worker.system)
                table.row(number, *(1e6 * cost for cost in costs), found[-1], rate)
    return found


def main() -> int:
    """Print a table; return 1 if the bar is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--items", type=positive, default=100_000)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)  # one process of the bare loop
    options = parser.parse_args()
    if options.bare:
        folder, first, step = options.bare
        bare_loop(Path(folder), int(first), int(step))
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
