"""`clipfleet moderate`: decide on images by a policy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from clipfleet.commands.moderating.replaying import Against, Changes, ReplayOf, replay
from clipfleet.commands.options import not_empty
from clipfleet.commands.stores.arguments import AsOf
from clipfleet.commands.submitting import Instead, Submit, refused, with_job_options
from clipfleet.contract.policies import MAX_KEEP_DAYS
from clipfleet.errors import UsageError
from clipfleet.submit.options import OF_THE_VECTORS, JobOptions
from clipfleet.terminal.help import LABELS, OUTPUT

PolicyOption = Annotated[
    Path,
    typer.Option(
        "--policy",
        metavar="FILE",
        help="the policy, a .yaml or .json, see `clipfleet policy check`",
        rich_help_panel=LABELS,
    ),
]
Decisions = Annotated[
    str | None,
    typer.Option(
        metavar="PLACE",
        callback=not_empty,
        help="where the records of the decisions are added: a folder or s3://BUCKET/PREFIX (default: the "
        "output, unless that is redis://)",
        rich_help_panel=OUTPUT,
    ),
]
KeepDecisions = Annotated[
    int | None,
    typer.Option(
        metavar="DAYS",
        min=1,
        max=MAX_KEEP_DAYS,
        help="how long the records of the decisions are kept (default: for ever)",
        rich_help_panel=OUTPUT,
    ),
]
_OF_THE_POLICY = "the policy says it, because its thresholds are for one model: leave it out"


@with_job_options(
    **{name: refused(name, _OF_THE_POLICY) for name in OF_THE_VECTORS if name != "precision"},
)
def moderate(
    source: Annotated[
        str | None,
        typer.Argument(
            metavar="SOURCE", help="as of `clipfleet classify`; none with --replay", show_default=False
        ),
    ] = None,
    *,
    policy: PolicyOption,
    decisions: Decisions = None,
    keep_decisions: KeepDecisions = None,
    replay_of: ReplayOf = None,
    against: Against = None,
    changes: Changes = None,
    as_of: AsOf = None,
    options: JobOptions,
) -> Submit | Instead:
    """Decide on every image by a policy: flag, review or allow; `undecided` where it could not be judged."""
    if (source is None) == (replay_of is None):
        raise UsageError("give a SOURCE to decide on, or what to decide again as --replay JOB|OUTPUT|STORE")
    if replay_of is not None:
        if decisions is not None or keep_decisions is not None:
            raise UsageError("the decisions of a --replay are not recorded: leave --decisions out")
        return Instead(
            lambda as_json: replay(
                replay_of, policy, against=against, as_of=as_of, changes=changes, options=options,
                as_json=as_json,
            )
        )  # fmt: skip
    for name, value in {"--against": against, "--changes": changes, "--as-of": as_of}.items():
        if value is not None:
            raise UsageError(f"{name} goes with --replay")
    given = source or ""
    return lambda client: client.moderate(
        given, policy, decisions=decisions, keep_decisions_days=keep_decisions, options=options
    )
