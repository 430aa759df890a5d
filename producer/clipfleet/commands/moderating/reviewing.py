"""Commands on recorded decisions: explain one, and add a reviewer's verdict."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands.marks.options import SampledFile, SetName
from clipfleet.commands.options import AsJson, Rows, not_empty
from clipfleet.errors import UsageError, usage_errors
from clipfleet.terminal.console import printable, say
from clipfleet.terminal.help import LABELS, OUTPUT
from clipfleet.wording import counted

if TYPE_CHECKING:
    from clipfleet.labels.marks import MarkVerdict

DecisionName = Annotated[
    str, typer.Argument(metavar="DECISION_ID", help="as rows, records and webhooks have it")
]
Place = Annotated[
    str,
    typer.Argument(
        metavar="PLACE", help="where the decision is recorded: the output of its job, or --decisions of it"
    ),
]


def explain(decision_id: DecisionName, place: Place, as_json: AsJson = False) -> None:
    """Explain a decision from its record: reasons, thresholds and their proofs, texts, verdicts."""
    from clipfleet.moderation.explaining import explain as explained
    from clipfleet.outputs import open_output

    found = explained(open_output(place), decision_id)
    if as_json:
        typer.echo(json.dumps(found.document(), ensure_ascii=False))
        return
    for line in found.lines():
        typer.echo(printable(line))


def verdict(
    decision_id: DecisionName,
    said: Annotated[str, typer.Argument(metavar="VERDICT", help="upheld or overturned")],
    place: Annotated[
        str,
        typer.Option(
            metavar="PLACE",
            callback=not_empty,
            help="where the decision is recorded: the output of its job, or --decisions of it",
            rich_help_panel=OUTPUT,
        ),
    ],
    label: Annotated[
        list[str] | None,
        typer.Option(
            metavar="LABEL=yes|no|skip",
            help="whether the image shows a label; repeatable (default: what follows from the verdict)",
            rich_help_panel=LABELS,
        ),
    ] = None,
    by: Annotated[str, typer.Option(metavar="NAME", help="who says so", rich_help_panel=LABELS)] = "",
    note: Annotated[str, typer.Option(metavar="TEXT", help="for people", rich_help_panel=LABELS)] = "",
    appeal: Annotated[
        bool,
        typer.Option("--appeal", help="given after an objection to the decision", rich_help_panel=LABELS),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add a reviewer's verdict on a decision; earlier ones stay."""
    from clipfleet.moderation.explaining import explain as explained
    from clipfleet.moderation.verdicts import Outcome, ReviewerVerdict, add_verdict
    from clipfleet.outputs import open_output

    if said not in list(Outcome):
        raise UsageError(f"verdict {said!r}: say upheld or overturned")
    output = open_output(place)
    record = explained(output, decision_id).record
    with usage_errors():
        given = ReviewerVerdict(
            verdict=Outcome(said), labels=_labels(label or ()), by=by, note=note, is_appeal=appeal
        )
    made = add_verdict(output, record, given)
    if as_json:
        typer.echo(made.model_dump_json())
        return
    marks = ", ".join(f"{name}={mark}" for name, mark in made.marks.items()) or "says nothing of a label"
    say(printable(f"{decision_id} {made.verdict}: {marks}"))


def verdicts(
    rows: Rows,
    sample: Annotated[
        Path,
        typer.Option(
            metavar="FILE", help="a sample of these rows, see `clipfleet sample`", rich_help_panel=LABELS
        ),
    ],
    output: SampledFile = None,
    set_name: SetName = None,
    place: Annotated[
        str | None,
        typer.Option(
            metavar="PLACE",
            callback=not_empty,
            help="where the decisions are recorded (default: where their job says)",
            rich_help_panel=OUTPUT,
        ),
    ] = None,
) -> None:
    """Fill a sample with reviewers' verdicts; with -o, print the decisions that are still to be judged."""
    from clipfleet.commands.results import row_reader
    from clipfleet.marking.files import to_mark_text, write_text
    from clipfleet.moderation.marked_samples import log_of, marked_sample
    from clipfleet.outputs import open_output

    with row_reader(rows) as reader:
        log = log_of(reader) if place is None else open_output(place)
        found = marked_sample(reader, log, sample, set_name)
    text = to_mark_text(found.rows, as_json=output is not None and output.suffix.lower() == ".jsonl")
    if output is None:
        typer.echo(text, nl=False)
    else:
        write_text(output, text)
        for decision_id in found.missing:
            typer.echo(decision_id)
    marked = sum(bool(row.get("verdict")) for row in found.rows)
    say(f"{counted(marked, 'mark')}, {counted(len(found.missing), 'decision')} still to be judged")


def prune(
    place: Place,
    dry_run: Annotated[
        bool,
        typer.Option(
            "--dry-run", help="show what would be removed, and remove nothing", rich_help_panel=OUTPUT
        ),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Remove records of decisions whose --keep-decisions is over, with the verdicts on them."""
    from clipfleet.moderation.log import POLICIES
    from clipfleet.moderation.retention import prune as remove_old
    from clipfleet.outputs import open_output

    output = open_output(place)
    if not any(output.names(f"{POLICIES}/")):
        raise UsageError(
            f"{output.uri} holds no decisions: give the output of a moderation job, or its --decisions"
        )
    found = remove_old(output, datetime.now(UTC).date(), is_dry=dry_run)
    if as_json:
        typer.echo(json.dumps({"record_files": found.record_files, "verdicts": found.verdicts}))
        return
    what = f"{counted(found.record_files, 'file')} of records and {counted(found.verdicts, 'verdict')}"
    say(f"would remove {what}" if dry_run else f"removed {what}")


def _labels(given: list[str] | tuple[str, ...]) -> dict[str, MarkVerdict]:
    from clipfleet.labels.marks import MarkVerdict

    found = {}
    for text in given:
        name, _, mark = text.rpartition("=")
        if not name or mark not in list(MarkVerdict):
            raise UsageError(f"--label {text!r}: write LABEL=yes, LABEL=no or LABEL=skip")
        found[name] = MarkVerdict(mark)
    return found
