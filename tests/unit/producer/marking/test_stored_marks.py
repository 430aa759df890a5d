"""`clipfleet marks import`: marks are checked against the rows, and kept beside them for ever."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from clipfleet.commands import app
from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.errors import ClipfleetError, UsageError
from clipfleet.exports import Layout, export
from clipfleet.marking.stored import stored_marks
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from tests.support.jobs import make_job, place_job
from tests.support.marked_outputs import multi_set, place_scored_output, scored
from tests.support.rows import add_part, classified, failed

pytestmark = pytest.mark.usefixtures("folder")

SET = multi_set(name="pets")
FILE = Path("marks.jsonl")


@pytest.fixture(autouse=True)
def _rows(output: FolderOutput) -> None:
    scores = {"cat": 0.75, "dog": 0.25}
    place_scored_output(output, [*(scored(index, scores, 2) for index in range(3)), failed(3)], label_set=SET)


def mark(index: int | None = 0, label: str = "cat", verdict: str = "yes", **values: Any) -> dict[str, Any]:
    base = {"item_index": index, "label": label, "verdict": verdict, "purpose": "fit"}
    return {**base, "inclusion_probability": 1.0, **values}


def write(*marks: dict[str, Any], to: Path = FILE) -> Path:
    to.write_text("".join(json.dumps(one) + "\n" for one in marks))
    return to


def run(*words: object) -> dict[str, Any]:
    result = CliRunner().invoke(app, ["marks", "import", *map(str, words), "--job", "out/", "--json"])
    if isinstance(result.exception, ClipfleetError):
        raise result.exception
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def refused(*words: object) -> str:
    with pytest.raises(UsageError) as raised:
        run(*words)
    assert not Path("out/_marks").exists()
    return str(raised.value)


def stored(output: FolderOutput) -> list[dict[str, Any]]:
    """The lines of all files, in the order in which they count."""
    names = list(output.names("_marks/"))
    return [json.loads(line) for name in names for line in (output.read(name) or b"").splitlines()]


class TestFiles:
    def test_a_mark_is_kept_with_what_names_its_item(self, output: FolderOutput) -> None:
        write(mark(None, uri="/p/1.jpg", verdict="No", by="ann"), mark(2, "dog"))

        found = run(FILE)

        assert stored(output) == [
            mark(1, verdict="no", by="ann", label_set="pets", item_id="img1", uri="/p/1.jpg",
                 content_hash="hash1"),
            mark(2, "dog", label_set="pets", item_id="img2", uri="/p/2.jpg", content_hash="hash2"),
        ]  # fmt: skip
        assert re.fullmatch(r"_marks/\d{13,}-[0-9a-f]{16}\.jsonl", found["file"])
        assert (found["is_new"], found["marks"], found["items"]) == (True, 2, 2)
        assert [one.label_set for one in stored_marks(PartRows(output))] == ["pets", "pets"]

    def test_the_same_marks_are_stored_once(self, output: FolderOutput) -> None:
        first = run(write(mark()))
        write(mark(label="dog"), to=Path("other.jsonl"))
        second = run("other.jsonl")

        again = run(FILE)

        assert (again["file"], again["is_new"]) == (first["file"], False)
        assert list(output.names("_marks/")) == [first["file"], second["file"]]

    def test_within_an_import_the_latest_is_last(self, output: FolderOutput) -> None:
        times = ("2026-12-02T00:00:00Z", "2026-12-01T00:00:00Z", None)
        run(write(*(mark(index, at=at) for index, at in enumerate(times))))

        assert [one["item_index"] for one in stored(output)] == [2, 1, 0]

    def test_a_stored_file_is_a_file_of_marks(self, output: FolderOutput) -> None:
        name = run(write(mark()))["file"]

        assert not run(output.uri + "/" + name)["is_new"]

    def test_a_mark_on_another_image_is_void(self, output: FolderOutput) -> None:
        found = run(write(mark(0, content_hash="other"), mark(1)))

        assert [one["item_index"] for one in stored(output)] == [1]
        assert [one["mark"] for one in found["void"]] == ["marks.jsonl:1"]


class TestRefused:
    @pytest.mark.parametrize(
        ("one", "words"),
        [
            (mark(9), "marks.jsonl:1: {out} has no item 9"),
            (mark(3), "marks.jsonl:1: item 3 of {out} failed, so it has no scores"),
            (mark(label="cow"), "marks.jsonl:1: there is no label 'cow' in the label set 'pets' of {out}"),
            (mark(label_set="farm"), "marks.jsonl:1: {out} has no label set 'farm'; it has pets"),
            (mark(verdict=""), "marks.jsonl: no marks that hold for {out}: nothing to store"),
        ],
    )
    def test_what_does_not_fit_the_rows(self, output: FolderOutput, one: dict[str, Any], words: str) -> None:
        assert refused(write(one)) == words.format(out=output.uri)

    def test_an_unknown_label_set(self, output: FolderOutput) -> None:
        words = f"{output.uri}: its job has no label set 'farm'; it has pets"
        assert refused(write(mark()), "--set", "farm") == words

    def test_rows_in_redis(self) -> None:
        class InRedis:
            uri = "redis:// (job j)"

        from clipfleet.marking.stored import marks_place

        with pytest.raises(
            UsageError, match=r"redis:// \(job j\): marks are stored beside the rows of a job"
        ):
            marks_place(InRedis())  # type: ignore[arg-type]


class TestLabelStudio:
    """What comes back from a project that `export` wrote."""

    def project(self, output: FolderOutput) -> list[dict[str, Any]]:
        export(PartRows(output), Layout.LABEL_STUDIO, Path("project"))
        tasks: list[dict[str, Any]] = json.loads(Path("project/tasks.json").read_text())
        return tasks

    def annotated(self, task: dict[str, Any], **chosen: list[str]) -> dict[str, Any]:
        results = [
            {"from_name": name, "to_name": "image", "type": "choices", "value": {"choices": labels}}
            for name, labels in chosen.items()
        ]
        return {**task, "annotations": [{"result": results, "completed_by": 7}]}

    def write(self, tasks: list[dict[str, Any]]) -> Path:
        Path("back.json").write_text(json.dumps(tasks))
        return Path("back.json")

    def test_each_label_of_a_multi_set_has_a_verdict(self, output: FolderOutput) -> None:
        first, second, third = self.project(output)
        back = [
            self.annotated(first, pets=["dog", "cat"]),
            self.annotated(second),
            {**third, "annotations": []},
        ]

        run(self.write(back))

        assert {(one["purpose"], one["inclusion_probability"]) for one in stored(output)} == {
            ("correct", None)
        }
        found = [(one["item_index"], one["label"], one["verdict"], one["by"]) for one in stored(output)]
        assert found == [
            (0, "cat", "yes", "7"),
            (0, "dog", "yes", "7"),
            (1, "cat", "no", "7"),
            (1, "dog", "no", "7"),
        ]

    def test_of_single_sets_the_chosen_label_is_kept_with_its_set(
        self, output: FolderOutput, folder: Path
    ) -> None:
        sets = tuple(LabelSet(name=name, labels=("cat", "dog")) for name in ("first", "second"))
        assert {one.kind for one in sets} == {LabelKind.SINGLE}
        output = FolderOutput(folder / "two")
        place_job(output, make_job(output.uri, task="classify", label_sets=sets))
        one = classified(4)
        one |= {
            f"{name}_{own.name}": one[name] for own in sets for name in ("label", "score", "labels", "scores")
        }
        add_part(output, 0, [one], label_sets=("first", "second"))
        (task,) = self.project(output)
        back = self.write([self.annotated(task, first=["cat"], second=["dog"])])

        words = ["marks", "import", str(back), "--job", "two/"]
        result = CliRunner().invoke(app, words)

        assert result.exit_code == 0, result.output
        found = [(one["label_set"], one["label"], one["verdict"]) for one in stored(output)]
        assert found == [("first", "cat", "yes"), ("second", "dog", "yes")]
        with pytest.raises(UsageError, match="several label sets: choose one with `set=`: first, second"):
            CliRunner().invoke(app, ["marks", "import", str(write(mark(4))), "--job", "two/"],
                               catch_exceptions=False)  # fmt: skip

    def test_the_project_of_another_job_is_refused(self, output: FolderOutput) -> None:
        first, *_ = self.project(output)
        first["data"]["label_sets"] = ["farm"]

        words = refused(self.write([self.annotated(first, farm=["cow"])]))

        lacks = f"which {output.uri} does not have; it has pets"
        assert words == f"back.json: its tasks ask for the label set 'farm', {lacks}"

    def test_a_control_that_was_renamed_there_is_refused(self, output: FolderOutput) -> None:
        first, *_ = self.project(output)

        words = refused(self.write([self.annotated(first, tags=["cat"])]))

        assert "back.json: task 1: its answers are of the control 'tags': name the controls as in" in words

    def test_a_control_that_was_added_there_is_ignored(self, output: FolderOutput) -> None:
        first, *_ = self.project(output)

        run(self.write([self.annotated(first, pets=["cat"], quality=["good"])]))

        assert [(one["label"], one["verdict"]) for one in stored(output)] == [("cat", "yes"), ("dog", "no")]

    def test_a_label_that_was_added_there_is_refused(self, output: FolderOutput) -> None:
        first, *_ = self.project(output)

        words = refused(self.write([self.annotated(first, pets=["cow"])]))

        assert words == f"back.json: task 1: there is no label 'cow' in the label set 'pets' of {output.uri}"
