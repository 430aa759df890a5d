"""Heads of others: imported, used by a job, and evaluated; a zero-shot classifier must repeat its labels."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from clipfleet.contract.jobs import DEMO_MODEL, Precision
from clipfleet.labels.metrics import zero_shot_classifier
from clipfleet_worker.models.loader import load_model
from tests.support.cluster import Cluster
from tests.support.wds_roots import demo_images, write_root

NAMES, IMAGES = demo_images()
TEMPLATE = "a drawing of a {}"
ROOT_FILES = {"classnames.txt": NAMES, "zeroshot_classification_templates.txt": [TEMPLATE]}
FP32 = ("--model", "demo", "--precision", "fp32")


def write_classifier(path: Path) -> None:
    """What `clip_benchmark eval --save_clf` writes: the text vectors of the classes, (d, classes)."""
    model = load_model(DEMO_MODEL, Precision.FP32, "cpu")
    texts = np.asarray(model.encode_texts([TEMPLATE.format(name) for name in NAMES]))
    torch.save(torch.from_numpy(zero_shot_classifier(texts, len(NAMES)).T.copy()), path)


@pytest.fixture
def head(cluster: Cluster, folder: Path) -> Path:
    """The file of an imported head."""
    write_classifier(folder / "classifier.pt")
    (folder / "names.txt").write_text("\n".join(NAMES))
    place = folder / "drawing.head.safetensors"
    imported = cluster.run(
        "head", "import", folder / "classifier.pt", "--as", "linear", "--model", "demo",
        "--labels", folder / "names.txt", "-o", place,
    )  # fmt: skip
    assert imported.returncode == 0, imported.stderr
    assert "drawing: chooses one of its labels" in imported.stdout
    assert imported.stderr == f"head -> {place}\n"
    return place


def write_list(folder: Path) -> Path:
    (folder / "images").mkdir()
    lines = ["url,species"]
    for number, (name, content) in enumerate(zip(NAMES, IMAGES, strict=True)):
        (folder / "images" / f"{number}.png").write_bytes(content)
        lines.append(f"images/{number}.png,{name}")
    (folder / "list.csv").write_text("\n".join(lines))
    return folder / "list.csv"


def test_an_imported_classifier_repeats_the_zero_shot_labels(
    cluster: Cluster, folder: Path, head: Path
) -> None:
    cluster.run_json(
        "classify", write_list(folder), "--labels", folder / "names.txt", "--template", TEMPLATE,
        "--head", head, *FP32, "--store-embeddings", "--vector-type", "float32", "-o", folder / "out",
    )  # fmt: skip
    judged = ("evaluate", folder / "out", "--truth-column", "species")

    zero_shot = cluster.run_json(*judged)["metrics"]
    by_vectors = cluster.run_json(*judged, "--head", head, "--compare", folder / "out")
    by_rows = cluster.run_json(*judged, "--head", "drawing", "--compare", head)

    rows = cluster.rows(folder / "out")
    assert [row["head_drawing"] for row in rows] == [row["label"] for row in rows]
    assert by_vectors["metrics"] == {f"lp_{name}": value for name, value in zero_shot.items()}
    assert (by_rows["metrics"]["lp_acc1"], by_rows["metrics"]["lp_acc5"]) == (zero_shot["acc1"], None)
    for found in (by_vectors, by_rows):
        acc1 = found["comparison"][0]
        assert (acc1["metric"], acc1["difference"], acc1["p_value"]) == ("lp_acc1", 0.0, 1.0)


def test_a_root_has_the_metrics_of_a_linear_probe(cluster: Cluster, folder: Path, head: Path) -> None:
    shard = [(content, {"cls": str(number).encode()}) for number, content in enumerate(IMAGES)]
    root = write_root(folder / "wds_drawings", [shard], ROOT_FILES)
    command = ("evaluate", root, *FP32, "-o", folder / "kept", "--head", head)

    found = cluster.run_json(*command, "--compare", "demo", "--clip-benchmark-json", folder / "lp.json")

    theirs = json.loads((folder / "lp.json").read_text())
    assert (found["task"], theirs["task"], theirs["dataset"]) == (
        "linear_probe",
        "linear_probe",
        "wds/drawings",
    )
    assert theirs["metrics"] == found["metrics"] | {"normalized": True, "seed": None}
    assert [(one["metric"], one["difference"]) for one in found["comparison"]] == [
        ("lp_acc1", 0.0), ("lp_acc5", 0.0), ("lp_mean_per_class_recall", 0.0)
    ]  # fmt: skip
    refused = cluster.run(*command, "--labels", "a,b")
    assert (refused.returncode, "--labels goes with" in refused.stderr) == (2, True)


V1 = {"weight": np.zeros((1, 512), np.float32), "bias": np.zeros(1, np.float32)}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (
            (),
            "may be aesthetic-v1 or linear, which look alike: say what it is, for example --as aesthetic-v1",
        ),
        (("--as", "nsfw"), "'nsfw' is no head that is known: --as is one of aesthetic-v1,"),
        (("--as", "aesthetic-v2"), "is not aesthetic-v2: there is no tensor 'layers.0.weight'"),
        (("--as", "aesthetic-v1"), "was fitted on vectors of ViT-B-32:openai or ViT-B-16:openai; "),
        (("--as", "linear", "-o", "x.safetensors"), "the file of a head ends in .head.safetensors"),
        (
            ("--as", "linear", "--labels", "a,b"),
            "has 1 output of 512 numbers: give 1 label with --labels, in their order (2 were given)",
        ),
        (("--as", "linear", "--name", "no name"), "--name 'no name': a name begins with a letter"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    cluster: Cluster, folder: Path, options: Sequence[str], words: str
) -> None:
    (folder / "v1.safetensors").write_bytes(save(V1))

    refused = cluster.run("head", "import", folder / "v1.safetensors", "--model", "demo", *options)

    assert refused.returncode == 2
    assert words in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert os.listdir(folder) == ["v1.safetensors"]  # noqa: PTH208


def test_code_in_a_file_is_not_run(cluster: Cluster, folder: Path) -> None:
    class Code:
        def __reduce__(self) -> object:
            return os.system, (f"touch {folder}/ran",)

    torch.save({"weight": Code()}, folder / "evil.pth")

    refused = cluster.run("head", "import", folder / "evil.pth", "--model", "demo")

    assert (refused.returncode, len(refused.stderr.splitlines())) == (2, 1)
    assert f"{folder}/evil.pth: holds posix.system, which is no tensor" in refused.stderr
    assert os.listdir(folder) == ["evil.pth"]  # noqa: PTH208
