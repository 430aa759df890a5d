"""Scratch files in the outputs of ended jobs: whoever was killed, they go, and nobody else's do."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import redis

from clipfleet import keys
from clipfleet.contract import Job
from clipfleet.ledger import Draft, Ledger
from clipfleet.outputs.folder import FolderOutput
from clipfleet.redis_store import RedisStore
from clipfleet.sweeps import Sweeps
from clipfleet_worker.job_contexts import JobContexts
from clipfleet_worker.sweeper import Sweeper
from tests.support.jobs import make_job, place_job
from tests.support.ledger import add_job, claim, claim_finish, complete, let_sweeps_be_due, new_token


@dataclass(frozen=True)
class Bench:
    ledger: Ledger
    client: redis.Redis
    sweeper: Sweeper
    folder: Path

    def add(self, job_id: str, *, name: str = "") -> Job:
        """A job of one chunk that a worker holds, with what it was writing when it was killed."""
        job = make_job(self.folder / (name or job_id), job_id=job_id)
        place_job(FolderOutput(Path(job.output)), job)
        add_job(self.ledger, job=job, chunks=1)
        self.leave_scratch(job)
        return job

    def leave_scratch(self, job: Job) -> None:
        (Path(job.output) / keys.TMP).mkdir(exist_ok=True)
        (Path(job.output) / keys.TMP / "half-written").write_bytes(b"half")

    def scratch_files(self, job: Job) -> list[str]:
        return [path.name for path in (Path(job.output) / keys.TMP).iterdir()]

    def sweep_all(self) -> int:
        count = 0
        while self.sweeper.sweep():
            count += 1
        return count


@pytest.fixture
def bench(ledger: Ledger, redis_url: str, redis_client: redis.Redis, tmp_path: Path) -> Iterator[Bench]:
    store = RedisStore(redis_url)
    sweeper = Sweeper(Sweeps(redis_url), JobContexts(ledger, store, (tmp_path,)))
    yield Bench(ledger, redis_client, sweeper, tmp_path)
    sweeper.stop()
    store.close()


@pytest.mark.parametrize("end", ["cancelled", "failed"])
def test_a_job_that_was_not_finished_is_swept_at_once_and_once_more(bench: Bench, end: str) -> None:
    job = bench.add("job")
    claim(bench.ledger)
    assert bench.sweep_all() == 0
    if end == "cancelled":
        bench.ledger.cancel("job", ttl_seconds=600)
    else:
        bench.ledger.fail("job", "no disk", ttl_seconds=600)

    assert bench.sweep_all() == 1
    assert bench.scratch_files(job) == []

    bench.leave_scratch(job)  # somebody was late, and was killed
    assert bench.sweep_all() == 0
    let_sweeps_be_due(bench.client)
    assert bench.sweep_all() == 1
    assert bench.scratch_files(job) == []
    assert bench.client.exists(keys.SWEEPS) == 0


def test_a_finished_job_is_swept_once_more_later(bench: Bench) -> None:
    job = bench.add("job")
    complete(bench.ledger, claim(bench.ledger))
    bench.ledger.finish(claim_finish(bench.ledger), ttl_seconds=600)

    assert bench.sweep_all() == 0  # its finisher has done so
    let_sweeps_be_due(bench.client)
    assert bench.sweep_all() == 1
    assert bench.scratch_files(job) == []


def test_an_output_that_holds_another_job_by_now_is_left_alone(bench: Bench) -> None:
    old = bench.add("old", name="output")
    bench.ledger.cancel("old", ttl_seconds=600)
    assert bench.sweep_all() == 1
    output = FolderOutput(Path(old.output))
    output.clear()
    output.remove(keys.JOB_FILE)
    new = bench.add("new", name="output")

    let_sweeps_be_due(bench.client)
    assert bench.sweep_all() == 1
    assert bench.scratch_files(new) == ["half-written"]


def test_a_job_that_was_retried_is_left_to_its_next_end(bench: Bench) -> None:
    job = bench.add("job")
    bench.ledger.cancel("job", ttl_seconds=600)
    token = new_token()
    bench.ledger.begin_draft("job", token)
    draft = Draft(done=b"", due=[0], next_chunk=1, ok=0, failed=0, codes={})
    bench.ledger.retry("job", token, draft, generation=1)

    assert bench.sweep_all() == 0
    assert bench.scratch_files(job) == ["half-written"]

    bench.ledger.cancel("job", ttl_seconds=600)
    assert bench.sweep_all() == 1
    assert bench.scratch_files(job) == []


def test_an_output_that_is_away_is_swept_when_it_is_back(bench: Bench) -> None:
    job = bench.add("job")
    bench.ledger.cancel("job", ttl_seconds=600)
    hidden = Path(job.output).rename(bench.folder / "unmounted")

    assert bench.sweep_all() == 1
    hidden.rename(job.output)
    assert bench.sweep_all() == 0  # not at once
    let_sweeps_be_due(bench.client)
    assert bench.sweep_all() == 1
    assert bench.scratch_files(job) == []


def test_rows_in_redis_leave_nothing_to_sweep(bench: Bench) -> None:
    add_job(bench.ledger, job=make_job("redis://", job_id="here"), chunks=1)
    bench.ledger.cancel("here", ttl_seconds=600)

    assert bench.client.exists(keys.SWEEPS) == 0
