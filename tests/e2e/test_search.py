"""Search by texts, images and items, over an output and a store, with the vectors that workers make."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import pyarrow as pa
import pytest

from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import EmbeddedBy, store_place
from clipfleet.store.rows import store_schema
from clipfleet_worker.cli.demo import samples
from tests.support.cluster import Cluster
from tests.support.store_rows import LISTED_AT, NO_ADDRESSES


@pytest.fixture(scope="module")
def places(cluster: Cluster, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with images, the output of their job, and a store with the same vectors."""
    folder = cluster.folder / "search"
    (folder / "images").mkdir(parents=True)
    with as_file(files("clipfleet_worker") / "samples") as images:
        for sample in samples():
            shutil.copyfile(images / sample.file, folder / "images" / sample.file)
    answer = cluster.run_json("embed", folder / "images", "--model", "demo", "--output", folder / "vectors")
    assert answer["failed"] == 0
    make_store(folder)
    yield folder


def make_store(folder: Path) -> None:
    """Fill a store with the rows of the output."""
    rows = pa.Table.from_batches([*PartRows(FolderOutput(folder / "vectors")).read().batches])
    fingerprint = rows["model_fingerprint"][0].as_py()
    place = store_place(str(folder / "store"))
    place.create(
        EmbeddedBy(model="demo", fingerprint=fingerprint, dimension=rows["embedding"].type.list_size)
    )
    schema = store_schema(rows["embedding"].type.list_size)
    known = {name: rows[name] for name in rows.column_names if name in schema.names}
    known["listed_at"] = pa.array([LISTED_AT] * len(rows), schema.field("listed_at").type)
    known["digest"] = pa.array(range(len(rows)), pa.int64())
    columns = [known.get(field.name, pa.nulls(len(rows), field.type)) for field in schema]
    table = pa.table(columns, schema=schema)
    dataset = VectorDataset.create(place.dataset_uri(fingerprint), schema)
    dataset.replace(NO_ADDRESSES, table.to_batches(), {})


@pytest.mark.parametrize("place", ["vectors", "store"])
def test_a_text_finds_images_that_show_it(cluster: Cluster, places: Path, place: str) -> None:
    found = cluster.run_json("search", "cherries", places / place, "--top", "5", "--where", "width > 1")

    assert "cherries.png" in [Path(hit["uri"]).name for hit in found["hits"]]
    scores = [hit["similarity"] for hit in found["hits"]]
    assert len(scores) == 5
    assert scores == sorted(scores, reverse=True)


@pytest.mark.parametrize("place", ["vectors", "store"])
def test_an_image_finds_itself(cluster: Cluster, places: Path, place: str, tmp_path: Path) -> None:
    image = tmp_path / "elsewhere.png"  # where no worker may read
    shutil.copyfile(places / "images" / "cherries.png", image)

    first, *_ = cluster.run_json("search", "--image", image, places / place)["hits"]

    assert first["item_id"] == "cherries.png"
    assert first["similarity"] == pytest.approx(1, abs=0.01)


def test_searches_are_not_the_last_job(cluster: Cluster, places: Path) -> None:
    submitted = cluster.run_json("embed", places / "images", "--model", "demo")
    cluster.run_json("search", "a beer", places / "vectors")

    assert cluster.client.last().job_id == submitted["job_id"]


def test_an_image_that_is_none(cluster: Cluster, places: Path) -> None:
    (places / "text.jpg").write_text("not an image")

    result = cluster.run("search", "--image", places / "text.jpg", places / "vectors")

    assert (result.returncode, result.stdout) == (2, "")
    assert "text.jpg' cannot be embedded: not_an_image" in result.stderr


def test_duplicates_of_files(cluster: Cluster, places: Path) -> None:
    images = places / "twice"
    shutil.copytree(places / "images", images)
    shutil.copyfile(images / "cherries.png", images / "same.png")
    cluster.run_json("embed", images, "--model", "demo", "--output", places / "with-copies")

    result = cluster.run("duplicates", places / "with-copies", "--threshold", "0.9999", "--json")

    (group,) = json.loads(result.stdout)["groups"]
    assert group["equal"]
    assert [one["item_id"] for one in group["items"]] == ["cherries.png", "same.png"]
