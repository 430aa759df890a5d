"""Start and end of both command lines: warnings, `--version`, one line per error, exit codes.

A usage or environment error is one line on stderr; only a bug prints a traceback.
"""

from __future__ import annotations

import errno
import os
import sys
from typing import Annotated, NoReturn

import typer
from pydantic import ValidationError
from pydantic_settings import BaseSettings

from clipfleet import __version__
from clipfleet.errors import ClipfleetError, OutputTooNewError, UsageError, problem_text
from clipfleet.settings import doubtful_variables
from clipfleet.terminal.console import say, say_error
from clipfleet.terminal.help import GENERAL, HELP_NAMES, Group, epilog

EXIT_FAILED, EXIT_USAGE, EXIT_INTERRUPTED = 1, 2, 130

# Base class of typer's command line errors, which has no public name.
_CommandLineError: type[Exception] = typer.BadParameter.__bases__[0]


def new_app(description: str, example: str) -> typer.Typer:
    """Create a command line without commands."""
    return typer.Typer(
        help=description,
        epilog=epilog(example),
        cls=Group,
        context_settings=HELP_NAMES,
        callback=_begin,
        invoke_without_command=True,
        pretty_exceptions_enable=False,
    )


def _print_version(context: typer.Context, wanted: bool) -> None:
    if wanted:
        typer.echo(f"{context.info_name} {__version__}")
        raise typer.Exit


def _begin(
    context: typer.Context,
    _version: Annotated[
        bool,
        typer.Option(
            "--version",
            callback=_print_version,
            is_eager=True,
            help="show the version",
            rich_help_panel=GENERAL,
        ),
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        typer.echo(context.get_help())
        raise typer.Exit(EXIT_USAGE)


def run_program(
    app: typer.Typer, name: str, settings: type[BaseSettings], *, has_all_settings: bool
) -> NoReturn:
    """Run the command that `sys.argv` names, and exit.

    `name` is the program's name in messages; `has_all_settings`: see `doubtful_variables`.
    """
    if f"_{name.replace('-', '_').upper()}_COMPLETE" not in os.environ:  # else: completion, at each Tab
        _warn_of_doubtful_variables(settings, has_all_settings)
    sys.exit(_exit_code(app, name))


def _exit_code(app: typer.Typer, name: str) -> int:
    try:
        return int(app(prog_name=name, standalone_mode=False) or 0)
    except _CommandLineError as error:
        if message := _one_line(error):
            say_error(message)
    except (UsageError, OutputTooNewError) as error:
        say_error(error)
    except ClipfleetError as error:
        say_error(error)
        return EXIT_FAILED
    except KeyboardInterrupt:
        return EXIT_INTERRUPTED
    except UnicodeError:
        garbled = _garbled_texts()
        if not garbled:
            raise
        say_error(f"{', '.join(garbled)}: not UTF-8")
    except BrokenPipeError:  # `clipfleet results ... | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno != errno.ENOSPC or error.filename is not None:
            raise
        say_error(f"stdout: {error.strerror}; write to a place with more space")
        discard_stdout()
        return EXIT_FAILED
    return EXIT_USAGE


def discard_stdout() -> None:
    """Discard what is left to flush, which would fail again at the end of the program."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _one_line(error: Exception) -> str:
    """Typer's message and the help command; empty if the help was printed instead."""
    if isinstance(error.__cause__, ValidationError):
        error.message = problem_text(error.__cause__.errors()[0])  # type: ignore[attr-defined]  # see above
    message = " ".join(error.format_message().split()).rstrip(".")  # type: ignore[attr-defined]  # see above
    context = getattr(error, "ctx", None)
    return f"{message} (see `{context.command_path} --help`)" if message and context else message


def _garbled_texts() -> list[str]:
    """Arguments and settings that are not UTF-8. Only paths may contain such bytes."""
    texts = [repr(word) for word in sys.argv[1:] if _is_garbled(word)]
    return texts + [name for name, value in os.environ.items() if _is_garbled(value) and "CLIPFLEET" in name]


def _is_garbled(text: str) -> bool:
    return any("\udc80" <= character <= "\udcff" for character in text)


def _warn_of_doubtful_variables(settings: type[BaseSettings], has_all: bool) -> None:
    for name, meant in doubtful_variables(settings, os.environ, has_all=has_all):
        way_out = f"did you mean {meant}?" if meant else "docs/reference/settings.md lists them all"
        say(f"warning: unknown setting {name}: {way_out}", style="yellow")
