"""The ledger's metrics without a worker: for who starts workers when there is work, and ends them when not.

Needs prometheus_client, and nothing else of the worker's packages.
"""

from __future__ import annotations

import logging
import threading
from http import HTTPStatus

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger import Backlog, Ledger
from clipfleet.redis_connection import connect
from clipfleet_worker.metrics import FamiliesCollector, metrics_page
from clipfleet_worker.metrics.ledger import LEDGER_FAMILIES
from clipfleet_worker.status_server import Page, StatusServer

log = logging.getLogger(__name__)

_PATIENCE_SECONDS = 3.0  # Prometheus waits ten, and asks again soon


def hasty_ledger(url: str) -> Ledger:
    """The ledger for who would rather hear nothing than hear it late."""
    return Ledger(url, client=connect(url, retries=0, patience_seconds=_PATIENCE_SECONDS))


def run_exporter(ledger: Ledger, host: str, port: int, ending: threading.Event) -> None:
    """Serve `/metrics` and `/healthz` until `ending` is set; the ledger is asked when somebody asks us.

    Raises:
        UsageError: the address cannot be used.
    """

    def backlog() -> Backlog | None:
        try:
            return ledger.backlog()
        except RedisUnavailableError as error:  # then there are no figures: nothing is better than old ones
            log.warning("no figures: %s", error, extra={"action": "backlog_failed"})
            return None

    metrics = metrics_page(FamiliesCollector(LEDGER_FAMILIES, backlog))
    server = StatusServer(host, port, {"/metrics": metrics, "/healthz": lambda: Page(HTTPStatus.OK, b"{}\n")})
    server.start()
    try:
        ending.wait()
    finally:
        server.stop()
        ledger.close()
