"""A worker without a model for the jobs of a gateway's requests: a vector says which input it is of."""

from __future__ import annotations

import hashlib
import threading
from types import TracebackType
from typing import Self

import numpy as np
import pyarrow as pa

from clipfleet.contract.jobs import ErrorCode, Job, Lane, Task, read_job
from clipfleet.contract.parts import INLINE_COLUMN, count_rows, part_schema
from clipfleet.ledger.jobs import Claim, Ledger, WorkerFacts
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs import open_output
from clipfleet.outputs.redis import RedisOutput
from clipfleet.outputs.staged import StagedReader
from clipfleet_worker.score.decisions import Decisions
from clipfleet_worker.sinks.redis import RedisSink
from tests.support.ledger import new_token
from tests.support.redis_rows import identity

DIMENSION = 8
MODEL = "demo"
BAD, OURS = b"not an image", b"out of memory"  # inputs that fail, by the caller's and by our fault
_PAUSE_SECONDS = 0.005


def vector_of(given: str | bytes) -> np.ndarray:
    """The vector of an input, float16."""
    data = given.encode() if isinstance(given, str) else given
    return np.frombuffer(hashlib.sha256(data).digest()[:DIMENSION], np.uint8).astype("<f2")


class DoorWorker:
    """Works in a thread while it is entered. Jobs with a URL of a host in `slow` wait."""

    def __init__(self, url: str, *, serves: bool = True) -> None:
        self._ledger, self._store = Ledger(url), RedisStore(url)
        self._serves = serves
        self.slow: set[str] = set()
        self.jobs: list[tuple[Job, int]] = []  # claimed, with their items
        self.resting = threading.Event()  # while set it claims nothing
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._run, name="door-worker")

    def __enter__(self) -> Self:
        if self._serves:
            self._ledger.heartbeat(WorkerFacts("door-worker", "here", 1, (MODEL,)))
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._ending.set()
        self._thread.join()
        self._ledger.close()
        self._store.close()

    def _run(self) -> None:
        held: list[tuple[Claim, Job, pa.Table]] = []
        while not self._ending.wait(_PAUSE_SECONDS):
            claimed = None
            if not self.resting.is_set():
                claimed = self._ledger.claim(new_token(), 60, list(Lane), [MODEL])
            if claimed is not None:
                job = read_job(self._ledger.description(claimed.job_id))
                held.append((claimed, job, self._items(claimed, job)))
                self.jobs.append((job, held[-1][2].num_rows))
            for one in [one for one in held if not self._is_slow(one[2])]:
                held.remove(one)
                self._complete(*one)

    def _is_slow(self, items: pa.Table) -> bool:
        return any(f"//{host}/" in uri for host in self.slow for uri in items["uri"].to_pylist())

    def _items(self, claimed: Claim, job: Job) -> pa.Table:
        output = RedisOutput(self._store, job.job_id)
        with StagedReader(output, job_id=job.job_id, schema_version=job.schema_version) as reader:
            return reader.read_chunk(claimed.first_chunk, claimed.chunks, claimed.chunk_id)

    def _complete(self, claimed: Claim, job: Job, items: pa.Table) -> None:
        sink = RedisSink(self._store)
        rows = pa.Table.from_pylist([_row(job, item) for item in items.to_pylist()], _schema(job))
        log = None if job.decisions is None else open_output(job.decisions.uri)
        decisions = Decisions(job, log)
        rows = decisions.filled_in(rows, claimed.generation)
        found = count_rows(rows)
        sink.write(identity(claimed), rows, found, token=claimed.token)
        events = decisions.recorded(lambda: rows, identity(claimed), lambda: -1, lambda: None)
        self._ledger.complete(
            claimed, ok=found.ok, failed=found.failed, codes=found.codes, work_seconds={}, decisions=events
        )


def _schema(job: Job) -> pa.Schema:
    if job.policy is None:
        return part_schema(DIMENSION, _text_fields(job))
    names = tuple(one.name for one in job.named_label_sets)
    return part_schema(
        DIMENSION,
        (),
        names,
        job.vector_type,
        job.accepted_columns,
        job.heads,
        head_scores=job.head_scores_columns,
        has_decisions=True,
    )


def _text_fields(job: Job) -> list[pa.Field]:  # type: ignore[type-arg]  # as of pyarrow
    return [pa.field(job.text_column, pa.string())] if job.text_column else []


def _row(job: Job, item: dict[str, object]) -> dict[str, object]:
    given = item.get(INLINE_COLUMN) or item.get(job.text_column or "") or item["uri"]
    code = {BAD: ErrorCode.NOT_AN_IMAGE, OURS: ErrorCode.OUT_OF_MEMORY}.get(given)  # type: ignore[call-overload]  # of any type
    plain = {name: value for name, value in item.items() if name != INLINE_COLUMN}
    if code is not None:
        return {**plain, "status": "failed", "error_code": code.value, "error_detail": "no image format"}
    assert isinstance(given, str | bytes)
    if job.task is Task.CLASSIFY:
        labels = sorted(job.label_sets[0].labels)
        scores = [1.0 / 2 ** (1 + position) for position in range(len(labels))]
        return {**plain, "status": "ok", "labels": labels, "scores": scores}
    return {**plain, "status": "ok", "embedding": vector_of(given)}
