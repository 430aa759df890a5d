"""Submits, retries and rebuilds whose Redis goes away in the middle, and what does not wait for it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from clipfleet import keys
from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.contract import JobState
from clipfleet.errors import RedisUnavailableError
from clipfleet.settings import Settings
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
        self.client = self.new_client()

    def new_client(self, patience_seconds: float = 60) -> Client:
        settings = Settings(redis_url=self.url)  # type: ignore[arg-type]
        return Client(settings, patience_seconds=patience_seconds, on_trouble=self._hear)

    def _hear(self, text: str) -> None:
        self.said.append(text.partition(" (")[0])
        self.proxy.admit()

    def go_away(self) -> None:
        self.proxy.refuse()
        self.proxy.reset()

    def go_away_after_the_first_answer(self) -> None:
        """A ping is a few bytes, whatever comes next is more."""
        self.proxy.refuse()
        self.proxy.cut_after(50, towards="server")

    def urls(self, *, is_broken: bool = False) -> Iterator[str]:
        for number in range(ITEMS):
            if is_broken and number == ITEMS // 2:
                self.go_away()
            yield f"https://example.org/{number}.jpg"

    def submit(self, client: Client, output: Path | None, *, is_broken: bool = False) -> JobHandle:
        options = JobOptions(output=output, model="demo", chunk_size=CHUNK_SIZE, job_id="job")
        return client.embed(self.urls(is_broken=is_broken), options=options)

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
    job = bed.submit(bed.client, None if is_redis else bed.folder, is_broken=True)

    status = job.status()
    assert (status.state, status.sealed, status.total) == (JobState.RUNNING, True, ITEMS)
    assert bed.said == WAITED


def test_a_retry_waits(bed: Bed) -> None:
    job = bed.submit(bed.client, bed.folder)
    job.cancel()
    bed.go_away()

    assert job.retry()

    assert (job.status().state, job.status().generation) == (JobState.RUNNING, 1)
    assert bed.said == WAITED


def test_a_rebuild_waits(bed: Bed, redis_client: redis.Redis) -> None:
    bed.submit(bed.client, bed.folder)
    redis_client.delete(*redis_client.keys(keys.job("job") + "*"))
    bed.go_away_after_the_first_answer()

    job = bed.client.rebuild(bed.folder)

    assert (job.status().state, job.status().total) == (JobState.RUNNING, ITEMS)
    assert bed.said == WAITED


def test_what_only_reads_does_not_wait(bed: Bed) -> None:
    job = bed.submit(bed.client, bed.folder)
    bed.go_away()

    for call in (job.status, job.cancel, bed.client.jobs, bed.client.workers, lambda: bed.client.job("job")):
        with pytest.raises(RedisUnavailableError):
            call()
    assert bed.said == []


def test_what_has_not_begun_does_not_wait(bed: Bed) -> None:
    bed.submit(bed.client, bed.folder)
    bed.go_away()

    with pytest.raises(RedisUnavailableError):
        bed.submit(bed.client, bed.folder)
    with pytest.raises(RedisUnavailableError):
        bed.client.rebuild(bed.folder)
    assert bed.said == []


def test_without_patience_the_way_on_is_told_at_once(bed: Bed) -> None:
    def urls() -> Iterator[str]:
        yield from bed.urls()
        wait_until((bed.folder / keys.JOB_FILE).exists, "the submit is under way")
        bed.go_away()

    options = JobOptions(output=bed.folder, model="demo", job_id="job")
    with (
        bed.new_client(patience_seconds=0) as client,
        pytest.raises(RedisUnavailableError, match="the same submit with job id job goes on"),
    ):
        client.embed(urls(), options=options)
    assert bed.said == []


def test_ctrl_c_in_a_program_ends_the_wait(bed: Bed) -> None:
    def urls() -> Iterator[str]:
        yield from bed.urls(is_broken=True)
        raise KeyboardInterrupt

    options = JobOptions(output=bed.folder, model="demo", chunk_size=CHUNK_SIZE, job_id="job")
    settings = Settings(redis_url=bed.url)  # type: ignore[arg-type]
    with Client(settings, patience_seconds=3600) as client, pytest.raises(KeyboardInterrupt):
        client.embed(urls(), options=options)
