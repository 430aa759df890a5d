"""Write the outputs in `version_1`, with a clipfleet of that schema version: see README.md.

    python make_version_1.py FOLDER

FOLDER becomes part of the outputs: `_clipfleet/job.json` names them by their absolute path.
"""

from __future__ import annotations

import json
import shutil
import sys
import time
from base64 import b64encode
from pathlib import Path
from typing import Any

import redis

from tests.support.cluster import Cluster
from tests.support.images import encoded, make_image

ITEMS, CHUNK = 9, 3
LARGE, BROKEN = 1, 7  # too large for that worker, not for others; broken for all
SETTINGS = {"CLIPFLEET_MAX_PIXELS": "1000", "CLIPFLEET_SLOTS": "1", "CLIPFLEET_LEASE_SECONDS": "5"}
EXPIRING = ("clipfleet:token:", "clipfleet:worker")
OPTIONS = ("--model", "demo", "--no-wait", "--json")


def main(folder: Path) -> None:
    folder.mkdir(parents=True)
    write_list(folder / "list.csv")
    for make in (finished, unfinished):
        with Cluster(folder, SETTINGS) as cluster:
            make(cluster)
            for worker in cluster.living_workers():
                worker.kill()
        shutil.rmtree(folder / "service")
    for path in [folder / "list.csv", *folder.glob("worker-*")]:
        path.unlink()
    for path in folder.glob("*/_clipfleet/tmp"):
        shutil.rmtree(path)


def write_list(path: Path) -> None:
    """Images as data: URLs, so that the staged items need nothing outside of the output."""
    lines = ["id,url,shelf"]
    for number in range(ITEMS):
        size = (40, 36) if number == LARGE else (24, 20)
        data = encoded(make_image(number, *size), quality=60)
        if number == BROKEN:
            data = data[: len(data) // 2]
        lines.append(f'n{number},"data:image/jpeg;base64,{b64encode(data).decode()}",shelf {number % 3}')
    path.write_text("\n".join(lines) + "\n")


def finished(cluster: Cluster) -> None:
    cluster.start_worker()
    for name, command in {
        "classify": ("classify", "--labels", "red,green,blue"),
        "embed": ("embed",),
        "jsonl": ("embed", "--format", "jsonl"),
    }.items():
        submit(cluster, name, *command, chunk_size=CHUNK)
        cluster.client.job(name).wait(120)


def unfinished(cluster: Cluster) -> None:
    """A worker that dies after the first part, and what Redis holds then."""
    output = cluster.folder / "unfinished"
    submit(cluster, "unfinished", "embed", chunk_size=2)
    worker = cluster.launch_worker()
    while not list(output.glob("part-*")):
        time.sleep(0.001)
    worker.kill()
    assert len(list(output.glob("part-*"))) < ITEMS // 2
    with redis.Redis.from_url(cluster.server.url) as client:
        keys = [key.decode() for key in sorted(client.scan_iter("clipfleet:*"))]
        found = {key: _value(client, key) for key in keys if not key.startswith(EXPIRING)}
        lines = [f"{json.dumps(key)}: {json.dumps(value, default=_text)}" for key, value in found.items()]
    (cluster.folder / "unfinished.redis.json").write_text("{\n" + ",\n".join(lines) + "\n}\n")


def submit(cluster: Cluster, name: str, task: str, *options: str, chunk_size: int) -> None:
    source, output = cluster.folder / "list.csv", cluster.folder / name
    named = ("--job-id", name, "--output", output, "--chunk-size", str(chunk_size))
    result = cluster.run(task, source, *options, *named, *OPTIONS)
    assert result.returncode == 0, result.stderr


def _value(client: Any, key: str) -> Any:
    """What a key holds: a string; pairs of a hash, a zset or a stream, after the name of the kind."""
    kind = client.type(key).decode()
    if kind == "string":
        return client.get(key)
    if kind == "hash":
        return [kind, *client.hgetall(key).items()]
    if kind == "zset":
        return [kind, *client.zrange(key, 0, -1, withscores=True)]
    return ["stream", *((entry, list(fields.items())) for entry, fields in client.xrange(key))]


def _text(data: bytes) -> str:
    return data.decode("latin-1")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
