"""The commands of `clipfleet`, one module per group. They parse arguments and print, nothing else."""

from __future__ import annotations

from clipfleet.commands import following, jobs, results, submitting
from clipfleet.commands.one_source import OneSourceCommand
from clipfleet.settings import Settings
from clipfleet.terminal.program import new_app, run_program

app = new_app("Label and embed large sets of images with CLIP: exactly one result row per image.")

for _command in (
    submitting.classify,
    submitting.embed,
    submitting.embed_text,
    submitting.run,
    jobs.status,
    jobs.jobs,
    jobs.workers,
    following.watch,
    results.results,
    results.show,
    results.export,
    jobs.cancel,
    jobs.pause,
    jobs.resume,
    jobs.retry,
    jobs.rebuild,
):
    _takes_a_source = _command in (submitting.classify, submitting.embed, submitting.embed_text)
    app.command(cls=OneSourceCommand if _takes_a_source else None)(_command)


def main() -> None:
    """Run the command line, see `run_program`."""
    run_program(app, "clipfleet", Settings, has_all_settings=False)
