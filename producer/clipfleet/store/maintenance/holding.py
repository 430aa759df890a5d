"""Holds a store for maintenance: its lock, and then what it is and which jobs need it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from clipfleet.contract.jobs import Job
from clipfleet.errors import OutputConflictError, OutputUnavailableError
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.locks import LockLostError, Locks
from clipfleet.store.committing.of_job import KIND, lock_name
from clipfleet.store.dataset import Alive, VectorDataset, VersionConflictError
from clipfleet.store.in_use import unfinished_jobs
from clipfleet.store.place import StoreFile, StorePlace

_WAIT_SECONDS = 0.5


@dataclass(frozen=True)
class HeldStore:
    """A store that no other program writes to."""

    place: StorePlace
    store: StoreFile
    jobs: list[Job]  # that fill or read it and have not ended
    alive: Alive  # to be called now and then


@contextmanager
def held_store(place: StorePlace, redis_url: str, say: Callable[[str], object]) -> Iterator[HeldStore]:
    """Hold a store; wait while another program does.

    Args:
        place: of the store.
        redis_url: of the ledger that has its jobs and locks.
        say: called once with a message if there is a wait.

    Raises:
        UsageError: there is no store.
        OutputUnavailableError: the lock was lost while work went on; what was not finished was not done.
        RedisUnavailableError: no Redis responds.
    """
    store_id = place.read().store_id
    has_said = False

    def wait() -> None:
        nonlocal has_said
        if not has_said:
            say(f"{place.uri}: waiting for another program that writes to the store")
            has_said = True
        time.sleep(_WAIT_SECONDS)

    ledger = Ledger(redis_url)
    try:
        with Locks(redis_url).held(lock_name(store_id), wait=wait) as alive:
            store = place.read()
            if store.store_id != store_id:
                raise OutputConflictError(f"{place.uri} was replaced by another store meanwhile")
            yield HeldStore(place, store, unfinished_jobs(ledger, place, store_id), alive)
    except LockLostError:
        raise OutputUnavailableError(
            f"{place.uri}: Redis was away, or this program stood still, and the store was released: "
            "run the command again"
        ) from None
    finally:
        ledger.close()


def fenced(dataset: VectorDataset, kind: str) -> VectorDataset:
    """Commit a version with the same rows: every commit that began before it is refused.

    After it, files of no version can be removed: no program of this project will refer to them.
    """
    import numpy as np

    while True:
        try:
            return dataset.latest().replace(np.empty(0, np.uint64), iter(()), {KIND: kind})
        except VersionConflictError:
            continue
