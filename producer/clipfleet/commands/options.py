"""Options that several commands share."""

from __future__ import annotations

from typing import Annotated

import typer

from clipfleet.commands import completion
from clipfleet.contract import DecodeRoute, Lane, PartFormat, Precision


def _not_empty(value: str | None) -> str | None:
    """An option that is given with nothing is a variable of a shell that is not set."""
    if value == "":
        raise typer.BadParameter("it is empty: give a value, or leave the option out")
    return value


Source = Annotated[
    str,
    typer.Argument(
        metavar="SOURCE",
        help="a folder, a glob in quotes, a .txt with one URL or path per line, a table "
        "(.csv, .tsv, .jsonl, .parquet), .tar shards, each also as s3://BUCKET/...; - is stdin",
    ),
]
Output = Annotated[
    str | None,
    typer.Option(
        callback=_not_empty,
        help="a folder, s3://BUCKET/PREFIX, or redis:// (the default, up to 100,000 items)",
    ),
]
Model = Annotated[
    str,
    typer.Option(
        metavar="NAME:PRETRAINED", help="open_clip model, hf-hub:ORG/REPOSITORY, a folder (./FOLDER), or demo"
    ),
]
PrecisionOption = Annotated[Precision, typer.Option(help="arithmetic of the forward pass")]
Decode = Annotated[
    DecodeRoute, typer.Option(help="exact: open_clip's own transform; fast: a few grey levels off")
]
LaneOption = Annotated[Lane, typer.Option(help="priority")]
ChunkSize = Annotated[int, typer.Option(min=1, max=4096, help="items that are claimed at a time")]
JobId = Annotated[
    str | None,
    typer.Option(callback=_not_empty, help="name of the job; repeat it to resume an interrupted submit"),
]
Overwrite = Annotated[bool, typer.Option("--overwrite", help="replace an ended job's results in the output")]
CheckSource = Annotated[
    bool,
    typer.Option(
        "--check-source",
        help="of a repeated --job-id with more than 1,000,000 items, too: list the source again, and refuse "
        "it if it has changed",
    ),
]
Wait = Annotated[bool, typer.Option(help="wait for the end and show progress")]
AsJson = Annotated[
    bool, typer.Option("--json", help="print one JSON object on stdout and nothing else there")
]
UrlColumn = Annotated[
    str | None, typer.Option(callback=_not_empty, help="column of a table that holds the URL or path")
]
IdColumn = Annotated[
    str | None, typer.Option(callback=_not_empty, help="column of a table that names the item")
]
Format = Annotated[
    PartFormat, typer.Option("--format", help="of the results: parquet, or jsonl (one JSON object per row)")
]
BaseUri = Annotated[
    str | None,
    typer.Option(
        metavar="URI", help="what relative paths and bare keys of a list are below, s3://BUCKET/PREFIX/"
    ),
]
ExportFolder = Annotated[
    str, typer.Option(metavar="DIR", callback=_not_empty, help="new folder for the files")
]
JobOrOutput = Annotated[str, typer.Argument(metavar="JOB|OUTPUT", help="job id, or where the results are")]
MaxErrorRate = Annotated[
    float | None,
    typer.Option(
        metavar="RATE", min=0, max=1, help="stop early once more of the rows have failed: 0.2 is one in five"
    ),
]
OnFinished = Annotated[
    str | None,
    typer.Option(metavar="TASK", help="Celery task of yours that is sent when the job has ended"),
]
OnFinishedQueue = Annotated[str, typer.Option(metavar="QUEUE", help="queue that TASK is sent to")]
JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="job id", autocompletion=completion.job_ids)]
