"""Rows of a job with heads, for people: the table, the choice by a label, shares of a sample, words."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest

from clipfleet.contract.brief import JobBrief
from clipfleet.contract.heads import HeadKind, JobHead
from clipfleet.contract.jobs import Job, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import UsageError
from clipfleet.evaluation.on_rows import evaluate_rows
from clipfleet.marking.scored_rows import read_scored_rows
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.estimate import Share, estimate_of
from clipfleet.results.formats import result_table, write
from clipfleet.results.kinds import ResultFormat
from clipfleet.results.part_rows import PartRows
from clipfleet.results.selection import Selection
from tests.support.heads import head_file
from tests.support.jobs import make_job, make_status, place_job
from tests.support.rows import add_part, failed, row

KINDS, TAGS, RATING, PASS = (
    head_file(4, 2, name="kinds", labels=("cat", "dog")).of_job,
    head_file(4, 5, kind=HeadKind.MULTILABEL, name="tags", labels=("a", "b", "c", "d", "e")).of_job,
    head_file(4, 1, kind=HeadKind.REGRESS, name="rating", labels=("beauty",)).of_job,
    head_file(4, 1, kind=HeadKind.REGRESS, name="pass", labels=("good",), thresholds={"good": 5.0}).of_job,
)
HEADS = (KINDS, TAGS, RATING, PASS)
ROWS = [
    {"head_kinds": "cat", "head_kinds_score": 0.75, "head_tags": "a", "head_tags_score": 0.9,
     "head_tags_accepted": ["a", "b", "c", "d"], "head_rating_score": 5.25, "head_pass": "good",
     "head_pass_score": 6.0},
    {"head_kinds": "dog", "head_kinds_score": 0.5, "head_tags_score": 0.25, "head_tags_accepted": [],
     "head_rating_score": -1.5, "head_pass_score": 4.5},
]  # fmt: skip


def job_with(folder: Path, heads: tuple[JobHead, ...] = HEADS, **values: Any) -> Job:
    return make_job(folder, **{"task": Task.CLASSIFY, "heads": heads, **values})


def output_of(folder: Path, job: Job) -> FolderOutput:
    output = FolderOutput(folder)
    place_job(output, job)
    rows = [{**row(number), **values} for number, values in enumerate(ROWS)]
    names = [one.name for one in job.named_label_sets]
    add_part(output, 0, [*rows, failed(2)], heads=job.heads, label_sets=names)
    return output


def table_of(output: FolderOutput) -> list[str]:
    stream = io.BytesIO()
    write(PartRows(output), ResultFormat.TABLE, stream)
    return [line.rstrip() for line in stream.getvalue().decode().splitlines()]


def cells(rows: list[dict[str, Any]], job: Job, width: int = 400) -> dict[str, list[str]]:
    table, _ = result_table(rows, job, width)
    return {str(one.header): [str(cell) for cell in one.cells] for one in table.columns}


def test_a_job_with_heads_only_has_their_columns(tmp_path: Path) -> None:
    heading, _, *lines = table_of(output_of(tmp_path, job_with(tmp_path)))

    assert heading.split() == [
        "index", "id", "status", "head_kinds", "head_tags", "head_rating", "head_pass", "error",
    ]  # fmt: skip
    assert "cat 0.750" in lines[0] and "a, b, c and 1 more 0.900" in lines[0] and "good 6.000" in lines[0]
    assert "dog 0.500" in lines[1] and "none 0.250" in lines[1] and "none 4.500" in lines[1]
    assert " 5.250 " in lines[0] and " -1.500 " in lines[1]  # a number has no label
    assert "not_found" in lines[2] and "none" not in lines[2]


@pytest.mark.parametrize(
    ("values", "columns"),
    [
        ({"label_sets": (LabelSet(labels=("x", "y")),)}, ["label", "score", "head_kinds"]),
        ({"label_sets": tuple(LabelSet(name=n, labels=("x", "y")) for n in "ab")}, ["a", "b", "head_kinds"]),
        ({"task": Task.EMBED}, ["vector", "head_kinds"]),  # no score without labels
        ({"store_embeddings": True}, ["vector", "head_kinds"]),
    ],
)
def test_they_follow_labels_and_vectors(tmp_path: Path, values: dict[str, Any], columns: list[str]) -> None:
    found = cells([{**row(0), **ROWS[0]}], job_with(tmp_path, (KINDS,), **values))

    assert [*found][3:-1] == columns
    assert found["head_kinds"] == ["cat 0.750"]


def test_those_that_do_not_fit_are_named(tmp_path: Path) -> None:
    rows = [{**row(0), **ROWS[0]}]

    assert result_table(rows, job_with(tmp_path), 45)[1] == ["head_tags", "head_rating", "head_pass"]
    both = job_with(tmp_path, (KINDS,), label_sets=(LabelSet(labels=("x", "y")),))
    assert result_table(rows, both, 20)[1] == ["head_kinds"]  # the labels are shown


@pytest.mark.parametrize(
    ("label", "indexes"), [("cat", [0]), ("d", [0]), ("a", [0]), ("dog", [1]), ("good", [0]), ("beauty", [])]
)
def test_a_label_is_looked_for_in_heads_too(tmp_path: Path, label: str, indexes: list[int]) -> None:
    stored = Selection(label=label).read(PartRows(output_of(tmp_path, job_with(tmp_path))), None)

    assert [index for batch in stored.batches for index in batch["item_index"].to_pylist()] == indexes


def test_shares_of_a_sample_are_by_head(tmp_path: Path) -> None:
    job = job_with(tmp_path)

    found = estimate_of(PartRows(output_of(tmp_path, job)), job, make_status(), 300)

    assert {name: {**shares} for name, shares in found.labels.items()} == {
        "head_kinds": {"cat": Share.of(1, 3), "dog": Share.of(1, 3)},
        "head_tags": dict.fromkeys("abcd", Share.of(1, 3)),
        "head_pass": {"good": Share.of(1, 3)},
    }
    assert {**found.unlabelled} == {"head_tags": Share.of(1, 3), "head_pass": Share.of(1, 3)}


def test_shares_of_label_sets_stand_before_them(tmp_path: Path) -> None:
    job = job_with(tmp_path, (KINDS,), label_sets=(LabelSet(labels=("x", "y")),))

    assert [*estimate_of(PartRows(output_of(tmp_path, job)), job, make_status(), 300).labels] == [
        "labels", "head_kinds",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("heads", "labels", "words"),
    [
        ((KINDS,), (), "head kinds"),
        ((KINDS, TAGS), ("x", "y"), "x, y; heads kinds, tags"),
        (HEADS, (), "heads kinds, tags, rating and 1 more"),
    ],
)
def test_a_brief_names_them(heads: tuple[JobHead, ...], labels: tuple[str, ...], words: str) -> None:
    sets = (LabelSet(labels=labels),) if labels else ()

    assert JobBrief.of(job_with(Path("/out"), heads, label_sets=sets)).labels == words


@pytest.mark.parametrize(("task", "command"), [(Task.CLASSIFY, "classify"), (Task.EMBED, "relabel")])
def test_programs_that_need_a_label_set_say_so(tmp_path: Path, task: Task, command: str) -> None:
    reader = PartRows(output_of(tmp_path, job_with(tmp_path, task=task)))

    with pytest.raises(UsageError, match="its rows have no labels"):
        evaluate_rows(reader, "truth")
    with pytest.raises(UsageError, match=f"has heads only: run `clipfleet {command}` with labels"):
        read_scored_rows(reader)
