"""What `--help` of both programs shows: options by group, without types for flags, and an example.

An option names its group as `rich_help_panel`; a command is added with an example.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import typer
from typer.core import TyperCommand, TyperGroup

F = TypeVar("F", bound=Callable[..., Any])

# Groups of options, in the order of `--help`.
LABELS, SOURCE, MODEL, MACHINE = "Labels", "Source", "Model", "Machine"
ROWS, OUTPUT, SCHEDULING, GENERAL = "Rows", "Output", "Scheduling", "General"
GROUPS = (LABELS, SOURCE, MODEL, MACHINE, ROWS, OUTPUT, SCHEDULING, GENERAL)

HELP_NAMES = {"help_option_names": ["-h", "--help"]}


class Command(TyperCommand):
    """A command with its options in groups."""

    def get_params(self, ctx: Any) -> list[Any]:
        """Arguments, then options by group."""
        return _grouped(super().get_params(ctx))


class Group(TyperGroup):
    """A program, or a group of its commands."""

    def get_params(self, ctx: Any) -> list[Any]:
        """As of a command."""
        return _grouped(super().get_params(ctx))


def add_command(
    app: typer.Typer,
    example: str,
    name: str | None = None,
    *,
    cls: type[Command] = Command,
    context: dict[str, Any] | None = None,
    hidden: bool = False,
) -> Callable[[F], F]:
    """Add a function to a program as a command whose help ends with an example."""
    return app.command(name, cls=cls, epilog=epilog(example), context_settings=context, hidden=hidden)


def epilog(example: str) -> str:
    """The last line of a help."""
    return f"Example: {example}"


def _grouped(parameters: list[Any]) -> list[Any]:
    for parameter in parameters:
        if getattr(parameter, "is_bool_flag", False):
            parameter.metavar = ""  # typer's is <bool>
        if parameter.name in ("help", "install_completion", "show_completion"):
            parameter.rich_help_panel = GENERAL  # options of typer
    return sorted(parameters, key=_place)


def _place(parameter: Any) -> int:
    if parameter.param_type_name == "argument":
        return -1
    group = getattr(parameter, "rich_help_panel", None)
    return GROUPS.index(group) if group in GROUPS else len(GROUPS)
