"""DataComp's suite: its table, metrics of groups at their edges, and what is kept of an earlier run."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfleet.errors import OutputConflictError, SourceError
from clipfleet.evaluation.datacomp.groups import by_group, jaccard, macro
from clipfleet.evaluation.datacomp.suite import Suite, averages, results_path, run_suite
from clipfleet.evaluation.datacomp.tasks import AVERAGE, GROUPS, TASKS
from clipfleet.evaluation.vectors import Embedded, Embedder, EmbeddingError, FailedItem, ModelOptions
from tests.support.wds_roots import write_root

BY_KEY = {task.key: task for task in TASKS}


def test_forty_sets_of_which_38_have_a_main_metric() -> None:
    assert len(BY_KEY) == len({task.name for task in TASKS}) == 40
    names = {task.name for task in TASKS if task.main_metric}
    assert len(names) == 38
    assert {name: len(members) for name, members in GROUPS.items()} == {
        "ImageNet": 1, "ImageNet dist. shifts": 6, "VTAB": 13, "Retrieval": 3, AVERAGE: 38,
    }  # fmt: skip
    assert all(members <= names for members in GROUPS.values())
    own = {task.name: task.main_metric for task in TASKS if task.main_metric != "acc1"}
    assert own == {
        "Caltech-101": "mean_per_class_recall", "FGVC Aircraft": "mean_per_class_recall",
        "Oxford Flowers-102": "mean_per_class_recall", "Oxford-IIIT Pet": "mean_per_class_recall",
        "Flickr": "mean_recall@1", "MSCOCO": "mean_recall@1", "WinoGAViL": "jaccard_score_10-12",
        "iWildCam": "F1-macro_all", "FMoW": "acc_worst_region", "Dollar Street": "acc_top5_wg",
        "GeoDE": "acc_wg", "FairFace": None, "UTKFace": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("key", "folder"),
    [
        ("vtab/caltech101", "wds_vtab-caltech101_test"),
        ("vtab/caltech101", "wds_vtab-caltech101"),
        ("vtab/caltech101", "caltech101"),
        ("vtab/caltech101", "vtab/caltech101"),
        ("imagenet1k", "wds_imagenet1k_test"),
        ("wilds/fmow", "wds_wilds-fmow_test"),
        ("fairness/geode", "wds_geode_test"),
        ("retrieval/flickr_1k_test_image_text_retrieval", "wds_flickr30k"),
        ("retrieval/mscoco_2014_5k_test_image_text_retrieval", "wds_mscoco_captions"),
        ("misc/winogavil", "winogavil"),
    ],
)
def test_a_folder_is_one_set_by_the_names_of_both_programs(key: str, folder: str) -> None:
    assert [task.key for task in TASKS if folder in task.folders()] == [key]


def test_empty_groups_are_no_worst_group() -> None:
    found = by_group(np.array([1, 1, 0], bool), {"region": np.array([0, 2, 2])})
    assert found == {
        "acc_avg": 2 / 3, "acc_region:0": 1.0, "count_region:0": 1.0, "acc_region:1": None,
        "count_region:1": 0.0, "acc_region:2": 0.5, "count_region:2": 2.0, "acc_wg": 0.5,
    }  # fmt: skip


def test_macro_leaves_out_classes_that_the_truth_has_not() -> None:
    found = macro(np.array([0, 0, 3]), np.array([0, 5, 5]))
    assert found == {"recall-macro_all": pytest.approx(0.25), "F1-macro_all": pytest.approx((2 / 3) / 2)}


def test_jaccard_of_as_many_as_are_associated() -> None:
    assert jaccard(np.array([0.1, 0.9, 0.8, 0.2]), np.array([1, 1, 0, 0], bool)) == pytest.approx(1 / 3)
    assert jaccard(np.array([0.1, 0.9]), np.array([0, 0], bool)) == 0.0


def test_averages_are_over_the_sets_that_are_there() -> None:
    lines = [
        {"dataset": name, "metrics": {"main_metric": value}}
        for name, value in (("Flickr", 0.2), ("MSCOCO", 0.6), ("ImageNet 1k", 0.7), ("FairFace", None))
    ]
    found = {one.name: (one.value, one.sets, one.of) for one in averages(lines)}
    assert found["Retrieval"] == (pytest.approx(0.4), 2, 3)
    assert found["ImageNet"] == (0.7, 1, 1)
    assert found["VTAB"] == (None, 0, 13)
    assert found[AVERAGE] == (pytest.approx(0.5), 3, 38)


@dataclass(frozen=True, slots=True)
class Vectors(Embedder):
    """Embeds image i, and the prompts of class i, as unit vector i; records what it embeds."""

    fingerprint: str = "f1"
    embedded: list[str] = field(default_factory=list)

    def images(self, source: str, state: Mapping[str, str]) -> Embedded:
        self.embedded.append(source)
        return self._found(2)

    def texts(self, texts: Sequence[str]) -> Embedded:
        return self._found(len(texts))

    def _found(self, count: int) -> Embedded:
        return Embedded(np.eye(count, 3, dtype=np.float32), np.ones(count, bool), (), self.fingerprint, "out")


def connect() -> Any:
    raise AssertionError("no job runs")


@pytest.fixture
def embedder(tmp_path: Path) -> Vectors:
    return Vectors(connect, ModelOptions("demo"), str(tmp_path / "place"))


@pytest.fixture
def sets(tmp_path: Path) -> Path:
    folder = tmp_path / "sets"
    for name, label in (("wds_mnist_test", 1), ("cifar10", 0), ("wds_cars", 1)):
        write_set(folder / name, label)
    return folder


def write_set(folder: Path, label: int) -> None:
    images = [(b"image", {"cls": b"0"}), (b"image", {"cls": str(label).encode()})]
    texts = {"classnames.txt": ["a", "b", "c"], "zeroshot_classification_templates.txt": ["{c}"]}
    write_root(folder, [images], texts)


def run(sets: Path, embedder: Vectors) -> tuple[Suite, list[str]]:
    """Run the suite; returns also the sets that were measured."""
    before = len(embedder.embedded)
    found = run_suite(str(sets), "test", embedder, Path(embedder.place) / "results.jsonl", lambda line: None)
    return found, [Path(source).parts[-3] for source in embedder.embedded[before:]]


def test_what_is_measured_is_not_measured_again(sets: Path, embedder: Vectors) -> None:
    first, measured = run(sets, embedder)
    assert measured == ["cifar10", "wds_mnist_test", "wds_cars"]
    assert [line["metrics"]["main_metric"] for line in first.lines] == [0.5, 1.0, 1.0]
    assert len(first.missing) == 37
    again, measured = run(sets, embedder)
    assert measured == []
    assert again.lines == first.lines
    # Then other prompts are other content
    (sets / "cifar10" / "zeroshot_classification_templates.txt").write_text("a {c}\n")
    assert run(sets, embedder)[1] == ["cifar10"]


def test_runs_at_the_same_time_write_one_file(sets: Path, embedder: Vectors) -> None:
    with ThreadPoolExecutor(8) as pool:
        found = [one for one, _ in pool.map(lambda _: run(sets, embedder), range(8))]
    assert all(one.lines == found[0].lines for one in found)
    assert list(map(json.loads, found[0].results.read_text().splitlines())) == list(found[0].lines)
    assert [path.name for path in found[0].results.parent.iterdir()] == [found[0].results.name]


def test_a_damaged_set_does_not_end_the_run(sets: Path, embedder: Vectors) -> None:
    (sets / "wds_mnist_test" / "test" / "0.tar").write_bytes(b"no archive")
    found, measured = run(sets, embedder)
    assert [line["dataset"] for line in found.lines] == ["CIFAR-10", "Stanford Cars"]
    assert found.failed.keys() == {"MNIST"}
    assert measured == ["cifar10", "wds_cars"]


def test_a_set_that_fails_later_loses_its_line(sets: Path, embedder: Vectors) -> None:
    first, _ = run(sets, embedder)
    (sets / "wds_mnist_test" / "test" / "0.tar").write_bytes(b"no archive")
    found, measured = run(sets, embedder)
    kept = [line for line in first.lines if line["dataset"] != "MNIST"]
    assert (list(found.lines), measured) == (kept, [])
    assert list(map(json.loads, found.results.read_text().splitlines())) == kept


def test_a_set_whose_job_fails_does_not_end_the_run(sets: Path, embedder: Vectors) -> None:
    class Failing(Vectors):
        def images(self, source: str, state: Mapping[str, str]) -> Embedded:
            if "mnist" in source:
                raise EmbeddingError("job j is failed: workers cannot write")
            return Vectors.images(self, source, state)

    found, _ = run(sets, Failing(connect, embedder.options, embedder.place))
    assert found.failed == {"MNIST": "job j is failed: workers cannot write"}
    assert len(found.lines) == 2


def test_a_set_with_failed_images_is_measured_again(sets: Path, embedder: Vectors) -> None:
    class Losing(Vectors):
        def images(self, source: str, state: Mapping[str, str]) -> Embedded:
            found = Vectors.images(self, source, state)
            if "mnist" not in source:
                return found
            lost = FailedItem(1, "s0000001", "fetch_failed", "the store is unavailable")
            return replace(found, ok=np.array([True, False]), failed=(lost,))

    first, _ = run(sets, Losing(connect, embedder.options, embedder.place))
    assert [line["clipfleet"]["failed"] for line in first.lines] == [0, 1, 0]
    again, measured = run(sets, embedder)
    assert measured == ["wds_mnist_test"]
    assert [line["clipfleet"]["failed"] for line in again.lines] == [0, 0, 0]


def test_one_file_is_about_one_model(sets: Path, embedder: Vectors) -> None:
    run(sets, embedder)
    other = replace(embedder, options=ModelOptions("ViT-B-32:openai"))
    with pytest.raises(OutputConflictError, match="is about model demo, not ViT-B-32:openai; name another"):
        run(sets, other)
    write_set(sets / "food101", 1)
    with pytest.raises(OutputConflictError, match=r"other weights of demo, of fingerprint f1, not f2; name"):
        run(sets, replace(embedder, fingerprint="f2"))


def test_a_file_of_another_program_is_left_alone(sets: Path, embedder: Vectors) -> None:
    results = Path(embedder.place) / "results.jsonl"
    results.parent.mkdir()
    theirs = json.dumps({"key": "cars", "dataset": "Stanford Cars", "metrics": {"main_metric": 0.5}}) + "\n"
    results.write_text(theirs)
    with pytest.raises(OutputConflictError, match="line 1: not written by clipfleet; name another"):
        run(sets, embedder)
    assert results.read_text() == theirs


def test_without_any_set_the_error_names_a_folder(tmp_path: Path, embedder: Vectors) -> None:
    with pytest.raises(SourceError, match=r"none of the sets .* such as wds_vtab-caltech101_test/test"):
        run(tmp_path, embedder)


def test_results_of_the_cache_have_a_folder_per_model(tmp_path: Path, embedder: Vectors) -> None:
    place = str(tmp_path)
    other = replace(embedder, options=ModelOptions("ViT-B-32:openai"))
    assert results_path(place, place, embedder, "test") == tmp_path / "eval_results.jsonl"
    paths = [results_path(place, None, one, "test") for one in (embedder, other)]
    assert len({path.parent for path in paths}) == 2
    # Results are a local file, also where the vectors are in S3.
    folder = Path("clipfleet-evaluations") / paths[0].parent.name
    for output in (None, "s3://bucket/place"):
        assert results_path("s3://bucket/place", output, embedder, "test") == folder / "eval_results.jsonl"
