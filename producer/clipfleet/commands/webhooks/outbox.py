"""The outbox of a command, and the endpoint that an argument names."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.errors import UsageError
from clipfleet.settings import Settings, checked

if TYPE_CHECKING:
    from clipfleet.contract.webhooks import Endpoint
    from clipfleet.ledger.events.outbox import Outbox

EndpointName = Annotated[
    str, typer.Argument(metavar="ID", help="as `clipfleet webhooks list` shows it", show_default=False)
]


@contextmanager
def open_outbox() -> Iterator[Outbox]:
    """Connect to the Redis of the settings."""
    from clipfleet.ledger.events.outbox import Outbox

    outbox = Outbox(checked(Settings).require_redis_url())
    try:
        yield outbox
    finally:
        outbox.close()


def named_endpoint(outbox: Outbox, endpoint_id: str) -> Endpoint:
    """The endpoint with this id; raises `UsageError` if there is none."""
    for endpoint in outbox.endpoints():
        if endpoint.endpoint_id == endpoint_id:
            return endpoint
    raise UsageError(f"{endpoint_id}: no such endpoint; `clipfleet webhooks list` shows all")
