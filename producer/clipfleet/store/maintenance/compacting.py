"""Puts the files of small commits together, and leaves out rows that are deleted."""

from __future__ import annotations

from dataclasses import dataclass

from clipfleet.store.dataset import VectorDataset, VersionConflictError
from clipfleet.store.maintenance.holding import HeldStore
from clipfleet.store.place import EmbeddedBy


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did with the dataset of a model."""

    fingerprint: str
    version: int
    files_before: int
    files: int


def compact(held: HeldStore) -> list[Compacted]:
    """Compact the dataset of the current model, and of a running migration. Idempotent.

    Raises:
        OutputUnavailableError: the store cannot be read or written.
    """
    store = held.store
    models: list[EmbeddedBy] = [store.current, *([store.migration.to] if store.migration else [])]
    found = []
    for fingerprint in [one.fingerprint for one in models if one.fingerprint is not None]:
        found.append(_compact(held, fingerprint))
        held.alive()
    return found


def _compact(held: HeldStore, fingerprint: str) -> Compacted:
    while True:
        dataset = VectorDataset.open(held.place.dataset_uri(fingerprint))
        before = dataset.file_count
        try:
            made = dataset.compact(alive=held.alive)
        except VersionConflictError:  # a program that does not know the lock
            held.alive()
        else:
            return Compacted(fingerprint, made.version, before, made.file_count)
