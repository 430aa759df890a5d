"""The broker that carries hints, where it is another server than the ledger."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from kombu.exceptions import KombuError
from redis.exceptions import RedisError

from clipfleet.errors import UsageError
from clipfleet.hints import make_app
from clipfleet.redis_connection import masked
from clipfleet_worker.doctor import Finding, fine, problem
from clipfleet_worker.settings import WorkerSettings

_PATIENCE_SECONDS = 5.0


@dataclass(frozen=True, slots=True)
class BrokerCheck:
    """See `Check`, and the module."""

    settings: WorkerSettings
    name: str = "broker"
    limit_seconds: float = 30.0

    def findings(self) -> Iterator[Finding]:
        try:
            url = self.settings.require_broker_url()
        except UsageError as error:
            yield problem("the broker cannot be reached", str(error))
            return
        if self.settings.broker_url is None:
            yield fine("hints go through the ledger's Redis")
            return
        where = masked(url)
        try:
            with make_app(url).connection_for_write(connect_timeout=_PATIENCE_SECONDS) as connection:
                connection.ensure_connection(max_retries=1, interval_start=0.1, timeout=_PATIENCE_SECONDS)
        except UsageError as error:
            yield problem("the broker cannot be reached", str(error).replace("REDIS_URL", "BROKER_URL"))
        except (KombuError, RedisError, OSError) as error:
            said = " ".join(str(error).split()).partition(" : <")[0]  # what follows is the inside of redis-py
            yield problem(
                f"the broker at {where} does not let us in: {said}",
                "is it running, and is CLIPFLEET_BROKER_URL right?",
            )
        else:
            yield fine(f"the broker at {where} lets us in")
