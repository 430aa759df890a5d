"""The data of a report: exact figures, samples, failures, truth, marks, moves and decisions."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from clipfleet.contract.heads import JobHead
from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import UsageError
from clipfleet.labels.sets import label_set_yaml
from clipfleet.marking.stored import add_marks
from clipfleet.outputs.folder import FolderOutput
from clipfleet.report.building import MOST_ROWS
from clipfleet.report.drawing import NO_NUMPY, NO_THRESHOLDS, NOT_FINISHED
from clipfleet.report.summary import PageData
from clipfleet.results.part_rows import PartRows
from tests.support.heads import head_of
from tests.support.marked_outputs import FINGERPRINT, multi_set, write_rows
from tests.support.policies import make_policy
from tests.support.reports import (
    SHARES,
    accepting_row,
    place_rows,
    read_report,
    rows_by_formula,
    with_columns,
)
from tests.support.rows import failed, row

ROWS = 600


def data_of(folder: Path, **wanted: Any) -> dict[str, Any]:
    return PageData(read_report(folder, **wanted)).value()


def labels_of(data: dict[str, Any], number: int = 0) -> dict[str, dict[str, Any]]:
    return {label["name"]: label for label in data["sets"][number]["labels"]}


def items_at(data: dict[str, Any], positions: list[int]) -> list[int]:
    return [data["rows"]["items"][position] for position in positions]


@pytest.fixture
def rows() -> list[dict[str, Any]]:
    return rows_by_formula(ROWS)[0]


class TestFigures:
    def test_counts_are_those_of_the_rows(self, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
        place_rows(tmp_path, rows)
        data = data_of(tmp_path)

        ok = [one for one in rows if one["status"] == "ok"]
        expected = Counter(label for one in ok for label in one["accepted"])
        assert (data["about"]["rows"], data["about"]["ok"]) == (ROWS, len(ok))
        assert {name: label["count"] for name, label in labels_of(data).items()} == {
            label: expected[label] for label in SHARES
        }
        assert data["sets"][0]["unlabelled"] == sum(not one["accepted"] for one in ok)
        assert sum(labels_of(data)["cat"]["histogram"]) == len(ok)

    def test_pairs_are_those_that_rows_have_together(
        self, tmp_path: Path, rows: list[dict[str, Any]]
    ) -> None:
        place_rows(tmp_path, rows)
        pairs = data_of(tmp_path)["sets"][0]["pairs"]

        names = list(SHARES)
        expected: Counter[tuple[str, str]] = Counter()
        for one in rows:
            there = sorted(one.get("accepted") or (), key=names.index)
            expected.update((a, b) for at, a in enumerate(there) for b in there[at + 1 :])
        assert pairs["kind"] == "together"
        assert {(names[a], names[b]): count for a, b, count in pairs["pairs"]} == expected

    def test_of_a_softmax_close_labels_are_pairs(self, tmp_path: Path) -> None:
        def softmax(index: int, cat: float, dog: float) -> dict[str, Any]:
            best = sorted({"cat": cat, "dog": dog}.items(), key=lambda pair: -pair[1])
            labels, scores = zip(*best, strict=True)
            values = {"labels": list(labels), "scores": list(scores), "label": labels[0], "score": scores[0]}
            return row(index, **values)

        rows = [softmax(0, 0.52, 0.48), softmax(1, 0.97, 0.03), softmax(2, 0.49, 0.51), failed(3)]
        place_rows(tmp_path, rows, LabelSet(labels=("cat", "dog")))
        data = data_of(tmp_path)

        assert data["sets"][0]["pairs"]["pairs"] == [[0, 1, 1], [1, 0, 1]]
        assert {name: label["count"] for name, label in labels_of(data).items()} == {"cat": 2, "dog": 1}
        assert items_at(data, labels_of(data)["cat"]["doubtful"]) == [0, 1]
        assert data["marking"] == {"reason": NO_THRESHOLDS, "samples": []}

    def test_the_doubtful_are_nearest_to_the_threshold(
        self, tmp_path: Path, rows: list[dict[str, Any]]
    ) -> None:
        place_rows(tmp_path, rows)
        data = data_of(tmp_path, per_label=8)

        def distance(index: int) -> float:
            one = rows[index]
            return abs(one["scores"][one["labels"].index("cat")] - 0.5)

        ok = sorted((one["item_index"] for one in rows if one["status"] == "ok"), key=distance)
        assert items_at(data, labels_of(data)["cat"]["doubtful"]) == ok[:4]
        uniform = items_at(data, labels_of(data)["cat"]["uniform"])
        assert len(uniform) == 4 and all("cat" in rows[index]["accepted"] for index in uniform)

    def test_failures_are_counted_by_code_and_host(self, tmp_path: Path) -> None:
        uris = ["https://a.example/1", "http://user:secret@A.example/2", "s3://bucket/3", "/p/4.jpg"]
        rows = [{**failed(index), "uri": uri} for index, uri in enumerate(uris)]
        place_rows(tmp_path, [*rows, accepting_row(4, dict.fromkeys(SHARES, 0.1), uri="https://a.example/5")])
        found = data_of(tmp_path)["failures"]

        assert [(one["code"], one["count"], len(one["items"])) for one in found["codes"]] == [
            ("not_found", 4, 4)
        ]
        assert {(one["host"], one["items"]): one["codes"] for one in found["hosts"]} == {
            ("a.example", 3): {"not_found": 2},
            ("s3://bucket", 1): {"not_found": 1},
            ("local files", 1): {"not_found": 1},
        }

    def test_an_output_of_failed_rows_only_is_shown(self, tmp_path: Path) -> None:
        place_rows(tmp_path, [failed(0), failed(1)])

        data = data_of(tmp_path)
        assert (data["about"]["failed"], data["rows"]["count"]) == (2, 2)
        assert "no row has scores" in data["marking"]["reason"]

    def test_of_many_rows_the_page_lists_a_uniform_sample(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, rows: list[dict[str, Any]]
    ) -> None:
        assert MOST_ROWS == 20_000
        monkeypatch.setattr("clipfleet.report.building.MOST_ROWS", 50)
        place_rows(tmp_path, rows)
        data = data_of(tmp_path, per_label=4)

        assert data["rows"]["is_sample"] and len(data["rows"]["listed"]) == 50
        assert 50 <= data["rows"]["count"] < ROWS
        assert data["about"]["rows"] == ROWS
        assert data["rows"]["listed"] != list(range(50))

    def test_long_texts_are_cut(self, tmp_path: Path) -> None:
        long = accepting_row(0, dict.fromkeys(SHARES, 0.9), item_id="x" * 10_000)
        place_rows(tmp_path, [long])

        (text,) = data_of(tmp_path)["rows"]["columns"]["item_id"]["values"]
        assert text == f"{'x' * 2000}\u2026 (10,000 characters)"

    def test_scores_that_are_no_numbers_are_left_out(self, tmp_path: Path) -> None:
        rows = [
            accepting_row(0, {**dict.fromkeys(SHARES, 0.2), "cat": 0.9}),
            accepting_row(1, dict.fromkeys(SHARES, 0.2)),
        ]
        rows[1]["scores"] = [float("nan")] * len(SHARES)
        place_rows(tmp_path, rows)
        data = data_of(tmp_path)

        json.dumps(data, allow_nan=False)
        assert labels_of(data)["cat"]["count"] == 1
        assert "not a number" in data["marking"]["reason"]

    def test_of_many_scores_a_row_lists_the_best(self, tmp_path: Path) -> None:
        labels = tuple(f"label {number}" for number in range(80))
        rows = [accepting_row(0, {label: 0.9 - number / 100 for number, label in enumerate(labels)})]
        place_rows(tmp_path, rows, multi_set(labels))
        data = data_of(tmp_path)

        (scores,) = data["rows"]["answers"][0]["scores"]
        assert len(scores) == 50 and scores[0] == 0.9
        last = labels_of(data)["label 79"]
        assert (last["doubtful"], last["doubtful_scores"]) == ([0], [pytest.approx(0.11)])


class TestKindsOfJobs:
    def test_decisions_are_counted_with_examples_of_each(self, tmp_path: Path) -> None:
        policy = make_policy()
        reason = {"rule": "r", "action": "flag", "label_set": "things", "label": "cat", "score": 0.9}
        rows = [
            accepting_row(
                index, {"cat": 0.9 if action == "flag" else 0.1, "dog": 0.2}, decision=action,
                decision_id=f"dec-{index}", decision_reasons=[reason] if action == "flag" else [],
            )
            for index, action in enumerate(["allow", "flag", "allow", "flag"])
        ]  # fmt: skip
        rows.append({**failed(4), "decision": "undecided", "decision_id": "dec-4"})
        place_rows(tmp_path, rows, policy.label_sets[0], policy=policy.of_a_job(), schema_version=6)
        data = data_of(tmp_path)

        found = {one["name"]: (one["count"], items_at(data, one["items"])) for one in data["decisions"]}
        assert {name: (count, sorted(items)) for name, (count, items) in found.items()} == {
            "flag": (2, [1, 3]), "undecided": (1, [4]), "allow": (2, [0, 2]),
        }  # fmt: skip
        assert [one["name"] for one in data["decisions"]] == ["flag", "undecided", "allow"]
        reasons = data["rows"]["columns"]["decision_reasons"]
        assert reasons[1][0]["label"] == "cat"

    def test_each_of_several_label_sets_is_shown_and_one_is_chosen_for_marks(self, tmp_path: Path) -> None:
        pets, moods = (
            multi_set(labels, name=name)
            for name, labels in (("pets", ("cat", "dog")), ("moods", ("calm", "wild")))
        )
        rows = []
        for index in range(30):
            one = accepting_row(index, {"cat": 0.9, "dog": 0.1})
            other = accepting_row(index, {"calm": 0.2, "wild": 0.8 if index % 3 else 0.3})
            named = {
                f"{name}_{label_set}": values[name]
                for label_set, values in (("pets", one), ("moods", other))
                for name in ("label", "score", "labels", "scores", "accepted")
            }
            rows.append({**one, **named})
        place_rows(tmp_path, rows, label_sets=(pets, moods), top_k=2)

        data = data_of(tmp_path)
        assert {name: one["count"] for name, one in labels_of(data, 0).items()} == {"cat": 30, "dog": 0}
        assert {name: one["count"] for name, one in labels_of(data, 1).items()} == {"calm": 0, "wild": 20}
        assert data["marking"]["set"] == "pets"
        assert data_of(tmp_path, set_name="moods")["marking"]["set"] == "moods"
        with pytest.raises(UsageError, match="choose one with `set=`: pets, moods"):
            data_of(tmp_path, labels=["calm"])
        with pytest.raises(UsageError, match="no label set 'x'"):
            data_of(tmp_path, set_name="x")

    def test_items_that_name_their_label_set_count_for_that_one(self, tmp_path: Path) -> None:
        pets, moods = multi_set(("cat", "dog"), name="pets"), multi_set(("calm", "wild"), name="moods")
        rows = [
            accepting_row(0, {"cat": 0.9, "dog": 0.1}, ask="pets"),
            accepting_row(1, {"calm": 0.1, "wild": 0.7}, ask="moods"),
            accepting_row(2, {"calm": 0.1, "wild": 0.8}, ask="moods"),
        ]
        place_rows(
            tmp_path,
            rows,
            label_sets=(pets, moods),
            label_set_column="ask",
            top_k=2,
            source=with_columns("ask"),
        )
        data = data_of(tmp_path)

        assert [one["rows"] for one in data["sets"]] == [1, 2]
        assert labels_of(data, 1)["wild"]["count"] == 2

    def test_a_head_has_labels_of_its_own(self, tmp_path: Path) -> None:
        head = JobHead(sha256="0" * 64, head=head_of(4, 2))
        rows = [
            accepting_row(0, {"cat": 0.9, "dog": 0.1}, head_taste="kind 1", head_taste_score=0.7),
            accepting_row(1, {"cat": 0.9, "dog": 0.1}, head_taste="kind 0", head_taste_score=0.9),
        ]
        place_rows(tmp_path, rows, multi_set(("cat", "dog")), heads=(head,))
        data = data_of(tmp_path)

        assert [one["name"] for one in data["sets"]] == ["labels", "taste"]
        assert {name: one["count"] for name, one in labels_of(data, 1).items()} == {"kind 0": 1, "kind 1": 1}
        assert data["focus"] == 0

    def test_rows_without_their_job_are_shown(self, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
        place_rows(tmp_path, rows)
        (tmp_path / "_clipfleet" / "job.json").unlink()
        data = data_of(tmp_path)

        assert data["about"]["job_id"] is None
        assert labels_of(data)["cat"]["count"] > 0

    def test_an_unfinished_job_says_so_and_draws_nothing(
        self, tmp_path: Path, rows: list[dict[str, Any]]
    ) -> None:
        place_rows(tmp_path, rows)
        (tmp_path / "_SUCCESS").unlink()
        data = data_of(tmp_path)

        assert data["notes"] == ["The job has not finished: rows may be missing."]
        assert data["marking"] == {"reason": NOT_FINISHED, "samples": []}

    def test_without_numpy_the_report_says_what_marking_needs(
        self, tmp_path: Path, rows: list[dict[str, Any]], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("clipfleet.report.drawing.find_spec", lambda name: None)
        place_rows(tmp_path, rows)

        assert data_of(tmp_path)["marking"] == {"reason": NO_NUMPY, "samples": []}


class TestTruth:
    def test_precision_recall_and_what_is_confused(self, tmp_path: Path) -> None:
        said = [("cat", "cat"), ("cat", "cat"), ("cat", "dog"), ("dog", "cat"), ("dog", ""), ("dog", "dog")]
        rows = [
            accepting_row(index, {one: 0.9 if one == label else 0.1 for one in ("cat", "dog")}, animal=truth)
            for index, (label, truth) in enumerate(said)
        ]  # fmt: skip
        label_set = LabelSet(labels=("cat", "dog"), none=True)
        place_rows(tmp_path, rows, label_set, source=with_columns("animal"))

        data = data_of(tmp_path, truth_column="animal")
        cat = labels_of(data)["cat"]
        assert (cat["precision"]["value"], cat["precision"]["n"], cat["recall"]) == (2 / 3, 3, 2 / 3)
        assert cat["precision"]["low"] < 2 / 3 < cat["precision"]["high"]
        assert sorted(data["sets"][0]["truth"]["confused"]) == [[-1, 1, 1], [0, 1, 1], [1, 0, 1]]

    def test_a_column_that_is_not_there_is_refused(self, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
        place_rows(tmp_path, rows)
        with pytest.raises(UsageError, match="no column 'animal'"):
            data_of(tmp_path, truth_column="animal")


class TestMarks:
    def marks(self, tmp_path: Path, purpose: str, verdicts: dict[int, str]) -> Path:
        rows = [
            {"item_index": str(index), "label": "cat", "verdict": verdict, "purpose": purpose,
             "inclusion_probability": "0.5"}
            for index, verdict in verdicts.items()
        ]  # fmt: skip
        return write_rows(tmp_path / "marks.csv", rows)

    def test_fit_samples_are_drawn_as_sample_draws_them(
        self, tmp_path: Path, rows: list[dict[str, Any]]
    ) -> None:
        place_rows(tmp_path / "out", rows)
        samples = data_of(tmp_path / "out", to_mark=12)["marking"]["samples"]

        assert {(one["label"], one["purpose"], len(one["items"])) for one in samples} == {
            (label, "fit", 12) for label in SHARES
        }
        from typer.testing import CliRunner

        from clipfleet.commands import app

        words = ["sample", str(tmp_path / "out"), "--purpose", "fit", "-n", "12", "--label", "cat"]
        drawn = list(csv.DictReader(CliRunner().invoke(app, words).stdout.splitlines()))
        data = data_of(tmp_path / "out", to_mark=12)
        cat = next(one for one in data["marking"]["samples"] if one["label"] == "cat")
        assert [int(one["item_index"]) for one in drawn] == items_at(data, [item[0] for item in cat["items"]])
        assert [float(one["inclusion_probability"]) for one in drawn] == [item[1] for item in cat["items"]]

    def test_marked_items_are_not_drawn_again(self, tmp_path: Path, rows: list[dict[str, Any]]) -> None:
        place_rows(tmp_path / "out", rows)
        before = data_of(tmp_path / "out", to_mark=6, labels=["cat"])
        items = items_at(before, [item[0] for item in before["marking"]["samples"][0]["items"]])
        path = self.marks(tmp_path, "fit", dict.fromkeys(items[:4], "yes"))

        after = data_of(tmp_path / "out", to_mark=6, labels=["cat"], marks=[path])
        (sample,) = after["marking"]["samples"]
        assert len(sample["items"]) == 2
        assert not {*items[:4]} & {*items_at(after, [item[0] for item in sample["items"]])}

    def test_marks_that_are_stored_with_the_rows_count_without_a_file(
        self, tmp_path: Path, rows: list[dict[str, Any]]
    ) -> None:
        job = place_rows(tmp_path / "out", rows)
        mark = {"label": "cat", "purpose": "fit", "verdict": "yes", "inclusion_probability": 1.0}
        about = {"certify": {"purpose": "certify", "threshold": 0.123}, "other": {"label_set": "other"}}
        lines = [
            {**mark, "label_set": job.label_sets[0].name, "item_index": 1},
            {**mark, "label_set": job.label_sets[0].name, "item_index": 2, "item_id": "replaced"},
            {**mark, "label_set": job.label_sets[0].name, "item_index": 3, **about["certify"]},
            {**mark, "item_index": 4, **about["other"]},
        ]
        add_marks(FolderOutput(tmp_path / "out"), [json.dumps(line) for line in lines], now_ms=1)

        marked = read_report(tmp_path / "out").marked

        assert marked is not None
        assert {key: [one.item_index for one in some] for key, some in marked.items.items()} == {
            ("fit", "cat"): [1]
        }
        assert [mark.item_id for mark in marked.void] == ["replaced"]

    def test_where_no_sample_can_be_drawn_stored_marks_stop_no_report(self, tmp_path: Path) -> None:
        job = place_rows(tmp_path, [failed(0)])
        mark = {"item_index": 0, "label": "cat", "verdict": "yes", "purpose": "fit"}
        about = {"inclusion_probability": 1.0, "label_set": job.label_sets[0].name}
        add_marks(FolderOutput(tmp_path), [json.dumps({**mark, **about})], now_ms=1)

        assert "no row has scores" in data_of(tmp_path)["marking"]["reason"]

    def test_a_promise_has_a_certify_sample_of_the_size_that_proves_it(self, tmp_path: Path) -> None:
        rows, _ = rows_by_formula(ROWS)
        promised = multi_set(tuple(SHARES), promises={"cat": {"claim": "precision", "value": 0.9}})
        place_rows(tmp_path, rows, promised)
        data = data_of(tmp_path)

        (sample,) = (one for one in data["marking"]["samples"] if one["purpose"] == "certify")
        (verdict,) = data["marking"]["verdicts"]
        assert (sample["label"], sample["threshold"]) == ("cat", 0.5)
        assert len(sample["items"]) == verdict["more_marks"] == sample["plan"][0]["marks"]
        assert [one["wrong"] for one in sample["plan"]] == [0, 1, 2, 3, 4]
        assert [one["marks"] for one in sample["plan"]] == sorted(one["marks"] for one in sample["plan"])
        assert labels_of(data)["cat"]["promise"] == {"claim": "precision", "value": 0.9}

    def test_precision_by_certify_marks_is_that_of_the_rows_with_the_label(
        self, tmp_path: Path, rows: list[dict[str, Any]]
    ) -> None:
        place_rows(
            tmp_path / "out",
            rows,
            multi_set(tuple(SHARES), promises={"cat": {"claim": "precision", "value": 0.9}}),
        )
        drawn = data_of(tmp_path / "out")
        sample = next(one for one in drawn["marking"]["samples"] if one["purpose"] == "certify")
        items = items_at(drawn, [item[0] for item in sample["items"]])
        path = self.marks(tmp_path, "certify", {**dict.fromkeys(items, "yes"), items[3]: "no"})

        data = data_of(tmp_path / "out", marks=[path])
        found = labels_of(data)["cat"]["marked"]
        assert (found["n"], found["source"]) == (len(items), "certify marks")
        assert found["value"] == 1 - 1 / len(items)
        (verdict,) = data["marking"]["verdicts"]
        assert (verdict["marks"], verdict["wrong"]) == (len(items), 1)

    def test_a_certificate_is_shown_with_where_it_holds(
        self, tmp_path: Path, rows: list[dict[str, Any]]
    ) -> None:
        promised = multi_set(tuple(SHARES), promises={"cat": {"claim": "precision", "value": 0.9}})
        certificate = {
            "label": "cat", "threshold": 0.5, "promise": {"claim": "precision", "value": 0.9},
            "confidence": 0.95, "looks": [{"marks": 40, "wrong": 0}], "verdict": "certified",
            "output": "s3://b/first", "job_id": "j", "model_fingerprint": FINGERPRINT,
            "label_set_hash": promised.hash, "at": "2026-12-01T00:00:00Z",
        }  # fmt: skip
        place_rows(tmp_path / "out", rows, promised)
        for job_id, is_here in (("j", True), ("other", False)):
            certified = promised.model_copy(update={"certificates": ()}).model_dump()
            certified["certificates"] = [{**certificate, "job_id": job_id}]
            path = tmp_path / "labels.yaml"
            path.write_text(label_set_yaml(LabelSet.model_validate(certified)))

            cat = labels_of(data_of(tmp_path / "out", labels_file=str(path)))["cat"]
            assert (cat["certificate"]["verdict"], cat["certificate"]["is_here"]) == ("certified", is_here)
            assert ("certified_precision" in cat) is is_here

    def test_other_thresholds_and_another_calibration_change_who_has_a_label(
        self, tmp_path: Path, rows: list[dict[str, Any]]
    ) -> None:
        place_rows(tmp_path / "out", rows)
        given = multi_set(
            tuple(SHARES), thresholds=dict.fromkeys(SHARES, 0.7), slope=0.5,
            intercepts=dict.fromkeys(SHARES, 0.25),
        )  # fmt: skip
        path = tmp_path / "labels.yaml"
        path.write_text(label_set_yaml(given))

        data = data_of(tmp_path / "out", labels_file=str(path))
        from clipfleet.marking.scored_rows import read_scored_rows

        scored = read_scored_rows(PartRows(FolderOutput(tmp_path / "out")))
        expected = {label: int(scored.accepted(label, given).sum()) for label in SHARES}
        assert {name: one["count"] for name, one in labels_of(data).items()} == expected
        assert sum(expected.values()) > 0


class TestMoves:
    def test_what_moved_is_counted_with_examples(self, tmp_path: Path) -> None:
        def output(name: str, *labels: str | None) -> Path:
            rows = [
                failed(index) if label == "failed"
                else accepting_row(index, {one: 0.9 if one == label else 0.1 for one in ("cat", "dog")})
                for index, label in enumerate(labels)
            ]  # fmt: skip
            place_rows(tmp_path / name, rows, multi_set(("cat", "dog")), job_id=name)
            return tmp_path / name

        before = output("before", "cat", "cat", "dog", None, "failed", "cat")
        now = output("now", "cat", "dog", "dog", "cat", "cat")
        compared = PartRows(FolderOutput(before))

        data = data_of(now, compared=compared)
        (column,) = data["moved"]["columns"]
        assert (data["moved"]["both"], data["moved"]["only_before"], column["changed"]) == (5, 1, 3)
        moves = {(one["before"], one["now"]): items_at(data, one["items"]) for one in column["moves"]}
        assert moves == {("cat", "dog"): [1], ("(no label)", "cat"): [3], ("(failed)", "cat"): [4]}

    def test_outputs_of_other_items_are_refused(self, tmp_path: Path) -> None:
        for name in ("one", "other"):
            place_rows(tmp_path / name, [accepting_row(0, dict.fromkeys(SHARES, 0.9), item_id=name)])

        with pytest.raises(UsageError, match="compare outputs of the same source"):
            data_of(tmp_path / "one", compared=PartRows(FolderOutput(tmp_path / "other")))
