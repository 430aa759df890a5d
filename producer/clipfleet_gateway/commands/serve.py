"""The command `serve`."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.errors import (
    OutputUnavailableError,
    OutputUnreachableError,
    RedisUnavailableError,
    UsageError,
)
from clipfleet.settings import checked
from clipfleet.terminal.console import say
from clipfleet.terminal.help import MACHINE, OUTPUT
from clipfleet_gateway.settings import GatewaySettings

if TYPE_CHECKING:
    from clipfleet_gateway.services import Services

_Host = Annotated[str, typer.Option(metavar="ADDRESS", help="address to listen at", rich_help_panel=MACHINE)]
_Port = Annotated[int, typer.Option(min=0, max=65535, help="port; 0: any", rich_help_panel=MACHINE)]
_FirstKey = Annotated[
    bool,
    typer.Option(
        "--first-key/--no-first-key",
        help="make a key if there is none, and print it; use --no-first-key where stdout is kept as a log",
        rich_help_panel=OUTPUT,
    ),
]
_OF_THE_EXTRA = ("aiohttp", "prometheus_client")


def serve(host: _Host = "127.0.0.1", port: _Port = 8080, first_key: _FirstKey = True) -> None:
    """Serve HTTP until SIGTERM or Ctrl-C. The first start makes a key and prints it on stdout, once."""
    if any(importlib.util.find_spec(name) is None for name in _OF_THE_EXTRA):
        raise UsageError("the gateway needs an extra: pip install 'clipfleet[gateway]'")
    from clipfleet_gateway.server import run
    from clipfleet_gateway.services import Services

    # Other libraries log too much, such as where they found credentials.
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(levelname)s %(name)s: %(message)s")
    for ours in ("clipfleet", "clipfleet_gateway"):
        logging.getLogger(ours).setLevel(logging.INFO)
    with Services(checked(GatewaySettings)) as services:
        if first_key:
            with _troubles_of_the_place():  # before the gateway tends to what is in it
                services.keys.names()

        def on_listening(url: str) -> None:
            with _troubles_of_the_place():
                token = services.keys.first() if first_key else None
            if token is not None:
                say("the first key, which is shown this once (`clipfleet-gateway keys add` makes more):")
                typer.echo(token)
            say(f"clipfleet-gateway keeps keys, files and results in {services.place.uri}")
            say(f"clipfleet-gateway listens at {url}")
            _warn_without_redis(services)

        run(services, host, port, on_listening=on_listening)


@contextmanager
def _troubles_of_the_place() -> Iterator[None]:
    """Name the setting in what is wrong with the place."""
    try:
        yield
    except OutputUnavailableError as error:
        raise OutputUnreachableError(f"CLIPFLEET_GATEWAY_OUTPUT: {error}") from None


def _warn_without_redis(services: Services) -> None:
    try:
        services.client.workers()
    except RedisUnavailableError as error:
        say(f"Redis does not answer: requests that need it get 503 until it does ({error})")
