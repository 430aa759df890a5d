"""The command that evaluates a model, or the rows and vectors of an output, against known labels."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands.connecting import open_client
from clipfleet.commands.following import EXIT_SOME_FAILED, interruptible
from clipfleet.commands.interrupted import words_after_watching
from clipfleet.commands.options import JOB_OPTIONS, AsJson, names_between_commas, not_empty
from clipfleet.contract.jobs import DEFAULT_MODEL, DecodeRoute, Lane, Precision
from clipfleet.errors import UsageError
from clipfleet.labels.extra import require_numpy
from clipfleet.terminal.console import say, say_trouble
from clipfleet.terminal.help import OUTPUT, ROWS, SOURCE
from clipfleet.terminal.progress import JobProgress

if TYPE_CHECKING:
    from clipfleet.client import Client, JobHandle
    from clipfleet.evaluation.outcome import Evaluation
    from clipfleet.ledger.jobs import JobStatus


_Evaluated = Annotated[
    str,
    typer.Argument(
        metavar="ROOT|JOB|OUTPUT",
        callback=not_empty,
        help="a webdataset root in CLIP_benchmark's layout, a folder or s3://BUCKET/PREFIX",
    ),
]
_Split = Annotated[
    str, typer.Option(callback=not_empty, help="folder of the root with the shards", rich_help_panel=SOURCE)
]
_Task = Annotated[
    str,
    typer.Option(
        metavar="TASK",
        help="auto: what the root is for; zeroshot_classification or zeroshot_retrieval",
        rich_help_panel=SOURCE,
    ),
]
_Recalls = Annotated[
    list[str] | None,
    typer.Option(
        metavar="K",
        help="the K of recall@K, of a retrieval root; repeatable (default: 5)",
        rich_help_panel=ROWS,
    ),
]
_Place = Annotated[
    str | None,
    typer.Option(
        "--output",
        "-o",
        metavar="DIR",
        callback=not_empty,
        help="where the vectors are kept: a folder or s3://BUCKET/PREFIX (default: the folder "
        "clipfleet-evaluations below the first output root, or here)",
        rich_help_panel=OUTPUT,
    ),
]
_ClipBenchmarkJson = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="also write the result as `clip_benchmark eval` does", rich_help_panel=OUTPUT
    ),
]


def evaluate(
    source: _Evaluated,
    split: _Split = "test",
    task: _Task = "auto",
    model: Annotated[str, JOB_OPTIONS["model"]] = DEFAULT_MODEL,
    precision: Annotated[Precision, JOB_OPTIONS["precision"]] = Precision.AUTO,
    decode: Annotated[DecodeRoute, JOB_OPTIONS["decode"]] = DecodeRoute.FAST,
    lane: Annotated[Lane, JOB_OPTIONS["lane"]] = Lane.NORMAL,
    recall_k: _Recalls = None,
    output: _Place = None,
    clip_benchmark_json: _ClipBenchmarkJson = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a model, or the rows of a job, agree with known labels."""
    require_numpy("evaluations")
    from clipfleet.evaluation.on_roots import EvaluationTask, evaluate_root
    from clipfleet.evaluation.roots import read_root
    from clipfleet.evaluation.vectors import Embedder, ModelOptions, default_place

    if task not in list(EvaluationTask):
        raise UsageError(f"--task {task!r} is not one of {', '.join(EvaluationTask)}")
    recalls = _recalls(recall_k or [])
    with ExitStack() as opened:
        connect = cache(lambda: opened.enter_context(open_client()))
        embedder = Embedder(
            connect, ModelOptions(model, precision, decode), output or default_place(),
            lambda job: _wait(connect(), job, quiet=as_json), lane,
        )  # fmt: skip
        found = evaluate_root(read_root(source, split), embedder, task=EvaluationTask(task), recalls=recalls)
    _report(found, clip_benchmark_json, as_json=as_json)


def _report(found: Evaluation, clip_benchmark_json: Path | None, *, as_json: bool) -> None:
    from clipfleet.evaluation.outcome import write_json
    from clipfleet.evaluation.words import evaluation_lines

    if clip_benchmark_json is not None:
        write_json(clip_benchmark_json, found.clip_benchmark_document())
    if as_json:
        typer.echo(json.dumps(found.document()))
    else:
        for line in evaluation_lines(found):
            typer.echo(line)
    raise typer.Exit(EXIT_SOME_FAILED if found.failed else 0)


def _wait(client: Client, job: JobHandle, *, quiet: bool) -> JobStatus:
    """Follow a job of the evaluation until it ends."""
    progress = JobProgress(client.workers, quiet=quiet)
    with interruptible(lambda: words_after_watching(job.job_id, progress.latest)):
        if not quiet:
            say(f"job {job.job_id} -> {job.output}")
        with progress:
            return job.wait(on_progress=progress.update, on_trouble=say_trouble)


def _recalls(given: list[str]) -> tuple[int, ...]:
    texts = names_between_commas(given, "--recall-k: give numbers, such as 1,5,10") or ["5"]
    if not all(text.isdecimal() and int(text) for text in texts):
        raise UsageError(f"--recall-k {','.join(given)!r}: give numbers from 1 on, such as 1,5,10")
    return tuple(dict.fromkeys(map(int, texts)))
