"""The latency of a single image beside a bulk job that fills the worker, and what it costs that job.

    python -m ops.bench.latency [--seconds 30] [--rounds 2] [--kinds file,bytes]

One worker with the demo model on all cores. Bulk jobs of 640x480 JPEGs run one after the other, alternately
alone and beside one image a second on lane `high`: a job of one item, by `Client`, without an output.
Latency is the time from the call of `classify` to the row. The bulk rate uses the ledger's clock.
"""

from __future__ import annotations

import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pydantic import SecretStr

from clipfleet.client import Client, JobOptions
from clipfleet.contract.jobs import Lane
from clipfleet.settings import Settings
from ops.bench.report import Report, Table, bench_parser, names_of, positive
from tests.support.cluster import Cluster
from tests.support.images import encoded, photo

MAX_P95_SECONDS = 2.0
MAX_BULK_LOSS = 0.10

_PERIOD_SECONDS = 1.0
_IMAGES = 64
_WARM_UP_ITEMS = 1024
_WAIT_SECONDS = 60.0
_LABELS = ("cat", "dog")
_BULK_LABELS = tuple(f"thing {number}" for number in range(20))


@dataclass(frozen=True, slots=True)
class Requests:
    """Times of single images."""

    seconds: list[float]
    submitted_seconds: list[float]  # until `classify` returned


class Asker(threading.Thread):
    """Submit an image each second, in a thread of its own, until stopped."""

    def __init__(self, client: Client, files: Sequence[Path], kinds: Sequence[str]) -> None:
        super().__init__(name="asker")
        self.found = Requests([], [])
        self.errors: list[BaseException] = []
        self._client = client
        self._files = files
        self._kinds = kinds
        self._stopping = threading.Event()

    def run(self) -> None:
        """See threading.Thread."""
        began, number = time.monotonic(), 0
        threads = []
        while not self._stopping.wait(max(0.0, began + number * _PERIOD_SECONDS - time.monotonic())):
            threads.append(threading.Thread(target=self._ask, args=(number,)))
            threads[-1].start()
            number += 1
        for thread in threads:
            thread.join()

    def stop(self) -> Requests:
        """Submit no more, and wait for the submitted images."""
        self._stopping.set()
        self.join()
        if self.errors:
            raise self.errors[0]
        return self.found

    def _ask(self, number: int) -> None:
        file = self._files[number % len(self._files)]
        source = [file.read_bytes() if self._kinds[number % len(self._kinds)] == "bytes" else str(file)]
        began = time.perf_counter()
        try:
            job = self._client.classify(source, _LABELS, options=JobOptions(model="demo", lane=Lane.HIGH))
            submitted = time.perf_counter() - began
            job.wait(_WAIT_SECONDS)
            (row,) = job.results()
            seconds = time.perf_counter() - began
            if row["status"] != "ok":
                raise RuntimeError(f"an image failed: {row}")
        except BaseException as error:
            self.errors.append(error)
            return
        self.found.seconds.append(seconds)
        self.found.submitted_seconds.append(submitted)


class Bench:
    """A worker, and the two kinds of job."""

    def __init__(self, cluster: Cluster, client: Client, files: Sequence[Path], kinds: Sequence[str]) -> None:
        self._cluster = cluster
        self._client = client
        self._files = files
        self._kinds = kinds
        self._jobs = 0

    def bulk(self, items: int) -> float:
        """Items per second of a bulk job."""
        self._jobs += 1
        listed = [str(self._files[number % len(self._files)]) for number in range(items)]
        options = JobOptions(model="demo", lane=Lane.BULK, output=self._cluster.folder / f"bulk-{self._jobs}")
        job = self._client.classify(listed, _BULK_LABELS, options=options)
        status = job.wait()
        if status.ok != items or status.finished_ms is None:
            raise SystemExit(f"the bulk job is {status}\n{self._cluster.logs()}")
        return items / (status.finished_ms - status.created_ms) * 1000

    def bulk_beside_requests(self, items: int) -> tuple[float, Requests]:
        """Items per second of a bulk job, and the times of single images meanwhile."""
        asker = Asker(self._client, self._files, self._kinds)
        asker.start()
        try:
            rate = self.bulk(items)
        finally:
            found = asker.stop()
        return rate, found

    def alone(self, requests: int) -> Requests:
        """Times of single images on an idle worker."""
        asker = Asker(self._client, self._files, self._kinds)
        asker.start()
        time.sleep(requests * _PERIOD_SECONDS)
        return asker.stop()


def quantile(values: Sequence[float], share: float) -> float:
    """The smallest value that this share of the values does not exceed."""
    ordered = sorted(values)
    return ordered[min(len(ordered) - 1, max(0, -(-int(share * 100) * len(ordered) // 100) - 1))]


def row(table: Table, what: str, rate: float | str, found: Requests | None) -> None:
    """One line of the table."""
    if found is None:
        table.row(what, rate, 0, "-", "-", "-", "-", "-")
        return
    table.row(
        what, rate, len(found.seconds), statistics.median(found.submitted_seconds),
        *(quantile(found.seconds, share) for share in (0.5, 0.95, 0.99)), max(found.seconds),
    )  # fmt: skip


def measure(report: Report, bench: Bench, seconds: float, rounds: int) -> None:
    """Run bulk jobs with and without requests alternately."""
    table = report.table({
        "what": "<16", "bulk items/s": ">12.0f", "requests": ">8d", "submit s": ">8.3f", "p50 s": ">7.3f",
        "p95 s": ">7.3f", "p99 s": ">7.3f", "most s": ">7.3f",
    })  # fmt: skip
    bench.bulk(_WARM_UP_ITEMS)
    row(table, "requests alone", "-", bench.alone(10))
    items = int(bench.bulk(_WARM_UP_ITEMS) * seconds)
    losses = []
    requests = Requests([], [])
    for number in range(rounds):
        if number % 2:
            (beside, found), alone = bench.bulk_beside_requests(items), bench.bulk(items)
        else:
            alone, (beside, found) = bench.bulk(items), bench.bulk_beside_requests(items)
        row(table, "bulk alone", alone, None)
        row(table, "both", beside, found)
        losses.append(1 - beside / alone)
        requests.seconds.extend(found.seconds)
        requests.submitted_seconds.extend(found.submitted_seconds)
    report.fact("seconds", requests.seconds)
    report.goal("p95 seconds from call to row", quantile(requests.seconds, 0.95), at_most=MAX_P95_SECONDS)
    report.goal("share that the bulk job loses", statistics.median(losses), at_most=MAX_BULK_LOSS)


def main() -> int:
    """Print the table; return 1 if a goal is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of a bulk job, about")
    parser.add_argument("--rounds", type=positive, default=2, help="of two bulk jobs each")
    kinds = names_of(("file", "bytes"))
    parser.add_argument("--kinds", type=kinds, default="file,bytes", help="of requests, in turns")
    options = parser.parse_args()
    with (
        Report("latency", options.json) as report,
        tempfile.TemporaryDirectory(prefix="clipfleet-bench-") as name,
        Cluster(Path(name), {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}) as cluster,
    ):
        files = [cluster.folder / f"{number}.jpg" for number in range(_IMAGES)]
        for number, file in enumerate(files):
            file.write_bytes(encoded(photo(number, 640, 480), quality=85))
        cluster.start_worker()
        with Client(Settings(redis_url=SecretStr(cluster.server.url))) as client:
            bench = Bench(cluster, client, files, options.kinds)
            measure(report, bench, options.seconds, options.rounds)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
