"""A night: the source is compared with the store, and what is new, changed or gone is committed."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from clipfleet.backfill import outcome
from clipfleet.backfill.earlier import EndedNight, end_of, same_night, unfinished_night
from clipfleet.backfill.items import OnListed
from clipfleet.backfill.opening import require_same_vectors, wanted_vectors
from clipfleet.backfill.options import BackfillOptions
from clipfleet.backfill.outcome import BackfillResult, RoundResult
from clipfleet.backfill.rounds import (
    Compared,
    Services,
    commit,
    compare,
    submit,
    target_of,
)
from clipfleet.contract.jobs import new_job_id
from clipfleet.errors import JobNotFoundError
from clipfleet.job_handle import JobHandle, OnProgress
from clipfleet.redis.patience import OnTrouble
from clipfleet.sources import Source
from clipfleet.store.comparing import Comparison
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import StoreFile, StorePlace
from clipfleet.store.versions import current_dataset_if_there

_MOST_REPEATS = 3


class Backfill:
    """One night of a store: `begin` submits its job, if there is anything to run; `wait` for its end."""

    def __init__(
        self,
        services: Services,
        place: StorePlace,
        source: Callable[[], Source],
        options: BackfillOptions,
        on_listed: OnListed = lambda count: None,
    ) -> None:
        """Nothing is done yet.

        Args:
            services: to work with.
            place: of the store.
            source: opens the source, once for each comparison.
            options: see there.
            on_listed: called with the number of items so far, now and then.
        """
        self._services = services
        self._place = place
        self._source = source
        self._options = options
        self._on_listed = on_listed
        self._started = time.monotonic()
        self._repeats = 0
        self._done: RoundResult | None = None  # without a job
        self.job: JobHandle | None = None  # None: there is nothing to run
        self.is_another = False  # `job` is that of another night, which must end first

    @property
    def store(self) -> str:
        """URI of the store."""
        return self._place.uri

    def plan(self) -> Comparison:
        """Compare, and change nothing. Raises like `begin`."""
        with tempfile.TemporaryDirectory(prefix="clipfleet-") as folder:
            return self._compared(self._opened()[1], Path(folder)).comparison

    def begin(self) -> None:
        """Compare, then submit a job or commit. Idempotent.

        A night with the same job id is continued, or is the one that is meant if it has ended. While another
        night of the store is in progress, only `wait` goes on, after it.

        Raises:
            SourceError: see `compare`.
            UsageError: an option differs from what the store has.
            WorldError: Redis, the store or the source is unavailable now.
        """
        if self._is_begun:
            return
        store = self._store()
        other = None if store is None else unfinished_night(self._services, store.store_id)
        job_id, known = self._job_id(store)
        if isinstance(known, EndedNight):
            self._done = outcome.of_job(known.job, known.status)
        elif known is not None:
            self.job = known
        elif other is not None:
            self.job, self.is_another = other, True
        else:
            with tempfile.TemporaryDirectory(prefix="clipfleet-") as folder:
                self._run(job_id, Path(folder))

    @property
    def _is_begun(self) -> bool:
        return self.job is not None or self._done is not None

    def wait(
        self, *, on_progress: OnProgress | None = None, on_trouble: OnTrouble | None = None
    ) -> BackfillResult:
        """Wait until the night is committed; begin it if that was not done.

        A night is repeated if the store has got other vectors meanwhile, or other changes of the same items.

        Args:
            on_progress: see `JobHandle.wait`.
            on_trouble: see there.

        Raises:
            The same as `begin`.
        """
        result: RoundResult | None = None
        while True:
            self.begin()
            done = self._ended(on_progress, on_trouble)
            if done is not None:
                result = done if result is None else done.after(result)
                if self._repeats == _MOST_REPEATS or not (done.is_superseded or done.counts.late):
                    return result.result(self._place.uri, time.monotonic() - self._started)
                self._repeats += 1
            self.job, self._done, self.is_another = None, None, False

    def _ended(self, on_progress: OnProgress | None, on_trouble: OnTrouble | None) -> RoundResult | None:
        """What became of this night; None: it is to be begun again, as another one is out of the way."""
        if self._done is not None:
            return self._done
        assert self.job is not None  # noqa: S101 - it is begun
        if not self.is_another:
            status = end_of(self.job, on_progress, on_trouble)
            return None if status is None else outcome.of_job(self.job.job, status)
        self._services.say(f"job {self.job.job_id} of an earlier backfill is in progress: waiting for it")
        with suppress(JobNotFoundError):
            end_of(self.job, on_progress, on_trouble)
        return None

    def _store(self) -> StoreFile | None:
        store = self._place.read_if_there()
        if store is not None:
            require_same_vectors(self._options, store, self._place.uri)
        return store

    def _opened(self) -> tuple[StoreFile | None, VectorDataset | None]:
        """The store as it is now, and its vectors."""
        if self._store() is None:
            return None, None
        store, dataset = current_dataset_if_there(self._place)
        require_same_vectors(self._options, store, self._place.uri)
        return store, dataset

    def _job_id(self, store: StoreFile | None) -> tuple[str, EndedNight | JobHandle | None]:
        """The id of the job of this night, and the night if it was begun before."""
        given = self._options.job_id
        if given is None or self._repeats:
            return new_job_id(), None
        return same_night(self._services, self._place, store.store_id if store else None, given)

    def _compared(self, dataset: VectorDataset | None, folder: Path) -> Compared:
        return compare(
            self._source(),
            dataset,
            folder,
            now=self._services.ledger.now(),
            most_items=self._options.max_items,
            on_listed=self._on_listed,
        )

    def _run(self, job_id: str, folder: Path) -> None:
        place, (store, dataset) = self._place, self._opened()
        embedded_by = wanted_vectors(self._options) if store is None else store.current
        compared = self._compared(dataset, folder)
        if store is None:
            store = place.create(embedded_by)  # now that the source was read
            require_same_vectors(self._options, store, place.uri)
        target = target_of(place, store.store_id, embedded_by, compared, self._options)
        if compared.comparison.to_run:
            self.job = submit(self._services, place, job_id, compared, target, embedded_by, self._options)
            return
        self._done = commit(self._services, place, compared, target)
