"""A server that restarts, forgets its scripts, is unavailable, or refuses the password."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.jobs import Ledger
from clipfleet.redis.connection import connect
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from tests.support.ledger import add_job, claim, complete, work_off


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    """A server that a test may kill."""
    with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server


def test_scripts_that_the_server_has_lost_are_loaded_again(ledger: Ledger, redis_client: redis.Redis) -> None:
    add_job(ledger)
    redis_client.script_flush()

    assert claim(ledger).chunk_id == 0


def test_acknowledged_writes_survive_a_restart(server: EmbeddedValkey) -> None:
    ledger = Ledger(server.url)
    add_job(ledger, chunks=3)
    claimed = claim(ledger, token="delivery-1")

    server.stop()
    server.start()

    assert claim(ledger, token="delivery-1").chunk_id == claimed.chunk_id
    assert complete(ledger, claimed) == "done"
    assert [found.chunk_id for found in work_off(ledger)] == [1, 2]
    ledger.close()


def test_an_unavailable_server_is_named_without_its_password(server: EmbeddedValkey) -> None:
    password = connect(server.url).connection_pool.connection_kwargs["password"]
    ledger = Ledger(server.url)
    ledger.ping()
    server.child.kill()

    for call in (ledger.ping, lambda: ledger.status("job"), lambda: ledger.jobs(), lambda: ledger.workers()):
        with pytest.raises(
            RedisUnavailableError, match=r"Redis at redis://\*\*\*@127\.0\.0\.1:\d+/0: "
        ) as raised:
            call()
        assert password not in str(raised.value)
    ledger.close()


def test_a_wrong_password_names_the_setting_and_is_not_shown(redis_url: str) -> None:
    address = redis_url.rpartition("@")[2]
    ledger = Ledger(f"redis://:wr0ng-secret@{address}")

    with pytest.raises(
        RedisUnavailableError, match="check user and password in CLIPFLEET_REDIS_URL"
    ) as raised:
        ledger.ping()

    assert "wr0ng-secret" not in str(raised.value)
    ledger.close()
