"""Finishes a job: writes `_errors.jsonl` and `_manifest.json`, sweeps, then writes `_SUCCESS`. Idempotent.

The rows of a job that fills a store are committed to it before the manifest, and removed at the very end.
"""

from __future__ import annotations

import json
import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.jobs import Job, JobState
from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.parts import ITEM_COLUMNS, PART_COLUMNS, ItemStatus, PartCounts
from clipfleet.contract.stores import SIZE_BYTES
from clipfleet.errors import OutputConflictError, OutputUnreachableError
from clipfleet.ledger.answers import FinishAnswer
from clipfleet.ledger.jobs import FinishClaim, JobStatus, Ledger
from clipfleet.outputs import objects
from clipfleet.outputs.folder import Confirm
from clipfleet.outputs.job_file import put_file_if, put_if
from clipfleet.outputs.scratch import output_errors
from clipfleet.parts import OpenPart, parts_of, read_ahead
from clipfleet.parts.json_rows import as_json, json_line
from clipfleet_worker.chunk.held_lease import HeldLease
from clipfleet_worker.chunk.job_contexts import JobContext
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.finish.committing import StoreCommits, remove_committed, require_store_extra
from clipfleet_worker.models.open_clip_models import preset_label_set

log = logging.getLogger(__name__)

_ERROR_COLUMNS = ("error_code", "error_detail")
_PART_LIMIT_SECONDS = 300.0  # a part that takes longer to read hangs


@dataclass(frozen=True, slots=True)
class _Part:
    """A part, by its footer."""

    name: str
    rows: int
    counts: PartCounts
    beside: Sequence[str]  # further objects of the part
    fetched_bytes: int  # of its images; known of jobs that fill a store


class Finisher:
    """Writes the files beside the parts of a finished job."""

    def __init__(self, ledger: Ledger, job_ttl_seconds: int, commits: StoreCommits) -> None:
        self._ledger = ledger
        self._commits = commits
        self._job_ttl_seconds = job_ttl_seconds

    def finish(self, claim: FinishClaim, context: JobContext, lease: HeldLease) -> FinishAnswer:
        """Finish a claimed job.

        Args:
            claim: of the job.
            context: of the job.
            lease: of the claim; confirmed before each write.

        Raises:
            OutputUnavailableError: a part is not readable or a file not writable; the job stays `finishing`.
            OutputConflictError: another object is in the place of a part.
            ChunkInterrupted: another worker has finished the job, which may be retried by now.
            NoStoreExtraError: the job fills a store, which this worker cannot write.
            StoreBusyError: likewise, and another program writes to it now.
        """
        if context.job.store is not None:
            require_store_extra()
            if _is_committed(context, claim):
                return self._end_committed(claim, context)
        # Read first, so that files which another finisher writes later are not replaced.
        versions = {name: context.output.version(name) for name in (context.layout.errors, objects.MANIFEST)}

        def confirm() -> None:
            lease.confirm()
            lease.enter("write", _PART_LIMIT_SECONDS)  # the limit of a listing of a million parts

        status = self._still_finishing(claim)
        parts = self._write_errors(
            claim, context, status.chunks, versions[context.layout.errors], confirm, lease
        )
        content = _manifest(context, status, parts)
        if context.job.store is not None:
            content["store"] = self._commits.commit(context, context.job.store, status.chunks, confirm)
        manifest = json.dumps(content, indent=1).encode()
        self._still_finishing(claim)
        if not put_if(
            context.output, objects.MANIFEST, manifest, versions[objects.MANIFEST], confirm=confirm
        ):
            raise _overtaken(context, objects.MANIFEST)
        self._sweep(claim, context, status.chunks, parts, confirm)
        self._still_finishing(claim)
        context.output.replace(objects.SUCCESS, b"", confirm=confirm)
        if context.job.store is not None:
            return self._end_committed(claim, context)
        word = self._ledger.finish(claim, ttl_seconds=self._job_ttl_seconds)
        if word is FinishAnswer.STALE and self._is_retried(claim):  # paused just before the last write
            context.output.remove(objects.SUCCESS)
        return word

    def _end_committed(self, claim: FinishClaim, context: JobContext) -> FinishAnswer:
        """End a job whose rows are in its store: it is never retried."""
        word = self._ledger.finish(claim, ttl_seconds=self._job_ttl_seconds)
        remove_committed(context.output, context.job)
        return word

    def _is_retried(self, claim: FinishClaim) -> bool:
        """Whether the job is in a later generation that has not ended."""
        status = self._ledger.status(claim.job_id)
        is_over = status.state.is_final or status.state is JobState.FINISHING
        return status.generation > claim.generation and not is_over

    def _still_finishing(self, claim: FinishClaim) -> JobStatus:
        """Raise unless the job is still ours: a worker that was paused must not undo later writes."""
        status = self._ledger.status(claim.job_id)
        if (status.generation, status.state) != (claim.generation, JobState.FINISHING):
            raise ChunkInterrupted(f"the job is {status.state} in generation {status.generation}")
        return status

    def _sweep(
        self, claim: FinishClaim, context: JobContext, chunks: int, parts: Sequence[_Part], confirm: Confirm
    ) -> None:
        """Remove files of killed processes, and parts that late workers of an earlier job wrote."""
        ours = {part.name for part in parts}
        names = [name for layout in objects.LAYOUTS for name in context.output.names(layout.part_prefix)]
        foreign = [name for name in names if name not in ours and objects.is_part(name)]
        self._still_finishing(claim)  # else they may be parts of the job that has the output by now
        for name in foreign:
            confirm()
            context.output.remove(name)
            log.warning(
                "%s/%s was written late for another job; removing it",
                context.output.uri,
                name,
                extra={"action": "foreign_part_removed", "job_id": context.job.job_id},
            )
        # A sealed job gets no more staged files.
        staged = self._ledger.staged_files(context.job.job_id)
        # A lost ledger lists none: a sweep must not remove what a rebuild needs.
        if sum(count for _, count in staged) == chunks:
            kept = {context.layout.staged_file(first, count) for first, count in staged}
            context.output.sweep(kept.union(*(part.beside for part in parts)), confirm=confirm)

    def _write_errors(
        self,
        claim: FinishClaim,
        context: JobContext,
        chunks: int,
        version: str | None,
        confirm: Confirm,
        lease: HeldLease,
    ) -> list[_Part]:
        """Write the list of failed rows; returns all parts."""
        parts = []
        with context.output.scratch() as path:
            depth = parts_of(context.job).footer_readers
            loaded = read_ahead(partial(_read_part, context), range(chunks), depth=depth)
            with output_errors(path), path.open("w", encoding="utf-8") as file, closing(loaded):
                for _ in range(chunks):
                    lease.enter("finish", _PART_LIMIT_SECONDS)
                    part, errors = next(loaded)
                    file.writelines(map(json_line, errors))
                    parts.append(part)
            self._still_finishing(claim)
            is_written = put_file_if(context.output, path, context.layout.errors, version, confirm=confirm)
        if not is_written:
            raise _overtaken(context, context.layout.errors)
        return parts


def _is_committed(context: JobContext, claim: FinishClaim) -> bool:
    """Whether an earlier finish of this job came to its last write; its parts may be gone."""
    if context.output.version(objects.SUCCESS) is None:
        return False
    manifest = context.output.read(objects.MANIFEST)
    return manifest is not None and json.loads(manifest)["generation"] == claim.generation


def _overtaken(context: JobContext, name: str) -> ChunkInterrupted:
    return ChunkInterrupted(f"{context.output.uri}/{name} was written by another worker meanwhile")


def _read_part(context: JobContext, chunk_id: int) -> tuple[_Part, list[dict[str, Any]]]:
    """Read a part, and its failed rows as lines of an input manifest."""
    files = parts_of(context.job)
    name = files.name(chunk_id)
    try:
        with files.open(context.output, name) as part:
            counts = _counts(context, chunk_id, part)
            errors = _failed_rows(context.job, part) if counts.failed else []
            fetched_bytes = 0 if context.job.store is None else _fetched_bytes(part)
            return _Part(name, part.num_rows, counts, part.beside, fetched_bytes), errors
    except FileNotFoundError as error:
        raise OutputUnreachableError(f"{context.output.uri}/{name} is not there (yet)") from error


def _counts(context: JobContext, chunk_id: int, part: OpenPart) -> PartCounts:
    where = f"{context.output.uri}/{parts_of(context.job).name(chunk_id)}"
    try:
        identity, counts = part.footer()
    except ValueError as error:
        raise OutputConflictError(f"{where} is not a part: {error}") from error
    identity.require(context.job.job_id, chunk_id, where)
    return counts


def _failed_rows(job: Job, part: OpenPart) -> list[dict[str, Any]]:
    ours = {*PART_COLUMNS, *job.own_columns}
    extra = [column for column in part.schema.names if column not in ours]
    rows: list[dict[str, Any]] = []
    for batch in part.batches([*ITEM_COLUMNS, "status", *_ERROR_COLUMNS, *extra]):
        failed = batch.filter(pc.equal(batch["status"], pa.scalar(ItemStatus.FAILED.value)))
        rows += as_json(failed.drop_columns(["status"])).to_pylist()
    return rows


def _in_full(label_set: LabelSet) -> dict[str, Any]:
    """A label set, with the labels and templates of its preset: rows can be explained years later."""
    values = label_set.model_dump(mode="json")
    if label_set.preset is not None:
        values["labels"], values["templates"] = preset_label_set(label_set.preset)
    return values


def _fetched_bytes(part: OpenPart) -> int:
    sums = (pc.sum(batch[SIZE_BYTES]).as_py() for batch in part.batches([SIZE_BYTES]))
    return sum(one or 0 for one in sums)


def _of_stores(parts: Sequence[_Part]) -> dict[str, int]:
    return {
        "same": sum(part.counts.same for part in parts),
        "copied": sum(part.counts.copied for part in parts),
        "fetched_bytes": sum(part.fetched_bytes for part in parts),
    }


def _manifest(context: JobContext, status: JobStatus, parts: Sequence[_Part]) -> dict[str, Any]:
    """Describe the output by its parts; times, limit and generation come from the ledger."""
    job = context.job
    codes = sum((Counter(part.counts.codes) for part in parts), Counter[str]())
    return {
        "schema_version": job.schema_version,
        "job": job.model_dump(mode="json"),
        "label_sets": [_in_full(label_set) for label_set in job.label_sets],
        "generation": status.generation,
        "total": sum(part.rows for part in parts),
        "ok": sum(part.counts.ok for part in parts),
        "failed": sum(part.counts.failed for part in parts),
        **(_of_stores(parts) if job.store is not None else {}),
        "errors_by_code": dict(codes),
        "work_seconds": {step: round(seconds, 3) for step, seconds in status.work_seconds.items()},
        "limit": status.limit and asdict(status.limit),
        "created_at": job.created_at.isoformat(),
        "finished_at": datetime.now(UTC).isoformat(),
        "parts": [{"name": part.name, "rows": part.rows, "failed": part.counts.failed} for part in parts],
    }
