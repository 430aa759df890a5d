"""`clipfleet-worker doctor`: prints what the checks find, each with its remedy."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.text import Text

from clipfleet.commands.options import AsJson
from clipfleet.errors import UsageError
from clipfleet.printable import printable
from clipfleet.program import EXIT_FAILED
from clipfleet.s3 import SCHEME
from clipfleet.settings import checked
from clipfleet_worker.requirements import require_worker_extra
from clipfleet_worker.settings import WorkerSettings

if TYPE_CHECKING:
    from clipfleet_worker.doctor import Finding

_STYLES = {"ok": "green", "warning": "yellow", "problem": "bold red"}


def doctor(
    output: Annotated[
        list[str] | None,
        typer.Option(metavar="s3://BUCKET/PREFIX", help="try to write there; may be repeated"),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Look at all that a worker with these settings needs: each finding with its remedy."""
    require_worker_extra()
    outputs = output or []
    for uri in outputs:
        if not uri.startswith(SCHEME):
            raise UsageError(f"--output {uri!r} is not in S3: folders are those of CLIPFLEET_OUTPUT_ROOTS")
    settings = checked(WorkerSettings)
    from clipfleet_worker.doctor import examine
    from clipfleet_worker.doctor.all_checks import all_checks

    findings = examine(list(all_checks(settings, os.environ, outputs)))
    problems = _tell_json(findings) if as_json else _tell(findings)
    raise typer.Exit(EXIT_FAILED if problems else 0)


def _tell(findings: Iterable[Finding]) -> int:
    console = Console(highlight=False, soft_wrap=True)
    counts = dict.fromkeys(_STYLES, 0)
    for finding in findings:
        counts[finding.level] += 1
        head = Text(f"{finding.level:8}", style=_STYLES[finding.level])
        console.print(head, Text(f"{finding.check:9} {printable(finding.what)}"))
        if finding.remedy:
            console.print(Text(f"{'':18} -> {printable(finding.remedy)}"))
    problems = counts["problem"]
    console.print(
        Text(
            f"{problems} problems, {counts['warning']} warnings",
            style=_STYLES["problem" if problems else "ok"],
        )
    )
    return problems


def _tell_json(findings: Iterable[Finding]) -> int:
    found = list(findings)
    typer.echo(json.dumps({"findings": [asdict(finding) for finding in found]}))
    return sum(finding.level == "problem" for finding in found)
