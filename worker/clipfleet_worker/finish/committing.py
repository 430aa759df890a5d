"""Commits the rows of a job to the store that it fills, as a step of its finish, and removes what is left.

A worker without the extra `[store]` leaves that to others.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import asdict
from typing import Any

from clipfleet.contract.jobs import Job
from clipfleet.contract.stores import StoreTarget
from clipfleet.errors import OutputConflictError, OutputUnavailableError, UsageError
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.locks import LockLostError, Locks, LockTakenError
from clipfleet.outputs import Output, objects
from clipfleet.outputs.objects import layout_of
from clipfleet.store.committing.model import model_of_rows
from clipfleet.store.committing.of_job import SupersededError, commit_job, lock_name
from clipfleet.store.place import StorePlace, store_place
from clipfleet_worker.chunk.job_contexts import JobContext
from clipfleet_worker.stores import has_store_extra

log = logging.getLogger(__name__)


class StoreBusyError(Exception):
    """Another program writes to the store now; the finish of the job comes later."""


class NoStoreExtraError(Exception):
    """This worker lacks the extra `[store]`."""


def require_store_extra() -> None:
    """Raise `NoStoreExtraError` unless this process can commit to stores."""
    if not has_store_extra():
        raise NoStoreExtraError


class StoreCommits:
    """Commits jobs to stores. Thread-safe."""

    def __init__(self, ledger: Ledger, locks: Locks) -> None:
        self._ledger = ledger
        self._locks = locks

    def commit(
        self, context: JobContext, target: StoreTarget, chunks: int, alive: Callable[[], object]
    ) -> dict[str, Any]:
        """Commit a job whose parts are all there; return what its manifest says of that. Idempotent.

        Args:
            context: of the job.
            target: its store.
            chunks: of the job.
            alive: called often; what it raises ends the commit.

        Raises:
            StoreBusyError: another program holds the lock of the store, or has taken it.
            OutputConflictError: there is no such store any more, the rows are of several models, or a column
                has another type in the store.
            OutputUnavailableError: the store cannot be read or written now.
        """
        fingerprint = target.fingerprint or self._pinned(context, chunks, alive)
        try:
            context.require_writable_store(fingerprint)
            place = store_place(target.uri)
            with self._locks.held(lock_name(target.store_id)) as holding:

                def both_alive() -> None:
                    alive()
                    holding()

                return _commit(place, context, chunks, fingerprint, both_alive)
        except (LockTakenError, LockLostError) as error:
            raise StoreBusyError(f"another program writes to {target.uri} now") from error
        except UsageError as error:  # there is no store
            raise OutputConflictError(str(error)) from error

    def _pinned(self, context: JobContext, chunks: int, alive: Callable[[], object]) -> str:
        """The fingerprint of a job's vectors: its rows say it where Redis has lost that."""
        job_id = context.job.job_id
        known = self._ledger.pin_model(job_id)
        if known:
            return known
        found = model_of_rows(context.job, context.output, range(chunks), alive)
        return self._ledger.pin_model(job_id, found) or found


def _commit(
    place: StorePlace, context: JobContext, chunks: int, fingerprint: str, alive: Callable[[], object]
) -> dict[str, Any]:
    job = context.job
    try:
        done = commit_job(place, job, context.output, chunks, fingerprint, alive)
    except SupersededError as error:
        log.warning(
            "job %s: %s; nothing is committed",
            job.job_id,
            error,
            extra={"action": "commit_superseded", "job_id": job.job_id},
        )
        return {"uri": place.uri, "superseded": str(error)}
    log.info(
        "job %s is in version %d of %s",
        job.job_id,
        done.version,
        place.uri,
        extra={"action": "job_committed", "job_id": job.job_id},
    )
    return {
        "uri": place.uri,
        "version": done.version,
        "fingerprint": done.fingerprint,
        "counts": asdict(done.counts),
    }


def remove_committed(output: Output, job: Job) -> None:
    """Remove parts and items of a job that is over: the store has its rows. Best effort."""
    layout = layout_of(job.schema_version)
    try:
        for prefix in (layout.part_prefix, objects.FOOTER_PREFIX, objects.STAGED_PREFIX, objects.GONE):
            for name in [*output.names(prefix)]:
                output.remove(name)
    except OutputUnavailableError as error:
        log.warning(
            "parts of job %s are left beside the store, `clipfleet store vacuum` removes them: %s",
            job.job_id,
            error,
            extra={"action": "parts_left", "job_id": job.job_id},
        )
