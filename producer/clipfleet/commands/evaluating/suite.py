"""Evaluation of all sets of a suite."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

import typer

from clipfleet.commands.following import EXIT_SOME_FAILED
from clipfleet.errors import UsageError
from clipfleet.terminal.console import printable, say

if TYPE_CHECKING:
    from clipfleet.evaluation.vectors import Embedder

SUITES = ("datacomp",)


def evaluate_suite(
    suite: str | None, root: str | None, split: str, embedder: Embedder, output: str | None, *, as_json: bool
) -> int:
    """Print the results of a suite; returns the exit code, which says if a set failed or has failed items.

    Raises:
        UsageError: there is no such suite, or one of both options is missing.
    """
    from clipfleet.evaluation.datacomp.suite import OURS, results_path, run_suite
    from clipfleet.evaluation.datacomp.words import suite_lines

    if suite not in SUITES:
        raise UsageError(f"--suite {suite or ''}: give --suite {' or '.join(SUITES)}")
    if root is None:
        raise UsageError("--suite: give the folder of its sets with --root DIR")
    results = results_path(embedder.place, output, embedder, split)
    found = run_suite(root, split, embedder, results, say)
    if as_json:
        typer.echo(json.dumps(found.document()))
    else:
        for line in suite_lines(found):
            typer.echo(printable(line))
    some_failed = found.failed or any(line[OURS]["failed"] for line in found.lines)
    return EXIT_SOME_FAILED if some_failed else 0
