"""Commands that make jobs."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Annotated

import typer

from clipfleet.client import Client, JobOptions
from clipfleet.commands.following import EXIT_INTERRUPTED, follow
from clipfleet.commands.labels import read_labels
from clipfleet.commands.options import (
    AsJson,
    BaseUri,
    ChunkSize,
    Decode,
    Format,
    IdColumn,
    JobId,
    LaneOption,
    Model,
    Output,
    Overwrite,
    PrecisionOption,
    Source,
    UrlColumn,
    Wait,
)
from clipfleet.console import say
from clipfleet.contract import (
    DEFAULT_CHUNK_SIZE,
    DEFAULT_MODEL,
    DEFAULT_TEMPLATE,
    DecodeRoute,
    Lane,
    PartFormat,
    Precision,
    new_job_id,
)

_LABELS_HELP = (
    "names separated by commas (one that holds a comma in double quotes), or a file with one per line"
)


def classify(
    source: Source,
    labels: Annotated[str, typer.Option(help=_LABELS_HELP)],
    template: Annotated[
        list[str] | None, typer.Option(help="prompt; {} is the label; may be repeated")
    ] = None,
    top_k: Annotated[int, typer.Option(min=1, help="labels to keep per image")] = 5,
    output: Output = None,
    model: Model = DEFAULT_MODEL,
    precision: PrecisionOption = Precision.AUTO,
    decode: Decode = DecodeRoute.FAST,
    lane: LaneOption = Lane.NORMAL,
    chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE,
    job_id: JobId = None,
    overwrite: Overwrite = False,
    wait: Wait = True,
    as_json: AsJson = False,
    url_column: UrlColumn = None,
    id_column: IdColumn = None,
    base_uri: BaseUri = None,
    part_format: Format = PartFormat.PARQUET,
) -> None:
    """Label every image with the best of some names (zero-shot)."""
    job_id = job_id or new_job_id()
    options = JobOptions(
        output, model, precision, decode, lane, chunk_size, job_id, overwrite, url_column, id_column,
        base_uri=base_uri, part_format=part_format,
    )  # fmt: skip
    names = read_labels(labels)
    started = time.monotonic()
    with Client() as client:
        with _resumable(job_id):
            job = client.classify(
                source, names, templates=template or [DEFAULT_TEMPLATE], top_k=top_k, options=options
            )
        follow(client, job, wait=wait, as_json=as_json, started=started)


def embed(
    source: Source,
    output: Output = None,
    model: Model = DEFAULT_MODEL,
    precision: PrecisionOption = Precision.AUTO,
    decode: Decode = DecodeRoute.FAST,
    lane: LaneOption = Lane.NORMAL,
    chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE,
    job_id: JobId = None,
    overwrite: Overwrite = False,
    wait: Wait = True,
    as_json: AsJson = False,
    url_column: UrlColumn = None,
    id_column: IdColumn = None,
    base_uri: BaseUri = None,
    part_format: Format = PartFormat.PARQUET,
) -> None:
    """Turn every image into a vector."""
    job_id = job_id or new_job_id()
    options = JobOptions(
        output, model, precision, decode, lane, chunk_size, job_id, overwrite, url_column, id_column,
        base_uri=base_uri, part_format=part_format,
    )  # fmt: skip
    started = time.monotonic()
    with Client() as client:
        with _resumable(job_id):
            job = client.embed(source, options=options)
        follow(client, job, wait=wait, as_json=as_json, started=started)


@contextmanager
def _resumable(job_id: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted: the same command with `--job-id {job_id}` goes on where it stopped, "
            f"`clipfleet cancel {job_id}` ends the job")  # fmt: skip
        raise typer.Exit(EXIT_INTERRUPTED) from None
