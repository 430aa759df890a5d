"""A store moves to another model while nights and readers go on."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta

import pytest

from clipfleet.results.store_rows import store_rows
from clipfleet.store.maintenance.holding import held_store
from clipfleet.store.maintenance.vacuum import vacuum
from clipfleet.store.place import StorePlace
from tests.e2e.test_backfill import Collection, make_old
from tests.support.cluster import Cluster
from tests.support.images import write_images
from tests.support.second_model import write_second_model
from tests.support.waiting import wait_until

IMAGES = 240


@pytest.fixture(scope="module")
def collection(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Collection]:
    """A store that the model of the demo has filled; its worker serves `mine` as well."""
    folder = tmp_path_factory.mktemp("migration")
    model = write_second_model(folder / "mine")
    write_images(folder / "images", IMAGES)
    make_old(folder / "images")
    with Cluster(folder) as cluster:
        cluster.start_worker({"CLIPFLEET_MODELS": f"demo,{model}"})
        made = Collection(cluster, folder / "images", folder / "store")
        made.night()
        yield made


@dataclass
class PollingReader:
    """Reads a whole store again and again, until it is told to end."""

    place: StorePlace
    ended: threading.Event = field(default_factory=threading.Event)
    answers: list[tuple[frozenset[str], int, int]] = field(default_factory=list)
    failures: list[BaseException] = field(default_factory=list)

    def run(self) -> None:
        try:
            while not self.ended.is_set():
                self.answers.append(self._answer())
        except BaseException as error:  # raised by the test
            self.failures.append(error)

    def _answer(self) -> tuple[frozenset[str], int, int]:
        """The fingerprints in all rows, the length of their vectors, and how many rows there are."""
        rows = store_rows(self.place)
        fingerprints, count = set(), 0
        for batch in rows.read(["item_id", "model_fingerprint", "embedding"]).batches:
            fingerprints |= set(batch["model_fingerprint"].to_pylist())
            count += batch.num_rows
        return frozenset(fingerprints), rows.dimension, count


def test_nights_and_readers_go_on_during_a_migration(collection: Collection) -> None:
    cluster, images, place = collection.cluster, collection.images, collection.place
    before = place.read().current.fingerprint
    reader = PollingReader(place)
    polling = threading.Thread(target=reader.run)
    polling.start()
    to_other_model = ("--store", collection.store, "--migrate", "-m", "./mine", "--chunk-size", "1")
    migrating = cluster.start("backfill", images, *to_other_model, "--json")
    wait_until(lambda: place.read().migration, "the migration has begun")

    shutil.copy(images / "000009.jpg", images / "new.jpg")
    shutil.copy(images / "000008.jpg", images / "000007.jpg")
    (images / "000001.jpg").unlink()
    make_old(images)
    night = collection.night("--lane", "high")
    assert place.read().current.fingerprint == before, "the night has run beside the migration"
    out, errors = migrating.communicate(timeout=240)
    assert (migrating.returncode, json.loads(out)["switched"]) == (0, True), errors
    wait_until(lambda: reader.failures or reader.answers[-1][1] == 48, "the reader saw the new model")
    reader.ended.set()
    polling.join()

    assert (night["new"], night["changed"], night["gone"]) == (1, 1, 1)
    after = place.read().current.fingerprint
    assert reader.failures == []
    assert {(*fingerprints, dimension) for fingerprints, dimension, _ in reader.answers} == {
        (before, 128),
        (after, 48),
    }
    assert all(count >= IMAGES - 1 for _, _, count in reader.answers)
    assert collection.ids() == sorted(path.name for path in images.iterdir())
    again = cluster.run_json("backfill", images, "--store", collection.store)
    assert (again["same"], again["job_id"]) == (IMAGES, None)


def test_vacuum_beside_a_relabel(collection: Collection) -> None:
    """What an unfinished job reads stays, also if the version is old by then."""
    cluster, store = collection.cluster, collection.store
    folder = cluster.folder
    (folder / "labels.txt").write_text("a cat\na dog\n")
    cluster.stop_workers()
    words = ("relabel", store, "--labels", folder / "labels.txt", "--output", folder / "labelled")
    begun = cluster.run_json(*words, "--no-wait")
    rows = store_rows(collection.place).count
    (collection.images / "000002.jpg").unlink()
    cluster.run_json("backfill", collection.images, "--store", store)

    cluster.run_json("store", "compact", store)
    with held_store(collection.place, cluster.server.url, print) as held:
        vacuumed = vacuum(held, timedelta(hours=1), now=datetime.now(UTC) + timedelta(days=1))
    model = f"local-dir:{folder / 'mine'}"
    cluster.start_worker({"CLIPFLEET_MODELS": f"demo,{model}"})
    ended = cluster.client.job(begun["job_id"]).wait()

    assert vacuumed.models, "of the model before"
    assert ended.state == "completed"
    assert [row["status"] for row in cluster.rows(folder / "labelled")] == ["ok"] * rows
