"""Batches as objects of the gateway's place. A change succeeds only if no other gateway made one meanwhile.

batches/OWNER/BATCH_ID.json   the record
asked/OWNER/HASH.json         the batch that answers a request: a repeated one finds it
open/BATCH_ID.OWNER           there while a batch has not ended
work/BATCH_ID/                its requests, until its end
jobs/BATCH_ID/                the output of its job, until its end
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from contextlib import suppress

from pydantic import ValidationError

from clipfleet.errors import OutputDamagedError, OutputUnavailableError
from clipfleet.outputs import Output, objects, open_output
from clipfleet.outputs.job_file import put_if
from clipfleet_gateway.batches.record import BatchRecord, is_batch_id
from clipfleet_gateway.keys.asked import note_of

_OPEN = "open/"
_TRIES = 20  # of a change that others overtake


class BatchStore:
    """Keeps and finds batches. Every method raises `OutputUnavailableError` if the place is unavailable."""

    def __init__(self, place: Output) -> None:
        self.place = place

    def find(self, owner: str, batch_id: str) -> BatchRecord | None:
        """The batch of this owner; None if there is none."""
        name = _record(owner, batch_id)
        data = self.place.read(name) if is_batch_id(batch_id) else None
        if data is None:
            return None
        try:
            return BatchRecord.model_validate_json(data)
        except ValidationError:
            raise OutputDamagedError(f"{self.place.uri}/{name} is damaged: make the batch again") from None

    def begin(self, new: BatchRecord, idempotency_key: str | None) -> BatchRecord:
        """Keep a new batch, unless there is one that answers the same request; return the one that does.

        With an idempotency key, that is the one it was first sent with, whatever that one asked for; else an
        open one of the same owner that wants the same, and is not cancelled.
        """
        name = _asked(new, idempotency_key)
        for _ in range(_TRIES):
            version = self.place.version(name)
            batch_id = self._answering(name) if version is not None else None
            if batch_id is not None:
                found = self._kept(new.model_copy(update={"id": batch_id}))
                if idempotency_key is not None or found.status.answers_again:
                    return found
            if put_if(self.place, name, json.dumps({"batch_id": new.id}).encode(), version):
                return self._kept(new)
        raise OutputUnavailableError(f"{self.place.uri}/{name}: other programs change it all the time")

    def _answering(self, name: str) -> str | None:
        with suppress(ValueError, KeyError, TypeError):
            batch_id = str(json.loads(self.place.read(name) or b"")["batch_id"])
            return batch_id if is_batch_id(batch_id) else None
        return None

    def _kept(self, batch: BatchRecord) -> BatchRecord:
        """Keep a batch that may be kept already, and let all gateways tend it."""
        found = self.find(batch.owner, batch.id)
        if found is not None:
            return found
        self.place.create(_open(batch.owner, batch.id), b"-")
        if self.place.create(_record(batch.owner, batch.id), _written(batch)):
            return batch
        return self.find(batch.owner, batch.id) or batch

    def change(self, batch: BatchRecord, **updates: object) -> BatchRecord | None:
        """Change a batch as it was read; None if it has changed since."""
        changed = batch.model_copy(update={**updates, "revision": batch.revision + 1})
        name = _record(batch.owner, batch.id)
        version = self.place.version(name)
        if version is None or self.find(batch.owner, batch.id) != batch:
            return None
        return changed if put_if(self.place, name, _written(changed), version) else None

    def listed(self, owner: str, *, after: str | None, limit: int) -> tuple[Sequence[BatchRecord], bool]:
        """Some batches, the newest first, and whether there are more. `after` may be an id of any batch."""
        folder = f"batches/{owner}/"
        names = (name.removeprefix(folder).removesuffix(".json") for name in self.place.names(folder))
        ids = sorted(
            (one for one in names if is_batch_id(one) and (after is None or one < after)), reverse=True
        )
        found = (self.find(owner, one) for one in ids[:limit])
        return [one for one in found if one is not None], len(ids) > limit

    def open(self) -> Iterator[tuple[str, str]]:
        """Owners and ids of the batches that have not ended, and maybe of some that just have."""
        for name in self.place.names(_OPEN):
            batch_id, _, owner = name.removeprefix(_OPEN).partition(".")
            if is_batch_id(batch_id):
                yield owner, batch_id

    def requests_file(self, batch_id: str) -> str:
        """Name of the object with what is to be known of each request at the end."""
        return f"work/{batch_id}/requests.jsonl"

    def label_sets_file(self, batch_id: str) -> str:
        """Name of the object with the label sets of a batch."""
        return f"work/{batch_id}/label_sets.json"

    def job_output(self, batch_id: str) -> str:
        """URI of the output of the job of a batch."""
        return f"{self.place.uri}/jobs/{batch_id}"

    def end(self, owner: str, batch_id: str) -> None:
        """Remove what a batch that has ended needs no more. Idempotent."""
        output = open_output(self.job_output(batch_id))
        output.clear()
        output.remove(objects.JOB_FILE)
        for name in (self.requests_file(batch_id), self.label_sets_file(batch_id)):
            self.place.remove(name)
        for folder in (f"work/{batch_id}", f"jobs/{batch_id}"):
            self.place.remove_folder(folder)
        self.place.remove(_open(owner, batch_id))


def _open(owner: str, batch_id: str) -> str:
    return f"{_OPEN}{batch_id}.{owner}"


def _record(owner: str, batch_id: str) -> str:
    return f"batches/{owner}/{batch_id}.json"


def _written(batch: BatchRecord) -> bytes:
    return batch.model_dump_json(indent=1).encode()


def _asked(batch: BatchRecord, idempotency_key: str | None) -> str:
    if idempotency_key is None:
        return note_of(batch.owner, "same", json.dumps(batch.wants))
    return note_of(batch.owner, "key", json.dumps(idempotency_key))
