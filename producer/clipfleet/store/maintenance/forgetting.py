"""Erases items: no file of the store holds their ids or vectors afterwards.

One that was killed goes on with the next one.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.errors import OutputDamagedError, UsageError
from clipfleet.store.committing.commit import COUNTS
from clipfleet.store.committing.of_job import KIND
from clipfleet.store.dataset import VectorDataset, VersionConflictError
from clipfleet.store.maintenance.files import (
    dataset_names,
    files_of_dataset,
    outputs_of_jobs,
    remove_folder,
    stored_files,
)
from clipfleet.store.maintenance.holding import HeldStore
from clipfleet.store.place import JOBS_FOLDER

FORGET = "forget"
_NAMED_JOBS = 3


@dataclass
class Forgotten:
    """What was erased."""

    item_ids: set[str] = field(default_factory=set)  # that were in some version
    copies: set[str] = field(default_factory=set)  # other items with the same image, which stay
    versions: int = 0  # that held one of them, and are gone
    indexes: int = 0  # likewise
    jobs: list[str] = field(default_factory=list)  # ids of ended jobs whose outputs were left


def forget(held: HeldStore, item_ids: Sequence[str]) -> Forgotten:
    """Erase items from all datasets of a store, all their versions, and outputs of ended jobs. Idempotent.

    Raises:
        UsageError: a job of the store has not ended; it may bring an item back, or read a version.
        OutputUnavailableError: the store cannot be read or written.
    """
    _require_no_jobs(held)
    ids, done = pa.array(sorted({*item_ids}), pa.string()), Forgotten()
    files = [*stored_files(held.place, alive=held.alive)]
    for fingerprint in dataset_names(files):
        try:
            dataset = VectorDataset.open(held.place.dataset_uri(fingerprint))
        except FileNotFoundError:  # the removal of an earlier model was killed
            its = files_of_dataset(files, fingerprint)
            remove_folder(held.place, its, f"{fingerprint}.lance", alive=held.alive)
        else:
            _forget(held, dataset, ids, done)
    for job_id, its in sorted(outputs_of_jobs(files).items()):
        remove_folder(held.place, its, f"{JOBS_FOLDER}/{job_id}", alive=held.alive)
        done.jobs.append(job_id)
    return done


def _require_no_jobs(held: HeldStore) -> None:
    if held.jobs:
        named = ", ".join(job.job_id for job in held.jobs[:_NAMED_JOBS])
        more = f" and {len(held.jobs) - _NAMED_JOBS} more" if len(held.jobs) > _NAMED_JOBS else ""
        raise UsageError(
            f"{held.place.uri}: jobs that fill or read the store have not ended: {named}{more}; "
            "wait for them, or end them with `clipfleet cancel JOB`"
        )


def _forget(held: HeldStore, dataset: VectorDataset, ids: pa.Array, done: Forgotten) -> None:
    known: dict[str, set[str]] = {}
    if not _may_hold(held, dataset, ids, known):
        return
    while True:
        dataset = dataset.latest()
        holding = dataset.fragments_holding(ids, known, alive=held.alive)
        done.copies |= _copies(held, dataset, ids)
        names = dataset.index_names
        try:
            # An index has vectors of its own. A version is made in any case: commits that began before are
            # refused, as files of no version are removed below.
            dataset = dataset.without_indexes()
            counts = {"forgotten": len(set().union(*known.values()))}
            properties = {KIND: FORGET, COUNTS: json.dumps(counts)}
            dataset = dataset.without(ids, holding, properties, alive=held.alive)
        except VersionConflictError:
            held.alive()
            continue
        done.indexes += len(names)
        break
    old = [number for number in dataset.times() if number != dataset.version]
    old = [number for number in old if _holds(held, dataset.uri, number, ids, known)]
    held.alive()
    dataset.drop_versions(old, leftovers=True, alive=held.alive)
    done.versions += len(old)
    done.item_ids |= set().union(*known.values())


def _may_hold(held: HeldStore, dataset: VectorDataset, ids: pa.Array, known: dict[str, set[str]]) -> bool:
    """Whether a file of any version, or of a killed commit, may hold one of these ids."""
    if any(_holds(held, dataset.uri, number, ids, known, or_index=False) for number in dataset.times()):
        return True
    return dataset.has_leftovers(datetime.max.replace(tzinfo=UTC), alive=held.alive)


def _holds(
    held: HeldStore, uri: str, number: int, ids: pa.Array, known: dict[str, set[str]], *,
    or_index: bool = True,
) -> bool:  # fmt: skip
    """Whether a version has rows with these ids, or an index, which may have their vectors."""
    try:
        version = VectorDataset.open(uri, number)
        is_held = version.fragments_holding(ids, known, alive=held.alive)
        return bool(is_held or (or_index and version.index_names))
    except OutputDamagedError:  # its removal was killed
        return True


def _copies(held: HeldStore, dataset: VectorDataset, ids: pa.Array) -> set[str]:
    """Ids of other items whose images are equal to those of these items."""
    hashes: set[str] = set()
    for batch in dataset.batches(["item_id", "content_hash"]):
        hashes.update(batch["content_hash"].filter(pc.is_in(batch["item_id"], ids)).drop_null().to_pylist())
        held.alive()
    wanted, found = pa.array(sorted(hashes), pa.string()), set()
    for batch in dataset.batches(["item_id", "content_hash"]) if hashes else ():
        is_copy = pc.and_not(pc.is_in(batch["content_hash"], wanted), pc.is_in(batch["item_id"], ids))
        found.update(batch["item_id"].filter(is_copy).to_pylist())
        held.alive()
    return found
