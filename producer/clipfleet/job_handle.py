"""One job: its status, its rows, and the operations on it."""

from __future__ import annotations

import difflib
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipfleet.contract.jobs import ErrorCode, Job, JobState
from clipfleet.errors import JobNotFoundError, RedisUnavailableError, UsageError, WorldError
from clipfleet.ledger.jobs import JobStatus, Ledger
from clipfleet.ledger.status import EarlyEnd
from clipfleet.redis.patience import OnTrouble, Patience, is_unready
from clipfleet.settings import Settings

if TYPE_CHECKING:
    import numpy as np

    from clipfleet.exports import ExportCounts
    from clipfleet.hints import Hints
    from clipfleet.ledger.row_store import RedisStore
    from clipfleet.results.estimate import Estimate
    from clipfleet.results.kinds import Layout
    from clipfleet.results.rows import RowReader
    from clipfleet.resume.retry import Parts

_COMPLETE = (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)
_POLL_SECONDS = 1.0
_SHOWN_SECONDS = 0.5  # between polls of a job that somebody watches: its chunks report each second
_PAUSE_SECONDS = 0.1  # pause between polls of a job with short chunks, at most;
_PAUSE_SHARE = 0.1  # and at most this share of the wait so far, to keep short jobs short

OnProgress = Callable[[JobStatus], None]


class JobHandle:
    """Handle to one job."""

    def __init__(
        self,
        ledger: Ledger,
        store: Callable[[], RedisStore],
        hints: Callable[[], Hints],
        job: Job,
        settings: Settings,
        patience: Callable[..., Patience] = Patience,
        *,
        had_ended: bool = False,
        whole_items: int | None = None,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._sleep = sleep
        self._patience = patience
        self.had_ended = had_ended  # before this submit, retry or rebuild: nothing was run
        self.whole_items = whole_items  # of the source, if this submit took a sample of it
        self._ledger = ledger
        self._store = store
        self._hints = hints
        self._settings = settings
        self.job = job

    def __repr__(self) -> str:
        return f"<JobHandle {self.job_id}: {self.job.task} {self.job.source.uri} -> {self.output}>"

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.job_id

    @property
    def output(self) -> str:
        """URI of the output."""
        return self.job.output

    def status(self) -> JobStatus:
        """Return a snapshot. Raises `JobNotFoundError` once the job has expired in the ledger."""
        return self._ledger.status(self.job_id)

    def wait(
        self,
        timeout_seconds: float | None = None,
        *,
        on_progress: OnProgress | None = None,
        on_trouble: OnTrouble | None = None,
    ) -> JobStatus:
        """Block until the job has ended, waiting out Redis outages.

        Args:
            timeout_seconds: upper bound; None waits without one.
            on_progress: called with every snapshot, about twice a second.
            on_trouble: called with a message when Redis does not respond.

        Raises:
            TimeoutError: the job has not ended in time; it keeps running.
        """
        began = time.monotonic()
        most = _POLL_SECONDS if on_progress is None else _SHOWN_SECONDS
        ends = None if timeout_seconds is None else began + timeout_seconds
        last: str | None = None
        while True:
            try:
                # Before the status call: an entry in between must not be waited for.
                last = last or self._ledger.last_progress(self.job_id)
                looked = time.monotonic()
                status = self.status()
                if on_progress is not None:
                    on_progress(status)
                if status.state.is_final:
                    return status
                if ends is not None and time.monotonic() >= ends:
                    raise TimeoutError(f"job {self.job_id} is {status.state} after {timeout_seconds:g} s")
                left = most if ends is None else min(most, ends - looked)
                last = self._ledger.wait_for_progress(self.job_id, last, left)
                pause = min(_PAUSE_SECONDS, _PAUSE_SHARE * (looked - began))
                until = looked + (pause if ends is None else min(pause, ends - looked))
                self._sleep(max(0.0, until - time.monotonic()))
            except RedisUnavailableError as error:
                if on_trouble is not None:
                    on_trouble(str(error))
                self._sleep(_POLL_SECONDS)

    def results(self, *, corrected: bool = False) -> Iterator[dict[str, Any]]:
        """Iterate over the rows written so far, as dicts, in source order.

        Args:
            corrected: with the stored marks of people in place of the model's labels, see `CorrectedRows`.

        Raises:
            UsageError: `corrected` of rows in Redis, which have no marks. Otherwise see `RowReader.read`.
        """
        from clipfleet.marking.correcting import corrected_rows
        from clipfleet.results import rows

        reader = self.rows_reader()
        return rows.rows(corrected_rows(reader) if corrected else reader)

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """Return `item_index` (n,) and the embeddings (n, d) of the job's type, of rows that have one."""
        from clipfleet.results import rows

        return rows.vectors(self.rows_reader())

    def decisions(self) -> dict[str, int]:
        """Count the rows of a moderation job that are there by decision, in the order of `DecisionStatus`.

        Raises:
            UsageError: the job has no policy. Otherwise see `RowReader.read`.
        """
        from clipfleet.moderation.records import count_decisions

        if self.job.policy is None:
            raise UsageError(f"job {self.job_id} has no policy, and so no decisions")
        return count_decisions(self.rows_reader())

    def export(self, layout: Layout, folder: str | Path) -> ExportCounts:
        """Copy the rows that are there into a new folder, see `clipfleet.exports.export`."""
        from clipfleet.exports import export

        return export(self.rows_reader(), layout, Path(folder))

    def failure_examples(self) -> dict[str, str]:
        """One example detail per error code. Best effort, fast; none once the rows have expired or moved."""
        try:
            return self.rows_reader().failure_examples()
        except (UsageError, WorldError):
            return {}

    def estimate(self) -> Estimate | None:
        """Estimate the result for the whole source of a sample, once the job is completed.

        None if this handle is not that of a submit with `sample`, if the sample was the whole source, or if
        the job did not complete. Raises like `results`.
        """
        if self.whole_items is None:
            return None
        from clipfleet.results.estimate import estimate_of

        status = self.status()
        if self.whole_items <= status.total or status.state not in _COMPLETE:
            return None
        return estimate_of(self.rows_reader(), self.job, status, self.whole_items)

    def rows_reader(self) -> RowReader:
        """The rows that are there, for `clipfleet.results.rows` and `clipfleet.exports`."""
        from clipfleet.outputs import open_output
        from clipfleet.results.part_rows import PartRows
        from clipfleet.results.redis_rows import RedisRows

        if self.job.output_is_redis:
            return RedisRows(self._ledger, self._store(), self.job)
        return PartRows(open_output(self.output), early_end=self._early_end)

    def _early_end(self) -> EarlyEnd | None:
        try:
            return self.status().early_end
        except (JobNotFoundError, RedisUnavailableError):  # the rows exist all the same
            return None

    def cancel(self) -> tuple[bool, JobState]:
        """End the job early; return False and its state if it is finishing or has ended."""
        return self._first().cancel(self.job_id, ttl_seconds=self._settings.job_ttl_seconds)

    def pause(self) -> tuple[bool, JobState]:
        """Stop handing out chunks; chunks in progress complete."""
        return self._first().pause(self.job_id, "paused by request")

    def resume(self) -> tuple[bool, JobState]:
        """Resume a paused job, also one that paused itself."""
        return self._first().resume(self.job_id)

    def _first(self) -> Ledger:
        return self._ledger.with_patience(self._patience(awaits=is_unready))

    def retry(self, codes: Sequence[str] = (), *, max_error_rate: float | None = None) -> bool:
        """Retry the failed rows of an ended job, in place, and the rows that a cancelled or failed job left.

        Returns once the job has been restarted: `wait` for its end. A retry in progress is left unchanged.
        Waits out Redis outages, see `Client`.

        Args:
            codes: retry only rows with these error codes; empty: all failed rows.
            max_error_rate: replaces that of the job; counted over the rows that are retried.

        Returns:
            False if there is nothing to retry.

        Raises:
            JobNotFoundError: the job has expired in the ledger: use `Client.rebuild` first.
            JobConflictError: the job has not ended yet, or another retry of it began at the same time.
            UsageError: an unknown error code; the output no longer contains this job; or the vectors that it
                labels are gone.
            WorldError: Redis or the output is unavailable.
        """
        from clipfleet.outputs import output_of
        from clipfleet.relabel.still_there import require_vectors
        from clipfleet.results.redis_rows import RedisRows
        from clipfleet.resume.retry import Retry, parts_in_place

        known = [code for code in codes if code in list(ErrorCode)]
        if len(known) < len(codes):
            raise _unknown_code(next(code for code in codes if code not in known), self.status())
        if max_error_rate is not None and not 0 <= max_error_rate <= 1:
            raise UsageError(f"max_error_rate {max_error_rate} is not between 0 and 1")
        patience = self._patience()
        ledger, store = self._ledger.with_patience(patience), self._store().with_patience(patience)
        output = output_of(self.job, store)
        parts: Parts = partial(parts_in_place, output, self.job)
        if self.job.output_is_redis:
            parts = RedisRows(ledger, store, self.job).parts_in_place
        retry = Retry(
            ledger,
            self._hints(),
            output,
            parts,
            self.job,
            lease_seconds=self._settings.lease_seconds,
            require_items=partial(require_vectors, self.job, store),
        )
        is_under_way = retry.run([ErrorCode(code) for code in known], max_error_rate)
        self.had_ended = not is_under_way
        return is_under_way


def _unknown_code(code: str, status: JobStatus) -> UsageError:
    near = difflib.get_close_matches(code, list(ErrorCode), n=1)
    meant = f"did you mean {near[0]}? " if near else ""
    codes = ", ".join(sorted(status.codes))
    found = f"rows of this job failed with {codes}" if codes else "no row of this job has failed"
    return UsageError(
        f"unknown error code {code!r}: {meant}{found}; docs/reference/errors.md lists all codes"
    )
