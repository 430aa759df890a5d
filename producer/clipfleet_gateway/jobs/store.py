"""Jobs as objects of the gateway's place. A change succeeds only if no other gateway made one meanwhile.

submitted/OWNER/JOB_ID.json   the record
asked/OWNER/job-HASH.json     the job that an Idempotency-Key made
open-jobs/JOB_ID.OWNER        there while a job has not ended
work/JOB_ID/items.json        the items of a request that holds them, until the job's end
jobs/JOB_ID/                  the output
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress
from typing import Any

from pydantic import ValidationError

from clipfleet.errors import OutputDamagedError
from clipfleet.outputs import Output
from clipfleet.outputs.job_file import put_if
from clipfleet_gateway.jobs.record import JobRecord, is_job_id
from clipfleet_gateway.keys.asked import note_of
from clipfleet_gateway.shapes.jobs import ItemBody

_OPEN = "open-jobs/"


class JobStore:
    """Keeps and finds jobs. Every method raises `OutputUnavailableError` if the place is unavailable."""

    def __init__(self, place: Output) -> None:
        self.place = place

    def find(self, owner: str, job_id: str) -> JobRecord | None:
        """The job of this owner; None if there is none."""
        name = _record(owner, job_id)
        data = self.place.read(name) if is_job_id(job_id) else None
        if data is None:
            return None
        try:
            return JobRecord.model_validate_json(data)
        except ValidationError:
            raise OutputDamagedError(f"{self.place.uri}/{name} is damaged: submit the job again") from None

    def id_for(self, owner: str, job_id: str, idempotency_key: str) -> str:
        """The id of the job that requests with this key make: the one given here if it is the first."""
        name = note_of(owner, "job", idempotency_key)
        if self.place.create(name, json.dumps({"job_id": job_id}).encode()):
            return job_id
        with suppress(ValueError, KeyError, TypeError):
            found = str(json.loads(self.place.read(name) or b"")["job_id"])
            if is_job_id(found):
                return found
        raise OutputDamagedError(f"{self.place.uri}/{name} is damaged: send another Idempotency-Key")

    def keep(self, job: JobRecord, items: Sequence[ItemBody] | None) -> JobRecord:
        """Keep a new job, and let all gateways tend it; return the one that is kept under its id."""
        found = self.find(job.owner, job.id)
        if found is not None:
            return found
        if items is not None:
            self.place.create(_items(job.id), json.dumps(items).encode())
        self.place.create(_open(job.owner, job.id), b"-")
        if self.place.create(_record(job.owner, job.id), _written(job)):
            return job
        return self.find(job.owner, job.id) or job

    def items(self, job_id: str) -> list[Any] | None:
        """The items of a request that held them; None if it held none, or the job has ended."""
        data = self.place.read(_items(job_id))
        return None if data is None else json.loads(data)

    def change(self, job: JobRecord, **updates: object) -> JobRecord | None:
        """Change a job as it was read; None if it has changed since."""
        changed = job.model_copy(update={**updates, "revision": job.revision + 1})
        name = _record(job.owner, job.id)
        version = self.place.version(name)
        if version is None or self.find(job.owner, job.id) != job:
            return None
        return changed if put_if(self.place, name, _written(changed), version) else None

    def listed(self, owner: str, *, after: str | None, limit: int) -> tuple[Sequence[JobRecord], bool]:
        """Some jobs without their labels, the newest first, and whether there are more.

        `after` may be an id of any job.
        """
        folder = f"submitted/{owner}/"
        names = (name.removeprefix(folder).removesuffix(".json") for name in self.place.names(folder))
        ids = sorted(
            (one for one in names if is_job_id(one) and (after is None or one < after)), reverse=True
        )
        found = (self.find(owner, one) for one in ids[:limit])
        return [_without_labels(one) for one in found if one is not None], len(ids) > limit

    def open(self) -> Iterator[tuple[str, str]]:
        """Owners and ids of the jobs that have not ended, and maybe of some that just have."""
        for name in self.place.names(_OPEN):
            job_id, _, owner = name.removeprefix(_OPEN).partition(".")
            if is_job_id(job_id):
                yield owner, job_id

    def output(self, job_id: str) -> str:
        """URI of the output of a job."""
        return f"{self.place.uri}/jobs/{job_id}"

    def end(self, owner: str, job_id: str) -> None:
        """Remove what a job that has ended needs no more. Idempotent."""
        self.place.remove(_items(job_id))
        self.place.remove_folder(f"work/{job_id}")
        self.place.remove(_open(owner, job_id))


def _without_labels(job: JobRecord) -> JobRecord:
    """A record of which a hundred may be in memory."""
    return job.model_copy(update={"asked": job.asked.model_copy(update={"labels": None, "label_sets": None})})


def _open(owner: str, job_id: str) -> str:
    return f"{_OPEN}{job_id}.{owner}"


def _record(owner: str, job_id: str) -> str:
    return f"submitted/{owner}/{job_id}.json"


def _items(job_id: str) -> str:
    return f"work/{job_id}/items.json"


def _written(job: JobRecord) -> bytes:
    return job.model_dump_json(indent=1, by_alias=True).encode()
