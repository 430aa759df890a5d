"""Batches and jobs over a ledger in memory, while Redis, the place or another gateway fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, Protocol

import pytest

from clipfleet import client as client_module
from clipfleet.client import Client
from clipfleet.contract.jobs import JobState
from clipfleet.errors import OutputUnreachableError
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.locks import Alive, LockLostError
from clipfleet.outputs import Output, objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet_gateway.batches.advancing import Advancing
from clipfleet_gateway.batches.jobs import BatchJobs
from clipfleet_gateway.files.record import Purpose
from clipfleet_gateway.jobs.advancing import Jobs
from clipfleet_gateway.jobs.store import JobStore
from clipfleet_gateway.jobs.submitting import Submitting
from clipfleet_gateway.known_models import PATIENCE_SECONDS, KnownModels
from clipfleet_gateway.policies.logs import DecisionLogs
from clipfleet_gateway.policies.shelf import PolicyShelf
from clipfleet_gateway.shapes.jobs import JobRequest
from tests.support.batches import Desk, KilledError, jsonl, line, mortal, no_lock, saved, worker
from tests.support.gateway_app import gateway_services
from tests.support.hints import CountedHints
from tests.support.ledger import claim, claim_finish, new_token, work_off
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

    def lose_source(self) -> None:
        """As if its owner had deleted what it was made of."""

    def lose_record(self) -> None:
        """As if its gateway was killed before the record was made."""

    def forget_submit(self) -> None:
        """As if its gateway was killed before the record said that all of it is submitted."""

    def error(self) -> tuple[str | None, str, str | None] | None:
        """Code, message and param of why it has failed."""


def _batch_jobs(desk: Desk, client: Client, ledger: Ledger) -> BatchJobs:
    shelf = PolicyShelf(desk.place)
    return BatchJobs(client, ledger, desk.files, shelf, DecisionLogs(desk.place, shelf, None))


def _submitting(desk: Desk, client: Client) -> Submitting:
    shelf = PolicyShelf(desk.place)
    return Submitting(client, desk.files, shelf, DecisionLogs(desk.place, shelf, None))


class OneBatch:
    def __init__(
        self, desk: Desk, client: Client, ledger: Ledger, lines: list[dict[str, Any]] | None = None
    ) -> None:
        self._desk = desk
        self._advancing: Advancing = desk.advancing(jobs=_batch_jobs(desk, client, ledger))
        lines = lines or [line(f"{number}") for number in range(ITEMS)]
        self.id = desk.begin(jsonl(*lines)).id

    def advance(self, alive: Alive = lambda: None) -> str:
        self._advancing.advance("mine", self.id, alive)
        found = self._desk.store.find("mine", self.id)
        return found.status if found else ""

    def cancel(self) -> None:
        found = self._desk.store.find("mine", self.id)
        assert found is not None
        self._advancing.cancel(found)

    def open(self) -> list[tuple[str, str]]:
        return self._advancing.open()

    def lose_source(self) -> None:
        found = self._desk.store.find("mine", self.id)
        assert found is not None
        self._desk.files.discard("mine", found.input_file_id)

    def lose_record(self) -> None:
        self._desk.place.remove(f"batches/mine/{self.id}.json")

    def forget_submit(self) -> None:
        found = self._desk.store.find("mine", self.id)
        assert found is not None and self._desk.store.change(found, is_submitted=False)

    def error(self) -> tuple[str | None, str, str | None] | None:
        found = self._desk.store.find("mine", self.id)
        return next(((one.code, one.message, one.param) for one in found.errors), None) if found else None


class OneJob:
    def __init__(
        self,
        desk: Desk,
        client: Client,
        ledger: Ledger,
        place: Output | None = None,
        idempotency_key: str | None = None,
        request: JobRequest | None = None,
    ) -> None:
        self._desk = desk
        self._jobs = Jobs(
            JobStore(place or desk.place), _submitting(desk, client), ledger,
            KnownModels(desk.place, lambda: desk.workers), desk.keys, desk._spend, no_lock,
            desk.now,
        )  # fmt: skip
        key = desk.keys.find("mine")
        assert key is not None
        texts = JobRequest(task="embed_text", model="demo", items=tuple(map(str, range(ITEMS))))
        self.id = self._jobs.begin(request or texts, "digest", key, idempotency_key).id

    def advance(self, alive: Alive = lambda: None) -> str:
        self._jobs.advance("mine", self.id, alive)
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

    def lose_source(self) -> None:
        self._desk.place.remove(f"work/{self.id}/items.json")

    def lose_record(self) -> None:
        self._desk.place.remove(f"submitted/mine/{self.id}.json")

    def forget_submit(self) -> None:
        found = self._jobs.store.find("mine", self.id)
        assert found is not None and self._jobs.store.change(found, is_submitted=False)

    def error(self) -> tuple[str | None, str, str | None] | None:
        found = self._jobs.store.find("mine", self.id)
        return (found.error.code, found.error.message, found.error.param) if found and found.error else None


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch) -> RepliesLedger:
    ledger = RepliesLedger()
    monkeypatch.setattr(client_module, "Ledger", lambda *_, **__: ledger)
    return ledger


@pytest.fixture
def client(ledger: RepliesLedger, place: FolderOutput) -> Iterator[Client]:
    with gateway_services(place.uri) as services:
        vars(services.client)["_hints"] = CountedHints()
        yield services.client


@pytest.fixture
def desk(place: FolderOutput) -> Desk:
    return Desk(place)


@pytest.fixture(params=[OneBatch, OneJob], ids=["batch", "job"])
def kind(request: pytest.FixtureRequest, desk: Desk, client: Client, ledger: RepliesLedger) -> Kind:
    made: Callable[[Desk, Client, Ledger], Kind] = request.param
    return made(desk, client, ledger)


def test_a_redis_of_a_moment_ago_lets_none_wait_for_ever(kind: Kind, ledger: RepliesLedger) -> None:
    """It has been restored from a copy that was made while the job was submitted."""
    assert kind.advance() == "in_progress"
    job = ledger._jobs[kind.id]
    assert (job.sealed, job.items) == (True, ITEMS)
    job.sealed, job.state = False, JobState.SUBMITTING
    job.items, job.files, job.chunks = 0, [], []
    kind.lose_source()

    assert kind.advance() == "in_progress"

    status = ledger.status(kind.id)
    assert (status.state, status.sealed, status.total) == (JobState.RUNNING, True, ITEMS)


def test_what_has_all_of_its_items_needs_its_source_no_more(kind: Kind, ledger: RepliesLedger) -> None:
    """Its gateway was killed before it could say so, and the owner has deleted the source since."""
    assert kind.advance() == "in_progress"
    kind.forget_submit()
    kind.lose_source()

    assert kind.advance() == "in_progress"

    status = ledger.status(kind.id)
    assert (status.state, status.sealed, status.total) == (JobState.RUNNING, True, ITEMS)


@pytest.mark.parametrize("name", ["batch", "job"])
def test_many_own_files_keep_the_lock(
    name: str, desk: Desk, client: Client, ledger: RepliesLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each is a request to a bucket: two thousand take longer than a lock lasts without a sign of life."""
    images = [saved(desk.files, "mine", b"an image", Purpose.VISION).id for _ in range(10)]
    if name == "batch":
        body = {"model": "demo", "input": [{"image": one} for one in images]}
        one: OneBatch | OneJob = OneBatch(desk, client, ledger, [line("all", body)])
    else:
        one = OneJob(
            desk, client, ledger, request=JobRequest(task="embed", model="demo", items=tuple(images))
        )
    requests = 0
    read = FolderOutput.read

    def counted(output: FolderOutput, name: str) -> bytes | None:
        nonlocal requests
        requests += name.startswith("files/")
        return read(output, name)

    def alive() -> None:
        nonlocal requests
        if requests > 3:
            raise LockLostError
        requests = 0

    monkeypatch.setattr(FolderOutput, "read", counted)
    assert one.advance(alive) == "in_progress"

    assert ledger.status(one.id).total == len(images)


def test_a_place_that_refuses_a_write_cancels_nothing(
    kind: Kind, ledger: RepliesLedger, monkeypatch: pytest.MonkeyPatch
) -> None:
    refuses = True
    create = FolderOutput.create

    def created(output: FolderOutput, name: str, data: bytes, **named: Any) -> bool:
        if refuses and name == objects.JOB_FILE:
            raise OutputUnreachableError(f"{output.uri}: permission denied")
        return create(output, name, data, **named)

    monkeypatch.setattr(FolderOutput, "create", created)
    with pytest.raises(OutputUnreachableError):
        kind.advance()
    assert ledger.status(kind.id).state is JobState.SUBMITTING

    refuses = False
    assert kind.advance() == "in_progress"
    assert ledger.status(kind.id).state is JobState.RUNNING


def test_a_gateway_that_was_frozen_in_a_submit_leaves_no_job(kind: Kind, ledger: RepliesLedger) -> None:
    """The ledger learns of the job when it has been cancelled, and nobody looks at it any more."""

    def end() -> None:
        ledger.before.clear()
        kind.cancel()
        assert kind.advance() == "cancelled"

    ledger.before["submit"] = end

    assert kind.advance() == "cancelled"

    assert ledger.status(kind.id).state is JobState.CANCELLED
    assert kind.open() == []


def test_what_was_never_made_is_forgotten_a_day_later(kind: Kind, desk: Desk) -> None:
    """Its gateway was killed before the record; the same request would have made it."""
    kind.lose_record()
    kind.advance()
    assert kind.open() == [("mine", kind.id)]

    desk.now.later(hours=25)
    kind.advance()
    assert kind.open() == []


def test_what_is_finishing_is_waited_for_although_it_is_cancelled(kind: Kind, ledger: RepliesLedger) -> None:
    assert kind.advance() == "in_progress"
    work_off(ledger)
    kind.cancel()
    assert kind.advance() in ("in_progress", "cancelling")
    assert ledger.status(kind.id).state is JobState.FINISHING

    ledger.finish(claim_finish(ledger), ttl_seconds=60)
    assert kind.advance() in ("completed", "cancelled")
    assert kind.open() == []


def test_a_look_at_what_runs_reads_no_description(kind: Kind, ledger: RepliesLedger) -> None:
    """It may have megabytes of labels."""
    kind.advance()
    ledger.calls.clear()

    assert kind.advance() == "in_progress"

    assert {name for name, _, _ in ledger.calls} == {"status"}


def test_a_model_that_no_worker_knows_is_named_in_the_end(
    kind: Kind, desk: Desk, ledger: RepliesLedger
) -> None:
    desk.workers = [worker("other"), worker("third")]
    assert kind.advance() == "in_progress"
    desk.now.later(seconds=PATIENCE_SECONDS - 1)
    assert kind.advance() == "in_progress", "a worker may be starting"

    desk.now.later(seconds=1)
    assert kind.advance() == "failed"

    assert kind.error() == (
        "model_not_found", "No worker serves the model 'demo'; served: other, third", "model",
    )  # fmt: skip
    assert ledger.status(kind.id).state is JobState.CANCELLED
    assert kind.open() == []


def no_worker(desk: Desk, ledger: RepliesLedger) -> None:
    """None could say which models are served."""
    desk.workers = []


def all_start_anew(desk: Desk, ledger: RepliesLedger) -> None:
    """Those of other models come first."""
    desk.workers = [worker("other", up_seconds=PATIENCE_SECONDS - 1)]


def was_served(desk: Desk, ledger: RepliesLedger) -> None:
    """A gateway of yesterday has seen it."""
    desk.workers = [worker("demo")]
    KnownModels(desk.place, lambda: desk.workers).served()
    desk.workers = [worker("other")]


def some_is_done(desk: Desk, ledger: RepliesLedger) -> None:
    desk.workers = [worker("other")]
    claimed = claim(ledger)
    ledger.complete(claimed, ok=1, failed=0, codes={}, work_seconds={})


@pytest.mark.parametrize("happens", [no_worker, all_start_anew, was_served, some_is_done])
def test_a_model_that_a_worker_may_serve_is_waited_for(
    kind: Kind, desk: Desk, ledger: RepliesLedger, happens: Callable[[Desk, RepliesLedger], None]
) -> None:
    desk.workers = []
    kind.advance()
    happens(desk, ledger)
    desk.now.later(hours=23)

    assert kind.advance() == "in_progress"


@pytest.mark.parametrize("is_killed_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("ending", ["completed", "cancelled"])
def test_a_job_goes_on_after_a_kill_at_any_change(
    desk: Desk, client: Client, ledger: RepliesLedger, is_killed_after: bool, ending: str
) -> None:
    """Its client repeats the request with the same Idempotency-Key."""
    kills = 0
    while is_killed_at(kills, desk, client, ledger, ending, after=is_killed_after):
        kills += 1
    assert kills > 5


def is_killed_at(
    change: int, desk: Desk, client: Client, ledger: RepliesLedger, ending: str, *, after: bool
) -> bool:
    """Run a job to its end with a kill at one of the changes of the place; False if there are fewer."""
    was_killed = False
    desk.spent.clear()
    known = {status.job_id for status in ledger.jobs(1000)}
    for place in (mortal(desk.place, change, after=after), desk.place):
        try:
            one = OneJob(desk, client, ledger, place, idempotency_key=f"{change}")
            one.advance()
            if ending == "cancelled":
                one.cancel()
            work_off(ledger)
            while claimed := ledger.claim_finish(new_token(), 600):
                ledger.finish(claimed, ttl_seconds=60)
            one.advance()
            break
        except KilledError:
            was_killed = True
    one = OneJob(desk, client, ledger, idempotency_key=f"{change}")
    assert (one.advance(), one.open()) == (ending, [])
    assert [*desk.place.names("work/")] == [*desk.place.names(f"work/{one.id}/")] == []
    assert desk.spent == {one.id: ITEMS}
    assert {status.job_id for status in ledger.jobs(1000)} - known <= {one.id}, "there is one job"
    return was_killed
