"""The vector of a query: a worker embeds a text or an image, with the model of the vectors that are searched.

That is a job of one item in lane `high`, whose rows stay in Redis: the same query finds them again while they
are kept.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.contract.jobs import Lane, Precision
from clipfleet.contract.label_sets import short_hash
from clipfleet.contract.parts import ItemStatus
from clipfleet.errors import JobConflictError, ResultsExpiredError, UsageError
from clipfleet.evaluation.vectors import EmbeddingError, ModelOptions, Wait
from clipfleet.results.one_row import find_row
from clipfleet.results.rows import RowReader
from clipfleet.sources.uris import has_scheme

_MOST_IMAGE_BYTES = 32 << 20  # of a file; a job of Redis holds it while it runs
_MOST_COMPARED = 100_000  # rows, whose fingerprints are read


@dataclass(frozen=True, slots=True)
class MadeBy:
    """What made the vectors of an output or a store."""

    options: ModelOptions
    fingerprints: tuple[str, ...]  # one for each precision


def made_by(reader: RowReader) -> MadeBy:
    """What made the vectors that are searched.

    Raises:
        UsageError: it is not known, or no row has a vector. Otherwise see `RowReader.read`.
    """
    job = reader.job()
    if job is None:
        raise UsageError(f"{reader.uri}: no job has this output, so its model is not known")
    found = fingerprints_of(reader)
    if not found:
        raise UsageError(f"{reader.uri}: no row has a vector: embed its source with `clipfleet embed`")
    return MadeBy(ModelOptions.of_job(job), found)


def fingerprints_of(reader: RowReader) -> tuple[str, ...]:
    """The model fingerprints of the first rows, and at least one if any row has one."""
    found, rows = dict[str, None](), 0
    for batch in reader.read(["model_fingerprint"]).batches:
        found.update(dict.fromkeys(filter(None, batch["model_fingerprint"].unique().to_pylist())))
        rows += batch.num_rows
        if found and rows >= _MOST_COMPARED:
            break
    return tuple(found)


@dataclass(frozen=True, slots=True)
class Query:
    """A text or an image to search with."""

    words: str  # as the user gave it
    item: str | dict[str, Any]  # a text, or the item of an image
    is_text: bool
    key: str | None  # of its content; None: what is at an address may change


def text_query(text: str) -> Query:
    """Search by a text. Raises `UsageError` if it is blank."""
    if not text.strip():
        raise UsageError("the text to search for is empty")
    return Query(text, text, is_text=True, key=short_hash(text))


def image_query(image: str) -> Query:
    """Search by an image: the path of a file, which is read here, or a URL, which a worker fetches.

    Raises:
        UsageError: there is no such file, or it is too large.
    """
    if has_scheme(image):
        return Query(image, {"url": image}, is_text=False, key=None)
    path = Path(image).expanduser()
    try:
        with path.open("rb") as file:
            data = file.read(_MOST_IMAGE_BYTES + 1)
    except OSError as error:
        raise UsageError(f"{image}: {error.strerror}; give the file of an image, or a URL") from None
    if len(data) > _MOST_IMAGE_BYTES:
        raise UsageError(f"{image} has more than {_MOST_IMAGE_BYTES >> 20} MiB: give a smaller image")
    return Query(image, {"bytes": data}, is_text=False, key=sha256(data).hexdigest())


def vector_of_item(reader: RowReader, item: str) -> np.ndarray:
    """The vector of an item that is there, float32 (d,).

    Args:
        reader: of an output or a store.
        item: its id, index or URI, see `find_row`.

    Raises:
        JobNotFoundError: there is no such item.
        UsageError: it has no vector.
    """
    row = find_row(reader, item).row
    if row.get("embedding") is None:
        raise UsageError(f"{reader.uri}: item {item!r} has no vector: search by another one")
    return np.array(row["embedding"], np.float32)


@dataclass(frozen=True, slots=True)
class QueryEncoder:
    """Embeds queries by jobs. `connect` is called once a job must run; `wait` blocks until one has ended."""

    connect: Callable[[], Client]
    wait: Wait = JobHandle.wait

    def vector(self, query: Query, made: MadeBy) -> np.ndarray:
        """Embed a query with the model of the vectors that are searched, float32 (d,).

        Workers on different devices take different precisions for `auto`, whose fingerprints differ: where
        that of the query is none of those of the vectors, the other precisions are tried.

        Raises:
            UsageError: the query cannot be embedded, or the workers have another model of this name.
            WorldError: the job failed, or Redis is unavailable.
        """
        for precision in _precisions(made.options.precision):
            row = self._row(query, replace(made.options, precision=precision))
            if row["status"] == ItemStatus.FAILED:
                if precision is made.options.precision:
                    raise UsageError(
                        f"{query.words!r} cannot be embedded: {row['error_code']}: {row['error_detail']}"
                    )
            elif row["model_fingerprint"] in made.fingerprints:
                return np.array(row["embedding"], np.float32)
        raise UsageError(
            f"the workers' {made.options.model} has not made these vectors, whose fingerprint is "
            f"{made.fingerprints[0]}: use the weights that made them, or embed the images again"
        )

    def _row(self, query: Query, options: ModelOptions) -> dict[str, Any]:
        """The row of the query's job, of an earlier one if that is still there and the same."""
        key = f"search-{short_hash([query.is_text, query.key or query.words, options.identity()])}"
        if query.key is not None:
            with suppress(JobConflictError, ResultsExpiredError):
                return self._row_of(self._submitted(query, options, key))
        return self._row_of(self._submitted(query, options, f"{key}-{secrets.token_hex(3)}"))

    def _submitted(self, query: Query, options: ModelOptions, job_id: str) -> JobHandle:
        asked = JobOptions(
            job_id=job_id, lane=Lane.HIGH, model=options.model, precision=options.precision,
            decode=options.decode, exif=options.exif,
        )  # fmt: skip
        if query.is_text:
            return self.connect().embed_text([query.item], options=asked)
        return self.connect().embed([query.item], options=asked)

    def _row_of(self, job: JobHandle) -> dict[str, Any]:
        """The row of the one item; one that failed earlier is tried again."""
        if job.had_ended:
            with suppress(JobConflictError):  # another search retries it
                job.retry()
        status = self.wait(job)
        row = next(job.results(), None)
        if row is None:
            reason = f": {status.reason}" if status.reason else ""
            raise EmbeddingError(f"job {job.job_id}, which embeds the query, is {status.state}{reason}")
        return row


def _precisions(first: Precision) -> tuple[Precision, ...]:
    """Those that may have made the vectors of a job or a store with this option, the likeliest first."""
    return (first, *(one for one in Precision if one is not first)) if first is Precision.AUTO else (first,)
