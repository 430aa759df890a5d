"""Options of the commands that work with marks."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipfleet.commands.options import not_empty
from clipfleet.terminal.help import LABELS, OUTPUT

TARGET_PRECISION = 0.95

Label = Annotated[
    list[str] | None,
    typer.Option(
        "--label", metavar="NAME", help="this label only; repeatable (default: all)", rich_help_panel=LABELS
    ),
]
SetName = Annotated[
    str | None,
    typer.Option(
        "--set",
        metavar="NAME",
        callback=not_empty,
        help="label set, of a job with several",
        rich_help_panel=LABELS,
    ),
]
LabelsFile = Annotated[
    str | None,
    typer.Option(
        metavar="FILE",
        callback=not_empty,
        help="label set with the thresholds (default: as the job had it)",
        rich_help_panel=LABELS,
    ),
]
MARKS = typer.Option(
    metavar="FILE",
    help="marks: .csv, .jsonl, or .json as Label Studio exports it; repeatable",
    rich_help_panel=LABELS,
)


SampledFile = Annotated[
    Path | None,
    typer.Option(
        "--output",
        "-o",
        metavar="FILE",
        help=".csv or .jsonl (default: CSV on stdout)",
        rich_help_panel=OUTPUT,
    ),
]
WrittenLabels = Annotated[
    Path,
    typer.Option(
        "--output", "-o", metavar="FILE", help="label set to write, a .yaml", rich_help_panel=OUTPUT
    ),
]
TargetPrecision = Annotated[
    float | None,
    typer.Option(
        help=f"least share of the rows accepted that show the label (default: {TARGET_PRECISION})",
        rich_help_panel=LABELS,
    ),
]
MaxMiss = Annotated[
    float | None,
    typer.Option(
        help="instead: largest share of the rows not accepted that show the label", rich_help_panel=LABELS
    ),
]
Confidence = Annotated[
    float, typer.Option(help="of each certificate, for all looks together", rich_help_panel=LABELS)
]
Jointly = Annotated[
    bool,
    typer.Option("--jointly", help="the confidence holds for all labels together", rich_help_panel=LABELS),
]
ToMark = Annotated[
    Path,
    typer.Option(metavar="FILE", help="items still to be marked, .csv or .jsonl", rich_help_panel=OUTPUT),
]
Marked = Annotated[
    list[Path] | None,
    typer.Option(
        "--marks",
        metavar="FILE",
        help="leave out items that are marked here; repeatable",
        rich_help_panel=LABELS,
    ),
]
