"""Whether a worker's model makes the vectors of a job that fills a store.

A store has vectors of one model, in any precision. The first worker that loads the model of a job decides
which one that is, unless the store has decided before.
"""

from __future__ import annotations

from clipfleet.contract.jobs import Job
from clipfleet.contract.stores import StoreTarget
from clipfleet.ledger.jobs import Ledger
from clipfleet_worker.failures import ChunkInterrupted, ModelMismatchError
from clipfleet_worker.models.loaded import LoadedModel


def pin_model(ledger: Ledger, job: Job, target: StoreTarget, model: LoadedModel) -> str:
    """Return the fingerprint of a job's vectors if the model makes them; decide it if none is. Idempotent.

    The model here may have another one, in another precision. Rows say the decided one: so the commit sees
    whether all are of one model.

    Raises:
        ModelMismatchError: they are of another model.
        ChunkInterrupted: the job is no longer there.
        RedisUnavailableError: nothing can be decided now.
    """
    mine = model.fingerprint_for(job.decode, job.exif)
    wanted = target.fingerprint or ledger.pin_model(job.job_id, mine)
    if not wanted:
        raise ChunkInterrupted("the job is gone")
    if not model.has_made(wanted, job.decode, job.exif):
        holder, way_out = f"job {job.job_id}", "give all workers the same weights"
        if target.fingerprint:
            holder, way_out = (
                f"the store {target.uri}",
                "use the weights that made them, or move the store to these: "
                f"`clipfleet backfill SOURCE --store {target.uri} --migrate --model {job.model}`",
            )
        raise ModelMismatchError(
            f"{holder} has vectors with the fingerprint {wanted}, those of {job.model} have {mine} here: "
            f"{way_out}"
        )
    return wanted
