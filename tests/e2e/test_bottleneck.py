"""Four jobs, each throttled at another stage of a real worker, name what limits them."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from tests.support.altered_worker import SLOW_TO_DECODE
from tests.support.cluster import Cluster
from tests.support.http_site import HttpSite
from tests.support.images import encoded, make_image

ITEMS = 48
SETTINGS = {"CLIPFLEET_HOST_CONNECTIONS": "2", "CLIPFLEET_DECODE_THREADS": "2"}


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("bottleneck"), SETTINGS) as cluster:
        cluster.start_worker(program=("tests.support.altered_worker", "throttle", str(slow_writes(cluster))))
        # What a worker loads with its first images would pass for decoding.
        first = folder_of(cluster, "first", encoded(make_image(1)))
        assert cluster.embed(first, cluster.folder / "first-out").wait(60).ok == ITEMS
        yield cluster


def slow_writes(cluster: Cluster) -> Path:
    """While this file is there, parts take long to write."""
    return cluster.folder / "slow-writes"


def folder_of(cluster: Cluster, name: str, data: bytes) -> Path:
    folder = cluster.folder / name
    folder.mkdir()
    for number in range(ITEMS):
        (folder / f"{number:04d}.jpg").write_bytes(data)
    return folder


def limit(cluster: Cluster, source: Path) -> Any:
    """What the end of the wait, the ledger and the manifest say; it is the same."""
    output = cluster.folder / f"{source.stem}-out"
    options = ["--model", "demo", "--chunk-size", "16", "--output", output]
    summary = cluster.run_json("embed", source, *options)
    assert summary["failed"] == 0
    status = cluster.status(summary["job_id"])
    assert (status.limit and asdict(status.limit)) == summary["limit"]
    assert json.loads((output / "_manifest.json").read_text())["limit"] == summary["limit"], status.meters
    return summary["limit"]


def test_fetch(cluster: Cluster, site: HttpSite) -> None:
    source = cluster.folder / "late.txt"
    source.write_text("".join(f"{site.url(f'/late/000000.jpg?{n}')}\n" for n in range(ITEMS)))
    found = limit(cluster, source)

    assert found["step"] == "fetch"
    assert found["text"].startswith("hosts at their connection caps hold up most of the items (")


def test_decode_as_the_command_line_reports_it(cluster: Cluster) -> None:
    source = folder_of(cluster, "large", encoded(make_image(1)) + SLOW_TO_DECODE)
    options = ["--model", "demo", "--job-id", "large", "--output", cluster.folder / "large-out"]
    run = cluster.run("embed", source, *options)

    assert "limited by decode: 2 threads busy " in run.stderr
    assert "\nlimit    decode: 2 threads busy " in cluster.run("status", "large").stdout


def test_forward(cluster: Cluster) -> None:
    found = limit(cluster, folder_of(cluster, "black", encoded(Image.new("RGB", (64, 64)))))

    assert found["step"] == "encode"
    assert found["text"].endswith(" (cpu, fp32)")


def test_sink(cluster: Cluster) -> None:
    source = folder_of(cluster, "quick", encoded(make_image(1)))
    slow_writes(cluster).touch()
    try:
        found = limit(cluster, source)
    finally:
        slow_writes(cluster).unlink()

    assert found["step"] == "write"
    assert found["text"].startswith("writing parts takes ")
