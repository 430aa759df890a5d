"""Fixtures for all tests: a real Redis-protocol server, and a ledger on it.

A service that cannot be had skips its tests at home and fails them in CI (environment variable `CI`).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import NoReturn

import pytest
import redis

from clipfleet.errors import ClipfleetError
from clipfleet.ledger import Ledger
from clipfleet.redis_connection import connect
from tests.support.ledger import keys_without_ttl


def service_is_missing(what: str) -> NoReturn:
    """Skip at home, fail in CI: a green run there has run everything."""
    if os.environ.get("CI"):
        pytest.fail(f"{what}; in CI this must not be missing")
    pytest.skip(what)


@pytest.fixture(scope="session")
def _server_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a server that is shared by the tests of one run."""
    try:
        from clipfleet_worker.embedded import EmbeddedValkey, valkey_binary

        valkey_binary()
    except (ImportError, ClipfleetError) as error:
        service_is_missing(f"no Redis server: {error}")
    with EmbeddedValkey(tmp_path_factory.mktemp("valkey")) as server:
        yield server.url


@pytest.fixture
def redis_url(_server_url: str) -> str:
    """URL of an empty server, with its password."""
    with connect(_server_url) as client:
        client.flushall()
    return _server_url


@pytest.fixture
def redis_client(redis_url: str) -> Iterator[redis.Redis]:
    """A plain client of that server, to look behind the ledger and to make time pass."""
    with connect(redis_url) as client:
        yield client


@pytest.fixture
def ledger(redis_url: str) -> Iterator[Ledger]:
    """A ledger on an empty server."""
    ledger = Ledger(redis_url)
    yield ledger
    ledger.close()


@pytest.fixture(autouse=True)
def _every_key_has_a_ttl(request: pytest.FixtureRequest) -> Iterator[None]:
    """Fail a test of the ledger that leaves a key in Redis which would stay for ever."""
    if "ledger" not in request.fixturenames:
        yield
        return
    client: redis.Redis = request.getfixturevalue("redis_client")
    yield
    assert keys_without_ttl(client) == []
