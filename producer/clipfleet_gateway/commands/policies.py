"""The group `policies`: add, list and remove what `/v1/moderations` decides by."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.settings import checked
from clipfleet.terminal.console import say
from clipfleet.terminal.help import OUTPUT, Group, add_command, epilog
from clipfleet_gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from clipfleet_gateway.policies.shelf import PolicyShelf

policies_app = typer.Typer(
    help="Add, list and remove policies, which requests name as the model of /v1/moderations.",
    epilog=epilog("clipfleet-gateway policies add uploads.yaml"),
    cls=Group,
    no_args_is_help=True,
)

_File = Annotated[
    Path, typer.Argument(metavar="FILE", help="a policy, see docs/moderation.md", show_default=False)
]
_Name = Annotated[str, typer.Argument(metavar="NAME", help="name of the policy", show_default=False)]
_Json = Annotated[
    bool, typer.Option("--json", help="print one JSON object per policy", rich_help_panel=OUTPUT)
]


@add_command(policies_app, "clipfleet-gateway policies add uploads.yaml")
def add(file: _File) -> None:
    """Let the name of a policy mean this file, within 5 s. Earlier ones remain as NAME@DIGITS."""
    from clipfleet.moderation.policy_files import read_policy_file

    stored, is_new = _shelf().add(read_policy_file(file))
    say(f"policy {stored.name} is {'now' if is_new else 'already'} {stored.full_name}")


@add_command(policies_app, "clipfleet-gateway policies list", "list")
def list_policies(as_json: _Json = False) -> None:
    """List all policies: the current one of each name, and the earlier ones."""
    from clipfleet_gateway.policies.stored import SHOWN_DIGITS

    shelf = _shelf()
    names = shelf.names()
    if not names and not as_json:
        say("there is no policy yet: `clipfleet-gateway policies add FILE` adds one")
    for name in names:
        now, versions = shelf.current(name), shelf.versions(name)
        if now is None or versions is None:  # removed meanwhile
            continue
        policy = shelf.load(name, now.sha256).policy
        earlier = [sha256 for sha256 in versions.all if sha256 != now.sha256]
        if as_json:
            described = {**now.model_dump(mode="json", exclude={"schema_version"}), "earlier": earlier}
            typer.echo(json.dumps({**described, "version": policy.version, "model": policy.model}))
            continue
        version = f", version {policy.version}" if policy.version else ""
        others = "".join(f", before {name}@{sha256[:SHOWN_DIGITS]}" for sha256 in earlier)
        since = f"since {now.added_at:%Y-%m-%d %H:%M}"
        typer.echo(f"{name}@{now.sha256[:SHOWN_DIGITS]}: model {policy.model}{version}, {since}{others}")


@add_command(policies_app, "clipfleet-gateway policies remove uploads")
def remove(name: _Name) -> None:
    """Let a name mean no policy any more, within 5 s. Batches and jobs that name it go on."""
    _shelf().remove(name)
    say(f"policy {name} is removed")


def _shelf() -> PolicyShelf:
    from clipfleet.outputs import open_output, output_uri
    from clipfleet_gateway.policies.shelf import PolicyShelf

    settings = checked(GatewaySettings)
    return PolicyShelf(open_output(output_uri(settings.require_gateway_output())))
