"""Which jobs of the ledger need a store."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import redis

from clipfleet.contract.jobs import Job, JobState, StoreVersion
from clipfleet.errors import JobTooNewError, JobUnreadableError
from clipfleet.ledger import keys
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


def add_newer(ledger: Ledger, client: redis.Redis, job: Job, **changes: object) -> None:
    """A job that a newer clipfleet has submitted."""
    add_job(ledger, job=job)
    spec = json.loads(job.model_dump_json()) | {"schema_version": 99, "a_new_field": 1} | changes
    client.set(keys.job(job.job_id, keys.SPEC), json.dumps(spec), keepttl=True)


def test_newer_jobs_of_other_stores_and_of_none_are_no_obstacle(
    ledger: Ledger, redis_client: redis.Redis, place: StorePlace, tmp_path: Path
) -> None:
    other = make_store(tmp_path / "store-2", "a")
    labelled = StoreVersion(
        uri=other.uri, store_id=other.read().store_id, version=2, model_fingerprint=MINE, dimension=4
    )
    add_newer(ledger, redis_client, filling_job(other, "fills-another"))
    add_newer(ledger, redis_client, make_job(job_id="labels-another", labels=("cat",), vectors=labelled))
    add_newer(ledger, redis_client, make_job(job_id="embeds"))
    add_job(ledger, job=filling_job(place, "fills"))

    assert found(ledger, place) == ["fills"]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"store": None},  # its output is below the store
        {"output": "/elsewhere"},  # the store has the same id there
        {"output": "/elsewhere", "store": {"id": "f" * 32}},  # of another form
        {"output": "/elsewhere", "store": 7},
    ],
)
def test_a_newer_job_that_may_need_it_is_named(
    ledger: Ledger, redis_client: redis.Redis, place: StorePlace, changes: dict[str, object]
) -> None:
    add_newer(ledger, redis_client, filling_job(place, "newer"), **changes)

    with pytest.raises(
        JobTooNewError, match=r"job newer may need .*/store, .*`clipfleet cancel newer` .* \(.*update it\)"
    ):
        found(ledger, place)


def test_a_damaged_job_is_named(ledger: Ledger, redis_client: redis.Redis, place: StorePlace) -> None:
    add_job(ledger, job=make_job(job_id="damaged"))
    redis_client.set(keys.job("damaged", keys.SPEC), "{", keepttl=True)

    with pytest.raises(JobUnreadableError, match=r"job damaged .* `clipfleet cancel damaged`"):
        found(ledger, place)
    ledger.cancel("damaged", ttl_seconds=60)
    assert found(ledger, place) == []
