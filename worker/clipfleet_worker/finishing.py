"""The end of a job: `_manifest.json`, `errors.jsonl`, then `_SUCCESS`. All of it may be repeated."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from clipfleet import keys
from clipfleet.contract import SCHEMA_VERSION
from clipfleet.errors import OutputUnavailableError
from clipfleet.ledger import FinishClaim, JobStatus, Ledger
from clipfleet.parts import ITEM_COLUMNS, PART_COLUMNS, ItemStatus
from clipfleet_worker.job_contexts import JobContext

_ERROR_COLUMNS = ("error_code", "error_detail")
_PART_LIMIT_SECONDS = 300.0  # a single part that takes longer to read hangs


class Finisher:
    """Writes what a finished job needs beside its parts."""

    def __init__(self, ledger: Ledger, job_ttl_seconds: int) -> None:
        self._ledger = ledger
        self._job_ttl_seconds = job_ttl_seconds

    def finish(self, claim: FinishClaim, context: JobContext, alive: Callable[[str, float], None]) -> str:
        """Finish a claimed job; answers the ledger's word, see `Ledger.finish`.

        Args:
            claim: the job that is ours to finish.
            context: the same job, opened.
            alive: called before each part with the stage's name and its limit in seconds.

        Raises:
            OutputUnavailableError: parts cannot be read or files not written; the job stays `finishing`.
        """
        status = self._ledger.status(claim.job_id)
        parts = self._write_errors(context, alive)
        missing = status.chunks - len(parts)
        if missing:
            raise OutputUnavailableError(
                f"{context.output.uri}: {missing} of {status.chunks} parts are not there"
            )
        manifest = _manifest(context, status, parts)
        context.output.replace(keys.MANIFEST, json.dumps(manifest, indent=1).encode())
        context.output.replace(keys.SUCCESS, b"")
        return self._ledger.finish(claim, ttl_seconds=self._job_ttl_seconds)

    def _write_errors(self, context: JobContext, alive: Callable[[str, float], None]) -> list[dict[str, Any]]:
        """Write `errors.jsonl`; returns name, rows and failed rows of every part."""
        parts = []
        with context.output.scratch() as path:
            with path.open("w", encoding="utf-8") as file:
                for name in context.output.names("part-"):
                    alive("finish", _PART_LIMIT_SECONDS)
                    rows, errors = _read_errors(context, name)
                    file.writelines(json.dumps(error, ensure_ascii=False) + "\n" for error in errors)
                    parts.append({"name": name, "rows": rows, "failed": len(errors)})
            context.output.publish(path, keys.ERRORS, replace=True)
        return parts


def _read_errors(context: JobContext, name: str) -> tuple[int, list[dict[str, Any]]]:
    """Number of rows of a part, and its failed rows as lines of an input manifest."""
    with context.output.open(name) as file:
        part = pq.ParquetFile(file)
        footer = json.loads((part.metadata.metadata or {}).get(b"clipfleet", b"{}"))
        if footer.get("failed") == 0:
            return part.metadata.num_rows, []
        extra = [column for column in part.schema_arrow.names if column not in PART_COLUMNS]
        table = part.read(columns=[*ITEM_COLUMNS, "status", *_ERROR_COLUMNS, *extra])
    failed = table.filter(pc.equal(table["status"], pa.scalar(ItemStatus.FAILED.value)))
    return part.metadata.num_rows, failed.drop_columns(["status"]).to_pylist()


def _manifest(context: JobContext, status: JobStatus, parts: list[dict[str, Any]]) -> dict[str, Any]:
    job = context.job
    return {
        "schema_version": SCHEMA_VERSION,
        "job": job.model_dump(mode="json"),
        "generation": status.generation,
        "total": status.total,
        "ok": status.ok,
        "failed": status.failed,
        "errors_by_code": dict(status.codes),
        "stage_seconds": {stage: round(seconds, 3) for stage, seconds in status.stage_seconds.items()},
        "created_at": job.created_at.isoformat(),
        "finished_at": datetime.now(UTC).isoformat(),
        "parts": parts,
    }
