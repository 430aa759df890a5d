"""A job of 300 items on a slow model, as a terminal shows it, and a model that is downloaded first."""

from __future__ import annotations

import json
import os
import pty
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from PIL import Image

from clipfleet.client import JobOptions
from tests.support.cluster import Cluster
from tests.support.demo_model import DEMO
from tests.support.hub_site import HubSite
from tests.support.images import encoded, write_images
from tests.support.waiting import wait_until

ITEMS = 300


@pytest.fixture
def slow(tmp_path: Path) -> Iterator[Cluster]:
    """A worker that needs about 25 seconds for these items."""
    with Cluster(tmp_path, {"CLIPFLEET_BATCH_SIZE": "4"}) as cluster:
        cluster.start_worker(program=("tests.support.altered_worker", "throttle", str(tmp_path / "no-file")))
        yield cluster


def on_a_terminal(cluster: Cluster, *arguments: str | Path) -> str:
    """What `clipfleet ARGUMENTS` prints on a terminal; it must succeed."""
    ours, theirs = pty.openpty()
    program = subprocess.Popen(
        [Path(sys.executable).parent / "clipfleet", *map(str, arguments)],
        env=cluster.environment() | {"TERM": "xterm", "COLUMNS": "120"},
        cwd=cluster.folder,
        stdin=theirs,
        stdout=theirs,
        stderr=theirs,
    )
    os.close(theirs)
    shown = bytearray()
    try:
        while data := os.read(ours, 1 << 16):
            shown += data
    except OSError:  # the other side is closed
        pass
    finally:
        os.close(ours)
    text = shown.decode()
    assert program.wait() == 0, text
    return text


def test_three_hundred_items_show_twenty_counts_and_none_is_taken_back(slow: Cluster) -> None:
    images = slow.folder / "images"
    images.mkdir()
    black = encoded(Image.new("RGB", (64, 64)))
    for number in range(ITEMS):
        (images / f"{number:03d}.jpg").write_bytes(black)

    shown = on_a_terminal(slow, "embed", images, "--output", slow.folder / "out", "--model", "demo")

    counts = [int(count) for count in re.findall(rf"(\d+)/{ITEMS}", shown)]
    assert counts == sorted(counts)
    assert len({*counts} - {ITEMS}) >= 20, counts


def test_a_download_and_the_load_behind_it_are_shown(tmp_path: Path) -> None:
    repositories = {"org/demo": {path.name: path.read_bytes() for path in DEMO.glob("open_clip_*")}}
    model = "hf-hub:org/demo"
    with HubSite(repositories) as hub:
        settings = {"CLIPFLEET_MODELS": model, "HF_HOME": str(tmp_path / "hub"), "HF_ENDPOINT": hub.url}
        with Cluster(tmp_path, settings) as cluster:
            hub.may_send.clear()
            write_images(tmp_path / "images", 3)
            options = JobOptions(model=model, output=tmp_path / "out")
            job = cluster.client.embed(tmp_path / "images", options=options)
            cluster.start_worker()
            wait_until(lambda: job.status().activity == "downloading 10 of 16 MB", "the download is shown")

            answer = json.loads(cluster.run("status", job.job_id, "--json").stdout)
            assert (answer["activity"], answer["done"]) == ("downloading 10 of 16 MB", 0)
            assert "\nnow      downloading 10 of 16 MB\n" in cluster.run("status", job.job_id).stdout

            hub.may_send.set()
            assert job.wait(120).ok == 3
            assert job.status().activity == ""
