"""Label sets with thresholds on the real path: what they accept, where it is kept, how well it works."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from statistics import fmean
from typing import Any

import pytest

from clipfleet.contract.label_sets import DEFAULT_BACKGROUND
from clipfleet_worker.cli.demo import samples
from tests.support.cluster import Cluster
from tests.support.demo_model import DEMO

DRAWS, DRAW_SIZE = 3, 20
SAMPLES = DEMO.parent / "samples"
JOB = """\
source: {folder}/images
model: demo
format: {part_format}
chunk_size: 4
top_k: 2
label_sets:
  pets:
    kind: multi
    labels: [{{name: dog, threshold: 0.1}}, cat, {{name: whale, threshold: 0.9}}]
  kinds: [animal, food, building]
  faces: {{none: true, labels: [{{name: yawning face, not: a round object, group: heads}}]}}
"""


@pytest.fixture
def images(folder: Path) -> Path:
    """The shipped images."""
    images = folder / "images"
    images.mkdir()
    for sample in samples():
        shutil.copy(SAMPLES / sample.file, images)
    return images


def auroc(positives: list[float], negatives: list[float]) -> float:
    return fmean((high > low) + (high == low) / 2 for high in positives for low in negatives)


def test_the_best_score_says_whether_an_image_shows_one_of_the_names(
    cluster: Cluster, folder: Path, images: Path
) -> None:
    names = {sample.file: sample.name for sample in samples()}
    rng, areas = random.Random(0), []
    for draw in range(DRAWS):  # as ops/demo_model/evaluate.py draws
        drawn = rng.sample([*names.values()], DRAW_SIZE)
        (folder / "names.txt").write_text("\n".join(drawn))
        output = folder / f"out-{draw}"
        answer = cluster.run_json(
            "classify", images, "--labels", folder / "names.txt", "--none", "--model", "demo",
            "--top-k", str(DRAW_SIZE), "--output", output,
        )  # fmt: skip
        assert (answer["ok"], answer["failed"]) == (60, 0)
        rows = cluster.rows(output)
        for row in rows:
            scores = dict(zip(row["labels"], row["scores"], strict=True))
            accepted = [label for label, score in scores.items() if score >= 0.5]
            assert (row["accepted"], row["label"]) == (accepted, next(iter(accepted), None))
            assert row["score"] == row["scores"][0]
        best = {names[row["item_id"]]: row["score"] for row in rows}
        areas.append(
            auroc(
                [score for name, score in best.items() if name in drawn],
                [score for name, score in best.items() if name not in drawn],
            )
        )
    assert fmean(areas) >= 0.85, areas


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "redis"])
def test_accepted_labels_are_kept_wherever_rows_are_and_in_a_retry(
    cluster: Cluster, folder: Path, images: Path, kind: str
) -> None:
    # Given several sets, some with thresholds, and an image that is broken at first
    broken = images / "pie.png"
    broken.write_bytes(b"<html>")
    part_format = "jsonl" if kind == "jsonl" else "parquet"
    (folder / "job.yaml").write_text(JOB.format(folder=folder, part_format=part_format))
    output = () if kind == "redis" else ("--output", folder / "out")
    answer = cluster.run_json("run", folder / "job.yaml", *output, "--job-id", folder.name, expect=3)
    where = folder.name if kind == "redis" else folder / "out"

    # Then rows have a column for each of those, and the failed one has null
    before = {row["item_id"]: row for row in cluster.rows(where)}
    named = [name for name in before["pie.png"] if name.startswith("accepted")]
    assert named == ["accepted", "accepted_pets", "accepted_faces"]
    assert [before["pie.png"][name] for name in named] == [None] * 3
    assert answer["failed"] == 1
    for row in (row for row in before.values() if row["status"] == "ok"):
        _require_decided(row)
    assert any(row["accepted"] for row in before.values())
    assert any(row["accepted"] == [] for row in before.values())
    if kind != "redis":
        _require_stored(folder / "out")

    # When it is there, a retry leaves the other rows as they are
    shutil.copy(SAMPLES / broken.name, broken)
    assert cluster.run("retry", where).returncode == 0
    after = {row["item_id"]: row for row in cluster.rows(where)}
    assert {name: row for name, row in after.items() if name != "pie.png"} == {
        name: row for name, row in before.items() if name != "pie.png"
    }
    _require_decided(after["pie.png"])

    # And they are found by what they accept
    for label in ("dog", "yawning face", "food"):
        found = cluster.run("results", where, "--format", "jsonl", "--label", label).stdout.splitlines()
        expected = [name for name, row in after.items() if _has(row, label)]
        assert [json.loads(line)["item_id"] for line in found] == expected
    assert "none (best: " in cluster.run("results", where, "--limit", "60").stdout
    shown = cluster.run("show", "yawning-face.png", "--job", where).stdout
    assert any(line.split()[0] == "accepted_faces" for line in shown.splitlines())


def _require_decided(row: dict[str, Any]) -> None:
    assert row["accepted"] == row["accepted_pets"]
    thresholds = {"dog": 0.1, "cat": 0.5, "whale": 0.9}
    for name, limits in (("pets", thresholds), ("faces", {"yawning face": 0.5})):
        scores = dict(zip(row[f"labels_{name}"], row[f"scores_{name}"], strict=True))
        accepted = row[f"accepted_{name}"]
        for label, score in scores.items():
            assert (label in accepted) == (score >= limits[label])
        assert row[f"label_{name}"] == next(iter(accepted), None)
        best = accepted[0] if accepted else row[f"labels_{name}"][0]
        if best in scores:
            assert row[f"score_{name}"] == scores[best]
    assert sum(row["scores_kinds"]) <= 1  # a softmax, of which the best two are kept
    assert row["label_kinds"] == row["labels_kinds"][0]


def _require_stored(output: Path) -> None:
    manifest = json.loads((output / "_manifest.json").read_text())
    assert manifest["job"]["schema_version"] == 3
    pets, kinds, faces = manifest["label_sets"]
    assert (pets["thresholds"], pets["background"]) == ({"dog": 0.1, "whale": 0.9}, [*DEFAULT_BACKGROUND])
    assert "background" not in kinds
    assert (faces["not_prompts"], faces["groups"]) == (
        {"yawning face": ["a round object"]}, {"yawning face": "heads"},
    )  # fmt: skip
    (error,) = (json.loads(line) for line in (output / "_errors.jsonl").read_text().splitlines())
    assert [*error] == ["item_index", "item_id", "uri", "error_code", "error_detail"]


def _has(row: dict[str, Any], label: str) -> bool:
    of_row = [row["accepted_pets"], row["accepted_faces"], [row["label_kinds"]]]
    return label in [one for labels in of_row for one in labels or ()]


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--labels", "cat"), "error: 'cat' is the only label, so every image would get it with score 1.000"),
        (("--label-set", "one.yaml"), "error: one.yaml:2: 'cat' is the only label"),
        (("--label-set", "twice.yaml"), "error: twice.yaml:4: label 'cat' appears twice"),
        (("--label-set", "softmax.yaml"), "error: softmax.yaml:3: `threshold` has no meaning for a softmax"),
        (("--label-set", "empty.yaml"), "error: empty.yaml:1: the list is empty"),
        (("--labels", "cat", "--multi", "--none"), "error: label set: `none` is for sets of kind single"),
        (("--labels", "a,b", "--label-set", "labels.yaml"), "error: two label sets are named 'labels'"),
    ],
)
def test_what_cannot_decide_is_refused_and_nothing_is_written(
    cluster: Cluster, folder: Path, images: Path, arguments: tuple[str, ...], problem: str
) -> None:
    sets = {
        "one.yaml": "# pets\nlabels: [cat]\n",
        "twice.yaml": "none: true\nlabels:\n- cat\n- cat\n",
        "softmax.yaml": "labels:\n- name: cat\n  threshold: 0.7\n- dog\n",
        "empty.yaml": "labels: []\nkind: multi\n",
        "labels.yaml": "labels: [c, d]\n",
    }
    for name, text in sets.items():
        (folder / name).write_text(text)
    places = [str(folder / one) if one in sets else one for one in arguments]
    before = len(cluster.client.jobs())

    answer = cluster.run("classify", images, *places, "--model", "demo", "--output", folder / "out")

    assert answer.returncode == 2
    assert problem.removeprefix("error: ") in answer.stderr and len(answer.stderr.splitlines()) == 1
    assert not (folder / "out").exists()
    assert len(cluster.client.jobs()) == before
