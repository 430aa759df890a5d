"""The exporter and a Redis that does not answer."""

from __future__ import annotations

import socket
import threading
from contextlib import closing

import pytest

from clipfleet.errors import RedisUnavailableError
from clipfleet_worker.status.metrics.ledger import hasty_ledger


def test_a_redis_that_hangs_up_is_asked_once_for_a_scrape() -> None:
    tries: list[int] = []

    def hang_up() -> None:
        while True:
            try:
                connection, _ = server.accept()
            except OSError:  # the test is over
                return
            tries.append(1)
            connection.close()

    with socket.create_server(("127.0.0.1", 0)) as server:
        thread = threading.Thread(target=hang_up, daemon=True)
        thread.start()
        url = f"redis://127.0.0.1:{server.getsockname()[1]}/0"
        with closing(hasty_ledger(url)) as ledger, pytest.raises(RedisUnavailableError):
            ledger.backlog()
        server.shutdown(socket.SHUT_RDWR)
        thread.join(60)

    assert len(tries) == 1
