"""Nights of a store through a real worker: what is not changed is neither read nor embedded again."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.client import BackfillOptions
from clipfleet.results.store_rows import store_rows
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import StorePlace, store_place
from clipfleet_worker.machine.embedded.s3 import EmbeddedS3
from tests.support.cluster import Cluster
from tests.support.health_pages import scrape
from tests.support.http_site import HttpSite
from tests.support.images import encoded, make_image, write_images
from tests.support.s3 import S3Bucket

A_WHILE_AGO = 1_700_000_000  # seconds; files that were written just now are asked again

Night = dict[str, Any]
ITEMS = 300  # of `many`


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3_server: EmbeddedS3 | None) -> Iterator[Cluster]:
    """Its worker says how many images it has embedded."""
    settings = {"CLIPFLEET_HEALTH_PORT": "0"} | (s3_server.environment() if s3_server is not None else {})
    with Cluster(tmp_path_factory.mktemp("cluster"), settings) as running:
        running.start_worker()
        yield running


@dataclass(frozen=True)
class Collection:
    """A folder of images, and a store beside it."""

    cluster: Cluster
    images: Path
    store: Path

    def night(self, *words: str | Path, source: str | Path | None = None, expect: int = 0) -> Night:
        given = [source or self.images, "--store", self.store, "-m", "demo", *words]
        return self.cluster.run_json("backfill", *given, expect=expect)

    @property
    def place(self) -> StorePlace:
        return store_place(str(self.store))

    @property
    def embedded(self) -> float:
        """Images in forward passes of the worker so far."""
        return scrape(self.cluster.workers[0])["clipfleet_batched_items_total"][()]

    def ids(self) -> list[str]:
        fingerprint = self.place.read().current.fingerprint
        assert fingerprint is not None
        dataset = VectorDataset.open(self.place.dataset_uri(fingerprint))
        return sorted(name for batch in dataset.batches(["item_id"]) for name in batch["item_id"].to_pylist())

    def vectors(self) -> dict[str, np.ndarray]:
        """By the ids of their items."""
        rows = pa.Table.from_batches(store_rows(self.place).read(["item_id", "embedding"]).batches)
        vectors = [np.array(one, np.float32) for one in rows["embedding"].to_pylist()]
        return dict(zip(rows["item_id"].to_pylist(), vectors, strict=True))


def counts(night: Night) -> Night:
    """Those that are not zero."""
    names = ("new", "changed", "same", "gone", "failed", "copied")
    return {name: night[name] for name in names if night[name]}


def make_old(folder: Path) -> None:
    for path in folder.iterdir():
        os.utime(path, (A_WHILE_AGO, A_WHILE_AGO))


def names(numbers: Sequence[int]) -> list[str]:
    return [f"{number:06d}.jpg" for number in numbers]


@pytest.fixture
def collection(cluster: Cluster, folder: Path) -> Collection:
    """Twenty images."""
    images = folder / "images"
    write_images(images, 20)
    make_old(images)
    return Collection(cluster, images, folder / "store")


def test_nights_over_a_folder(collection: Collection) -> None:
    images = collection.images
    first = collection.night()
    assert (counts(first), first["version"]) == ({"new": 20}, 2)
    assert first["fetched_bytes"] == sum(path.stat().st_size for path in images.iterdir())

    second = collection.night()
    assert (counts(second), second["fetched_bytes"], second["job_id"]) == ({"same": 20}, 0, None)
    assert second["version"] == first["version"]

    (images / "000003.jpg").unlink()
    shutil.copy(images / "000007.jpg", images / "new.jpg")  # an equal image under another name
    shutil.move(images / "000001.jpg", images / "moved.jpg")
    shutil.copy(images / "000009.jpg", images / "000008.jpg")
    third = collection.night()
    wanted = {"new": 2, "changed": 1, "same": 17, "gone": 2}
    assert {name: count for name, count in counts(third).items() if name != "copied"} == wanted
    assert collection.ids() == sorted(
        {*names(range(20)), "new.jpg", "moved.jpg"} - {"000001.jpg", "000003.jpg"}
    )


def test_the_parts_of_a_night_are_removed_and_it_is_not_retried(collection: Collection) -> None:
    (collection.images / "broken.jpg").write_bytes(b"no image")

    night = collection.night(expect=3)

    assert counts(night) == {"new": 20, "failed": 1}
    output = Path(collection.place.job_output(night["job_id"]))
    assert [*output.glob("data/*")] == []
    assert "broken.jpg" in (output / "_errors.jsonl").read_text()
    result = collection.cluster.run("retry", output)
    assert (result.returncode, "run `clipfleet backfill` again" in result.stderr) == (2, True)


def test_a_job_id_prints_its_result_again(collection: Collection) -> None:
    first = collection.night("--job-id", "backfill-once")

    again = collection.night("--job-id", "backfill-once")

    assert {**again, "seconds": 0} == {**first, "seconds": 0}


def test_without_waiting(collection: Collection) -> None:
    begun = collection.night("--no-wait")

    collection.cluster.client.job(begun["job_id"]).wait()

    assert collection.ids() == names(range(20))


def test_a_migration(collection: Collection) -> None:
    """Of the same weights by the exact route, which makes other vectors."""
    collection.night()
    before = collection.place.read().current

    found = collection.night("--migrate", "--decode", "exact")

    store = collection.place.read()
    assert (found["switched"], found["new"]) == (True, 20)
    assert (store.current.decode, store.migration) == ("exact", None)
    assert store.current.fingerprint != before.fingerprint
    after = collection.cluster.run_json("backfill", collection.images, "--store", collection.store)
    assert counts(after) == {"same": 20}


def test_a_migration_to_the_weights_that_it_has(collection: Collection) -> None:
    collection.night()
    before = collection.place.read()
    words = ("backfill", collection.images, "--store", collection.store, "--migrate", "--model", "demo")

    run = collection.cluster.run(*words)

    assert (run.returncode, "has these vectors already" in run.stderr) == (0, True)
    assert (collection.place.read(), collection.ids()) == (before, names(range(20)))
    assert counts(collection.night()) == {"same": 20}


def test_a_plan(collection: Collection) -> None:
    plan = collection.night("--dry-run")

    assert (plan["items"], plan["new"], plan["same"]) == (20, 20, 0)
    assert not collection.store.exists()


def test_the_python_way(collection: Collection) -> None:
    options = BackfillOptions(model="demo", max_items=5)

    result = collection.cluster.client.backfill(collection.images, collection.store, options=options).wait()

    assert (result.new, result.left, result.version) == (5, 15, 2)


# --- the second night reads no body and runs no forward pass, the third one treats what has changed ---


def image(number: int) -> bytes:
    return encoded(make_image(number, 96, 80), quality=85)


@pytest.fixture
def many(cluster: Cluster, folder: Path) -> Collection:
    """Images of some months ago."""
    write_images(folder / "images", ITEMS)
    make_old(folder / "images")
    return Collection(cluster, folder / "images", folder / "store")


def list_of(folder: Path, urls: Sequence[str]) -> Path:
    path = folder / "list.txt"
    path.write_text("".join(f"{url}\n" for url in urls))
    return path


def change_some(images: Path) -> list[str]:
    """Change ten images and add five; the names of all but five of the old ones."""
    for number in range(10):
        (images / f"{number:06d}.jpg").write_bytes(image(ITEMS + number))
    for number in range(ITEMS, ITEMS + 5):
        (images / f"{number:06d}.jpg").write_bytes(image(ITEMS + number + 100))
    return names(range(ITEMS + 5))[:-10] + names(range(ITEMS, ITEMS + 5))


CHANGES = {"new": 5, "changed": 10, "gone": 5, "same": ITEMS - 15}


@pytest.mark.parametrize(("path", "has_validators"), [("files", True), ("bare", False)])
def test_nights_over_a_web_site(many: Collection, path: str, has_validators: bool) -> None:
    with HttpSite(many.images) as site:
        first = many.night(
            source=list_of(many.images.parent, [site.url(f"/{path}/{name}") for name in names(range(ITEMS))])
        )
        assert counts(first) == {"new": ITEMS}
        embedded, asked = many.embedded, sum(site.requests.values())

        second = many.night(source=many.images.parent / "list.txt")
        assert (counts(second), second["version"]) == ({"same": ITEMS}, first["version"])
        assert second["fetched_bytes"] == (0 if has_validators else first["fetched_bytes"])
        assert (many.embedded - embedded, sum(site.requests.values()) - asked) == (0, ITEMS)
        assert site.answers[304] == (ITEMS if has_validators else 0)

        urls = [site.url(f"/{path}/{name}") for name in change_some(many.images)]
        third = many.night(source=list_of(many.images.parent, urls))
        assert counts(third) == CHANGES
        assert many.embedded - embedded == 15
        assert many.ids() == sorted(urls)


def test_etags_that_repeat(collection: Collection) -> None:
    """One that all images have does not say which is which; one that comes back, not what it was of."""
    images = collection.images
    changed, before = images / "000000.jpg", (images / "000000.jpg").read_bytes()
    with HttpSite(images) as site:
        urls = [site.url(f"/alike/{path.name}") for path in sorted(images.iterdir())]
        source = list_of(images.parent, urls)
        first = collection.night(source=source)
        one_by_one = collection.vectors()
        second = collection.night(source=source)
        assert (counts(first), counts(second), second["fetched_bytes"]) == ({"new": 20}, {"same": 20}, 0)
        assert len({vector.tobytes() for vector in one_by_one.values()}) == 20

        site.etag = '"v2"'
        changed.write_bytes(image(1000))
        assert counts(collection.night(source=source)) == {"changed": 1, "same": 19}
        assert differing(collection.vectors(), one_by_one) == [urls[0]]

        site.etag = '"v1"'
        changed.write_bytes(before)
        assert counts(collection.night(source=source)) == {"changed": 1, "same": 19}
        assert differing(collection.vectors(), one_by_one) == []


def differing(vectors: dict[str, np.ndarray], others: dict[str, np.ndarray]) -> list[str]:
    """The ids of different vectors; batches of other sizes round otherwise."""
    assert vectors.keys() == others.keys()
    return [name for name in vectors if not np.allclose(vectors[name], others[name], atol=0.004)]


def test_nights_over_files(many: Collection) -> None:
    first = many.night()
    assert counts(first) == {"new": ITEMS}
    embedded = many.embedded

    second = many.night()
    assert (counts(second), second["fetched_bytes"], second["job_id"]) == ({"same": ITEMS}, 0, None)

    kept = change_some(many.images)
    for name in {path.name for path in many.images.iterdir()}.difference(kept):
        (many.images / name).unlink()
    third = many.night()
    assert (counts(third), many.embedded - embedded) == (CHANGES, 15)
    assert many.ids() == sorted(kept)


def test_nights_over_a_bucket(many: Collection, s3: S3Bucket) -> None:
    for path in many.images.iterdir():
        s3.put(f"photos/{path.name}", path.read_bytes())
    source = f"{s3.uri}/photos/"
    first = many.night(source=source)
    assert counts(first) == {"new": ITEMS}
    embedded = many.embedded

    second = many.night(source=source)
    assert (counts(second), second["fetched_bytes"], second["job_id"]) == ({"same": ITEMS}, 0, None)

    kept = change_some(many.images)
    for path in many.images.iterdir():
        if path.name in kept and path.name not in names(range(10, ITEMS)):
            s3.put(f"photos/{path.name}", path.read_bytes())
        elif path.name not in kept:
            s3.client.delete_object(Bucket=s3.name, Key=f"photos/{path.name}")
    third = many.night(source=source)
    assert (counts(third), many.embedded - embedded) == (CHANGES, 15)


def test_a_store_in_a_bucket(many: Collection, s3: S3Bucket) -> None:
    words = ["backfill", many.images, "--store", f"{s3.uri}/store", "-m", "demo"]

    first = many.cluster.run_json(*words)
    (many.images / "000000.jpg").unlink()
    second = many.cluster.run_json(*words)

    assert (counts(first), counts(second)) == ({"new": ITEMS}, {"same": ITEMS - 1, "gone": 1})
    assert s3.keys("store/_jobs/")
    assert [key for key in s3.keys("store/_jobs/") if "/data/" in key] == []
