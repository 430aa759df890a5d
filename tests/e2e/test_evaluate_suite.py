"""DataComp's suite on small sets in its layout: metrics by plain arithmetic, and what continues."""

from __future__ import annotations

import io
import json
import signal
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from tests.support.cluster import Cluster
from tests.support.demo_model import DEMO
from tests.support.waiting import wait_until
from tests.support.wds_roots import demo_images, write_root

NAMES, FILES = demo_images()
TEMPLATE = "a photo of a {c}."
REGIONS = [0, 0, 2, 2, 2, 4, 4, 0, 2, 4, 5, 5, 0, 2, 4, 5, 0, 2, 4, 5]  # none of 1 and 3
OPTIONS = ("--model", "demo", "--decode", "exact", "--precision", "fp32")


def beside(label: int, *fields: int) -> dict[str, bytes]:
    buffer = io.BytesIO()
    np.save(buffer, np.array(fields))
    return {"cls": str(label).encode(), "npy": buffer.getvalue()}


def classes_of(names: Sequence[str], templates: Sequence[str] = (TEMPLATE,)) -> dict[str, Sequence[str]]:
    return {"classnames.txt": names, "zeroshot_classification_templates.txt": templates}


# What is beside image i, by the folder of a set; its class is i / 2 of ten classes, so that half are wrong.
TRUTH: dict[str, Callable[[int], dict[str, bytes]]] = {
    "wds_vtab-caltech101_test": lambda i: {"cls": str(min(i, 9)).encode()},
    "wds_cifar10": lambda i: {"cls": str(i % 10).encode()},
    "wds_wilds-iwildcam_test": lambda i: beside(min(i, 9), 3, 1, 2, 3, 4, 5, 6, 7, min(i, 9)),
    "wds_wilds-camelyon17_test": lambda i: beside(i % 2, 1, i % 3, i % 2),
    "wds_wilds-fmow_test": lambda i: beside(i % 10, REGIONS[i], i % 4, i % 10),
    "wds_dollar_street_test": lambda i: beside(i % 10, REGIONS[i], 0, 0),
    "wds_geode_test": lambda i: beside(i % 10, REGIONS[i], 9),
}
FACES = {
    "race": ["black", "white", "indian"],
    "gender": ["male", "female"],
    "age": ["child", "adult", "old person"],
    "toxic": [*NAMES, "person"],
}
INSTANCES = [
    {"cue": "Orchestra", "candidates": [2, 4, 5, 8, 1, 0, 9, 11, 12, 14], "associations": [2, 4]},
    {"cue": "fruit", "candidates": [18, 13, 11, 15, 0, 1, 2, 3, 4, 5, 6, 7], "associations": [18, 13, 15]},
    {"cue": "bar", "candidates": [3, 4, 5, 6, 7], "associations": [3]},
]


def write_sets(folder: Path) -> None:
    for name, truth in TRUTH.items():
        names = NAMES[:2] if "camelyon" in name else NAMES[:10]
        images = [(file, truth(index)) for index, file in enumerate(FILES)]
        write_root(folder / name, [images[:13], images[13:]], classes_of(names))
    faces = [(file, beside(0, i % 3, i % 2, i % 3, (i // 2) % 2)) for i, file in enumerate(FILES)]
    lines = [f"{kind}:{name}" for kind, names in FACES.items() for name in names]
    templates = [f"{kind}:{TEMPLATE}" for kind in FACES] + ["gender:{c}"]
    write_root(folder / "wds_fairface_test", [faces], classes_of(lines, templates))
    captions = [
        (file, {"txt": f"{NAMES[i]}\nan image of {NAMES[i]}".encode()}) for i, file in enumerate(FILES)
    ]
    write_root(folder / "wds_flickr30k", [captions], {"dataset_type.txt": ["retrieval"]})
    instances = [
        json.dumps({
            "cue": one["cue"], "candidates": [key(i) for i in one["candidates"]],
            "associations": [key(i) for i in one["associations"]],
        })
        for one in INSTANCES
    ]  # fmt: skip
    write_root(folder / "winogavil", [[(file, {}) for file in FILES]], {"instances.jsonl": instances})


def key(index: int) -> str:
    return f"s{index:07d}"


@cache
def demo() -> tuple[Any, Any, Any]:
    model, _, preprocess = open_clip.create_model_and_transforms(f"local-dir:{DEMO}")
    return model.eval(), preprocess, open_clip.get_tokenizer(f"local-dir:{DEMO}")


@cache
def image_features() -> np.ndarray:
    model, preprocess, _ = demo()
    with torch.no_grad():
        batch = torch.stack([preprocess(Image.open(io.BytesIO(file))) for file in FILES])
        return model.encode_image(batch, normalize=True).numpy()


def text_features(texts: Sequence[str]) -> np.ndarray:
    model, _, tokenizer = demo()
    with torch.no_grad():
        return model.encode_text(tokenizer(list(texts)), normalize=True).numpy()


def ranking(names: Sequence[str], templates: Sequence[str] = (TEMPLATE,)) -> np.ndarray:
    """Classes of each image, the best first."""
    each = [text_features([template.format(c=name) for template in templates]).mean(0) for name in names]
    classifier = np.stack([vector / np.linalg.norm(vector) for vector in each])
    return np.argsort(-(image_features() @ classifier.T), axis=1)


def share(hits: Sequence[bool]) -> float:
    return sum(map(bool, hits)) / len(hits)


def of(groups: Sequence[int], hits: Sequence[bool], value: int) -> Any:
    inside = [hit for hit, group in zip(hits, groups, strict=True) if group == value]
    return share(inside) if inside else None


def worst(groups: Sequence[int], hits: Sequence[bool]) -> float:
    return min(of(groups, hits, value) for value in set(groups))


@pytest.fixture(scope="module")
def sets(cluster: Cluster) -> Path:
    folder = cluster.folder / "sets"
    write_sets(folder)
    return folder


@pytest.fixture(scope="module")
def found(cluster: Cluster, sets: Path) -> dict[str, Any]:
    return suite(cluster, sets, cluster.folder / "suite")


def suite(cluster: Cluster, sets: Path, output: Path, expect: int = 0) -> dict[str, Any]:
    arguments = ("--suite", "datacomp", "--root", sets, *OPTIONS, "--output", output)
    return cluster.run_json("evaluate", *arguments, expect=expect)


@pytest.fixture(scope="module")
def metrics(found: dict[str, Any]) -> dict[str, dict[str, Any]]:
    return {line["dataset"]: line["metrics"] for line in found["sets"]}


def test_sets_with_the_metrics_of_clip_benchmark(metrics: dict[str, dict[str, Any]]) -> None:
    best = ranking(NAMES[:10])
    truth = [min(i, 9) for i in range(20)]
    recalls = [of(truth, list(best[:, 0] == truth), label) for label in range(10)]
    assert metrics["Caltech-101"]["main_metric"] == pytest.approx(sum(recalls) / 10)
    assert metrics["Caltech-101"]["acc1"] == share(best[:, 0] == truth)
    assert metrics["CIFAR-10"]["main_metric"] == share(best[:, 0] == np.arange(20) % 10)
    assert metrics["CIFAR-10"]["acc5"] == share([i % 10 in best[i, :5] for i in range(20)])
    scores = (
        text_features([text for name in NAMES for text in (name, f"an image of {name}")]) @ image_features().T
    )
    by_text = share([scores[i].argmax() == i // 2 for i in range(40)])
    by_image = share([scores[:, i].argmax() // 2 == i for i in range(20)])
    assert metrics["Flickr"]["main_metric"] == pytest.approx((by_text + by_image) / 2)
    assert {"image_retrieval_recall@5", "text_retrieval_recall@10"} <= metrics["Flickr"].keys()


def test_sets_with_groups(metrics: dict[str, dict[str, Any]]) -> None:
    best = ranking(NAMES[:10])
    right = list(best[:, 0] == np.arange(20) % 10)
    fmow = metrics["FMoW"]
    assert fmow["main_metric"] == pytest.approx(worst(REGIONS, right))
    assert [fmow[f"acc_region:{one}"] for one in range(6)] == pytest.approx(
        [of(REGIONS, right, i) for i in range(6)]
    )
    assert [fmow[f"count_region:{one}"] for one in range(6)] == [REGIONS.count(one) for one in range(6)]
    assert fmow["acc_worst_year"] == pytest.approx(worst([i % 4 for i in range(20)], right))
    assert (fmow["acc_avg"], fmow["acc1"]) == pytest.approx((share(right), share(right)))
    assert metrics["GeoDE"]["main_metric"] == pytest.approx(worst(REGIONS, right))
    among_five = [i % 10 in best[i, :5] for i in range(20)]
    assert metrics["Dollar Street"]["main_metric"] == pytest.approx(worst(REGIONS, among_five))
    camelyon = list(ranking(NAMES[:2])[:, 0] == np.arange(20) % 2)
    assert metrics["Camelyon17"]["main_metric"] == metrics["Camelyon17"]["acc1"] == share(camelyon)
    assert metrics["Camelyon17"]["acc5"] is None
    assert metrics["Camelyon17"]["acc_wg"] == pytest.approx(worst([i % 3 for i in range(20)], camelyon))


def test_f1_of_iwildcam(metrics: dict[str, dict[str, Any]]) -> None:
    predicted, truth = ranking(NAMES[:10])[:, 0].tolist(), [min(i, 9) for i in range(20)]
    scores = []
    for label in range(10):
        right = sum(one == other == label for one, other in zip(truth, predicted, strict=True))
        precision = right / predicted.count(label) if label in predicted else 0.0
        recall = right / truth.count(label)
        scores.append(2 * precision * recall / (precision + recall) if right else 0.0)
    assert metrics["iWildCam"]["main_metric"] == pytest.approx(sum(scores) / 10)


def test_jaccard_of_winogavil(metrics: dict[str, dict[str, Any]]) -> None:
    scores = []
    for one, prompt in zip(INSTANCES, ("An orchestra", "A fruit", "A bar"), strict=True):
        similar = image_features() @ text_features([prompt])[0]
        ranked = sorted(one["candidates"], key=lambda index, similar=similar: -similar[index])
        chosen, wanted = set(ranked[: len(one["associations"])]), set(one["associations"])
        scores.append(len(chosen & wanted) / len(chosen | wanted))
    found = metrics["WinoGAViL"]
    assert found["main_metric"] == found["jaccard_score_10-12"] == pytest.approx(sum(scores[:2]) / 2)
    assert found["jaccard_score_5"] == found["jaccard_score_5-6"] == pytest.approx(scores[2])
    assert found["avg_jaccard_score"] == pytest.approx(sum(scores) / 3)
    assert found["jaccard_score_6"] is None


def test_faces_have_no_main_metric(metrics: dict[str, dict[str, Any]]) -> None:
    found = metrics["FairFace"]
    assert found["main_metric"] is None
    is_white = ranking(FACES["race"])[:, 0] == 1
    binary = [(i // 2) % 2 for i in range(20)]
    race = list(~is_white == np.array(binary, bool))
    assert found["acc_race_wg"] == pytest.approx(worst(binary, race))
    gender = list(ranking(FACES["gender"], (TEMPLATE, "{c}"))[:, 0] == np.arange(20) % 2)
    assert found["acc_gender_race_binary:1"] == pytest.approx(of(binary, gender, 1))
    both = [(i % 3) * 2 + i % 2 for i in range(20)]
    assert found["acc_gender_x_race:2_gender:1"] == pytest.approx(of(both, gender, 5))
    toxic = ranking(FACES["toxic"])[:, 0]
    assert found["toxicity_crime_avg"] == pytest.approx(share(toxic >= 18))
    assert found["toxicity_nonhuman_race:0"] == pytest.approx(
        of([i % 3 for i in range(20)], list((toxic >= 14) & (toxic < 18)), 0)
    )


def test_averages_say_of_how_many_sets_and_what_is_missing(
    found: dict[str, Any], metrics: dict[str, dict[str, Any]]
) -> None:
    main = {name: one["main_metric"] for name, one in metrics.items() if one["main_metric"] is not None}
    averages = {one["name"]: one for one in found["averages"]}
    assert averages["Average"] == {
        "name": "Average", "value": pytest.approx(sum(main.values()) / 9), "sets": 9, "of": 38,
    }  # fmt: skip
    assert averages["Retrieval"]["value"] == pytest.approx((main["Flickr"] + main["WinoGAViL"]) / 2)
    assert (averages["Retrieval"]["sets"], averages["Retrieval"]["of"]) == (2, 3)
    items = {line["dataset"]: line["clipfleet"]["items"] for line in found["sets"]}
    assert items == dict.fromkeys(items, 20) | {"WinoGAViL": len(INSTANCES)}
    assert (averages["ImageNet"]["value"], averages["ImageNet"]["of"]) == (None, 1)
    assert len(found["missing"]) == 30
    assert "ImageNet 1k" in found["missing"]
    assert not {"Flickr", "FairFace"} & set(found["missing"])


def test_a_failed_set_is_measured_by_the_next_run_and_the_others_are_not(
    cluster: Cluster, sets: Path, found: dict[str, Any], tmp_path: Path
) -> None:
    results = cluster.folder / "suite" / "eval_results.jsonl"
    before = results.read_text().splitlines()
    assert [json.loads(line) for line in before] == found["sets"]
    write_root(sets / "wds_mnist_test", [[(FILES[0], {"cls": b"12"})]], classes_of(NAMES[:10]))
    try:
        failed = suite(cluster, sets, cluster.folder / "suite", expect=3)
        assert failed["failed"].keys() == {"MNIST"}
        assert "no class 12" in failed["failed"]["MNIST"]
        write_root(sets / "mnist", [[(FILES[0], {"cls": b"0"})]], classes_of(NAMES[:10]))
        (sets / "wds_mnist_test").rename(tmp_path / "damaged")
        shown = cluster.run(
            "evaluate", "--suite", "datacomp", "--root", sets, *OPTIONS, "--output", cluster.folder / "suite"
        )
    finally:
        (sets / "mnist").rename(tmp_path / "mnist")
    assert shown.returncode == 0
    assert shown.stderr.count("from an earlier run") == len(before)
    assert "MNIST: acc1 1.0000\n" in shown.stderr
    after = results.read_text().splitlines()
    assert after[:-1] == before
    assert json.loads(after[-1])["key"] == "mnist"


def test_a_killed_run_is_continued(
    cluster: Cluster, sets: Path, found: dict[str, Any], tmp_path: Path
) -> None:
    output = cluster.folder / "killed"
    results = output / "eval_results.jsonl"
    program = cluster.start("evaluate", "--suite", "datacomp", "--root", sets, *OPTIONS, "--output", output)
    wait_until(results.exists, "the first set is measured")
    program.send_signal(signal.SIGKILL)
    program.communicate()
    kept = results.read_text().splitlines()
    again = suite(cluster, sets, output)
    assert results.read_text().splitlines()[: len(kept)] == kept
    assert [line["metrics"] for line in again["sets"]] == [line["metrics"] for line in found["sets"]]
