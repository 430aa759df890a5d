"""Stored marks in rows and exports: the labels of people in place of those of the model."""

from __future__ import annotations

import csv
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clipfleet.commands import app
from clipfleet.contract.columns import LABEL_COLUMNS
from clipfleet.contract.jobs import SourceDescription
from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.exports import Layout, export
from clipfleet.marking.correcting import CorrectedRows, corrected_rows, with_stored_marks
from clipfleet.marking.stored import add_marks
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from clipfleet.results.rows import rows
from tests.support.jobs import make_job, place_job
from tests.support.rows import accepting, add_part, classified, failed, note_manifest

pytestmark = pytest.mark.usefixtures("folder")

LABELS = ("cat", "dog")
PLAIN = LabelSet(name="pets", labels=LABELS)
MULTI = LabelSet(name="pets", labels=LABELS, kind=LabelKind.MULTI)
OR_NONE = LabelSet(name="pets", labels=LABELS, none=True)


def place(output: FolderOutput, label_set: LabelSet, *found: dict[str, Any], **values: Any) -> None:
    job = make_job(output.uri, **{"task": "classify", "label_sets": (label_set,), **values})
    place_job(output, job)
    extra = job.source.extra_columns
    add_part(output, 0, list(found), accepted=job.accepted_columns, extra=extra)
    note_manifest(output, ["data/part-00000000.parquet"], job_id=job.job_id)


def store(output: FolderOutput, *marks: tuple[int, str, str], **values: Any) -> None:
    """Store (index, label, verdict), in this order."""
    lines = [
        {"label_set": "pets", "item_index": index, "label": label, "verdict": verdict, "purpose": "fit",
         "inclusion_probability": 1.0, **values}
        for index, label, verdict in marks
    ]  # fmt: skip
    add_marks(output, [json.dumps(line) for line in lines], now_ms=1_700_000_000_000)


def corrected(output: FolderOutput) -> CorrectedRows:
    found = with_stored_marks(PartRows(output))
    assert found is not None
    return found


def read(output: FolderOutput, *columns: str) -> list[tuple[Any, ...]]:
    """The rows with their marks: these columns, and what the marks did."""
    return [tuple(row[name] for name in (*columns, "corrected")) for row in rows(corrected(output))]


class TestLabels:
    def test_the_label_that_is_shown_replaces_that_of_the_model(self, output: FolderOutput) -> None:
        place(output, PLAIN, *map(classified, range(4)))
        store(output, (0, "dog", "yes"), (1, "cat", "yes"), (2, "cat", "no"))

        assert read(output, "label", "score", "labels") == [
            ("dog", 0.25, ["cat", "dog"], True),
            ("cat", 0.75, ["cat", "dog"], False),
            (None, 0.75, ["cat", "dog"], True),
            ("cat", 0.75, ["cat", "dog"], None),
        ]

    def test_each_label_of_a_multi_set_is_taken_or_left_by_itself(self, output: FolderOutput) -> None:
        place(output, MULTI, *(accepting(index, "cat") for index in range(4)))
        store(output, (0, "dog", "yes"), (1, "cat", "no"), (2, "cat", "no"), (2, "dog", "yes"))

        assert read(output, "label", "accepted") == [
            ("cat", ["cat", "dog"], True),
            (None, [], True),
            ("dog", ["dog"], True),
            ("cat", ["cat"], None),
        ]

    def test_of_a_set_with_none_one_label_at_most_is_shown(self, output: FolderOutput) -> None:
        place(output, OR_NONE, accepting(0, "cat"), accepting(1, "cat"), accepting(2, "cat", "dog"))
        store(output, (0, "dog", "yes"), (1, "cat", "no"), (2, "cat", "no"))

        assert read(output, "label", "accepted") == [
            ("dog", ["dog"], True), (None, [], True), ("dog", ["dog"], True),
        ]  # fmt: skip

    def test_the_latest_mark_counts_and_a_skip_says_nothing(self, output: FolderOutput) -> None:
        place(output, PLAIN, classified(0), classified(1))
        store(output, (0, "cat", "yes"), (0, "dog", "yes"), (1, "cat", "no"))
        store(output, (0, "cat", "yes"), (0, "cat", "skip"), (1, "dog", "yes"), (1, "dog", "no"))
        store(output, (1, "cat", "yes"))

        assert read(output, "label") == [("cat", False), ("cat", False)]

    @pytest.mark.parametrize(
        "other", [{"content_hash": "other"}, {"item_id": "other"}, {"label_set": "farm"}]
    )
    def test_a_mark_on_another_item_or_set_is_void(self, output: FolderOutput, other: dict[str, str]) -> None:
        place(output, PLAIN, {**classified(0), "content_hash": "a"}, failed(1))
        store(output, (0, "dog", "yes"), (1, "dog", "yes"), **other)

        assert read(output, "label") == [("cat", None), (None, None)]

    def test_each_of_several_sets_has_its_own_marks(self, output: FolderOutput) -> None:
        sets = tuple(LabelSet(name=name, labels=LABELS) for name in ("pets", "farm"))
        place_job(output, make_job(output.uri, task="classify", label_sets=sets))
        one = classified(0)
        one |= {f"{name}_{own.name}": one[name] for own in sets for name in LABEL_COLUMNS}
        add_part(output, 0, [one], label_sets=("pets", "farm"))
        store(output, (0, "dog", "yes"))

        assert read(output, "label", "label_pets", "label_farm") == [("dog", "dog", "cat", True)]

    def test_where_items_name_their_set_marks_on_others_are_void(self, output: FolderOutput) -> None:
        sets = tuple(LabelSet(name=name, labels=LABELS) for name in ("pets", "farm"))
        source = SourceDescription(kind="csv", uri="/items.csv", extra_columns=("which",))
        items = [{**classified(0), "which": "pets"}, {**classified(1), "which": "farm"}]
        place(output, PLAIN, *items, label_sets=sets, source=source, label_set_column="which")
        store(output, (0, "dog", "yes"), (1, "dog", "yes"))

        assert read(output, "label") == [("dog", True), ("cat", None)]


class TestReading:
    def test_chosen_columns_and_single_rows(self, output: FolderOutput) -> None:
        place(output, PLAIN, classified(0), classified(1))
        store(output, (1, "dog", "yes"))
        reader = corrected(output)

        stored = reader.read(["label", "item_id"])
        assert stored.schema.names == ["label", "item_id"]
        assert [row for batch in stored.batches for row in batch.to_pylist()] == [
            {"label": "cat", "item_id": "img0"}, {"label": "dog", "item_id": "img1"},
        ]  # fmt: skip
        row = reader.row_at(1)
        assert row is not None and row.select(["label", "corrected"]).to_pylist() == [
            {"label": "dog", "corrected": True}
        ]
        assert reader.row_at(2) is None
        assert [batch.schema.names for batch in reader.read(["uri"]).batches] == [["uri"]]

    def test_a_column_of_the_source_keeps_its_name(self, output: FolderOutput) -> None:
        source = SourceDescription(kind="csv", uri="/items.csv", extra_columns=("corrected",))
        place(output, PLAIN, {**classified(0), "corrected": "mine"}, source=source)
        store(output, (0, "dog", "yes"))

        (row,) = rows(corrected(output))

        assert (row["corrected"], row["corrected_by_marks"], row["label"]) == ("mine", True, "dog")

    def test_rows_of_a_job_in_python(self, output: FolderOutput) -> None:
        place(output, PLAIN, classified(0))
        store(output, (0, "dog", "yes"))

        assert [row["label"] for row in rows(corrected_rows(PartRows(output)))] == ["dog"]


class TestCommands:
    def results(self, *words: str) -> list[dict[str, str]]:
        result = CliRunner().invoke(app, ["results", "out/", "--format", "csv", *words])
        assert result.exit_code == 0, result.output
        return list(csv.DictReader(result.stdout.splitlines()))

    def test_results_are_corrected_on_demand(self, output: FolderOutput) -> None:
        place(output, PLAIN, classified(0), classified(1))
        store(output, (1, "dog", "yes"))

        assert [row["label"] for row in self.results()] == ["cat", "cat"]
        assert [row["item_index"] for row in self.results("--corrected", "--label", "dog")] == ["1"]

    def test_without_marks_the_column_is_there_too(self, output: FolderOutput) -> None:
        place(output, PLAIN, classified(0))

        assert [(row["label"], row["corrected"]) for row in self.results("--corrected")] == [("cat", "")]

    def test_exports_are_corrected_and_say_so(self, output: FolderOutput, folder: Path) -> None:
        place(output, PLAIN, *map(classified, range(3)))
        store(output, (0, "dog", "yes"), (1, "cat", "yes"), (7, "cat", "yes"))

        counts = export(PartRows(output), Layout.CSV, folder / "csv")
        export(PartRows(output), Layout.LABEL_STUDIO, folder / "project")
        export(PartRows(output), Layout.HUGGING_FACE, folder / "dataset")

        assert counts.notes == (
            "2 rows with what people marked, of which 1 had other labels",
            "void, for the image has changed or is gone: the marks on 1 item",
        )
        with (folder / "csv" / "rows.csv").open(newline="") as file:
            assert [(row["label"], row["corrected"]) for row in csv.DictReader(file)] == [
                ("dog", "True"), ("cat", "False"), ("cat", ""),
            ]  # fmt: skip
        tasks = json.loads((folder / "project" / "tasks.json").read_text())
        assert tasks[0]["predictions"][0]["result"][0]["value"] == {"choices": ["dog"]}
        card = (folder / "dataset" / "README.md").read_text()
        assert "Where `corrected` is not null, people checked the image, and its labels are theirs." in card
        assert "| `corrected` | bool | people marked the image" in card
