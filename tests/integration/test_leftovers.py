"""The check at the end of all tests with real workers: it finds what it is there to find."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import redis

from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from tests.support.jobs import make_job, place_job
from tests.support.ledger import add_job
from tests.support.leftovers import MARK, left_by_jobs, left_in_output, left_in_redis, processes_marked


def test_a_key_without_an_end_is_found(redis_url: str, redis_client: redis.Redis) -> None:
    redis_client.set(f"{keys.PREFIX}:x", "1", ex=60)
    assert left_in_redis(redis_url) == []

    redis_client.persist(f"{keys.PREFIX}:x")

    assert left_in_redis(redis_url) == [f"key {keys.PREFIX}:x has no TTL"]


def test_scratch_files_of_ended_jobs_are_found(ledger: Ledger, redis_url: str, tmp_path: Path) -> None:
    job = make_job(tmp_path / "output")
    place_job(FolderOutput(tmp_path / "output"), job)
    add_job(ledger, job=job)
    (tmp_path / "output" / objects.TMP / "half").write_bytes(b"x")
    assert left_by_jobs(redis_url) == []  # somebody writes it

    ledger.cancel(job.job_id, ttl_seconds=60)

    assert left_by_jobs(redis_url) == [f"{tmp_path}/output: {objects.TMP}/half"]


def test_footers_without_a_part_are_found(tmp_path: Path) -> None:
    output = FolderOutput(tmp_path)
    part = objects.LAYOUT.part(0, "jsonl")
    for name in (part, objects.SUCCESS, objects.detached_footer(part, "j", "a")):
        output.create(name, b"")
    assert left_in_output(output) == []

    output.create(objects.detached_footer(part, "j", "b"), b"")

    assert left_in_output(output) == [f"{tmp_path}: 2 footers of 1 parts"]


def test_a_process_is_found_by_its_mark_until_it_has_ended(tmp_path: Path) -> None:
    program = [sys.executable, "-c", "import sys; print(flush=True); sys.stdin.read()"]
    with subprocess.Popen(
        program, env={**os.environ, MARK: str(tmp_path)}, stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        assert [line.split(":")[0] for line in processes_marked(str(tmp_path))] == [f"process {process.pid}"]
        assert processes_marked(f"{tmp_path}x") == []
    assert processes_marked(str(tmp_path)) == []
