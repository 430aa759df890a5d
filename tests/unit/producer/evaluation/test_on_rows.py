"""Rows of a classify job against a column of their source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.contract.jobs import SourceDescription
from clipfleet.contract.label_sets import LabelSet, Preset
from clipfleet.errors import ClipfleetError, UsageError
from clipfleet.evaluation.on_rows import evaluate_rows
from clipfleet.evaluation.outcome import Evaluation
from clipfleet.evaluation.pairs import compare
from clipfleet.labels.intervals import wilson
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from tests.support.jobs import make_job, place_job
from tests.support.rows import add_part, failed, note_manifest, row

NAMES = ("cat", "dog", "car", "bus", "tree", "sea")
GROUPS = {"cat": "animals", "dog": "animals", "car": "vehicles", "bus": "vehicles"}


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., Evaluation]:
    """Evaluate these rows, as a finished job with this label set left them."""
    number = iter(range(10))

    def run(
        rows: Sequence[dict[str, Any]],
        label_set: LabelSet,
        column: str = "truth",
        stored: Sequence[dict[str, Any]] = (),
        **values: Any,
    ) -> Evaluation:
        output = FolderOutput(tmp_path / str(next(number)))
        source = SourceDescription(kind="csv", uri="/list.csv", extra_columns=("truth",))
        job = make_job(
            output.uri, labels=("x",), label_sets=(label_set,), job_id="j", source=source, **values
        )
        place_job(output, job)
        types = {"truth": pa.string(), "accepted": pa.list_(pa.string())}
        add_part(output, 0, [{"accepted": None, "truth": None, **one} for one in rows], types=types)
        note_manifest(output, [objects.LAYOUT.part(0)], label_sets=stored)
        return evaluate_rows(PartRows(output), column)

    return run


def ranked(index: int, truth: str, *labels: str, accepted: Sequence[str] = (), best: float = 0.9) -> Any:
    scores = [best - place / 8 for place in range(len(labels))]
    return row(
        index, truth=truth, labels=list(labels), scores=scores, label=labels[0], score=best,
        accepted=list(accepted), model_fingerprint="f",
    )  # fmt: skip


class TestSoftmax:
    ROWS = (
        ranked(0, "cat", "cat", "dog", "car", "bus", "sea"),
        ranked(1, "cat", "dog", "cat", "car", "bus", "sea"),
        ranked(2, "1", "dog", "cat", "car", "bus", "sea"),  # an index is as good as a name
        ranked(3, "tree", "cat", "dog", "car", "bus", "sea"),  # not among the five
        failed(4),
    )

    def test_metrics_tables_and_groups(self, evaluated: Callable[..., Evaluation]) -> None:
        found = evaluated(self.ROWS, LabelSet(labels=NAMES, groups=GROUPS)).document()

        assert found["metrics"] == pytest.approx({"acc1": 0.5, "acc5": 0.75, "mean_per_class_recall": 0.5})
        assert found["intervals"]["acc1"] == pytest.approx(wilson(2, 4))
        assert [one["item_id"] for one in found["failed"]] == ["img4"]
        assert (found["items"], found["model_fingerprint"], found["model"]) == (4, "f", "demo")
        by_label = {one["label"]: one for one in found["classes"]}
        assert (by_label["cat"]["n"], by_label["cat"]["recall"], by_label["cat"]["precision"]) == (
            2,
            0.5,
            0.5,
        )
        assert (by_label["bus"]["n"], by_label["bus"]["recall"], by_label["bus"]["precision"]) == (
            0,
            None,
            None,
        )
        assert found["groups"] == [
            {"group": "animals", "labels": 2, "recall": 0.75, "precision": 0.5, "average_precision": None},
            {"group": "vehicles", "labels": 2, "recall": None, "precision": None, "average_precision": None},
        ]
        cells = {(one["truth"], one["predicted"]): one["count"] for one in found["confusion"]}
        assert cells == {("cat", "cat"): 1, ("cat", "dog"): 1, ("dog", "dog"): 1, ("tree", "cat"): 1}

    @pytest.mark.parametrize(
        ("names", "top_k", "reason"),
        [(("cat", "dog"), 5, "fewer than 5 labels"), (NAMES, 2, "the rows have 2 labels each")],
    )
    def test_acc5_is_null_where_it_has_no_value(
        self, evaluated: Callable[..., Evaluation], names: tuple[str, ...], top_k: int, reason: str
    ) -> None:
        found = evaluated([ranked(0, "cat", "cat", "dog")], LabelSet(labels=names), top_k=top_k).document()

        assert (found["metrics"]["acc1"], found["metrics"]["acc5"]) == (1.0, None)
        assert "acc5" not in found["intervals"]
        assert reason in found["notes"][0]

    def test_items_without_a_truth_are_left_out_and_counted(
        self, evaluated: Callable[..., Evaluation]
    ) -> None:
        rows = [ranked(0, "", "cat", "dog"), ranked(1, "cat", "cat", "dog"), ranked(2, " ", "cat", "dog")]

        found = evaluated(rows, LabelSet(labels=NAMES))

        assert (found.document()["items"], found.document()["metrics"]["acc1"]) == (1, 1.0)
        assert "left out: 2 items without a truth" in found.document()["notes"]
        assert found.items_ok.tolist() == [False, True, False]

    @pytest.mark.parametrize(
        ("rows", "column", "words"),
        [
            (
                [ranked(0, "cow", "cat")],
                "truth",
                r"item 0 \(img0\): the truth: 'cow' is neither a label.* cat, dog, car",
            ),
            ([ranked(0, "6", "cat")], "truth", "'6' is neither a label nor the index of one"),
            ([ranked(0, "", "cat")], "truth", "none of 1 rows has labels and a truth"),
            ([ranked(0, "cat", "cat", best=float("nan"))], "truth", "a score is not a number"),
            ([ranked(0, "cat", "cat")], "species", "the source has no column 'species'; it has truth"),
            ([failed(0), failed(1)], "truth", "none of 2 rows has labels and a truth"),
        ],
    )
    def test_what_cannot_be_judged(
        self, evaluated: Callable[..., Evaluation], rows: list[Any], column: str, words: str
    ) -> None:
        with pytest.raises(UsageError, match=words):
            evaluated(rows, LabelSet(labels=NAMES), column)


class TestPresets:
    """Two labels of one name, as in ImageNet: rows hold names, so either index of a name is right."""

    LABELS = ("missile", "cat", "missile", "dog")
    STORED = ({"name": "labels", "preset": "imagenet1k", "labels": LABELS, "templates": ["a {}"]},)

    def test_labels_are_those_that_the_output_stores(self, evaluated: Callable[..., Evaluation]) -> None:
        rows = [
            ranked(0, "2", "missile", "missile"),
            ranked(1, "0", "missile", "missile"),
            ranked(2, "2", "cat", "missile"),
            ranked(3, "cat", "missile", "missile"),
        ]

        found = evaluated(rows, LabelSet(preset=Preset.IMAGENET1K), stored=self.STORED).document()

        assert found["metrics"] == pytest.approx(
            {"acc1": 0.5, "acc5": None, "mean_per_class_recall": (1 + 0 + 1 / 2) / 3}
        )
        cells = {(one["truth_index"], one["predicted_index"]): one["count"] for one in found["confusion"]}
        assert cells == {(2, 2): 1, (0, 0): 1, (2, 1): 1, (1, 0): 1}

    def test_a_preset_with_none(self, evaluated: Callable[..., Evaluation]) -> None:
        both = ("missile", "missile")
        rows = [
            ranked(0, "2", *both, "cat", "dog", accepted=both),
            ranked(1, "cat", *both, "cat", "dog", accepted=both),
            ranked(2, "", "dog", "cat", *both),
        ]
        for one in rows:  # labels of one name have one vector
            same = {name: score for name, score in zip(one["labels"], one["scores"], strict=True)}
            one["scores"] = [same[name] for name in one["labels"]]

        found = evaluated(rows, LabelSet(preset=Preset.IMAGENET1K, none=True), stored=self.STORED).document()

        assert found["metrics"]["acc1"] == pytest.approx(2 / 3)
        assert (found["metrics"]["precision"], found["metrics"]["recall"]) == (0.5, 0.5)
        assert [one["average_precision"] for one in found["classes"]] == pytest.approx([0, 1 / 3, 1, 0])

    @pytest.mark.parametrize(
        ("truth", "stored", "words"),
        [
            ("missile", STORED, "'missile' is the name of labels 0 and 2: give the index"),
            ("cat", (), "the labels of imagenet1k are not stored here: the end of the job stores them"),
            ("cat", ({**STORED[0], "labels": None},), "the stored labels of imagenet1k are damaged"),
        ],
    )
    def test_what_cannot_be_judged(
        self, evaluated: Callable[..., Evaluation], truth: str, stored: Any, words: str
    ) -> None:
        with pytest.raises(ClipfleetError, match=words):
            evaluated([ranked(0, truth, "cat")], LabelSet(preset=Preset.IMAGENET1K), stored=stored)


class TestThresholds:
    ANIMALS = ("cat", "dog")

    def test_a_set_with_none(self, evaluated: Callable[..., Evaluation]) -> None:
        rows = [
            ranked(0, "cat", "cat", "dog", accepted=["cat"], best=0.9),
            ranked(1, "cat", "cat", "dog", best=0.4),
            ranked(2, "none", "dog", "cat", accepted=["dog"], best=0.6),
            ranked(3, "", "dog", "cat", best=0.3),
        ]

        found = evaluated(rows, LabelSet(labels=self.ANIMALS, none=True)).document()

        assert found["metrics"] == pytest.approx({
            "acc1": 0.5,  # items 0 and 3
            "acc5": None,
            "mean_per_class_recall": 0.5,  # of cat, and of none
            "precision": 0.5, "recall": 0.5, "f1": 0.5,
            "none_auroc": 0.75,  # of the pairs (0.9, 0.4) with (0.6, 0.3)
            "mean_average_precision": (5 / 6 + 0) / 2,  # of cat, whose second item comes third, and of dog
        })  # fmt: skip
        cells = {(one["truth"], one["predicted"]): one["count"] for one in found["confusion"]}
        assert cells == {("cat", "cat"): 1, ("cat", "none"): 1, ("none", "dog"): 1, ("none", "none"): 1}
        cat = found["classes"][0]
        assert (cat["recall"], cat["precision"], cat["f1"]) == (0.5, 1.0, pytest.approx(2 / 3))
        assert cat["recall_interval"] == pytest.approx(wilson(1, 2))

    def test_a_multi_set_whose_rows_lack_scores(self, evaluated: Callable[..., Evaluation]) -> None:
        rows = [
            ranked(0, "cat|dog", "cat", "dog", accepted=["cat", "dog", "sea"]),
            ranked(1, "none", "cat", "sea"),
            ranked(2, "5", "sea", "cat", accepted=["sea"]),
        ]

        found = evaluated(rows, LabelSet(labels=NAMES, kind="multi"), top_k=2).document()

        assert found["metrics"] == pytest.approx(
            {"mean_average_precision": None, "precision": 0.75, "recall": 1.0, "f1": 6 / 7}
        )
        assert "label with a top k of 6" in found["notes"][0]
        assert found["intervals"]["precision"] == pytest.approx(wilson(3, 4))
        assert found["confusion"] == []

    def test_metrics_without_a_value_are_null_and_say_why(self, evaluated: Callable[..., Evaluation]) -> None:
        rows = [ranked(0, "cat", "cat", "dog"), ranked(1, "dog", "cat", "dog")]

        found = evaluated(rows, LabelSet(labels=self.ANIMALS, none=True))
        empty = evaluated([ranked(0, "none", "cat", "dog")], LabelSet(labels=self.ANIMALS, none=True))

        nulls = {name for name, value in found.measured.metrics.items() if value is None}
        assert nulls == {"acc5", "precision", "none_auroc"}
        assert not nulls & found.measured.intervals.keys()
        assert "none_auroc is null: each item shows a label" in found.measured.notes
        assert "precision is null: no label was accepted" in found.measured.notes
        notes = empty.measured.notes
        assert [note.partition(" is null: ")[::2] for note in notes if "acc5" not in note] == [
            ("precision", "no label was accepted"),
            ("recall", "no item shows a label"),
            ("f1", "no label was accepted, and no item shows one"),
            ("none_auroc", "no item shows a label"),
        ]
        compared = compare(found, found, "itself").document()["comparison"]
        assert [one["interval"] for one in compared if one["metric"] in nulls] == [None, None, None]


class TestComparing:
    def test_only_items_that_both_count_are_compared(self, evaluated: Callable[..., Evaluation]) -> None:
        good = [ranked(n, "cat", "cat", "dog") for n in range(9)]
        poor = [ranked(n, "cat", "dog" if n < 6 else "cat", "cat") for n in range(9)]
        label_set = LabelSet(labels=("cat", "dog"))

        first = evaluated([*good, ranked(9, "cat", "cat", "dog")], label_set)
        second = evaluated([*poor, {**failed(9), "truth": "cat"}], label_set)
        compared = compare(first, second, "other")
        found = {one.metric: one for one in compared.comparison}

        document = compared.document()
        assert (document["items"], document["compared_items"]) == (10, 9)
        assert [one["item_id"] for one in document["compared_failed"]] == ["img9"]

        assert (found["acc1"].value, found["acc1"].other) == pytest.approx((1.0, 1 / 3))
        assert found["acc1"].p_value == pytest.approx(2 / 2**6)
        low, high = found["acc1"].interval or (np.nan, np.nan)
        assert 0.2 < low < found["acc1"].difference < high <= 1.0
        assert (found["acc5"].difference, found["acc5"].interval) == (None, None)

    def test_other_labels_are_compared_by_what_both_have(self, evaluated: Callable[..., Evaluation]) -> None:
        """The other order of labels is another label set, and one with `none` has other metrics."""
        rows = [ranked(0, "cat", "cat", "dog", accepted=["cat"]), ranked(1, "dog", "dog", "cat")]
        first = evaluated(rows, LabelSet(labels=("cat", "dog")))
        second = evaluated(rows, LabelSet(labels=("dog", "cat", "cow"), none=True))

        found = {one.metric: one for one in compare(first, second, "other").comparison}

        assert (found["acc1"].difference, found["acc1"].p_value) == (0.5, 1.0)
        assert found["mean_per_class_recall"].difference == 0.5
        assert "f1" not in found

    def test_another_truth_is_refused(self, evaluated: Callable[..., Evaluation]) -> None:
        label_set = LabelSet(labels=("cat", "dog"))
        first = evaluated([ranked(0, "cat", "cat", "dog")], label_set)
        second = evaluated([ranked(0, "dog", "cat", "dog")], label_set)

        with pytest.raises(UsageError, match="differ in their items or in the truth"):
            compare(first, second, "other")
