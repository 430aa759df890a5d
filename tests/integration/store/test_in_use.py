"""Which jobs of the ledger need a store."""

from __future__ import annotations

from pathlib import Path

import pytest

from clipfleet.contract.jobs import JobState, StoreVersion
from clipfleet.ledger.jobs import Ledger
from clipfleet.store.in_use import unfinished_jobs
from clipfleet.store.place import StorePlace
from tests.support.held_stores import MINE, filling_job, make_store
from tests.support.jobs import make_job
from tests.support.ledger import add_job, bring_into


@pytest.fixture
def place(tmp_path: Path) -> StorePlace:
    return make_store(tmp_path / "store", "ab")


def found(ledger: Ledger, place: StorePlace) -> list[str]:
    return sorted(job.job_id for job in unfinished_jobs(ledger, place, place.read().store_id))


def test_jobs_that_fill_or_label_it(ledger: Ledger, place: StorePlace) -> None:
    store_id = place.read().store_id
    labelled = StoreVersion(uri=place.uri, store_id=store_id, version=2, model_fingerprint=MINE, dimension=4)
    of_another = labelled.model_copy(update={"store_id": "f" * 32})
    for job in (
        filling_job(place, "fills"),
        filling_job(place, "fills-another", store_id="f" * 32),
        make_job(job_id="labels", labels=("cat",), vectors=labelled),
        make_job(job_id="labels-another", labels=("cat",), vectors=of_another),
        make_job(job_id="embeds"),
    ):
        add_job(ledger, job=job)

    assert found(ledger, place) == ["fills", "labels"]


@pytest.mark.parametrize("state", [*JobState])
def test_those_that_have_not_ended(ledger: Ledger, place: StorePlace, state: JobState) -> None:
    bring_into(ledger, state, filling_job(place, "night"))

    assert found(ledger, place) == ([] if state.is_final else ["night"])
