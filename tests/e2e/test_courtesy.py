"""Requests of two workers to one host."""

from __future__ import annotations

from pathlib import Path

from clipfleet import __version__
from tests.support.cluster import Cluster
from tests.support.http_site import HttpSite
from tests.support.waiting import wait_until

CONTACTS = ("one@example.org", "two@example.org")
SETTINGS = {
    "CLIPFLEET_HOST_CONNECTIONS": "4",
    "CLIPFLEET_RECONCILE_SECONDS": "0.5",
    "CLIPFLEET_ITEMS_IN_FLIGHT": "16",
}


def test_a_host_gets_so_many_requests_from_all_workers_together(tmp_path: Path, site: HttpSite) -> None:
    with Cluster(tmp_path, SETTINGS) as cluster:
        workers = [cluster.launch_worker({"CLIPFLEET_CONTACT": contact}) for contact in CONTACTS]
        for said in ("this one makes 2 of 4 at a time", "model demo loaded"):
            wait_until(lambda: all(said in worker.log() for worker in workers), f"both say: {said}", 120)  # noqa: B023
        site.heal(0)  # requests wait
        job = cluster.embed([site.url(f"/sick/000000.jpg?{number}") for number in range(64)], chunk_size=4)
        # If each worker had a limit of its own, the first request of the second one would be the fifth.
        agents = {f"clipfleet/{__version__} (+{contact})" for contact in CONTACTS}
        wait_until(lambda: site.user_agents == agents and site.active >= 4, "both ask for what they may")

        site.heal()

        assert job.wait(120).ok == 64
    assert site.most_active == 4
