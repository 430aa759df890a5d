"""The path of one chunk.

    claim     `claims.py`: `hints/tasks.py`, the task of a hint, claims a chunk and calls `Pipeline.run`;
              `leases.py` renews its lease
    read      `job_contexts.py`, `work.py`: the job, the staged items, and in a retry the rows to keep
    load      `models/`: the model of the job; the other chunks of the process share it. The first chunk
              fetches and decodes meanwhile
    fetch     `fetch/`: URIs to bytes, on an event loop
    decode    `decode/`: bytes to pixels, in a pool of threads
    encode    `encode/`: pixels, texts and labels to features, in the device thread, in batches
    score     `score/`: features, label sets and heads to labels
    decide    `score/decisions.py`: of a moderation job, by the scores in its rows
    write     `rows.py`, `sinks/`: one row per item to one part
    complete  `endings.py`: records the part in the ledger; the last one of a job calls `finish/`

`item_path.py` connects fetch, decode and encode (together `Step.ITEMS`), which all chunks of a process share.
The thread of the chunk has the labels encoded meanwhile, then waits in `Outcomes`. An item that fails becomes
a failed row, never an exception.

A job over stored vectors skips the middle: the items that are read have their features (`stored_items.py`),
and `relabelling.py` loads the model for its texts only.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import pyarrow as pa

from clipfleet.contract.bottleneck import NO_METERS, Meters, Step
from clipfleet.contract.jobs import ErrorCode, ItemError, Job, StoredVectors, StoreVersion
from clipfleet.contract.parts import PartCounts, PartIdentity, count_rows
from clipfleet.contract.webhooks import DecisionEvent
from clipfleet.errors import OutputDamagedError, OutputUnavailableError
from clipfleet.ledger.jobs import MAX_FAILURES, MAX_LOSSES, Claim, Ledger
from clipfleet_worker.chunk.held_lease import (
    ENCODE_LIMIT_SECONDS,
    LOAD_STEP_LIMIT_SECONDS,
    PREPARE_WRITE_LIMIT_SECONDS,
    PROMPTS_LIMIT_SECONDS,
    QUEUED_LIMIT_SECONDS,
    READ_LIMIT_SECONDS,
    WAIT_FOR_MODEL_SECONDS,
    HeldLease,
)
from clipfleet_worker.chunk.item_path import Destination, ItemPath
from clipfleet_worker.chunk.job_contexts import JobContext
from clipfleet_worker.chunk.meter import StepsBusy, chunk_meters
from clipfleet_worker.chunk.open_items import OpenItems
from clipfleet_worker.chunk.relabelling import Relabelling
from clipfleet_worker.chunk.rows import part_table, stored_part_table
from clipfleet_worker.chunk.stored_items import given_up_items, stored_items
from clipfleet_worker.chunk.work import ChunkWork, chunk_work
from clipfleet_worker.failures import ChunkLostError, ItemFailure
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.files import embedding_dimension
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.process.watchdog import LOAD_LIMIT_SECONDS
from clipfleet_worker.score.head_cache import HeadCache
from clipfleet_worker.score.heads import DeviceHead
from clipfleet_worker.score.labelling import (
    EncodedSet,
    choices_of,
    encode_label_set,
    label_items,
    unknown_choices,
)
from clipfleet_worker.score.text_matrices import TextMatrices
from clipfleet_worker.stores import has_store_extra
from clipfleet_worker.stores.equal_images import EqualImagesCache
from clipfleet_worker.stores.model_pin import pin_model
from clipfleet_worker.stores.stored_images import StoredImages, known_images

# A stored vector takes a fraction of the memory of an image, and no decoder: so many count as one open item.
_VECTORS_PER_ITEM = 4
_LAST_LOSS = 2 * MAX_LOSSES  # after the first five a chunk is given up; that may cost as many again
_DETAIL_LIMIT = 300
_WAIT_FOR_IMAGES_SECONDS = 600.0  # the hashes of 50 million images are read in less


@dataclass(frozen=True, slots=True)
class ChunkResult:
    """The part of a chunk, which is in place."""

    counts: PartCounts
    work_seconds: dict[str, float]  # working time, summed over threads
    ran: PartCounts | None = None  # rows that a retry has run; None: all rows
    meters: Meters = NO_METERS  # for the limit of the job
    decisions: Sequence[DecisionEvent] | None = None  # those to announce; None for a job that announces none


@dataclass(frozen=True, slots=True, kw_only=True)
class Pipeline:
    """Turns claimed chunks into parts. Thread-safe."""

    models: Models
    item_path: ItemPath
    text_matrices: TextMatrices
    heads: HeadCache
    relabelling: Relabelling
    open_items: OpenItems
    fetch_deadline_seconds: float
    decode_seconds: float
    ledger: Ledger
    equal_images: EqualImagesCache

    def run(self, claim: Claim, context: JobContext, lease: HeldLease) -> ChunkResult:
        """Process a chunk up to its part.

        Raises:
            ModelUnavailableError: the model cannot be loaded here.
            OutputConflictError: a part of another job is in its place.
            OutputUnavailableError: the output is away, or a later generation has written it.
            ChunkInterrupted: the chunk is no longer ours, or the worker drains.
        """
        lease.enter(Step.READ, READ_LIMIT_SECONDS)
        before = self.item_path.busy()
        if claim.has_history or claim.generation > 0:
            found = context.sink.find(_identity(claim))
            if found is not None:  # its writer died, or lost its lease, before the chunk was complete
                ran = PartCounts(0, 0, {}) if claim.generation > 0 else None
                return ChunkResult(found, {}, ran, decisions=self._recorded(claim, context, lease))
        if claim.losses >= _LAST_LOSS:
            raise ChunkLostError(f"chunk {claim.chunk_id} has cost {claim.losses} workers")
        if claim.is_exhausted:
            detail = f"given up after {claim.losses} dead workers and {claim.failures} failures"
            return self.give_up(claim, context, lease, ItemError(ErrorCode.CHUNK_FAILED, detail))
        if context.job.vectors is None:
            return self._run_items(claim, context, lease, _read(claim, context, lease), before)
        return self._run_stored(claim, context, lease, context.job.vectors, before)

    def give_up(self, claim: Claim, context: JobContext, lease: HeldLease, error: ItemError) -> ChunkResult:
        """Write a part with a failed row for every item that is not kept."""
        lease.enter(Step.READ, READ_LIMIT_SECONDS)
        work, job = _read(claim, context, lease, with_vectors=False), context.job
        lease.enter(Step.WRITE, PREPARE_WRITE_LIMIT_SECONDS)
        if job.vectors is not None:
            items = given_up_items(work.items, job.vectors, error)
            return self._write(claim, context, lease, work, lambda: stored_part_table(items, job))
        outcomes = Outcomes(work.items.num_rows)
        outcomes.fail_all(error)
        return self._write(claim, context, lease, work, lambda: _rows(job, work.items, outcomes))

    def _run_items(
        self, claim: Claim, context: JobContext, lease: HeldLease, work: ChunkWork, before: StepsBusy
    ) -> ChunkResult:
        """Process images or texts."""
        job = context.job
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
            model, made_by, labels = self._process(
                context, work.items, outcomes, lease, is_suspect=is_suspect
            )
        lease.enter(Step.WRITE, PREPARE_WRITE_LIMIT_SECONDS)
        rows = partial(_rows, job, work.items, outcomes, model, made_by, labels)
        result = self._write(claim, context, lease, work, rows)
        meanwhile = self.item_path.busy().since(before)
        meters = chunk_meters(meanwhile, lease.step_seconds, model, outcomes.seconds, outcomes.waits)
        return replace(result, work_seconds={**outcomes.seconds, **result.work_seconds}, meters=meters)

    def _run_stored(
        self,
        claim: Claim,
        context: JobContext,
        lease: HeldLease,
        vectors: StoredVectors | StoreVersion,
        before: StepsBusy,
    ) -> ChunkResult:
        """Label stored vectors."""
        job = context.job
        with self.open_items.making_room() as make_room:
            # Before the read, so that other chunks are read meanwhile; their number bounds the memory.
            make_room(claim.chunk_size - claim.chunk_size // _VECTORS_PER_ITEM)
            try:
                work = _read(claim, context, lease)
                items = stored_items(work.items, vectors)
            except OutputDamagedError as error:
                if claim.failures + 1 < MAX_FAILURES:
                    raise
                # Perhaps the vectors only: then the other chunks are labelled all the same.
                damage = ItemError(ErrorCode.CHUNK_FAILED, str(error)[:_DETAIL_LIMIT])
                return self.give_up(claim, context, lease, damage)
            done = self.relabelling.run(context, items, lease)
            lease.note_settled(work.items.num_rows)
            lease.enter(Step.WRITE, PREPARE_WRITE_LIMIT_SECONDS)
            result = self._write(
                claim, context, lease, work, lambda: stored_part_table(done.items, job, done.labels)
            )
        meanwhile = self.item_path.busy().since(before)
        return replace(result, meters=chunk_meters(meanwhile, lease.step_seconds, done.model))

    def _process(
        self,
        context: JobContext,
        items: pa.Table,
        outcomes: Outcomes,
        lease: HeldLease,
        *,
        is_suspect: bool,
    ) -> tuple[LoadedModel, str, Mapping[str, pa.Array] | None]:
        """Load the model; fetch, decode, encode and score the items. The text is the fingerprint in rows."""
        job = context.job
        lease.on_interrupt(outcomes.interrupt)
        choices = choices_of(items, job)
        if choices is not None:
            for position, error in unknown_choices(job.label_sets, choices).items():
                outcomes.fail(position, error)
        loading = self.models.prefetch(job.model, job.precision)
        stored = self._stored_images(context, items, lease)
        lease.enter(Step.LOAD, LOAD_STEP_LIMIT_SECONDS, doing=lambda: loading.doing)
        spec = lease.result_of(loading.pixel_spec, WAIT_FOR_MODEL_SECONDS)
        destination = self.item_path.destination(loading, spec, job, outcomes, stored, is_suspect=is_suspect)
        starts_early = not is_suspect and job.text_column is None and loading.take_lead()
        if starts_early:
            self.item_path.start(items, destination)
        model, made_by = self._load(job, lease, destination)
        limit_seconds = self.fetch_deadline_seconds + self.decode_seconds + ENCODE_LIMIT_SECONDS
        if job.text_column is not None:
            lease.enter(Step.ITEMS, limit_seconds, longest_seconds=QUEUED_LIMIT_SECONDS)
            self.item_path.start_texts(items[job.text_column].to_pylist(), destination)
        elif not starts_early:
            self.item_path.start(items, destination)
        encoded = [] if outcomes.all_failed else self._encode_labels(job, model, lease, outcomes)
        heads = [] if outcomes.all_failed else self._heads(context, model, outcomes)
        lease.enter(Step.ITEMS, limit_seconds, longest_seconds=QUEUED_LIMIT_SECONDS)
        outcomes.wait()
        lease.enter(Step.SCORE, ENCODE_LIMIT_SECONDS, longest_seconds=QUEUED_LIMIT_SECONDS)
        if not (encoded or heads):
            return model, made_by, None
        features = outcomes.ok_features()
        labels = label_items(self.item_path.batcher, job, encoded, heads, features, model, choices)
        return model, made_by, labels

    def _stored_images(self, context: JobContext, items: pa.Table, lease: HeldLease) -> StoredImages | None:
        """What the store has of the items' images, for a job that fills one."""
        job = context.job
        if job.store is None:
            return None
        equal = None
        if has_store_extra():
            context.require_writable_store(job.store.fingerprint or "")
            lease.enter(Step.READ, READ_LIMIT_SECONDS + _WAIT_FOR_IMAGES_SECONDS)
            equal = lease.result_of(self.equal_images.get(job.store), _WAIT_FOR_IMAGES_SECONDS)
        return StoredImages(known_images(items), equal)

    def _load(self, job: Job, lease: HeldLease, destination: Destination) -> tuple[LoadedModel, str]:
        """Wait for the model, whose files are here by now; return the fingerprint in rows, too."""
        try:
            model = lease.result_of(destination.loading, LOAD_LIMIT_SECONDS)
            if job.store is not None:
                return model, pin_model(self.ledger, job, job.store, model)
            return model, model.fingerprint_for(job.decode, job.exif)
        except BaseException as error:
            destination.outcomes.interrupt(error)  # ends the items that started early
            destination.ahead.stop_waiting()
            raise

    def _encode_labels(
        self, job: Job, model: LoadedModel, lease: HeldLease, outcomes: Outcomes
    ) -> list[EncodedSet]:
        """Encode the labels while the items are in progress; a large label set takes long, but only once."""
        try:
            alive = partial(lease.enter, Step.LABELS, PROMPTS_LIMIT_SECONDS)
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

    def _heads(self, context: JobContext, model: LoadedModel, outcomes: Outcomes) -> list[DeviceHead]:
        try:
            return self.heads.get(context.head_places, context.job, model)
        except BaseException as error:
            outcomes.interrupt(error)  # ends the items
            raise

    def _write(
        self,
        claim: Claim,
        context: JobContext,
        lease: HeldLease,
        work: ChunkWork,
        make_rows: Callable[[], pa.Table],
    ) -> ChunkResult:
        """Write the part of a chunk, with the rows that a retry keeps."""
        started = time.monotonic()
        fresh = context.decisions.filled_in(make_rows(), claim.generation)
        rows = work.all_rows(fresh)
        counts = context.sink.write(
            _identity(claim),
            rows,
            count_rows(rows),
            over=work.older,
            token=claim.token,
            confirm=lease.confirm,
        )
        decisions = self._recorded(claim, context, lease, rows)
        seconds = {"write": time.monotonic() - started}
        ran = None if work.older is None else count_rows(fresh)
        return ChunkResult(counts, seconds, ran, decisions=decisions)

    def _recorded(
        self, claim: Claim, context: JobContext, lease: HeldLease, rows: pa.Table | None = None
    ) -> Sequence[DecisionEvent] | None:
        """Record the decisions in the part in place; `rows` where the sink shows none before `complete`."""

        def stored() -> pa.Table:
            found = context.sink.stored(_identity(claim))
            if found is None and rows is None:
                raise OutputUnavailableError(f"Redis has lost rows of chunk {claim.chunk_id}")
            return rows if found is None else found

        def decided() -> int:
            return self.ledger.decided(claim.job_id, claim.chunk_id) if claim.generation > 0 else -1

        return context.decisions.recorded(stored, _identity(claim), decided, lease.confirm)


def _rows(
    job: Job,
    items: pa.Table,
    outcomes: Outcomes,
    model: LoadedModel | None = None,
    made_by: str | None = None,
    labels: Mapping[str, pa.Array] | None = None,
) -> pa.Table:
    return part_table(
        items,
        outcomes,
        embedding_dimension=model.embedding_dimension if model else embedding_dimension(job.model),
        model_fingerprint=made_by,
        store_embeddings=job.keeps_embeddings,
        has_embedding_column=job.has_embedding_column,
        vector_type=job.vector_type,
        label_set_names=[label_set.name for label_set in job.named_label_sets],
        accepted_columns=job.accepted_columns,
        heads=job.heads,
        labels=labels,
        head_scores=job.head_scores_columns,
        has_decisions=job.policy is not None,
        fills_a_store=job.store is not None,
    )


def _read(claim: Claim, context: JobContext, lease: HeldLease, *, with_vectors: bool = True) -> ChunkWork:
    """Read the items of a chunk, and in a retry the part of the generation before."""
    older = context.sink.older(_identity(claim)) if claim.generation > 0 else None
    alive = partial(lease.enter, Step.READ, READ_LIMIT_SECONDS)
    items = context.items(claim, with_vectors=with_vectors, alive=alive)
    return chunk_work(items, older, claim.retry_codes)


def _identity(claim: Claim) -> PartIdentity:
    return PartIdentity(claim.job_id, claim.chunk_id, claim.generation)
