"""While vectors are labelled again nothing of an image is read: no file is opened, no host is reached."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.support.cluster import Cluster
from tests.support.file_watch import FileWatch
from tests.support.http_site import HttpSite
from tests.support.images import write_images

IMAGES = 24  # half of them files, half of them on a web site


@dataclass(frozen=True)
class Watched:
    """A worker that records what it opens, and a list of images."""

    cluster: Cluster
    log: Path
    images: Path
    site: HttpSite

    def opened_since(self, start: int) -> list[str]:
        return self.log.read_text(errors="replace")[start:].splitlines()


@pytest.fixture
def watched(tmp_path: Path) -> Iterator[Watched]:
    folder = tmp_path
    images, pages = folder / "images", folder / "pages"
    write_images(images, IMAGES // 2)
    write_images(pages, IMAGES // 2)
    (folder / "service").mkdir()
    with HttpSite(pages) as site, Cluster(folder / "service") as cluster:
        cluster.settings["CLIPFLEET_FILE_ROOTS"] = str(folder)
        cluster.settings["CLIPFLEET_ALLOW_PORTS"] = str(site.port)
        places = [str(path) for path in sorted(images.iterdir())]
        places += [site.url(f"/files/{path.name}") for path in sorted(pages.iterdir())]
        (folder / "list.csv").write_text("url\n" + "\n".join(places) + "\n")
        log = folder / "opened.txt"
        cluster.start_worker(program=("tests.support.watched_worker", str(log)))
        yield Watched(cluster, log, images, site)


def test_no_image_is_opened_and_scores_are_those_of_the_images(watched: Watched) -> None:
    cluster, site = watched.cluster, watched.site
    first, again = cluster.folder / "first", cluster.folder / "again"
    labels = ["red", "a house", "a dog", "a round object"]
    how = ("--model", "demo", "--labels", ",".join(labels), "--top-k", str(len(labels)))

    with FileWatch(watched.images) as files:
        answer = cluster.run_json(
            "classify",
            watched.images.parent / "list.csv",
            *how,
            "--store-embeddings",
            "--vector-type",
            "float32",
            "--output",
            first,
        )
        assert (answer["ok"], answer["failed"]) == (IMAGES, 0), cluster.logs()
        assert files.was_read()  # the watchers see images
        assert site.requests.total() == IMAGES // 2
        opened = watched.opened_since(0)
        assert any(str(watched.images) in line for line in opened)
        assert any(line.startswith("connect") and str(site.port) in line for line in opened)

        start, requests = watched.log.stat().st_size, site.requests.total()
        answer = cluster.run_json("relabel", first, *how[2:], "--output", again)

        assert (answer["ok"], answer["failed"]) == (IMAGES, 0)
        assert not files.was_read()
    assert site.requests.total() == requests
    opened = watched.opened_since(start)
    assert opened  # the output, at least
    assert not [line for line in opened if str(watched.images) in line or str(site.port) in line]

    for row, old in zip(cluster.rows(again), cluster.rows(first), strict=True):
        kept = [name for name in old if name not in ("label", "score", "labels", "scores", "embedding")]
        assert {name: row[name] for name in kept} == {name: old[name] for name in kept}
        scores, olds = (dict(zip(one["labels"], one["scores"], strict=True)) for one in (row, old))
        assert scores == olds  # float32 loses nothing
