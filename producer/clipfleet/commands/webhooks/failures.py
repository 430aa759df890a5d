"""Commands on what could not be delivered: list it, deliver it again."""

from __future__ import annotations

import json
from datetime import UTC, date, datetime, time, timedelta
from typing import Annotated

import typer

from clipfleet.commands.options import AsJson
from clipfleet.commands.webhooks.outbox import EndpointName, open_outbox
from clipfleet.commands.webhooks.tables import failure_object, failure_table
from clipfleet.errors import UsageError
from clipfleet.terminal.console import print_table, say
from clipfleet.terminal.help import ROWS
from clipfleet.wording import counted

_DAY_CHARACTERS = len("2026-12-03")

_AnyEndpoint = Annotated[
    str | None,
    typer.Argument(metavar="[ID]", help="an endpoint (default: all of them)", show_default=False),
]
_Limit = Annotated[
    int, typer.Option(min=1, max=100_000, help="number of failures to show", rich_help_panel=ROWS)
]
_EventIds = Annotated[
    list[str] | None,
    typer.Option("--event-id", metavar="ID", help="a failed event; repeatable", rich_help_panel=ROWS),
]
_Since = Annotated[
    str | None,
    typer.Option(
        metavar="TIME", help="what failed from this day or time (UTC) on, as 2026-12-03T09:30",
        rich_help_panel=ROWS,
    ),
]  # fmt: skip
_Until = Annotated[
    str | None,
    typer.Option(metavar="TIME", help="what failed up to this day or time (UTC)", rich_help_panel=ROWS),
]
_All = Annotated[bool, typer.Option("--all", help="all that failed", rich_help_panel=ROWS)]


def failures(endpoint: _AnyEndpoint = None, limit: _Limit = 50, as_json: AsJson = False) -> None:
    """List events of the last 7 days that could not be delivered, the latest first."""
    with open_outbox() as outbox:
        if endpoint is not None:
            outbox.endpoint(endpoint)
        found = outbox.failures(endpoint, limit)
    if as_json:
        typer.echo(json.dumps({"failures": [failure_object(one) for one in found]}))
    elif found:
        print_table(failure_table(found))
    else:
        say("no failures in the last 7 days")


def replay(
    endpoint: EndpointName,
    event_id: _EventIds = None,
    since: _Since = None,
    until: _Until = None,
    all_failures: _All = False,
    as_json: AsJson = False,
) -> None:
    """Deliver failed events again, with the same ids: some, those of a range of time, or all."""
    ways = (bool(event_id), since is not None or until is not None, all_failures)
    if sum(ways) != 1:
        raise UsageError("say what to replay: --event-id ID, or --since and --until TIME, or --all")
    begin, end = _moment(since, "--since"), _moment(until, "--until", is_end=True)
    with open_outbox() as outbox:
        found = outbox.endpoint(endpoint)
        if found.disabled is not None:
            raise UsageError(
                f"{endpoint}: is disabled ({found.disabled}); `clipfleet webhooks enable {endpoint}` first"
            )
        count = outbox.replay(endpoint, event_id or (), since=begin, until=end)
    if as_json:
        typer.echo(json.dumps({"endpoint_id": endpoint, "replayed": count}))
    elif count:
        say(f"{counted(count, 'event')} will be sent to {endpoint} again")
    else:
        say(f"nothing to replay; `clipfleet webhooks failures {endpoint}` shows what has failed")


def _moment(text: str | None, option: str, *, is_end: bool = False) -> datetime | None:
    """The moment that a day or time stands for; of a day its beginning, or its end."""
    if text is None:
        return None
    try:
        if len(text) <= _DAY_CHARACTERS:
            day = datetime.combine(date.fromisoformat(text), time.min, UTC)
            return day + timedelta(days=1) - timedelta.resolution if is_end else day
        moment = datetime.fromisoformat(text)
    except (ValueError, OverflowError):
        raise UsageError(
            f"{option} {text}: not a day or time; write 2026-12-03 or 2026-12-03T09:30"
        ) from None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)
