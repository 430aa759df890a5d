"""The outbox of a command, and the argument that names an endpoint."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Annotated

import typer

from clipfleet.settings import Settings, checked

if TYPE_CHECKING:
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
