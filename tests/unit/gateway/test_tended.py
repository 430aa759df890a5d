"""Batches and jobs over a ledger in memory: what a gateway does when Redis, the place or another one fails it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from typing import Any, Protocol

import pytest

from clipfleet import client as client_module
from clipfleet.client import Client
from clipfleet.contract.jobs import JobState
from clipfleet.errors import OutputUnreachableError
from clipfleet.ledger.locks import LockLostError
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet_gateway.batches.advancing import Advancing
from clipfleet_gateway.batches.jobs import BatchJobs
from clipfleet_gateway.jobs.advancing import Jobs
from clipfleet_gateway.jobs.store import JobStore
from clipfleet_gateway.jobs.submitting import Submitting
from clipfleet_gateway.shapes.jobs import JobRequest
from tests.support.batches import Desk, jsonl, line, no_lock
from tests.support.hints import CountedHints
from tests.support.ledger_replies import RepliesLedger

ITEMS = 3


class Kind(Protocol):
    """A batch, or a job."""

    id: str

    def advance(self) -> str:
        """Do all steps that can be done now; returns the state."""

    def cancel(self) -> None:
        """Let it end early."""

    def open(self) -> list[tuple[str, str]]:
        """What is to be tended."""

    def lose_record(self) -> None:
        """As if its gateway was killed before the record was made."""


class OneBatch:
    def __init__(self, desk: Desk, client: Client) -> None:
        self._desk = desk
        self._advancing: Advancing = desk.advancing(jobs=BatchJobs(client, desk.files))
        self.id = desk.begin(jsonl(*[line(f"{number}") for number in range(ITEMS)])).id

    def advance(self) -> str:
        self._advancing.advance("mine", self.id)
        found = self._desk.store.find("mine", self.id)
        return found.status if found else ""

    def cancel(self) -> None:
        found = self._desk.store.find("mine", self.id)
        assert found is not None
        self._advancing.cancel(found)

    def open(self) -> list[tuple[str, str]]:
        return self._advancing.open()

    def lose_record(self) -> None:
        self._desk.place.remove(f"batches/mine/{self.id}.json")


class OneJob:
    def __init__(self, desk: Desk, client: Client) -> None:
        self._desk = desk
        self._jobs = Jobs(
            JobStore(desk.place), Submitting(client, desk.files), desk.keys, desk._spend, no_lock, desk.now
        )
        key = desk.keys.find("mine")
        assert key is not None
        request = JobRequest(task="embed_text", model="demo", items=tuple(map(str, range(ITEMS))))
        self.id = self._jobs.begin(request, "digest", key, None).id

    def advance(self) -> str:
        self._jobs.advance("mine", self.id)
        found = self._jobs.store.find("mine", self.id)
        if found is None:
            return ""
        return found.end.state if found.end else "in_progress"

    def cancel(self) -> None:
        found = self._jobs.store.find("mine", self.id)
        assert found is not None
        self._jobs.cancel(found)

    def open(self) -> list[tuple[str, str]]:
        return self._jobs.open()

    def lose_record(self) -> None:
        self._desk.place.remove(f"submitted/mine/{self.id}.json")


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> RepliesLedger:
    ledger = RepliesLedger()
    monkeypatch.setattr(client_module, "Ledger", lambda *_, **__: ledger)
    return ledger


@pytest.fixture
def client(ledger: RepliesLedger) -> Iterator[Client]:
    with Client("redis://127.0.0.1:1/0", patience_seconds=0) as client:
        vars(client)["_hints"] = CountedHints()
        yield client


@pytest.fixture
def desk(place: FolderOutput) -> Desk:
    return Desk(place)


@pytest.fixture(params=[OneBatch, OneJob], ids=["batch", "job"])
def kind(request: pytest.FixtureRequest, desk: Desk, client: Client) -> Kind:
    made: Callable[[Desk, Client], Kind] = request.param
    return made(desk, client)


def test_a_redis_of_a_moment_ago_lets_none_wait_for_ever(kind: Kind, ledger: RepliesLedger) -> None:
    """It has been restored from a copy that was made while the job was submitted."""
    assert kind.advance() == "in_progress"
    job = ledger._jobs[kind.id]
    assert (job.sealed, job.items) == (True, ITEMS)
    job.sealed, job.state = False, JobState.SUBMITTING
    job.items, job.files, job.chunks = 0, [], []

    assert kind.advance() == "in_progress"

    status = ledger.status(kind.id)
    assert (status.state, status.sealed, status.total) == (JobState.RUNNING, True, ITEMS)
