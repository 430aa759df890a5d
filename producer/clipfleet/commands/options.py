"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated, Any

import typer
from pydantic import ValidationError
from redis.exceptions import RedisError

from clipfleet.contract.jobs import MAX_CHUNK_SIZE
from clipfleet.errors import UsageError
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from clipfleet.settings import Settings


def _not_empty(value: str | None) -> str | None:
    """An option that is given with nothing is a variable of a shell that is not set."""
    if value == "":
        raise typer.BadParameter("it is empty: give a value, or leave the option out")
    return value


_NEWEST_JOBS = 50
_PATIENCE_SECONDS = 0.5


def job_ids(incomplete: str) -> list[str]:
    """Ids of the newest jobs that begin like this, newest first; none where Redis is away or slow."""
    try:
        with connect(Settings().require_redis_url(), retries=0, patience_seconds=_PATIENCE_SECONDS) as client:
            newest = client.zrange(keys.JOBS, 0, _NEWEST_JOBS - 1, desc=True)
    except (ValidationError, UsageError, RedisError, OSError):
        return []  # the command itself says what is wrong
    return [job_id for job_id in map(str, newest) if job_id.startswith(incomplete)]


# By the field of `JobDescription` that each of them sets, which also has its type and its default.
JOB_OPTIONS: dict[str, Any] = {
    "output": typer.Option(
        callback=_not_empty,
        help="a folder, s3://BUCKET/PREFIX, or redis:// (the default, up to 100,000 items)",
    ),
    "model": typer.Option(
        metavar="NAME:PRETRAINED", help="open_clip model, hf-hub:ORG/REPOSITORY, a folder (./FOLDER), or demo"
    ),
    "precision": typer.Option(help="arithmetic of the forward pass"),
    "decode": typer.Option(help="exact: open_clip's own transform; fast: a few grey levels off"),
    "lane": typer.Option(help="priority"),
    "chunk_size": typer.Option(min=1, max=MAX_CHUNK_SIZE, help="items that are claimed at a time"),
    "job_id": typer.Option(
        callback=_not_empty, help="name of the job; repeat it to resume an interrupted submit"
    ),
    "overwrite": typer.Option("--overwrite", help="replace an ended job's results in the output"),
    "check_source": typer.Option(
        "--check-source",
        help="of a repeated --job-id with more than 1,000,000 items, too: list the source again, and refuse "
        "it if it has changed",
    ),
    "url_column": typer.Option(callback=_not_empty, help="column of a table that holds the URL or path"),
    "id_column": typer.Option(callback=_not_empty, help="column of a table that names the item"),
    "base_uri": typer.Option(
        metavar="URI", help="what relative paths and bare keys of a list are below, s3://BUCKET/PREFIX/"
    ),
    "part_format": typer.Option(
        "--format", help="of the results: parquet, or jsonl (one JSON object per row)"
    ),
    "store_embeddings": typer.Option("--store-embeddings", help="keep the vectors beside the labels"),
    "max_error_rate": typer.Option(
        metavar="RATE", min=0, max=1, help="stop early once more of the rows have failed: 0.2 is one in five"
    ),
    "on_finished": typer.Option(
        metavar="TASK", help="Celery task of yours that is sent when the job has ended"
    ),
    "on_finished_queue": typer.Option(metavar="QUEUE", help="queue that TASK is sent to"),
}

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="a folder, a glob in quotes, a .txt with one URL or path per line, a table "
        "(.csv, .tsv, .jsonl, .parquet), .tar shards, each also as s3://BUCKET/...; - is stdin",
    ),
]
Wait = Annotated[bool, typer.Option(help="wait for the end and show progress")]
AsJson = Annotated[
    bool, typer.Option("--json", help="print one JSON object on stdout and nothing else there")
]
ExportFolder = Annotated[
    str, typer.Option(metavar="DIR", callback=_not_empty, help="new folder for the files")
]
JobOrOutput = Annotated[str, typer.Argument(metavar="JOB|OUTPUT", help="job id, or where the results are")]
MaxErrorRate = Annotated[float | None, JOB_OPTIONS["max_error_rate"]]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="job id", autocompletion=job_ids)]
