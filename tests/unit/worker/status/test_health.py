"""Well, ready or neither; and the pages that tell it."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from types import SimpleNamespace
from typing import Any, cast
from urllib.error import HTTPError
from urllib.request import Request, urlopen

import pytest

from clipfleet.errors import UsageError
from clipfleet.ledger.jobs import Lease, Ledger
from clipfleet_worker.chunk.leases import LeaseKeeper
from clipfleet_worker.chunk.tally import ChunkTally
from clipfleet_worker.process.reconciler import Reachability
from clipfleet_worker.process.watchdog import Watchdog
from clipfleet_worker.status.health import Health, health_pages
from clipfleet_worker.status.server import Page, StatusServer
from tests.support.doubles import Clock


class Bench:
    """A worker that holds one chunk and has completed seven."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.watchdog = Watchdog(monotonic=self.clock, exit_process=lambda _: None)
        self.keeper, self.tally = LeaseKeeper(cast(Ledger, None), 30), ChunkTally()
        self.redis = Reachability(20, self.clock)
        self.redis.note(True)
        self.has_started, self.drains = True, False
        claims = SimpleNamespace(held=lambda: ["a chunk"], oldest_held_seconds=9.0)
        endings = SimpleNamespace(completed=7, tally=self.tally)
        self.health = Health(
            worker_id="me", watchdog=self.watchdog, keeper=self.keeper, claims=cast(Any, claims),
            endings=cast(Any, endings), redis=self.redis, has_started=lambda: self.has_started,
            is_draining=lambda: self.is_draining(), hints_refused=lambda: {"no JSON": 3},
            monotonic=self.clock,
        )  # fmt: skip

    def is_draining(self) -> bool:
        return self.drains


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_a_loop_that_hangs_is_a_problem(bench: Bench) -> None:
    bench.watchdog.pulse("batcher").enter("encode", 10)
    bench.clock.now += 10
    assert bench.health.problems() == bench.health.obstacles() == []
    bench.clock.now += 1
    assert bench.health.problems() == ["batcher: encode hangs"]


def test_a_chunk_that_hangs_is_a_problem_before_the_watchdog_ends_the_process(bench: Bench) -> None:
    bench.watchdog.watch(bench.keeper.phases)
    with bench.keeper.hold(Lease("job", "4", "token")) as lease:
        lease.enter("write", 300)
        assert bench.health.problems() == []
        lease.enter("write", 0)
        assert bench.health.problems() == ["chunk 4 of job job: write hangs"]
        assert bench.watchdog.overdue() == []
    assert bench.health.problems() == []


def test_before_the_start_it_is_neither(bench: Bench) -> None:
    bench.has_started = False
    assert bench.health.problems() == bench.health.obstacles() == ["starting"]


def test_a_worker_that_drains_or_misses_redis_is_healthy_but_not_ready(bench: Bench) -> None:
    bench.drains = True
    bench.redis.note(False)
    assert bench.health.problems() == []
    assert bench.health.obstacles() == ["draining", "Redis is away"]


def test_an_old_answer_of_redis_does_not_count(bench: Bench) -> None:
    bench.clock.now += 20
    assert bench.redis.is_ok
    assert bench.redis.for_seconds == 20
    bench.clock.now += 1
    assert not bench.redis.is_ok
    assert bench.redis.for_seconds == 21
    bench.redis.note(False)
    bench.clock.now += 5
    assert bench.redis.for_seconds == 26  # since the last answer
    bench.redis.note(True)
    bench.clock.now += 2
    assert (bench.redis.is_ok, bench.redis.for_seconds) == (True, 2)


@pytest.fixture
def server(bench: Bench) -> Iterator[StatusServer]:
    def more() -> Page:
        return Page(cast(Any, 200), b"x 1\n", "text/plain")

    server = StatusServer("127.0.0.1", 0, {**health_pages(bench.health), "/metrics": more})
    server.start()
    yield server
    server.stop()


def get(server: StatusServer, path: str, method: str = "GET") -> tuple[int, str]:
    try:
        with urlopen(Request(server.url + path, method=method), timeout=60) as answer:  # noqa: S310 - ours
            return answer.status, answer.read().decode()
    except HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_the_pages(bench: Bench, server: StatusServer) -> None:
    bench.watchdog.pulse("batcher").enter("encode", 10)
    bench.clock.now += 2
    code, text = get(server, "/healthz")
    report = json.loads(text)
    assert code == 200
    assert (report["worker_id"], report["chunks_held"], report["chunks_completed"]) == ("me", 1, 7)
    assert report["hints_refused"] == {"no JSON": 3}
    assert report["redis"] == {"ok": True, "for_seconds": 2}
    assert report["phases"] == [{"loop": "batcher", "phase": "encode", "seconds": 2, "limit_seconds": 10}]
    assert get(server, "/readyz?verbose") == (200, '{\n "ready": true,\n "obstacles": []\n}\n')

    bench.clock.now += 9
    assert get(server, "/healthz")[0] == get(server, "/readyz")[0] == 503
    assert get(server, "/healthz", "HEAD") == (503, "")
    assert get(server, "/metrics") == (200, "x 1\n")
    assert get(server, "/other")[0] == 404
    assert get(server, "/healthz", "POST")[0] == 501


def test_a_silent_client_does_not_block_others(server: StatusServer) -> None:
    host, port = server.url.removeprefix("http://").split(":")
    with socket.create_connection((host, int(port))):
        assert get(server, "/healthz")[0] == 200


def test_a_port_that_is_taken_is_reported_in_one_line(server: StatusServer) -> None:
    port = int(server.url.rpartition(":")[2])
    with pytest.raises(UsageError, match=f"CLIPFLEET_HEALTH_PORT: cannot listen at 127.0.0.1 port {port}"):
        StatusServer("127.0.0.1", port, {})
    with pytest.raises(UsageError, match="CLIPFLEET_HEALTH_HOST"):
        StatusServer("no such host", 0, {})
