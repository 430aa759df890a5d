"""Endpoints and failures as tables and JSON objects. No secret is in any of them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.table import Table
from rich.text import Text

from clipfleet.terminal.console import printable
from clipfleet.terminal.lists import new_table

if TYPE_CHECKING:
    from clipfleet.contract.webhooks import Endpoint, FailedDelivery


@dataclass(frozen=True, slots=True)
class EndpointState:
    """An endpoint, and how it does."""

    endpoint: Endpoint
    pending: int  # deliveries
    failed: int  # deliveries, of the last 7 days
    last_error: str  # of the last attempt; empty: a success, or none yet

    @property
    def words(self) -> str:
        """Its state for people."""
        if self.endpoint.disabled is not None:
            return f"disabled: {self.endpoint.disabled}"
        rotation = "two secrets" if len(self.endpoint.secret_ids) > 1 else ""
        return "; ".join(filter(None, [rotation, self.last_error])) or "ok"


def endpoint_object(endpoint: Endpoint) -> dict[str, Any]:
    """An endpoint as `--json` prints it."""
    found = endpoint.model_dump(mode="json", exclude={"secret_ids"})
    return {**found, "secrets": len(endpoint.secret_ids)}


def state_object(state: EndpointState) -> dict[str, Any]:
    """An endpoint with its state as `--json` prints it."""
    about = {"pending": state.pending, "failed": state.failed, "last_error": state.last_error or None}
    return endpoint_object(state.endpoint) | about


def endpoint_table(states: Iterable[EndpointState]) -> Table:
    """Endpoints as a table."""
    table = new_table("id", "url", "events", "policies", "pending", "failed", "state")
    for state in states:
        endpoint = state.endpoint
        _add(
            table, endpoint.endpoint_id, endpoint.url, ", ".join(endpoint.events) or "all",
            ", ".join(endpoint.policies) or "all", f"{state.pending:,}", f"{state.failed:,}", state.words,
        )  # fmt: skip
    return table


def failure_object(failure: FailedDelivery) -> dict[str, Any]:
    """A failure as `--json` prints it."""
    return {
        "endpoint_id": failure.endpoint_id, "event_id": failure.event_id, "type": failure.type,
        "attempts": failure.attempts, "error": failure.error, "failed_at": failure.failed_at.isoformat(),
    }  # fmt: skip


def failure_table(failures: Iterable[FailedDelivery]) -> Table:
    """Failures as a table."""
    table = new_table("failed (UTC)", "endpoint", "event", "type", "attempts", "error")
    for failure in failures:
        _add(
            table, f"{failure.failed_at:%Y-%m-%d %H:%M:%S}", failure.endpoint_id, failure.event_id,
            failure.type, f"{failure.attempts:,}", failure.error,
        )  # fmt: skip
    return table


def states(
    endpoints: Iterable[Endpoint],
    backlog: Mapping[str, int],
    failed: Mapping[str, int],
    errors: Mapping[str, str],
) -> list[EndpointState]:
    """Endpoints with what the outbox says of each."""
    return [
        EndpointState(one, backlog.get(name, 0), failed.get(name, 0), errors.get(name, ""))
        for one in endpoints
        for name in [one.endpoint_id]
    ]


def _add(table: Table, *cells: str) -> None:
    table.add_row(*(Text(printable(cell)) for cell in cells))
