"""Batches without Redis and workers: jobs that a test ends as it likes, and a place that dies on time."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, cast

import numpy as np

from clipfleet.contract.jobs import JobState, Lane, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.webhooks import EventType
from clipfleet.ledger.jobs import JobStatus
from clipfleet.ledger.locks import Alive
from clipfleet.ledger.values import WorkerFacts
from clipfleet.outputs import Output
from clipfleet_gateway.batches.advancing import Advancing
from clipfleet_gateway.batches.jobs import BatchJobs, Row
from clipfleet_gateway.batches.record import WINDOW_SECONDS, BatchRecord, Checked, new_batch_id
from clipfleet_gateway.batches.store import BatchStore
from clipfleet_gateway.files.record import FileRecord, Purpose
from clipfleet_gateway.files.store import FileStore
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.keys.ring import KeyRing
from clipfleet_gateway.known_models import KnownModels
from clipfleet_gateway.policies.shelf import PolicyShelf
from clipfleet_gateway.shapes.batches import Endpoint

DIMENSION = 4


class Now:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.time = datetime(2026, 12, 2, 12, tzinfo=UTC)

    def __call__(self) -> datetime:
        return self.time

    def later(self, **time: float) -> None:
        self.time += timedelta(**time)


def line(custom_id: str, body: dict[str, Any] | None = None, **other: Any) -> dict[str, Any]:
    """A request of a batch; by default it embeds a text."""
    body = body if body is not None else {"model": "demo", "input": custom_id}
    return {"custom_id": custom_id, "method": "POST", "url": "/v1/embeddings", "body": body, **other}


def jsonl(*lines: dict[str, Any]) -> bytes:
    return b"".join(json.dumps(one).encode() + b"\n" for one in lines)


def saved(files: FileStore, owner: str, data: bytes, purpose: Purpose = Purpose.BATCH) -> FileRecord:
    received = files.receive()
    try:
        received.write(data)
        return files.save(owner, received, filename="a.jsonl", purpose=purpose)
    finally:
        received.close()


def status_of(job_id: str, state: JobState, total: int, ok: int, failed: int, reason: str = "") -> JobStatus:
    return JobStatus(
        job_id, state, Lane.NORMAL, "demo", 0, True, total, ok, failed, 1, 0, 0, 0, {}, {}, reason, 0, None
    )  # fmt: skip


@dataclass
class FakeJobs(BatchJobs):
    """Jobs whose items are collected; rows are made when a test lets them end."""

    files: FileStore
    policies: PolicyShelf
    items: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    states: dict[str, JobState] = field(default_factory=dict)
    label_sets: tuple[LabelSet, ...] = ()
    failing: dict[int, tuple[str, str]] = field(default_factory=dict)  # by item index
    done: int | None = None  # so many rows are there; None: all
    raises: Exception | None = None  # of the next submit
    submits: int = 0
    keys: list[Key] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._files, self._policies = self.files, self.policies

    def submit(
        self,
        batch: BatchRecord,
        checked: Checked,
        key: Key,
        label_sets: Sequence[LabelSet],
        output: str,
        alive: Callable[[], object],
    ) -> None:
        self.submits += 1
        if self.raises is not None:
            raise self.raises
        names = {one.hash: one.name for one in label_sets}
        items = [*self._items(batch, checked, key, names, self.policy(checked), alive)]
        assert self.items.setdefault(batch.id, items) == items, "a resumed submit reads the same items"
        self.states.setdefault(batch.id, JobState.RUNNING)
        self.label_sets = tuple(label_sets)
        self.keys.append(key)

    def end(self, batch_id: str, state: JobState = JobState.COMPLETED) -> None:
        self.states[batch_id] = state

    def status(self, job_id: str) -> JobStatus | None:
        if job_id not in self.states:
            return None
        total = len(self.items.get(job_id, ()))
        ok = len(self._there(job_id)) - len(self.failing)
        return status_of(job_id, self.states[job_id], total, ok, len(self.failing), "/srv/place: disk full")

    def cancel(self, job_id: str) -> None:
        if job_id in self.states and not self.states[job_id].is_final:
            self.states[job_id] = JobState.CANCELLED

    def _there(self, job_id: str) -> list[dict[str, Any]]:
        return self.items.get(job_id, [])[: self.done]

    def rows(self, checked: Checked, output: str) -> Iterator[Row]:
        for index, item in enumerate(self._there(output.rpartition("/")[2])):
            if index in self.failing:
                yield Row(index, self.failing[index])
            elif checked.task is Task.CLASSIFY:
                labels = next(one.labels for one in self.label_sets if one.name == item["label_set"])
                yield Row(index, labels=labels, scores=[1 / len(labels)] * len(labels))
            else:
                yield Row(index, vector=np.full(DIMENSION, index, np.float16))


def worker(*models: str, up_seconds: float = 3600.0) -> WorkerFacts:
    return WorkerFacts(f"worker-{models}", "host", 1, models, up_seconds=up_seconds)


@contextmanager
def no_lock(_: str) -> Iterator[Alive]:
    yield lambda: None


@dataclass
class Desk:
    """All that batches of one key need, over a place."""

    place: Output
    now: Now = field(default_factory=Now)
    most: int = 100
    spent: dict[str | None, int] = field(default_factory=dict)
    published: dict[str, tuple[EventType, str]] = field(default_factory=dict)  # events by their ids
    refuses: Exception | None = None  # of the quota
    workers: list[WorkerFacts] = field(default_factory=lambda: [worker("demo")])

    def __post_init__(self) -> None:
        self.files = FileStore(self.place, now=self.now)
        self.keys = KeyRing(self.place)
        if self.keys.find("mine") is None:
            self.keys.add("mine", lane=Lane.BULK)
        self.jobs = FakeJobs(self.files, PolicyShelf(self.place))
        self.store = BatchStore(self.place)

    def advancing(self, place: Output | None = None, jobs: BatchJobs | None = None) -> Advancing:
        """A gateway, maybe on a place of its own that dies."""
        place = place or self.place
        files = FileStore(place, now=self.now)
        return Advancing(
            BatchStore(place),
            files,
            KeyRing(place),
            jobs or self.jobs,
            KnownModels(place, lambda: self.workers),
            PolicyShelf(place),
            self._spend,
            self._publish,
            no_lock,
            self.most,
            self.now,
        )

    def _spend(self, key: Key, count: int, *, once: str | None = None) -> None:
        if self.refuses is not None:
            raise self.refuses
        assert self.spent.setdefault(once, count) == count

    def _publish(self, event_id: str, event_type: EventType, data: str) -> bool:
        is_new = event_id not in self.published
        self.published[event_id] = (event_type, data)
        return is_new

    def begin(
        self,
        data: bytes,
        endpoint: Endpoint = Endpoint.EMBEDDINGS,
        *,
        idempotency_key: str | None = None,
        **other: Any,
    ) -> BatchRecord:
        """Upload a file and make a batch of it."""
        file = saved(self.files, "mine", data)
        seconds = int(self.now().timestamp())
        return self.store.begin(
            BatchRecord(
                id=new_batch_id(self.now()), owner="mine", endpoint=endpoint, input_file_id=file.id,
                input_sha256=file.sha256, created_at=seconds, expires_at=seconds + WINDOW_SECONDS, **other,
            ),
            idempotency_key,
        )  # fmt: skip

    def found(self, batch: BatchRecord) -> BatchRecord:
        """The batch as it is now."""
        found = self.store.find("mine", batch.id)
        assert found is not None
        return found

    def advance(self, batch: BatchRecord) -> BatchRecord:
        """The batch after all steps that can be done now."""
        self.advancing().advance("mine", batch.id)
        return self.found(batch)

    def written(self, file: FileRecord | None) -> list[dict[str, Any]]:
        """The lines of an output or error file."""
        if file is None:
            return []
        assert self.files.find("mine", file.id) == file, "it can be found"
        data = self.files.read("mine", file.id) or b""
        assert len(data) == file.bytes
        return [json.loads(one) for one in data.splitlines()]


class KilledError(BaseException):
    """The program was killed."""


class MortalPlace:
    """A place whose program is killed before or after one of its changes."""

    _CHANGES = ("create", "replace", "publish", "replace_if", "remove")

    def __init__(self, place: Output, lives: int, *, after: bool) -> None:
        self._place = place
        self._lives = lives  # changes that succeed before
        self._after = after

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._place, name)
        return self._deadly(found) if name in self._CHANGES else found

    def _deadly(self, change: Callable[..., Any]) -> Callable[..., Any]:
        def changed(*arguments: Any, **named: Any) -> Any:
            if self._lives == 0 and not self._after:
                raise KilledError
            done = change(*arguments, **named)
            if self._lives == 0:
                raise KilledError
            self._lives -= 1
            return done

        return changed


def mortal(place: Output, lives: int, *, after: bool) -> Output:
    """A place that dies at its change number `lives`, from 0: before it, or after it."""
    return cast("Output", MortalPlace(place, lives, after=after))
