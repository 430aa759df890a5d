"""Retry and rebuild: the ledger replaces what it knows of a job's chunks by a draft of them, all at once."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from datetime import datetime
from typing import Any

from clipfleet.contract.jobs import Job, JobState
from clipfleet.errors import JobUnreadableError
from clipfleet.ledger.answers import RebuildAnswer, RetryAnswer
from clipfleet.ledger.arguments import brief_argument, flat, rate_argument
from clipfleet.ledger.status import JobStatus
from clipfleet.ledger.values import Draft
from clipfleet.redis.connection import damage_of

DRAFT_SCRIPTS = ("draft_begin", "draft_add", "retry", "rebuild")
_SLICE = 1000  # chunks or files in a call: no script blocks the server for long


class Drafts:
    """Drafts of chunks. The one that was begun last replaces every earlier one of the same job."""

    def __init__(self, run: Callable[..., Any], status: Callable[[str], JobStatus]) -> None:
        self._run = run
        self._status = status

    def begin(self, job_id: str, token: str) -> None:
        """Begin a retry or rebuild; earlier ones of the same job can no longer take effect.

        `token` names it in `retry` and `rebuild`. Take the inventory of the output after this call.
        """
        self._run("draft_begin", job_id, token)

    def retry(
        self,
        job_id: str,
        token: str,
        draft: Draft,
        *,
        generation: int,
        codes: Sequence[str] = (),
        max_error_rate: float | None = None,
    ) -> tuple[RetryAnswer, JobState | None]:
        """Restart an ended job in a new generation. Idempotent.

        Args:
            job_id: the job.
            token: as given to `begin`.
            draft: its chunks as the output shows them.
            generation: higher than that of every part.
            codes: error codes of the failed rows to run again; empty: all.
            max_error_rate: replaces the job's own; None keeps it.

        Raises:
            JobUnreadableError: the job's keys were damaged in a way that a retry cannot repair.
        """
        if not self.note(job_id, token, draft):
            return RetryAnswer.TAKEN, None
        word, state = self._run(
            "retry", job_id, token, generation, ",".join(codes), rate_argument(max_error_rate),
            *_counts(draft),
        )  # fmt: skip
        answer = RetryAnswer(word)
        if answer is RetryAnswer.DAMAGED:
            raise JobUnreadableError(f"job {job_id!r} cannot be retried: {self._status(job_id).reason}")
        with damage_of(job_id):
            return answer, JobState(state) if state else None

    def rebuild(
        self,
        job: Job,
        token: str,
        draft: Draft,
        *,
        state: JobState,
        generation: int,
        codes: Sequence[str] = (),
        items: int,
        ttl_seconds: int,
        source_sum: str = "",
        finished_at: datetime | None = None,
        fingerprint_of_vectors: str = "",
    ) -> tuple[RebuildAnswer, JobState | None]:
        """Restore a job that the ledger has lost; a job that it knows is not changed. Idempotent.

        Args:
            job: the job, as its output holds it.
            token: as given to `begin`.
            draft: its chunks and staged files, as the output shows them.
            state: `submitting` if it is not sealed, `running`, or its final state; then no event is sent.
            generation: that of the newest part, at least.
            codes: see `retry`.
            items: of all staged files.
            ttl_seconds: how long an ended job is kept.
            source_sum: as given to `Ledger.seal`.
            finished_at: when an ended job ended, if known.
            fingerprint_of_vectors: see `Ledger.pin_model`; empty: none is decided.
        """
        if not self.note(job.job_id, token, draft):
            return RebuildAnswer.TAKEN, None
        chunks, spec = sum(count for _, count in draft.staged), job.model_dump_json()
        word, known = self._run(
            "rebuild", job.job_id, token, spec, job.fingerprint, job.lane.value, job.model,
            job.chunk_size, rate_argument(job.max_error_rate), int(job.created_at.timestamp() * 1000),
            generation, ",".join(codes), state.value, chunks, items, ttl_seconds * 1000, source_sum,
            int(finished_at.timestamp() * 1000) if finished_at else "", brief_argument(job, spec),
            fingerprint_of_vectors, *_counts(draft),
        )  # fmt: skip
        answer = RebuildAnswer(word)
        with damage_of(job.job_id):
            return answer, JobState(known) if known else None

    def note(self, job_id: str, token: str, draft: Draft) -> bool:
        """Send the draft, in slices; False if another retry or rebuild has begun."""
        files = [(first, f"{first}-{count}") for first, count in draft.staged]
        slices: list[tuple[str, Sequence[Any]]] = [("done", [draft.done])]
        slices += [("due", part) for part in _slices(draft.due)]
        slices += [("staged", [value for pair in part for value in pair]) for part in _slices(files)]
        return all(self._run("draft_add", job_id, token, kind, *part) == 1 for kind, part in slices)


def _slices(values: Sequence[Any]) -> list[Sequence[Any]]:
    return [values[start : start + _SLICE] for start in range(0, len(values), _SLICE)]


def _counts(draft: Draft) -> list[int | str]:
    return [draft.next_chunk, draft.ok, draft.failed, *flat(draft.codes)]
