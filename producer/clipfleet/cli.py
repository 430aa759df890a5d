"""`clipfleet`: the commands put together, and how errors are told."""

from __future__ import annotations

import sys

import typer

from clipfleet.commands import jobs, recovering, submitting
from clipfleet.commands.following import EXIT_FAILED, EXIT_INTERRUPTED, EXIT_USAGE, watch
from clipfleet.commands.results import export, results
from clipfleet.console import say_error, warn_of_doubtful_variables
from clipfleet.errors import ClipfleetError, UsageError
from clipfleet.settings import Settings

app = typer.Typer(
    help="Label and embed piles of images with CLIP: one row per image, nothing lost, nothing twice.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

for _command in (
    submitting.classify,
    submitting.embed,
    submitting.run,
    jobs.status,
    jobs.jobs,
    watch,
    results,
    export,
    jobs.cancel,
    jobs.pause,
    jobs.resume,
    recovering.retry,
    recovering.rebuild,
):
    app.command()(_command)


def main() -> None:
    """Entry point: a user's mistake is one line on stderr and exit code 2, never a traceback."""
    try:
        warn_of_doubtful_variables(Settings, has_all=False)
        app()
    except UsageError as error:
        say_error(error)
        sys.exit(EXIT_USAGE)
    except ClipfleetError as error:
        say_error(error)
        sys.exit(EXIT_FAILED)
    except KeyboardInterrupt:
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # `clipfleet results ... | head`
        sys.stderr.close()
        sys.exit(0)
