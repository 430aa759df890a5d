"""Marks as people write them, and as Label Studio exports them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from clipfleet.errors import UsageError
from clipfleet.labels.marks import Mark, Purpose, count_unanswered, latest_verdicts, read_marks

HEADER = "item_index,item_id,label,verdict,purpose,inclusion_probability,by,at,content_hash"
LABELS = ("cat", "dog")


def read(path: Path, content: str | list[Any]) -> list[Mark]:
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return read_marks([path], LABELS)


def mark(**values: Any) -> Mark:
    base = {"item_index": 1, "label": "cat", "verdict": "yes", "purpose": "certify"}
    return Mark.model_validate({**base, **values})


def short(marks: Sequence[Mark]) -> list[tuple[str, str]]:
    return [(one.label, one.verdict.value) for one in marks]


def test_csv_and_json_lines_say_the_same(folder: Path) -> None:
    values = {
        "item_index": 7, "item_id": "b, c", "label": "cat", "verdict": "no", "purpose": "fit",
        "inclusion_probability": 0.25, "by": "ann", "at": "2026-11-30T10:00:00Z", "content_hash": "ab",
        "uri": "/p/7.jpg", "score": 0.5,
    }  # fmt: skip
    not_marked = {**values, "verdict": ""}
    lines = "".join(json.dumps(one) + "\n" for one in (values, not_marked))
    cells = '7,"b, c",cat,{},fit,0.25,ann,2026-11-30T10:00:00Z,ab,/p/7.jpg,0.5\n'
    table = f"{HEADER},uri,score\n{cells.format(' No')}{cells.format('')}"

    (from_lines,) = read(folder / "marks.jsonl", lines)
    (from_table,) = read(folder / "marks.csv", f"\ufeff{table}")

    assert from_table.model_dump(exclude={"where"}) == from_lines.model_dump(exclude={"where"})
    assert (from_lines.item_id, from_lines.purpose, from_lines.verdict) == ("b, c", Purpose.FIT, "no")
    assert (Path(from_table.where).name, Path(from_lines.where).name) == ("marks.csv:2", "marks.jsonl:1")


@pytest.mark.parametrize(
    ("name", "content", "problem"),
    [
        ("m.csv", "item_index,label,purpose\n", "m.csv:1: there is no column 'verdict'"),
        ("m.csv", HEADER.replace(",", ";"), "m.csv:1: its columns are separated by ';': save it with ','"),
        ("m.csv", "", "m.csv:1: there is no column 'item_index'"),
        ("m.csv", f"{HEADER}\n\n1,,cat,maybe,fit,1\n", "m.csv:3: verdict: 'maybe' is not one of 'yes'"),
        ("m.csv", f"{HEADER}\n1,,cat,yes,test,1\n", "m.csv:2: purpose: 'test' is not one of 'fit'"),
        ("m.csv", f"{HEADER}\n1,,,yes,fit,1\n", "m.csv:2: label: it is missing"),
        ("m.csv", f"{HEADER}\none,,cat,yes,fit,1\n", "m.csv:2: item_index: 'one' is not a whole number"),
        ("m.csv", f"{HEADER}\n-1,,cat,yes,fit,1\n", "m.csv:2: item_index: '-1' is less than 0"),
        ("m.csv", f"{HEADER}\n{10**30},,cat,yes,fit,1\n", "m.csv:2: item_index: '10000000"),
        ("m.csv", f"{HEADER}\n,,cat,yes,fit,1\n", "m.csv:2: item_index: it is missing"),
        ("m.csv", f"{HEADER}\n1,,cat,yes,fit,0\n", "inclusion_probability: '0' is less than 1e-09"),
        (
            "m.csv",
            f"{HEADER}\n1,,cat,yes,fit,5e-324\n",
            "m.csv:2: inclusion_probability: '5e-324' is less than 1e-09",
        ),
        ("m.csv", f"{HEADER}\n1,,cat,yes,fit,1.1\n", "inclusion_probability: '1.1' is more than 1"),
        ("m.csv", f"{HEADER}\n1,,cat,yes,fit,nan\n", "inclusion_probability: 'nan' is not a"),
        ("m.csv", f"{HEADER}\n1,,cat,yes,fit,\n", "inclusion_probability: it is missing"),
        ("m.csv", f"{HEADER}\n1,,cat,yes,fit,1,,today\n", "m.csv:2: at: Input should be a valid datetime"),
        ("m.csv", f"{HEADER}\n1,,cat,yes,fit,1,a,,h,x\n", "m.csv:2: 10 values for 9 columns"),
        ("m.csv", f'{HEADER}\n1,"a"b,cat\n', "m.csv:2: not CSV"),
        ("m.jsonl", '{"item_index": 1}\n', "m.jsonl:1: label: it is missing"),
        ("m.jsonl", "\n[1]\n", "m.jsonl:2: a mark is a JSON object"),
        ("m.jsonl", "{\n", "m.jsonl:1: not JSON"),
        ("m.json", "{}", "m.json: not a list of tasks, as Label Studio"),
        ("m.json", "[1,", "m.json:1: not JSON"),
        ("m.json", '[{"data": {}}]', "m.json: task 1: it has no `annotations`"),
        ("m.json", '[{"image": "a", "choice": "cat"}]', "m.json: task 1: it has no `data`"),
        ("m.json", '[{"data": {}, "annotations": [1]}]', "m.json: task 1: an annotation is not one of"),
        ("m.txt", "", "m.txt: neither .csv nor .jsonl"),
    ],
)
def test_what_is_no_mark_is_refused_with_file_and_line(
    folder: Path, name: str, content: str, problem: str
) -> None:
    with pytest.raises(UsageError) as raised:
        read(folder / name, content)

    assert problem in str(raised.value)
    assert "\n" not in str(raised.value)


class TestLatestVerdicts:
    def test_one_verdict_per_item_label_and_person(self) -> None:
        found = latest_verdicts(
            [
                (1, mark(verdict="yes", by="ann", at="2026-11-30T12:00:00Z")),
                (1, mark(verdict="no", by="ann", at="2026-11-30T11:00:00Z")),
                (1, mark(verdict="skip", by="ann")),
                (1, mark(verdict="no", by="bob")),
                (1, mark(verdict="yes", by="bob")),
                (1, mark(label="dog", verdict="no", by="ann")),
                (2, mark(item_index=2, verdict="no", by="ann")),
            ]
        )

        assert {(index, one.label, one.by): one.verdict.value for index, one in found} == {
            (1, "cat", "ann"): "yes",
            (1, "cat", "bob"): "yes",
            (1, "dog", "ann"): "no",
            (2, "cat", "ann"): "no",
        }
        assert len(found) == 4

    def test_a_later_verdict_counts_for_both_purposes(self) -> None:
        found = latest_verdicts(
            [
                (1, mark(verdict="yes", purpose="fit", inclusion_probability=0.5, at="2026-11-30")),
                (1, mark(verdict="no", at="2026-12-01T00:00:00+02:00")),
            ]
        )

        assert {one.purpose: (one.verdict, one.inclusion_probability) for _, one in found} == {
            "fit": ("no", 0.5),
            "certify": ("no", None),
        }


class TestLabelStudio:
    """Tasks as Label Studio 1.x exports them, less what is not read."""

    def task(self, *choices: str, data: dict[str, Any] | None = None, **annotation: Any) -> dict[str, Any]:
        result = {"type": "choices", "from_name": "label", "value": {"choices": [*choices]}}
        found = {"result": [result] if choices else [], "was_cancelled": False, **annotation}
        return {"id": 4, "data": {"image": "/p/1.jpg", **(data or {})}, "annotations": [found]}

    def test_all_labels_are_answered_by_what_is_chosen(self, folder: Path) -> None:
        found = read(folder / "x.json", [self.task("dog", completed_by=3), self.task(completed_by=3)])

        assert short(found) == [("cat", "no"), ("dog", "yes"), ("cat", "no"), ("dog", "no")]
        assert {(one.uri, one.item_index, one.by, one.inclusion_probability) for one in found} == {
            ("/p/1.jpg", None, "3", 1.0)
        }

    @pytest.mark.parametrize(
        ("choices", "is_cancelled", "verdict"),
        [
            (["cat"], False, "yes"), (["dog"], False, "no"), ([], True, "skip"), (["cat"], True, "skip"),
            (["yes"], False, "yes"), (["no"], False, "no"), (["skip"], False, "skip"),
            (["Yes"], False, "yes"), ([" SKIP"], False, "skip"), (["Cat"], False, "yes"),
            (["cat", "dog"], False, "yes"),
        ],
    )  # fmt: skip
    def test_an_item_of_our_sample_answers_its_own_label(
        self, folder: Path, choices: list[str], is_cancelled: bool, verdict: str
    ) -> None:
        data = {
            "item_index": "7", "item_id": "img7", "label": "cat", "purpose": "certify",
            "inclusion_probability": "", "content_hash": "ab", "threshold": "0.5",
        }  # fmt: skip
        (found,) = read(
            folder / "x.json",
            [
                self.task(
                    *choices, data=data, was_cancelled=is_cancelled, updated_at="2026-11-30T10:00:00.1Z",
                    completed_by={"id": 3, "email": "ann@example.org"},
                )
            ],
        )  # fmt: skip

        assert (found.label, found.verdict, found.purpose) == ("cat", verdict, "certify")
        assert (found.item_index, found.item_id, found.content_hash, found.threshold) == (
            7, "img7", "ab", 0.5,
        )  # fmt: skip
        assert (found.by, found.at is not None) == ("ann@example.org", True)

    def test_an_annotation_of_our_sample_without_a_choice_is_no_mark(self, folder: Path) -> None:
        box = {"type": "rectanglelabels", "value": {"rectanglelabels": ["cat"]}}
        tasks = [self.task(data={"label": "cat"}), self.task(data={"label": "cat"}, result=[box])]

        found = read(folder / "x.json", [*tasks, self.task("dog")])

        assert short(found) == [("cat", "no"), ("dog", "yes")]
        assert count_unanswered([folder / "x.json"], LABELS) == 2

    @pytest.mark.parametrize(
        ("choices", "asked", "problem"),
        [
            (["maybe"], "cat", "task 1: the choice 'maybe' is neither yes, no or skip nor a label"),
            (["yes", "no"], "cat", "task 1: several answers: yes, no"),
            (["yes", "dog"], "cat", "task 1: several answers: yes, dog"),
        ],
    )
    def test_what_is_no_answer_is_refused(
        self, folder: Path, choices: list[str], asked: str, problem: str
    ) -> None:
        with pytest.raises(UsageError, match=problem):
            read(folder / "x.json", [self.task(*choices, data={"label": asked})])

    def test_boxes_are_no_answer_for_all_labels(self, folder: Path) -> None:
        box = {"type": "rectanglelabels", "value": {"rectanglelabels": ["cat"]}}

        with pytest.raises(UsageError, match="task 1: its results are no choices"):
            read(folder / "x.json", [self.task(result=[box])])

    def test_case_counts_only_where_labels_differ_by_nothing_else(self, folder: Path) -> None:
        (folder / "x.json").write_text(json.dumps([self.task("Dog", "POLISH")]))

        found = read_marks([folder / "x.json"], ("dog", "Polish", "polish"))

        assert short(found)[:3] == [("dog", "yes"), ("Polish", "no"), ("polish", "no")]
        assert short(found)[3:] == [("POLISH", "yes")]  # of no label: refused where the set is known
