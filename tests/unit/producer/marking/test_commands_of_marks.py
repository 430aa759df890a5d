"""`sample`, `calibrate` and `certify` on the rows of an output, by their command lines."""

from __future__ import annotations

import csv
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from typer.testing import CliRunner

from clipfleet.commands import app
from clipfleet.contract.jobs import SourceDescription
from clipfleet.contract.label_sets import DEFAULT_BACKGROUND, LARGEST_SCORE, LabelSet
from clipfleet.errors import ClipfleetError, UsageError
from clipfleet.labels.sets import label_set_yaml, read_label_set
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from tests.support.marked_outputs import (
    LABELS,
    Truth,
    mark_file,
    multi_set,
    place_scored_output,
    scored,
    two_labels,
    write_rows,
)
from tests.support.rows import failed

pytestmark = pytest.mark.usefixtures("folder")

ROWS = 1200
OF_THE_SET: dict[str, Any] = {"groups": {"cat": "pets"}, "not_prompts": {"dog": ("a wolf",)}}
PRECISION = {"claim": "precision", "value": 0.9}


def run(*words: object, expect: int | None = 0) -> str:
    """Run a command line; returns what it printed on stdout. None: any exit code."""
    result = CliRunner().invoke(app, [str(word) for word in words])
    if isinstance(result.exception, ClipfleetError):
        raise result.exception
    assert expect in (None, result.exit_code), (result.output, result.exception)
    return result.stdout


def run_json(*words: object, expect: int | None = 0) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(*words, "--json", expect=expect))
    return found


def refused(*words: object) -> str:
    """Run a command line that is refused, and writes nothing; returns the message."""
    before = {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()}
    with pytest.raises(UsageError) as raised:
        run(*words)
    assert {path: path.read_bytes() for path in Path().rglob("*") if path.is_file()} == before
    assert "\n" not in str(raised.value)
    return str(raised.value)


def table(path: str | Path) -> list[dict[str, str]]:
    with Path(path).open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def truth(output: FolderOutput) -> Truth:
    """Of an output `out` in the current folder, of two labels."""
    rows, truth = two_labels(ROWS)
    place_scored_output(output, rows, label_set=multi_set(**OF_THE_SET))
    return truth


def labels_file(name: str = "labels.yaml", **values: Any) -> Path:
    """A label set with thresholds of 0.5 and a promise of precision 0.9 for both labels."""
    base: dict[str, Any] = {
        **OF_THE_SET,
        "thresholds": dict.fromkeys(LABELS, 0.5),
        "promises": dict.fromkeys(LABELS, PRECISION),
    }
    path = Path(name)
    path.write_text(label_set_yaml(multi_set(**{**base, **values})))
    return path


def certify_sample(truth: Truth, n: int, name: str = "certify.csv", label: str = "cat") -> Path:
    path = Path(name)
    run(
        "sample",
        "out/",
        "--purpose",
        "certify",
        "--labels",
        "labels.yaml",
        "--label",
        label,
        "-n",
        n,
        "-o",
        path,
    )
    mark_file(path, truth)
    return path


def rewrite(output: FolderOutput, folder: Path, rows: list[dict[str, Any]]) -> None:
    shutil.rmtree(folder / "out")
    place_scored_output(FolderOutput(folder / "out"), rows, label_set=multi_set(**OF_THE_SET))


def always(_: int, __: str) -> bool:
    return True


class TestSample:
    def test_a_fit_sample_covers_all_scores_and_says_how_likely_each_item_was(self, truth: Truth) -> None:
        run("sample", "out/", "--purpose", "fit", "--label", "cat", "-n", 60, "-o", "fit.csv")

        rows = table("fit.csv")
        assert len({row["item_index"] for row in rows}) == len(rows) == 60
        assert {(row["label"], row["purpose"], row["verdict"], row["threshold"]) for row in rows} == {
            ("cat", "fit", "", "")
        }
        scores = [float(row["score"]) for row in rows]
        assert min(scores) < 0.2 and max(scores) > 0.95
        assert sum(0.2 < score < 0.8 for score in scores) >= 10  # few rows are there: each bin has its share
        assert sum(1 / float(row["inclusion_probability"]) for row in rows) == pytest.approx(ROWS)
        first = rows[0]
        index = first["item_index"]
        assert (first["item_id"], first["uri"], first["content_hash"]) == (
            f"img{index}", f"/p/{index}.jpg", f"hash{index}",
        )  # fmt: skip

    def test_a_certify_sample_is_the_next_of_one_order_of_the_accepted_rows(self, truth: Truth) -> None:
        labels_file()
        first = table(certify_sample(truth, 30, "a.csv"))
        more = run(
            "sample", "out/", "--purpose", "certify", "--labels", "labels.yaml", "--label", "cat", "-n", 20,
            "--marks", "a.csv",
        )  # fmt: skip
        both = table(certify_sample(truth, 50, "b.csv"))

        def order(rows: list[dict[str, str]]) -> list[str]:
            return [row["item_index"] for row in rows]

        assert order(both) == order(first) + order(list(csv.DictReader(more.splitlines())))
        assert order(first) != sorted(order(first), key=int)
        assert all(float(row["score"]) >= float(row["threshold"]) == 0.5 for row in both)
        labels_file(thresholds={"cat": 0.6, "dog": 0.5})
        assert order(table(certify_sample(truth, 30, "c.csv"))) != order(first)

    def test_of_a_promise_to_miss_little_the_rest_is_drawn(self, truth: Truth) -> None:
        labels_file(promises={"cat": {"claim": "miss", "value": 0.1}})

        rows = table(certify_sample(truth, 40))

        assert all(float(row["score"]) < 0.5 for row in rows)

    def test_it_never_replaces_what_somebody_has_marked(self, truth: Truth) -> None:
        labels_file()
        marked = certify_sample(truth, 5)

        assert "holds verdicts" in refused("sample", "out/", "--purpose", "fit", "-o", marked)
        assert "no column 'item_index'" in refused("sample", "out/", "--purpose", "fit", "-o", other_csv())
        assert "name such a file" in refused("sample", "out/", "--purpose", "fit", "-o", "marks.txt")

    def test_json_lines_and_all_labels(self, truth: Truth) -> None:
        run("sample", "out/", "--purpose", "fit", "-n", 3, "-o", "fit.jsonl")

        rows = [json.loads(line) for line in Path("fit.jsonl").read_text().splitlines()]
        assert [row["label"] for row in rows] == ["cat"] * 3 + ["dog"] * 3
        assert isinstance(rows[0]["item_index"], int)


def other_csv() -> Path:
    path = Path("other.csv")
    path.write_text("a,b\n1,2\n")
    return path


class TestCalibrate:
    def test_it_writes_the_set_with_thresholds_that_keep_the_promise(self, truth: Truth) -> None:
        run("sample", "out/", "--purpose", "fit", "-n", 80, "-o", "fit.csv")
        mark_file(Path("fit.csv"), truth)

        found = run_json(
            "calibrate", "out/", "--marks", "fit.csv", "-o", "labels.yaml", "--target-precision", 0.95
        )

        label_set = read_label_set("labels.yaml")
        assert label_set.slope == found["slope"]
        assert {name: getattr(label_set, name) for name in OF_THE_SET} == OF_THE_SET
        assert set(label_set.intercepts) == set(LABELS)
        rows = {row["label"]: row for row in found["labels"]}
        scores = dict(all_scores())
        for label in LABELS:
            threshold = label_set.thresholds[label]
            assert label_set.promises[label].model_dump(mode="json") == {"claim": "precision", "value": 0.95}
            z = np.log(scores[label]) - np.log1p(-scores[label])
            p = 1 / (1 + np.exp(-(label_set.slope * z + label_set.intercepts[label])))
            accepted = np.flatnonzero(p >= threshold)
            assert rows[label]["accepted"] == len(accepted)
            assert np.mean([truth(int(index), label) for index in accepted]) >= 0.93
            assert len(accepted) > 0.3 * ROWS
            assert rows[label]["marks"] == 80

    def test_a_label_without_marks_accepts_nothing_and_says_so(self, truth: Truth) -> None:
        run("sample", "out/", "--purpose", "fit", "-n", 60, "--label", "cat", "-o", "fit.csv")
        mark_file(Path("fit.csv"), truth)

        result = CliRunner().invoke(app, ["calibrate", "out/", "--marks", "fit.csv", "-o", "labels.yaml"])

        assert result.exit_code == 0
        assert "lower thresholds: 1 of 2 labels with fewer than 120 fit marks" in result.stderr
        assert "dog: it has no fit marks; its threshold 1 accepts 0 of 1,200 rows" in result.stderr
        found = read_label_set("labels.yaml")
        assert (found.thresholds["dog"], set(found.promises)) == (1.0, {"cat"})

    def test_a_bound_of_what_is_missed(self, truth: Truth) -> None:
        run("sample", "out/", "--purpose", "fit", "-n", 80, "-o", "fit.csv")
        mark_file(Path("fit.csv"), truth)

        found = run_json("calibrate", "out/", "--marks", "fit.csv", "-o", "labels.yaml", "--max-miss", 0.05)

        label_set = read_label_set("labels.yaml")
        for label, row in zip(LABELS, found["labels"], strict=True):
            assert label_set.promises[label].model_dump(mode="json") == {"claim": "miss", "value": 0.05}
            assert row["estimated_miss"] <= 0.05
            assert 0.3 * ROWS < row["accepted"] < 0.8 * ROWS

    def test_disagreements_and_skips_are_left_out_of_the_fit_and_void_marks_are_listed(
        self, truth: Truth
    ) -> None:
        run("sample", "out/", "--purpose", "fit", "-n", 60, "-o", "fit.csv")
        rows = mark_file(Path("fit.csv"), truth)
        other = {**rows[0], "by": "bob", "verdict": "no" if rows[0]["verdict"] == "yes" else "yes"}
        rows[1]["verdict"] = "skip"
        rows[2]["content_hash"] = "another"
        write_rows(Path("fit.csv"), [*rows, other])

        found = run_json("calibrate", "out/", "--marks", "fit.csv", "-o", "labels.yaml")

        assert found["labels"][0]["marks"] == 57
        assert found["disagreements"] == [{"label": "cat", "item_index": int(rows[0]["item_index"])}]
        assert found["void"] == [{"mark": "fit.csv:4", "label": "cat"}]

    def test_only_what_loses_nothing_is_replaced_without_being_asked(self, truth: Truth) -> None:
        run("sample", "out/", "--purpose", "fit", "-n", 60, "-o", "fit.csv")
        mark_file(Path("fit.csv"), truth)
        command = ("calibrate", "out/", "--marks", "fit.csv", "-o", "labels.yaml")
        run(*command)
        run(*command)
        Path("labels.yaml").write_text(label_set_yaml(LabelSet(labels=("a", "b"))))
        assert "labels.yaml holds another label set" in refused(*command)
        run(*command, "--overwrite")
        run("certify", "out/", "--labels", "labels.yaml", "--marks", certify_sample(truth, 120), expect=3)

        assert "labels.yaml holds certificates (cat)" in refused(*command)
        assert "labels.json: a label set is written as .yaml" in refused(*command[:-1], "labels.json")

    def test_stored_marks_count_as_those_of_the_file(self, truth: Truth) -> None:
        run("sample", "out/", "--purpose", "fit", "-n", 40, "-o", "fit.csv")
        mark_file(Path("fit.csv"), truth)
        words = refused("calibrate", "out/", "-o", "stored.yaml")
        assert "no marks are stored there: name files with `marks=`" in words
        run("calibrate", "out/", "--marks", "fit.csv", "-o", "file.yaml")

        run("marks", "import", "fit.csv", "--job", "out/")
        run("calibrate", "out/", "-o", "stored.yaml")

        assert Path("stored.yaml").read_text() == Path("file.yaml").read_text()

    def test_corrections_choose_no_thresholds(self, truth: Truth) -> None:
        run("sample", "out/", "--purpose", "fit", "-n", 40, "-o", "fit.csv")
        rows = mark_file(Path("fit.csv"), truth)
        write_rows(Path("fit.csv"), [{**row, "purpose": "correct"} for row in rows])

        words = refused("calibrate", "out/", "--marks", "fit.csv", "-o", "stored.yaml")

        assert words == "there are no fit marks: draw items with `clipfleet sample`"

    def test_calibrating_again_leaves_looks_spent(self, truth: Truth) -> None:
        run("sample", "out/", "--purpose", "fit", "-n", 60, "-o", "fit.csv")
        mark_file(Path("fit.csv"), truth)
        command = ("calibrate", "out/", "--marks", "fit.csv", "-o", "labels.yaml")
        run(*command)
        certify = ("certify", "out/", "--labels", "labels.yaml", "--label", "cat")
        run(*certify, "--marks", certify_sample(truth, 120), expect=None)
        before = Path("labels.yaml").read_text()

        run(*command, "--overwrite")

        assert Path("labels.yaml").read_text() == before
        assert run_json(*certify, expect=None)["labels"][0]["looks"]

    @pytest.mark.parametrize(
        ("marks", "problem"),
        [
            ([(1, "cow", "yes")], "m.csv:2: there is no label 'cow'"),
            ([(ROWS + 7, "cat", "yes")], f"m.csv:2: {{out}} has no item {ROWS + 7}"),
            ([(ROWS, "cat", "yes")], f"m.csv:2: item {ROWS} of {{out}} failed"),
            ([(1, "cat", "skip")], "there are no fit marks"),
            ([(1, "cat", "yes"), (2, "cat", "yes")], "the fit marks cannot be fitted: all marks are yes"),
        ],
    )
    def test_marks_that_do_not_fit_are_refused(
        self, truth: Truth, folder: Path, marks: list[tuple[int, str, str]], problem: str
    ) -> None:
        rows = [marked(index, label, verdict) for index, label, verdict in marks]
        write_rows(Path("m.csv"), rows)

        message = refused("calibrate", "out/", "--marks", "m.csv", "-o", "labels.yaml")

        assert problem.format(out=folder / "out") in message

    def test_marks_of_another_output_are_refused_by_their_item_ids(self, truth: Truth) -> None:
        write_rows(Path("m.csv"), [{**marked(1, "cat", "yes"), "item_id": "img2"}])

        message = refused("calibrate", "out/", "--marks", "m.csv", "-o", "labels.yaml")

        assert "has the id 'img1', not 'img2': are these the marks of another output?" in message


def marked(index: int, label: str, verdict: str) -> dict[str, str]:
    return {
        "item_index": str(index), "label": label, "verdict": verdict, "purpose": "fit",
        "inclusion_probability": "0.5",
    }  # fmt: skip


def all_scores() -> list[tuple[str, np.ndarray]]:
    rows, _ = two_labels(ROWS)
    pairs = [dict(zip(row["labels"], row["scores"], strict=True)) for row in rows[:-1]]
    return [(label, np.array([one[label] for one in pairs])) for label in LABELS]


class TestCertify:
    def command(self, *words: object) -> tuple[object, ...]:
        return ("certify", "out/", "--labels", "labels.yaml", "--label", "cat", *words)

    def test_a_threshold_is_certified_in_looks_that_are_recorded(self, truth: Truth) -> None:
        labels_file()
        before = run_json(*self.command("--marks", other_marks()), expect=3)["labels"][0]
        assert (before["verdict"], before["n"], before["looks"], before["more_marks"]) == (
            "not yet",
            0,
            [],
            36,
        )
        assert len(table("to_mark.csv")) == 36
        mark_file(Path("to_mark.csv"), truth)
        Path("to_mark.csv").rename("first.csv")

        found = run_json(*self.command("--marks", "first.csv"), expect=None)["labels"][0]

        wrong = sum(row["verdict"] == "no" for row in table("first.csv"))
        assert (found["n"], found["k"], found["looks"]) == (36, wrong, [{"marks": 36, "wrong": wrong}])
        (certificate,) = read_label_set("labels.yaml").certificates
        assert (certificate.label, certificate.verdict, certificate.output) == (
            "cat", found["verdict"], str(Path("out").absolute()),
        )  # fmt: skip

    def test_the_whole_way_to_a_certificate(self, truth: Truth) -> None:
        labels_file()
        files: list[object] = []
        for number in range(4):
            found = run_json(*self.command("--marks", other_marks(), *files), expect=None)["labels"][0]
            if found["verdict"] != "not yet":
                break
            assert len(table("to_mark.csv")) == found["more_marks"]
            name = f"marks-{number}.csv"
            mark_file(Path("to_mark.csv"), truth)
            Path("to_mark.csv").rename(name)
            files += ["--marks", name]

        assert found["verdict"] == "certified"
        assert not Path("to_mark.csv").exists()
        written = Path("labels.yaml").read_text()
        text = run(*self.command("--marks", other_marks(), *files))
        assert f"cat: certified (n={found['n']}, k={found['k']}): precision >= 0.9 at threshold 0.5" in text
        assert "each label separately" in text
        assert Path("labels.yaml").read_text() == written
        assert f"certified (n={found['n']}" in run(*self.command())

    def test_skips_and_disagreements_are_wrong(self, truth: Truth) -> None:
        labels_file()
        rows = table(certify_sample(always, 40))
        rows[0]["verdict"] = "skip"
        write_rows(Path("certify.csv"), [*rows, {**rows[1], "by": "bob", "verdict": "no"}])

        found = run_json(*self.command("--marks", "certify.csv"), expect=3)

        assert (found["labels"][0]["n"], found["labels"][0]["k"]) == (40, 2)
        assert found["disagreements"] == [{"label": "cat", "item_index": int(rows[1]["item_index"])}]

    @pytest.mark.parametrize(
        ("wrong", "expected"),
        [
            ((), ("certified", 40, 0, 1)),
            ((45,), ("certified", 40, 0, 1)),  # further marks take nothing back
            ((5,), ("not yet", 50, 1, 2)),  # a mark that was corrected does
            (range(40, 44), ("certified", 40, 0, 1)),
            (range(25, 50), ("failed", 50, 25, 2)),
        ],
    )
    def test_what_is_certified_stays_so_unless_marks_say_otherwise(
        self, truth: Truth, wrong: Sequence[int], expected: tuple[str, int, int, int]
    ) -> None:
        labels_file()
        run(*self.command("--marks", certify_sample(always, 40)))
        rows = table(certify_sample(always, 50, "more.csv"))
        for place in wrong:
            rows[place]["verdict"] = "no"
        write_rows(Path("more.csv"), rows)

        found = run_json(*self.command("--marks", "more.csv"), expect=None)["labels"][0]

        assert (found["verdict"], found["n"], found["k"], len(found["looks"])) == expected

    def test_a_promise_to_miss_little_is_wrong_where_the_rest_shows_the_label(self, truth: Truth) -> None:
        labels_file(promises={"cat": {"claim": "miss", "value": 0.1}})
        rows = table(certify_sample(lambda index, label: False, 60))
        rows[0]["verdict"] = "yes"
        rows[1]["verdict"] = "skip"
        write_rows(Path("certify.csv"), rows)

        found = run_json(*self.command("--marks", "certify.csv"), expect=None)["labels"][0]

        assert (found["n"], found["k"]) == (60, 2)
        assert found["rows"] == sum(score < 0.5 for score in dict(all_scores())["cat"])

    def test_many_wrong_marks_fail(self, truth: Truth) -> None:
        labels_file()
        certify_sample(lambda index, label: index % 2 == 0, 60)

        text = run(*self.command("--marks", "certify.csv"), expect=3)

        assert "cat: failed: the marks contradict the promise" in text

    def test_marks_with_gaps_spend_no_look_and_name_the_gaps(self, truth: Truth) -> None:
        labels_file()
        rows = table(certify_sample(truth, 60))
        rows[5]["verdict"] = ""
        rows[9]["content_hash"] = "another"
        write_rows(Path("certify.csv"), rows)

        found = run_json(*self.command("--marks", "certify.csv"), expect=3)

        label = found["labels"][0]
        assert (label["verdict"], label["looks"], label["more_marks"]) == ("not yet", [], 2)
        assert [row["item_index"] for row in table("to_mark.csv")] == [
            rows[place]["item_index"] for place in (5, 9)
        ]
        assert found["void"] == [{"mark": "certify.csv:11", "label": "cat"}]
        assert read_label_set("labels.yaml").certificates == ()

    @pytest.mark.parametrize("has_threshold", [True, False])
    def test_marks_drawn_for_another_threshold_are_refused(self, truth: Truth, has_threshold: bool) -> None:
        labels_file()
        rows = table(certify_sample(truth, 60))
        if not has_threshold:
            rows = [{name: value for name, value in row.items() if name != "threshold"} for row in rows]
        write_rows(Path("certify.csv"), rows)
        labels_file(thresholds={"cat": 0.4, "dog": 0.5})

        assert "drawn for another threshold" in refused(*self.command("--marks", "certify.csv"))

    def test_a_half_marked_sample_is_told_from_one_of_another_threshold_by_its_column(
        self, truth: Truth
    ) -> None:
        labels_file()
        half = table(certify_sample(truth, 60))[::2]
        write_rows(Path("half.csv"), half)
        nameless = [{name: value for name, value in row.items() if name != "threshold"} for row in half]
        write_rows(Path("nameless.csv"), nameless)

        found = run_json(*self.command("--marks", "half.csv"), expect=3)["labels"][0]

        assert (found["verdict"], found["more_marks"]) == ("not yet", 29)
        assert "drawn for another threshold" in refused(*self.command("--marks", "nameless.csv"))

    def test_on_another_output_a_certificate_says_where_it_holds(self, truth: Truth, folder: Path) -> None:
        labels_file()
        run(*self.command("--marks", certify_sample(always, 60)))
        rows, _ = two_labels(ROWS)
        other = FolderOutput(folder / "other")
        place_scored_output(other, rows, label_set=multi_set(**OF_THE_SET), job_id="k")

        text = run("certify", "other/", "--labels", "labels.yaml", "--label", "cat", expect=3)

        assert f"cat: certified on {folder / 'out'}, 20" in text
        assert "; not here" in text

    def test_a_certificate_holds_for_the_rows_that_were_tested(
        self, truth: Truth, output: FolderOutput, folder: Path
    ) -> None:
        """The output is rewritten under its job id with twice the rows, as by a retry."""
        labels_file()
        run(*self.command("--marks", certify_sample(always, 60)))
        rewrite(output, folder, two_labels(2 * ROWS)[0])

        text = run(*self.command(), expect=3)
        found = run_json(*self.command("--marks", "certify.csv"), expect=3)["labels"][0]

        assert "the rows have changed since it was tested with 60 marks" in text
        assert (found["verdict"], found["looks"]) == ("not yet", [{"marks": 60, "wrong": 0}])
        assert "the rows have changed since its last look" in found["reason"]
        gaps = table("to_mark.csv")
        assert len(gaps) == found["more_marks"] > 20
        (certificate,) = read_label_set("labels.yaml").certificates
        assert certificate.verdict == "not yet"
        mark_file(Path("to_mark.csv"), always)
        Path("to_mark.csv").rename("gaps.csv")
        again = run_json(*self.command("--marks", "certify.csv", "--marks", "gaps.csv"))["labels"][0]
        assert (again["verdict"], len(again["looks"])) == ("certified", 2)
        assert "cat: certified" in run(*self.command())

    def test_rows_that_do_not_change_the_sample_are_certified_again_with_the_same_marks(
        self, truth: Truth, output: FolderOutput, folder: Path
    ) -> None:
        labels_file()
        run(*self.command("--marks", certify_sample(always, 40)))
        rewrite(output, folder, [*two_labels(ROWS)[0], scored(ROWS + 1, {"cat": 0.9, "dog": 0.1}, 2)])

        assert "cat: not yet" in run(*self.command(), expect=3)
        found = run_json(*self.command("--marks", "certify.csv"))["labels"][0]
        assert (found["verdict"], found["looks"]) == ("certified", [{"marks": 40, "wrong": 0}])
        assert "cat: certified" in run(*self.command())

    def test_images_that_have_changed_withdraw_a_certificate_also_from_the_file(
        self, truth: Truth, output: FolderOutput, folder: Path
    ) -> None:
        labels_file()
        rows = table(certify_sample(always, 40))
        run(*self.command("--marks", "certify.csv"))
        one = int(rows[3]["item_index"])
        scores = two_labels(ROWS)[0]
        rewrite(output, folder, [*scores[:one], {**scores[one], "content_hash": "x"}, *scores[one + 1 :]])

        found = run_json(*self.command("--marks", "certify.csv"), expect=3)["labels"][0]

        assert (found["verdict"], found["more_marks"]) == ("not yet", 1)
        assert [row["item_index"] for row in table("to_mark.csv")] == [str(one)]
        assert "cat: not yet" in run(*self.command(), expect=3)
        mark_file(Path("to_mark.csv"), always)
        Path("to_mark.csv").rename("gap.csv")
        assert "cat: certified" in run(*self.command("--marks", "certify.csv", "--marks", "gap.csv"))
        assert "cat: certified" in run(*self.command())

    def test_a_file_of_marks_that_is_not_given_withdraws_nothing(self, truth: Truth) -> None:
        labels_file()
        rows = table(certify_sample(always, 40))
        run(*self.command("--marks", "certify.csv"))

        found = run_json(*self.command("--marks", write_rows(Path("less.csv"), rows[1:])), expect=3)

        assert found["labels"][0]["verdict"] == "not yet"
        assert "cat: certified" in run(*self.command())

    def test_a_certificate_that_marks_withdraw_is_withdrawn_in_the_file(self, truth: Truth) -> None:
        labels_file()
        rows = table(certify_sample(always, 40))
        run(*self.command("--marks", "certify.csv"))
        rows[5]["verdict"] = "no"
        write_rows(Path("certify.csv"), rows)

        run(*self.command("--marks", "certify.csv"), expect=3)

        (certificate,) = read_label_set("labels.yaml").certificates
        assert (certificate.verdict, [look.marks for look in certificate.looks]) == ("not yet", [40])
        assert "cat: not yet" in run(*self.command(), expect=3)

    def test_a_job_that_has_not_finished_is_not_certified(
        self, truth: Truth, output: FolderOutput, folder: Path
    ) -> None:
        labels_file()
        certify_sample(truth, 60)
        (folder / "out" / objects.SUCCESS).unlink()

        assert "the job has not finished: certify when it has" in refused(
            *self.command("--marks", "certify.csv")
        )

    def test_jointly_takes_more_marks(self, truth: Truth) -> None:
        labels_file()

        alone = run_json("certify", "out/", "--labels", "labels.yaml", expect=3)["labels"]
        both = run_json("certify", "out/", "--labels", "labels.yaml", "--jointly", expect=3)["labels"]

        assert [one["more_marks"] for one in alone] == [36, 36]
        expected = math.ceil(math.log(0.05 / 2 / 2) / math.log(0.9))
        assert [(one["more_marks"], one["labels_jointly"]) for one in both] == [(expected, 2)] * 2

    def test_the_confidence_is_said_of_the_labels_that_it_holds_for(self, truth: Truth) -> None:
        labels_file()
        run(*self.command("--marks", certify_sample(always, 60)))

        text = run("certify", "out/", "--labels", "labels.yaml", "--jointly", expect=3)

        assert "cat: each label separately: the confidence holds for each" in text
        assert "dog: jointly: the confidence holds for all 2 labels tested together" in text

    def test_fit_marks_test_nothing_and_a_fit_sample_is_not_removed(self, truth: Truth) -> None:
        labels_file()
        run(*self.command("--marks", certify_sample(always, 60)))
        run("sample", "out/", "--purpose", "fit", "-o", "to_mark.csv")

        result = CliRunner().invoke(app, [str(word) for word in self.command("--marks", other_marks())])

        assert "the files hold no certify marks of these labels" in " ".join(result.stderr.split())
        assert {row["purpose"] for row in table("to_mark.csv")} == {"fit"}

    def test_spent_looks_bind_their_terms(self, truth: Truth) -> None:
        labels_file()
        marks = certify_sample(truth, 60)
        run(*self.command("--marks", marks), expect=None)
        fewer = write_rows(Path("fewer.csv"), table(marks)[:50])

        assert "was tested with confidence 0.95" in refused(
            *self.command("--marks", marks, "--confidence", 0.9)
        )
        assert "was tested with 60 marks, and 50 are given" in refused(*self.command("--marks", fewer))
        label_set = read_label_set("labels.yaml")
        labels_file(promises={"cat": {**PRECISION, "value": 0.8}}, certificates=label_set.certificates)
        assert "'cat' was tested for precision 0.9: restore this promise" in refused(*self.command())

    @pytest.mark.parametrize(
        ("change", "problem"),
        [
            ({"promises": {"dog": PRECISION}}, "labels.yaml: 'cat' has no promise to test"),
            ({"background": ("a thing",)}, "labels.yaml: its `background` is not that of"),
            ({"background": (*DEFAULT_BACKGROUND, "x")}, "labels.yaml: its `background` is not that of"),
            ({"templates": ("{}",)}, "labels.yaml: its `templates` is not that of"),
            ({"not_prompts": {"cat": ("a lion",)}}, "labels.yaml: its `not` is not that of"),
        ],
    )
    def test_a_label_set_that_is_not_that_of_the_rows_is_refused(
        self, truth: Truth, change: dict[str, Any], problem: str
    ) -> None:
        labels_file(**change)

        assert problem in refused(*self.command())

    def test_other_names_of_labels_are_refused(self, truth: Truth) -> None:
        Path("labels.yaml").write_text("kind: multi\nlabels: [cat, cow]\n")
        assert "its `labels` is not that of" in refused(*self.command())
        Path("labels.yaml").write_text("labels: [cat, dog]\n")
        assert "labels.yaml: no thresholds" in refused(*self.command())
        labels_file()
        assert "there is no label 'cow' in labels.yaml; it has cat, dog" in refused(
            *self.command("--label", "cow")
        )


def other_marks() -> Path:
    """A file of marks that say nothing on a certificate."""
    return write_rows(Path("other-marks.csv"), [marked(1, "cat", "yes")])


class TestOutputs:
    """Rows that hold no scores to mark by."""

    def sample(self, *words: str) -> str:
        return refused("sample", "out/", "--purpose", "fit", *words)

    def test_a_softmax(self, output: FolderOutput) -> None:
        place_scored_output(
            output, [scored(0, {"cat": 0.9, "dog": 0.1}, 2)], label_set=LabelSet(labels=LABELS)
        )

        assert "are a softmax, which has no thresholds: classify with `multi=True`" in self.sample()

    def test_several_label_sets(self, output: FolderOutput) -> None:
        scores = {"cat": 0.9, "dog": 0.1}
        row = scored(0, scores, 2, labels_b=["dog", "cat"], scores_b=[0.7, 0.4])
        sets = (multi_set(name="a"), multi_set(name="b"))
        row |= {"labels_a": row["labels"], "scores_a": row["scores"]}
        place_scored_output(output, [row], label_sets=sets)

        assert "several label sets: choose one with `set=`: a, b" in self.sample()
        assert "no label set 'c'; it has a, b" in self.sample("--set", "c")
        for name, score in (("a", "0.1"), ("b", "0.7")):
            text = run("sample", "out/", "--purpose", "fit", "--set", name, "--label", "dog")
            (drawn,) = csv.DictReader(text.splitlines())
            assert drawn["score"] == score

    def test_a_label_set_for_each_item(self, output: FolderOutput) -> None:
        rows = [
            scored(0, {"cat": 0.9, "dog": 0.1}, 2, kind="a"),
            scored(1, {"red": 0.9, "blue": 0.1}, 2, kind="b"),
        ]
        place_scored_output(
            output, rows, label_sets=(multi_set(name="a"), multi_set(("red", "blue"), name="b")),
            label_set_column="kind",
            source=SourceDescription(kind="csv", uri="/list.csv", extra_columns=("kind",)),
        )  # fmt: skip

        text = run("sample", "out/", "--purpose", "fit", "--set", "b", "--label", "red")

        assert [row["item_index"] for row in csv.DictReader(text.splitlines())] == ["1"]

    def test_rows_that_share_the_largest_score_are_counted(self, output: FolderOutput) -> None:
        rows = [
            scored(index, {"cat": LARGEST_SCORE if index < 5 else 0.3, "dog": 1 - index / 100}, 2)
            for index in range(100)
        ]
        place_scored_output(output, rows)
        marks = [marked(index, "cat", "yes" if index < 5 else "no") for index in range(10)]
        write_rows(Path("m.csv"), marks)

        for words in (
            ("sample", "out/", "--purpose", "fit"),
            ("calibrate", "out/", "--marks", "m.csv", "-o", "l.yaml"),
        ):
            said = " ".join(CliRunner().invoke(app, words).stderr.split())
            assert "share the largest score, as many of 100 rows do: cat (5); classify again with" in said
        found = run_json("calibrate", "out/", "--marks", "m.csv", "-o", "l.yaml")
        assert [one["saturated"] for one in found["labels"]] == [5, 1]

    @pytest.mark.parametrize(
        ("rows", "problem"),
        [
            ([scored(3, {"cat": math.nan, "dog": 0.1}, 2)], "item 3 has a score that is not a number"),
            ([scored(3, {"cat": 0.3, "cow": 0.1}, 2)], "item 3 has a label that its label set lacks"),
            ([scored(3, {}, 2)], "item 3 has no scores"),
            (
                [scored(0, {"cat": 0.3}, 2), scored(1, {"cat": 0.3}, 2, model_fingerprint="other")],
                "its rows are of several models",
            ),
            ([failed(0)], "no row has scores"),
            ([scored(7, {"cat": 0.3}, 2)] * 2, "out: item 7 has several rows"),
        ],
    )
    def test_rows_that_are_not_sound(
        self, output: FolderOutput, rows: list[dict[str, Any]], problem: str
    ) -> None:
        place_scored_output(output, rows)

        with pytest.raises(ClipfleetError, match=problem):
            run("sample", "out/", "--purpose", "fit")

    def test_a_label_outside_the_top_k_that_may_reach_the_threshold(self, output: FolderOutput) -> None:
        rows = [scored(index, {"cat": 0.9, "dog": 0.8}, 1) for index in range(3)]
        place_scored_output(output, rows, label_set=multi_set(**OF_THE_SET), top_k=1)
        labels_file(thresholds={"cat": 0.5, "dog": 0.95})

        words = ("sample", "out/", "--purpose", "certify", "--labels", "labels.yaml", "--label", "dog")
        assert run(*words).count("\n") == 1  # the header: at most 0.9, all are below 0.95
        labels_file(thresholds={"cat": 0.5, "dog": 0.85})
        assert "3 of 3 rows lack the score of 'dog'" in refused(*words)
        write_rows(Path("m.csv"), [marked(0, "cat", "yes"), marked(1, "dog", "no")])
        assert (
            "1 of 3 rows lack the score of 'dog', which is not among their best 1: classify with 2"
            in refused("calibrate", "out/", "--marks", "m.csv", "-o", "new.yaml")
        )


def test_label_studio_marks_what_a_sample_asks(truth: Truth) -> None:
    """The rows of a sample, imported as tasks and answered."""
    run("sample", "out/", "--purpose", "fit", "-n", 60, "-o", "fit.csv")
    rows = mark_file(Path("fit.csv"), truth)
    tasks = [{"data": {**row, "verdict": ""}, "annotations": [annotation([row["verdict"]])]} for row in rows]
    Path("project.json").write_text(json.dumps(tasks))

    from_csv = run_json("calibrate", "out/", "--marks", "fit.csv", "-o", "a.yaml")
    from_tasks = run_json("calibrate", "out/", "--marks", "project.json", "-o", "b.yaml")

    assert from_tasks["labels"] == from_csv["labels"]
    assert Path("b.yaml").read_text() == Path("a.yaml").read_text()


def test_label_studio_answers_for_all_labels_of_images(truth: Truth) -> None:
    tasks = [
        {
            "data": {"image": f"/p/{index}.jpg"},
            "annotations": [annotation([label for label in LABELS if truth(index, label)])],
        }
        for index in range(50)
    ]
    Path("project.json").write_text(json.dumps(tasks))

    found = run_json("calibrate", "out/", "--marks", "project.json", "-o", "labels.yaml")

    assert [(one["marks"], one["yes"]) for one in found["labels"]] == [
        (50, sum(truth(index, label) for index in range(50))) for label in LABELS
    ]
    Path("project.json").write_text(
        json.dumps([{"data": {"image": "x.jpg"}, "annotations": [annotation([])]}])
    )
    assert "project.json: task 1: " in refused("calibrate", "out/", "--marks", "project.json", "-o", "c.yaml")


def annotation(choices: list[str]) -> dict[str, Any]:
    result = {"type": "choices", "value": {"choices": choices}}
    return {"result": [result] if choices else [], "was_cancelled": False, "completed_by": 1}
