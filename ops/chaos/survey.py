"""What a run left behind, read for the checker once nothing breaks any more."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Sequence
from typing import Any

from clipfleet import keys
from clipfleet.client import Client, JobHandle
from clipfleet.errors import ClipfleetError
from clipfleet.ledger import JobStatus
from clipfleet.outputs import Output, open_output
from clipfleet.redis_connection import connect
from ops.chaos.checker import Attempts, Counts, Event, JobLeft, Row
from ops.chaos.claims import ClaimNote
from ops.chaos.recovery import Death, first_death
from ops.chaos.workload import JobPlan, OutputKind


def survey_jobs(client: Client, plans: Sequence[JobPlan]) -> Iterator[tuple[JobPlan, JobLeft]]:
    """Each job with what is left of it."""
    for plan in plans:
        try:
            yield plan, _left(client.job(plan.job_id), plan)
        except ClipfleetError as error:
            yield plan, JobLeft("?", 0, (), is_marked=False, problem=f"{type(error).__name__}: {error}")


def completion_events(redis_url: str) -> list[Event]:
    """All completion events that the server has."""
    with connect(redis_url) as client:
        entries: Any = client.xrange(keys.EVENTS)
    return [
        Event(fields["job_id"], int(fields["generation"]), fields["state"]) for _, fields in entries
    ]  # fmt: skip


def completions(redis_url: str, plans: Sequence[JobPlan]) -> dict[str, list[float]]:
    """When chunks of each job were completed: seconds of the wall clock, in order."""
    times: dict[str, list[float]] = {}
    with connect(redis_url) as client:
        for plan in plans:
            entries: Any = client.xrange(keys.job(plan.job_id, keys.STREAM))
            times[plan.job_id] = [
                int(name.partition("-")[0]) / 1000 for name, fields in entries if "chunk" in fields
            ]
    return times


def attempts_of(claims: Sequence[ClaimNote], deaths: Sequence[Death]) -> list[Attempts]:
    """The highest counters with which each chunk was claimed, and how many of its owners were struck down.

    Args:
        claims: by time.
        deaths: of workers, freezes included.
    """
    by_chunk: dict[tuple[str, int, int], list[ClaimNote]] = {}
    for claim in claims:
        by_chunk.setdefault((claim.job_id, claim.chunk_id, claim.generation), []).append(claim)
    return [
        Attempts(
            job_id,
            chunk_id,
            losses=max(claim.losses for claim in of_chunk),
            failures=max(claim.failures for claim in of_chunk),
            deaths=_deaths_of(of_chunk, deaths),
        )
        for (job_id, chunk_id, _), of_chunk in by_chunk.items()
    ]


def _deaths_of(claims: Sequence[ClaimNote], deaths: Sequence[Death]) -> int:
    """How many claims of a chunk ended with their worker."""
    untils = [*(claim.at for claim in claims[1:]), math.inf]
    return sum(
        first_death(claim, until, deaths) is not None for claim, until in zip(claims, untils, strict=True)
    )


def _left(job: JobHandle, plan: JobPlan) -> JobLeft:
    status = job.status()
    rows, problem = _rows(job, plan)
    ledger = Counts(status.total, status.ok, status.failed, status.codes)
    if plan.output is OutputKind.REDIS:
        return JobLeft(status.state, status.generation, rows, ledger, problem=problem)
    return _left_in_output(status, open_output(job.output), rows, ledger, problem)


def _left_in_output(
    status: JobStatus, output: Output, rows: Sequence[Row], ledger: Counts, problem: str
) -> JobLeft:
    manifest, errors = output.read(keys.MANIFEST), output.read(keys.ERRORS)
    return JobLeft(
        state=status.state,
        generation=status.generation,
        rows=rows,
        ledger=ledger,
        manifest=_manifest_counts(manifest),
        error_lines=None if errors is None else len(errors.splitlines()),
        is_marked=output.read(keys.SUCCESS) is not None and manifest is not None,
        # A name that ends so is what SeaweedFS keeps of a folder that is empty.
        scratch=[name for name in output.names(f"{keys.TMP}/") if not name.endswith("/")],
        problem=problem,
    )


def _manifest_counts(manifest: bytes | None) -> Counts | None:
    if manifest is None:
        return None
    values = json.loads(manifest)
    return Counts(values["total"], values["ok"], values["failed"], values["errors_by_code"])


def _rows(job: JobHandle, plan: JobPlan) -> tuple[list[Row], str]:
    """The rows that can be read, and why others cannot."""
    rows: list[Row] = []
    result = "embedding" if plan.task == "embed" else "label"
    try:
        for row in job.results():
            rows.append(
                Row(
                    item_index=row["item_index"],
                    item_id=row["item_id"],
                    error_code=row["error_code"],
                    content_hash=row["content_hash"],
                    has_result=row[result] is not None,
                )
            )
    except ClipfleetError as error:
        return rows, f"{type(error).__name__}: {error}"
    return rows, ""
