"""A batch over a real Valkey, and a gateway that is killed (SIGKILL) before each of its calls in turn."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import redis

from clipfleet_gateway.batches.advancing import Advancing
from clipfleet_gateway.batches.record import BatchRecord, new_batch_id
from clipfleet_gateway.keys.ring import now_in_utc
from clipfleet_gateway.services import Services
from clipfleet_gateway.shapes.batches import BatchStatus, Endpoint
from tests.support.batches import jsonl, line, no_lock, saved
from tests.support.dying_gateway import is_killed
from tests.support.gateway_app import gateway_services

pytestmark = pytest.mark.long

IDS = ["a", "b", "c"]
LINES = jsonl(line("a"), line("b", {"model": "demo", "input": ["b0", "b1", "b2"]}), line("c"))
ITEMS = 5
OWNER = "mine"


def begun(services: Services) -> BatchRecord:
    services.keys.add(OWNER)
    file, now = saved(services.files, OWNER, LINES), now_in_utc()
    seconds = int(now.timestamp())
    batch = BatchRecord(
        id=new_batch_id(now), owner=OWNER, endpoint=Endpoint.EMBEDDINGS, input_file_id=file.id,
        input_sha256=file.sha256, created_at=seconds, expires_at=seconds + 3600,
    )  # fmt: skip
    return services.batches.store.begin(batch, None)


class Gateway:
    """The one that goes on after a kill: it does not wait until the lock of the killed one expires."""

    def __init__(self, services: Services) -> None:
        self.services = services
        self.batches: Advancing = replace(services.batches, hold=no_lock)

    def found(self, batch: BatchRecord) -> BatchRecord:
        found = self.batches.store.find(OWNER, batch.id)
        assert found is not None
        return found

    def advance(self, batch: BatchRecord) -> BatchRecord:
        self.batches.advance(OWNER, batch.id)
        return self.found(batch)


def require_one_job(gateway: Gateway, batch: BatchRecord) -> None:
    """The job has all items, once, and there is no other."""
    found = gateway.advance(batch)
    assert (found.status, found.is_submitted) == (BatchStatus.IN_PROGRESS, True)
    (status,) = gateway.services.client.jobs()
    assert (status.job_id, status.sealed, status.total) == (batch.id, True, ITEMS)


def require_an_end(gateway: Gateway, batch: BatchRecord, place: Path) -> None:
    """Every line is in one file, and nothing is left beside it."""
    found = gateway.advance(batch)
    assert (found.status, found.output_file) == (BatchStatus.CANCELLED, None)
    assert found.error_file is not None
    data = gateway.services.files.read(OWNER, found.error_file.id) or b""
    assert [json.loads(one)["custom_id"] for one in data.splitlines()] == IDS
    records = {path.stem for path in (place / "files" / OWNER).glob("*.json")}
    assert records == {batch.input_file_id, found.error_file.id}
    assert not [*(place / "open").iterdir(), *(place / "work").iterdir(), *(place / "jobs").iterdir()]


@pytest.mark.parametrize("is_cancelled", [False, True], ids=["until it runs", "until it has ended"])
def test_the_next_gateway_goes_on(
    tmp_path: Path, redis_url: str, redis_client: redis.Redis, is_cancelled: bool
) -> None:
    kills, was_killed = 0, True
    while was_killed:
        redis_client.flushdb()
        place = tmp_path / f"{kills}"
        with gateway_services(str(place), redis_url) as services:
            gateway, batch = Gateway(services), begun(services)
            if is_cancelled:
                gateway.batches.cancel(gateway.advance(batch))
            was_killed = is_killed(kills, str(place), redis_url, OWNER, batch.id)
            if is_cancelled:
                require_an_end(gateway, batch, place)
            else:
                require_one_job(gateway, batch)
        kills += 1
    assert kills > 15
