"""Heads fitted on held-out drawings of nine groups beat zero-shot; from few marks, those that begin at it."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfleet.evaluation.on_roots import prompts_of
from clipfleet.evaluation.vectors import Embedder
from clipfleet.heads.cross_validation import folds
from clipfleet.heads.files import read_head
from clipfleet.labels.metrics import average_precision, zero_shot_classifier
from clipfleet.outputs import open_output
from clipfleet.results.part_rows import PartRows
from clipfleet.training.heads import train
from clipfleet.training.of_outputs import samples_of_output
from clipfleet.training.samples import Samples
from tests.support.cluster import Cluster
from tests.support.held_out import TEMPLATES, unpack_drawings, write_truth
from tests.support.wds_roots import write_root

GROUPS, FOLDS = 9, 5
MARKS, DRAWS = 5, 20


@dataclass(frozen=True)
class Drawings:
    """All held-out drawings, embedded once."""

    groups: dict[Path, str]
    output: Path
    samples: Samples
    texts: Embedder
    zero_shot: np.ndarray  # (groups, d)


@pytest.fixture(scope="module")
def drawings(cluster: Cluster) -> Drawings:
    folder = cluster.folder / "drawings"
    groups = unpack_drawings(folder)
    output = folder / "embedded"
    source = write_truth(folder / "groups.csv", groups)
    answer = cluster.run_json("embed", source, "--model", "demo", "-o", output)
    assert (answer["ok"], answer["failed"]) == (len(groups), 0)
    found = samples_of_output(PartRows(open_output(str(output))), "group")
    samples = replace(found, templates=TEMPLATES)
    texts = Embedder(lambda: cluster.client, samples.options, str(folder / "texts"))
    prompts = texts.texts(prompts_of(samples.labels, [one.replace("{}", "{c}") for one in TEMPLATES]))
    return Drawings(groups, output, samples, texts, zero_shot_classifier(prompts.features, GROUPS))


def scores_of(features: np.ndarray, arrays: dict[str, np.ndarray]) -> np.ndarray:
    return np.asarray(features @ arrays["0.weight"].T + arrays["0.bias"])


def right(scores: np.ndarray, truth: np.ndarray) -> np.ndarray:
    return np.asarray(scores.argmax(axis=1) == truth)


@pytest.mark.figures
def test_a_fitted_head_beats_zero_shot_by_three_points(drawings: Drawings) -> None:
    samples = drawings.samples
    assert len(samples.labels) == GROUPS and len(samples.truth) > 1_500
    fold = folds(samples.truth, GROUPS, FOLDS, np.random.default_rng(0))
    fitted, from_labels = (np.zeros(len(samples.truth), bool) for _ in range(2))

    for number in range(FOLDS):  # each drawing is held out once
        out = fold == number
        for hits, texts in ((fitted, None), (from_labels, drawings.texts)):
            head = train(samples.of_items(~out), "groups", texts=texts).file
            hits[out] = right(scores_of(samples.features[out], head.arrays()), samples.truth[out])

    zero_shot = right(samples.features @ drawings.zero_shot.T, samples.truth)
    print(
        f"nine groups, {len(fold):,} held-out drawings: zero-shot {zero_shot.mean():.4f}, "
        f"fitted {fitted.mean():.4f}, fitted from the labels {from_labels.mean():.4f}"
    )
    assert fitted.mean() - zero_shot.mean() >= 0.03
    assert from_labels.mean() - zero_shot.mean() >= 0.03


@pytest.mark.figures
def test_with_five_marks_a_group_a_head_from_the_labels_beats_one_from_nothing(drawings: Drawings) -> None:
    samples, random = drawings.samples, np.random.default_rng(0)
    zero_shot = right(samples.features @ drawings.zero_shot.T, samples.truth)
    found = []
    for _ in range(DRAWS):
        marked = np.zeros(len(samples.truth), bool)
        for group in range(GROUPS):
            marked[random.choice(np.flatnonzero(samples.truth == group), MARKS, replace=False)] = True
        few, out = samples.of_items(marked), ~marked
        figures = [mean_of(zero_shot[out], samples.truth[out])]
        for texts in (None, drawings.texts):
            head = train(few, "groups", texts=texts).file
            hits = right(scores_of(samples.features[out], head.arrays()), samples.truth[out])
            figures.append(mean_of(hits, samples.truth[out]))
        found.append(figures)

    zero, nothing, labels = np.mean(found, axis=0)
    print(
        f"{MARKS} marks a group, mean of {DRAWS} draws, top-1 and mean recall of the groups: from nothing "
        f"{nothing.round(4)}, from the labels {labels.round(4)}, zero-shot {zero.round(4)}"
    )
    assert labels[0] > nothing[0] and labels[1] > nothing[1]
    assert labels[0] > zero[0] - 0.01


@pytest.mark.figures
def test_with_five_marks_for_and_against_a_head_from_the_labels_beats_one_from_nothing(
    drawings: Drawings,
) -> None:
    samples, random = drawings.samples, np.random.default_rng(0)
    shows = samples.truth[:, None] == np.arange(GROUPS)
    zero_shot, found = samples.features @ drawings.zero_shot.T, []
    for _ in range(DRAWS):
        known = np.zeros_like(shows)
        for group in range(GROUPS):
            for said in (shows[:, group], ~shows[:, group]):
                known[random.choice(np.flatnonzero(said), MARKS, replace=False), group] = True
        few, out = replace(samples, truth=shows, known=known).of_items(known.any(axis=1)), ~known.any(axis=1)
        figures = [(np.nan, mean_precision(zero_shot[out], shows[out]))]
        for texts in (None, drawings.texts):
            arrays = train(few, "groups", texts=texts).file.arrays()
            scores = scores_of(samples.features[out], arrays)
            decided = ((scores >= 0) == shows[out]).mean()
            figures.append((float(decided), mean_precision(scores, shows[out])))
        found.append(figures)

    zero, nothing, labels = np.mean(found, axis=0)
    print(
        f"{MARKS} marks for and {MARKS} against, mean of {DRAWS} draws, decided rightly and mean average "
        f"precision: from nothing {nothing.round(4)}, from the labels {labels.round(4)}, "
        f"zero-shot {zero[1]:.4f}"
    )
    assert labels[0] > nothing[0] and labels[1] > nothing[1]


def mean_precision(scores: np.ndarray, shows: np.ndarray) -> float:
    """The mean over the groups of the average precision."""
    each = [average_precision(scores[:, group], shows[:, group]) for group in range(GROUPS)]
    return float(np.mean(each))


def mean_of(hits: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Top-1, and the mean recall of the groups."""
    return float(hits.mean()), float(np.mean([hits[truth == group].mean() for group in range(GROUPS)]))


def test_the_command_writes_a_head_with_its_report(
    cluster: Cluster, folder: Path, drawings: Drawings
) -> None:
    file = folder / "my groups-1.head.safetensors"

    said = cluster.run("head", "fit", drawings.output, "--truth-column", "group", "-o", file)
    again = cluster.run_json(
        "head",
        "fit",
        drawings.output,
        "--truth-column",
        "group",
        "-o",
        file,
        "--overwrite",
        "--licence",
        "MIT",
    )

    assert said.returncode == 0, said.stderr
    assert f"head -> {file}" in said.stderr
    assert "acc1" in said.stdout and "taken for" in said.stdout
    made = read_head(file)
    head = made.head
    assert (head.name, head.kind, head.labels) == ("my_groups_1", "classify", drawings.samples.labels)
    assert (head.input.dim, head.input.l2, head.input.model) == (128, True, "demo")
    assert head.input.fingerprint == drawings.samples.images.model_fingerprint
    assert head.licence == "MIT" and again["licence"] == "MIT"
    training = head.training
    assert training.n == sum(training.classes.values()) == len(drawings.groups)
    assert training.data_sha256 == drawings.samples.data_sha256
    assert training.cv["folds"] == 5 and 0.6 < training.cv["metrics"]["acc1"] < 0.75
    low, high = training.cv["intervals"]["acc1"]
    assert low < training.cv["metrics"]["acc1"] < high
    assert [one["label"] for one in training.cv["classes"]] == list(head.labels)
    weights = train(drawings.samples, "my_groups_1").file.arrays()
    assert np.allclose(made.arrays()["0.weight"], weights["0.weight"], rtol=1e-3, atol=1e-3)

    shown = cluster.run("head", "show", file)
    assert shown.returncode == 0
    assert "chooses one of its labels" in shown.stdout and "128 -> 9, softmax" in shown.stdout
    assert cluster.run_json("head", "show", file)["sha256"] == made.of_job.sha256


def test_few_marks_from_the_labels(cluster: Cluster, folder: Path, drawings: Drawings) -> None:
    # Given marks of three groups, five yes and five no each, and one that is skipped
    samples, groups = drawings.samples, ("flags", "food & drink", "symbols")
    rows = []
    for group in groups:
        number = samples.labels.index(group)
        others = np.flatnonzero(~np.isin(samples.truth, [number]))[::50]
        marked = [*np.flatnonzero(samples.truth == number)[:MARKS], *others[:MARKS]]
        rows += [mark(int(index), group, bool(samples.truth[index] == number)) for index in marked]
    rows.append(mark(0, "flags", None))
    marks = write_marks(folder / "fit.csv", rows)
    file = folder / "three.head.safetensors"

    # When a head begins at the labels
    found = cluster.run_json(
        "head", "fit", drawings.output, "--marks", marks, "--from-labels", "--template", TEMPLATES[1],
        "-o", file, "--vectors", folder / "texts",
    )  # fmt: skip

    # Then it answers for each label, better than chance, on items that nobody marked
    assert (found["kind"], found["output"], found["labels"]) == ("multilabel", "sigmoid", list(groups))
    assert found["training"]["classes"] == dict.fromkeys(groups, MARKS)
    assert "from the labels" in found["training"]["recipe"]
    scores = scores_of(samples.features, read_head(file).arrays())
    for column, group in enumerate(groups):
        shows = samples.truth == samples.labels.index(group)
        assert np.median(scores[shows, column]) > np.quantile(scores[~shows, column], 0.75)


def mark(index: int, label: str, verdict: bool | None) -> dict[str, Any]:
    said = {True: "yes", False: "no", None: "skip"}[verdict]
    return {
        "item_index": index, "label": label, "verdict": said, "purpose": "fit", "inclusion_probability": 1,
    }  # fmt: skip


def write_marks(path: Path, rows: Sequence[dict[str, Any]]) -> Path:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (("--truth-column", "kind"), "the source has no column 'kind'; it has group"),
        (("--truth-column", "group", "--labels", "flags,food"), "is neither a label nor the index of one"),
        (("--truth-column", "group", "--marks", "fit.csv"), "give --truth-column or --marks, not both"),
        (("--truth-column", "group", "--split", "train"), "--split goes with a ROOT"),
        (("--truth-column", "group", "--template", "a {}"), "--template goes with --from-labels"),
        (("--marks", "nowhere.csv"), "nowhere.csv"),
        ((), "is the output of a job, not a webdataset root: add --truth-column"),
    ],
)
def test_mistakes_are_named_and_nothing_is_written(
    cluster: Cluster, folder: Path, drawings: Drawings, arguments: tuple[str, ...], problem: str
) -> None:
    file = folder / "x.head.safetensors"

    refused = cluster.run("head", "fit", drawings.output, *arguments, "-o", file)

    assert refused.returncode == 2, refused.stderr
    assert problem in refused.stderr and len(refused.stderr.splitlines()) == 1
    assert not list(folder.iterdir())


def test_a_root_is_embedded_by_the_jobs_of_evaluate(
    cluster: Cluster, folder: Path, drawings: Drawings
) -> None:
    # Given a split of three classes, one of which has a name that occurs twice
    chosen = ("flags", "food & drink", "symbols")
    paths = [(path, chosen.index(group)) for path, group in drawings.groups.items() if group in chosen]
    some = [(path, label) for label in range(3) for path, one in paths if one == label][::20]
    some += [(path, 0) for path, label in paths if label == 0][:4]
    images = [(path.read_bytes(), {"cls": str(label).encode()}) for path, label in some]
    names = {"classnames.txt": ["flag", "food", "flag"]}
    root = write_root(folder / "root", [images], names, split="train", ending="webp")
    file = folder / "food.head.safetensors"

    # When a head is fitted twice, the second time nothing is embedded again
    options = ("--model", "demo", "--vectors", folder / "kept", "-o", file)
    found = cluster.run_json("head", "fit", root, *options)
    jobs = len(cluster.client.jobs())
    cluster.run_json("head", "fit", root, *options, "--overwrite")

    # Then it has one label per class
    assert found["labels"] == ["flag", "food", "flag (2)"]
    assert found["training"]["n"] == len(some)
    assert found["training"]["source"] == f"{root}, split train"
    assert len(cluster.client.jobs()) == jobs
