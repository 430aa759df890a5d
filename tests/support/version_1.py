"""Outputs that a clipfleet of schema version 1 wrote, see tests/archive."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import redis

from tests.support.documents import ROOT

ARCHIVE = ROOT / "tests" / "archive" / "version_1"
FINISHED = ("classify", "embed", "jsonl")
ITEMS = 9
LARGE, BROKEN = 1, 7  # the failed ones: that worker's limit was low; nobody can decode it
_HOME = "/srv/clipfleet"  # where they were written


def version_1_output(name: str, folder: Path) -> Path:
    """Copy an output into a folder; its job names the copy then."""
    output = folder / name
    shutil.copytree(ARCHIVE / name, output)
    for path in (output / "_clipfleet" / "job.json", output / "_manifest.json"):
        if path.exists():
            path.write_text(path.read_text().replace(_HOME, str(folder)))
    return output


def restore_unfinished(client: redis.Redis, folder: Path) -> None:
    """Put the job of the output `unfinished` in this folder into Redis, as version 1 kept it."""
    text = (ARCHIVE / "unfinished.redis.json").read_text().replace(_HOME, str(folder))
    with client.pipeline(transaction=True) as pipeline:
        for key, value in json.loads(text).items():
            if isinstance(value, str):
                pipeline.set(key, value.encode("latin-1"))
                continue
            kind, *pairs = value
            if kind == "stream":
                for entry, fields in pairs:
                    pipeline.xadd(key, dict(fields), id=entry)
            elif kind == "hash":
                pipeline.hset(key, mapping=dict(pairs))
            else:
                pipeline.zadd(key, dict(pairs))
        pipeline.execute()


def files_of(output: Path) -> dict[str, bytes]:
    """Content of each file of an output, by its name there."""
    return {str(path.relative_to(output)): path.read_bytes() for path in output.rglob("*") if path.is_file()}
