"""A migration: other vectors are made beside those of a store, until the store can switch to them.

Readers and nights go on with the current vectors meanwhile. `store.json` says what is under way, so that a
repeated call continues it.
"""

from __future__ import annotations

import json
import secrets
import tempfile
import time
from collections.abc import Callable, Iterator
from io import BufferedReader, RawIOBase
from itertools import islice
from pathlib import Path
from typing import cast

import pyarrow as pa

from clipfleet.backfill import outcome
from clipfleet.backfill.earlier import end_of, unfinished_night
from clipfleet.backfill.items import OnListed
from clipfleet.backfill.opening import is_filled_by, other_vectors
from clipfleet.backfill.options import BackfillOptions
from clipfleet.backfill.outcome import BackfillResult, RoundResult
from clipfleet.backfill.rounds import Services, commit, compare, held, submit, target_of
from clipfleet.contract.jobs import new_job_id
from clipfleet.errors import JobConflictError, OutputDamagedError, UsageError
from clipfleet.job_handle import OnProgress
from clipfleet.ledger.locks import LockLostError
from clipfleet.outputs import objects, open_output
from clipfleet.redis.patience import OnTrouble
from clipfleet.sources import Source
from clipfleet.store.committing.of_job import lock_name
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.in_use import unfinished_nights
from clipfleet.store.known import known_items
from clipfleet.store.place import EmbeddedBy, Migration, StoreFile, StorePlace
from clipfleet.store.rows import PRESENT, id_hashes
from clipfleet.wording import counted

_IDS_AT_A_TIME = 8192
_PROBED_ITEMS = 16  # of a first job that finds out whether the vectors are other ones at all


class _EndedError(Exception):
    """The store has no such migration any more."""


class _ChangedError(Exception):
    """The current vectors have changed, or will."""


class StoreMigration:
    """The migration of one store. `run` returns at its end."""

    def __init__(
        self,
        services: Services,
        place: StorePlace,
        source: Callable[[], Source],
        options: BackfillOptions,
        most_failed: float | None = 0.0,
        on_listed: OnListed = lambda count: None,
    ) -> None:
        """Nothing is done yet.

        Args:
            services: to work with.
            place: of the store.
            source: opens the source, once for each comparison.
            options: those of the vectors that are given differ from the store's; lane: bulk by default.
            most_failed: share of the items with current vectors that may be left without new ones; None: any.
            on_listed: called with the number of items so far, now and then.
        """
        self._services = services
        self._place = place
        self._source = source
        self._options = options
        self._most_failed = most_failed
        self._on_listed = on_listed
        self._watch: tuple[OnProgress | None, OnTrouble | None] = None, None

    def run(
        self, *, on_progress: OnProgress | None = None, on_trouble: OnTrouble | None = None
    ) -> BackfillResult:
        """Fill the new vectors until nothing is missing, then switch; continue what an earlier call began.

        The result is not `switched` if too many items failed, or a job has ended early: run it again.

        Args:
            on_progress: see `JobHandle.wait`.
            on_trouble: see there.

        Raises:
            UsageError: there is no store, or it migrates to other vectors.
            JobConflictError: the migration was abandoned meanwhile.
            SourceError: see `compare`.
            WorldError: Redis, the store or the source is unavailable now.
        """
        started, self._watch = time.monotonic(), (on_progress, on_trouble)
        store = self._begin()
        if store.migration is None:
            self._services.say(f"{self._place.uri} has these vectors already")
            done, switched = RoundResult(self._current_version(store)), True
        else:
            done, switched = self._fill(store, store.migration)
        return done.result(self._place.uri, time.monotonic() - started, switched=switched)

    def _fill(self, store: StoreFile, migration: Migration) -> tuple[RoundResult, bool]:
        """What all rounds have done, and whether the store has switched."""
        total, before = RoundResult(0), None
        try:
            while True:
                seen = self._current_version(store)
                earlier = self._earlier_job(store, migration)
                done = earlier or self._round(store)
                total = done.after(total)
                if not done.is_complete:
                    return total, False
                if done.is_superseded and self._keeps(store):
                    return RoundResult(self._current_version(store)), True
                # A source that always changes has always some changes: they are left for the next night.
                is_steady = before is not None and 2 * done.found >= before
                before = None if done.left else done.found
                if earlier or done.is_superseded or (done.found and not is_steady):
                    continue
                if self._too_many_failed(store, done):
                    return total, False
                if self._switch(store, seen):
                    return total, True
        except _EndedError:
            if is_filled_by(self._place.read().current, migration.to):  # by another call
                return total, True
            raise JobConflictError(f"{self._place.uri}: the migration was abandoned meanwhile") from None

    def _begin(self) -> StoreFile:
        """Let `store.json` say that the migration is under way."""
        made = secrets.token_hex(16)

        def change(store: StoreFile) -> StoreFile:
            wanted = other_vectors(self._options, store.current)
            if store.migration is not None:
                to = store.migration.to
                if is_filled_by(to, wanted):
                    return store
                raise UsageError(
                    f"{self._place.uri} migrates to {to.model} already (precision {to.precision}, decode "
                    f"{to.decode}, exif {to.exif}): let it "
                    "end, or end it by `abandon_migration=True`"
                )
            # The same model may have other weights by now: workers know, see `_keeps`.
            if store.current.fingerprint is None and is_filled_by(store.current, wanted):
                return store
            migration = Migration(migration_id=made, to=wanted, began_at=self._services.ledger.now())
            return store.model_copy(update={"migration": migration})

        return self._place.change(change)

    def _migration(self, store: StoreFile) -> Migration:
        """The migration as it is now; raise if it is another one, or none."""
        return self._own_migration(store, self._place.read())

    def _own_migration(self, store: StoreFile, now: StoreFile) -> Migration:
        found = now.migration
        if found is None or store.migration is None or found.migration_id != store.migration.migration_id:
            raise _EndedError
        return found

    def _current_version(self, store: StoreFile) -> int:
        dataset = self._dataset(self._current(store))
        return 0 if dataset is None else dataset.version

    def _dataset(self, embedded_by: EmbeddedBy) -> VectorDataset | None:
        """The dataset of these vectors; None: there is none yet, or the store names it no more."""
        fingerprint = embedded_by.fingerprint
        if fingerprint is None:
            return None
        try:
            return VectorDataset.open(self._place.dataset_uri(fingerprint))
        except FileNotFoundError:
            store = self._place.read()
            if fingerprint in (store.current.fingerprint, store.migration and store.migration.to.fingerprint):
                raise self._place.dataset_is_gone(fingerprint) from None
            return None

    def _current(self, store: StoreFile) -> EmbeddedBy:
        """What the store has; its first job may have finished since."""
        return store.current if store.current.fingerprint else self._place.read().current

    def _earlier_job(self, store: StoreFile, migration: Migration) -> RoundResult | None:
        """What became of a job that an earlier call has submitted; None: there is none."""
        while job := unfinished_night(self._services, store.store_id, migration.migration_id):
            self._services.say(f"job {job.job_id} of this migration is in progress: waiting for it")
            status = end_of(job, *self._watch)
            if status is not None:
                return outcome.of_job(job.job, status)
        return None

    def _round(self, store: StoreFile) -> RoundResult:
        """Compare the source with the new vectors; run what is missing."""
        services, place, options = self._services, self._place, self._options
        migration = self._migration(store)
        with tempfile.TemporaryDirectory(prefix="clipfleet-") as folder:
            compared = compare(
                self._source(), self._dataset(migration.to), Path(folder),
                now=services.ledger.now(), most_items=self._most_items(store, migration),
                on_listed=self._on_listed,
            )  # fmt: skip
            target = target_of(place, store.store_id, migration.to, compared, options, migration.migration_id)
            if not compared.comparison.to_run:
                return commit(services, place, compared, target)
            job = submit(services, place, new_job_id(), compared, target, migration.to, options)
        return outcome.of_job(job.job, job.wait(on_progress=self._watch[0], on_trouble=self._watch[1]))

    def _most_items(self, store: StoreFile, migration: Migration) -> int | None:
        """Few, as long as the new vectors may be those that the store has."""
        current, to = self._current(store), migration.to
        may_be_here = is_filled_by(current, to.model_copy(update={"precision": current.precision}))
        return _PROBED_ITEMS if may_be_here and to.fingerprint is None else None

    def _keeps(self, store: StoreFile) -> bool:
        """End the migration if its vectors, which no commit took, are those that the store has."""
        if self._migration(store).to.fingerprint is not None:
            return False
        try:
            with held(self._services, lock_name(store.store_id)) as alive:
                self._place.change(lambda now: self._kept(store, now), confirm=alive)
        except LockLostError:
            return False
        self._services.say(f"{self._place.uri} has these vectors already")
        return True

    def _kept(self, store: StoreFile, now: StoreFile) -> StoreFile:
        """The store without the migration, and with its options: they make the same vectors."""
        to = self._own_migration(store, now).to
        current = to.model_copy(
            update={"fingerprint": now.current.fingerprint, "dimension": now.current.dimension}
        )
        return now.model_copy(update={"current": current, "migration": None})

    def _too_many_failed(self, store: StoreFile, done: RoundResult) -> bool:
        """Whether more items would lose their vectors than may."""
        current = self._dataset(self._current(store))
        new = self._dataset(self._migration(store).to)
        if current is None or (self._most_failed is None and new is not None):
            return False
        rows = current.count(PRESENT)
        lost = rows if new is None else self._lost(current, new, done)
        may_be_lost = 0.0 if new is None else (self._most_failed or 0.0) * rows
        if lost <= may_be_lost:
            return False
        self._services.say(
            f"{counted(lost, 'item')} with vectors failed, more than may: nothing was switched; run it again "
            "to try them again"
        )
        return True

    def _lost(self, current: VectorDataset, new: VectorDataset, done: RoundResult) -> int:
        """Items that have failed, and have a vector now but no new one."""
        if not done.counts.failed or done.job_id is None:
            return 0
        had, has, lost = known_items(current), known_items(new), 0
        for ids in self._failed_ids(done.job_id):
            hashes = id_hashes(ids)
            places = had.places(hashes)[has.places(hashes) < 0]
            lost += int((~had.is_gone[places[places >= 0]]).sum())
        return lost

    def _failed_ids(self, job_id: str) -> Iterator[pa.Array]:
        output = open_output(self._place.job_output(job_id))
        try:
            with BufferedReader(cast(RawIOBase, output.open(objects.LAYOUT.errors))) as lines:
                while some := [json.loads(line)["item_id"] for line in islice(lines, _IDS_AT_A_TIME)]:
                    yield pa.array(some, pa.string())
        except (FileNotFoundError, ValueError, LookupError, TypeError) as error:
            where = f"{output.uri}/{objects.LAYOUT.errors}"
            raise OutputDamagedError(f"{where} is gone or damaged: run the migration again") from error

    def _switch(self, store: StoreFile, seen: int) -> bool:
        """Make the new vectors the current ones, unless those have changed since they were seen."""

        def confirm() -> None:  # immediately before the switch: the lock may have been lost without notice
            if self._is_filled(store) or self._current_version(store) != seen:
                raise _ChangedError
            alive()

        try:
            with held(self._services, lock_name(store.store_id)) as alive:
                self._place.change(lambda now: self._switched(store, now), confirm=confirm)
                return True
        except (LockLostError, _ChangedError):
            pass
        night = unfinished_night(self._services, store.store_id)
        if night is not None:
            self._services.say(f"job {night.job_id} fills the current vectors: waiting for it")
            end_of(night, *self._watch)  # without the lock, which its commit needs
        return False

    def _is_filled(self, store: StoreFile) -> bool:
        """Whether a night fills the current vectors now."""
        nights = unfinished_nights(self._services.ledger, store.store_id)
        return any(job.store is not None and job.store.migration_id is None for job, _ in nights)

    def _switched(self, store: StoreFile, now: StoreFile) -> StoreFile:
        to = self._own_migration(store, now).to
        return now.model_copy(update={"current": to, "migration": None})


def abandon_migration(services: Services, place: StorePlace) -> bool:
    """End a migration without a switch, and cancel its jobs; what it has made stays until `store vacuum`.

    Returns:
        False if there is none.
    """
    store = place.read()
    if store.migration is None:
        return False
    migration_id = store.migration.migration_id

    def change(now: StoreFile) -> StoreFile:
        is_it = now.migration is not None and now.migration.migration_id == migration_id
        return now.model_copy(update={"migration": None}) if is_it else now

    with held(services, lock_name(store.store_id)):
        place.change(change)
    while (job := unfinished_night(services, store.store_id, migration_id)) is not None:
        changed, _ = services.cancel(job.job_id)
        if not changed:  # it finishes, and commits nothing any more
            break
    return True
