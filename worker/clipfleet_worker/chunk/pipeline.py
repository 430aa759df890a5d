"""The path of one chunk.

    claim     `claims.py`: `hints/tasks.py`, the task of a hint, claims a chunk and calls `Pipeline.run`;
              `leases.py` renews its lease
    read      `job_contexts.py`, `work.py`: the job, the staged items, and in a retry the rows to keep
    load      `models/`: the model of the job; the other chunks of the process share it. The first chunk
              fetches and decodes meanwhile
    fetch     `fetch/`: URIs to bytes, on an event loop
    decode    `decode/`: bytes to pixels, in a pool of threads
    encode    `encode/`: pixels, texts and labels to features, in the device thread, in batches
    score     `score/`: features and label sets to labels
    write     `rows.py`, `sinks/`: one row per item to one part
    complete  `endings.py`: records the part in the ledger; the last one of a job calls `finish/`

`item_path.py` connects fetch, decode and encode (together `Step.ITEMS`), which all chunks of a process share.
The thread of the chunk has the labels encoded meanwhile, then waits in `Outcomes`. An item that fails becomes
a failed row, never an exception.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from clipfleet.contract.bottleneck import NO_METERS, Meters, Step
from clipfleet.contract.jobs import ErrorCode, ItemError, Job
from clipfleet.contract.parts import PartCounts, PartIdentity, count_rows
from clipfleet.ledger.jobs import Claim
from clipfleet_worker.chunk.held_lease import HeldLease
from clipfleet_worker.chunk.item_path import Destination, ItemPath
from clipfleet_worker.chunk.job_contexts import JobContext
from clipfleet_worker.chunk.meter import chunk_meters
from clipfleet_worker.chunk.open_items import OpenItems
from clipfleet_worker.chunk.rows import part_table
from clipfleet_worker.chunk.work import ChunkWork, chunk_work
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.files import embedding_dimension
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.process.watchdog import LOAD_LIMIT_SECONDS
from clipfleet_worker.score.labelling import (
    ChunkLabels,
    EncodedSet,
    choices_of,
    encode_label_set,
    fail_unknown_choices,
    label_items,
)
from clipfleet_worker.score.text_matrices import TextMatrices

# Over these limits a step hangs, and its lease is not renewed.
_READ_LIMIT_SECONDS = 120.0
# With the download; a chunk that waits longer is released. The watchdog limits the load itself.
_WAIT_FOR_MODEL_SECONDS = 3600.0
_RELEASE_SECONDS = 60.0  # from the end of that wait to the release
_PROMPTS_LIMIT_SECONDS = 600.0  # for some hundred prompts, not a whole label set
_ENCODE_LIMIT_SECONDS = LOAD_LIMIT_SECONDS  # without any item of the worker ending
_QUEUED_LIMIT_SECONDS = 6 * 3600.0  # for a chunk behind many others on a slow device
_PREPARE_WRITE_LIMIT_SECONDS = 300.0  # until `HeldLease.confirm`: the rows go into a scratch file


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """The part of a chunk, which is in place."""

    counts: PartCounts
    work_seconds: dict[str, float]  # working time, summed over threads
    ran: PartCounts | None = None  # rows that a retry has run; None: all rows
    meters: Meters = NO_METERS  # for the limit of the job


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Turns claimed chunks into parts. Thread-safe."""

    models: Models
    item_path: ItemPath
    text_matrices: TextMatrices
    open_items: OpenItems
    fetch_deadline_seconds: float
    decode_seconds: float

    def run(self, claim: Claim, context: JobContext, lease: HeldLease) -> ChunkResult:
        """Process a chunk up to its part.

        Raises:
            ModelUnavailableError: the model cannot be loaded here.
            OutputConflictError: a part of another job is in its place.
            OutputUnavailableError: the output is away, or a later generation has written it.
            ChunkInterrupted: the chunk is no longer ours, or the worker drains.
        """
        lease.enter(Step.READ, _READ_LIMIT_SECONDS)
        before = self.item_path.busy()
        if claim.has_history or claim.generation > 0:
            found = context.sink.find(_identity(claim))
            if found is not None:  # its writer died, or lost its lease, before the chunk was complete
                return ChunkResult(found, {}, PartCounts(0, 0, {}) if claim.generation > 0 else None)
        if claim.is_exhausted:
            detail = f"given up after {claim.losses} dead workers and {claim.failures} failures"
            return self.give_up(claim, context, lease, ItemError(ErrorCode.CHUNK_FAILED, detail))
        work = _read(claim, context)
        is_suspect = claim.losses > 0 or work.is_suspect
        with (
            # Before the load, which other chunks may wait for, too.
            self.item_path.handling(is_suspect=is_suspect),
            self.open_items.making_room() as make_room,
        ):

            def on_end(count: int) -> None:
                lease.note_settled(count)
                make_room(count)

            outcomes = Outcomes(work.items.num_rows, on_end)
            model, labels = self._process(context.job, work.items, outcomes, lease, is_suspect=is_suspect)
        lease.enter(Step.WRITE, _PREPARE_WRITE_LIMIT_SECONDS)
        result = self._write(claim, context, lease, work, outcomes, model=model, labels=labels)
        meanwhile = self.item_path.busy().since(before)
        return replace(result, meters=chunk_meters(meanwhile, lease.step_seconds, outcomes, model))

    def give_up(self, claim: Claim, context: JobContext, lease: HeldLease, error: ItemError) -> ChunkResult:
        """Write a part with a failed row for every item that is not kept."""
        lease.enter(Step.WRITE, _PREPARE_WRITE_LIMIT_SECONDS)
        work = _read(claim, context)
        outcomes = Outcomes(work.items.num_rows)
        outcomes.fail_all(error)
        return self._write(claim, context, lease, work, outcomes)

    def _process(
        self,
        job: Job,
        items: pa.Table,
        outcomes: Outcomes,
        lease: HeldLease,
        *,
        is_suspect: bool,
    ) -> tuple[LoadedModel, ChunkLabels | None]:
        """Load the model; fetch, decode, encode and score the items."""
        lease.on_interrupt(outcomes.interrupt)
        choices = choices_of(items, job)
        if choices is not None:
            fail_unknown_choices(job.label_sets, choices, outcomes)
        loading = self.models.prefetch(job.model, job.precision)
        limit_seconds = _WAIT_FOR_MODEL_SECONDS + LOAD_LIMIT_SECONDS + _RELEASE_SECONDS
        lease.enter(Step.LOAD, limit_seconds, doing=lambda: loading.doing)
        spec = lease.result_of(loading.pixel_spec, _WAIT_FOR_MODEL_SECONDS)
        destination = self.item_path.destination(loading, spec, job, outcomes, is_suspect=is_suspect)
        starts_early = not is_suspect and job.text_column is None and loading.take_lead()
        if starts_early:
            self.item_path.start(items, destination)
        model = self._load(lease, destination)
        limit_seconds = self.fetch_deadline_seconds + self.decode_seconds + _ENCODE_LIMIT_SECONDS
        if job.text_column is not None:
            lease.enter(Step.ITEMS, limit_seconds, longest_seconds=_QUEUED_LIMIT_SECONDS)
            self.item_path.start_texts(items[job.text_column].to_pylist(), destination)
        elif not starts_early:
            self.item_path.start(items, destination)
        encoded = [] if outcomes.all_failed else self._encode_labels(job, model, lease, outcomes)
        lease.enter(Step.ITEMS, limit_seconds, longest_seconds=_QUEUED_LIMIT_SECONDS)
        outcomes.wait()
        lease.enter(Step.SCORE, _ENCODE_LIMIT_SECONDS, longest_seconds=_QUEUED_LIMIT_SECONDS)
        if not encoded:
            return model, None
        return model, label_items(self.item_path.batcher, job, encoded, outcomes, model.logit_scale, choices)

    def _load(self, lease: HeldLease, destination: Destination) -> LoadedModel:
        """Wait for the model, whose files are here by now."""
        try:
            return lease.result_of(destination.loading, LOAD_LIMIT_SECONDS)
        except BaseException as error:
            destination.outcomes.interrupt(error)  # ends the items that started early
            destination.ahead.stop_waiting()
            raise

    def _encode_labels(
        self, job: Job, model: LoadedModel, lease: HeldLease, outcomes: Outcomes
    ) -> list[EncodedSet]:
        """Encode the labels while the items are in progress; a large label set takes long, but only once."""
        try:
            alive = partial(lease.enter, Step.LABELS, _PROMPTS_LIMIT_SECONDS)
            return [
                encode_label_set(self.text_matrices, model, label_set, job.lane, alive)
                for label_set in job.label_sets
            ]
        except ItemFailure as failure:  # a label without a vector: no score is possible
            outcomes.fail_all(failure.error)
            return []
        except BaseException as error:
            outcomes.interrupt(error)  # ends the items
            raise

    def _write(
        self,
        claim: Claim,
        context: JobContext,
        lease: HeldLease,
        work: ChunkWork,
        outcomes: Outcomes,
        *,
        model: LoadedModel | None = None,
        labels: ChunkLabels | None = None,
    ) -> ChunkResult:
        job = context.job
        started = time.monotonic()
        fresh = part_table(
            work.items,
            outcomes,
            embedding_dimension=model.embedding_dimension if model else embedding_dimension(job.model),
            model_fingerprint=model.fingerprint_for(job.decode, job.exif) if model else None,
            store_embeddings=job.keeps_embeddings,
            has_embedding_column=job.has_embedding_column,
            vector_type=job.vector_type,
            label_set_names=[label_set.name for label_set in job.named_label_sets],
            accepted_columns=job.accepted_columns,
            labels=labels,
        )
        rows = work.all_rows(fresh)
        counts = context.sink.write(
            _identity(claim),
            rows,
            count_rows(rows),
            over=work.older,
            token=claim.token,
            confirm=lease.confirm,
        )
        seconds = {**outcomes.seconds, "write": time.monotonic() - started}
        return ChunkResult(counts, seconds, None if work.older is None else count_rows(fresh))


def _read(claim: Claim, context: JobContext) -> ChunkWork:
    """Read the items of a chunk, and in a retry the part of the generation before."""
    older = context.sink.older(_identity(claim)) if claim.generation > 0 else None
    return chunk_work(context.items(claim), older, claim.retry_codes)


def _identity(claim: Claim) -> PartIdentity:
    return PartIdentity(claim.job_id, claim.chunk_id, claim.generation)
