"""Jobs, claims and snapshots as values, for tests that need no ledger."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pyarrow as pa

from clipfleet.contract.jobs import Job, JobState, Lane, SourceDescription, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.ledger.jobs import Claim, FinishClaim, JobStatus
from clipfleet.outputs import Output, objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.sources.batches import item_batch
from clipfleet.submit.staging import Stager

JOB_ID = "20261124-3f9a1c2b7d4e"


class FullDisk(FolderOutput):
    """An output in which nothing can be written any more; what is there can be read."""

    @contextmanager
    def scratch(self) -> Iterator[Path]:
        """A link to the device that is always full: pyarrow removes a file that it could not write."""
        path = Path(self.uri, "full")
        path.symlink_to("/dev/full")
        try:
            yield path
        finally:
            path.unlink(missing_ok=True)


def make_job(output: str | Path = "/out", *, labels: tuple[str, ...] = (), **values: Any) -> Job:
    """A job over a folder: `classify` where labels are given, else `embed`."""
    defaults: dict[str, Any] = {
        "job_id": JOB_ID, "task": Task.CLASSIFY if labels else Task.EMBED, "model": "demo",
        "label_sets": (LabelSet(labels=labels),) if labels else (), "output": str(output),
        "source": SourceDescription(kind="folder", uri="/images"),
        "created_at": datetime(2026, 11, 24, 12, tzinfo=UTC),
    }  # fmt: skip
    return Job(**(defaults | values))


def place_job(output: Output, job: Job) -> None:
    """Put the job's own file into its output, as a submit does."""
    assert output.create(objects.JOB_FILE, job.model_dump_json().encode())


def stage_items(output: Output, job: Job, uris: list[str], **extra: list[str] | pa.Array) -> int:
    """Stage items as one file; returns the number of its chunks."""
    columns = {
        name: values if isinstance(values, pa.Array) else pa.array(values, pa.string())
        for name, values in extra.items()
    }
    batch = item_batch(0, None, pa.array(uris, pa.string()), columns)
    (staged,) = Stager(output, job.job_id, job.chunk_size).stage([batch])
    return staged.chunks


def make_claim(job: Job | None = None, **values: Any) -> Claim:
    """A first claim of a job's only chunk."""
    job = job or make_job()
    claim = Claim(
        token="token", job_id=job.job_id, chunk_id=0, generation=0, losses=0, failures=0, waits=0,
        job_fingerprint=job.fingerprint, first_chunk=0, chunks=1, more=False, chunk_size=job.chunk_size,
    )  # fmt: skip
    return replace(claim, **values)


def make_finish_claim(job: Job) -> FinishClaim:
    """The finishing of a job."""
    return FinishClaim("token", job.job_id, 0, job.fingerprint)


def make_status(**values: Any) -> JobStatus:
    """A running job of 100 items in 10 chunks, nothing done and nothing leased."""
    status = JobStatus(
        job_id=JOB_ID, state=JobState.RUNNING, lane=Lane.NORMAL, model="demo", generation=0, sealed=True,
        total=100, ok=0, failed=0, chunks=10, done_chunks=0, leased_chunks=0, due_chunks=0, codes={},
        work_seconds={}, reason="", created_ms=1_764_000_000_000, finished_ms=None,
    )  # fmt: skip
    return replace(status, **values)
