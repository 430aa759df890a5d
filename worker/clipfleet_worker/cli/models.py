"""`clipfleet-worker models`: lists and downloads models."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table

from clipfleet.commands.options import AsJson
from clipfleet.contract.model_names import normalise_model
from clipfleet.errors import UsageError, WorldError
from clipfleet.settings import checked
from clipfleet.terminal.console import print_table, say
from clipfleet.terminal.help import MODEL, Group, add_command, epilog
from clipfleet_worker.cli.requirements import require_extra
from clipfleet_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from clipfleet_worker.models.files import ModelFiles

app = typer.Typer(
    help="List and download models.",
    epilog=epilog("clipfleet-worker models list --all"),
    cls=Group,
    no_args_is_help=True,
)


@add_command(app, "clipfleet-worker models list --all", "list")
def list_(
    every: Annotated[
        bool, typer.Option("--all", help="also list the models that open_clip knows", rich_help_panel=MODEL)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """List the models to serve (CLIPFLEET_MODELS) and those on this machine."""
    require_extra()
    from clipfleet_worker.models.catalogue import ModelEntry, list_models

    def row(entry: ModelEntry) -> tuple[str, str, str, str]:
        where = entry.problem or (str(entry.files.folder) if entry.files else "not on this machine")
        size = _megabytes(entry.files.size_bytes) if entry.files else ""
        return entry.name, "yes" if entry.is_served else "", size, where

    entries = list_models(checked(WorkerSettings).models, every=every)
    if as_json:
        objects = [
            _object(entry.name, entry.files) | {"served": entry.is_served, "problem": entry.problem or None}
            for entry in entries
        ]
        typer.echo(json.dumps({"models": objects}))
        return
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("model", "served", "size", "where"):
        table.add_column(heading, no_wrap=True, justify="right" if heading == "size" else "left")
    for entry in entries:
        table.add_row(*row(entry))
    print_table(table)


@add_command(app, "clipfleet-worker models pull ViT-L-14:datacomp_xl_s13b_b90k")
def pull(
    models: Annotated[list[str], typer.Argument(metavar="NAME...", help="models, named as for --models")],
    as_json: AsJson = False,
) -> None:
    """Download models into the cache of Hugging Face (HF_HOME), unless they are there."""
    require_extra()
    from clipfleet_worker.failures import ModelUnavailableError
    from clipfleet_worker.models.catalogue import require_known
    from clipfleet_worker.models.files import fetch_files

    names = [_full_name(model) for model in models]
    require_known(names)
    objects = []
    for name in names:
        try:
            files = fetch_files(name)
        except ModelUnavailableError as error:
            raise WorldError(str(error)) from None
        objects.append(_object(name, files))
        say(f"{name}: {_megabytes(files.size_bytes)} in {files.folder}")
    if as_json:
        typer.echo(json.dumps({"models": objects}))


def _full_name(model: str) -> str:
    try:
        return normalise_model(model)
    except ValueError as error:
        raise UsageError(str(error)) from None


def _object(name: str, files: ModelFiles | None) -> dict[str, object]:
    return {
        "model": name,
        "size_bytes": files.size_bytes if files else None,
        "folder": str(files.folder) if files else None,
    }


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:,.0f} MB"
