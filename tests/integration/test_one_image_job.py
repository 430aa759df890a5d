"""A job of one image: what it costs in Redis once it has ended, and how long one waits for it."""

from __future__ import annotations

import threading
from datetime import UTC, datetime

import pytest
import redis

from clipfleet.contract.bottleneck import Meter, Meters, Step, device_meter
from clipfleet.contract.jobs import REDIS_OUTPUT, Job, JobState, SourceDescription, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.hints import Hints, make_app
from clipfleet.job_handle import JobHandle
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Claim, JobStatus, Ledger, Retention
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs import objects
from clipfleet.outputs.redis import RedisOutput
from clipfleet.settings import Settings
from clipfleet_worker.sinks.redis import RedisSink
from tests.support.ledger import claim, claim_finish
from tests.support.redis_rows import bring, chunk_rows
from tests.support.waiting import wait_until

MOST_KEYS, MOST_BYTES = 3, 2048
DOCUMENTED = {keys.STREAM, keys.ROWS, keys.VECTORS, keys.IDS}
ROWS = (keys.ROWS, keys.VECTORS, keys.IDS)
STAGES = {"fetch": 0.0123, "decode": 0.0031, "encode": 0.0212, "write": 0.0015}
METERS = Meters(
    {
        Step.READ: 0.002, Step.ITEMS: 0.034, Step.SCORE: 0.001, Step.WRITE: 0.002, Meter.FETCHING: 0.012,
        Meter.BEYOND: 0.022, Meter.DECODING: 0.003, device_meter("cpu", "bf16"): 0.034,
        Meter.DECODE_CAPACITY: 0.068, Meter.DECODE_BUSY: 0.003, Meter.FORWARD_BUSY: 0.021,
    }
)  # fmt: skip


@pytest.fixture
def pauses() -> list[float]:
    """How long `handle` has slept."""
    return []


@pytest.fixture
def handle(redis_url: str, ledger: Ledger, store: RedisStore, pauses: list[float]) -> JobHandle:
    hints = Hints(make_app(redis_url), redis_url)
    return JobHandle(ledger, lambda: store, lambda: hints, one_image(), Settings(), sleep=pauses.append)


def one_image(output: str = REDIS_OUTPUT) -> Job:
    """As `clipfleet classify` makes it."""
    return Job(
        job_id="20261201-9f2c66aa10b3", task=Task.CLASSIFY, model="ViT-B-32:datacomp_xl_s13b_b90k",
        label_sets=(LabelSet(name="labels", labels=("cat", "dog", "car", "house", "something else")),),
        source=SourceDescription(kind="list", uri="photos/2026/december/IMG_20261201_120000.jpg"),
        output=output, created_at=datetime.now(UTC),
    )  # fmt: skip


def submit(ledger: Ledger, store: RedisStore, output: str = REDIS_OUTPUT) -> Job:
    job = one_image(output)
    ledger.submit(job, Retention())
    if job.output_is_redis:
        RedisOutput(store, job.job_id).create(objects.LAYOUT.staged_file(0, 1), bytes(900))
    assert ledger.stage(job.job_id, 0, 1, 1) == "staged"
    assert ledger.seal(job.job_id, 1, 1, "df68f0adfe9a0dd4724017e76188bac5") == "sealed"
    return job


def run(ledger: Ledger, store: RedisStore, job: Job) -> str:
    """What a worker does with the image."""
    claimed: Claim = claim(ledger, models=[job.model])
    if job.output_is_redis:
        bring(RedisSink(store), claimed, chunk_rows(0, 1).drop_columns(["shelf"]))
    return ledger.complete(claimed, ok=1, failed=0, codes={}, work_seconds=STAGES, meters=METERS)


def own_keys(client: redis.Redis, job_id: str) -> set[str]:
    """Suffixes of the keys of a job."""
    own = keys.job(job_id)
    return {str(name).removeprefix(own) for name in client.scan_iter(f"{own}*")}


def tokens(client: redis.Redis) -> set[str]:
    """What was claimed lately: kept for minutes, not as long as the job."""
    return {str(name) for name in client.scan_iter(keys.claim_token("*"))}


class TestCost:
    def test_few_keys_and_bytes(self, ledger: Ledger, store: RedisStore, redis_client: redis.Redis) -> None:
        job = submit(ledger, store)
        assert run(ledger, store, job) == "ended"

        found = own_keys(redis_client, job.job_id)

        others = found - set(ROWS)
        used = [redis_client.memory_usage(keys.job(job.job_id, suffix), samples=0) for suffix in others]
        assert len(found - DOCUMENTED | tokens(redis_client)) <= MOST_KEYS, found
        assert sum(used) <= MOST_BYTES, dict(zip(others, used, strict=True))

    def test_few_for_a_folder(self, ledger: Ledger, store: RedisStore, redis_client: redis.Redis) -> None:
        job = submit(ledger, store, "/out")
        assert run(ledger, store, job) == "finishing"
        assert ledger.finish(claim_finish(ledger), ttl_seconds=60) == "completed"

        assert len(own_keys(redis_client, job.job_id) - DOCUMENTED) <= MOST_KEYS

    def test_nothing_is_lost(self, ledger: Ledger, store: RedisStore, redis_client: redis.Redis) -> None:
        job = submit(ledger, store)
        run(ledger, store, job)

        status = ledger.status(job.job_id)
        entries = redis_client.xrange(keys.job(job.job_id, keys.STREAM))

        assert (status.state, status.ok, status.total) == (JobState.COMPLETED, 1, 1)
        assert status.work_seconds == STAGES
        assert ledger.job(job.job_id) == job
        assert [fields for _, fields in entries] == [
            {"chunk": "0", "ok": "1", "failed": "0"}, {"state": "completed"}
        ]  # fmt: skip


class TestWaiting:
    def test_no_longer_than_the_job(
        self, handle: JobHandle, ledger: Ledger, store: RedisStore, pauses: list[float]
    ) -> None:
        job = submit(ledger, store)

        def work(status: JobStatus) -> None:
            if not status.state.is_final:
                run(ledger, store, job)

        status = handle.wait(60, on_progress=work)

        assert status.state is JobState.COMPLETED
        assert sum(pauses) <= status.lasted_seconds
        assert [row["item_index"] for row in handle.results()] == [0]

    def test_not_at_all_for_one_that_has_ended(
        self, handle: JobHandle, ledger: Ledger, store: RedisStore, pauses: list[float]
    ) -> None:
        run(ledger, store, submit(ledger, store))

        snapshots: list[JobStatus] = []
        handle.wait(60, on_progress=snapshots.append)

        assert [status.state for status in snapshots] == [JobState.COMPLETED]
        assert pauses == []

    def test_over_a_lost_connection(
        self, handle: JobHandle, ledger: Ledger, store: RedisStore, redis_client: redis.Redis
    ) -> None:
        job = submit(ledger, store)
        ends: list[JobStatus] = []
        thread = threading.Thread(target=lambda: ends.append(handle.wait(60)))
        thread.start()
        wait_until(lambda: redis_client.info("clients")["blocked_clients"] == 1, "the read blocks")

        redis_client.execute_command("CLIENT", "KILL", "TYPE", "normal", "SKIPME", "yes")
        run(ledger, store, job)

        thread.join(60)
        assert [status.state for status in ends] == [JobState.COMPLETED]
