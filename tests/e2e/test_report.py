"""`clipfleet report` of jobs whose rows are in Redis, and of one that has failed rows."""

from __future__ import annotations

import json
from pathlib import Path

from tests.support.cluster import Cluster
from tests.support.images import write_images


def test_rows_in_redis_are_shown_while_redis_has_them(cluster: Cluster, folder: Path) -> None:
    write_images(folder / "images", 5)
    (folder / "images" / "broken.jpg").write_bytes(b"no image")
    job_id = f"report-{folder.name}"
    cluster.run_json(
        "classify", folder / "images", "--labels", "cat,dog", "--none", "--model", "demo", "--job-id", job_id,
        expect=3,
    )  # fmt: skip

    found = cluster.run_json("report", job_id, "-o", folder / "page.html", "--count", "2")

    assert (found["rows"], found["ok"], found["failed"], found["to_mark"]) == (6, 5, 1, 4)
    data = (folder / "page.html").read_text().partition('id="data">')[2].partition("</script>")[0]
    (code,) = json.loads(data)["failures"]["codes"]
    assert code["code"] == "not_an_image"
