"""Requests of two workers to one host, and rows whose host is away, slow or refuses."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from clipfleet import __version__
from tests.support.cluster import Cluster
from tests.support.http_site import HttpSite
from tests.support.images import encoded, make_image
from tests.support.waiting import wait_until

CHUNK, CONNECTIONS = 4, 4
CONTACTS = ("one@example.org", "two@example.org")
AGENTS = {f"clipfleet/{__version__} (+{contact})" for contact in CONTACTS}


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two workers that know of each other; each has room for four chunks."""
    settings = {
        "CLIPFLEET_HOST_CONNECTIONS": str(CONNECTIONS),
        "CLIPFLEET_RECONCILE_SECONDS": "0.5",
        "CLIPFLEET_ITEMS_IN_FLIGHT": str(4 * CHUNK),
        "CLIPFLEET_FETCH_ATTEMPTS": "5",
    }
    with Cluster(tmp_path_factory.mktemp("pair"), settings) as running:
        workers = [running.launch_worker({"CLIPFLEET_CONTACT": contact}) for contact in CONTACTS]
        for said in ("2 of 4 requests are ours", "model demo loaded"):
            wait_until(lambda: all(said in worker.log() for worker in workers), f"both say: {said}", 120)  # noqa: B023
        yield running


@pytest.fixture
def site(tmp_path: Path) -> Iterator[HttpSite]:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(encoded(make_image(1)))
    with HttpSite(folder) as site:
        yield site


def write_list(cluster: Cluster, name: str, urls: list[str]) -> Path:
    path = cluster.folder / f"{name}.txt"
    path.write_text("\n".join(urls) + "\n")
    return path


def test_a_host_gets_so_many_requests_from_all_workers_together(pair: Cluster, site: HttpSite) -> None:
    source = write_list(pair, "many", [site.url(f"/sick/a.jpg?{number}") for number in range(64)])
    site.heal(0)  # requests wait
    job_id = pair.run_json("embed", source, "--model", "demo", "--chunk-size", CHUNK, "--no-wait")["job_id"]
    # If each worker had a limit of its own, the first request of the second one would be the fifth.
    wait_until(
        lambda: site.user_agents == AGENTS and site.active >= CONNECTIONS, "both ask for what they may"
    )

    site.heal()

    assert pair.run_json("watch", job_id)["ok"] == 64
    assert site.most_active == CONNECTIONS


def test_what_becomes_of_each_row(pair: Cluster, site: HttpSite) -> None:
    expected = [
        ("/files/a.jpg", None, 1),
        ("/flaky/503/2", "not_an_image", 3),  # it came at last, but it is only a word
        ("/flaky/429/1?after=1", "not_an_image", 2),
        ("/flaky/429/9?after=3600", "rate_limited", 1),
        ("/status/404", "not_found", 1),
        ("/tagged?tag=noai", "robots_refused", 1),
        ("/tagged?tag=otherbot:%20noai", "not_an_image", 2),  # counted by path
    ]
    source = write_list(pair, "each", [site.url(path) for path, _, _ in expected])

    answer = pair.run_json("embed", source, "--model", "demo", "--output", pair.folder / "each", expect=3)

    rows = pair.run("results", pair.folder / "each", "--format", "jsonl").stdout.splitlines()
    assert [json.loads(row)["error_code"] for row in rows] == [code for _, code, _ in expected]
    assert answer["failed"] == 6
    for path, _, times in expected[:5]:
        assert site.requests[path.partition("?")[0]] == times, path
    details = {json.loads(row)["error_code"]: json.loads(row)["error_detail"] for row in rows}
    assert details["robots_refused"] == "127.0.0.1: X-Robots-Tag says noai"
    assert details["rate_limited"].endswith("Retry-After 3600 s")
    assert site.user_agents <= AGENTS
