"""The group `head`: commands that make heads and say what one is."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands import head_fitting
from clipfleet.commands.head_options import HeadFileOrDefault, HeadName, Overwrite, say_written
from clipfleet.commands.options import LABELS_HELP, AsJson, not_empty
from clipfleet.commands.submitting import read_labels
from clipfleet.labels.extra import require_numpy
from clipfleet.terminal.console import printable
from clipfleet.terminal.help import LABELS, MODEL, Group, add_command, epilog

if TYPE_CHECKING:
    from clipfleet.heads.files import HeadFile

heads_app = typer.Typer(
    help="Make heads, small models on top of embeddings, and say what one is.",
    epilog=epilog("clipfleet head show taste.head.safetensors"),
    cls=Group,
    no_args_is_help=True,
)

add_command(heads_app, "clipfleet head fit last --truth-column kind -o kind.head.safetensors")(
    head_fitting.fit
)


_Weights = Annotated[
    Path,
    typer.Argument(
        metavar="FILE",
        help="weights of another program: a file of torch, .safetensors or .npy; no code of it is run",
    ),
]
_Model = Annotated[
    str,
    typer.Option(
        "--model",
        "-m",
        metavar="NAME",
        help="the model whose vectors the weights take; the file does not say",
        rich_help_panel=MODEL,
    ),
]
_Kind = Annotated[
    str | None,
    typer.Option(
        "--as",
        metavar="KIND",
        callback=not_empty,
        help="aesthetic-v1, aesthetic-v2, nsfw-h14 or linear (default: what its tensors look like)",
        rich_help_panel=MODEL,
    ),
]
_Labels = Annotated[
    str | None,
    typer.Option(help=f"of linear, in the order of its outputs: {LABELS_HELP}", rich_help_panel=LABELS),
]


_Multi = Annotated[
    bool,
    typer.Option(
        "--multi",
        help="of linear: each output answers for its label alone, as one trained with a sigmoid does "
        "(default: one label is chosen, by softmax)",
        rich_help_panel=LABELS,
    ),
]


@add_command(heads_app, "clipfleet head import v2.pth --as aesthetic-v2 -m ViT-L-14:openai", "import")
def import_head(
    file: _Weights,
    model: _Model,
    as_: _Kind = None,
    labels: _Labels = None,
    multi: _Multi = False,
    name: HeadName = None,
    output: HeadFileOrDefault = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> None:
    """Make a head from the weights of another program, such as aesthetic and NSFW predictors."""
    require_numpy("heads")
    from clipfleet.heads.files import SUFFIX, write_head
    from clipfleet.heads.importing import import_head as imported
    from clipfleet.heads.importing import kind_named
    from clipfleet.heads.places import head_name, require_new
    from clipfleet.heads.words import head_document

    if output is not None:
        require_new(output, overwrite=overwrite)
        name = head_name(output, name)
    kind = None if as_ is None else kind_named(as_)
    chosen = () if labels is None else read_labels(labels)
    made = imported(file, model=model, kind=kind, name=name, labels=chosen, multi=multi)
    place = output or Path(f"{made.head.name}{SUFFIX}")
    require_new(place, overwrite=overwrite)
    write_head(made, place)
    if as_json:
        typer.echo(json.dumps({"file": str(place), **head_document(made)}))
        return
    _print(made)
    say_written(place)


@add_command(heads_app, "clipfleet head show taste.head.safetensors")
def show(
    file: Annotated[Path, typer.Argument(metavar="FILE", help="the file of a head")],
    as_json: AsJson = False,
) -> None:
    """Print what a head is: labels, model, origin, quality."""
    from clipfleet.heads.files import read_head
    from clipfleet.heads.words import head_document

    found = read_head(file)
    if as_json:
        typer.echo(json.dumps(head_document(found)))
        return
    _print(found)


def _print(file: HeadFile) -> None:
    from clipfleet.heads.words import head_lines

    for line in head_lines(file):
        typer.echo(printable(line))
