"""The group `keys`: make, list and revoke what clients send."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.contract.jobs import Lane
from clipfleet.settings import checked
from clipfleet.terminal.console import say
from clipfleet.terminal.help import OUTPUT, SCHEDULING, SOURCE, Group, add_command, epilog
from clipfleet_gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from clipfleet_gateway.keys.key import Key
    from clipfleet_gateway.keys.ring import KeyRing

keys_app = typer.Typer(
    help="Make, list and revoke keys. The gateway's place holds their hashes, not the keys.",
    epilog=epilog("clipfleet-gateway keys add nightly --lane bulk"),
    cls=Group,
    no_args_is_help=True,
)

_Name = Annotated[
    str, typer.Argument(metavar="NAME", help="small letters, digits and hyphens", show_default=False)
]
_Lane = Annotated[
    Lane, typer.Option(help="lane of its batches and jobs", case_sensitive=False, rich_help_panel=SCHEDULING)
]
_Quota = Annotated[
    int | None,
    typer.Option(min=1, metavar="ITEMS", help="images and texts in a day (UTC)", rich_help_panel=SCHEDULING),
]
_Sources = Annotated[
    list[str] | None,
    typer.Option(
        "--source",
        metavar="PREFIX",
        help="folder or s3://BUCKET/PREFIX that it may read, besides public http(s), data: and its own "
        "files; repeatable",
        rich_help_panel=SOURCE,
    ),
]
_Json = Annotated[bool, typer.Option("--json", help="print one JSON object per key", rich_help_panel=OUTPUT)]


@add_command(keys_app, "clipfleet-gateway keys add nightly --source s3://photos/2026/")
def add(name: _Name, lane: _Lane = Lane.NORMAL, quota: _Quota = None, source: _Sources = None) -> None:
    """Make a key, and print it, alone and once, on stdout."""
    from clipfleet_gateway.keys.prefixes import checked_prefix

    prefixes = tuple(checked_prefix(one) for one in source or ())
    typer.echo(_ring().add(name, lane=lane, quota=quota, sources=prefixes))


@add_command(keys_app, "clipfleet-gateway keys list", "list")
def list_keys(as_json: _Json = False) -> None:
    """List all keys, revoked ones too: what they may do. What clients send is kept nowhere."""
    found = _ring().all()
    if not found and not as_json:
        say("there is no key yet: the first `clipfleet-gateway serve` makes one, `keys add NAME` another")
    for key in found:
        typer.echo(json.dumps(_described(key)) if as_json else _line(key))


@add_command(keys_app, "clipfleet-gateway keys revoke nightly")
def revoke(name: _Name) -> None:
    """Let a key open nothing any more, within 5 s. Its batches and jobs go on, and its name stays taken."""
    key = _ring().revoke(name)
    say(f"key {key.name} is revoked")


def _ring() -> KeyRing:
    from clipfleet.outputs import open_output, output_uri
    from clipfleet_gateway.keys.ring import KeyRing

    settings = checked(GatewaySettings)
    return KeyRing(open_output(output_uri(settings.require_gateway_output())))


def _described(key: Key) -> dict[str, object]:
    return key.model_dump(mode="json", exclude={"schema_version", "sha256"})


def _line(key: Key) -> str:
    quota = f"{key.quota:,} items a day" if key.quota else "no quota"
    sources = ", ".join(("public http(s)", "data:", "its own files", *key.sources))
    since = f"since {key.created_at:%Y-%m-%d}"
    ended = f", revoked {key.revoked_at:%Y-%m-%d %H:%M}" if key.revoked_at else ""
    return f"{key.name}: lane {key.lane}, {quota}, reads {sources}, {since}{ended}"
