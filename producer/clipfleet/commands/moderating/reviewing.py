"""Commands on recorded decisions: explain one, and add a reviewer's verdict."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands.options import AsJson, not_empty
from clipfleet.errors import UsageError
from clipfleet.terminal.console import printable, say
from clipfleet.terminal.help import LABELS, OUTPUT

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
            help="whether the image shows a label; repeatable (default: the labels of the reasons, yes if "
            "the decision is upheld, else no)",
            rich_help_panel=LABELS,
        ),
    ] = None,
    by: Annotated[str, typer.Option(metavar="NAME", help="who says so", rich_help_panel=LABELS)] = "",
    note: Annotated[str, typer.Option(metavar="TEXT", help="for people", rich_help_panel=LABELS)] = "",
    appeal: Annotated[
        bool, typer.Option("--appeal", help="somebody objected to the decision", rich_help_panel=LABELS)
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Add a reviewer's verdict on a decision; earlier ones stay."""
    from clipfleet.moderation.explaining import explain as explained
    from clipfleet.moderation.verdicts import Outcome, add_verdict, make_verdict
    from clipfleet.outputs import open_output

    if said not in list(Outcome):
        raise UsageError(f"verdict {said!r}: say upheld or overturned")
    output = open_output(place)
    record = explained(output, decision_id).record
    made = make_verdict(record, Outcome(said), _labels(label or ()), by=by, note=note, is_appeal=appeal)
    add_verdict(output, made)
    if as_json:
        typer.echo(made.model_dump_json())
        return
    marks = ", ".join(f"{name}={mark}" for name, mark in made.labels.items()) or "no labels"
    say(printable(f"{decision_id} {made.verdict}: {marks}"))


def _labels(given: list[str] | tuple[str, ...]) -> dict[str, MarkVerdict]:
    from clipfleet.labels.marks import MarkVerdict

    found = {}
    for text in given:
        name, _, mark = text.rpartition("=")
        if not name or mark not in list(MarkVerdict):
            raise UsageError(f"--label {text!r}: write LABEL=yes, LABEL=no or LABEL=skip")
        found[name] = MarkVerdict(mark)
    return found
