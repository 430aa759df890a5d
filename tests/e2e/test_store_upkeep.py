"""Nights of a store between which it is compacted, vacuumed, and forgets items."""

from __future__ import annotations

import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e.test_backfill import Collection, counts, make_old, names
from tests.support.cluster import Cluster
from tests.support.images import write_images


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Cluster(tmp_path_factory.mktemp("cluster"), {"CLIPFLEET_HEALTH_PORT": "0"}) as running:
        running.start_worker()
        yield running


@pytest.fixture
def collection(cluster: Cluster, folder: Path) -> Collection:
    """Twenty images."""
    images = folder / "images"
    write_images(images, 20)
    make_old(images)
    return Collection(cluster, images, folder / "store")


def test_nights_go_on_between_upkeep(collection: Collection) -> None:
    cluster, images, store = collection.cluster, collection.images, collection.store
    first = collection.night()
    shutil.copy(images / "000009.jpg", images / "new.jpg")
    make_old(images)
    second = collection.night()

    compacted = cluster.run_json("store", "compact", store)
    assert [one["files"] for one in compacted["datasets"]] == [1]
    assert counts(collection.night()) == {"same": 21}

    (images / "000003.jpg").unlink()
    victim = next(one for one in collection.ids() if one.endswith("000003.jpg"))
    forgotten = cluster.run_json("store", "forget", store, victim)
    assert (forgotten["forgotten"], forgotten["missing"]) == ([victim], [])
    assert forgotten["jobs"] == sorted([first["job_id"], second["job_id"]])
    assert counts(collection.night()) == {"same": 20}, "it is not gone: the store has not heard of it"

    vacuumed = cluster.run_json("store", "vacuum", store, "--keep", "1h")
    assert (vacuumed["versions"], vacuumed["models"]) == (0, [])
    shutil.copy(images / "000008.jpg", images / "000004.jpg")
    assert counts(collection.night())["changed"] == 1
    assert len(collection.ids()) == 20


def test_upkeep_beside_nights(collection: Collection) -> None:
    """Both take the lock in turn: nothing is lost or doubled."""
    collection.night()
    ended = threading.Event()
    failures: list[BaseException] = []

    def upkeep() -> None:
        try:
            while not ended.is_set():
                collection.cluster.run_json("store", "compact", collection.store)
                collection.cluster.run_json("store", "vacuum", collection.store, "--keep", "1h")
        except BaseException as error:  # reported below
            failures.append(error)

    beside = threading.Thread(target=upkeep)
    beside.start()
    for number in range(4):
        shutil.copy(collection.images / "000009.jpg", collection.images / f"new-{number}.jpg")
        (collection.images / f"{number:06d}.jpg").unlink()
        make_old(collection.images)
        night = collection.night()
        assert (night["new"], night["gone"], night["failed"]) == (1, 1, 0)
    ended.set()
    beside.join()

    assert failures == []
    wanted = {*names(range(4, 20)), *(f"new-{number}.jpg" for number in range(4))}
    assert {Path(one).name for one in collection.ids()} == wanted
    assert len(collection.ids()) == len(wanted)
