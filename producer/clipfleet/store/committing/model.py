"""Which model has made the rows of a job that fills a store: each row that is ok says so.

The ledger knows it, too, see `Ledger.pin_model`, unless Redis has lost the job since.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import closing

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.jobs import Job
from clipfleet.contract.parts import ItemStatus
from clipfleet.errors import OutputConflictError, OutputUnavailableError
from clipfleet.outputs import Output
from clipfleet.parts import parts_of, read_ahead
from clipfleet.store.dataset import Alive

MODEL_COLUMN = "model_fingerprint"


def model_of_rows(job: Job, output: Output, chunk_ids: Iterable[int], alive: Alive = lambda: None) -> str:
    """The fingerprint of the model of a job's rows; empty if no row is ok.

    Args:
        job: fills a store.
        output: of the job.
        chunk_ids: of chunks whose parts are there.
        alive: called after each part; what it raises ends the call.

    Raises:
        OutputUnavailableError: a part cannot be read.
    """
    files = parts_of(job)

    def load(chunk_id: int) -> str:
        name = files.name(chunk_id)
        try:
            with files.open(output, name) as part:
                identity, counts = part.footer()
                if identity.job_id != job.job_id or counts.ok == counts.same:
                    return ""
                found = (one for batch in part.batches(["status", MODEL_COLUMN]) for one in _models(batch))
                return next(filter(None, found), "")
        except FileNotFoundError as error:
            raise OutputUnavailableError(f"{output.uri}/{name} was removed while it was read") from error

    with closing(read_ahead(load, chunk_ids, depth=files.footer_readers)) as loaded:
        for found in loaded:
            if found:
                return found
            alive()
    return ""


def require_model(rows: pa.RecordBatch, fingerprint: str, job: Job) -> None:
    """Raise `OutputConflictError` unless all rows that are ok are of one model."""
    found = {fingerprint, *_models(rows)}
    if len(found) > 1 or None in found:
        named = " and ".join(sorted(one or "none" for one in found))
        raise OutputConflictError(
            f"job {job.job_id} has vectors with the fingerprints {named}, of workers with other weights or "
            "another precision, between which Redis has lost the job: none was committed; run `clipfleet "
            "backfill` again, which embeds the items anew"
        )


def _models(rows: pa.RecordBatch) -> list[str | None]:
    is_ok = pc.equal(rows["status"], ItemStatus.OK.value)
    found: list[str | None] = rows[MODEL_COLUMN].filter(is_ok).unique().to_pylist()
    return found
