"""Removes what a store no longer needs: old versions, datasets of earlier models, outputs of ended jobs.

Each step can be repeated: a vacuum that was killed goes on with the next one.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import pairwise

from clipfleet.outputs import objects
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.in_use import of_model, versions_in_use
from clipfleet.store.maintenance.files import (
    StoredFile,
    dataset_names,
    files_of_dataset,
    outputs_of_jobs,
    remove_folder,
    stored_files,
)
from clipfleet.store.maintenance.holding import HeldStore, fenced
from clipfleet.store.place import JOBS_FOLDER, STORE_FILE

VACUUM = "vacuum"
# What is younger may be in the hands of a program that does not know the lock.
SPARED = timedelta(hours=1)


@dataclass
class Vacuumed:
    """What a vacuum has removed."""

    versions: int = 0
    models: list[str] = field(default_factory=list)  # fingerprints of datasets
    jobs: list[str] = field(default_factory=list)  # ids of jobs whose outputs were left
    freed_bytes: int = 0


def vacuum(held: HeldStore, keep: timedelta, now: datetime | None = None) -> Vacuumed:
    """Remove what nobody could have begun to read within `keep`, or within an hour.

    A version can be read as the newest one until the next one is committed, a model's vectors as the current
    ones until the store switches to others.

    Spared are the newest version, versions that an unfinished job was compared with, the datasets of the
    current model and of a running migration, and all that unfinished jobs read or fill.

    Args:
        held: the store.
        keep: how long programs may read.
        now: UTC; default: the time of this machine.

    Raises:
        OutputUnavailableError: the store cannot be read or written.
    """
    now = now or datetime.now(UTC)
    before = now - max(keep, SPARED)
    files, done = [*stored_files(held.place, alive=held.alive)], Vacuumed()
    named = {held.store.current.fingerprint}
    if held.store.migration is not None:
        named.add(held.store.migration.to.fingerprint)
    for fingerprint in dataset_names(files):
        if fingerprint in named:
            _drop_versions(held, fingerprint, before, now - SPARED, done)
        else:
            _remove_if_old(held, fingerprint, files, before, done)
        held.alive()
    _remove_outputs(held, files, before, done)
    scratch = [one for one in files if one.name.startswith(f"{objects.TMP}/") and one.modified_at < before]
    _remove(held, scratch, objects.TMP, done)
    return done


def _drop_versions(
    held: HeldStore, fingerprint: str, before: datetime, spared_since: datetime, done: Vacuumed
) -> None:
    dataset = VectorDataset.open(held.place.dataset_uri(fingerprint))
    times = dataset.times()
    # A version is read as the newest one until the next one is there.
    old = {number for (number, _), (_, until) in pairwise(times.items()) if until < before}
    old -= {dataset.version, *versions_in_use(held.jobs, fingerprint, times)}
    leftovers = dataset.has_leftovers(spared_since, alive=held.alive)
    if leftovers:  # they may belong to a commit that is still running
        dataset = fenced(dataset, VACUUM)
        leftovers = not dataset.has_files_of_no_version(spared_since, alive=held.alive)
    held.alive()
    if old or leftovers:
        done.freed_bytes += dataset.drop_versions(old, leftovers=leftovers, alive=held.alive)
        done.versions += len(old)


def _remove_if_old(
    held: HeldStore, fingerprint: str, files: Sequence[StoredFile], before: datetime, done: Vacuumed
) -> None:
    """Remove the dataset of an earlier model, unless it is young or a job may still need it."""
    its = files_of_dataset(files, fingerprint)
    # It was the current one until a switch, which has written `store.json` anew.
    dates = [one.modified_at for one in files if one.name == STORE_FILE]
    # The first commit of a model makes the dataset before `store.json` names it.
    is_needed = of_model(held.jobs, fingerprint)
    if is_needed or any(at >= before for at in (*dates, *(one.modified_at for one in its))):
        return
    _remove(held, its, f"{fingerprint}.lance", done)
    done.models.append(fingerprint)


def _remove_outputs(held: HeldStore, files: Sequence[StoredFile], before: datetime, done: Vacuumed) -> None:
    needed = {job.job_id for job in held.jobs}
    for job_id, its in sorted(outputs_of_jobs(files).items()):
        if job_id not in needed and all(one.modified_at < before for one in its):
            _remove(held, its, f"{JOBS_FOLDER}/{job_id}", done)
            done.jobs.append(job_id)


def _remove(held: HeldStore, files: Sequence[StoredFile], folder: str, done: Vacuumed) -> None:
    remove_folder(held.place, files, folder, alive=held.alive, last=objects.JOB_FILE)
    done.freed_bytes += sum(one.size_bytes for one in files)
