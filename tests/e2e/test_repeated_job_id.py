"""The same command again: over a source that has changed since, and for a job that had ended."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.support.cluster import Cluster
from tests.support.images import encoded, make_image, write_images

ALREADY = re.compile(
    r"^Already completed on \d{4}-\d\d-\d\d \d\d:\d\d UTC(; nothing was run)?: 20 embedded, 0 failed\. ",
    re.MULTILINE,
)
FIGURES = re.compile(r"\d in [\d.]+ s|/s\)")


def test_the_same_command_again(cluster: Cluster, folder: Path) -> None:
    write_images(folder / "images", 20)
    job_id, output = folder.name, folder / "out"
    words = ("embed", folder / "images", "--output", output, "--model", "demo", "--job-id", job_id)
    first = cluster.run(*words)
    assert (first.returncode, FIGURES.search(first.stderr) is not None) == (0, True), first.stderr
    assert "already" not in first.stderr.lower()
    assert "\nDone: 20 embedded, 0 failed in " in first.stderr

    commands = [words, (*words, "--no-wait"), ("watch", job_id), ("retry", job_id)]
    for command in (*commands, ("rebuild", output)):
        again = cluster.run(*command)
        assert again.returncode == 0
        found = ALREADY.search(again.stderr)
        assert found is not None, (command, again.stderr)
        assert bool(found[1]) == (command[0] != "watch"), (command, again.stderr)  # who watches runs nothing
        assert FIGURES.search(again.stderr) is None, (command, again.stderr)

    answers = [cluster.run_json(*command) for command in (*commands, ("rebuild", output))]
    lasted = round(cluster.status(job_id).lasted_seconds, 3)
    assert [(answer["already_ended"], answer["seconds"]) for answer in answers] == [(True, lasted)] * 5

    (folder / "images" / "more.jpg").write_bytes(encoded(make_image(1)))
    changed = cluster.run(*words)
    assert (changed.returncode, changed.stdout) == (2, "")
    assert changed.stderr == (
        f"error: job {job_id} holds 20 items; the source now has 21: choose another --job-id\n"
    )
    assert len(json.loads((output / "_manifest.json").read_text())["parts"]) == 1
