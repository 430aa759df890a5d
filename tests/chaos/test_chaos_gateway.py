"""A batch whose gateways, worker and Redis are killed in the middle: every line is answered exactly once.

`make chaos-gateway` has 5,000 lines; here are fewer, unless GATEWAY_LINES says otherwise.
"""

from __future__ import annotations

import base64
import os
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfleet_worker.machine.embedded.server import free_port
from tests.support.batches import jsonl, line
from tests.support.cluster import Cluster
from tests.support.faulty_redis import SETTINGS
from tests.support.gateway_client import FINAL, GatewayClient
from tests.support.gateway_process import GatewayProcess, made_key
from tests.support.http_site import HttpSite
from tests.support.images import write_images
from tests.support.waiting import wait_until

LINES = int(os.environ.get("GATEWAY_LINES", "400"))
SECONDS = 120 + LINES / 10  # of a wait; a killed gateway holds a batch for 20 s
HELD_EVERY, BAD_EVERY, TWO_EVERY = 5, 50, 10
NO_IMAGE = f"data:image/jpeg;base64,{base64.b64encode(b'no image').decode()}"

pytestmark = [pytest.mark.figures, pytest.mark.timeout(900 + LINES / 2)]


class Replicas:
    """Two gateways over one place, each at a port that it keeps."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._ports = [free_port(), free_port()]
        self._running: dict[int, GatewayProcess] = {}
        self._started = 0

    @property
    def urls(self) -> list[str]:
        return [f"http://127.0.0.1:{port}" for port in self._ports]

    def start(self, number: int) -> None:
        self._started += 1
        process = GatewayProcess(
            self._cluster.environment(), self._cluster.folder, "--port", str(self._ports[number]),
            name=f"gateway-{self._started}",
        )  # fmt: skip
        self._running[number] = process
        assert process.url == self.urls[number]

    def kill(self, number: int) -> None:
        self._running.pop(number).kill()

    def end(self) -> None:
        for process in self._running.values():
            process.kill()


@dataclass
class Poller:
    """A program that asks for its batch all the time, as any client does."""

    client: GatewayClient
    batch_id: str
    seen: list[dict[str, Any]] = field(default_factory=list)
    error: BaseException | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        ends = threading.Event()
        thread = threading.Thread(target=self._run, args=(ends,))
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()

    def _run(self, ends: threading.Event) -> None:
        try:
            while not ends.wait(0.05):
                self.seen.append(self.client.batch(self.batch_id))
        except BaseException as error:  # raised by the test
            self.error = error

    def until(self, status: str, answered: int = 0, site: HttpSite | None = None) -> None:
        """Wait until the batch has this status, and so many lines are done or have failed.

        Meanwhile the site answers one request after the other.
        """

        def is_so() -> bool:
            if site is not None:
                site.heal(1)
            if self.error is not None:
                raise self.error
            last = self.seen[-1] if self.seen else None
            if last is None or last["status"] != status:
                assert last is None or last["status"] not in FINAL or status in FINAL, last
                return False
            counts = last["request_counts"]
            return bool(counts["completed"] + counts["failed"] >= answered)

        wait_until(is_so, f"the batch is {status}, with {answered} lines", SECONDS)


def batch_of(site: HttpSite, data: list[bytes]) -> tuple[bytes, dict[str, tuple[int, ...]], set[str]]:
    """The lines of a batch, which images each valid line has, and the lines that are wrong."""
    inline = [f"data:image/jpeg;base64,{base64.b64encode(one).decode()}" for one in data]
    lines, images, bad = [], {}, set()
    for number in range(LINES):
        custom_id, image = f"line-{number}", number % len(data)
        first = site.url(f"/held/{image:06d}.jpg?{number}") if number % HELD_EVERY == 0 else inline[image]
        second = (image + 1) % len(data)
        inputs = [{"image": first}]
        if number % TWO_EVERY == 3:
            inputs.append({"image": inline[second]})
        if number % BAD_EVERY == 7:
            inputs.append({"image": NO_IMAGE})
            bad.add(custom_id)
        else:
            images[custom_id] = (image, second)[: len(inputs)]
        lines.append(line(custom_id, {"model": "demo", "input": inputs, "encoding_format": "base64"}))
    return jsonl(*lines), images, bad


def kill_all_in_turn(
    cluster: Cluster, replicas: Replicas, site: HttpSite, poller: Poller
) -> dict[str, float]:
    """Kill a gateway, a worker, Redis and the other gateway; returns when, in seconds."""
    began = time.monotonic()
    at: dict[str, float] = {}

    def note(what: str) -> None:
        at[what] = round(time.monotonic() - began, 1)

    replicas.kill(0)
    note("gateway")
    poller.until("in_progress")
    replicas.start(0)
    poller.until("in_progress", LINES // 16, site)
    cluster.workers[0].kill()
    note("worker")
    cluster.start_worker()
    poller.until("in_progress", LINES // 4, site)
    cluster.server.child.kill()
    note("Redis")
    asked = len(poller.seen)
    wait_until(lambda: len(poller.seen) > asked + 3, "the gateways answer without Redis", SECONDS)
    cluster.server.start_again()
    cluster.server.child.wait_ready()
    site.heal()
    wait_until(
        lambda: poller.seen[-1]["status"] != "in_progress" or poller.error, "the job has ended", SECONDS
    )
    replicas.kill(1)
    note("other gateway")
    poller.until("completed")
    note("completed")
    return at


def test_every_line_is_answered_exactly_once(tmp_path: Path) -> None:
    folder = tmp_path / "work"
    paths = write_images(folder / "site", 20)
    with HttpSite(folder / "site") as site, Cluster(folder, SETTINGS) as cluster:
        replicas = Replicas(cluster)
        token = made_key(cluster.environment(), "mine")
        try:
            for number in range(2):
                cluster.start_worker()
                replicas.start(number)
            client = GatewayClient(replicas.urls, token)
            sent, images, bad = batch_of(site, [path.read_bytes() for path in paths])
            batch = client.begin(client.upload(sent))
            poller = Poller(GatewayClient(replicas.urls, token), batch["id"])
            with poller.running():
                at = kill_all_in_turn(cluster, replicas, site, poller)
            assert poller.error is None
            ended = client.batch(batch["id"])
            done, failed = client.lines(ended["output_file_id"]), client.lines(ended["error_file_id"])
            handle = cluster.embed([str(path) for path in paths])
            handle.wait(60)
            _, expected = handle.vectors()
        finally:
            replicas.end()

    answered = Counter(one["custom_id"] for one in (*done, *failed))
    assert answered == Counter([*images, *bad])
    assert {one["custom_id"] for one in failed} == bad
    assert {one["error"]["code"] for one in failed} == {"not_an_image"}
    assert ended["request_counts"] == {"total": LINES, "completed": len(images), "failed": len(bad)}
    for one in done:
        found = [
            np.frombuffer(base64.b64decode(each["embedding"]), "<f4")
            for each in one["response"]["body"]["data"]
        ]
        np.testing.assert_allclose(found, expected[[*images[one["custom_id"]]]], atol=1e-3)
    print(f"{LINES} lines; killed after (s): {at}")
    print(f"polls {len(poller.seen)}, repeated {Counter([*client.retries, *poller.client.retries])}")
