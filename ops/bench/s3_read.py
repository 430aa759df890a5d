"""The CPU time of reading an object from S3: boto3 in threads, the worker's own connections, and obstore.

Two stores: one that answers any GET at once, to show the client's cost alone, and the embedded SeaweedFS,
which shares the cores with the client. All routes have 64 objects in flight and alternate. CPU is user +
system of the reading process, per object. obstore is included if it is installed.

    python -m ops.bench.s3_read
"""

from __future__ import annotations

import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractAsyncContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import IO, cast

from clipfleet.s3.client import connect, make_client
from clipfleet_worker.fetch.s3.boto import BotoReader, S3Limits
from clipfleet_worker.fetch.s3.fetcher import S3Fetcher
from clipfleet_worker.machine.embedded.s3 import BUCKET, EmbeddedS3
from ops.bench.report import Report, Table, bench_parser, positive
from ops.bench.rounds import in_turns, median_ratio

KILOBYTES = (20, 70)
OBJECTS = 100  # different ones of each size
CONNECTIONS = 64
MIN_RATIO = 1.5  # below it connections of our own are not worth their code
BOTO, OWN, OBSTORE = "boto3 in threads", "own session", "obstore"
LIMITS = S3Limits(max_image_bytes=1 << 20, fetch_timeout_seconds=60, connections=CONNECTIONS)

Read = Callable[[str], Awaitable[bytes]]  # an object by its key
Route = Callable[[], AbstractAsyncContextManager[Read]]


@dataclass(frozen=True, slots=True)
class Cost:
    """The cost of one run of one route."""

    objects_per_second: float
    cpu_microseconds: float  # per object


def main() -> int:
    """Measure; return 1 if our own connections are not worth their code."""
    parser = bench_parser(__doc__)
    parser.add_argument("--rounds", type=positive, default=5, help="runs of each route")
    parser.add_argument("--objects", type=positive, default=1500, help="read in each run")
    parser.add_argument("--serve", action="store_true", help="be the store that answers at once")
    options = parser.parse_args()
    if options.serve:
        asyncio.run(serve())
        return 0
    formats = {
        "store": "<18",
        "KB": ">4",
        "route": "<18",
        "objects/s": ">9.0f",
        "CPU us": ">7.0f",
        "boto3/this": ">6.2f",
    }
    with Report("s3_read", options.json) as report:
        table = report.table(formats)
        for name, store in (("answers at once", instant_store), ("SeaweedFS", seaweedfs)):
            with store():
                for kilobytes in KILOBYTES:
                    ratio = compare(table, name, kilobytes, options.rounds, options.objects)
                    report.goal(f"{name}, {kilobytes} KB: CPU of boto3 / own", ratio, at_least=MIN_RATIO)
    return report.exit_code


def compare(table: Table, store: str, kilobytes: int, rounds: int, objects: int) -> float:
    """Print one row for each route; the ratio of boto3's CPU time to ours."""
    routes: dict[str, Route] = {BOTO: through_boto3, OWN: over_own_session}
    if find_spec("obstore"):
        routes[OBSTORE] = through_obstore
    found: dict[str, list[Cost]] = {name: [] for name in routes}

    def run(name: str) -> float:
        found[name].append(asyncio.run(cost_of(routes[name], kilobytes, objects)))
        return found[name][-1].cpu_microseconds

    cpu = in_turns({name: partial(run, name) for name in routes}, rounds)
    for name in routes:
        rate = statistics.median(one.objects_per_second for one in found[name][1:])
        table.row(
            store, kilobytes, name, rate, statistics.median(cpu[name]), median_ratio(cpu[BOTO], cpu[name])
        )
    return median_ratio(cpu[BOTO], cpu[OWN])


async def cost_of(route: Route, kilobytes: int, objects: int) -> Cost:
    """Read a number of objects, after some that open the connections."""
    keys = [f"{kilobytes}/{number % OBJECTS:03d}.jpg" for number in range(objects)]
    turns = asyncio.Semaphore(CONNECTIONS)
    async with route() as read:

        async def one(key: str) -> None:
            async with turns:
                data = await read(key)
            if len(data) != kilobytes * 1000:
                raise RuntimeError(f"{key}: {len(data)} bytes")

        await asyncio.gather(*map(one, keys[: 2 * CONNECTIONS]))
        began, cpu = time.perf_counter(), time.process_time()
        await asyncio.gather(*map(one, keys))
        seconds, cpu_seconds = time.perf_counter() - began, time.process_time() - cpu
    return Cost(objects / seconds, cpu_seconds / objects * 1e6)


@asynccontextmanager
async def through_boto3() -> AsyncIterator[Read]:
    """One client, with its calls in as many threads as there are connections."""
    reader = BotoReader(LIMITS, lambda: connect(connections=CONNECTIONS, attempts=1))
    loop = asyncio.get_running_loop()
    with ThreadPoolExecutor(CONNECTIONS) as pool:

        async def read(key: str) -> bytes:
            learned = await loop.run_in_executor(pool, reader.get, BUCKET, key, "")
            return learned.answer.data or b""

        yield read


@asynccontextmanager
async def over_own_session() -> AsyncIterator[Read]:
    """Read through the worker's fetcher."""
    fetcher = S3Fetcher(LIMITS, (), lambda: connect(connections=CONNECTIONS, attempts=1))
    await fetcher.start()
    try:
        yield lambda key: fetcher.fetch(f"s3://{BUCKET}/{key}")
    finally:
        await fetcher.close()


@asynccontextmanager
async def through_obstore() -> AsyncIterator[Read]:
    """Read through Rust's object_store, with its own connections."""
    from obstore.store import S3Store

    store = S3Store(
        BUCKET,
        endpoint=os.environ["AWS_ENDPOINT_URL"],
        access_key_id=os.environ["AWS_ACCESS_KEY_ID"],
        secret_access_key=os.environ["AWS_SECRET_ACCESS_KEY"],
        region=os.environ["AWS_REGION"],
        client_options={"allow_http": True},
    )

    async def read(key: str) -> bytes:
        return bytes(await (await store.get_async(key)).bytes_async())

    yield read


@contextmanager
def instant_store() -> Iterator[None]:
    """The store that answers at once, in a process of its own."""
    command = [sys.executable, "-m", "ops.bench.s3_read", "--serve"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        port = int(cast(IO[str], server.stdout).readline())
        try:
            with environment(
                {
                    "AWS_ENDPOINT_URL": f"http://127.0.0.1:{port}",
                    "AWS_ACCESS_KEY_ID": "key",
                    "AWS_SECRET_ACCESS_KEY": "secret",
                    "AWS_REGION": "us-east-1",
                }
            ):
                yield
        finally:
            server.kill()


@contextmanager
def seaweedfs() -> Iterator[None]:
    """An embedded SeaweedFS with the objects in it."""
    with tempfile.TemporaryDirectory() as folder:
        server = EmbeddedS3(Path(folder))
        server.start()
        try:
            with environment(server.environment()):
                client = make_client()
                for kilobytes in KILOBYTES:
                    for number in range(OBJECTS):
                        key = f"{kilobytes}/{number:03d}.jpg"
                        client.put_object(Bucket=BUCKET, Key=key, Body=os.urandom(kilobytes * 1000))
                yield
        finally:
            server.stop()


@contextmanager
def environment(variables: Mapping[str, str]) -> Iterator[None]:
    """Set these `AWS_*` variables and no others within the context."""
    before = {name: value for name, value in os.environ.items() if name.startswith("AWS_")}
    for name in before:
        del os.environ[name]
    os.environ.update(variables)
    try:
        yield
    finally:
        for name in variables:
            del os.environ[name]
        os.environ.update(before)


class Instant(asyncio.Protocol):
    """A connection to the store that answers at once; the path has the size."""

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See `asyncio.Protocol`."""
        self._transport = cast(asyncio.Transport, transport)
        self._received = b""

    def data_received(self, data: bytes) -> None:
        """See `asyncio.Protocol`."""
        self._received += data
        while b"\r\n\r\n" in self._received:
            head, _, self._received = self._received.partition(b"\r\n\r\n")
            line = head.split(b"\r\n", 1)[0]
            body = bytes(next(size for size in KILOBYTES if b"/%d/" % size in line) * 1000)
            lines = f"HTTP/1.1 200 OK\r\nContent-Length: {len(body)}\r\nContent-Type: image/jpeg\r\n"
            times = 'Last-Modified: Thu, 26 Nov 2026 00:00:00 GMT\r\nETag: "0123456789abcdef"\r\n\r\n'
            self._transport.write((lines + times).encode() + body)


async def serve() -> None:
    """Answer until killed; the first line on stdout is the port."""
    server = await asyncio.get_running_loop().create_server(Instant, "127.0.0.1", 0)
    print(server.sockets[0].getsockname()[1], flush=True)
    await server.serve_forever()


if __name__ == "__main__":
    sys.exit(main())
