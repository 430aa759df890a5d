"""Requests of a gateway, beside the same images as a folder job, and beside a bulk job that fills the worker.

    python -m ops.bench.gateway [--images 4000] [--connections 64] [--seconds 30] [--rounds 2]

One worker with the demo model and one gateway share all cores with the client, which sends one JPEG of 20 KB
as a data: URI per `/v1/embeddings` request, and as many requests at a time as there are connections. Latency
is the time from the request to its answer. The rate of the folder job uses the ledger's clock.
"""

from __future__ import annotations

import asyncio
import base64
import json
import os
import statistics
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import aiohttp
import numpy as np

from clipfleet.client import Client, JobOptions
from clipfleet.contract.jobs import Lane
from ops.bench.latency import MAX_BULK_LOSS, quantile
from ops.bench.report import Report, bench_parser, positive
from tests.support.cluster import Cluster
from tests.support.gateway_process import GatewayProcess, made_key
from tests.support.images import encoded, photo

MIN_SHARE = 0.5
MAX_DIFFERENCE = 1e-3
MAX_P95_SECONDS = 1.0

_WIDTH, _HEIGHT, _QUALITY = 360, 270, 84  # about 20 KB
_DRAWN = 256  # images that differ in more than a comment
_WARM_UP = 512
_PERIOD_SECONDS = 1.0
_REQUESTS_PER_MINUTE = 1_000_000
_TIMEOUT = aiohttp.ClientTimeout(total=60)


@dataclass(frozen=True, slots=True)
class Answers:
    """What some requests were answered with, in the order of the images."""

    seconds: list[float]
    vectors: np.ndarray
    wall_seconds: float

    @property
    def rate(self) -> float:
        """Images a second."""
        return len(self.seconds) / self.wall_seconds


class Door:
    """A gateway, seen by a client without a library."""

    def __init__(self, url: str, key: str) -> None:
        self._url = f"{url}/v1/embeddings"
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}

    async def ask(self, session: aiohttp.ClientSession, body: bytes) -> tuple[float, np.ndarray]:
        """Seconds and vector of one image."""
        began = time.perf_counter()
        async with session.post(self._url, data=body, headers=self._headers) as response:
            text = await response.read()
            seconds = time.perf_counter() - began
            if response.status != 200:
                raise SystemExit(f"{response.status}: {text.decode()}")
        coded = json.loads(text)["data"][0]["embedding"]
        return seconds, np.frombuffer(base64.b64decode(coded), "<f4")

    async def all(self, bodies: Sequence[bytes], connections: int) -> Answers:
        """Every image once, so many at a time."""
        found: list[tuple[float, np.ndarray]] = [(0.0, np.empty(0))] * len(bodies)
        numbers = iter(range(len(bodies)))

        async def ask_on(session: aiohttp.ClientSession) -> None:
            for number in numbers:
                found[number] = await self.ask(session, bodies[number])

        async with aiohttp.ClientSession(
            connector=aiohttp.TCPConnector(limit=connections), timeout=_TIMEOUT
        ) as session:
            began = time.perf_counter()
            await asyncio.gather(*(ask_on(session) for _ in range(connections)))
            wall_seconds = time.perf_counter() - began
        return Answers([one for one, _ in found], np.stack([one for _, one in found]), wall_seconds)

    async def each_second(self, bodies: Sequence[bytes], stopping: threading.Event) -> list[float]:
        """Seconds of one image each second, until stopped."""
        tasks = []
        async with aiohttp.ClientSession(timeout=_TIMEOUT) as session:
            began, number = time.monotonic(), 0
            while not stopping.is_set():
                tasks.append(asyncio.create_task(self.ask(session, bodies[number % len(bodies)])))
                number += 1
                await asyncio.sleep(max(0.0, began + number * _PERIOD_SECONDS - time.monotonic()))
            return [seconds for seconds, _ in await asyncio.gather(*tasks)]


def body_of(image: bytes) -> bytes:
    """One request."""
    uri = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
    return json.dumps({"model": "demo", "input": {"image": uri}, "encoding_format": "base64"}).encode()


def images(count: int) -> Iterator[bytes]:
    """JPEGs that all differ, though few are drawn: a number stands in the padding behind the image."""
    drawn = [encoded(photo(number, _WIDTH, _HEIGHT), quality=_QUALITY) for number in range(_DRAWN)]
    for number in range(count):
        yield drawn[number % _DRAWN] + number.to_bytes(4, "big")


class Bench:
    """A worker, a gateway, and the two ways to have images done."""

    def __init__(self, cluster: Cluster, client: Client, door: Door) -> None:
        self._cluster = cluster
        self._client = client
        self._jobs = 0
        self.door = door

    def folder_job(
        self, source: Path | list[str], items: int, lane: Lane = Lane.NORMAL
    ) -> tuple[float, np.ndarray]:
        """Images a second of a job with an output in a folder, and its vectors."""
        self._jobs += 1
        options = JobOptions(model="demo", lane=lane, output=self._cluster.folder / f"output-{self._jobs}")
        job = self._client.embed(source if isinstance(source, list) else str(source), options=options)
        status = job.wait()
        if status.ok != items or status.finished_ms is None:
            raise SystemExit(f"the job is {status}\n{self._cluster.logs()}")
        return items / (status.finished_ms - status.created_ms) * 1000, job.vectors()[1]

    def beside_requests(self, source: list[str], bodies: Sequence[bytes]) -> tuple[float, list[float]]:
        """Images a second of a bulk job, and the seconds of one request each second meanwhile."""
        stopping, found = threading.Event(), list[float]()
        asking = threading.Thread(
            target=lambda: found.extend(asyncio.run(self.door.each_second(bodies, stopping)))
        )
        asking.start()
        try:
            rate, _ = self.folder_job(source, len(source), Lane.BULK)
        finally:
            stopping.set()
            asking.join()
        return rate, found


def measure_rate(report: Report, bench: Bench, folder: Path, connections: int, rounds: int) -> None:
    """The folder job and the requests in turns."""
    files = sorted(folder.iterdir())
    bodies = [body_of(file.read_bytes()) for file in files]
    table = report.table({
        "what": "<16", "images/s": ">9.0f", "p50 ms": ">7.0f", "p95 ms": ">7.0f", "most ms": ">8.0f",
    })  # fmt: skip
    shares, seconds = [], list[float]()
    difference = 0.0
    for _ in range(rounds):
        rate, vectors = bench.folder_job(folder, len(files))
        table.row("folder job", rate, "-", "-", "-")
        found = asyncio.run(bench.door.all(bodies, connections))
        milliseconds = [1000 * one for one in found.seconds]
        table.row(
            f"{connections} connections", found.rate,
            *(quantile(milliseconds, share) for share in (0.5, 0.95)), max(milliseconds),
        )  # fmt: skip
        shares.append(found.rate / rate)
        seconds += found.seconds
        difference = max(difference, float(np.abs(found.vectors - vectors.astype(np.float32)).max()))
    report.fact("seconds", seconds)
    report.goal("share of the folder job's rate", statistics.median(shares), at_least=MIN_SHARE)
    report.goal("largest difference of vectors", difference, at_most=MAX_DIFFERENCE)


def measure_beside_bulk(report: Report, bench: Bench, folder: Path, seconds: float, rounds: int) -> None:
    """Bulk jobs alone and beside one request a second, in turns."""
    files = [str(file) for file in sorted(folder.iterdir())]
    bodies = [body_of(Path(file).read_bytes()) for file in files[:64]]
    rate, _ = bench.folder_job(files, len(files), Lane.BULK)
    items = int(rate * seconds)
    source = [files[number % len(files)] for number in range(items)]
    table = report.table({
        "what": "<16", "bulk images/s": ">13.0f", "requests": ">8d", "p50 s": ">7.3f", "p95 s": ">7.3f",
        "most s": ">7.3f",
    })  # fmt: skip
    losses, asked = [], list[float]()
    for number in range(rounds):
        if number % 2:
            beside, found = bench.beside_requests(source, bodies)
            alone, _ = bench.folder_job(source, items, Lane.BULK)
        else:
            alone, _ = bench.folder_job(source, items, Lane.BULK)
            beside, found = bench.beside_requests(source, bodies)
        table.row("bulk alone", alone, 0, "-", "-", "-")
        table.row("both", beside, len(found), quantile(found, 0.5), quantile(found, 0.95), max(found))
        losses.append(1 - beside / alone)
        asked += found
    report.fact("seconds beside bulk", asked)
    report.goal("p95 seconds beside bulk", quantile(asked, 0.95), at_most=MAX_P95_SECONDS)
    report.goal("share that the bulk job loses", statistics.median(losses), at_most=MAX_BULK_LOSS)


def main() -> int:
    """Print the tables; return 1 if a goal is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--images", type=positive, default=4000, help="sent one by one, and as a folder")
    parser.add_argument("--connections", type=positive, default=64, help="requests at a time")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a bulk job, about; 0: none")
    parser.add_argument("--rounds", type=positive, default=2, help="of each")
    options = parser.parse_args()
    with (
        Report("gateway", options.json) as report,
        tempfile.TemporaryDirectory(prefix="clipfleet-bench-") as name,
        Cluster(Path(name), {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}) as cluster,
    ):
        cluster.settings["CLIPFLEET_GATEWAY_REQUESTS_PER_MINUTE"] = str(_REQUESTS_PER_MINUTE)
        folder = cluster.folder / "images"
        folder.mkdir()
        for number, image in enumerate(images(options.images)):
            (folder / f"{number:06d}.jpg").write_bytes(image)
        key = made_key(cluster.environment(), "bench")
        cluster.start_worker()
        with (
            GatewayProcess(cluster.environment(), cluster.folder) as gateway,
            Client(cluster.client_settings()) as client,
        ):
            bench = Bench(cluster, client, Door(gateway.url, key))
            some = [body_of(image) for image in images(min(_WARM_UP, options.images))]
            asyncio.run(bench.door.all(some, options.connections))
            measure_rate(report, bench, folder, options.connections, options.rounds)
            if options.seconds:
                measure_beside_bulk(report, bench, folder, options.seconds, options.rounds)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
