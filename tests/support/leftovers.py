"""What must be gone after a run: keys that stay for ever, scratch files of ended jobs, footers, processes."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import redis

from clipfleet.contract.jobs import JobState, PartFormat, read_job
from clipfleet.errors import JobUnreadableError
from clipfleet.ledger import keys
from clipfleet.outputs import Output, objects, open_output
from clipfleet.redis.connection import connect
from clipfleet.s3.client import SCHEME
from tests.support.ledger import keys_without_ttl

MARK = "CLUSTER_OF_A_TEST"  # an environment variable that every process of a cluster inherits


def left_in_redis(url: str) -> list[str]:
    """Keys of ours that would stay for ever; none where the server is gone with all it held."""
    try:
        with connect(url) as client:
            return [f"key {name} has no TTL" for name in keys_without_ttl(client)]
    except redis.RedisError:
        return []


def left_by_jobs(url: str) -> list[str]:
    """What the ended jobs of a ledger left in their outputs, where these are folders that are still there."""
    try:
        with connect(url) as client:
            names = [str(name) for name in client.zrange(keys.JOBS, 0, -1)]
            facts = [
                (client.hget(keys.job(name), "state"), client.get(keys.job(name, keys.SPEC)))
                for name in names
            ]
    except redis.RedisError:
        return []
    return [
        problem
        for state, spec in facts
        if state is not None and spec is not None and JobState(state).is_final
        for problem in _left_by_job(spec)
    ]


def _left_by_job(spec: str) -> Iterator[str]:
    try:
        job = read_job(spec)
    except JobUnreadableError:
        return
    if (
        job.output_is_redis
        or job.output.startswith(SCHEME)
        or not Path(job.output, objects.JOB_FILE).is_file()
    ):
        return
    output = open_output(job.output)
    data = output.read(objects.JOB_FILE)
    if data is not None and json.loads(data)["job_id"] == job.job_id:
        yield from left_in_output(output)


def left_in_output(output: Output) -> list[str]:
    """Scratch files, and footers of parts that are not there any more, in the output of an ended job."""
    # A name that ends with a slash is what SeaweedFS keeps of a folder that is empty.
    found = [name for name in output.names(f"{objects.TMP}/") if not name.endswith("/")]
    footers = list(output.names(objects.FOOTER_PREFIX))
    names = [name for layout in objects.LAYOUTS for name in output.names(layout.part_prefix)]
    parts = [name for name in names if name.endswith(f".{PartFormat.JSONL}")]
    if output.read(objects.SUCCESS) is not None and len(footers) != len(parts):
        found.append(f"{len(footers)} footers of {len(parts)} parts")
    return [f"{output.uri}: {name}" for name in found]


def processes_marked(mark: str) -> list[str]:
    """Processes that inherited `MARK` with this value; a zombie has no environment any more."""
    wanted = f"{MARK}={mark}".encode()
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if wanted in (folder / "environ").read_bytes().split(b"\0"):
                command = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                found.append(f"process {folder.name}: {command.strip()}")
        except OSError:  # it has ended, or belongs to another user
            continue
    return found
