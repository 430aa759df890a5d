"""`clipfleet evaluate` on webdataset roots of the demo model's samples, written by hand."""

from __future__ import annotations

import io
import json
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from clipfleet.contract.jobs import DEMO_MODEL, Precision
from clipfleet.outputs import open_output
from clipfleet.results import rows as results
from clipfleet.results.part_rows import PartRows
from clipfleet_worker.models.loader import load_model
from tests.support.cluster import Cluster
from tests.support.s3 import S3Bucket
from tests.support.wds_roots import Image, demo_images, write_root

TEMPLATES = ("a photo of a {c}", "a drawing of a {}")
NAMES, IMAGES = demo_images()
CLASSES = {"classnames.txt": NAMES, "zeroshot_classification_templates.txt": TEMPLATES}
EXACT = ("--model", "demo", "--decode", "exact", "--precision", "fp32")


def numbered(images: Sequence[bytes] = IMAGES) -> list[Image]:
    return [(content, {"cls": str(number).encode()}) for number, content in enumerate(images)]


def two_shards(images: Sequence[Image]) -> list[Sequence[Image]]:
    return [images[:12], images[12:]]


def npy(values: object) -> bytes:
    file = io.BytesIO()
    np.save(file, np.asarray(values))
    return file.getvalue()


def stored_vectors(output: str) -> np.ndarray:
    return results.vectors(PartRows(open_output(output)))[1]


def text_vectors(texts: Sequence[str]) -> np.ndarray:
    return np.asarray(load_model(DEMO_MODEL, Precision.FP32, "cpu").encode_texts(list(texts)))


def unit(vectors: np.ndarray) -> np.ndarray:
    return vectors / np.linalg.norm(vectors, axis=-1, keepdims=True)


def classifier(names: Sequence[str]) -> np.ndarray:
    prompts = [template.replace("{c}", "{}").format(name) for name in names for template in TEMPLATES]
    return unit(unit(text_vectors(prompts)).reshape(len(names), len(TEMPLATES), -1).mean(axis=1))


class TestClassification:
    def test_numbers_are_those_of_the_models_own_vectors(self, cluster: Cluster, folder: Path) -> None:
        root = write_root(folder / "wds_drawings", two_shards(numbered()), CLASSES)
        theirs = folder / "result.json"

        found = cluster.run_json(
            "evaluate", root, *EXACT, "-o", folder / "kept", "--clip-benchmark-json", theirs
        )

        classes = classifier(NAMES)
        images = stored_vectors(found["outputs"]["images"])
        assert images.dtype == np.float32
        order = np.argsort(-(images @ classes.T), axis=1)
        hits = [number in row[:k] for k in (1, 5) for number, row in enumerate(order)]
        acc1, acc5 = np.mean(hits[:20]), np.mean(hits[20:])
        assert 0.6 < acc1 < acc5 <= 1.0
        assert found["metrics"] == pytest.approx({"acc1": acc1, "acc5": acc5, "mean_per_class_recall": acc1})
        low, high = found["intervals"]["acc1"]
        assert low < acc1 < high
        assert (found["items"], found["failed"], found["task"]) == (20, [], "zeroshot_classification")
        assert sum(one["count"] for one in found["confusion"]) == 20
        assert json.loads(theirs.read_text()) == {
            "dataset": "wds/drawings", "model": "demo", "pretrained": "", "language": "en",
            "task": "zeroshot_classification", "metrics": found["metrics"],
        }  # fmt: skip
        assert {path.parent.name for path in (folder / "kept").glob("*/_SUCCESS")} == {
            Path(uri).name for uri in found["outputs"].values()
        }

    def test_the_same_again_runs_nothing_and_needs_no_redis(self, cluster: Cluster, folder: Path) -> None:
        root = write_root(folder / "root", [numbered()[:6]], CLASSES)
        command = ("evaluate", str(root), "--model", "demo", "-o", str(folder / "kept"))
        found = cluster.run_json(*command)
        written = {path: path.stat().st_mtime_ns for path in (folder / "kept").rglob("*") if path.is_file()}

        with pytest.MonkeyPatch.context() as patch:
            patch.setitem(cluster.settings, "CLIPFLEET_REDIS_URL", "redis://127.0.0.1:9/0")
            again = cluster.run_json(*command)

        assert again == found
        assert written == {
            path: path.stat().st_mtime_ns for path in (folder / "kept").rglob("*") if path.is_file()
        }
        # Redis knows the jobs, but their outputs are gone
        shutil.rmtree(folder / "kept")
        assert cluster.run_json(*command)["metrics"] == found["metrics"]

    def test_a_broken_image_is_left_out_and_named(self, cluster: Cluster, folder: Path) -> None:
        root = write_root(folder / "root", [numbered([b"\x89PNG broken", *IMAGES[1:4]])], CLASSES)
        command = ("evaluate", root, "--model", "demo", "-o", folder / "kept")

        found = cluster.run_json(*command, expect=3)

        assert found["items"] == 3
        assert [(one["item_index"], one["item_id"]) for one in found["failed"]] == [(0, "s0000000")]
        assert [one["n"] for one in found["classes"][:5]] == [0, 1, 1, 1, 0]
        printed = cluster.run(*command)
        assert printed.returncode == 3
        assert "left out: 1 failed item" in printed.stdout

    def test_two_evaluations_at_once_share_their_jobs(self, cluster: Cluster, folder: Path) -> None:
        root = write_root(folder / "root", two_shards(numbered()), CLASSES)
        command = ("evaluate", root, "--model", "demo", "-o", folder / "kept", "--json")

        programs = [cluster.start(*command) for _ in range(3)]
        printed = [program.communicate(timeout=60) for program in programs]

        assert [program.returncode for program in programs] == [0, 0, 0], printed
        assert len({out for out, _ in printed}) == 1
        assert len(list((folder / "kept").glob("*/_SUCCESS"))) == 2

    def test_a_root_in_s3_that_keeps_its_vectors_there(
        self, cluster: Cluster, folder: Path, s3: S3Bucket
    ) -> None:
        root = write_root(folder / "root", [numbered()[:3], numbered()[3:5]], CLASSES)
        for path in root.rglob("*.*"):
            s3.put(f"sets/{path.relative_to(root)}", path.read_bytes())
        place = ("-o", f"{s3.uri}/kept")

        found = cluster.run_json("evaluate", f"{s3.uri}/sets", "--model", "demo", *place)

        here = cluster.run_json("evaluate", root, "--model", "demo", "-o", folder / "kept")
        assert found["metrics"] == here["metrics"]
        assert s3.keys("kept/images-")
        refused = cluster.run("evaluate", f"{s3.uri}/sets", "--split", "val", *place)
        assert "no split 'val'" in refused.stderr and "its splits are test" in refused.stderr

    def test_two_models_are_compared(self, cluster: Cluster, folder: Path) -> None:
        root = write_root(folder / "root", [numbered()[:5]], CLASSES)

        found = cluster.run_json(
            "evaluate", root, "--model", "demo", "--compare", "demo", "-o", folder / "kept"
        )

        assert found["compared_with"] == "demo"
        acc1 = found["comparison"][0]
        assert (acc1["metric"], acc1["difference"], acc1["p_value"]) == ("acc1", 0.0, 1.0)

    def test_files_that_workers_may_not_read(self, cluster: Cluster, folder: Path, tmp_path: Path) -> None:
        root = write_root(tmp_path / "root", [numbered()[:2]], CLASSES)

        refused = cluster.run("evaluate", root, "--model", "demo", "-o", folder / "kept")

        assert refused.returncode == 2
        assert "none of 2 items could be embedded, for example s0000000" in refused.stderr


def test_multilabel(cluster: Cluster, folder: Path) -> None:
    classes = 4
    truth = np.array(
        [[1, 0, 0, 0], [1, 1, 0, 0], [0, 0, 1, 0], [0, 1, 0, 0], [0, 0, 0, 0]]
    )  # none of the last
    images = [(IMAGES[number], {"npy": npy(row)}) for number, row in enumerate(truth)]
    texts = {**CLASSES, "classnames.txt": NAMES[:classes], "dataset_type.txt": ["multilabel"]}
    root = write_root(folder / "root", [images], texts)

    found = cluster.run_json("evaluate", root, *EXACT, "-o", folder / "kept")

    prompts = [
        template.replace("{c}", "{}").format(name) for name in NAMES[:classes] for template in TEMPLATES
    ]
    matrix = unit(unit(text_vectors(prompts)).reshape(classes, 2, -1).mean(axis=1))
    scores = stored_vectors(found["outputs"]["images"]) @ matrix.T
    each = []
    for k in range(classes):
        hits = truth[np.argsort(-scores[:, k]), k]
        precision = np.cumsum(hits) / np.arange(1, len(hits) + 1)
        each.append((precision * hits).sum() / max(hits.sum(), 1))
    assert found["metrics"] == {"mean_average_precision": pytest.approx(np.mean(each))}
    assert [one["average_precision"] for one in found["classes"]] == pytest.approx(each)
    assert each[3] == 0.0


def test_retrieval(cluster: Cluster, folder: Path) -> None:
    captions = [[f"a drawing of a {name}", name, *([f"thing {n}"] * (n % 2))] for n, name in enumerate(NAMES)]
    images = [
        (content, {"txt": "\n".join(lines).encode()}) for content, lines in zip(IMAGES, captions, strict=True)
    ]
    root = write_root(folder / "root", two_shards(images), {"dataset_type.txt": ["retrieval"]})

    found = cluster.run_json("evaluate", root, *EXACT, "--recall-k", "1,5", "-o", folder / "kept")

    owner = [number for number, lines in enumerate(captions) for _ in lines]
    texts = unit(text_vectors([line for lines in captions for line in lines]))
    scores = texts @ stored_vectors(found["outputs"]["images"]).T
    expected = {}
    for k in (1, 5):
        of_texts = np.argsort(-scores, axis=1, kind="stable")[:, :k]
        expected[f"image_retrieval_recall@{k}"] = np.mean(
            [image in row for image, row in zip(owner, of_texts, strict=True)]
        )
        of_images = np.argsort(-scores.T, axis=1, kind="stable")[:, :k]
        expected[f"text_retrieval_recall@{k}"] = np.mean(
            [any(owner[text] == image for text in row) for image, row in enumerate(of_images)]
        )
    assert found["metrics"] == pytest.approx(expected)
    assert found["task"] == "zeroshot_retrieval"


class TestOutputs:
    def test_rows_and_vectors_against_a_column(self, cluster: Cluster, folder: Path) -> None:
        (folder / "images").mkdir()
        lines = ["url,species"]
        for number, (name, content) in enumerate(zip(NAMES, IMAGES, strict=True)):
            (folder / "images" / f"{number}.png").write_bytes(content)
            lines.append(f"images/{number}.png,{name}")
        (folder / "list.csv").write_text("\n".join(lines))
        (folder / "names.txt").write_text("\n".join(NAMES))
        cluster.run_json(
            "classify", folder / "list.csv", "--labels", folder / "names.txt", "--model", "demo",
            "--store-embeddings", "-o", folder / "out",
        )  # fmt: skip

        by_rows = cluster.run_json("evaluate", folder / "out", "--truth-column", "species")
        by_vectors = cluster.run_json(
            "evaluate", folder / "out", "--truth-column", "species", "--labels", folder / "names.txt",
            "-o", folder / "kept", "--compare", folder / "out",
        )  # fmt: skip

        rows = cluster.rows(folder / "out")
        right = sum(row["label"] == row["species"] for row in rows)
        assert by_rows["metrics"]["acc1"] == right / 20
        assert by_rows["metrics"]["acc5"] == np.mean([row["species"] in row["labels"] for row in rows])
        assert by_vectors["metrics"] == pytest.approx(by_rows["metrics"], abs=0.051)  # of float16 vectors
        assert by_vectors["comparison"][0]["difference"] == 0.0
        assert cluster.run_json("status", "last")["output"] == str(folder / "out")
        assert by_rows["model_fingerprint"] == by_vectors["model_fingerprint"] == rows[0]["model_fingerprint"]

        self.check_that_worse_rows_lose(cluster, folder)

    def test_a_preset_is_known_from_the_output(self, cluster: Cluster, folder: Path) -> None:
        """Its labels 657 and 744 are both `missile`; rows and vectors agree, and one item has no truth."""
        (folder / "images").mkdir()
        for number in range(4):
            (folder / "images" / f"{number}.png").write_bytes(IMAGES[number])
        lines = [
            "url,n,name",
            *(f"images/{n}.png,{truth},missile" for n, truth in enumerate([657, 744, 1, ""])),
        ]
        (folder / "list.csv").write_text("\n".join(lines))
        preset = ("--label-set", "imagenet1k-simple")
        cluster.run_json(
            "classify",
            folder / "list.csv",
            *preset,
            "--model",
            "demo",
            "--store-embeddings",
            "-o",
            folder / "out",
        )
        command = ("evaluate", folder / "out", "--truth-column")

        by_rows = cluster.run_json(*command, "n")
        by_vectors = cluster.run_json(*command, "n", *preset, "-o", folder / "kept")
        refused = cluster.run(*command, "name")

        assert {one["truth_index"] for one in by_rows["confusion"]} == {657, 744, 1}
        assert by_rows["items"] == by_vectors["items"] == 3
        assert by_rows["confusion"] == by_vectors["confusion"]
        assert "'missile' is the name of labels 657 and 744: give the index" in refused.stderr

    def check_that_worse_rows_lose(self, cluster: Cluster, folder: Path) -> None:
        """Fifteen files get the image of another name, and one is gone: the same items, the same truth."""
        for number in range(15):
            (folder / "images" / f"{number}.png").write_bytes(IMAGES[(number + 1) % 15])
        (folder / "images" / "19.png").unlink()
        cluster.run_json(
            "classify", folder / "list.csv", "--labels", folder / "names.txt", "--model", "demo",
            "-o", folder / "worse", expect=3,
        )  # fmt: skip

        found = cluster.run_json(
            "evaluate", folder / "out", "--truth-column", "species", "--compare", folder / "worse", expect=3
        )

        acc1 = found["comparison"][0]
        assert (acc1["value"] > 0.6, acc1["other"] < 0.4) == (True, True)
        assert 0 < acc1["interval"][0] < acc1["difference"] == acc1["value"] - acc1["other"]
        assert acc1["p_value"] < 0.05
        assert (found["items"], found["compared_items"], found["failed"]) == (20, 19, [])
        assert [one["error_code"] for one in found["compared_failed"]] == ["not_found"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--split", "val"), "no split 'val'"),
        (("--task", "linear_probe"), "--task 'linear_probe' is not one of auto"),
        (("--recall-k", "0"), "give numbers from 1 on"),
        (("--labels", "a,b"), "--labels goes with --truth-column"),
        (("--truth-column", "cls"), "no job has this output"),
        (("--truth-column", "cls", "--decode", "exact"), "--decode goes with a ROOT"),
        (("--model", "nope"), "model 'nope' does not name its weights: write NAME:PRETRAINED"),
        (("--model", "demo", "--compare", "nope"), "model 'nope' does not name its weights"),
    ],
)
def test_a_mistake_is_one_line_and_leaves_nothing(
    cluster: Cluster, folder: Path, options: Sequence[str], words: str
) -> None:
    root = write_root(folder / "root", [numbered()[:2]], CLASSES)
    place = () if "--truth-column" in options else ("-o", folder / "kept")

    refused = cluster.run("evaluate", root, *place, *options)

    assert refused.returncode == 2
    assert words in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert not (folder / "kept").exists()
