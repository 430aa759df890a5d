"""Jobs that fill a store, through a real worker: what was compared at night is in the dataset afterwards."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.contract.jobs import Job, SourceDescription, Task
from clipfleet.contract.stores import STORE_COLUMNS, StoreTarget
from clipfleet.hints import Hints, make_app
from clipfleet.ledger.jobs import JobStatus, Ledger
from clipfleet.outputs import objects, open_output
from clipfleet.sources import ReadOptions, open_source
from clipfleet.store.comparing import Comparing
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.known import known_items
from clipfleet.store.place import EmbeddedBy, StorePlace, store_place
from clipfleet.submit.options import JobOptions, make_job
from clipfleet.submit.submission import Submission
from tests.e2e.test_backfill import make_old
from tests.support.cluster import Cluster
from tests.support.http_site import HttpSite
from tests.support.images import write_images
from tests.support.s3 import S3Bucket
from tests.support.waiting import wait_until

WAIT = 120


class Compared:
    """Items that a comparison has found, as a source."""

    def __init__(self, path: Path) -> None:
        self._path = path
        names = pq.read_schema(path).names
        own = tuple(name for name in names if name not in ("item_index", "item_id", "uri", *STORE_COLUMNS))
        self.description = SourceDescription(kind="test", uri=str(path), extra_columns=own)

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield from pq.ParquetFile(self._path).iter_batches()


class Nights:
    """Backfills by hand: compare, submit, wait for the worker's commit."""

    def __init__(self, cluster: Cluster, store: str, scratch: Path) -> None:
        self.place: StorePlace = store_place(store)
        self.place.create(EmbeddedBy(model="demo"))
        self.scratch = scratch
        self.ledger = Ledger(cluster.server.url)
        broker_url = cluster.environment().get("CLIPFLEET_BROKER_URL", cluster.server.url)
        self.hints = Hints(make_app(broker_url), broker_url)

    @property
    def dataset(self) -> VectorDataset | None:
        fingerprint = self.place.read().current.fingerprint
        return None if fingerprint is None else VectorDataset.open(self.place.dataset_uri(fingerprint))

    def submit(self, source: str, name: str) -> Job:
        """Compare a source with the store, and submit what differs; there must be something."""
        store, dataset, path = self.place.read(), self.dataset, self.scratch / f"{name}.parquet"
        listed_at = self.ledger.now()
        comparing = Comparing(dataset, known_items(dataset), began_at=listed_at)
        comparison = comparing.run(open_source(source, ReadOptions(named_by_uri=True)), path)
        target = StoreTarget(
            uri=self.place.uri, store_id=store.store_id, fingerprint=store.current.fingerprint,
            base_version=dataset.version if dataset else 0, listed_at=listed_at,
        )  # fmt: skip
        options = JobOptions(model="demo", output=self.place.job_output(name), job_id=name)
        items = Compared(path)
        job = make_job(items, options, Task.EMBED, store=target)
        gone = partial(comparing.gone_items, comparison)
        Submission(self.ledger, self.hints, open_output(job.output), job, gone=gone).run(items)
        return job

    def ended(self, job: Job) -> JobStatus:
        wait_until(lambda: self.ledger.status(job.job_id).state.is_final, "the job has ended", WAIT)
        return self.ledger.status(job.job_id)

    def run(self, source: str, name: str) -> dict[str, Any]:
        """One night; the manifest of its job."""
        job = self.submit(source, name)
        status = self.ended(job)
        assert not status.reason
        manifest: dict[str, Any] = json.loads(open_output(job.output).read(objects.MANIFEST) or b"")
        return manifest

    def rows(self) -> dict[str, dict[str, Any]]:
        dataset = self.dataset
        assert dataset is not None
        batches = dataset.batches(dataset.schema.names)
        return {row["item_id"].rpartition("/")[2]: row for one in batches for row in one.to_pylist()}

    def close(self) -> None:
        self.hints.close()
        self.ledger.close()


@pytest.fixture
def nights(cluster: Cluster, folder: Path, tmp_path: Path) -> Iterator[Nights]:
    nights = Nights(cluster, str(folder / "store"), tmp_path)
    yield nights
    nights.close()


def counts(manifest: dict[str, Any], *names: str) -> tuple[int, ...]:
    return tuple(manifest["store"]["counts"][name] for name in names)


def left(nights: Nights, name: str) -> Sequence[str]:
    folder = Path(nights.place.job_output(name))
    return sorted(path.name for path in folder.rglob("*") if path.is_file())


def test_a_first_night_and_one_with_new_changed_and_gone_files(nights: Nights, folder: Path) -> None:
    images = folder / "images"
    write_images(images, 6)

    first = nights.run(str(images), "first")

    before = nights.rows()
    assert counts(first, "new", "changed", "failed") == (6, 0, 0)
    assert first["fetched_bytes"] == sum(path.stat().st_size for path in images.iterdir())
    assert left(nights, "first") == [
        "_SUCCESS", "_errors.jsonl", "_manifest.json", "job.json", "staged.json",
    ]  # fmt: skip
    row = before["000000.jpg"]
    assert row["size_bytes"] == (images / "000000.jpg").stat().st_size
    assert (row["width"] > 0, len(row["content_hash"]), row["gone_at"]) == (True, 64, None)
    assert np.linalg.norm(row["embedding"]) == pytest.approx(1, abs=1e-2)

    (images / "000001.jpg").unlink()
    (images / "000002.jpg").write_bytes((images / "000003.jpg").read_bytes())
    (images / "new.jpg").write_bytes(b"no image")
    (images / "moved.jpg").write_bytes((images / "000004.jpg").read_bytes())
    second = nights.run(str(images), "second")

    after = nights.rows()
    assert counts(second, "new", "changed", "copied", "gone", "failed") == (1, 1, 2, 1, 1)
    assert set(after) == set(before) - {"000001.jpg"} | {"moved.jpg"}
    assert after["000002.jpg"]["embedding"] == before["000003.jpg"]["embedding"]
    assert after["000005.jpg"]["embedding"] == before["000005.jpg"]["embedding"]


def test_unchanged_images_of_web_sites_are_not_read_or_not_embedded(
    nights: Nights, site: HttpSite, tmp_path: Path
) -> None:
    images, urls = tmp_path / "site", tmp_path / "urls.txt"
    paths = [f"/files/{n:06d}.jpg" for n in range(3)] + [f"/bare/{n:06d}.jpg" for n in range(3, 6)]
    urls.write_text("\n".join(map(site.url, paths)))
    make_old(images)
    first = nights.run(str(urls), "web-first")
    before = nights.rows()
    assert counts(first, "new", "same") == (6, 0)
    assert before["000000.jpg"]["etag"] and before["000000.jpg"]["last_modified"]
    assert before["000003.jpg"]["etag"] is None

    second = nights.run(str(urls), "web-second")

    assert counts(second, "new", "changed", "same") == (0, 0, 6)
    bare = sum((images / f"{n:06d}.jpg").stat().st_size for n in range(3, 6))
    assert (second["fetched_bytes"], second["store"]["version"]) == (bare, first["store"]["version"])
    assert (nights.rows(), second["work_seconds"].get("encode", 0)) == (before, 0)

    for n in (1, 4):
        (images / f"{n:06d}.jpg").write_bytes((images / "000006.jpg").read_bytes())
    third = nights.run(str(urls), "web-third")

    after = nights.rows()
    assert counts(third, "new", "changed", "same") == (0, 2, 4)
    assert after["000001.jpg"]["embedding"] == after["000004.jpg"]["embedding"]
    assert after["000001.jpg"]["etag"] != before["000001.jpg"]["etag"]


def test_a_store_in_s3(cluster: Cluster, s3: S3Bucket, tmp_path: Path) -> None:
    write_images(tmp_path / "images", 4)
    for path in sorted((tmp_path / "images").iterdir()):
        s3.put(f"images/{path.name}", path.read_bytes())
    nights = Nights(cluster, f"{s3.uri}/store", tmp_path)
    try:
        first = nights.run(f"{s3.uri}/images", "s3-first")
        before = nights.rows()
        s3.put("images/000001.jpg", (tmp_path / "images" / "000002.jpg").read_bytes())
        second = nights.run(f"{s3.uri}/images", "s3-second")
        after = nights.rows()
    finally:
        nights.close()

    assert (counts(first, "new"), counts(second, "new", "changed", "copied")) == ((4,), (0, 1, 1))
    assert after["000001.jpg"]["embedding"] == before["000002.jpg"]["embedding"]
    assert after["000000.jpg"] == before["000000.jpg"]
    assert not [name for name in s3.keys("store/_jobs/") if "part-" in name or ".staged" in name]


@pytest.mark.parametrize(
    "passage", [1, 2, 3]
)  # the errors, the commit and the manifest, `_SUCCESS` are there
def test_a_killed_finish_is_taken_over(tmp_path: Path, passage: int) -> None:
    with Cluster(tmp_path) as cluster:
        write_images(tmp_path / "images", 4)
        nights = Nights(cluster, str(tmp_path / "store"), tmp_path)
        program = ("tests.support.altered_worker", "mid_finish", str(passage))
        victim = cluster.start_worker(program=program)
        job = nights.submit(str(tmp_path / "images"), "night")
        victim.process.wait(WAIT)
        cluster.start_worker()
        status = nights.ended(job)

        dataset = nights.dataset
        assert dataset is not None
        assert (status.state, dataset.count(), dataset.version) == ("completed", 4, 2)
        assert "part-00000000.parquet" not in left(nights, "night")
        nights.close()
