"""Whether the cost per item stays flat: CPU, Redis commands and memory of a small and of a large job.

    python -m ops.bench.scale [--items 1000000] [--small 10000]

The items are the paths of a few small JPEGs, repeated in a Parquet manifest. A real worker with a fake
encoder embeds them into a folder, on a real Valkey. Each job has its own server and worker, and is measured
from the submit to the end of the job, finishing included. Its submit is another process, whose time is
printed beside it. Redis commands are those of all processes: INFO commandstats, which counts the commands
of scripts, too. A short job before it opens connections and loads what is loaded at first use. The fixed
cost of a job is included, so the small job has more of it per item. The bench fails only if an item of the
large job costs over a tenth more.
"""

from __future__ import annotations

import resource
import statistics
import sys
import tempfile
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipfleet.contract.jobs import DEFAULT_CHUNK_SIZE, JobState
from clipfleet.ledger.jobs import Ledger
from clipfleet.outputs import objects
from clipfleet.redis.connection import connect
from ops.bench.process_cost import cpu_seconds, resident_bytes
from ops.bench.report import Report, bench_parser, positive
from tests.support.cluster import Cluster
from tests.support.images import write_images

MAX_RATIO = 1.1
MAX_GROWTH = 1.1  # of the worker's memory, from a tenth of a large job to its end

_IMAGES = 100
_SIDE = 16
_BLOCK_ROWS = 1 << 20
_POLL_SECONDS = 0.2
_FIRST_ITEMS = 2_000


@dataclass(frozen=True, slots=True)
class Measured:
    """One job."""

    items: int
    worker_seconds: float  # of CPUs
    submit_seconds: float
    commands: int
    seconds: float  # by the clock
    memory: Sequence[tuple[int, int]]  # items done, and the worker's RSS in bytes then

    @property
    def worker_microseconds(self) -> float:
        """CPU time of the worker per item."""
        return 1e6 * self.worker_seconds / self.items

    @property
    def commands_per_item(self) -> float:
        """Redis commands per item."""
        return self.commands / self.items

    def resident_mb(self, share: float) -> float:
        """The median of the worker's memory around this share of the job."""
        near = [size for done, size in self.memory if abs(done / self.items - share) <= 0.05]
        return statistics.median(near or [size for _, size in self.memory]) / (1 << 20)


def write_manifest(path: Path, images: Sequence[Path], items: int) -> None:
    """A Parquet file of paths and ids."""
    names = pa.array([str(image) for image in images])
    schema = pa.schema({"path": pa.string(), "id": pa.string()})
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, items, _BLOCK_ROWS):
            index = pa.array(range(start, min(start + _BLOCK_ROWS, items)), pa.int64())
            which = pc.subtract(index, pc.multiply(pc.divide(index, len(images)), len(images)))
            ids = pc.binary_join_element_wise("item-", pc.cast(index, pa.string()), "")
            writer.write_table(pa.table([names.take(which), ids], schema=schema))


def measure(folder: Path, items: int) -> Measured:
    """One job on a server and a worker of its own."""
    folder.mkdir()
    images = write_images(folder / "images", _IMAGES, width=_SIDE, height=_SIDE)
    write_manifest(folder / "manifest.parquet", images, items)
    write_manifest(folder / "first.parquet", images, _FIRST_ITEMS)
    with Cluster(folder) as cluster, closing(Ledger(cluster.server.url)) as ledger:
        worker = cluster.start_worker(program=("ops.bench.fake_worker",))
        _run(cluster, ledger, worker.pid, "first")
        cpu_before, children_before, commands_before = (
            cpu_seconds(worker.pid),
            _children(),
            _commands(cluster),
        )
        began = time.monotonic()
        memory = _run(cluster, ledger, worker.pid, "manifest")
        found = Measured(
            items=items,
            worker_seconds=(cpu_seconds(worker.pid) - cpu_before).total,
            submit_seconds=_children() - children_before,
            commands=_commands(cluster) - commands_before,
            seconds=time.monotonic() - began,
            memory=memory,
        )
        done = ledger.status("manifest").ok
        if done != items:
            raise SystemExit(f"{done} of {items} items: {cluster.logs()}")
        worker.terminate()
    return found


def _run(cluster: Cluster, ledger: Ledger, worker_pid: int, name: str) -> list[tuple[int, int]]:
    """Run a job to its end; samples of the items done and the worker's RSS in bytes."""
    output = cluster.folder / name
    submit = cluster.start("embed", f"{name}.parquet", "--output", output, "--job-id", name,
                           "--model", "demo", "--no-wait")  # fmt: skip
    memory: list[tuple[int, int]] = []
    # Progress is read from files, because a query would count as a Redis command.
    while submit.poll() is None or not (output / objects.SUCCESS).exists():
        if submit.returncode:
            raise SystemExit(f"the submit has failed: {submit.communicate()[1]}")
        parts = sum(1 for _ in output.glob(f"{objects.LAYOUT.part_prefix}*"))
        memory.append((parts * DEFAULT_CHUNK_SIZE, resident_bytes(worker_pid)))
        time.sleep(_POLL_SECONDS)
    while (state := ledger.status(name).state) is not JobState.COMPLETED:
        if state.is_final:
            raise SystemExit(f"the job is {state}: {cluster.logs()}")
        time.sleep(_POLL_SECONDS)
    return memory


def _children() -> float:
    """CPU time of the processes that this process has waited for."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _commands(cluster: Cluster) -> int:
    """Commands that the server has run, those of scripts included."""
    with connect(cluster.server.url) as client:
        stats: Any = client.info("commandstats")
    return sum(one["calls"] for one in stats.values())


def main() -> int:
    """Print a table; return 1 if a cost grows."""
    parser = bench_parser(__doc__)
    parser.add_argument("--items", type=positive, default=1_000_000, help="of the large job")
    parser.add_argument("--small", type=positive, default=10_000, help="items of the small job")
    options = parser.parse_args()
    with (
        Report("scale", options.json) as report,
        tempfile.TemporaryDirectory(prefix="clipfleet-scale-") as folder,
    ):
        table = report.table({
            "items": "9,d", "worker us/item": "8.1f", "submit us/item": "8.1f", "commands/item": "8.4f",
            "items/s": "8,.0f", "MB at 10 %": "8.0f", "at 50 %": "8.0f", "at 100 %": "8.0f",
        })  # fmt: skip
        found = {}
        for items in (options.small, options.items):
            one = found[items] = measure(Path(folder) / str(items), items)
            table.row(
                items, one.worker_microseconds, 1e6 * one.submit_seconds / items, one.commands_per_item,
                items / one.seconds, *(one.resident_mb(share) for share in (0.1, 0.5, 1.0)),
            )  # fmt: skip
        small, large = found[options.small], found[options.items]
        cpu_ratio = large.worker_microseconds / small.worker_microseconds
        commands_ratio = large.commands_per_item / small.commands_per_item
        report.fact("memory", large.memory)
        report.goal("CPU per item, large / small", cpu_ratio, at_most=MAX_RATIO)
        report.goal("Redis commands per item, large / small", commands_ratio, at_most=MAX_RATIO)
        growth = large.resident_mb(1.0) / large.resident_mb(0.1)
        report.goal("memory of the worker, at the end / at 10 %", growth, at_most=MAX_GROWTH)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
