"""The command `serve`."""

from __future__ import annotations

import importlib.util
import logging
from typing import Annotated

import typer

from clipfleet.errors import UsageError
from clipfleet.settings import checked
from clipfleet.terminal.console import say
from clipfleet.terminal.help import MACHINE
from clipfleet_gateway.settings import GatewaySettings

_Host = Annotated[str, typer.Option(metavar="ADDRESS", help="address to listen at", rich_help_panel=MACHINE)]
_Port = Annotated[int, typer.Option(min=0, max=65535, help="port; 0: any", rich_help_panel=MACHINE)]
_OF_THE_EXTRA = ("aiohttp", "prometheus_client")


def serve(host: _Host = "127.0.0.1", port: _Port = 8080) -> None:
    """Serve HTTP until SIGTERM or Ctrl-C. The first start makes a key and prints it on stdout, once."""
    if any(importlib.util.find_spec(name) is None for name in _OF_THE_EXTRA):
        raise UsageError("the gateway needs an extra: pip install 'clipfleet[gateway]'")
    from clipfleet_gateway.server import run
    from clipfleet_gateway.services import Services

    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    with Services(checked(GatewaySettings)) as services:
        token = services.keys.first()
        if token is not None:
            say("the first key, which is shown this once (`clipfleet-gateway keys add` makes more):")
            typer.echo(token)
        run(services, host, port, on_listening=lambda url: say(f"clipfleet-gateway listens at {url}"))
