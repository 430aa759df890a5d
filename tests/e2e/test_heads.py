"""Heads on the real path: one pass with label sets and vectors, for each output; what is refused."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfleet.contract.columns import label_columns
from clipfleet.contract.heads import Activation, HeadInput, HeadKind
from clipfleet.contract.parts import PART_COLUMNS
from clipfleet.heads.files import HeadFile, write_head
from clipfleet.outputs import objects
from clipfleet.redis.connection import connect
from tests.support.cluster import Cluster
from tests.support.heads import head_file
from tests.support.http_site import HttpSite
from tests.support.images import write_images

DIMENSION = 128  # of the demo model
HEADS = (
    head_file(DIMENSION, 3, name="kinds", labels=("cat", "dog", "fish")),
    head_file(DIMENSION, 16, 4, name="tags", kind=HeadKind.MULTILABEL, activation=Activation.RELU),
    head_file(DIMENSION, 1, name="rating", kind=HeadKind.REGRESS, labels=("beauty",)),
)
JOB = """\
source: list.csv
output: {output}
model: demo
format: {part_format}
chunk_size: 3
embedding: true
label_sets:
  pets: [cat, dog]
  faces: {{none: true, labels: [face]}}
heads: [heads/kinds.head.safetensors, heads/tags.head.safetensors, heads/rating.head.safetensors]
"""


@pytest.fixture
def folder(folder: Path) -> Path:
    """With the files of heads in it."""
    (folder / "heads").mkdir()
    for one in HEADS:
        write_head(one, folder / "heads" / f"{one.head.name}.head.safetensors")
    return folder


def scores_of(file: HeadFile, vectors: Sequence[Sequence[float]]) -> np.ndarray:
    """Scores of a head, by its definition."""
    numbers, values = file.arrays(), np.array(vectors, np.float64)
    for (weight, bias), activation in zip(file.head.tensor_names, file.head.activations, strict=True):
        values = values @ numbers[weight].T + numbers[bias]
        values = np.maximum(values, 0) if activation is Activation.RELU else values
    if file.head.kind is HeadKind.CLASSIFY:
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)
    return 1 / (1 + np.exp(-values)) if file.head.kind is HeadKind.MULTILABEL else values


def check_columns(rows: Sequence[dict[str, Any]]) -> None:
    """What heads say of rows that are ok follows from their vectors, which are rounded to float16."""
    vectors = [row["embedding"] for row in rows]
    kinds, tags, rating = (scores_of(one, vectors) for one in HEADS)
    for number, row in enumerate(rows):
        assert row["head_kinds"] == HEADS[0].head.labels[kinds[number].argmax()]
        order = [place for place in np.argsort(-tags[number]) if tags[number, place] >= 0.5]
        accepted = [HEADS[1].head.labels[place] for place in order]
        assert (row["head_tags"], row["head_tags_accepted"]) == (next(iter(accepted), None), accepted)
        assert row["head_rating"] is None
    for name, values in {"kinds": kinds, "tags": tags, "rating": rating}.items():
        found = [row[f"head_{name}_score"] for row in rows]
        np.testing.assert_allclose(found, values.max(axis=1), atol=2e-3)


@pytest.mark.parametrize("kind", ["parquet", "jsonl", "s3", "redis"])
def test_label_sets_heads_and_vectors_in_one_pass_and_in_a_retry(
    cluster: Cluster, folder: Path, site: HttpSite, kind: str, request: pytest.FixtureRequest
) -> None:
    paths = [f"/{'sick' if number in (1, 5) else 'files'}/{number:06d}.jpg" for number in range(7)]
    lines = "".join(f"{site.url(path)},shelf {number}\n" for number, path in enumerate(paths))
    (folder / "list.csv").write_text(f"url,shelf\n{lines}")
    outputs = {"redis": "redis://", "s3": f"{request.getfixturevalue('s3').uri}/out" if kind == "s3" else ""}
    part_format = kind if kind == "jsonl" else "parquet"
    (folder / "job.yaml").write_text(JOB.format(output=outputs.get(kind, "out"), part_format=part_format))

    answer = cluster.run_json("run", folder / "job.yaml", expect=3)

    assert (answer["ok"], answer["failed"]) == (5, 2)
    where = answer["job_id"] if kind == "redis" else answer["output"]
    before = cluster.rows(where)
    of_sets = [(*label_columns(name), *more) for name, more in (("pets", ()), ("faces", ("accepted_faces",)))]
    of_heads = [name for one in HEADS for name in one.of_job.columns]
    wanted = [*PART_COLUMNS, *of_sets[0], *of_sets[1], *of_heads, "shelf"]
    assert [*before[0]] == wanted
    failed = [row for row in before if row["status"] == "failed"]
    assert {row[name] for row in failed for name in of_heads} == {None}
    check_columns([row for row in before if row["status"] == "ok"])
    assert {site.requests[path] for path in paths if "files" in path} == {1}  # one fetch for everything
    if kind in ("parquet", "jsonl"):
        errors = [json.loads(line) for line in (folder / "out" / "_errors.jsonl").read_text().splitlines()]
        assert {*errors[0]} == {"item_index", "item_id", "uri", "error_code", "error_detail", "shelf"}

    site.heal()
    assert cluster.run_json("retry", where)["failed"] == 0

    after = cluster.rows(where)
    assert [row["status"] for row in after] == ["ok"] * 7
    assert [new for new, old in zip(after, before, strict=True) if old["status"] == "ok"] == [
        row for row in before if row["status"] == "ok"
    ]
    check_columns(after)
    shown = cluster.run("show", "0", "--job", where).stdout
    assert "head_kinds_score" in shown and "head_tags_accepted" in shown
    label = after[0]["head_kinds"]
    chosen = cluster.run("results", where, "--label", label, "--format", "jsonl").stdout
    with_it = [row for row in after if label in (row["label"], row["label_pets"], row["head_kinds"])]
    assert [json.loads(line)["item_index"] for line in chosen.splitlines()] == [
        row["item_index"] for row in with_it
    ]


def test_a_head_alone_labels_images_and_vectors(cluster: Cluster, folder: Path) -> None:
    write_images(folder / "images", 5)
    head = ("--head", folder / "heads" / "kinds.head.safetensors", "--model", "demo")

    sample = cluster.run("classify", folder / "images", *head, "--output", folder / "labels", "--sample", "4")
    embedded = cluster.run_json("embed", folder / "images", *head, "--output", folder / "vectors")

    assert sample.returncode == 0, sample.stderr
    assert "Done: 4 labelled, 0 failed" in sample.stderr
    assert "estimate for all 5 items: failed 0 %" in sample.stderr
    briefs = {one.job_id: one.brief for one in cluster.client.jobs()}
    assert getattr(briefs[embedded["job_id"]], "labels", None) == "head kinds"
    vectors = cluster.rows(folder / "vectors")
    expected = scores_of(HEADS[0], [row["embedding"] for row in vectors])
    assert [row["head_kinds"] for row in vectors] == [HEADS[0].head.labels[one.argmax()] for one in expected]
    by_id = {row["item_id"]: row["head_kinds"] for row in vectors}
    rows = cluster.rows(folder / "labels")
    assert {row["item_id"]: row["head_kinds"] for row in rows}.items() <= by_id.items()
    assert "embedding" not in rows[0]
    table = cluster.run("results", folder / "labels").stdout.splitlines()
    assert table[0].split() == ["index", "id", "status", "head_kinds", "error"]


def test_a_fitted_head_goes_with_the_rows_that_it_was_fitted_on(cluster: Cluster, folder: Path) -> None:
    # Given the fingerprint of rows in full precision, and jobs in other ways
    write_images(folder / "images", 2)
    cluster.run_json("embed", folder / "images", "--model", "demo", "--precision", "fp32", "-o", folder / "v")
    fingerprint = cluster.rows(folder / "v")[0]["model_fingerprint"]
    about = HeadInput(dim=DIMENSION, model="demo", fingerprint=fingerprint)
    write_head(head_file(DIMENSION, 2, input=about), folder / "fitted.head.safetensors")
    command = ("classify", folder / "images", "--head", folder / "fitted.head.safetensors", "--model", "demo")

    # Then the precision may differ, and what changes pixels may not
    assert cluster.run_json(*command, "--precision", "bf16", "--output", folder / "bf16")["ok"] == 2
    refused = cluster.run(*command, "--decode", "exact", "--output", folder / "exact")

    assert refused.returncode != 0
    assert f"head 'taste' is for vectors with the fingerprint {fingerprint}" in refused.stderr
    assert "use the model, --decode and --exif that it was fitted with" in refused.stderr
    assert not list((folder / "exact").glob("data/*"))


def test_what_cannot_work_is_refused_before_anything_is_written(cluster: Cluster, folder: Path) -> None:
    write_images(folder / "images", 2)
    (folder / "list.csv").write_text("path,head_kinds\nimages/000000.jpg,mine\n")
    kinds = folder / "heads" / "kinds.head.safetensors"
    half, none = folder / "half.head.safetensors", folder / "none.head.safetensors"
    half.write_bytes(kinds.read_bytes()[:-1])
    demo = ("--model", "demo")
    refusals: list[tuple[Sequence[str | Path], str]] = [
        (("images", "--head", kinds), "error: head 'kinds' takes vectors of demo, .* --model demo, or"),
        (("images", "--head", half, *demo), "half.head.safetensors: not a safetensors file"),
        (("images", "--head", none, *demo), "none.head.safetensors: No such file"),
        (("images", "--head", kinds, "--head", kinds, *demo), "another head is also called 'kinds'"),
        (("list.csv", "--head", kinds, *demo), "would fill the column 'head_kinds', .* rename one of them"),
        (("images", "--head", kinds, "--multi", *demo), "--multi is for labels"),
        (("images", "--head", "", *demo), "the path of a head is empty"),
        (("images", *demo), "no labels: give --labels .* or a --head"),
    ]
    for (source, *options), words in refusals:
        said = cluster.run("classify", folder / source, "--output", folder / "out", *options)
        assert said.returncode == 2, said.stderr
        assert "Traceback" not in said.stderr
        assert re.search(words, " ".join(said.stderr.split())), said.stderr
        assert not (folder / "out").exists()


@pytest.fixture
def fragile(tmp_path: Path) -> Iterator[Cluster]:
    """A cluster of its own, without a worker."""
    (tmp_path / "fragile").mkdir()
    with Cluster(tmp_path / "fragile") as cluster:
        yield cluster


def test_a_rebuild_finds_the_heads_beside_the_output(fragile: Cluster) -> None:
    # Given a job that Redis lost before any worker saw it, and a head whose file is gone since
    folder, output = fragile.folder, fragile.folder / "out"
    write_images(folder / "images", 5)
    write_head(HEADS[0], folder / "kinds.head.safetensors")
    head = ("--head", folder / "kinds.head.safetensors", "--model", "demo")
    fragile.run_json("embed", folder / "images", *head, "--output", output, "--no-wait")
    (folder / "kinds.head.safetensors").unlink()
    with connect(fragile.server.url) as client:
        client.flushall()

    assert fragile.run_json("rebuild", output, "--no-wait")["state"] == "running"
    worker = fragile.start_worker()
    assert fragile.run("watch", "last").returncode == 0

    rows = fragile.rows(output)
    expected = scores_of(HEADS[0], [row["embedding"] for row in rows])
    assert [row["head_kinds"] for row in rows] == [HEADS[0].head.labels[one.argmax()] for one in expected]
    assert (output / objects.head_file(HEADS[0].of_job.sha256)).read_bytes() == HEADS[0].data
    assert worker.terminate() == 0
