"""Submits, retries and rebuilds whose Redis goes away in the middle, and what does not wait for it."""

from __future__ import annotations

import subprocess
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
import redis

from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.contract.jobs import JobState
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger import keys
from clipfleet.outputs import objects
from clipfleet.redis.connection import connect
from clipfleet.settings import Settings
from clipfleet_worker.machine.embedded.server import free_port
from clipfleet_worker.machine.embedded.valkey import valkey_binary
from ops.chaos.proxy import Proxy
from tests.support.waiting import wait_until

ITEMS = 40
CHUNK_SIZE = 8


class Bed:
    """A client of a server that is away until the client says that it waits for it."""

    def __init__(self, redis_url: str, folder: Path) -> None:
        port = redis_url.rpartition(":")[2].partition("/")[0]
        self.proxy = Proxy(int(port))
        self.proxy.start()
        self.url = redis_url.replace(f":{port}/", f":{self.proxy.port}/")
        self.folder = folder
        self.said: list[str] = []
        self.heal: Callable[[], object] = self.proxy.admit
        settings = Settings(redis_url=self.url)  # type: ignore[arg-type]
        self.client = Client(settings, patience_seconds=60, on_trouble=self._hear)

    def _hear(self, text: str) -> None:
        self.said.append(text.partition(" (")[0])
        if self.said[-1] == "Redis is away":
            self.heal()

    def go_away(self) -> None:
        self.proxy.refuse()
        self.proxy.reset()

    def go_away_after_the_first_answer(self) -> None:
        """A ping is a few bytes, whatever comes next is more."""
        self.proxy.refuse()
        self.proxy.cut_after(50, towards="server")

    def urls(self, is_broken: bool) -> Iterator[str]:
        for number in range(ITEMS):
            if is_broken and number == ITEMS // 2:
                self.go_away()
            yield f"https://example.org/{number}.jpg"

    def submit(self, *, is_broken: bool = False, is_redis: bool = False) -> JobHandle:
        output = None if is_redis else self.folder
        options = JobOptions(output=output, model="demo", chunk_size=CHUNK_SIZE, job_id="job")
        return self.client.embed(self.urls(is_broken), options=options)

    def close(self) -> None:
        self.client.close()
        self.proxy.stop()


@pytest.fixture
def bed(redis_url: str, tmp_path: Path) -> Iterator[Bed]:
    bed = Bed(redis_url, tmp_path / "out")
    yield bed
    bed.close()


WAITED = ["Redis is away", "Redis is back"]


@pytest.mark.parametrize("is_redis", [False, True], ids=["folder", "redis"])
def test_a_submit_waits(bed: Bed, is_redis: bool) -> None:
    job = bed.submit(is_broken=True, is_redis=is_redis)

    status = job.status()
    assert (status.state, status.sealed, status.total) == (JobState.RUNNING, True, ITEMS)
    assert bed.said == WAITED


def test_a_retry_waits(bed: Bed) -> None:
    job = bed.submit()
    job.cancel()
    bed.go_away()

    assert job.retry()

    assert (job.status().state, job.status().generation) == (JobState.RUNNING, 1)
    assert bed.said == WAITED


def test_a_rebuild_waits(bed: Bed, redis_client: redis.Redis) -> None:
    bed.submit()
    redis_client.delete(*redis_client.keys(keys.job("job") + "*"))
    bed.go_away_after_the_first_answer()

    job = bed.client.rebuild(bed.folder)

    assert (job.status().state, job.status().total) == (JobState.RUNNING, ITEMS)
    assert bed.said == WAITED


def test_what_only_reads_does_not_wait(bed: Bed) -> None:
    job = bed.submit()
    bed.go_away()

    for call in (job.status, job.cancel, bed.client.jobs, bed.client.workers, lambda: bed.client.job("job")):
        with pytest.raises(RedisUnavailableError):
            call()
    assert bed.said == []


def test_what_has_not_begun_does_not_wait(bed: Bed) -> None:
    bed.submit()
    bed.go_away()

    for call in (bed.submit, lambda: bed.client.rebuild(bed.folder)):
        with pytest.raises(RedisUnavailableError):
            call()
    assert bed.said == []


@contextmanager
def as_replica(url: str, bed: Bed, *, serves: bool) -> Iterator[None]:
    """The server follows a primary that is away, as in the middle of a failover."""
    with connect(url) as admin:

        def take_over() -> None:
            admin.replicaof("NO", "ONE")
            admin.config_set("replica-serve-stale-data", "yes")

        bed.heal = take_over
        admin.config_set("replica-serve-stale-data", "yes" if serves else "no")
        admin.replicaof("127.0.0.1", 1)
        try:
            yield
        finally:
            take_over()


CHANGES: dict[str, Callable[[Bed, JobHandle], object]] = {
    "submit": lambda bed, _: bed.submit(),
    "rebuild": lambda bed, _: bed.client.rebuild(bed.folder),
    "retry": lambda _, job: job.retry(),
    "cancel": lambda _, job: job.cancel(),
    "pause": lambda _, job: job.pause(),
    "resume": lambda _, job: job.resume(),
    "watch": lambda bed, _: bed.client.job("job"),
}


@pytest.mark.parametrize(
    ("call", "serves"), [*((call, False) for call in CHANGES), ("cancel", True), ("pause", True)]
)
def test_first_calls_and_changes_wait_for_a_replica_to_take_over(
    bed: Bed, redis_url: str, call: str, serves: bool
) -> None:
    job = bed.submit()
    if call == "retry":
        job.cancel()

    with as_replica(redis_url, bed, serves=serves):
        CHANGES[call](bed, job)

    assert bed.said == WAITED


def test_a_submit_waits_for_a_server_that_is_busy(bed: Bed, redis_url: str) -> None:
    with connect(redis_url, retries=0) as admin, connect(redis_url, retries=0) as other:
        threshold = admin.config_get("busy-reply-threshold")["busy-reply-threshold"]
        admin.config_set("busy-reply-threshold", 1)
        bed.heal = admin.script_kill

        def keep_busy() -> None:
            with pytest.raises(redis.ResponseError, match="killed"):
                other.eval("while true do end", 0)

        thread = threading.Thread(target=keep_busy)
        thread.start()
        try:
            wait_until(lambda: is_refused(admin, "BUSY"), "the server is busy")
            bed.submit()
        finally:
            thread.join()
            admin.config_set("busy-reply-threshold", threshold)

    assert bed.said == WAITED


def test_a_submit_waits_for_a_server_that_loads_its_data(tmp_path: Path) -> None:
    keys_loaded, port = 3000, free_port()
    words = [str(valkey_binary()), "--port", str(port), "--dir", str(tmp_path), "--save", ""]
    slowly = ["--key-load-delay", "2000", "--loading-process-events-interval-bytes", "1024"]
    url = f"redis://127.0.0.1:{port}/0"
    with running(words), connect(url) as admin:
        wait_until(lambda: not is_refused(admin), "the server answers")
        admin.mset({f"other:{number}": "x" * 100 for number in range(keys_loaded)})
        admin.save()
    bed = Bed(url, tmp_path / "out")
    with running([*words, *slowly]), connect(url, retries=0) as admin:
        wait_until(lambda: is_refused(admin, "loading"), "the server loads its data")

        assert bed.submit().status().total == ITEMS
        assert admin.dbsize() > keys_loaded

    assert bed.said == WAITED
    bed.close()


@contextmanager
def running(words: Sequence[str]) -> Iterator[None]:
    with subprocess.Popen(words, stdout=subprocess.DEVNULL) as process:
        try:
            yield
        finally:
            process.kill()


def is_refused(client: redis.Redis, why: str = "") -> bool:
    """Whether the server refuses a ping, for that reason."""
    try:
        client.ping()
    except redis.RedisError as error:
        return why in str(error)
    return False


def test_without_patience_the_way_on_is_said_at_once(bed: Bed) -> None:
    def urls() -> Iterator[str]:
        yield from bed.urls(is_broken=False)
        wait_until((bed.folder / objects.JOB_FILE).exists, "the submit is under way")
        bed.go_away()

    settings = Settings(redis_url=bed.url)  # type: ignore[arg-type]
    options = JobOptions(output=bed.folder, model="demo", job_id="job")
    with (
        Client(settings, patience_seconds=0, on_trouble=bed.said.append) as client,
        pytest.raises(RedisUnavailableError, match="submit again with job id job to resume"),
    ):
        client.embed(urls(), options=options)
    assert bed.said == []


def test_ctrl_c_in_a_program_ends_the_wait(bed: Bed) -> None:
    def urls() -> Iterator[str]:
        yield from bed.urls(is_broken=True)
        raise KeyboardInterrupt

    settings = Settings(redis_url=bed.url)  # type: ignore[arg-type]
    options = JobOptions(output=bed.folder, model="demo", chunk_size=CHUNK_SIZE, job_id="job")
    with Client(settings, patience_seconds=3600) as client, pytest.raises(KeyboardInterrupt):
        client.embed(urls(), options=options)
