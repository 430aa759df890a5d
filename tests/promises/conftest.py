"""The implementations that a promise is tested over, and a way to make time pass in each."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass

import pytest

from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.memory import MemoryLedger
from tests.support.doubles import Clock
from tests.support.ledger import let_time_pass

PassTime = Callable[[float], None]


@dataclass(frozen=True)
class World:
    ledger: Ledger
    pass_time: PassTime


@pytest.fixture
def redis_ledger(redis_url: str) -> Iterator[Ledger]:
    with closing(Ledger(redis_url)) as ledger:
        yield ledger


@pytest.fixture(params=["redis", "memory"])
def world(request: pytest.FixtureRequest) -> World:
    if request.param == "memory":
        clock = Clock()
        return World(MemoryLedger(now=clock), lambda seconds: setattr(clock, "now", clock.now + seconds))
    client = request.getfixturevalue("redis_client")
    return World(request.getfixturevalue("redis_ledger"), lambda seconds: let_time_pass(client, seconds))


@pytest.fixture
def ledger(world: World) -> Ledger:
    """An empty ledger."""
    return world.ledger


@pytest.fixture
def pass_time(world: World) -> PassTime:
    """Makes the given seconds pass in the ledger."""
    return world.pass_time
