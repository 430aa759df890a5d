"""Commands that make jobs."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer

from clipfleet.client import Client, JobHandle, JobOptions
from clipfleet.commands.following import follow
from clipfleet.commands.labels import chosen_label_sets
from clipfleet.commands.options import (
    AsJson,
    BaseUri,
    CheckSource,
    ChunkSize,
    Decode,
    Format,
    IdColumn,
    JobId,
    LaneOption,
    MaxErrorRate,
    Model,
    OnFinished,
    OnFinishedQueue,
    Output,
    Overwrite,
    PrecisionOption,
    Source,
    UrlColumn,
    Wait,
)
from clipfleet.console import say, say_trouble
from clipfleet.contract import (
    DEFAULT_CELERY_QUEUE,
    DEFAULT_CHUNK_SIZE,
    DEFAULT_MODEL,
    DEFAULT_TEMPLATE,
    DecodeRoute,
    Lane,
    PartFormat,
    Precision,
    new_job_id,
)
from clipfleet.job_spec import read_job_spec
from clipfleet.program import EXIT_INTERRUPTED

_LABELS_HELP = (
    "names separated by commas (one that holds a comma in double quotes), or a file with one per line"
)
_LABEL_SET_HELP = "imagenet1k, or a .yaml or .json file with labels and templates; may be repeated"


def classify(
    source: Source,
    labels: Annotated[str | None, typer.Option(help=_LABELS_HELP)] = None,
    template: Annotated[
        list[str] | None,
        typer.Option(help=f"prompt; {{}} is the label; may be repeated (default: {DEFAULT_TEMPLATE})"),
    ] = None,
    label_set: Annotated[list[str] | None, typer.Option(metavar="NAME|FILE", help=_LABEL_SET_HELP)] = None,
    label_set_column: Annotated[
        str | None, typer.Option(help="column of a table that names the label set of an item")
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
    check_source: CheckSource = False,
    wait: Wait = True,
    as_json: AsJson = False,
    url_column: UrlColumn = None,
    id_column: IdColumn = None,
    base_uri: BaseUri = None,
    part_format: Format = PartFormat.PARQUET,
    store_embeddings: Annotated[
        bool, typer.Option("--store-embeddings", help="keep the vectors beside the labels")
    ] = False,
    max_error_rate: MaxErrorRate = None,
    on_finished: OnFinished = None,
    on_finished_queue: OnFinishedQueue = DEFAULT_CELERY_QUEUE,
) -> None:
    """Label every image with the best of some names (zero-shot)."""
    job_id = job_id or new_job_id()
    options = JobOptions(
        output=output, model=model, precision=precision, decode=decode, lane=lane, chunk_size=chunk_size,
        job_id=job_id, overwrite=overwrite, url_column=url_column, id_column=id_column, base_uri=base_uri,
        part_format=part_format, store_embeddings=store_embeddings, on_finished=on_finished,
        on_finished_queue=on_finished_queue, max_error_rate=max_error_rate,
        check_source=check_source,
    )  # fmt: skip
    label_sets = chosen_label_sets(labels, label_set or [], template or [])

    def submit(client: Client) -> JobHandle:
        return client.classify(
            source, label_sets, top_k=top_k, label_set_column=label_set_column, options=options
        )

    _submit_and_follow(submit, job_id, wait=wait, as_json=as_json)


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
    check_source: CheckSource = False,
    wait: Wait = True,
    as_json: AsJson = False,
    url_column: UrlColumn = None,
    id_column: IdColumn = None,
    base_uri: BaseUri = None,
    part_format: Format = PartFormat.PARQUET,
    max_error_rate: MaxErrorRate = None,
    on_finished: OnFinished = None,
    on_finished_queue: OnFinishedQueue = DEFAULT_CELERY_QUEUE,
) -> None:
    """Turn every image into a vector."""
    job_id = job_id or new_job_id()
    options = JobOptions(
        output=output, model=model, precision=precision, decode=decode, lane=lane, chunk_size=chunk_size,
        job_id=job_id, overwrite=overwrite, url_column=url_column, id_column=id_column, base_uri=base_uri,
        part_format=part_format, on_finished=on_finished, on_finished_queue=on_finished_queue,
        max_error_rate=max_error_rate,
        check_source=check_source,
    )  # fmt: skip
    _submit_and_follow(
        lambda client: client.embed(source, options=options), job_id, wait=wait, as_json=as_json
    )


def embed_text(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="a .txt with one text per line, a table, or - for stdin")
    ],
    text_column: Annotated[
        str | None, typer.Option(help="column of a table that holds the text (default: text or caption)")
    ] = None,
    id_column: IdColumn = None,
    output: Output = None,
    model: Model = DEFAULT_MODEL,
    precision: PrecisionOption = Precision.AUTO,
    lane: LaneOption = Lane.NORMAL,
    chunk_size: ChunkSize = DEFAULT_CHUNK_SIZE,
    job_id: JobId = None,
    overwrite: Overwrite = False,
    check_source: CheckSource = False,
    wait: Wait = True,
    as_json: AsJson = False,
    part_format: Format = PartFormat.PARQUET,
    max_error_rate: MaxErrorRate = None,
    on_finished: OnFinished = None,
    on_finished_queue: OnFinishedQueue = DEFAULT_CELERY_QUEUE,
) -> None:
    """Turn every text into a vector, comparable with those of images."""
    job_id = job_id or new_job_id()
    options = JobOptions(
        output=output, model=model, precision=precision, lane=lane, chunk_size=chunk_size, job_id=job_id,
        overwrite=overwrite, id_column=id_column, part_format=part_format, on_finished=on_finished,
        on_finished_queue=on_finished_queue, max_error_rate=max_error_rate,
        check_source=check_source,
    )  # fmt: skip
    _submit_and_follow(
        lambda client: client.embed_text(source, text_column=text_column, options=options),
        job_id,
        wait=wait,
        as_json=as_json,
    )


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a .yaml or .json file that describes a job")],
    output: Output = None,
    job_id: JobId = None,
    overwrite: Overwrite = False,
    check_source: CheckSource = False,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Submit the job that a file describes: several label sets and vectors in one pass."""
    spec = read_job_spec(file)
    job_id = job_id or spec.job_id or new_job_id()
    chosen = {
        "output": output or spec.output, "overwrite": overwrite or spec.overwrite, "job_id": job_id,
        "check_source": check_source or spec.check_source,
    }  # fmt: skip
    _submit_and_follow(
        lambda client: client.run(spec.model_copy(update=chosen)), job_id, wait=wait, as_json=as_json
    )


def _submit_and_follow(
    submit: Callable[[Client], JobHandle], job_id: str, *, wait: bool, as_json: bool
) -> None:
    """Submit, then show how the job goes on; its seconds count from here."""
    started = time.monotonic()
    with Client(on_trouble=say_trouble) as client:
        with _resumable(job_id):
            job = submit(client)
        follow(client, job, wait=wait, as_json=as_json, started=started)


@contextmanager
def _resumable(job_id: str) -> Iterator[None]:
    try:
        yield
    except KeyboardInterrupt:
        say(f"interrupted: the same command with `--job-id {job_id}` goes on where it stopped, "
            f"`clipfleet cancel {job_id}` ends the job")  # fmt: skip
        raise typer.Exit(EXIT_INTERRUPTED) from None
