"""One image by its URL, and a sample of a source with the estimate for all of it."""

from __future__ import annotations

import json
from pathlib import Path

import redis

from clipfleet.client import Client, JobOptions
from tests.support.cluster import Cluster
from tests.support.http_site import HttpSite
from tests.support.images import write_images

LABELS = ("--labels", "red apple,dog,car", "--model", "demo")


def test_one_image_by_its_url(cluster: Cluster, client: Client, folder: Path, site: HttpSite) -> None:
    url = site.url("/files/000000.jpg?size=9")
    job_file = folder / "job.yaml"
    job_file.write_text(f"source: {url}\nmodel: demo\nembedding: true\n")

    for words in (("classify", url, *LABELS), ("run", job_file)):
        answer = cluster.run_json(*words)
        (row,) = client.job(answer["job_id"]).results()
        assert (row["uri"], row["item_id"], row["status"], row["width"]) == (url, "000000.jpg", "ok", 96)


def test_a_sample_and_the_estimate_for_all(cluster: Cluster, client: Client, folder: Path) -> None:
    write_images(folder / "images", 41)
    for number in range(20):  # so many that a sample has some
        (folder / "images" / f"broken-{number}.jpg").write_bytes(b"<html>")
    job_id = folder.name
    words = ("classify", folder / "images", *LABELS, "--sample", "20", "--job-id", job_id)

    first = cluster.run(*words)

    assert first.returncode == 3, first.stderr
    estimate = first.stderr.splitlines()[-1]
    assert estimate.startswith("estimate for all 61 items: failed ") and estimate.endswith(" at this rate")
    rows = list(client.job(job_id).results())
    assert [row["item_index"] for row in rows] == list(range(20))
    assert [row["item_id"] for row in rows] == sorted(row["item_id"] for row in rows)

    again = json.loads(cluster.run(*words, "--json", "--check-source").stdout)
    assert (again["already_ended"], again["total"]) == (True, 20)
    assert (again["estimate"]["items"], again["estimate"]["sampled"]) == (61, 20)
    shares = again["estimate"]["labels"]["labels"].values()
    failed = again["estimate"]["failed"]["share"]
    assert failed == again["failed"] / 20
    assert abs(sum(share["share"] for share in shares) + failed - 1) < 1e-9

    with redis.Redis.from_url(cluster.server.url) as server:  # the rows expire before the job
        server.delete(f"clipfleet:{{{job_id}}}:rows")
    expired = cluster.run(*words)
    assert expired.returncode == 3
    assert "no estimate for all items: " in expired.stderr

    whole = cluster.run(*words[:-4], "--job-id", job_id)
    assert whole.returncode == 2 and "source" in whole.stderr


def test_a_sample_from_python_runs_the_same_items(cluster: Cluster, client: Client, folder: Path) -> None:
    write_images(folder / "images", 30)
    paths = [{"path": path, "id": path.name} for path in sorted((folder / "images").iterdir())]

    jobs = [
        client.classify(source, ["dog", "car"], options=JobOptions(model="demo", sample=10))
        for source in (paths, reversed(paths))
    ]

    assert [job.wait(120).ok for job in jobs] == [10, 10]
    first, second = ([row["item_id"] for row in job.results()] for job in jobs)
    assert first == second[::-1]
    estimate = jobs[0].estimate()
    assert estimate is not None and (estimate.items, estimate.sampled) == (30, 10)
    assert client.job(jobs[0].job_id).estimate() is None  # only a submit counts the source
