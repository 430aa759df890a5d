"""Labels over stored vectors: a worker against a bare loop over the same files.

    python -m ops.bench.relabel [--items 1000000] [--small 100000] [--rounds 3]

A finished job with random vectors of length 512 (float16, parts of 512 rows) is labelled again with 100
labels: by `Client.relabel` and a real worker (real Valkey, real Celery; a fake encoder, which encodes the
labels only), and by a bare loop, which reads the same files with pyarrow, multiplies, takes the softmax and
the best five in float32 with torch, and writes label, score, labels, scores and all carried columns, with the
same compression; like the worker without dictionaries of what is unique, and without its statistics. Both
have two threads, and alternate in rounds: the machine may be busy with other work.

The worker is timed from the call of `Client.relabel` to the end of the job: with the staging, the hints, the
claims, the syncs of each part, and the manifest. The worker is warm: a small job went before. The bare loop
has no ledger, retries nothing and syncs nothing; it is the fastest of those that were tried: files read in
groups of 4,096 rows, two groups at a time, each written to a file of its own.

`ratio` is by the clock: with other work on the machine it says little, as the worker's waits (syncs, Redis)
then cost it its turn. `of CPU` compares the seconds of CPU of the bare loop and of the worker process.

The last line has 1,000 labels: most of the time goes into the products, which the worker computes in double
precision, so that an image has the same scores in any batch; the bare loop does not.

The memory of the worker is its peak within a small and within a large job.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from torch.utils.dlpack import from_dlpack

from clipfleet.client import JobOptions
from clipfleet.ledger.jobs import Ledger
from clipfleet.outputs.folder import FolderOutput
from ops.bench.environment import clean_environment
from ops.bench.free_encoder import FreeEncoder
from ops.bench.process_cost import cpu_seconds, forget_peak, peak_bytes
from ops.bench.report import Report, bench_parser, positive
from tests.support.cluster import Cluster
from tests.support.documents import ROOT
from tests.support.stored_vectors import PART_ROWS, fingerprint_of, place_vectors, unit_vectors, vector_rows

LEAST_RATIO = 0.6
MOST_GROWTH = 1.1

_DIMENSION, _TOP_K, _THREADS = 512, 5, 2
_LABELS, _MANY_LABELS = 100, 1000
_GROUP_FILES = 8
_POLL_SECONDS = 0.05
_CARRIED = (
    "item_index", "item_id", "uri", "status", "error_code", "error_detail", "width", "height", "content_hash",
    "model_fingerprint", "shelf",
)  # fmt: skip
_REPEATED = (
    "status", "error_code", "error_detail", "width", "height", "model_fingerprint", "shelf", "label",
    "labels.list.element",
)  # fmt: skip


def labels_of(count: int) -> list[str]:
    """So many labels."""
    return [f"label {number}" for number in range(count)]


def make_origin(folder: Path, items: int) -> None:
    """A finished job with so many rows."""

    def tables() -> Iterator[pa.Table]:
        fingerprint = fingerprint_of(FreeEncoder("demo", _DIMENSION))
        for first in range(0, items, PART_ROWS):
            count = min(PART_ROWS, items - first)
            shelf = pa.array([f"shelf {number % 40}" for number in range(first, first + count)])
            yield vector_rows(first, unit_vectors(first, count, _DIMENSION), fingerprint, shelf=shelf)

    source = {"kind": "csv", "uri": "/list.csv", "extra_columns": ("shelf",)}
    place_vectors(FolderOutput(folder), tables(), source=source)


def bare_loop(origin: Path, output: Path, labels: Sequence[str]) -> None:
    """Label all rows; prints seconds by the clock and of the CPU, without imports and labels."""
    torch.set_num_threads(1)  # of each of the two groups that are in progress
    encoder = FreeEncoder("demo", _DIMENSION)
    texts = torch.from_numpy(encoder.encode_texts([f"a photo of a {label}" for label in labels]))
    files = sorted(origin.glob("data/*.parquet"))
    groups = [files[start : start + _GROUP_FILES] for start in range(0, len(files), _GROUP_FILES)]
    output.mkdir(parents=True)
    label = partial(_bare_group, pa.array(labels), texts, encoder.logit_scale)
    label(groups[0], output / "warm-up.parquet")  # as the worker is warm
    began, cpu = time.perf_counter(), time.process_time()
    with ThreadPoolExecutor(_THREADS) as pool:
        names = [output / f"{number:06d}.parquet" for number in range(len(groups))]
        list(pool.map(label, groups, names))
    print(time.perf_counter() - began, time.process_time() - cpu)


def _bare_group(
    names: pa.Array, texts: torch.Tensor, scale: float, files: Sequence[Path], output: Path
) -> None:
    columns = [*_CARRIED, "embedding"]
    rows = pa.concat_tables([pq.read_table(file, columns=columns, use_threads=False) for file in files])
    numbers = from_dlpack(rows["embedding"].combine_chunks().flatten()).view(-1, _DIMENSION)
    with torch.inference_mode():
        logits = numbers.float() @ texts.T * scale
        scores, best = logits.softmax(dim=1).topk(_TOP_K, dim=1)
    ends = pa.array(np.arange(len(best) + 1, dtype=np.int32) * _TOP_K)
    made = {
        "label": names.take(pa.array(best[:, 0].numpy())),
        "score": pa.array(scores[:, 0].numpy()),
        "labels": pa.ListArray.from_arrays(ends, names.take(pa.array(best.reshape(-1).numpy()))),
        "scores": pa.ListArray.from_arrays(ends, pa.array(scores.reshape(-1).numpy())),
    }
    table = pa.table({**{name: rows[name] for name in _CARRIED}, **made})
    few = [*_REPEATED]
    pq.write_table(table, output, compression="zstd", use_dictionary=few, write_statistics=few)


def run_bare(origin: Path, output: Path, labels: int) -> tuple[float, float]:
    """The bare loop in a process of its own; seconds by the clock and of the CPU."""
    answer = subprocess.run(
        [sys.executable, "-m", "ops.bench.relabel", "--bare", origin, output, str(labels)],
        cwd=ROOT, env=clean_environment(), stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    seconds, cpu = map(float, answer.stdout.split())
    shutil.rmtree(output)
    return seconds, cpu


def run_job(cluster: Cluster, origin: Path, name: str, labels: int) -> tuple[float, float]:
    """Label with the worker; seconds by the clock, and until the submit has ended."""
    output = cluster.folder / name
    options = JobOptions(output=str(output), job_id=name)
    with closing(Ledger(cluster.server.url)) as ledger:
        began = time.perf_counter()
        cluster.client.relabel(origin, labels_of(labels), options=options)
        submitted = time.perf_counter() - began
        while not (status := ledger.status(name)).state.is_final:
            time.sleep(_POLL_SECONDS)
        seconds = time.perf_counter() - began
    if status.failed or status.ok != status.total:
        raise SystemExit(f"{status}: {cluster.logs()}")
    return seconds, submitted


def main() -> int:
    """Print a table; return 1 if a goal is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--items", type=positive, default=1_000_000)
    parser.add_argument("--small", type=positive, default=100_000, help="items of the small job")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--keep", type=Path, help="a folder for the vectors, which are made once")
    parser.add_argument("--bare", nargs=3, help=argparse.SUPPRESS)  # the bare loop
    options = parser.parse_args()
    if options.bare:
        origin, output, labels = options.bare
        bare_loop(Path(origin), Path(output), labels_of(int(labels)))
        return 0
    with Report("relabel", options.json) as report, tempfile.TemporaryDirectory() as temporary:
        folder = options.keep or Path(temporary)
        small, large = (folder / f"vectors-{items}" for items in (options.small, options.items))
        for origin, items in ((small, options.small), (large, options.items)):
            if not (origin / "_SUCCESS").exists():
                make_origin(origin, items)
        _compare(report, Path(temporary), small, large, options)
    return report.exit_code


def _compare(report: Report, folder: Path, small: Path, large: Path, options: argparse.Namespace) -> None:
    table = report.table(
        {
            "labels": "6,", "bare s": "7.2f", "bare CPU s": "7.2f", "worker s": "7.2f",
            "worker CPU s": "7.2f", "submit s": "7.2f", "rows/s": "9,.0f", "ratio": "5.2f",
            "of CPU": "5.2f", "peak MB": "5.0f",
        },
        f"{options.items:,} vectors of length {_DIMENSION}",
    )  # fmt: skip
    roots = {"CLIPFLEET_FILE_ROOTS": str(small.parent), "OMP_NUM_THREADS": str(_THREADS)}
    with Cluster(folder / "cluster", roots) as cluster:
        worker = cluster.start_worker(program=("ops.bench.fake_worker", str(_DIMENSION)))
        run_job(cluster, small, "warm-up", _LABELS)
        forget_peak(worker.pid)
        run_job(cluster, small, "small", _LABELS)
        at_small = peak_bytes(worker.pid)
        ratios, peaks = [], []
        for number, labels in enumerate([*[_LABELS] * options.rounds, _MANY_LABELS]):
            bare, bare_cpu = run_bare(large, folder / "bare", labels)
            forget_peak(worker.pid)
            before = cpu_seconds(worker.pid)
            seconds, submitted = run_job(cluster, large, f"round-{number}", labels)
            cost = cpu_seconds(worker.pid) - before
            size, ratio = peak_bytes(worker.pid), bare / seconds
            if labels == _LABELS:
                ratios.append(ratio)
                peaks.append(size)
            table.row(
                labels, bare, bare_cpu, seconds, cost.total, submitted, options.items / seconds, ratio,
                bare_cpu / cost.total, size / (1 << 20),
            )  # fmt: skip
            shutil.rmtree(cluster.folder / f"round-{number}")
        worker.terminate()
    report.goal("rate of the worker / of the bare loop", statistics.median(ratios), at_least=LEAST_RATIO)
    report.goal("peak memory of the large job / of the small one", max(peaks) / at_small, at_most=MOST_GROWTH)


if __name__ == "__main__":
    sys.exit(main())
