"""What a run left behind, read for the checker once nothing breaks any more."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import chain
from typing import Any

from clipfleet.client import Client, JobHandle
from clipfleet.contract.jobs import PartFormat
from clipfleet.errors import ClipfleetError, OutputDamagedError, OutputUnreachableError, WorldError
from clipfleet.ledger import keys
from clipfleet.outputs import Output, objects, open_output
from clipfleet.parts import part_files
from clipfleet.redis.connection import connect
from ops.chaos.checker import Attempts, Counts, Event, JobLeft, PartLeft, Row
from ops.chaos.claims import ClaimNote
from ops.chaos.recovery import Death, first_death
from ops.chaos.values import Values
from ops.chaos.workload import JobPlan, OutputKind

_AT_A_TIME = 4  # jobs: most of the time goes into asking the store


def survey_jobs(client: Client, plans: Sequence[JobPlan]) -> Iterator[tuple[JobPlan, JobLeft]]:
    """Each job with what is left of it."""

    def survey(plan: JobPlan) -> JobLeft:
        try:
            return left_of(client.job(plan.job_id), plan)
        except ClipfleetError as error:
            return JobLeft("?", 0, (), is_marked=False, problem=f"{type(error).__name__}: {error}")

    with ThreadPoolExecutor(_AT_A_TIME) as pool:
        yield from zip(plans, pool.map(survey, plans), strict=True)


def completion_events(redis_url: str) -> list[Event]:
    """All completion events that the server has."""
    with connect(redis_url) as client:
        entries: Any = client.xrange(keys.EVENTS)
    return [
        Event(fields["job_id"], int(fields["generation"]), fields["state"]) for _, fields in entries
    ]  # fmt: skip


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


def left_of(job: JobHandle, plan: JobPlan) -> JobLeft:
    """What there is of a job now.

    Raises:
        ClipfleetError: it cannot be told; what is wrong with the rows alone is a `problem` of the answer.
    """
    status = job.status()
    rows, problem, is_away = _rows(job, plan)
    ledger = Counts(status.total, status.ok, status.failed, status.codes)
    if plan.output is OutputKind.REDIS:
        return JobLeft(status.state, status.generation, rows, ledger, problem=problem, is_away=is_away)
    output = open_output(job.output)
    manifest, errors = output.read(objects.MANIFEST), output.read(objects.LAYOUT.errors)
    parts, unreadable = _parts(output, plan)
    return JobLeft(
        state=status.state,
        generation=status.generation,
        rows=rows,
        ledger=ledger,
        manifest=_manifest_counts(manifest),
        errors=_error_lines(errors),
        parts=parts,
        listed=_listed(manifest),
        strays=[*_strays(output, plan)],
        is_marked=output.read(objects.SUCCESS) is not None and manifest is not None,
        # A name that ends so is what SeaweedFS keeps of a folder that is empty.
        scratch=[name for name in output.names(f"{objects.TMP}/") if not name.endswith("/")],
        problem=problem or unreadable,
        is_away=is_away,
    )


def _manifest_counts(manifest: bytes | None) -> Counts | None:
    if manifest is None:
        return None
    values = json.loads(manifest)
    return Counts(values["total"], values["ok"], values["failed"], values["errors_by_code"])


def _listed(manifest: bytes | None) -> list[tuple[int, int, int]] | None:
    if manifest is None:
        return None
    return [(_chunk_id(part["name"]), part["rows"], part["failed"]) for part in json.loads(manifest)["parts"]]


def _error_lines(errors: bytes | None) -> list[tuple[int, str]] | None:
    if errors is None:
        return None
    lines = map(json.loads, errors.splitlines())
    return [(line["item_index"], line["error_code"]) for line in lines]


def _strays(output: Output, plan: JobPlan) -> Iterator[str]:
    """Objects among the results in an output that are none of this job's."""
    own = {objects.MANIFEST, objects.LAYOUT.errors, objects.SUCCESS}
    own |= {objects.LAYOUT.part(chunk_id, plan.part_format) for chunk_id in range(plan.chunks)}
    names = chain(output.names(""), output.names(objects.LAYOUT.data))
    return (name for name in names if name not in own and not name.endswith("/"))


def _parts(output: Output, plan: JobPlan) -> tuple[list[PartLeft], str]:
    """The parts that can be read, and why another one cannot."""
    files = part_files(PartFormat(plan.part_format), plan.job_id)
    parts: list[PartLeft] = []
    for chunk_id in range(plan.chunks):
        name = files.name(chunk_id)
        try:
            with files.open(output, name) as part:
                identity, counts = part.footer()
                rows = [
                    row for batch in part.batches(["item_index", "error_code"]) for row in batch.to_pylist()
                ]
        except FileNotFoundError:
            continue  # the manifest lists it, or its rows are missing
        except (ValueError, OutputDamagedError) as error:
            return parts, f"{name}: {error}"
        parts.append(
            PartLeft(
                chunk_id=chunk_id,
                is_own=(identity.job_id, identity.chunk_id) == (plan.job_id, chunk_id),
                generation=identity.generation,
                ok=counts.ok,
                failed=counts.failed,
                indexes=[row["item_index"] for row in rows],
                failed_indexes=[row["item_index"] for row in rows if row["error_code"]],
            )
        )
    return parts, ""


def _chunk_id(part_name: str) -> int:
    return int(part_name.removeprefix(objects.LAYOUT.part_prefix).partition(".")[0])


def _rows(job: JobHandle, plan: JobPlan) -> tuple[list[Row], str, bool]:
    """The rows that can be read, why others cannot, and whether that may pass."""
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
                    values=_values(row),
                )
            )
    except ClipfleetError as error:
        is_away = isinstance(error, WorldError) and not isinstance(error, OutputUnreachableError)
        return rows, f"{type(error).__name__}: {error}", is_away
    return rows, "", False


def _values(row: Mapping[str, Any]) -> Values:
    vector = row.get("embedding") or ()
    return Values(
        uri=row["uri"],
        status=row["status"],
        error_detail=row["error_detail"],
        size=(row["width"], row["height"]),
        fingerprint=row["model_fingerprint"],
        label=row["label"],
        numbers=tuple(vector[:_NUMBERS])
        or (*(row["scores"] or ()), *([row["score"]] if row["label"] else ())),
    )


_NUMBERS = 8  # of a vector: enough to tell it from that of another image
