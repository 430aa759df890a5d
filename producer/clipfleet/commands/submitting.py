"""Commands that submit jobs."""

from __future__ import annotations

import inspect
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from copy import copy
from dataclasses import dataclass
from inspect import Parameter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from clipfleet.commands.connecting import open_client
from clipfleet.commands.following import follow, interruptible
from clipfleet.commands.naming import is_file, job_or_output
from clipfleet.commands.options import (
    JOB_OPTIONS,
    AsJson,
    Heads,
    Labels,
    LabelSetColumn,
    LabelSetFiles,
    Multi,
    NoneOption,
    Rows,
    Source,
    Template,
    TopK,
    Wait,
    is_known,
    names_between_commas,
)
from clipfleet.commands.stores.arguments import AsOf
from clipfleet.contract.columns import VectorType
from clipfleet.contract.jobs import MAX_CHUNK_SIZE, new_job_id
from clipfleet.contract.label_sets import LabelSet, Preset
from clipfleet.errors import RedisUnavailableError, UsageError
from clipfleet.labels.sets import (
    label_sets_of,
    read_label_lines,
    read_label_set,
    require_no_labels_needed,
)
from clipfleet.submit.options import OF_IMAGES, OF_THE_VECTORS, JobOptions, read_job_spec
from clipfleet.terminal.help import OUTPUT, SCHEDULING, SOURCE
from clipfleet.terminal.interrupted import words_after_submitting

if TYPE_CHECKING:
    from clipfleet.client import Client, JobHandle

Submit = Callable[["Client"], "JobHandle"]


@dataclass(frozen=True, slots=True)
class Instead:
    """What a command does in place of a submit."""

    run: Callable[[bool], None]  # with the value of `--json`


def with_job_options(
    *left_out: str, **instead: Any
) -> Callable[[Callable[..., Submit | Instead]], Callable[..., None]]:
    """Add all `JOB_OPTIONS` but some to a command, which gets them as `JobOptions` and returns the submit.

    `instead` are options by name that take the place of those.
    """
    options = {**JOB_OPTIONS, **instead}
    shared = {
        name: Parameter(
            name, Parameter.KEYWORD_ONLY, default=field.default,
            annotation=Annotated[field.annotation, options[name]],
        )
        for name, field in JobOptions.model_fields.items()
        if name not in left_out
    }  # fmt: skip

    def decorated(command: Callable[..., Submit | Instead]) -> Callable[..., None]:
        def run(*, wait: Wait = True, as_json: AsJson = False, **values: Any) -> None:
            chosen = {name: values.pop(name) for name in shared}
            is_named = chosen["job_id"] is not None
            job_id = chosen["job_id"] = chosen["job_id"] or new_job_id()
            submit = command(**values, options=JobOptions(**chosen))
            if isinstance(submit, Instead):
                if is_named or not wait:
                    raise UsageError(
                        f"{'--job-id' if is_named else '--no-wait'} is for one job: leave it out"
                    )
                submit.run(as_json)
                return
            _submit_and_follow(submit, job_id, wait=wait, as_json=as_json)

        *own, _ = inspect.signature(command, eval_str=True).parameters.values()
        *following, _ = inspect.signature(run, eval_str=True).parameters.values()
        signature = inspect.Signature([*own, *shared.values(), *following])
        run.__signature__ = signature  # type: ignore[attr-defined]  # what typer reads
        run.__name__, run.__doc__, run.__annotations__ = command.__name__, command.__doc__, {}
        return run

    return decorated


@with_job_options()
def classify(
    source: Source,
    labels: Labels = None,
    template: Template = None,
    label_set: LabelSetFiles = None,
    multi: Multi = False,
    none: NoneOption = False,
    head: Heads = None,
    label_set_column: LabelSetColumn = None,
    top_k: TopK = 5,
    *,
    options: JobOptions,
) -> Submit:
    """Label every image with the best matches among your labels (zero-shot), or with heads."""
    label_sets = chosen_label_sets(
        labels, label_set or [], template or [], multi=multi, none=none, has_heads=bool(head)
    )
    return lambda client: client.classify(
        source, label_sets or None, heads=head or (), top_k=top_k, label_set_column=label_set_column,
        options=options,
    )  # fmt: skip


def refused(name: str, why: str) -> Any:
    """An option of jobs that a command does not have: if it is given, it is refused with the reason."""

    def refuse(context: typer.Context, parameter: typer.CallbackParam, value: Any) -> Any:
        source = context.get_parameter_source(parameter.name or "")
        if source is not None and source.name == "COMMANDLINE":
            raise typer.BadParameter(why)
        return value

    option = copy(JOB_OPTIONS[name])
    option.hidden, option.callback = True, refuse
    return option


_MADE_BEFORE = "vectors are labelled again as they were made, without their images: leave it out"


@with_job_options(
    "vector_type",
    **{name: refused(name, _MADE_BEFORE) for name in (*OF_THE_VECTORS, *OF_IMAGES)},
    chunk_size=typer.Option(
        min=1,
        max=MAX_CHUNK_SIZE,
        help="items per chunk, in whole parts of JOB|OUTPUT|STORE (default: 4,096, fewer in a small job)",
        rich_help_panel=SCHEDULING,
    ),
    store_embeddings=typer.Option(
        "--store-embeddings", help="copy the vectors into the new output, too", rich_help_panel=OUTPUT
    ),
)  # fmt: skip
def relabel(
    origin: Rows,
    labels: Labels = None,
    template: Template = None,
    label_set: LabelSetFiles = None,
    multi: Multi = False,
    none: NoneOption = False,
    head: Heads = None,
    label_set_column: LabelSetColumn = None,
    top_k: TopK = 5,
    vector_type: Annotated[
        VectorType | None,
        typer.Option(
            metavar="TYPE",
            help="type of the copied vectors: float16 or float32 (default: that of the stored ones)",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
    as_of: AsOf = None,
    *,
    options: JobOptions,
) -> Submit:
    """Label the stored vectors of a finished job again, or those of a store, without the images."""
    label_sets = chosen_label_sets(
        labels, label_set or [], template or [], multi=multi, none=none, has_heads=bool(head)
    )
    if vector_type is not None:
        options = options.model_copy(update={"vector_type": vector_type})
    return lambda client: client.relabel(
        _vectors_of(client, origin), label_sets or None, heads=head or (), top_k=top_k,
        label_set_column=label_set_column, as_of=as_of, options=options,
    )  # fmt: skip


def _vectors_of(client: Client, name: str) -> JobHandle | str:
    """`job_or_output`; a source in its place is met with what to do."""
    try:
        return job_or_output(client, name)
    except UsageError:
        if not is_file(name):
            raise
    raise UsageError(
        f"{name} is a file: give a finished job, or its output; `clipfleet embed` makes one of a source"
    )


@with_job_options("store_embeddings")
def embed(source: Source, head: Heads = None, *, options: JobOptions) -> Submit:
    """Compute an embedding of every image."""
    return lambda client: client.embed(source, heads=head or (), options=options)


@with_job_options("decode", "exif", "url_column", "base_uri", "store_embeddings")
def embed_text(
    source: Annotated[
        str, typer.Argument(metavar="FILE", help="a .txt with one text per line, a table, or - for stdin")
    ],
    text_column: Annotated[
        str | None,
        typer.Option(
            help="table column that holds the text (default: text or caption)", rich_help_panel=SOURCE
        ),
    ] = None,
    *,
    options: JobOptions,
) -> Submit:
    """Embed texts, to search images with them."""
    return lambda client: client.embed_text(source, text_column=text_column, options=options)


def run(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="a .yaml or .json file that describes a job")],
    output: Annotated[str | None, JOB_OPTIONS["output"]] = None,
    job_id: Annotated[str | None, JOB_OPTIONS["job_id"]] = None,
    overwrite: Annotated[bool, JOB_OPTIONS["overwrite"]] = False,
    check_source: Annotated[bool, JOB_OPTIONS["check_source"]] = False,
    sample: Annotated[int | None, JOB_OPTIONS["sample"]] = None,
    wait: Wait = True,
    as_json: AsJson = False,
) -> None:
    """Submit the job described in a file: several label sets and embeddings in one pass."""
    spec = read_job_spec(file)
    job_id = job_id or spec.job_id or new_job_id()
    chosen = {
        "output": output or spec.output, "overwrite": overwrite or spec.overwrite, "job_id": job_id,
        "check_source": check_source or spec.check_source, "sample": sample or spec.sample,
    }  # fmt: skip
    spec = spec.model_copy(update=chosen)
    _submit_and_follow(lambda client: client.run(spec), job_id, wait=wait, as_json=as_json)


def _submit_and_follow(submit: Submit, job_id: str, *, wait: bool, as_json: bool) -> None:
    """Submit, then follow the job; its seconds count from here, unless it ran before."""
    started = time.monotonic()
    is_older = False
    with open_client() as client:
        with interruptible(lambda: words_after_submitting(job_id, is_known=is_known(job_id))):
            job = submit(client)
        with suppress(RedisUnavailableError):  # `follow` waits for Redis
            lasted = job.status().lasted_seconds
            is_older = lasted > time.monotonic() - started + _INEXACT_SECONDS
        follow(client, job, wait=wait, as_json=as_json, started=None if is_older else started)


_INEXACT_SECONDS = 0.1  # between the clock of Redis and ours
_FILE_SUFFIXES = (".txt", ".csv", ".lst")


_WAYS_TO_LABEL = (
    "--labels A,B,C, a file with one per line, or --label-set imagenet1k or FILE.yaml; or a --head"
)


def chosen_label_sets(
    labels: str | None,
    files: Sequence[str],
    templates: Sequence[str],
    *,
    multi: bool = False,
    none: bool = False,
    has_heads: bool = False,
) -> tuple[LabelSet, ...]:
    """Return the label sets of `--labels` and `--label-set`; `--multi` and `--none` apply to all of them.

    Args:
        labels: of `--labels`.
        files: of `--label-set`.
        templates: of `--template`.
        multi: as `--multi`.
        none: as `--none`.
        has_heads: whether the job may do without a label set.

    Raises:
        UsageError: none is given, or one is invalid.
    """
    if labels is None and not files:
        options = {"--template": templates, "--multi": multi, "--none": none}
        require_no_labels_needed(
            options, "--labels or --label-set", has_heads=has_heads, otherwise=_WAYS_TO_LABEL
        )
        return ()
    if labels is None and templates:
        raise UsageError("--template goes with --labels: write the templates into the file of the label set")
    made = [] if labels is None else [*label_sets_of(read_labels(labels), templates, multi=multi, none=none)]
    for text in files:
        if text in list(Preset):
            made += label_sets_of(text, multi=multi, none=none)
            continue
        if multi or none:
            option, key = ("--multi", "kind: multi") if multi else ("--none", "none: true")
            raise UsageError(f"{option} does not apply to {text}: write `{key}` into the file")
        made.append(read_label_set(text))
    return tuple(made)


def read_labels(text: str) -> list[str]:
    """Read labels from a file with one per line, or from a comma-separated list; skip blank ones.

    In a list double quotes keep a comma inside a label; in a file every character belongs to the label.

    Raises:
        UsageError: no labels, an unbalanced quote, or an unreadable file.
    """
    if not text.strip():
        raise UsageError("--labels is empty: give comma-separated names, or a file with one per line")
    path = Path(text)
    if is_file(text) or ("," not in text and path.suffix.lower() in _FILE_SUFFIXES):
        try:
            names = read_label_lines(path)
        except UsageError as error:
            raise UsageError(f"--labels {error}") from None
    else:
        names = names_between_commas(
            (line.strip() for line in text.splitlines()),
            f'--labels: unbalanced double quotes in {text!r}: write "a, b",c or give a file',
        )
    names = [name.strip() for name in names if name.strip()]
    if not names:
        raise UsageError(f"--labels {text!r} contains no label: give comma-separated names, or a file")
    return names
