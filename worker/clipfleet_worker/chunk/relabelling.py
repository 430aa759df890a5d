"""The path of stored vectors to labels: load the model, encode the labels, score.

Nothing is fetched or decoded, and no image goes through the model: it is needed for its texts, and as the
judge of whether the vectors are its own.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from clipfleet.contract.bottleneck import Step
from clipfleet.contract.jobs import Job
from clipfleet_worker.chunk.held_lease import (
    ENCODE_LIMIT_SECONDS,
    LOAD_STEP_LIMIT_SECONDS,
    PROMPTS_LIMIT_SECONDS,
    QUEUED_LIMIT_SECONDS,
    WAIT_FOR_MODEL_SECONDS,
    HeldLease,
)
from clipfleet_worker.chunk.job_contexts import JobContext
from clipfleet_worker.chunk.stored_items import StoredItems
from clipfleet_worker.encode.batcher import Batcher
from clipfleet_worker.failures import ItemFailure, ModelMismatchError
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.process.watchdog import LOAD_LIMIT_SECONDS
from clipfleet_worker.score.head_cache import HeadCache
from clipfleet_worker.score.labelling import choices_of, encode_label_set, label_items, unknown_choices
from clipfleet_worker.score.scoring_threads import Caller, ScoringThreads
from clipfleet_worker.score.text_matrices import TextMatrices


@dataclass(frozen=True, slots=True)
class Relabelled:
    """The items of a chunk, with their outcomes, and their columns of label sets and heads."""

    items: StoredItems
    labels: Mapping[str, pa.Array]
    model: LoadedModel


@dataclass(frozen=True, slots=True, kw_only=True)
class Relabelling:
    """Labels stored vectors. Thread-safe."""

    models: Models
    batcher: Batcher
    scoring_threads: ScoringThreads  # on the CPU
    text_matrices: TextMatrices
    heads: HeadCache

    def run(self, context: JobContext, items: StoredItems, lease: HeldLease) -> Relabelled:
        """Label the items of a chunk that are ok.

        Raises:
            ModelMismatchError: the vectors, or a head, are of another model.
            ModelUnavailableError: the model cannot be loaded here.
            ChunkInterrupted: the chunk is no longer ours, or the worker drains.
        """
        job = context.job
        model = self._load(job, lease)
        _require_own(items, job, model)
        choices = choices_of(items.rows, job)
        if choices is not None:
            items = items.failing(unknown_choices(job.label_sets, choices))
        alive = partial(lease.enter, Step.LABELS, PROMPTS_LIMIT_SECONDS)
        try:
            encoded = [
                encode_label_set(self.text_matrices, model, label_set, job.lane, alive)
                for label_set in job.label_sets
            ]
        except ItemFailure as failure:  # a label without a vector: no score is possible
            return Relabelled(items.all_failing(failure.error), {}, model)
        heads = self.heads.get(context.head_places, job, model)
        lease.enter(Step.SCORE, ENCODE_LIMIT_SECONDS, longest_seconds=QUEUED_LIMIT_SECONDS)
        caller: Caller = self.scoring_threads if model.device == "cpu" else self.batcher
        labels = label_items(caller, job, encoded, heads, items.features, model, choices, lane=job.lane)
        return Relabelled(items, labels, model)

    def _load(self, job: Job, lease: HeldLease) -> LoadedModel:
        loading = self.models.prefetch(job.model, job.precision)
        lease.enter(Step.LOAD, LOAD_STEP_LIMIT_SECONDS, doing=lambda: loading.doing)
        lease.result_of(loading.pixel_spec, WAIT_FOR_MODEL_SECONDS)  # known once the files are here
        return lease.result_of(loading, LOAD_LIMIT_SECONDS)


def _require_own(items: StoredItems, job: Job, model: LoadedModel) -> None:
    """Raise `ModelMismatchError` unless the model has made all vectors, in any precision."""
    vectors = items.vectors
    for fingerprint in (vectors.model_fingerprint, *items.fingerprints):
        if fingerprint is None or not model.has_made(fingerprint, job.decode, job.exif):
            raise ModelMismatchError(
                f"{vectors.said} has vectors with the fingerprint {fingerprint}, those of {job.model} "
                f"have {model.fingerprint_for(job.decode, job.exif)} here: use the weights that made them, "
                "or embed the images again"
            )
