"""Search, duplicates and differences of an output and of a store that a backfill has filled."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from importlib.resources import as_file, files
from pathlib import Path

import pytest

from clipfleet_worker.cli.demo import samples
from tests.support.cluster import Cluster


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
    cluster.run_json("backfill", folder / "images", "--store", folder / "store", "--model", "demo")
    yield folder


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


@pytest.mark.parametrize("place", ["vectors", "store"])
def test_what_is_like_an_item_is_shown_on_a_page(
    cluster: Cluster, places: Path, place: str, tmp_path: Path
) -> None:
    words = ("--like", "cherries.png", "--top", "4", "--exact", "--html", tmp_path / "hits.html")
    hits = cluster.run_json("search", places / place, *words)["hits"]

    assert hits[0]["item_id"] == "cherries.png"
    page = (tmp_path / "hits.html").read_text()
    assert [f'src="file://{hit["uri"]}"' in page for hit in hits] == [True] * 4


@pytest.mark.parametrize("place", ["vectors", "store"])
@pytest.mark.parametrize("where", ["uri = N'x'", "uri = $$", "colour = 1"])
def test_a_condition_that_is_invalid(cluster: Cluster, places: Path, place: str, where: str) -> None:
    result = cluster.run("search", places / place, "--like", "cherries.png", "--where", where)

    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith(f"error: the condition {where!r} is invalid: ")
    assert len(result.stderr.splitlines()) == 1


def test_duplicates_of_files(cluster: Cluster, places: Path) -> None:
    images = places / "twice"
    shutil.copytree(places / "images", images)
    shutil.copyfile(images / "cherries.png", images / "same.png")
    cluster.run_json("embed", images, "--model", "demo", "--output", places / "with-copies")
    cluster.run_json("backfill", images, "--store", places / "store-with-copies", "--model", "demo")

    for place in ("with-copies", "store-with-copies"):
        found = cluster.run_json("duplicates", places / place, "--threshold", "0.9999")
        (group,) = found["groups"]
        assert group["equal"]
        assert [one["item_id"] for one in group["items"]] == ["cherries.png", "same.png"]


def test_differences_of_two_nights(cluster: Cluster, places: Path) -> None:
    images, store = places / "nights", places / "store-of-nights"
    shutil.copytree(places / "images", images)
    first, second, third, *_ = sorted(path.name for path in images.iterdir())
    cluster.run_json("backfill", images, "--store", store, "--model", "demo")
    version = cluster.run_json("store", "info", store)["version"]
    shutil.copyfile(images / second, images / "another.png")
    shutil.copyfile(images / second, images / first)
    (images / third).unlink()
    cluster.run_json("backfill", images, "--store", store)

    found = cluster.run_json("diff", f"{store}@{version}", store)

    assert found["first"]["only_here_ids"] == [third]
    assert found["second"]["only_here_ids"] == ["another.png"]
    assert (found["changed_files"], found["vectors"]["changed"]) == (1, 1)
    assert [one["item_id"] for one in found["moved"]] == [first]
    assert 0.5 < found["neighbours"]["agreement"] < 1


def test_an_output_and_a_store_of_the_same_images_are_alike(cluster: Cluster, places: Path) -> None:
    result = cluster.run("diff", places / "vectors", places / "store")

    count = len(list((places / "images").iterdir()))
    assert result.returncode == 0, result.stderr
    assert f"items       {count:,} in both, 0 only in A, 0 only in B" in result.stdout
    assert "vectors     0 differ" in result.stdout
    assert "neighbours  100.0% of the 10 nearest are the same" in result.stdout


def test_labels_that_change(cluster: Cluster, places: Path) -> None:
    for name, labels in (("fruit", "cherries,beer"), ("drinks", "wine,beer")):
        cluster.run_json(
            "relabel", places / "store", "--labels", labels, "--output", places / f"labels-{name}"
        )

    found = cluster.run_json("diff", places / "labels-fruit", places / "labels-drinks")

    changes = found["labels"]["label"]
    assert 0 < changes["changed"] <= found["common"]
    assert {pair["second"] for pair in changes["pairs"]} <= {"wine", "beer"}
    assert found["neighbours"] is None
