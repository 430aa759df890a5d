"""Stores in a folder, as maintenance holds them, without a lock."""

from __future__ import annotations

from pathlib import Path

from clipfleet.contract.jobs import Job
from clipfleet.contract.stores import StoreTarget
from clipfleet.ledger.locks import LockLostError
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.maintenance.holding import HeldStore
from clipfleet.store.place import EmbeddedBy, StorePlace, store_place
from tests.support.jobs import make_job
from tests.support.store_rows import LISTED_AT, NO_ADDRESSES, item, make_dataset, stored_rows

MINE, OTHER = "a" * 16, "b" * 16


def make_store(uri: str | Path, *nights: str) -> StorePlace:
    """A store with a commit for each night, which adds these items: one letter each."""
    place = store_place(str(uri))
    place.create(EmbeddedBy(model="demo", fingerprint=MINE, dimension=4))
    dataset = make_dataset(place.dataset_uri(MINE), [item(one) for one in nights[0]])
    for night in nights[1:]:
        dataset = dataset.replace(NO_ADDRESSES, stored_rows([item(one) for one in night]).to_batches(), {})
    return place


def held(place: StorePlace, *jobs: Job) -> HeldStore:
    """The store, with jobs that have not ended."""
    return HeldStore(place, place.read(), [*jobs], lambda: None)


def lost(place: StorePlace) -> HeldStore:
    """The store, whose lock lapses at once."""

    def alive() -> None:
        raise LockLostError

    return HeldStore(place, place.read(), [], alive)


def filling_job(place: StorePlace, job_id: str = "night", base_version: int = 0, **values: object) -> Job:
    """A job that fills a store."""
    target = StoreTarget(
        uri=place.uri, store_id=place.read().store_id, base_version=base_version, listed_at=LISTED_AT,
        fingerprint=MINE,
    )  # fmt: skip
    return make_job(place.job_output(job_id), job_id=job_id, store=target.model_copy(update=values))


def item_ids(dataset: VectorDataset) -> list[str]:
    """The ids of all rows, in order."""
    return sorted(one for batch in dataset.batches(["item_id"]) for one in batch["item_id"].to_pylist())


def current(place: StorePlace, fingerprint: str = MINE) -> VectorDataset:
    """The newest version of the vectors of a model."""
    return VectorDataset.open(place.dataset_uri(fingerprint))
