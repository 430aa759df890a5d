"""Options that several commands share."""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Annotated, Any

import typer
from pydantic import ValidationError

from clipfleet.contract.jobs import LAST, MAX_CHUNK_SIZE, MAX_SAMPLE
from clipfleet.contract.label_sets import DEFAULT_TEMPLATE, Preset
from clipfleet.errors import UsageError
from clipfleet.ledger import keys
from clipfleet.settings import Settings
from clipfleet.terminal.help import GENERAL, LABELS, MODEL, OUTPUT, SCHEDULING, SOURCE

if TYPE_CHECKING:
    import redis


def not_empty(value: str | None) -> str | None:
    """Refuse an empty value: usually an unset shell variable."""
    if value == "":
        raise typer.BadParameter("empty value: give one, or leave the option out")
    return value


def _named(value: str) -> str:
    """Refuse a blank name, which would be the current folder."""
    if not value.strip():
        raise typer.BadParameter("empty value: give a job id, `last` or an output")
    return value


def _named_if_given(value: str | None) -> str | None:
    return None if value is None else _named(value)


def _folder(value: str | None) -> str | None:
    """Refuse an empty value, and `-`, which would become a folder."""
    if value == "-":
        raise typer.BadParameter(
            "- would be a folder: name one; to print rows, use `clipfleet results JOB --format csv`"
        )
    return not_empty(value)


def names_between_commas(lines: Iterable[str], unbalanced: str) -> list[str]:
    """Names separated by commas, without blank ones; double quotes keep a comma inside a name.

    Raises:
        UsageError: with the message `unbalanced`, if a quote is.
    """
    try:
        rows = list(csv.reader(lines, skipinitialspace=True, strict=True))
    except csv.Error:
        raise UsageError(unbalanced) from None
    return [name.strip() for row in rows for name in row if name.strip()]


_NEWEST_JOBS = 50
_PATIENCE_SECONDS = 0.5


def job_ids(incomplete: str) -> list[str]:
    """Names of jobs with this prefix: ids, newest first, then `last`; none if Redis is down or slow."""
    newest = _quickly(lambda client: client.zrange(keys.JOBS, 0, _NEWEST_JOBS - 1, desc=True))
    names = [*map(str, newest or ()), *([LAST] if newest else [])]
    return [name for name in dict.fromkeys(names) if name.startswith(incomplete)]


def is_known(job_id: str) -> bool:
    """Whether Redis knows a job; True also if Redis is down or slow."""
    return bool(_quickly(lambda client: client.exists(keys.job(job_id))) != 0)


def _quickly(ask: Callable[[redis.Redis], Any]) -> Any:
    """The answer of Redis; None if it is down or slow."""
    from redis.exceptions import RedisError

    from clipfleet.redis.connection import connect

    try:
        with connect(Settings().require_redis_url(), retries=0, patience_seconds=_PATIENCE_SECONDS) as client:
            return ask(client)
    except (ValidationError, UsageError, RedisError, OSError):
        return None  # the command itself reports the error


# Keyed by the field of `JobDescription` that each sets; the field has the type and the default.
JOB_OPTIONS: dict[str, Any] = {
    "output": typer.Option(
        "--output",
        "-o",
        callback=_folder,
        help="where results go: a folder, s3://BUCKET/PREFIX, or redis:// (the default, up to 100,000 items)",
        rich_help_panel=OUTPUT,
    ),
    "model": typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="open_clip model as NAME:PRETRAINED, hf-hub:ORG/REPO, a folder (./FOLDER), or demo",
        rich_help_panel=MODEL,
    ),
    "precision": typer.Option(
        metavar="TYPE",
        help="numeric precision of the forward pass: auto, fp32, bf16 or fp16",
        rich_help_panel=MODEL,
    ),
    "decode": typer.Option(
        help="exact: open_clip's own preprocessing; fast: faster JPEG decoding, pixel values may differ "
        "slightly",
        rich_help_panel=MODEL,
    ),
    "exif": typer.Option(
        help="apply: turn images upright by their EXIF orientation, as phones write it; ignore: as open_clip",
        rich_help_panel=MODEL,
    ),
    "lane": typer.Option(help="scheduling priority", rich_help_panel=SCHEDULING),
    "chunk_size": typer.Option(
        min=1,
        max=MAX_CHUNK_SIZE,
        help="items per chunk, the unit that a worker claims (default: 512, fewer in a small job)",
        rich_help_panel=SCHEDULING,
    ),
    "job_id": typer.Option(
        callback=not_empty,
        help="job id; repeat it to resume an interrupted submit",
        rich_help_panel=SCHEDULING,
    ),
    "overwrite": typer.Option(
        "--overwrite", help="replace the results of an ended job in the output", rich_help_panel=OUTPUT
    ),
    "check_source": typer.Option(
        "--check-source",
        help="with a repeated --job-id: list the source again and fail if it has changed, "
        "even above 1,000,000 items",
        rich_help_panel=SCHEDULING,
    ),
    "url_column": typer.Option(
        callback=not_empty, help="table column that holds the URL or path", rich_help_panel=SOURCE
    ),
    "id_column": typer.Option(
        callback=not_empty, help="table column that holds the item id", rich_help_panel=SOURCE
    ),
    "base_uri": typer.Option(
        metavar="URI",
        help="prefix for relative paths and bare keys in a list, such as s3://BUCKET/PREFIX/",
        rich_help_panel=SOURCE,
    ),
    "sample": typer.Option(
        metavar="N",
        min=1,
        max=MAX_SAMPLE,
        help="run only N items, chosen by a hash, and print an estimate for all items of the source",
        rich_help_panel=SOURCE,
    ),
    "part_format": typer.Option(
        "--format",
        help="format of the results: parquet, or jsonl (one JSON object per row)",
        rich_help_panel=OUTPUT,
    ),
    "store_embeddings": typer.Option(
        "--store-embeddings", help="store the embeddings beside the labels", rich_help_panel=OUTPUT
    ),
    "vector_type": typer.Option(
        help="numbers of the vectors: float16, or float32 for programs that read no float16, such as Spark",
        rich_help_panel=OUTPUT,
    ),
    "max_error_rate": typer.Option(
        metavar="RATE",
        min=0,
        max=1,
        help="stop the job if more than this share of its rows fail (0.2 = 20 %)",
        rich_help_panel=SCHEDULING,
    ),
    "on_finished": typer.Option(
        metavar="TASK", help="Celery task of yours to send when the job ends", rich_help_panel=SCHEDULING
    ),
    "on_finished_queue": typer.Option(
        metavar="QUEUE", help="queue to send TASK to", rich_help_panel=SCHEDULING
    ),
}

Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="a folder, a glob in quotes, a .txt with one URL or path per line, a table "
        "(.csv, .tsv, .jsonl, .parquet), .tar shards or one image, locally or as s3://BUCKET/...; the URL of "
        "an image; - reads stdin",
    ),
]
Heads = Annotated[
    list[str] | None,
    typer.Option(
        "--head",
        metavar="FILE",
        help="a .head.safetensors, see `clipfleet head`: adds its columns; repeatable",
        rich_help_panel=LABELS,
    ),
]
Wait = Annotated[
    bool, typer.Option(help="wait for the job to end and show progress", rich_help_panel=GENERAL)
]
AsJson = Annotated[
    bool,
    typer.Option(
        "--json", help="print one JSON object, and nothing else, to stdout", rich_help_panel=GENERAL
    ),
]
ExportFolder = Annotated[
    str,
    typer.Option(metavar="DIR", callback=_folder, help="new folder for the files", rich_help_panel=OUTPUT),
]
JobOrOutput = Annotated[
    str,
    typer.Argument(
        metavar="JOB|OUTPUT",
        callback=_named,
        help="job id, `last` for the newest job, or the folder or S3 prefix of the results",
        autocompletion=job_ids,
    ),
]
SomeJobOrOutput = Annotated[
    str | None,
    typer.Argument(
        metavar="JOB|OUTPUT",
        callback=_named_if_given,
        help="job id, `last` for the newest job, or the folder or S3 prefix of the results",
        autocompletion=job_ids,
    ),
]
Rows = Annotated[
    str,
    typer.Argument(
        metavar="JOB|OUTPUT|STORE",
        callback=_named,
        help="job id, `last` for the newest job, or the folder or S3 prefix of the results or of a store",
        autocompletion=job_ids,
    ),
]
Job = Annotated[
    str,
    typer.Option(
        metavar="JOB|OUTPUT|STORE",
        callback=_named,
        help="job id, `last`, or the folder or S3 prefix of the results or of a store",
        rich_help_panel=SOURCE,
        autocompletion=job_ids,
    ),
]
MaxErrorRate = Annotated[float | None, JOB_OPTIONS["max_error_rate"]]

LABELS_HELP = (
    "comma-separated names (double-quote a name that contains a comma), or a file with one name per line"
)
_LABEL_SET_HELP = (
    f"{', '.join(Preset)}, or a .yaml or .json file with labels, templates and thresholds; repeatable"
)


Labels = Annotated[str | None, typer.Option(help=LABELS_HELP, rich_help_panel=LABELS)]
Template = Annotated[
    list[str] | None,
    typer.Option(
        help=f"prompt template, {{}} stands for the label; repeatable (default: {DEFAULT_TEMPLATE})",
        rich_help_panel=LABELS,
    ),
]
LabelSetFiles = Annotated[
    list[str] | None, typer.Option(metavar="NAME|FILE", help=_LABEL_SET_HELP, rich_help_panel=LABELS)
]
Multi = Annotated[
    bool,
    typer.Option(
        "--multi", help="accept every label that an image shows, any number", rich_help_panel=LABELS
    ),
]
NoneOption = Annotated[
    bool,
    typer.Option("--none", help="accept the best label only if an image shows it", rich_help_panel=LABELS),
]
LabelSetColumn = Annotated[
    str | None,
    typer.Option(help="table column that names the label set of each item", rich_help_panel=LABELS),
]
TopK = Annotated[int, typer.Option(min=1, help="labels to keep per image", rich_help_panel=LABELS)]
