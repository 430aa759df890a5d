"""Backfills without Redis and workers: a ledger in memory, and jobs that run when their end is waited for."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, cast
from uuid import uuid4

import pyarrow as pa

from clipfleet.backfill.items import ComparedItems
from clipfleet.backfill.night import Backfill
from clipfleet.backfill.options import BackfillOptions
from clipfleet.backfill.rounds import Services
from clipfleet.contract.jobs import Job, Lane, Task
from clipfleet.contract.parts import PartIdentity, count_rows, part_schema
from clipfleet.contract.stores import STORE_COLUMNS, StoreTarget
from clipfleet.job_handle import JobHandle
from clipfleet.ledger.locks import Alive, LockTakenError
from clipfleet.ledger.memory import MemoryLedger
from clipfleet.outputs import objects, open_output
from clipfleet.outputs.staged import StagedReader
from clipfleet.parts import parts_of
from clipfleet.settings import Settings
from clipfleet.sources.batches import Source
from clipfleet.store.committing.of_job import SupersededError, commit_job
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import StorePlace, store_place
from clipfleet.submit.options import JobOptions, make_job
from clipfleet.submit.submission import GoneItems, Submission
from tests.support.hints import CountedHints
from tests.support.store_rows import DIMENSION

FINGERPRINTS = {"demo": "a" * 16, "new:one": "b" * 16}


class MemoryLocks:
    """Locks of one process; `taken` has their names, and `alive` is called for each sign of life."""

    def __init__(self) -> None:
        self.taken: set[str] = set()
        self.alive: Callable[[str], object] = lambda name: None

    @contextmanager
    def held(self, name: str, *, wait: Callable[[], object] | None = None) -> Iterator[Alive]:
        while name in self.taken:
            if wait is None:
                raise LockTakenError(name)
            wait()
        self.taken.add(name)
        try:
            yield lambda: self.alive(name)
        finally:
            self.taken.remove(name)


class Nights:
    """A store in a folder, and all that works on it in this process.

    `images` has the content of each URI (default: the URI itself), None for one that fails.
    """

    def __init__(self, folder: Path) -> None:
        self.place: StorePlace = store_place(str(folder))
        self.ledger, self.locks = MemoryLedger(), MemoryLocks()
        self.images: dict[str, str | None] = {}
        self.fetched: list[str] = []  # URIs of the items that jobs had, in order
        self.said: list[str] = []
        self._errors: list[str] = []  # lines of the last job
        self.meanwhile: Callable[[], object] = lambda: None  # once, before the next commit
        self.services = Services(
            self.ledger, cast(Any, self.locks), self._submit, self.handle, self._rebuild,
            partial(self.ledger.cancel, ttl_seconds=60), self.said.append, lambda seconds: None,
        )  # fmt: skip

    def night(self, source: Source, **options: Any) -> Backfill:
        return Backfill(
            self.services, self.place, lambda: source, BackfillOptions(**{"model": "demo"} | options)
        )

    def handle(self, job_id: str) -> JobHandle:
        return _WorkedHandle(self, self.ledger.job(job_id))

    def ids(self, model: str = "demo") -> list[str]:
        dataset = VectorDataset.open(self.place.dataset_uri(FINGERPRINTS[model]))
        return sorted(name for batch in dataset.batches(["item_id"]) for name in batch["item_id"].to_pylist())

    def hashes(self, model: str = "demo") -> dict[str, str]:
        """What `images` had of each item when its vector was made."""
        dataset = VectorDataset.open(self.place.dataset_uri(FINGERPRINTS[model]))
        rows = [row for batch in dataset.batches(["item_id", "content_hash"]) for row in batch.to_pylist()]
        return {row["item_id"]: row["content_hash"] for row in rows}

    def _submit(
        self, items: ComparedItems, described: JobOptions, target: StoreTarget, gone: GoneItems
    ) -> JobHandle:
        job = make_job(items, described, Task.EMBED, store=target)
        output = open_output(job.output)
        submission = Submission(self.ledger, CountedHints(), output, job, gone=gone)
        submission.run(items)
        return self.handle(submission.job.job_id)

    def _rebuild(self, output: str) -> JobHandle:
        raise AssertionError(output)

    def work(self, job: Job) -> None:
        """Run and finish a job as workers do."""
        output, files = open_output(job.output), parts_of(job)
        self._errors = []
        with StagedReader(output, job_id=job.job_id, schema_version=job.schema_version) as reader:
            while claim := self.ledger.claim(uuid4().hex, 60, [*Lane], [job.model]):
                items = reader.read_chunk(claim.first_chunk, claim.chunks, claim.chunk_id)
                table = self._rows(items, FINGERPRINTS[job.model])
                counts, identity = count_rows(table), PartIdentity(job.job_id, claim.chunk_id, 0)
                with output.scratch() as path:
                    files.write(output, path, identity, table, counts)
                    output.publish(path, files.name(claim.chunk_id))
                self.ledger.complete(
                    claim, ok=counts.ok, failed=counts.failed, codes=counts.codes, work_seconds={}
                )
        self._finish(job)

    def _finish(self, job: Job) -> None:
        meanwhile, self.meanwhile = self.meanwhile, lambda: None
        meanwhile()
        claim = self.ledger.claim_finish(uuid4().hex, 60)
        if claim is None:
            return
        assert job.store is not None
        output, status = open_output(job.output), self.ledger.status(job.job_id)
        try:
            done = commit_job(self.place, job, output, status.chunks, FINGERPRINTS[job.model])
            of_store = {"version": done.version, "counts": asdict(done.counts)}
        except SupersededError as error:
            of_store = {"superseded": str(error)}
        numbers = {"total": status.total, "failed": status.failed, "fetched_bytes": status.ok * 100}
        manifest = {"store": of_store, **numbers}
        output.replace(objects.MANIFEST, json.dumps(manifest).encode())
        output.replace(objects.LAYOUT.errors, "".join(self._errors).encode())
        output.replace(objects.SUCCESS, b"")
        self.ledger.finish(claim, ttl_seconds=60)
        for name in [*output.names("data/part-")]:
            output.remove(name)

    def _rows(self, items: pa.Table, fingerprint: str) -> pa.Table:
        extra = [one for one in items.schema if one.name not in (*_OURS, *STORE_COLUMNS)]
        rows = [self._row(item) for item in items.to_pylist()]
        for one in rows:
            one["model_fingerprint"] = fingerprint if one["status"] == "ok" else None
        return pa.Table.from_pylist(rows, part_schema(DIMENSION, extra, fills_a_store=True))

    def _row(self, item: dict[str, Any]) -> dict[str, Any]:
        self.fetched.append(item["uri"])
        content = self.images.get(item["uri"], item["uri"])
        known, row = item.pop("_content_hash"), {**item, "content_hash": content, "_is_copied": False}
        if content is None:
            self._errors.append(json.dumps({"item_id": item["item_id"]}) + "\n")
            return {**row, "status": "failed", "error_code": "not_found"}
        if content == known:
            return {**row, "status": "same"}
        return {**row, "status": "ok", "embedding": [1.0] * DIMENSION}


_OURS = ("item_index", "item_id", "uri")


class _WorkedHandle(JobHandle):
    """A job that is run when its end is waited for."""

    def __init__(self, nights: Nights, job: Job) -> None:
        super().__init__(nights.ledger, cast(Any, None), cast(Any, None), job, Settings())
        self._nights = nights

    def wait(self, *arguments: Any, **options: Any) -> Any:
        status = self.status()
        if not status.sealed and not status.state.is_final:
            raise TimeoutError
        if not status.state.is_final:
            self._nights.work(self.job)
        return self.status()


def uris(ids: Sequence[str]) -> list[str]:
    """Of `tests.support.store_rows.item`s."""
    return [f"s3://bucket/{name}" for name in ids]
