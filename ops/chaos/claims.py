"""Who claimed and completed what when: a worker's ledger that notes it, and the notes read back."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipfleet.contract.jobs import Lane
from clipfleet.ledger.answers import CompleteAnswer
from clipfleet.ledger.jobs import Claim, Ledger

CLAIMS_FILE = "CHAOS_CLAIMS_FILE"  # environment variable with the file that a worker appends to
_COMPLETIONS = ".completions"  # ending of the file beside it


@dataclass(frozen=True, slots=True)
class ClaimNote:
    """One claim."""

    at: float  # `time.monotonic()`, which is one clock for all processes of a machine
    worker: int  # number of the worker process in the run
    job_id: str
    chunk_id: int
    generation: int
    losses: int
    failures: int


class NotingLedger(Ledger):
    """A ledger that notes each claim of this worker."""

    def claim(
        self,
        token: str,
        lease_seconds: float,
        lanes: Sequence[Lane],
        models: Sequence[str],
        excluded_jobs: Iterable[str] = (),
    ) -> Claim | None:
        """See `Ledger`."""
        claim = super().claim(token, lease_seconds, lanes, models, excluded_jobs)
        if claim is not None:
            path = Path(os.environ[CLAIMS_FILE])
            note(path, claim.job_id, claim.chunk_id, claim.generation, claim.losses, claim.failures)
        return claim

    def complete(self, claim: Claim, **result: Any) -> CompleteAnswer:
        """See `Ledger`."""
        word = super().complete(claim, **result)
        if word.is_counted:
            path = Path(os.environ[CLAIMS_FILE]).with_suffix(_COMPLETIONS)
            _append(path, {"at": time.monotonic(), "job_id": claim.job_id})
        return word


def note(
    path: Path, job_id: str, chunk_id: int, generation: int = 0, losses: int = 0, failures: int = 0
) -> None:
    """Append one claim to a worker's file, whose name is the worker's number. Whole or not at all."""
    claim = ClaimNote(
        time.monotonic(), int(path.stem), job_id, chunk_id, generation, losses, failures
    )  # fmt: skip
    _append(path, asdict(claim))


def _append(path: Path, facts: dict[str, object]) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    try:
        os.write(descriptor, f"{json.dumps(facts)}\n".encode())
    finally:
        os.close(descriptor)


def read_claims(folder: Path) -> list[ClaimNote]:
    """All notes of a run, by time."""
    lines = (line for path in folder.glob("*.jsonl") for line in path.read_text().splitlines())
    return sorted((ClaimNote(**json.loads(line)) for line in lines), key=lambda claim: claim.at)


def read_completions(folder: Path) -> dict[str, list[float]]:
    """When chunks of each job were completed, in order, on the clock of the claims."""
    times: dict[str, list[float]] = {}
    for path in folder.glob(f"*{_COMPLETIONS}"):
        for line in path.read_text().splitlines():
            completed = json.loads(line)
            times.setdefault(completed["job_id"], []).append(completed["at"])
    return {job_id: sorted(of_job) for job_id, of_job in times.items()}
