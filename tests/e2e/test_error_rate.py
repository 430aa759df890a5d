"""`--max-error-rate` with the real programs: the job stops, names the reason, and can be resumed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, job_events
from tests.support.http_site import HttpSite
from tests.support.images import encoded, make_image

ITEMS, CHUNK = 200, 4


@pytest.fixture
def site(tmp_path: Path) -> Iterator[HttpSite]:
    folder = tmp_path / "site"
    folder.mkdir()
    (folder / "a.jpg").write_bytes(encoded(make_image(1)))
    with HttpSite(folder) as site:
        yield site


def write_list(folder: Path, site: HttpSite) -> Path:
    """Every other URL is gone."""
    folder.mkdir(exist_ok=True)
    paths = ("/files/a.jpg", "/status/404")
    lines = [site.url(f"{paths[number % 2]}?{number}") for number in range(ITEMS)]
    path = folder / "list.txt"
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.mark.parametrize("place", ["folder", "redis"])
def test_the_job_stops_names_the_reason_and_a_retry_resumes_it(
    cluster: Cluster, tmp_path: Path, site: HttpSite, place: str
) -> None:
    folder = cluster.folder / tmp_path.name
    source = write_list(folder, site)
    output = ["--output", folder / "out"] if place == "folder" else []
    job_id = f"strict-{place}"
    arguments = ["embed", source, "--model", "demo", "--chunk-size", CHUNK, "--job-id", job_id, *output]

    stopped = cluster.run(*arguments, "--max-error-rate", "0.2")

    assert stopped.returncode == 1, stopped.stderr
    said = " ".join(stopped.stderr.split())
    assert "cancelled: " in said
    assert "rows failed (50.0 %), more than the error rate of 0.2 that is allowed" in said
    assert f"`clipfleet retry {job_id}` goes on" in said
    status = cluster.run_json("status", job_id)
    assert 20 <= status["ok"] + status["failed"] < ITEMS
    assert status["state"] == "cancelled"
    assert set(status["codes"]) == {"not_found"}
    assert cluster.run("watch", job_id).returncode == 1
    events = [(event["state"], event["reason"]) for event in job_events(cluster, job_id)]
    assert events == [("cancelled", status["reason"])]

    answer = cluster.run_json("retry", job_id, "--max-error-rate", "1", expect=3)

    assert (answer["state"], answer["ok"], answer["failed"]) == ("completed_with_errors", 100, 100)
    rows = cluster.run("results", job_id, "--format", "jsonl").stdout.splitlines()
    assert Counter('"status": "ok"' in row or '"status":"ok"' in row for row in rows) == {
        True: 100,
        False: 100,
    }
