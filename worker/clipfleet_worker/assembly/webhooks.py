"""Builds the courier, which delivers webhook events, from the settings."""

from __future__ import annotations

from clipfleet.ledger.events.outbox import Outbox
from clipfleet_worker.fetch.http.address_guard import AddressGuard
from clipfleet_worker.process.watchdog import Watchdog
from clipfleet_worker.settings import WorkerSettings
from clipfleet_worker.webhooks.courier import REQUEST_SECONDS, Courier
from clipfleet_worker.webhooks.poster import Poster


def make_courier(settings: WorkerSettings, outbox: Outbox, watchdog: Watchdog) -> Courier:
    """Make the courier; its requests may go where fetches may."""
    guard = AddressGuard(settings.private_networks, settings.ports)
    poster = Poster(guard, contact=settings.contact, timeout_seconds=REQUEST_SECONDS)
    return Courier(outbox, poster, pulse=watchdog.pulse("courier"))
