"""Decides on the items of a job or a store by an old and by a new policy, and compares.

Both sides are decided from the same numbers, so that an item changes side because of the policies only: from
the scores that a moderation job has stored, if both policies need no others; else from stored vectors, by two
ordinary jobs that announce nothing.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa

from clipfleet.contract.jobs import MAX_ITEMS_IN_REDIS, REDIS_OUTPUT, Job, JobState
from clipfleet.contract.policies import Policy, policy_facts
from clipfleet.errors import JobNotFoundError, TooManyItemsError, UsageError, WorldError
from clipfleet.heads.files import HeadFile
from clipfleet.job_handle import JobHandle
from clipfleet.ledger.jobs import JobStatus
from clipfleet.moderation.policy_files import PolicyFile
from clipfleet.outputs import output_uri
from clipfleet.relabel.origin import Origin, require_finished
from clipfleet.replay.comparing import Comparison
from clipfleet.replay.outcome import Replayed, changes_format, replaced_file
from clipfleet.replay.pairs import CHANGES, pairs_of_rows
from clipfleet.replay.stored_scores import lacks, pairs_of_scores
from clipfleet.results.formats import write_stream
from clipfleet.results.rows import RowReader, RowStream
from clipfleet.submit.options import JobOptions

MOST_SHOWN = 100
_OPTIONS = ("output", "overwrite", "part_format", "lane", "chunk_size")
_COMPLETE = (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)

Wait = Callable[[JobHandle], JobStatus]


class ReplayError(WorldError):
    """A job of a replay ended without its decisions."""


@dataclass(frozen=True, slots=True)
class Services:
    """What a replay needs of a client."""

    origin: Callable[[], Origin]  # the vectors; raises like `origin_of`
    policy_of: Callable[[Job, Sequence[HeadFile]], PolicyFile]  # see `policy_of_job`
    submit: Callable[[Origin, PolicyFile, JobOptions], JobHandle]  # a job that decides on the vectors
    cancel: Callable[[str], object]  # ends a job early; raises `JobNotFoundError`


@dataclass(frozen=True, slots=True, kw_only=True)
class Replay:
    """One replay."""

    reader: RowReader  # of the job or the store
    services: Services
    new: PolicyFile
    against: PolicyFile | None = None  # the old side; None: the policy of the job
    options: JobOptions
    changes: Path | None = None  # all items that change side are written there
    wait: Wait
    now: Callable[[], datetime] = lambda: datetime.now(UTC)
    _name: str = field(default_factory=lambda: secrets.token_hex(8))

    def run(self) -> Replayed:
        """Decide and compare. Jobs that were submitted are cancelled if it fails, or is interrupted.

        Raises:
            UsageError: there is no old side, no vector, or the policies are of another model.
            WorldError: a job has failed, or Redis or an output is unavailable.
        """
        _require_own(self.options)
        if self.changes is not None:
            changes_format(self.changes)
        job = self.reader.job()
        own = None if job is None else Policy.of_job(job)
        old = own if self.against is None else self.against.policy
        if old is None:
            raise UsageError(
                f"{self.reader.uri}: has no decisions to compare with: name the policy that decides now with "
                "`against=`"
            )
        is_own = own is not None and old.sha256 == own.sha256
        if job is not None and own is not None and self._has_scores(job, old):
            before = None if is_own else old
            return self._compared(pairs_of_scores(self.reader, job, before, self.new.policy, self.now()), old)
        origin = self.services.origin()
        for one in (old, self.new.policy):
            _require_model(one, origin)
        chosen = self.against or self.services.policy_of(origin.job, self.new.heads)
        with self._decided(origin, chosen) as (former, latter):
            recorded = self.reader if is_own else None
            pairs = pairs_of_rows(former.rows_reader(), latter.rows_reader(), recorded)
            return self._compared(pairs, old, (former.output, latter.output))

    def _has_scores(self, job: Job, old: Policy) -> bool:
        """Whether the rows of a moderation job have the scores that both policies need.

        Raises:
            UsageError: they do not, and have no vectors either; or the job has not finished.
        """
        require_finished(self.reader, job)
        why_not = next(filter(None, (_misses(job, one) for one in (old, self.new.policy))), None)
        if why_not is not None and not job.keeps_embeddings:
            raise UsageError(
                f"{self.reader.uri}: its scores are not those that the policies need ({why_not}), and it "
                "keeps no vectors: moderate with `store_embeddings=True` to decide again on vectors"
            )
        return why_not is None

    @contextmanager
    def _decided(self, origin: Origin, old: PolicyFile) -> Iterator[tuple[JobHandle, JobHandle]]:
        """Two jobs over the vectors that have ended."""
        is_kept = self.options.output not in (None, REDIS_OUTPUT)
        if not is_kept and origin.items > MAX_ITEMS_IN_REDIS:
            raise TooManyItemsError(
                f"{self.reader.uri}: has {origin.items:,} items, and Redis takes the rows of "
                f"{MAX_ITEMS_IN_REDIS:,}: give an `output=`, a folder or s3://BUCKET/PREFIX for the rows"
            )
        place = output_uri(self.options.output or REDIS_OUTPUT)
        sides = {"old": old, "new": self.new}
        ids = {name: f"replay-{name}-{self._name}" for name in sides}
        asked = self.options.model_dump(include={*_OPTIONS})
        options = {
            name: JobOptions(**asked | {"job_id": job_id, "output": f"{place}/{name}" if is_kept else None})
            for name, job_id in ids.items()
        }
        try:
            jobs = [self.services.submit(origin, one, options[name]) for name, one in sides.items()]
            for job in jobs:
                _require_complete(job, self.wait(job))
            yield jobs[0], jobs[1]
        except BaseException:
            for job_id in ids.values():
                with suppress(JobNotFoundError, WorldError):  # what went wrong first is raised
                    self.services.cancel(job_id)
            raise

    def _compared(
        self, pairs: Iterator[pa.RecordBatch], old: Policy, outputs: tuple[str, str] | None = None
    ) -> Replayed:
        found = Comparison(pairs, MOST_SHOWN)
        if self.changes is None:
            for _ in found.changes():
                pass
        else:
            with replaced_file(self.changes) as file:
                write_stream(RowStream(CHANGES, found.changes()), changes_format(self.changes), file)
        return Replayed(
            source=self.reader.uri,
            old_policy=policy_facts(old.of_a_job()),
            new_policy=policy_facts(self.new.policy.of_a_job()),
            from_scores=outputs is None,
            counts=dict(found.counts),
            failed=dict(found.failed),
            examples=found.examples,
            decided_otherwise=found.decided_otherwise,
            shown=found.shown,
            outputs=None if outputs is None or REDIS_OUTPUT in outputs else outputs,
            changes_file=None if self.changes is None else str(self.changes),
        )


def _require_own(options: JobOptions) -> None:
    """Refuse options that no job of a replay has."""
    for name, field_info in JobOptions.model_fields.items():
        if name not in _OPTIONS and getattr(options, name) != field_info.default:
            raise UsageError(
                f"`{name}=` is not for a replay, which takes {', '.join(_OPTIONS)}: leave it out"
            )


def _misses(job: Job, policy: Policy) -> str | None:
    """Why the scores of a job do not decide by a policy; None: they do."""
    if _other_model(policy, job) is not None:
        return f"they are of {job.model}"
    return lacks(job, policy)


def _require_model(policy: Policy, origin: Origin) -> None:
    name = _other_model(policy, origin.job)
    if name is not None:
        stored = getattr(origin.job, name)
        raise UsageError(
            f"policy {policy.name!r} is for vectors with `{name}: {getattr(policy, name)}`, those of "
            f"{origin.vectors.said} have {stored}: write `{name}: {stored}` into the policy, or replay "
            "vectors that fit it"
        )


def _other_model(policy: Policy, job: Job) -> str | None:
    """What a policy says otherwise of the model than a job."""
    return next(
        (name for name in ("model", "decode", "exif") if getattr(policy, name) != getattr(job, name)), None
    )


def _require_complete(job: JobHandle, status: JobStatus) -> None:
    if status.state not in _COMPLETE:
        reason = f": {status.reason}" if status.reason else ""
        name = job.job.policy.name if job.job.policy is not None else ""
        raise ReplayError(f"job {job.job_id}, which decides by policy {name!r}, is {status.state}{reason}")
