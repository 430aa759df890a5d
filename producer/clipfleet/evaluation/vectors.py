"""Vectors of images and texts, by ordinary embed jobs whose outputs are kept.

The ids of the jobs depend on what is embedded and how, so that the same evaluation finds its jobs again: a
complete output is read without Redis, an incomplete one is resumed.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
from pydantic_settings import BaseSettings, SettingsConfigDict

from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.contract.columns import VectorType
from clipfleet.contract.jobs import DEFAULT_MODEL, DecodeRoute, Exif, Job, JobState, Lane, Precision
from clipfleet.contract.label_sets import short_hash
from clipfleet.contract.model_names import normalise_model
from clipfleet.contract.parts import ItemStatus
from clipfleet.errors import (
    JobConflictError,
    JobNotFoundError,
    OutputConflictError,
    OutputDamagedError,
    UsageError,
    WorldError,
    usage_errors,
)
from clipfleet.labels.metrics import unit
from clipfleet.ledger.jobs import JobStatus
from clipfleet.outputs import open_output
from clipfleet.results.part_rows import PartRows
from clipfleet.results.rows import RowReader, vectors
from clipfleet.s3.client import SCHEME
from clipfleet.settings import CommaSeparated, checked

if TYPE_CHECKING:
    from clipfleet.sources import SourceLike

DEFAULT_FOLDER = "clipfleet-evaluations"
_COMPLETE = (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)

_LOOK_SECONDS = 0.5  # between looks at a submit of another evaluation

Wait = Callable[[JobHandle], JobStatus]


class EmbeddingError(WorldError):
    """A job ended without the vectors that an evaluation needs."""


@dataclass(frozen=True, slots=True)
class FailedItem:
    """An item without a vector, which no metric counts."""

    item_index: int
    item_id: str
    error_code: str
    error_detail: str


@dataclass(frozen=True, slots=True)
class VectorOrigin:
    """Which model made vectors, and where they lie."""

    model_fingerprint: str | None
    output: str


@dataclass(frozen=True, slots=True)
class Embedded:
    """Vectors of all items of a job, in order."""

    features: np.ndarray  # float32 (items, d), of length 1; of failed items 0
    ok: np.ndarray  # bool (items,)
    failed: tuple[FailedItem, ...]
    model_fingerprint: str | None
    output: str

    @property
    def origin(self) -> VectorOrigin:
        """What is known of them without their numbers."""
        return VectorOrigin(self.model_fingerprint, self.output)

    def of_items(self, mask: np.ndarray) -> np.ndarray:
        """The vectors of some items, bool (items,); those of all are not copied."""
        return self.features if mask.all() else self.features[mask]


@dataclass(frozen=True, slots=True)
class ModelOptions:
    """The model, and how it sees images."""

    model: str = DEFAULT_MODEL
    precision: Precision = Precision.AUTO
    decode: DecodeRoute = DecodeRoute.FAST
    exif: Exif = Exif.IGNORE

    def __post_init__(self) -> None:
        """Raise `UsageError` if the name of the model is incomplete."""
        with usage_errors():
            normalise_model(self.model)

    @classmethod
    def of_job(cls, job: Job) -> Self:
        """Those that made the vectors of a job."""
        return cls(job.model, job.precision, job.decode, job.exif)

    def identity(self) -> dict[str, str]:
        """What the vectors depend on: another model, other weights in the same place, other options."""
        model = normalise_model(self.model)
        files = _local_files(model)
        return {
            "model": model, "weights": short_hash(files) if files else "", "precision": str(self.precision),
            "decode": str(self.decode), "exif": str(self.exif),
        }  # fmt: skip


def _local_files(model: str) -> dict[str, str]:
    """Size and mtime of the files of a model's folder, or of its weights; empty if only workers see them."""
    path = Path(model.partition(":")[2])
    if not path.is_absolute():
        return {}
    try:
        files = [one for one in path.iterdir() if one.is_file()] if path.is_dir() else [path]
        states = {one.name: one.stat() for one in files}
    except OSError:
        return {}
    return {name: f"{state.st_size} {state.st_mtime_ns}" for name, state in states.items()}


@dataclass(frozen=True, slots=True)
class Embedder:
    """Runs the jobs of evaluations with one model, or reads those that have run.

    `connect` is called once a job must run; `wait` blocks until a job has ended.
    """

    connect: Callable[[], Client]
    options: ModelOptions
    place: str  # folder or S3 prefix of the outputs
    wait: Wait = JobHandle.wait
    lane: Lane = Lane.NORMAL
    sleep: Callable[[float], object] = time.sleep

    def __post_init__(self) -> None:
        """Raise `UsageError` if the place is a file."""
        if not self.place.startswith(SCHEME) and Path(self.place).expanduser().is_file():
            raise UsageError(f"{self.place}: is a file; name a folder with `output=`")

    def images(self, source: str, state: Mapping[str, str]) -> Embedded:
        """Embed the images of a source; `state` is the version of its content.

        Raises:
            UsageError: no image could be embedded; the message says why.
            EmbeddingError: the job failed.
            WorldError: Redis or the output is unavailable.
        """
        key = short_hash([source, dict(state), self.options.identity()])
        return self._embedded(f"images-{key}", lambda client, options: client.embed(source, options=options))

    def texts(self, texts: Sequence[str]) -> Embedded:
        """Embed texts, each distinct one once; the result is in their order. Raises like `images`."""
        distinct = list(dict.fromkeys(texts))
        source: SourceLike = distinct
        # With the decode route, which changes no vector of a text, but is part of the rows' fingerprint.
        key = short_hash([distinct, self.options.identity()])
        found = self._embedded(
            f"texts-{key}", lambda client, options: client.embed_text(source, options=options)
        )
        position = {text: number for number, text in enumerate(distinct)}
        order = np.array([position[text] for text in texts])
        return Embedded(
            found.features[order], found.ok[order], found.failed, found.model_fingerprint, found.output
        )

    def _embedded(self, name: str, submit: Callable[[Client, JobOptions], JobHandle]) -> Embedded:
        job_id, output = f"evaluate-{name}", f"{self.place.rstrip('/')}/{name}"
        reader = PartRows(open_output(output))
        if not _is_complete(reader, job_id):
            self._finish(self._submitted(submit, reader, job_id))
        found = embedded(reader)
        if not found.ok.any():
            raise _nothing_embedded(found)
        return found

    def _submitted(
        self, submit: Callable[[Client, JobOptions], JobHandle], reader: PartRows, job_id: str
    ) -> JobHandle:
        """Submit the job; while another evaluation submits it, wait for that."""
        is_last = False
        while True:
            options = JobOptions(
                job_id=self._job_id(reader, job_id), output=reader.uri, model=self.options.model,
                precision=self.options.precision, decode=self.options.decode, exif=self.options.exif,
                lane=self.lane, vector_type=VectorType.FLOAT32,
            )  # fmt: skip
            try:
                return submit(self.connect(), options)
            except (JobConflictError, OutputConflictError):
                if is_last:
                    raise
                is_last = not self._is_being_submitted(self._job_id(reader, job_id))
            self.sleep(_LOOK_SECONDS)

    def _job_id(self, reader: PartRows, job_id: str) -> str:
        """Id of the job that has the output; a new one if the known job has ended and its output is gone."""
        is_free = True
        with suppress(JobNotFoundError):
            known = self.connect().job(job_id)
            is_free = known.output == reader.uri and not known.status().state.is_final
        holder = reader.job()  # read last: the job may have written it and ended in between
        if holder is not None:
            return holder.job_id
        return job_id if is_free else f"{job_id}-{secrets.token_hex(3)}"

    def _is_being_submitted(self, job_id: str) -> bool:
        with suppress(JobNotFoundError):
            status = self.connect().job(job_id).status()
            return not (status.sealed or status.state.is_final)
        return False

    def _finish(self, job: JobHandle) -> None:
        """Wait for the job; one that had ended before is retried: some of its items have failed."""
        if job.had_ended:
            with suppress(JobConflictError):  # another evaluation retries it
                job.retry()
        status = self.wait(job)
        if status.state not in _COMPLETE:
            reason = f": {status.reason}" if status.reason else ""
            raise EmbeddingError(
                f"job {job.job_id} is {status.state}{reason}; the same command continues it, from "
                f"{job.output}"
            )


def default_place() -> str:
    """Where evaluations keep their vectors unless told: below the first output root that this process knows.

    A worker of `clipfleet-worker up` may write there; without a known root, below the current folder.
    """
    roots = checked(_Roots).output_roots
    return f"{roots[0].rstrip('/')}/{DEFAULT_FOLDER}" if roots else DEFAULT_FOLDER


class _Roots(BaseSettings):
    """The output roots of the workers, where the environment has them, as that of `up`."""

    model_config = SettingsConfigDict(env_prefix="CLIPFLEET_", frozen=True, env_ignore_empty=True)

    output_roots: CommaSeparated[str] = ()


def embedded(reader: RowReader) -> Embedded:
    """Read all vectors of an output, and its failed rows.

    Raises:
        UsageError: the output keeps no vectors, or one of them is not finite.
        OutputDamagedError: rows are missing.
    """
    columns = ["item_index", "item_id", "status", "error_code", "error_detail", "model_fingerprint"]
    failed: list[FailedItem] = []
    total, fingerprints = 0, set[str]()
    for batch in reader.read(columns).batches:
        total += batch.num_rows
        fingerprints.update(filter(None, batch["model_fingerprint"].unique().to_pylist()))
        for row in batch.to_pylist() if ItemStatus.FAILED in batch["status"].to_pylist() else ():
            if row["status"] == ItemStatus.FAILED:
                named = (row[name] or "" for name in ("item_id", "error_code", "error_detail"))
                failed.append(FailedItem(row["item_index"], *named))
    if len(fingerprints) > 1:
        raise OutputConflictError(
            f"{reader.uri}: rows of {len(fingerprints)} different models, or of devices that differ in "
            "precision: embed it again into a new output, with a `precision=` for all"
        )
    indexes, matrix = vectors(reader)
    if len(indexes) + len(failed) != total or (len(indexes) and indexes.max() >= total):
        if not len(indexes):
            raise UsageError(
                f"{reader.uri}: keeps no vectors: embed its source, or add `store_embeddings=True`"
            )
        raise OutputDamagedError(f"{reader.uri}: rows are missing: is the job still running?")
    features = unit(matrix)
    if not np.array_equal(indexes, np.arange(total)):
        scattered = np.zeros((total, matrix.shape[1]), np.float32)
        scattered[indexes] = features
        features = scattered
    strange = np.flatnonzero(~np.isfinite(features).all(axis=1))
    if len(strange):
        raise UsageError(
            f"{reader.uri}: the vector of item {strange[0]} is not finite, and {len(strange) - 1:,} more: "
            "the model is damaged, or overflows in this precision; try `precision=` fp32"
        )
    ok = np.zeros(total, bool)
    ok[indexes] = True
    return Embedded(features, ok, tuple(failed), next(iter(fingerprints), None), reader.uri)


def _is_complete(reader: PartRows, job_id: str) -> bool:
    """Whether a job has ended here, and no item has failed: those may succeed in the next evaluation."""
    job = reader.job()
    if job is None or not job.job_id.startswith(job_id) or reader.finished_at() is None:
        return False
    batches = reader.read(["status"]).batches
    return {status for batch in batches for status in batch["status"].unique().to_pylist()} == {ItemStatus.OK}


def _nothing_embedded(found: Embedded) -> UsageError:
    first = found.failed[0]
    return UsageError(
        f"none of {len(found.failed):,} items could be embedded, for example {first.item_id}: "
        f"{first.error_code}: {first.error_detail}; the rows are in {found.output}"
    )
