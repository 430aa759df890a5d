"""A worker and a producer whose Redis is behind a proxy that breaks connections, and jobs that run meanwhile.

Images come from a site that answers as many requests as it is allowed to, so that chunks are under way at
any time a test wants.
"""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.contract.jobs import JobState
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from clipfleet.settings import Settings
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from ops.chaos.proxy import Proxy
from tests.support.cluster import Cluster, WorkerProcess, job_events
from tests.support.http_site import HttpSite
from tests.support.images import write_images
from tests.support.waiting import wait_until

ITEMS = 160
CHUNK_SIZE = 8
AT_ONCE = 64  # items that are open in the worker
SETTINGS = {
    "CLIPFLEET_ITEMS_IN_FLIGHT": str(AT_ONCE),
    "CLIPFLEET_HOST_CONNECTIONS": "128",
    "CLIPFLEET_FETCH_TIMEOUT_SECONDS": "300",
    "CLIPFLEET_CHUNK_DEADLINE_SECONDS": "600",
    "CLIPFLEET_RECONCILE_SECONDS": "1",  # a lease that could be reclaimed too early is
}
# What a worker says when it has counted something against a chunk.
BLAME = ("leases had expired", "hangs", "failed:", "chunk not processed", "not finished", "thread_died")


class FaultyRedis:
    """One Valkey, the proxy in front of it, one worker; usable as a context manager."""

    def __init__(self, folder: Path, settings: dict[str, str] | None = None) -> None:
        self.cluster = Cluster(folder, SETTINGS)
        self.proxy = Proxy(0)  # until the server has its port
        self._running = ExitStack()
        self.url = ""
        self._extra = settings or {}
        self.images = folder / "site"
        self._jobs = 0

    def __enter__(self) -> Self:
        write_images(self.images, 20)
        with ExitStack() as starting:
            starting.enter_context(self.proxy)  # stopped last: the worker cleans up through it
            starting.enter_context(self.cluster)
            self.proxy.retarget(self.server_port)
            self.url = self.cluster.server.url.replace(f":{self.server_port}/", f":{self.proxy.port}/")
            self.cluster.settings |= {"CLIPFLEET_REDIS_URL": self.url} | self._extra
            self.worker: WorkerProcess = self.cluster.start_worker()
            self._running = starting.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._running.__exit__(kind, error, trace)

    @property
    def server_port(self) -> int:
        """Where the server itself listens."""
        return int(self.cluster.server.url.rpartition(":")[2].partition("/")[0])

    def admin(self) -> redis.Redis:
        """A client that goes around the proxy."""
        return connect(self.cluster.server.url)

    def take_over(self, server: EmbeddedValkey) -> None:
        """The server dies, and another one is found in its place."""
        self.cluster.server.child.kill()
        self.cluster.server = server
        self.proxy.retarget(self.server_port)
        self.proxy.reset()

    @contextmanager
    def config(self, **values: str | int) -> Iterator[None]:
        """Settings of the server (`_` for `-`), and what they were before afterwards."""
        with self.admin() as admin:
            names = {name: name.replace("_", "-") for name in values}
            before = {names[name]: admin.config_get(names[name])[names[name]] for name in values}
            for name, value in values.items():
                admin.config_set(names[name], value)
            try:
                yield
            finally:
                for setting, value in before.items():
                    admin.config_set(setting, value)

    @contextmanager
    def running_jobs(self) -> Iterator[RunningJobs]:
        """Two jobs that have begun, one with a folder, one with rows in Redis. They must end exactly."""
        self._jobs += 1
        with HttpSite(self.images) as site, Client(Settings(redis_url=self.url)) as client:  # type: ignore[arg-type]
            urls = [site.url(f"/held/{number % 20:06d}.jpg?{number}") for number in range(ITEMS)]
            folder = self.cluster.folder / f"out-{self._jobs}"
            handles = [
                client.embed(urls, options=JobOptions(output=output, model="demo", chunk_size=CHUNK_SIZE))
                for output in (folder, None)
            ]
            jobs = RunningJobs(self, site, handles, len(self.worker.log()))
            site.heal(3 * CHUNK_SIZE)
            wait_until(lambda: jobs.is_under_way(1), "a few chunks are done, others are under way")
            yield jobs
            jobs.require_exact()


@dataclass
class RunningJobs:
    """Jobs in the middle of their work."""

    bed: FaultyRedis
    site: HttpSite
    handles: list[JobHandle]
    log_begin: int
    healed_at: float = 0.0
    done_at_heal: int = 0
    blame: tuple[str, ...] = BLAME

    def done_chunks(self) -> int:
        """Of both jobs, as the server itself says."""
        with self.bed.admin() as admin:
            counts = [admin.hget(keys.job(handle.job_id), "done_chunks") for handle in self.handles]
        return sum(int(count or 0) for count in counts)

    def are_known_by(self, server: redis.Redis) -> bool:
        """Whether another server has all of them by now."""
        names = [keys.job(handle.job_id) for handle in self.handles]
        return server.info("replication")["master_link_status"] == "up" and server.exists(*names) == 2

    def is_under_way(self, done: int) -> bool:
        with self.bed.admin() as admin:
            return self.done_chunks() >= done and admin.zcard(keys.LEASES) > 0

    def go_on(self, images: int = AT_ONCE) -> None:
        """Let chunks that are under way come to their end."""
        self.site.heal(images)

    def worker_says(self, *words: str) -> None:
        """The fault has reached the worker: its log has one of these words since the jobs began."""
        wait_until(lambda: any(word in self._said() for word in words), f"the worker says {words}")

    def _said(self) -> str:
        return self.bed.worker.log()[self.log_begin :]

    def fault_is_over(self, done: int | None = None) -> None:
        """From now on everything is as it should be; recovery is counted from here."""
        self.healed_at, self.done_at_heal = time.monotonic(), self.done_chunks() if done is None else done
        self.site.heal()

    def require_exact(self) -> None:
        """Each job has completed with one row per input and one event; nothing was held against a chunk."""
        wait_until(lambda: self.done_chunks() > self.done_at_heal, "chunks are completed", 120)
        recovery_seconds = time.monotonic() - self.healed_at
        for handle in self.handles:
            status = handle.wait(120)
            assert status.state is JobState.COMPLETED, (status, self.bed.cluster.logs())
            indexes = Counter(row["item_index"] for row in handle.results())
            assert indexes == Counter(range(ITEMS)), "one row per input"
            assert (status.total, status.ok, status.failed) == (ITEMS, ITEMS, 0)
            assert len(job_events(self.bed.cluster, handle.job_id)) == 1
        assert self.bed.worker.process.poll() is None, self.bed.cluster.logs()
        assert [line for line in self._said().splitlines() if any(word in line for word in self.blame)] == []
        print(f"first chunk {recovery_seconds:.1f} s after the fault")


def hold(seconds: float) -> None:
    """Let a fault last."""
    time.sleep(seconds)


def until_told(call: Callable[[], Any], seconds: float = 60.0) -> float:
    """Seconds until a call that may fail by `redis.RedisError` succeeds."""
    began = time.monotonic()

    def answers() -> bool:
        try:
            call()
        except redis.RedisError:
            return False
        return True

    wait_until(answers, "Redis answers", seconds)
    return time.monotonic() - began
