"""Which model's vectors a job brings into a store."""

from __future__ import annotations

from typing import cast

import pytest

from clipfleet.contract.jobs import DecodeRoute, Job
from clipfleet.contract.stores import StoreTarget
from clipfleet.ledger.memory import MemoryLedger
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.failures import ChunkInterrupted, ModelMismatchError
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.stores.model_pin import pin_model
from tests.support.jobs import make_job
from tests.support.store_rows import LISTED_AT

TARGET = StoreTarget(uri="/store", store_id="1" * 32, listed_at=LISTED_AT)


def model(name: str) -> LoadedModel:
    return cast(LoadedModel, FakeEncoder(name))


MINE = model("demo").fingerprint_for(DecodeRoute.FAST)


@pytest.fixture
def ledger() -> MemoryLedger:
    ledger = MemoryLedger()
    ledger.submit(make_job(store=TARGET))
    return ledger


def pin(ledger: MemoryLedger, name: str, target: StoreTarget = TARGET) -> None:
    job: Job = make_job(store=target)
    pin_model(ledger, job, target, model(name))


def test_the_first_worker_decides_and_others_with_its_weights_go_on(ledger: MemoryLedger) -> None:
    pin(ledger, "demo")
    pin(ledger, "demo")

    assert ledger.pin_model(make_job().job_id) == MINE
    with pytest.raises(ModelMismatchError, match=f"fingerprint {MINE}.*: give all workers the same weights"):
        pin(ledger, "other weights")


def test_a_store_that_has_vectors_has_decided(ledger: MemoryLedger) -> None:
    target = TARGET.model_copy(update={"fingerprint": MINE})
    pin(ledger, "demo", target)

    words = (
        f"the store /store has vectors with the fingerprint {MINE}.*--store /store --migrate --model demo`"
    )
    with pytest.raises(ModelMismatchError, match=words):
        pin(ledger, "other weights", target)
    assert ledger.pin_model(make_job().job_id) == ""


def test_a_job_that_is_gone_ends_the_chunk() -> None:
    with pytest.raises(ChunkInterrupted, match="gone"):
        pin(MemoryLedger(), "demo")
