"""`clipfleet moderate --replay`: who changes side under another policy."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich import box
from rich.table import Table
from rich.text import Text

from clipfleet.commands.connecting import open_client
from clipfleet.commands.following import interruptible
from clipfleet.commands.naming import job_or_output
from clipfleet.commands.options import job_ids, not_empty
from clipfleet.contract.policies import DecisionStatus
from clipfleet.submit.options import JobOptions
from clipfleet.terminal.console import print_table, printable, say, say_trouble
from clipfleet.terminal.decisions import reasons_words
from clipfleet.terminal.help import OUTPUT, SOURCE
from clipfleet.terminal.progress import JobProgress
from clipfleet.terminal.up_around import afterwards
from clipfleet.wording import counted

if TYPE_CHECKING:
    from clipfleet.client import Client, JobHandle
    from clipfleet.ledger.jobs import JobStatus
    from clipfleet.replay.outcome import Replayed

_SHOWN = 20  # changes in the table
_SHOWN_REASONS = 2  # of each side

ReplayOf = Annotated[
    str | None,
    typer.Option(
        "--replay",
        metavar="JOB|OUTPUT|STORE",
        callback=not_empty,
        help="in place of SOURCE: decide again on the stored scores or vectors of a job, or on the vectors "
        "of a store, and list what changes side; nothing is recorded or announced",
        rich_help_panel=SOURCE,
        autocompletion=job_ids,
    ),
]
Against = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="with --replay: the policy that decides now (default: that of the moderation job)",
        rich_help_panel=SOURCE,
    ),
]
Changes = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE",
        help="with --replay: write all items that change side to a .jsonl, .csv or .parquet file",
        rich_help_panel=OUTPUT,
    ),
]


def replay(
    origin: str,
    policy: Path,
    *,
    against: Path | None,
    as_of: str | None,
    changes: Path | None,
    options: JobOptions,
    as_json: bool,
) -> None:
    """Decide by another policy, and print who changes side.

    Args:
        origin: a job, an output or a store, as the user names it.
        policy: file of the new policy.
        against: file of the old one; None: that of the moderation job.
        as_of: version of the store.
        changes: file of all items that change side.
        options: see `Client.replay`; the job id is ignored.
        as_json: print one object.
    """
    started = time.monotonic()
    with open_client() as client, interruptible(_words_after_interrupt):
        found = client.replay(
            job_or_output(client, origin), policy, against=against, as_of=as_of, changes=changes,
            wait=lambda job: _wait(client, job, quiet=as_json),
            options=options.model_copy(update={"job_id": None}),
        )  # fmt: skip
    seconds = time.monotonic() - started
    if as_json:
        typer.echo(json.dumps({**found.document(), "seconds": round(seconds, 3)}, ensure_ascii=False))
        return
    _print(found, seconds)
    if options.output is not None and found.from_scores:
        say(f"the stored scores were enough: nothing was written to {options.output}")


def _wait(client: Client, job: JobHandle, *, quiet: bool) -> JobStatus:
    if not quiet:
        policy = job.job.policy
        say(f"job {job.job_id} decides by policy {policy and policy.name} -> {job.output}")
    with JobProgress(client.workers, quiet=quiet) as progress:
        return job.wait(on_progress=progress.update, on_trouble=say_trouble)


def _words_after_interrupt() -> str:
    again = afterwards("clipfleet", *sys.argv[1:])
    return f"Cancelled; nothing was recorded. Run it again with `{again}`"


def _print(found: Replayed, seconds: float) -> None:
    by = f"{'its' if found.items == 1 else 'their'} {'scores' if found.from_scores else 'vectors'}"
    typer.echo(printable(f"{found.source}: {counted(found.items, 'item')} by {by} in {seconds:.1f} s"))
    typer.echo(printable(f"old  {_policy_words(found.old_policy)}"))
    typer.echo(printable(f"new  {_policy_words(found.new_policy)}"))
    print_table(_matrix(found))
    change = "changes" if found.changed == 1 else "change"
    typer.echo(f"{counted(found.changed, 'item')} of {found.items:,} {change} side")
    if found.shown:
        print_table(_changes(found))
    rest = found.changed - len(found.shown[:_SHOWN])
    if found.changes_file is not None:
        say(f"{counted(found.changed, 'change')} -> {found.changes_file}")
    elif rest:
        say(f"and {rest:,} more: --changes FILE.csv writes all of them")
    if found.failed:
        say(_failed_words(found), style="yellow")
    if found.decided_otherwise:
        say(_rounding_words(found))
    if found.outputs is not None:
        say(f"the decided rows are in {found.outputs[0]} and {found.outputs[1]}")


def _policy_words(policy: Mapping[str, str]) -> str:
    version = f" {policy['version']}" if policy["version"] else ""
    return f"{policy['name']}{version} ({policy['sha256'][:12]})"


def _matrix(found: Replayed) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    table.add_column("old \\ new")
    for new in DecisionStatus:
        table.add_column(new.value, justify="right")
    for old in DecisionStatus:
        counts = [found.counts.get((old.value, new.value), 0) for new in DecisionStatus]
        table.add_row(old.value, *(f"{count:,}" for count in counts))
    return table


def _changes(found: Replayed) -> Table:
    table = Table(box=box.SIMPLE_HEAD, show_edge=False, pad_edge=False)
    for heading in ("id", "old", "new", "old reasons", "new reasons"):
        table.add_column(heading, overflow="fold")
    for row in found.shown[:_SHOWN]:
        cells = (
            row["item_id"],
            row["old"],
            row["new"],
            reasons_words(row["old_reasons"], _SHOWN_REASONS),
            reasons_words(row["new_reasons"], _SHOWN_REASONS),
        )
        table.add_row(*(Text(printable(cell)) for cell in cells))
    return table


def _failed_words(found: Replayed) -> str:
    count = sum(found.failed.values())
    codes = ", ".join(
        f"{code}: {number:,}, for example {found.examples[code]}"
        for code, number in sorted(found.failed.items(), key=lambda pair: -pair[1])
    )
    stay = "stays" if count == 1 else "stay"
    without = "" if found.from_scores else " without a vector"
    return f"{counted(count, 'item')}{without} failed and {stay} undecided ({codes})"


def _rounding_words(found: Replayed) -> str:
    return (
        f"{counted(found.decided_otherwise, 'item')} near a threshold were decided otherwise when the images "
        "were read: stored vectors are rounded, and both sides are decided from them"
    )
