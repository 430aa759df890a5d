"""One image a second through `/v1/moderations`, beside a bulk job that fills the worker.

    python -m ops.bench.moderation [--images 2000] [--seconds 30] [--rounds 2]

One worker with the demo model, one gateway, a receiver of webhooks and the client share all cores. The policy
has 20 labels, and decisions are recorded in a folder. Two times are measured from the request on: until its
answer, and until the webhook with its decision has arrived.
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
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import SupportsIndex

import aiohttp
import yaml

from clipfleet.client import Client, JobOptions
from clipfleet.contract.jobs import Lane
from ops.bench.gateway import images
from ops.bench.latency import MAX_BULK_LOSS, quantile
from ops.bench.report import Report, bench_parser, positive
from tests.support.cluster import Cluster
from tests.support.gateway_process import GatewayProcess, gateway_command, made_key
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import Request, WebhookReceiver

MAX_P95_SECONDS = 1.5

_PERIOD_SECONDS = 1.0
_HOOK = "/ok"
_POLICY = {
    "name": "bench",
    "model": "demo",
    "label_sets": {"things": {"kind": "multi", "labels": [f"thing {number}" for number in range(20)]}},
    "rules": [{"when": {"label": "thing 0", "at_least": 0.0}, "action": "flag"}],
}


class Arrivals(list[Request]):
    """Notes when each event has arrived first."""

    def __init__(self) -> None:
        super().__init__()
        self.at: dict[str, float] = {}

    def append(self, request: Request, /) -> None:
        """As of a list."""
        self.at.setdefault(request.event_id, time.perf_counter())
        super().append(request)

    def insert(self, index: SupportsIndex, request: Request, /) -> None:
        """Nothing inserts."""
        raise NotImplementedError


class Bench:
    """A worker with a gateway, and what is asked of them."""

    def __init__(self, cluster: Cluster, client: Client, url: str, key: str) -> None:
        self._cluster = cluster
        self._client = client
        self._url = f"{url}/v1/moderations"
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._jobs = 0

    def bulk(self, source: Sequence[str]) -> float:
        """Images a second of a bulk job."""
        self._jobs += 1
        output = self._cluster.folder / f"output-{self._jobs}"
        options = JobOptions(model="demo", lane=Lane.BULK, output=output)
        status = self._client.embed(list(source), options=options).wait()
        if status.ok != len(source) or status.finished_ms is None:
            raise SystemExit(f"the job is {status}\n{self._cluster.logs()}")
        return len(source) / (status.finished_ms - status.created_ms) * 1000

    async def ask(self, session: aiohttp.ClientSession, body: bytes) -> tuple[float, float, str]:
        """When an image was sent, when it was answered, and the id of its event."""
        began = time.perf_counter()
        async with session.post(self._url, data=body, headers=self._headers) as response:
            text = await response.read()
            answered = time.perf_counter()
            if response.status != 200:
                raise SystemExit(f"{response.status}: {text.decode()}")
        (result,) = json.loads(text)["results"]
        if result["decision"] != "flag":
            raise SystemExit(f"an image is {result}")
        return began, answered, f"evt-{result['decision_id']}"

    async def each_second(
        self, bodies: Sequence[bytes], stopping: threading.Event
    ) -> list[tuple[float, float, str]]:
        """One image each second, until stopped."""
        tasks = []
        async with aiohttp.ClientSession() as session:
            began, number = time.monotonic(), 0
            while not stopping.is_set():
                tasks.append(asyncio.create_task(self.ask(session, bodies[number % len(bodies)])))
                number += 1
                await asyncio.sleep(max(0.0, began + number * _PERIOD_SECONDS - time.monotonic()))
            return list(await asyncio.gather(*tasks))

    def beside(
        self, source: Sequence[str], bodies: Sequence[bytes]
    ) -> tuple[float, list[tuple[float, float, str]]]:
        """Images a second of a bulk job, and what came of the requests meanwhile."""
        stopping, found = threading.Event(), list[tuple[float, float, str]]()
        asking = threading.Thread(
            target=lambda: found.extend(asyncio.run(self.each_second(bodies, stopping)))
        )
        asking.start()
        try:
            rate = self.bulk(source)
        finally:
            stopping.set()
            asking.join()
        return rate, found


def body_of(image: bytes) -> bytes:
    """One request."""
    uri = f"data:image/jpeg;base64,{base64.b64encode(image).decode()}"
    part = {"type": "image_url", "image_url": {"url": uri}}
    return json.dumps({"model": "bench", "input": [part]}).encode()


def measure(
    report: Report, bench: Bench, arrivals: Arrivals, folder: Path, seconds: float, rounds: int
) -> None:
    """Bulk jobs alone and beside one request a second, in turns."""
    files = [str(file) for file in sorted(folder.iterdir())]
    bodies = [body_of(Path(file).read_bytes()) for file in files[:64]]
    items = int(bench.bulk(files) * seconds)
    source = [files[number % len(files)] for number in range(items)]
    table = report.table({
        "what": "<16", "bulk images/s": ">13.0f", "requests": ">8d", "p50 s": ">7.3f", "p95 s": ">7.3f",
        "most s": ">7.3f",
    })  # fmt: skip
    losses, answers, events = [], list[float](), list[float]()
    for _ in range(rounds):
        alone = bench.bulk(source)
        rate, found = bench.beside(source, bodies)
        names = {one for _, _, one in found}
        wait_until(partial(names.issubset, arrivals.at), "events arrive", 60)
        answered = [at - began for began, at, _ in found]
        arrived = [arrivals.at[one] - began for began, _, one in found]
        table.row("bulk alone", alone, 0, "-", "-", "-")
        for what, times in (("answers", answered), ("webhooks", arrived)):
            table.row(what, rate, len(times), quantile(times, 0.5), quantile(times, 0.95), max(times))
        losses.append(1 - rate / alone)
        answers += answered
        events += arrived
    report.fact("seconds until the answer", answers)
    report.fact("seconds until the webhook", events)
    report.goal("p95 seconds until the answer", quantile(answers, 0.95), at_most=MAX_P95_SECONDS)
    report.goal("p95 seconds until the webhook", quantile(events, 0.95), at_most=MAX_P95_SECONDS)
    report.goal("share that the bulk job loses", statistics.median(losses), at_most=MAX_BULK_LOSS)


def main() -> int:
    """Print the table; return 1 if a goal is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--images", type=positive, default=2000, help="that differ")
    parser.add_argument("--seconds", type=float, default=30.0, help="of a bulk job, about")
    parser.add_argument("--rounds", type=positive, default=2, help="alone and with requests")
    options = parser.parse_args()
    with (
        Report("moderation", options.json) as report,
        tempfile.TemporaryDirectory(prefix="clipfleet-bench-") as name,
        Cluster(Path(name), {"OMP_NUM_THREADS": str(os.cpu_count() or 1)}) as cluster,
        WebhookReceiver() as receiver,
    ):
        arrivals = receiver.requests = Arrivals()
        folder = cluster.folder / "images"
        folder.mkdir()
        for number, image in enumerate(images(options.images)):
            (folder / f"{number:06d}.jpg").write_bytes(image)
        policy = cluster.folder / "policy.yaml"
        policy.write_text(yaml.safe_dump(_POLICY))
        environment = cluster.environment()
        key = made_key(environment, "bench")
        gateway_command(environment, "policies", "add", str(policy)).check_returncode()
        cluster.run("webhooks", "add", receiver.url(_HOOK), "--event", "decision.flag").check_returncode()
        cluster.start_worker()
        with (
            GatewayProcess(environment, cluster.folder) as gateway,
            Client(cluster.client_settings()) as client,
        ):
            bench = Bench(cluster, client, gateway.url, key)
            measure(report, bench, arrivals, folder, options.seconds, options.rounds)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
