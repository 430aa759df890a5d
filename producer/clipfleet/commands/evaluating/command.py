"""The command that evaluates a model, or the rows and vectors of an output, against known labels."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands.connecting import open_client
from clipfleet.commands.evaluating.heads import chosen_heads, evaluate_output, evaluate_root
from clipfleet.commands.evaluating.suite import evaluate_suite
from clipfleet.commands.following import EXIT_SOME_FAILED, interruptible
from clipfleet.commands.options import (
    JOB_OPTIONS,
    AsJson,
    Labels,
    Template,
    names_between_commas,
    not_empty,
)
from clipfleet.commands.results import row_reader
from clipfleet.commands.stores.arguments import AsOf
from clipfleet.commands.submitting import chosen_label_sets
from clipfleet.contract.jobs import DEFAULT_MODEL, DecodeRoute, Lane, Precision
from clipfleet.errors import UsageError
from clipfleet.labels.extra import require_numpy
from clipfleet.terminal.console import printable, say, say_trouble
from clipfleet.terminal.help import GENERAL, LABELS, OUTPUT, ROWS, SOURCE
from clipfleet.terminal.interrupted import words_after_evaluating
from clipfleet.terminal.progress import JobProgress

if TYPE_CHECKING:
    from clipfleet.client import Client, JobHandle
    from clipfleet.contract.label_sets import LabelSet
    from clipfleet.evaluation.outcome import Evaluation
    from clipfleet.evaluation.vectors import ModelOptions
    from clipfleet.heads.files import HeadFile
    from clipfleet.ledger.jobs import JobStatus


_Evaluated = Annotated[
    str | None,
    typer.Argument(
        metavar="ROOT|JOB|OUTPUT|STORE",
        callback=not_empty,
        help="a webdataset root in CLIP_benchmark's layout (a folder or s3://BUCKET/PREFIX); with "
        "--truth-column: a job id, `last`, or the folder or S3 prefix of results or of a store",
    ),
]
Split = Annotated[
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
_TruthColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        callback=not_empty,
        help="column of the source with the right label or its index (of several labels: A|B): measures the "
        "rows that are there; with --labels or --label-set: the vectors that are there",
        rich_help_panel=ROWS,
    ),
]
LabelSetFile = Annotated[
    str | None, typer.Option(metavar="FILE", help="a .yaml or .json file with labels", rich_help_panel=LABELS)
]
_Head = Annotated[
    str | None,
    typer.Option(
        metavar="FILE|NAME",
        callback=not_empty,
        help="evaluate a .head.safetensors on the root, or on the vectors that are there; with "
        "--truth-column also the name of a head of the job, whose columns are measured",
        rich_help_panel=ROWS,
    ),
]
_Compare = Annotated[
    str | None,
    typer.Option(
        metavar="MODEL|JOB|OUTPUT|FILE",
        callback=not_empty,
        help="also evaluate another model on the root, or another output of the same items, and test the "
        "differences; with --head it has none, or is another head",
        rich_help_panel=GENERAL,
    ),
]
_Suite = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="datacomp: the sets of DataComp's suite that are below --root, with their main metrics and "
        "averages; continues an earlier run",
        rich_help_panel=SOURCE,
    ),
]
_Sets = Annotated[
    str | None,
    typer.Option(
        "--root",
        metavar="DIR",
        callback=not_empty,
        help="folder or s3://BUCKET/PREFIX with a webdataset root for each set of the suite",
        rich_help_panel=SOURCE,
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
    context: typer.Context,
    source: _Evaluated = None,
    split: Split = "test",
    task: _Task = "auto",
    suite: _Suite = None,
    root: _Sets = None,
    truth_column: _TruthColumn = None,
    labels: Labels = None,
    label_set: LabelSetFile = None,
    template: Template = None,
    head: _Head = None,
    model: Annotated[str, JOB_OPTIONS["model"]] = DEFAULT_MODEL,
    precision: Annotated[Precision, JOB_OPTIONS["precision"]] = Precision.AUTO,
    decode: Annotated[DecodeRoute, JOB_OPTIONS["decode"]] = DecodeRoute.FAST,
    lane: Annotated[Lane, JOB_OPTIONS["lane"]] = Lane.NORMAL,
    recall_k: _Recalls = None,
    output: _Place = None,
    compare: _Compare = None,
    clip_benchmark_json: _ClipBenchmarkJson = None,
    as_of: AsOf = None,
    as_json: AsJson = False,
) -> None:
    """Measure how well a model, or the rows or vectors of a job, agree with known labels."""
    require_numpy("evaluations")
    from clipfleet.evaluation.on_roots import task_named
    from clipfleet.evaluation.pairs import compare as compared
    from clipfleet.evaluation.vectors import Embedder, default_place

    _refuse_ignored(context, is_suite=bool(suite or root))
    recalls = _recalls(recall_k or [])
    heads = chosen_heads(head, compare)
    options_of = _options_of(model, heads.compared if truth_column is None else None, precision, decode)
    with ExitStack() as opened:
        opened.enter_context(interruptible(words_after_evaluating))
        connect = cache(lambda: opened.enter_context(open_client()))
        embedder = Embedder(
            connect, options_of[model], output or default_place(),
            lambda job: wait_for_vectors(connect(), job, quiet=as_json), lane,
        )  # fmt: skip
        if suite or root:
            raise typer.Exit(evaluate_suite(suite, root, split, embedder, output, as_json=as_json))
        if source is None:
            raise UsageError("give a webdataset ROOT, an OUTPUT with --truth-column, or --suite")

        def evaluated(name: str, head: HeadFile | str | None) -> Evaluation:
            """Evaluate rows or vectors of this name, or a model of this name on the root."""
            if truth_column is None:
                one = replace(embedder, options=options_of[name])
                return evaluate_root((source, split), one, head, task_named(task), recalls)
            chosen = chosen_label_set(labels, label_set, template or [])
            with row_reader(name, as_of if name == source else None) as reader:
                return evaluate_output(reader, truth_column, chosen, head, embedder)

        own = model if truth_column is None else source
        found = evaluated(own, heads.own)
        if compare is not None:
            other = evaluated(compare if heads.other is None else own, heads.other)
            found = compared(found, other, compare)
    _report(found, clip_benchmark_json, as_json=as_json)


_NOT_OF_SUITES = (
    "source", "task", "truth_column", "labels", "label_set", "template", "head", "recall_k", "compare",
    "clip_benchmark_json", "as_of",
)  # fmt: skip
_OF_ROOTS = ("split", "task", "model", "precision", "decode", "recall_k", "clip_benchmark_json")
_OF_VECTORS = ("labels", "label_set", "template", "as_of")
_OF_JOBS = ("output", "lane")
_NOT_OF_HEADS = ("labels", "label_set", "template", "task", "recall_k")


def _refuse_ignored(context: typer.Context, *, is_suite: bool) -> None:
    """Refuse options that this kind of evaluation ignores."""
    is_root = context.params["truth_column"] is None
    has_labels = bool(context.params["labels"] or context.params["label_set"])
    if is_suite:
        given = [name for name in _NOT_OF_SUITES if context.params.get(name) and is_given(context, name)]
        if given:
            what = "a source" if given[0] == "source" else f"--{given[0].replace('_', '-')}"
            raise UsageError(f"{what} does not go with --suite, which has its own sets and metrics")
    ignored = {name: "--truth-column" for name in _OF_VECTORS if is_root}
    ignored |= {name: "a ROOT, not with --truth-column" for name in _OF_ROOTS if not is_root}
    ignored |= {name: "a ROOT or --labels" for name in _OF_JOBS if not is_root and not has_labels}
    if context.params["head"] is not None:
        ignored |= {name: "zero-shot labels, not with --head" for name in _NOT_OF_HEADS}
    for name, goes_with in ignored.items():
        if is_given(context, name):
            raise UsageError(f"--{name.replace('_', '-')} goes with {goes_with}")


def is_given(context: typer.Context, name: str) -> bool:
    """Whether an option is on the command line."""
    source = context.get_parameter_source(name)
    return source is not None and source.name == "COMMANDLINE"


def _options_of(
    model: str, other: str | None, precision: Precision, decode: DecodeRoute
) -> dict[str, ModelOptions]:
    """The options of both models by name, so that both are checked before the first one is run."""
    from clipfleet.evaluation.vectors import ModelOptions

    names = [model] if other is None else [model, other]
    return {name: ModelOptions(name, precision, decode) for name in names}


def chosen_label_set(labels: str | None, file: str | None, templates: list[str]) -> LabelSet | None:
    """The label set of `--labels` or `--label-set`; None if neither is given.

    Raises:
        UsageError: both are given, or it is invalid.
    """
    if labels is None and file is None:
        return None
    if labels is not None and file is not None:
        raise UsageError("give --labels or --label-set, not both")
    return chosen_label_sets(labels, [] if file is None else [file], templates)[0]


def _report(found: Evaluation, clip_benchmark_json: Path | None, *, as_json: bool) -> None:
    from clipfleet.evaluation.outcome import write_json
    from clipfleet.evaluation.words import evaluation_lines

    if clip_benchmark_json is not None:
        write_json(clip_benchmark_json, found.clip_benchmark_document())
    if as_json:
        typer.echo(json.dumps(found.document()))
    else:
        for line in evaluation_lines(found):
            typer.echo(printable(line))
    raise typer.Exit(EXIT_SOME_FAILED if found.failed or found.compared_failed else 0)


def wait_for_vectors(client: Client, job: JobHandle, *, quiet: bool) -> JobStatus:
    """Follow a job of the evaluation until it ends."""
    if not quiet:
        say(f"job {job.job_id} -> {job.output}")
    with JobProgress(client.workers, quiet=quiet) as progress:
        return job.wait(on_progress=progress.update, on_trouble=say_trouble)


def _recalls(given: list[str]) -> tuple[int, ...]:
    texts = names_between_commas(given, "--recall-k: give numbers, such as 1,5,10") or ["5"]
    if not all(text.isdecimal() and int(text) for text in texts):
        raise UsageError(f"--recall-k {','.join(given)!r}: give numbers from 1 on, such as 1,5,10")
    return tuple(dict.fromkeys(map(int, texts)))
