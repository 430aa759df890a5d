"""The command that fits a head to rows, to a webdataset root or to marks."""

from __future__ import annotations

import json
from contextlib import ExitStack
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipfleet.commands.connecting import open_client
from clipfleet.commands.evaluating.command import (
    LabelSetFile,
    Split,
    chosen_label_set,
    is_given,
    wait_for_vectors,
)
from clipfleet.commands.following import interruptible
from clipfleet.commands.head_options import HeadFile, HeadName, Overwrite, say_written
from clipfleet.commands.options import JOB_OPTIONS, AsJson, Labels, Template, not_empty
from clipfleet.commands.results import row_reader
from clipfleet.commands.stores.arguments import AsOf
from clipfleet.contract.jobs import DEFAULT_MODEL, DecodeRoute, Lane, Precision
from clipfleet.errors import UsageError
from clipfleet.labels.extra import require_fit
from clipfleet.labels.sets import label_sets_of
from clipfleet.terminal.console import printable, say
from clipfleet.terminal.help import GENERAL, LABELS, OUTPUT, SOURCE
from clipfleet.terminal.interrupted import words_after_evaluating
from clipfleet.wording import counted

if TYPE_CHECKING:
    from clipfleet.contract.label_sets import LabelSet
    from clipfleet.evaluation.vectors import Embedder
    from clipfleet.training.heads import TrainedHead
    from clipfleet.training.samples import Samples

_Fitted = Annotated[
    str,
    typer.Argument(
        metavar="JOB|OUTPUT|STORE|ROOT",
        callback=not_empty,
        help="with --truth-column or --marks: a job id, `last`, or the folder or S3 prefix of results with "
        "embeddings, or of a store; else a webdataset root in CLIP_benchmark's layout",
    ),
]
_TruthColumn = Annotated[
    str | None,
    typer.Option(
        metavar="COLUMN",
        callback=not_empty,
        help="column of the source with the right label; lists of labels make a head of kind multilabel",
        rich_help_panel=SOURCE,
    ),
]
_Marks = Annotated[
    list[Path] | None,
    typer.Option(
        metavar="FILE",
        help="fit marks, as `clipfleet sample` draws them: a head of kind multilabel; repeatable",
        rich_help_panel=SOURCE,
    ),
]
_FromLabels = Annotated[
    bool,
    typer.Option(
        "--from-labels",
        help="begin at the zero-shot weights of the labels, for few labelled items; a job embeds the prompts",
        rich_help_panel=LABELS,
    ),
]
_MinItems = Annotated[
    int,
    typer.Option(
        min=0, help="leave out labels that fewer items show (or do not show)", rich_help_panel=LABELS
    ),
]
_Seed = Annotated[
    int, typer.Option(min=0, help="of the folds of the cross-validation", rich_help_panel=GENERAL)
]
_Licence = Annotated[
    str | None,
    typer.Option(metavar="TEXT", help="licence of the head, kept in its file", rich_help_panel=OUTPUT),
]
_Vectors = Annotated[
    str | None,
    typer.Option(
        metavar="DIR",
        callback=not_empty,
        help="where vectors of a root and of prompts are kept: a folder or s3://BUCKET/PREFIX (default: as "
        "`clipfleet evaluate`)",
        rich_help_panel=OUTPUT,
    ),
]


def fit(
    context: typer.Context,
    source: _Fitted,
    output: HeadFile,
    truth_column: _TruthColumn = None,
    marks: _Marks = None,
    split: Split = "train",
    labels: Labels = None,
    label_set: LabelSetFile = None,
    template: Template = None,
    from_labels: _FromLabels = False,
    min_items: _MinItems = 0,
    model: Annotated[str, JOB_OPTIONS["model"]] = DEFAULT_MODEL,
    precision: Annotated[Precision, JOB_OPTIONS["precision"]] = Precision.AUTO,
    decode: Annotated[DecodeRoute, JOB_OPTIONS["decode"]] = DecodeRoute.FAST,
    lane: Annotated[Lane, JOB_OPTIONS["lane"]] = Lane.NORMAL,
    name: HeadName = None,
    licence: _Licence = None,
    vectors: _Vectors = None,
    overwrite: Overwrite = False,
    seed: _Seed = 0,
    as_of: AsOf = None,
    as_json: AsJson = False,
) -> None:
    """Fit a head to embeddings and their labels, and measure it by cross-validation."""
    require_fit()
    from clipfleet.evaluation.vectors import Embedder, ModelOptions, default_place
    from clipfleet.heads.files import write_head
    from clipfleet.heads.places import head_name, require_new
    from clipfleet.training.heads import train

    _refuse_ignored(context)
    require_new(output, overwrite=overwrite)
    named = head_name(output, name)
    chosen = chosen_label_set(labels, label_set, template or [])
    templates = _templates(template or []) if chosen is None else ()
    with ExitStack() as opened:
        opened.enter_context(interruptible(words_after_evaluating))
        connect = cache(lambda: opened.enter_context(open_client()))
        embedder = Embedder(
            connect, ModelOptions(model, precision, decode), vectors or default_place(),
            lambda job: wait_for_vectors(connect(), job, quiet=as_json), lane,
        )  # fmt: skip
        if truth_column is None and not marks:
            samples = _of_root(source, split, embedder, min_items, with_templates=from_labels)
        else:
            samples = _of_output((source, as_of), truth_column, marks or [], chosen, min_items)
        if templates:
            samples = replace(samples, templates=templates)
        texts = replace(embedder, options=samples.options) if from_labels else None
        if not as_json:
            counts = f"{counted(len(samples.labels), 'label')}, {counted(len(samples.ids), 'item')}"
            say(f"fitting {named}: {counts}")
        trained = train(samples, named, texts=texts, seed=seed, licence=licence)
    write_head(trained.file, output)
    _report(trained, output, as_json=as_json)


def _of_output(
    source: tuple[str, str | None],
    column: str | None,
    marks: list[Path],
    label_set: LabelSet | None,
    min_items: int,
) -> Samples:
    from clipfleet.training.of_marks import samples_of_marks
    from clipfleet.training.of_outputs import samples_of_output

    with row_reader(*source) as reader:
        if column is not None:
            return samples_of_output(reader, column, label_set, min_items)
        return samples_of_marks(reader, marks, label_set, min_items)


def _of_root(source: str, split: str, embedder: Embedder, min_items: int, *, with_templates: bool) -> Samples:
    from clipfleet.evaluation.roots import read_root
    from clipfleet.training.of_roots import samples_of_root

    return samples_of_root(read_root(source, split), embedder, min_items, with_templates=with_templates)


def _templates(given: list[str]) -> tuple[str, ...]:
    """Check templates for labels that the column or the marks have."""
    return label_sets_of(["any", "other"], given)[0].templates if given else ()


_OF_ROOTS = ("split", "model", "precision", "decode")
_OF_OUTPUTS = ("labels", "label_set", "template", "as_of")
_OF_JOBS = ("vectors", "lane")


def _refuse_ignored(context: typer.Context) -> None:
    """Refuse options that these samples ignore.

    Raises:
        UsageError: one is given.
    """
    values: dict[str, Any] = context.params
    if values["truth_column"] is not None and values["marks"]:
        raise UsageError("give --truth-column or --marks, not both")
    is_root = values["truth_column"] is None and not values["marks"]
    ignored = {name: "--truth-column or --marks" for name in _OF_OUTPUTS if is_root}
    ignored |= {name: "a ROOT, not with --truth-column or --marks" for name in _OF_ROOTS if not is_root}
    ignored |= {
        name: "a ROOT or --from-labels" for name in _OF_JOBS if not (is_root or values["from_labels"])
    }
    ignored |= {"template": "--from-labels"} if not (is_root or values["from_labels"]) else {}
    for name, goes_with in ignored.items():
        if is_given(context, name):
            raise UsageError(f"--{name.replace('_', '-')} goes with {goes_with}")


def _report(trained: TrainedHead, output: Path, *, as_json: bool) -> None:
    from clipfleet.heads.words import head_document
    from clipfleet.training.words import report_lines

    if as_json:
        document = {"file": str(output), "notes": list(trained.notes), **head_document(trained.file)}
        typer.echo(json.dumps(document))
        return
    for line in report_lines(trained):
        typer.echo(printable(line))
    say_written(output)
