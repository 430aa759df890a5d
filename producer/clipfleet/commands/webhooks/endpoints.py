"""Commands that add, list, change and remove endpoints. A secret is printed once, when it is made."""

from __future__ import annotations

import ipaddress
import json
from typing import Annotated
from urllib.parse import urlsplit

import typer

from clipfleet.commands.options import AsJson
from clipfleet.commands.webhooks.outbox import EndpointName, open_outbox
from clipfleet.commands.webhooks.tables import endpoint_object, endpoint_table, state_object, states
from clipfleet.contract.webhooks import Endpoint, EventType, new_secret
from clipfleet.errors import UsageError, problem_text
from clipfleet.terminal.console import print_table, say
from clipfleet.terminal.help import GENERAL, ROWS

_Url = Annotated[
    str, typer.Argument(metavar="URL", help="https:// address that takes POST requests", show_default=False)
]
_Events = Annotated[
    list[EventType] | None,
    typer.Option(
        "--event",
        metavar="TYPE",
        help="type of event to send, such as decision.flag or job.completed; repeatable (default: all)",
        rich_help_panel=ROWS,
    ),
]
_Policies = Annotated[
    list[str] | None,
    typer.Option(
        "--policy",
        metavar="NAME",
        help="policy whose decisions to send; repeatable (default: of all)",
        rich_help_panel=ROWS,
    ),
]
_Finish = Annotated[
    bool,
    typer.Option(
        "--finish", help="end a rotation: sign with the newer secret alone", rich_help_panel=GENERAL
    ),
]


def add(url: _Url, event: _Events = None, policy: _Policies = None, as_json: AsJson = False) -> None:
    """Send events to a URL from now on; prints the secret that signs them, alone and once, on stdout."""
    secret = new_secret()
    endpoint = _new_endpoint(url, secret, event or [], policy or [])
    with open_outbox() as outbox:
        outbox.add_endpoint(endpoint, secret)
    _show_secret(endpoint, secret, as_json=as_json)
    events = ", ".join(endpoint.events) or "all events"
    say(f"{endpoint.endpoint_id} gets {events}; the secret is shown this once")
    for note in _notes_on(endpoint.url):
        say(f"note: {note}", style="yellow")


def list_endpoints(as_json: AsJson = False) -> None:
    """List the endpoints, what waits for each and how the last attempt ended."""
    with open_outbox() as outbox:
        found = states(outbox.endpoints(), outbox.backlog(), outbox.failure_counts(), outbox.last_errors())
    if as_json:
        typer.echo(json.dumps({"endpoints": [state_object(state) for state in found]}))
    elif found:
        print_table(endpoint_table(found))
    else:
        say("no endpoints yet; `clipfleet webhooks add URL` adds one")


def remove(endpoint: EndpointName, as_json: AsJson = False) -> None:
    """Remove an endpoint, with what waits for it and its failures."""
    with open_outbox() as outbox:
        if not outbox.remove_endpoint(endpoint):
            outbox.endpoint(endpoint)
    _report(f"{endpoint} is removed", {"endpoint_id": endpoint, "removed": True}, as_json=as_json)


def rotate(endpoint: EndpointName, finish: _Finish = False, as_json: AsJson = False) -> None:
    """Change the secret: sign with a new one and the present one, until `rotate ID --finish`."""
    with open_outbox() as outbox:
        if finish:
            outbox.finish_rotation(endpoint)
            about = {"endpoint_id": endpoint, "secrets": 1}
            _report(f"{endpoint} is signed with the newer secret alone", about, as_json=as_json)
            return
        secret = new_secret()
        changed = outbox.rotate(endpoint, secret)
    _show_secret(changed, secret, as_json=as_json)
    say(
        f"{endpoint} is signed with both secrets; give this one to the receiver, then "
        f"`clipfleet webhooks rotate {endpoint} --finish`"
    )


def enable(endpoint: EndpointName, as_json: AsJson = False) -> None:
    """Deliver to an endpoint again that was disabled, as by an answer 410."""
    with open_outbox() as outbox:
        was_disabled = outbox.enable(endpoint)
        failed = outbox.failure_counts().get(endpoint, 0)
    words = f"{endpoint} is enabled" + ("" if was_disabled else " already")
    if failed:
        words += f"; `clipfleet webhooks replay {endpoint} --all` delivers its {failed:,} failures"
    _report(words, {"endpoint_id": endpoint, "changed": was_disabled}, as_json=as_json)


def _new_endpoint(url: str, secret: str, events: list[EventType], policies: list[str]) -> Endpoint:
    from pydantic import ValidationError

    chosen, named = tuple(dict.fromkeys(events)), tuple(dict.fromkeys(policies))
    try:
        return Endpoint.new(url, secret, events=chosen, policies=named)
    except ValidationError as error:
        problem = error.errors()[0]
        where = {"url": "URL", "policies": "--policy"}.get(str(problem["loc"][0]), "endpoint")
        raise UsageError(f"{where}: {problem_text(problem)}") from None


def _show_secret(endpoint: Endpoint, secret: str, *, as_json: bool) -> None:
    typer.echo(json.dumps({**endpoint_object(endpoint), "secret": secret}) if as_json else secret)


def _notes_on(url: str) -> list[str]:
    """What may keep deliveries to a URL from being made, or safe."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    notes = []
    if host == "localhost" or host.endswith(".localhost") or not _is_public(host):
        notes.append(
            f"{host} is not a public address: a worker sends nothing there unless its "
            "CLIPFLEET_ALLOW_PRIVATE has it"
        )
    elif parts.scheme == "http":
        notes.append("http is not encrypted: the events can be read on their way")
    return notes


def _is_public(host: str) -> bool:
    """Whether a host is a name, which workers resolve, or a public address."""
    try:
        return ipaddress.ip_address(host).is_global
    except ValueError:
        return True


def _report(words: str, about: dict[str, object], *, as_json: bool) -> None:
    if as_json:
        typer.echo(json.dumps(about))
    else:
        say(words)
