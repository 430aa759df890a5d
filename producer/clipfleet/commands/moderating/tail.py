"""`clipfleet tail`: decisions as they are made."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.commands.options import AsJson, not_empty
from clipfleet.contract.policies import DecisionStatus
from clipfleet.errors import RedisUnavailableError
from clipfleet.settings import Settings, checked
from clipfleet.terminal.console import printable, say, say_trouble
from clipfleet.terminal.decisions import reasons_words
from clipfleet.terminal.help import GENERAL, ROWS
from clipfleet.terminal.program import EXIT_INTERRUPTED

if TYPE_CHECKING:
    from clipfleet.ledger.events.decision_stream import DecisionStream, StreamedDecision

_AWAY_SECONDS = 1.0  # between tries while Redis is away


def tail(
    status: Annotated[
        list[DecisionStatus] | None,
        typer.Option(help="these decisions only; repeatable (default: all)", rich_help_panel=ROWS),
    ] = None,
    policy: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", callback=not_empty, help="decisions of this policy only", rich_help_panel=ROWS
        ),
    ] = None,
    group: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            callback=not_empty,
            help="readers with the same name share the decisions, and continue where they stopped",
            rich_help_panel=GENERAL,
        ),
    ] = "tail",
    from_start: Annotated[
        bool,
        typer.Option(
            "--from-start", help="a new group begins with the oldest decision", rich_help_panel=ROWS
        ),
    ] = False,
    no_follow: Annotated[
        bool,
        typer.Option("--no-follow", help="end once there are no more decisions", rich_help_panel=GENERAL),
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Print decisions as they are made, one line each."""
    from clipfleet.ledger.events.decision_stream import DecisionStream

    url = checked(Settings).require_redis_url()
    wanted = frozenset(status or DecisionStatus)
    stream = DecisionStream(url, group, from_start=from_start, on_gap=_say_gap)
    try:
        _print_all(stream, wanted, policy, as_json=as_json, follows=not no_follow)
    except KeyboardInterrupt:
        raise typer.Exit(EXIT_INTERRUPTED) from None
    finally:
        stream.close()


def _say_gap() -> None:
    say(
        "decisions were removed from the stream before this group has read them: the stream keeps about the "
        "last 100,000; the records of the decisions have all",
        style="yellow",
    )


def _print_all(
    stream: DecisionStream,
    wanted: frozenset[DecisionStatus],
    policy: str | None,
    *,
    as_json: bool,
    follows: bool,
) -> None:
    is_away = has_read = False
    while True:
        try:
            found = stream.read(wait=follows)
            if found:
                _print(found, wanted, policy, as_json=as_json)
                stream.acknowledge(found)
        except RedisUnavailableError as error:
            if not has_read or not follows:
                raise
            if not is_away:
                say_trouble(f"{error}; waiting for it")
            is_away = True
            time.sleep(_AWAY_SECONDS)
            continue
        has_read, is_away = True, False
        if not found and not follows:
            return


def _print(
    found: Sequence[StreamedDecision],
    wanted: frozenset[DecisionStatus],
    policy: str | None,
    *,
    as_json: bool,
) -> None:
    """Print and flush: only then may they be acknowledged."""
    for one in found:
        if one.status in wanted and policy in (None, one.policy):
            typer.echo(json.dumps(one.record, ensure_ascii=False) if as_json else printable(_line(one)))
    sys.stdout.flush()


def _line(one: StreamedDecision) -> str:
    """`flag  uploads  cats/1.jpg  weapons: weapon 0.93 >= 0.5  dec-...`."""
    record = one.record
    error = record.get("error")
    if isinstance(error, dict):
        why = f"{error.get('code')}: {error.get('detail')}"
    else:
        why = reasons_words([reason for reason in record.get("reasons") or () if isinstance(reason, dict)])
    words = (one.status.value, one.policy, str(record.get("item_id")), why, str(record.get("decision_id")))
    return "  ".join(words)
