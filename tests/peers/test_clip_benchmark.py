"""The figures of clip-benchmark 1.6.2, in its own environment: the same from `clipfleet evaluate`."""

from __future__ import annotations

import csv
import json
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.peers.benchmark_roots import write_by_hand, write_captions, write_fer2013, write_voc2007
from tests.support.cluster import Cluster
from tests.support.demo_model import DEMO

pytestmark = pytest.mark.peers

CLASSIFIED = ("fer2013", "voc2007_multilabel", "drawings", "few", "several", "photos")
RETRIEVED = ("captions", "exported_captions")
EXACT = ("--decode", "exact", "--precision", "fp32")
_AS_THEY_DO = ("--split", "test", "--model", "demo")
_RECALL = ("--recall-k", "1,5,10")  # which heads do not have


@dataclass
class Benchmark:
    """Their program and ours on the same roots."""

    cluster: Cluster
    python: Path
    folder: Path
    results: dict[str, Path] = field(default_factory=dict)  # their files, by root
    answers: dict[tuple[str, ...], tuple[dict[str, Any], Path]] = field(default_factory=dict)

    def call(self, program: str, *arguments: str | Path) -> None:
        done = subprocess.run(
            [self.python.with_name(program), *arguments],
            cwd=self.folder, capture_output=True, text=True, check=False, timeout=300,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-3000:]

    def theirs(self, root: str) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.results[root].read_text())
        return found

    def table(self, results: list[Path]) -> list[dict[str, Any]]:
        """Results as `clip_benchmark build` puts them into a table."""
        table = self.folder / "benchmark.csv"
        self.call("clip_benchmark", "build", *results, "--output", table)
        rows = csv.DictReader(table.read_text().splitlines())
        return [{column: _value(text) for column, text in row.items()} for row in rows]

    def ours(self, root: str, *options: str) -> tuple[dict[str, Any], Path]:
        """What our command prints, and the file that it writes for them."""
        if (root, *options) not in self.answers:
            file = self.folder / f"ours_{len(self.answers)}.json"
            output = ("--output", self.folder / "evaluations", "--clip-benchmark-json", file)
            named = (*_AS_THEY_DO, *(() if "--head" in options else _RECALL))
            found = self.cluster.run_json("evaluate", self.folder / root, *named, *options, *output)
            self.answers[root, *options] = (found, file)
        return self.answers[root, *options]


def _value(text: str) -> float | str | None:
    """A cell; null, which is an empty one, is what their NaN means."""
    try:
        return None if text == "nan" else float(text)
    except ValueError:
        return text or None


@pytest.fixture(scope="module")
def benchmark(
    python_of: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Benchmark]:
    """All roots, evaluated by their program: exported by it from three data sets, and written by hand."""
    python = python_of("BENCHMARK_PYTHON")
    folder = tmp_path_factory.mktemp("benchmark")
    with Cluster(folder) as cluster:
        found = Benchmark(cluster, python, folder)
        _export(found)
        write_by_hand(folder)
        _evaluate(found, CLASSIFIED, "zeroshot_classification")
        _evaluate(found, RETRIEVED, "zeroshot_retrieval", "--recall_k", "1", "5", "10")
        cluster.start_worker()
        yield found


def _export(benchmark: Benchmark) -> None:
    sources = benchmark.folder / "sources"
    write_fer2013(sources / "fer2013")
    write_voc2007(sources / "voc2007_multilabel")
    write_captions(sources / "captions")
    for name, *options in (("fer2013",), ("voc2007_multilabel", "--multilabel")):
        benchmark.call(
            "clip_benchmark_export_wds", "--dataset", name, "--dataset-root", sources / name,
            "--output", benchmark.folder / name, "--max-count", "25", *options,
        )  # fmt: skip
    script = Path(__file__).with_name("export_captions.py")
    benchmark.call("python", script, sources / "captions", benchmark.folder / "exported_captions")


def _evaluate(benchmark: Benchmark, roots: tuple[str, ...], task: str, *options: str | Path) -> None:
    benchmark.call(
        "clip_benchmark", "eval", "--dataset", *(f"wds/{root}" for root in roots),
        "--dataset_root", f"{benchmark.folder}/{{dataset}}", "--model", f"local-dir:{DEMO}", "--pretrained",
        "", "--task", task, "--no_amp", "--num_workers", "0", "--output", "theirs_{dataset}.json", *options,
    )  # fmt: skip
    benchmark.results |= {root: benchmark.folder / f"theirs_{root}.json" for root in roots}


@pytest.mark.parametrize("root", [*CLASSIFIED, *RETRIEVED])
def test_the_metrics_are_theirs_to_one_millionth(benchmark: Benchmark, root: str) -> None:
    expected = benchmark.theirs(root)
    found, _ = benchmark.ours(root, *EXACT)
    assert found["task"] == expected["task"]
    # They write NaN where we write null: acc5 of fewer than five classes.
    metrics = {name: pytest.approx(value, abs=1e-6) for name, value in expected["metrics"].items()}
    if root == "few":
        metrics["acc5"] = None
    assert found["metrics"] == metrics
    values = [value for value in found["metrics"].values() if value is not None]
    assert all(0 < value < 1 for value in values), "the root does not tell models apart"


def test_top_1_of_the_default_route_is_theirs_within_half_a_point(benchmark: Benchmark) -> None:
    expected = benchmark.theirs("photos")["metrics"]["acc1"]
    found, _ = benchmark.ours("photos")
    assert (found["decode"], found["items"]) == ("fast", 600)
    assert found["metrics"]["acc1"] == pytest.approx(expected, abs=0.005)


def test_their_table_has_the_same_rows_from_our_files(benchmark: Benchmark) -> None:
    roots = ("drawings", "few", "several", "captions")
    ours = [benchmark.ours(root, *EXACT)[1] for root in roots]
    rows = benchmark.table([benchmark.results[root] for root in roots] + ours)
    assert [row["dataset"] for row in rows] == [f"wds/{root}" for root in roots] * 2
    for theirs, found in zip(rows[:4], rows[4:], strict=True):
        # They have no name for the demo model but the path of its folder.
        expected = theirs | {"model": "demo", "model_fullname": "demo "}
        assert found == {
            column: pytest.approx(value, abs=1e-6) if isinstance(value, float) else value
            for column, value in expected.items()
        }


def test_a_classifier_that_they_have_saved_is_a_head_with_their_metrics(benchmark: Benchmark) -> None:
    """And their table has a row of it."""
    folder = benchmark.folder
    saved, head = folder / "saved.pt", folder / "saved.head.safetensors"
    _evaluate(benchmark, ("drawings",), "zeroshot_classification", "--save_clf", saved)
    labels = ("--labels", folder / "drawings" / "classnames.txt")
    benchmark.cluster.run_json(
        "head", "import", saved, "--as", "linear", "--model", "demo", *labels, "-o", head
    )

    found, file = benchmark.ours("drawings", *EXACT, "--head", str(head))

    expected = benchmark.theirs("drawings")["metrics"]
    assert found["metrics"] == {f"lp_{name}": pytest.approx(one, abs=1e-6) for name, one in expected.items()}
    (row,) = benchmark.table([file])
    assert (row["task"], row["dataset"], row["lp_acc1"]) == (
        "linear_probe", "wds/drawings", pytest.approx(expected["acc1"], abs=1e-6),
    )  # fmt: skip
