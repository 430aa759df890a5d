"""A submit that dies: `python -m tests.support.crashing_submit POINT N SOURCE OUTPUT JOB_ID CHUNK_SIZE`."""

from __future__ import annotations

import sys

from clipfleet.client import Client, JobOptions
from ops.chaos.crash_points import CrashPoint, stand_in_submits
from tests.support.crash_points import dies_at

if __name__ == "__main__":
    point, passage, source, output, job_id, chunk_size = sys.argv[1:]
    stand_in_submits(dies_at(CrashPoint(point), int(passage)))
    with Client() as client:
        options = JobOptions(output=output, model="demo", job_id=job_id, chunk_size=int(chunk_size))
        client.embed(source, options=options)
