"""One job in the hands of a program: where it stands, its rows, and what can be done to it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from clipfleet.contract.jobs import ErrorCode, Job, JobState
from clipfleet.errors import JobNotFoundError, RedisUnavailableError, UsageError
from clipfleet.exports import ExportCounts, Layout, export
from clipfleet.hints import Hints
from clipfleet.ledger.jobs import JobStatus, Ledger
from clipfleet.ledger.row_store import RedisStore
from clipfleet.ledger.values import EarlyEnd
from clipfleet.outputs import open_output, output_of
from clipfleet.redis.patience import OnTrouble, Patience, is_unready
from clipfleet.results import rows as results
from clipfleet.results.part_rows import PartRows
from clipfleet.results.redis_rows import RedisRows
from clipfleet.results.rows import RowReader
from clipfleet.resume.retry import Parts, Retry, parts_in_place
from clipfleet.settings import Settings

if TYPE_CHECKING:
    import numpy as np

_POLL_SECONDS = 1.0
_BREATH_SECONDS = 0.1  # between two looks at a job whose chunks end quickly: so long at most,
_BREATH_SHARE = 0.1  # and no more than this share of the wait so far: a short job is not made longer

OnProgress = Callable[[JobStatus], None]


class JobHandle:
    """One job."""

    def __init__(
        self,
        ledger: Ledger,
        store: RedisStore,
        hints: Hints,
        job: Job,
        settings: Settings,
        patience: Callable[..., Patience] = Patience,
        *,
        had_ended: bool = False,
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self._sleep = sleep
        self._patience = patience
        self.had_ended = had_ended  # before the submit, retry or rebuild that found it: nothing was run
        self._ledger = ledger
        self._store = store
        self._hints = hints
        self._settings = settings
        self.job = job

    @property
    def job_id(self) -> str:
        """The job's id."""
        return self.job.job_id

    @property
    def output(self) -> str:
        """Where the rows are."""
        return self.job.output

    def status(self) -> JobStatus:
        """A snapshot. Raises `JobNotFoundError` once the ledger has forgotten the job."""
        return self._ledger.status(self.job_id)

    def wait(
        self,
        timeout_seconds: float | None = None,
        *,
        on_progress: OnProgress | None = None,
        on_trouble: OnTrouble | None = None,
    ) -> JobStatus:
        """Block until the job has ended; a Redis that is away is waited for.

        Args:
            timeout_seconds: give up then.
            on_progress: called with every snapshot, about once a second.
            on_trouble: called with a line for people when Redis does not answer.

        Raises:
            TimeoutError: the job has not ended in time; it goes on.
        """
        began = time.monotonic()
        ends = None if timeout_seconds is None else began + timeout_seconds
        last: str | None = None
        while True:
            try:
                # Before the look: an entry that comes between them must not be waited for.
                last = last or self._ledger.last_progress(self.job_id)
                looked = time.monotonic()
                status = self.status()
                if on_progress is not None:
                    on_progress(status)
                if status.state.is_final:
                    return status
                if ends is not None and time.monotonic() >= ends:
                    raise TimeoutError(f"job {self.job_id} is {status.state} after {timeout_seconds:g} s")
                left = _POLL_SECONDS if ends is None else min(_POLL_SECONDS, ends - looked)
                last = self._ledger.wait_for_progress(self.job_id, last, left)
                breath = min(_BREATH_SECONDS, _BREATH_SHARE * (looked - began))
                until = looked + (breath if ends is None else min(breath, ends - looked))
                self._sleep(max(0.0, until - time.monotonic()))
            except RedisUnavailableError as error:
                if on_trouble is not None:
                    on_trouble(str(error))
                self._sleep(_POLL_SECONDS)

    def results(self) -> Iterator[dict[str, Any]]:
        """The rows that are there, as dicts, in the order of the source."""
        return results.rows(self.rows_reader())

    def vectors(self) -> tuple[np.ndarray, np.ndarray]:
        """`item_index` (n,) and the vectors (n, d) float16 of the rows that have one."""
        return results.vectors(self.rows_reader())

    def export(self, layout: Layout, folder: str | Path) -> ExportCounts:
        """Copy the rows that are there into a new folder, see `clipfleet.exports.export`."""
        return export(self.rows_reader(), layout, Path(folder))

    def failure_examples(self) -> dict[str, str]:
        """One detail for each error code, as far as that is told quickly."""
        return self.rows_reader().failure_examples()

    def rows_reader(self) -> RowReader:
        """The rows that are there, for `clipfleet.results.rows` and `clipfleet.exports`."""
        if self.job.output_is_redis:
            return RedisRows(self._ledger, self._store, self.job)
        return PartRows(open_output(self.output), early_end=self._early_end)

    def _early_end(self) -> EarlyEnd | None:
        try:
            return self.status().early_end
        except (JobNotFoundError, RedisUnavailableError):  # the rows are there all the same
            return None

    def cancel(self) -> tuple[bool, JobState]:
        """End the job early; False and its state if it is finishing or over."""
        return self._first().cancel(self.job_id, ttl_seconds=self._settings.job_ttl_seconds)

    def pause(self) -> tuple[bool, JobState]:
        """Hand out no more chunks; those under way are finished."""
        return self._first().pause(self.job_id, "paused by request")

    def resume(self) -> tuple[bool, JobState]:
        """Undo `pause`, also one that the job did itself."""
        return self._first().resume(self.job_id)

    def _first(self) -> Ledger:
        return self._ledger.with_patience(self._patience(awaits=is_unready))

    def retry(self, codes: Sequence[str] = (), *, max_error_rate: float | None = None) -> bool:
        """Run the failed rows of an ended job again, in place, and whatever a cancelled or failed job left.

        Returns as soon as the job goes on: `wait` for its end. A retry that is under way is left alone.
        A Redis that is away is waited for, see `Client`.

        Args:
            codes: only rows with these error codes; empty: all that failed.
            max_error_rate: from now on in place of the job's own; counted over the rows that are run again.

        Returns:
            False if there is nothing to run again.

        Raises:
            JobNotFoundError: the ledger has forgotten the job: use `Client.rebuild` first.
            JobConflictError: the job has not ended yet, or another retry of it began at the same time.
            UsageError: there is no such error code, or the output does not hold this job any more.
            WorldError: Redis or the output is away.
        """
        known = [code for code in codes if code in list(ErrorCode)]
        if len(known) < len(codes):
            strange = next(code for code in codes if code not in known)
            raise UsageError(f"unknown error code {strange!r}; the codes are: {', '.join(ErrorCode)}")
        if max_error_rate is not None and not 0 <= max_error_rate <= 1:
            raise UsageError(f"max_error_rate {max_error_rate} is not between 0 and 1")
        patience = self._patience()
        ledger, store = self._ledger.with_patience(patience), self._store.with_patience(patience)
        output = output_of(self.job, store)
        parts: Parts = partial(parts_in_place, output, self.job)
        if self.job.output_is_redis:
            parts = RedisRows(ledger, store, self.job).parts_in_place
        retry = Retry(
            ledger,
            self._hints,
            output,
            parts,
            self.job,
            lease_seconds=self._settings.lease_seconds,
        )
        is_under_way = retry.run([ErrorCode(code) for code in known], max_error_rate)
        self.had_ended = not is_under_way
        return is_under_way
