"""A worker that records when its chunks began and ended, and when features arrived: for benches only.

    python -m ops.bench.timed_worker FILE

It is `clipfleet-worker run` with two functions wrapped, and runs one job at a time. It appends a line of JSON
to FILE for each chunk that ended; all times are of the monotonic clock.
"""

from __future__ import annotations

import json
import sys
import threading
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import numpy as np

from clipfleet.ledger.jobs import Claim
from clipfleet_worker.chunk.held_lease import HeldLease
from clipfleet_worker.chunk.job_contexts import JobContext
from clipfleet_worker.chunk.pipeline import ChunkResult, Pipeline
from clipfleet_worker.outcomes import Outcomes


@dataclass(frozen=True, slots=True)
class Times:
    """Times of one job in the worker, without the command before and after it."""

    items: int
    seconds: float  # from the first chunk's begin, before its items are read, to the last part in place
    steady_per_second: float  # items after the first batch by the time between first and last batch
    work_seconds: dict[str, float]  # working time, summed over threads

    @property
    def per_second(self) -> float:
        """Items per second."""
        return self.items / self.seconds


def read_times(file: Path, job_id: str) -> Times:
    """Read what a worker recorded of a job."""
    chunks = [json.loads(line) for line in file.read_text().splitlines()]
    of_job = [chunk for chunk in chunks if chunk["job"] == job_id]
    batches = sorted((at, count) for chunk in of_job for at, count in chunk["features"])
    first, last = batches[0][0], batches[-1][0]
    if first == last:
        raise SystemExit(f"{job_id} was one batch: more images are needed")
    steps: dict[str, float] = {}
    for chunk in of_job:
        for step, seconds in chunk["steps"].items():
            steps[step] = steps.get(step, 0.0) + seconds
    return Times(
        items=sum(chunk["items"] for chunk in of_job),
        seconds=max(chunk["ended"] for chunk in of_job) - min(chunk["began"] for chunk in of_job),
        steady_per_second=sum(count for at, count in batches if at > first) / (last - first),
        work_seconds=steps,
    )


def main() -> None:
    """Run the worker."""
    file = Path(sys.argv.pop(1))
    run, deliver = Pipeline.run, Outcomes.deliver
    arrivals: list[tuple[float, int]] = []
    lock = threading.Lock()

    def noted_deliver(self: Outcomes, positions: Sequence[int], features: np.ndarray) -> None:
        with lock:
            arrivals.append((time.monotonic(), len(positions)))
        deliver(self, positions, features)

    def noted_run(self: Pipeline, claim: Claim, context: JobContext, lease: HeldLease) -> ChunkResult:
        began = time.monotonic()
        result = run(self, claim, context, lease)
        with lock:
            features = arrivals.copy()
            arrivals.clear()
        line = {
            "job": claim.job_id,
            "began": began,
            "ended": time.monotonic(),
            "items": result.counts.ok,
            "features": features,
            "steps": result.work_seconds,
        }
        with file.open("a") as lines:
            lines.write(json.dumps(line) + "\n")
        return result

    sys.argv[1:] = ["run"]
    with mock.patch.object(Pipeline, "run", noted_run), mock.patch.object(Outcomes, "deliver", noted_deliver):
        from clipfleet_worker.cli.commands import main as worker

        worker()


if __name__ == "__main__":
    main()
