"""`--max-error-rate` with the real programs: the job stops, names the reason, and can be resumed."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import pytest

from tests.support.cluster import Cluster, job_events
from tests.support.http_site import HttpSite

ITEMS = 200


@pytest.mark.parametrize("place", ["folder", "redis"])
def test_it_stops_and_a_retry_resumes_it(cluster: Cluster, folder: Path, site: HttpSite, place: str) -> None:
    paths = ("/files/000000.jpg", "/status/404")  # every other URL is gone
    source = folder / "list.txt"
    source.write_text("".join(f"{site.url(paths[number % 2])}?{number}\n" for number in range(ITEMS)))
    output = ["--output", folder / "out"] if place == "folder" else []
    job_id = f"strict-{place}"
    arguments = ["embed", source, "--model", "demo", "--chunk-size", "4", "--job-id", job_id, *output]

    stopped = cluster.run(*arguments, "--max-error-rate", "0.2")

    assert stopped.returncode == 1, stopped.stderr
    said = " ".join(stopped.stderr.split())
    assert "Stopped: " in said
    assert "rows failed (50.0 %), more than the error rate of 0.2 that is allowed" in said
    assert f"`clipfleet retry {job_id}` goes on" in said
    status = cluster.run_json("status", job_id)
    assert 20 <= status["ok"] + status["failed"] < ITEMS
    assert (status["state"], set(status["codes"])) == ("cancelled", {"not_found"})
    assert cluster.run("watch", job_id).returncode == 1
    events = [(event["state"], event["reason"]) for event in job_events(cluster, job_id)]
    assert events == [("cancelled", status["reason"])]

    answer = cluster.run_json("retry", job_id, "--max-error-rate", "1", expect=3)

    assert (answer["state"], answer["ok"], answer["failed"]) == ("completed_with_errors", 100, 100)
    assert Counter(row["status"] for row in cluster.rows(job_id)) == {"ok": 100, "failed": 100}
