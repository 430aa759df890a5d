"""The client of a command. Celery, redis-py and pyarrow are imported here, not by `--help` or `--version`."""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipfleet.terminal.console import say_trouble

if TYPE_CHECKING:
    from clipfleet.client import Client


def open_client() -> Client:
    """Connect to the Redis of the settings; troubles that may pass are printed."""
    from clipfleet.client import Client

    return Client(on_trouble=say_trouble)
