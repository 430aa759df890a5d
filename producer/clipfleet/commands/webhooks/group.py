"""The group `webhooks`: who receives events, what could not be delivered."""

from __future__ import annotations

import typer

from clipfleet.commands.webhooks import endpoints, failures
from clipfleet.terminal.help import Group, add_command, epilog

webhooks_app = typer.Typer(
    help="Send decisions and the ends of jobs and batches to URLs, as signed requests that workers deliver.",
    epilog=epilog("clipfleet webhooks add https://example.com/hooks"),
    cls=Group,
    no_args_is_help=True,
)

for _function, _example, _name in (
    (endpoints.add, "clipfleet webhooks add https://example.com/hooks", None),
    (endpoints.list_endpoints, "clipfleet webhooks list", "list"),
    (endpoints.remove, "clipfleet webhooks remove whe-0123456789ab", None),
    (endpoints.rotate, "clipfleet webhooks rotate whe-0123456789ab", None),
    (endpoints.enable, "clipfleet webhooks enable whe-0123456789ab", None),
    (failures.failures, "clipfleet webhooks failures whe-0123456789ab", None),
    (failures.replay, "clipfleet webhooks replay whe-0123456789ab --since 2026-12-03", None),
):
    add_command(webhooks_app, _example, _name)(_function)
