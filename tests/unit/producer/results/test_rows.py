"""How rows are read back from parts, and what the exports look like."""

from __future__ import annotations

import csv
import io
import json
import os
import re
import sys
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from clipfleet.contract.columns import label_columns
from clipfleet.contract.jobs import Job, SourceDescription, Task
from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.contract.parts import PartCounts, PartIdentity, part_schema
from clipfleet.errors import (
    OutputConflictError,
    OutputDamagedError,
    OutputUnavailableError,
    OutputUnreachableError,
    ResultsNotReadyError,
    UsageError,
)
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results import formats as result_formats
from clipfleet.results import rows as results
from clipfleet.results.kinds import ResultFormat
from clipfleet.results.part_rows import PartRows
from clipfleet_worker.sinks.parts import PartSink
from tests.support.ledger import make_job
from tests.support.rows import accepting, add_part, classified, embedded, failed, note_manifest, row


class Terminal(io.BytesIO):
    def isatty(self) -> bool:
        return True


def export(
    output: FolderOutput, form: ResultFormat, limit: int | None = None, stream: io.BytesIO | None = None
) -> bytes:
    stream = stream or io.BytesIO()
    count = result_formats.write(PartRows(output), form, stream, limit=limit)
    assert not stream.closed
    assert count >= 0
    return stream.getvalue()


def note_job(output: FolderOutput, **changes: Any) -> None:
    job = make_job("j", output=output.uri)
    output.create(objects.JOB_FILE, Job.model_validate(dict(job) | changes).model_dump_json().encode())


@pytest.fixture
def finished(output: FolderOutput) -> FolderOutput:
    """Three parts of an embed job, the first one given up before the model was known; not in order."""
    add_part(output, 2, [embedded(4, 0.25, -1.0)])
    add_part(output, 0, [failed(0), failed(1)], dimension=1)
    add_part(output, 1, [embedded(2, 0.1, 1.0), failed(3)])
    note_manifest(output, [objects.LAYOUT.part(chunk_id) for chunk_id in range(3)])
    output.create(objects.LAYOUT.errors, b"")
    return output


class TestWholeness:
    """A job that was finished has the parts of its manifest, and no others."""

    @pytest.mark.parametrize(
        ("gone", "words"),
        [
            ([1], r"part-00000001\.parquet is listed in _manifest\.json but missing: `clipfleet retry"),
            ([0, 2], r"part-00000000\.parquet and 1 more are listed"),
            ([0, 1, 2], r"part-00000000\.parquet and 2 more are listed"),
        ],
    )
    @pytest.mark.parametrize("has_job", [False, True])
    def test_a_missing_part_is_named(self, finished: Any, gone: list[int], words: str, has_job: bool) -> None:
        if has_job:
            note_job(finished)
        for chunk_id in gone:
            finished.remove(objects.LAYOUT.part(chunk_id))

        with pytest.raises(OutputDamagedError, match=words):
            PartRows(finished).read()

    def test_a_part_that_no_manifest_lists_is_refused_by_its_name(self, finished: FolderOutput) -> None:
        add_part(finished, 7, [embedded(9, 1.0, 1.0)])

        with pytest.raises(OutputDamagedError, match=r"part-00000007\.parquet is not listed in _manifest"):
            PartRows(finished).read()

    def test_a_part_of_another_job_is_refused_before_the_job_is_finished(self, output: FolderOutput) -> None:
        note_job(output, job_id="other")
        rows = pa.Table.from_pylist([embedded(0, 1.0, 1.0)], part_schema(2))
        PartSink(output).write(PartIdentity("before", 0, 0), rows, PartCounts(1, 0, {}))

        with pytest.raises(OutputDamagedError, match=r"part-00000000\.parquet belongs to job before, not"):
            PartRows(output).read()

    def test_the_manifest_of_the_job_before_says_nothing(self, output: FolderOutput) -> None:
        note_manifest(output, [objects.LAYOUT.part(5)], job_id="before")
        note_job(output)
        add_part(output, 0, [embedded(0, 1.0, 1.0)])

        assert len(list(results.rows(PartRows(output)))) == 1


NUMBERS = st.sampled_from([0.0, -0.5, 1.25, 65504.0, -(2.0**-24)])  # as float16 holds them
VECTORS = st.none() | st.lists(NUMBERS, min_size=3, max_size=3)  # of an item: None where it failed


class TestReading:
    @settings(deadline=None, max_examples=40)
    @given(parts=st.lists(st.lists(VECTORS, min_size=1, max_size=4), min_size=1, max_size=5), data=st.data())
    def test_rows_and_vectors_come_in_the_order_of_the_source(
        self, tmp_path_factory: pytest.TempPathFactory, parts: list[list[list[float] | None]], data: Any
    ) -> None:
        """A part without a vector may have been written before anybody knew the length of one."""
        output, is_fixed = FolderOutput(tmp_path_factory.mktemp("out")), data.draw(st.booleans())
        expected: list[dict[str, Any]] = []
        for chunk_id, vectors in data.draw(st.permutations(list(enumerate(parts)))):
            first = sum(map(len, parts[:chunk_id]))
            rows = [failed(n) if one is None else embedded(n, *one) for n, one in enumerate(vectors, first)]
            dimension = 3 if any(vectors) else data.draw(st.sampled_from([1, 3]))
            add_part(output, chunk_id, rows, dimension=dimension, is_fixed=is_fixed)
            expected += rows
        expected.sort(key=lambda one: one["item_index"])

        batches = list(PartRows(output).read().batches)
        indexes, matrix = results.vectors(PartRows(output))

        assert list(results.rows(PartRows(output))) == expected
        assert all(batch.schema.equals(batches[0].schema) for batch in batches)
        made = [one for one in expected if one["embedding"] is not None]
        assert indexes.tolist() == [one["item_index"] for one in made]
        assert (indexes.dtype, matrix.dtype) == (np.int64, np.float16)
        assert matrix.tolist() == [one["embedding"] for one in made]

    def test_extra_columns_are_kept_and_missing_ones_are_null(self, output: FolderOutput) -> None:
        add_part(output, 0, [{**failed(0), "zip": "007"}], extra=["zip"])
        add_part(output, 1, [failed(1)])

        assert [one["zip"] for one in results.rows(PartRows(output))] == ["007", None]

    @pytest.mark.parametrize("has_job", [True, False])
    def test_without_a_part_there_are_no_results_yet(self, output: FolderOutput, has_job: bool) -> None:
        if has_job:
            output.create(objects.JOB_FILE, b"{}")
        output.create("part-notes.txt", b"")
        stream = io.BytesIO()

        def write(rows: PartRows) -> None:
            result_formats.write(rows, ResultFormat.CSV, stream)

        for call in (PartRows.read, results.rows, results.vectors, write):
            with pytest.raises(ResultsNotReadyError, match="no results yet") as caught:
                call(PartRows(output))  # at once, not at the first row
            assert ("no job has this output" in str(caught.value)) is not has_job
        assert stream.getvalue() == b""

    def test_a_part_that_is_removed_meanwhile(self, finished: FolderOutput) -> None:
        batches = PartRows(finished).read().batches
        next(batches)
        finished.remove(objects.LAYOUT.part(2))

        with pytest.raises(OutputUnavailableError, match=r"part-00000002\.parquet: was removed"):
            list(batches)

    def test_a_damaged_part_is_named(self, finished: FolderOutput) -> None:
        finished.replace(objects.LAYOUT.part(2), b"PAR1 but nothing else")

        with pytest.raises(OutputUnreachableError, match=r"part-00000002\.parquet: damaged"):
            list(results.rows(PartRows(finished)))

    def test_a_few_parts_are_read_ahead(self, output: FolderOutput, monkeypatch: pytest.MonkeyPatch) -> None:
        opened: list[pa.NativeFile] = []
        original = output.open
        monkeypatch.setattr(output, "open", lambda name: opened.append(original(name)) or opened[-1])
        for chunk_id in range(40):
            add_part(output, chunk_id, [embedded(chunk_id, 0.0, 1.0)])
        stored = PartRows(output).read()
        opened.clear()

        for taken, _ in enumerate(stored.batches, 1):
            assert len(opened) <= (1 if taken == 1 else taken + 7)
        assert len(opened) == 40
        assert all(file.closed for file in opened)

    @pytest.mark.parametrize("in_one_part", [True, False])
    def test_vectors_of_other_lengths_make_no_matrix(self, output: FolderOutput, in_one_part: bool) -> None:
        rows = [embedded(0, 0.5, 1.0), embedded(1, 0.25, -1.0, 0.0)]
        for chunk_id, group in enumerate([rows] if in_one_part else [rows[:1], rows[1:]]):
            add_part(output, chunk_id, group, is_fixed=False)

        with pytest.raises(OutputConflictError, match="differ in length"):
            results.vectors(PartRows(output))

    def test_parts_whose_vectors_differ_in_length_are_an_error(self, output: FolderOutput) -> None:
        add_part(output, 0, [embedded(0, 1.0, 0.0)])
        add_part(output, 1, [embedded(1, 1.0, 0.0, 0.0)], dimension=3)

        with pytest.raises(OutputConflictError, match=r"part-00000001\.parquet.*another model"):
            list(results.rows(PartRows(output)))

    def test_without_numpy_the_way_out_is_named(self, finished: FolderOutput, monkeypatch: Any) -> None:
        monkeypatch.setitem(sys.modules, "numpy", None)

        with pytest.raises(UsageError, match=r"pip install 'clipfleet\[analysis\]'"):
            results.vectors(PartRows(finished))


class TestExports:
    @pytest.fixture
    def labelled(self, output: FolderOutput) -> FolderOutput:
        note = 'a, "b"\nc \u732b'
        add_part(output, 0, [{**classified(0), "note": note}, {**failed(1), "note": ""}], extra=["note"])
        add_part(output, 1, [{**classified(2), "note": "[bold]x"}], extra=["note"])
        return output

    def test_jsonl_is_one_object_per_row(self, labelled: FolderOutput) -> None:
        lines = export(labelled, ResultFormat.JSONL).decode().splitlines()

        assert [json.loads(line) for line in lines] == list(results.rows(PartRows(labelled)))
        assert "\u732b" in lines[0]

    def test_csv_holds_lists_as_json(self, labelled: FolderOutput) -> None:
        text = export(labelled, ResultFormat.CSV).decode()

        found = list(csv.DictReader(io.StringIO(text)))
        assert [one["item_index"] for one in found] == ["0", "1", "2"]
        assert json.loads(found[0]["labels"]) == ["cat", "dog"]
        assert found[0]["note"] == 'a, "b"\nc \u732b'
        assert found[1]["labels"] == found[1]["embedding"] == found[1]["label"] == ""
        assert found[1]["error_code"] == "not_found"

    def test_parquet_is_one_file_with_the_schema_of_the_parts(self, finished: FolderOutput) -> None:
        table = pq.read_table(pa.BufferReader(export(finished, ResultFormat.PARQUET)))

        assert table.schema.equals(part_schema(2))
        assert table.to_pylist() == list(results.rows(PartRows(finished)))

    def test_parquet_groups_small_parts(self, output: FolderOutput, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(result_formats, "_GROUP_ROWS", 8)
        for chunk_id in range(10):
            add_part(output, chunk_id, [embedded(3 * chunk_id + number, 0.0, 1.0) for number in range(3)])

        found = pq.read_metadata(pa.BufferReader(export(output, ResultFormat.PARQUET)))

        assert [found.row_group(number).num_rows for number in range(found.num_row_groups)] == [9, 9, 9, 3]

    @pytest.mark.parametrize("form", list(ResultFormat))
    def test_every_format_can_go_to_a_pipe(self, labelled: FolderOutput, form: ResultFormat) -> None:
        reading, writing = os.pipe()
        with os.fdopen(reading, "rb") as reader:
            with os.fdopen(writing, "wb") as writer:
                result_formats.write(PartRows(labelled), form, writer)
            assert len(reader.read()) > 50

    @pytest.mark.parametrize("form", [ResultFormat.JSONL, ResultFormat.CSV, ResultFormat.PARQUET])
    @pytest.mark.parametrize(("limit", "rows"), [(0, 0), (1, 1), (2, 2), (3, 3), (99, 3), (None, 3)])
    def test_a_limit_counts_rows(self, labelled: Any, form: ResultFormat, limit: Any, rows: int) -> None:
        assert result_formats.write(PartRows(labelled), form, io.BytesIO(), limit=limit) == rows

    def test_a_limit_reads_no_more_parts_than_it_needs(self, finished: FolderOutput) -> None:
        finished.replace(objects.LAYOUT.part(2), b"damaged, but not needed")

        assert result_formats.write(PartRows(finished), ResultFormat.JSONL, io.BytesIO(), limit=4) == 4

    def test_the_table_shows_labels_and_errors(self, labelled: FolderOutput) -> None:
        words = export(labelled, ResultFormat.TABLE).decode().split()
        assert {"label", "cat", "0.750", "not_found:"} <= {*words}

    def test_the_table_shows_what_is_accepted_or_that_nothing_is(self, output: FolderOutput) -> None:
        several = LabelSet(labels=("cat", "dog"), kind=LabelKind.MULTI)
        rows = [accepting(0, "dog", "cat"), accepting(1), failed(2), accepting(3, *"abcde")]
        note_job(output, task=Task.CLASSIFY, label_sets=(several,))
        add_part(output, 0, rows, accepted=["accepted"])

        text = export(output, ResultFormat.TABLE).decode()

        assert re.search(r"ok +dog, cat +0\.750", text)
        assert re.search(r"ok +none \(best: (cat|dog)\) +0\.500", text)
        assert re.search(r"ok +a, b, c and 2 more +0\.750", text)
        assert re.search(r"failed +not_found", text)

    def test_in_the_table_a_row_has_one_label_of_a_single_set(self, output: FolderOutput) -> None:
        single = LabelSet(name="single", labels=("cat", "dog"), none=True)
        several = LabelSet(name="several", labels=("cat", "dog"), kind=LabelKind.MULTI)
        row = accepting(0, "dog", "cat")
        columns = {f"{name}_{one}": row[name] for name in row for one in ("single", "several")}
        note_job(output, task=Task.CLASSIFY, label_sets=(single, several))
        accepted = ["accepted", "accepted_single", "accepted_several"]
        add_part(output, 0, [row | columns], label_sets=["single", "several"], accepted=accepted)
        assert re.search(r"ok +dog 0\.750 +dog, cat 0\.750", export(output, ResultFormat.TABLE).decode())

    def test_in_the_table_a_row_has_the_labels_of_the_kind_of_set_that_it_names(
        self, output: FolderOutput
    ) -> None:
        single = LabelSet(name="single", labels=("cat", "dog"), none=True)
        several = LabelSet(name="several", labels=("cat", "dog"), kind=LabelKind.MULTI)
        source = SourceDescription(kind="csv", uri="/l.csv", extra_columns=("set",))
        note_job(
            output,
            task=Task.CLASSIFY,
            label_sets=(single, several),
            label_set_column="set",
            source=source,
        )
        rows = [accepting(n, "dog", "cat") | {"set": name} for n, name in enumerate(("single", " several "))]
        add_part(output, 0, rows, accepted=["accepted"], extra=["set"])

        text = export(output, ResultFormat.TABLE).decode()

        assert re.search(r"0 .* ok +dog +0\.750", text)
        assert re.search(r"1 .* ok +dog, cat +0\.750", text)

    def test_the_table_of_a_classify_job_has_labels_also_where_all_rows_failed(
        self, output: FolderOutput
    ) -> None:
        note_job(output, task=Task.CLASSIFY, label_sets=(LabelSet(labels=("cat", "dog")),))
        add_part(output, 0, [failed(0), failed(1)])

        heading = export(output, ResultFormat.TABLE).decode().splitlines()[0]

        assert heading.split() == ["index", "id", "status", "label", "score", "error"]

    def test_the_table_shows_the_length_of_vectors(self, finished: FolderOutput) -> None:
        assert " 2 numbers " in export(finished, ResultFormat.TABLE).decode()

    @pytest.mark.parametrize(("columns", "shown"), [("120", 3), ("74", 2), ("50", 1)])
    def test_the_table_has_a_column_for_each_label_set_as_far_as_there_is_room(
        self, output: FolderOutput, monkeypatch: pytest.MonkeyPatch, columns: str, shown: int
    ) -> None:
        monkeypatch.setenv("COLUMNS", columns)
        sets = ["animals", "colours", "moods"]
        label_sets = tuple(LabelSet(name=name, labels=("x", "y")) for name in sets)
        note_job(output, task=Task.CLASSIFY, label_sets=label_sets)
        answers: dict[str, Any] = {}
        for name in sets:
            answers |= zip(label_columns(name), (name[:3], 0.5, ["a"], [0.5]), strict=True)
        add_part(output, 0, [{**classified(0), **answers}, failed(1)], label_sets=sets)

        styled = export(output, ResultFormat.TABLE, stream=Terminal()).decode()
        heading, _, first, *rest = re.sub(r"\x1b\[\d*m", "", styled).splitlines()

        assert heading.split() == ["index", "id", "status", *sets[:shown], "error"]
        assert [name for name in sets if f"{name[:3]} 0.500" in first] == sets[:shown]
        note = " ".join(" ".join(rest).split())
        assert ("not shown: " in note) == (shown < 3)
        assert shown == 3 or f"not shown: {', '.join(sets[shown:])}; widen" in note

    def test_in_a_pipe_each_row_is_one_line_whatever_the_width(
        self, output: FolderOutput, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("COLUMNS", "40")
        add_part(output, 0, [row(0), {**failed(1), "error_detail": "long " * 40}])

        heading, _, *rows = export(output, ResultFormat.TABLE).decode().splitlines()

        assert heading.split()[0] == "index"
        assert len(rows) == 2
        assert "long long" in rows[1]

    def test_the_table_shows_texts(self, output: FolderOutput, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "400")
        source = SourceDescription(kind="csv", uri="/t.csv", extra_columns=("caption",))
        note_job(output, task=Task.EMBED_TEXT, source=source, text_column="caption")
        texts = ["[b]a dog[/b]", "two\nlines", "long " * 100, None]
        rows = [{**row(index, item_id=str(index)), "caption": text} for index, text in enumerate(texts)]
        add_part(output, 0, rows, extra=["caption"])

        text = export(output, ResultFormat.TABLE).decode()

        assert text.split()[:3] == ["index", "caption", "status"]
        assert "[b]a dog[/b]" in text and "two lines" in text
        assert text.index("\u2026") - text.index("long long") == 199
        assert len(text.splitlines()) < 9
        # Ids that say more than the index are there too
        add_part(output, 1, [{**row(4, item_id="tide"), "caption": "the sea"}], extra=["caption"])
        assert "tide" in export(output, ResultFormat.TABLE).decode()

    def test_the_table_shows_twenty_rows_and_says_so(self, output: FolderOutput) -> None:
        add_part(output, 0, [failed(index) for index in range(30)])

        text = export(output, ResultFormat.TABLE).decode()
        assert "img19" in text and "img20" not in text
        assert "the first 20 shown" in text
        assert "img24" in export(output, ResultFormat.TABLE, limit=25).decode()
        assert "first" not in export(output, ResultFormat.TABLE, limit=30).decode()
