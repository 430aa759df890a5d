"""Layouts of other programs: row i belongs to row i, nothing is overwritten, nothing appears by halves."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.contract.jobs import JobState, SourceDescription, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import OutputDamagedError, OutputUnavailableError, ResultsNotReadyError, UsageError
from clipfleet.exports import Layout, export
from clipfleet.ledger import keys
from clipfleet.ledger.status import EarlyEnd
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from tests.support.jobs import JOB_ID, make_job, place_job
from tests.support.rows import add_part, classified, embedded, failed, note_manifest, row

FINISHED_AT = datetime(2026, 11, 24, 13, 0, 30, 250_000, tzinfo=UTC)
LAYOUTS = pytest.mark.parametrize("layout", list(Layout))


@pytest.fixture
def output(tmp_path: Path) -> FolderOutput:
    return FolderOutput(tmp_path / "out")


@pytest.fixture
def finished(output: FolderOutput) -> FolderOutput:
    """An embed job with failures at the beginning, in the middle and at the end."""
    place_job(output, make_job(output.uri))
    add_part(output, 0, [failed(0), failed(1)], dimension=1)
    add_part(output, 1, [embedded(2, 0.1, 1.0), failed(3), embedded(4, 0.25, -1.0)])
    add_part(output, 2, [embedded(5, -0.5, 65504.0), failed(6)])
    finish(output)
    return output


def finish(output: FolderOutput) -> None:
    parts = list(output.names(keys.PART_PREFIX))
    note_manifest(output, parts, job_id="job", finished_at=FINISHED_AT.isoformat())
    output.replace(keys.SUCCESS, b"")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


class TestClipRetrieval:
    def export(self, output: FolderOutput, to: Path) -> tuple[np.ndarray, pa.Table]:
        export(PartRows(output), Layout.CLIP_RETRIEVAL, to)
        matrix = np.load(to / "img_emb" / "img_emb_0.npy")
        return matrix, pq.read_table(to / "metadata" / "metadata_0.parquet")

    def test_row_i_belongs_to_row_i(self, finished: FolderOutput, tmp_path: Path) -> None:
        counts = export(PartRows(finished), Layout.CLIP_RETRIEVAL, tmp_path / "to")
        matrix = np.load(tmp_path / "to" / "img_emb" / "img_emb_0.npy")
        table = pq.read_table(tmp_path / "to" / "metadata" / "metadata_0.parquet")

        assert (counts.rows, counts.left_out, counts.notes) == (3, 4, ())
        assert table["item_index"].to_pylist() == [2, 4, 5]
        expected = np.array([[0.1, 1.0], [0.25, -1.0], [-0.5, 65504.0]], np.float16)
        assert matrix.dtype == np.dtype("<f2")
        assert matrix.tobytes() == expected.tobytes()

    def test_these_files_and_no_others(self, finished: FolderOutput, tmp_path: Path) -> None:
        self.export(finished, tmp_path / "to")

        names = [path.relative_to(tmp_path / "to") for path in (tmp_path / "to").rglob("*") if path.is_file()]
        assert sorted(map(str, names)) == [
            "img_emb/img_emb_0.npy",
            "metadata/metadata_0.parquet",
            "stats/0.json",
        ]
        stats = json.loads((tmp_path / "to" / "stats" / "0.json").read_text())
        assert stats["sample_count"] == 3
        assert stats["total_duration"] == pytest.approx(
            stats["read_duration"] + stats["inference_duration"] + stats["write_duration"]
        )

    def test_the_header_is_what_readers_look_for(self, finished: FolderOutput, tmp_path: Path) -> None:
        # embedding-reader takes the first line of the first 300 bytes apart with these
        self.export(finished, tmp_path / "to")

        start = (tmp_path / "to" / "img_emb" / "img_emb_0.npy").read_bytes()[:300]
        first_line = start.split(b"\n")[0].decode("latin-1")
        assert start[6:8] == b"\x01\x00"
        assert re.search(r"'shape': \(([0-9]+), ([0-9]+)\)", first_line)[1] == "3"  # type: ignore[index]
        assert re.search(r"'descr': '([<f0-9]+)'", first_line)[1] == "<f2"  # type: ignore[index]
        assert "'fortran_order': False" in first_line

    def test_metadata_begin_with_what_readers_know(self, output: FolderOutput, tmp_path: Path) -> None:
        uris = ["/p/a.jpg", "https://example.org/b.jpg", "s3://bucket/c.jpg", "data:image/png;base64,AA", ""]
        rows = [
            {**embedded(index, 0.5, 0.5), "uri": uri, "caption": f"text {index}", "shelf": "7"}
            for index, uri in enumerate(uris)
        ]
        add_part(output, 0, rows, extra=["shelf", "caption"])
        place_job(output, make_job(output.uri))

        _, table = self.export(output, tmp_path / "to")

        assert table.column_names == [
            "image_path", "caption", "url", "item_index", "item_id",
            "width", "height", "content_hash", "model_fingerprint", "shelf",
        ]  # fmt: skip
        assert table["image_path"].to_pylist() == ["/p/a.jpg", "img1", "img2", "img3", "img4"]
        assert table["url"].to_pylist() == [None, uris[1], uris[2], None, None]
        assert table["caption"].to_pylist() == [f"text {index}" for index in range(5)]

    def test_columns_of_the_source_replace_no_others(self, output: FolderOutput, tmp_path: Path) -> None:
        extra = ["url", "source_url", "image_path", "source_label", "i"]
        add_part(output, 0, [embedded(0, 1.0, 0.0) | {name: f"my {name}" for name in extra}], extra=extra)

        _, table = self.export(output, tmp_path / "to")

        (found,) = table.to_pylist()
        assert found["image_path"] == "/p/0.jpg"
        assert found["url"] == "my url"  # the only one there is
        assert found["source_source_url"] == "my url"
        assert found["source_url"] == "my source_url"
        assert found["source_image_path"] == "my image_path"
        assert found["source_label"] == "my source_label"
        assert len(set(table.column_names)) == len(table.column_names)

    @pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.int64(), pa.timestamp("ns")])
    def test_a_caption_may_be_no_text(self, output: FolderOutput, tmp_path: Path, kind: pa.DataType) -> None:
        value: Any = ["a", "b"] if pa.types.is_list(kind) else 7
        add_part(output, 0, [{**embedded(0, 1.0, 0.0), "caption": value}], types={"caption": kind})

        _, table = self.export(output, tmp_path / "to")

        assert table.column_names[:2] == ["image_path", "url"]
        assert table["caption"].type.equals(kind)
        for layout in (Layout.CSV, Layout.OPENAI_BATCH):
            export(PartRows(output), layout, tmp_path / layout)

    def test_labels_of_a_classify_job_are_metadata(self, output: FolderOutput, tmp_path: Path) -> None:
        place_job(output, make_job(output.uri, labels=("cat", "dog"), store_embeddings=True))
        add_part(output, 0, [{**classified(0), "embedding": [1.0, 0.0]}, failed(1)])

        _, table = self.export(output, tmp_path / "to")

        assert [(one["label"], one["labels"]) for one in table.to_pylist()] == [("cat", ["cat", "dog"])]

    def test_texts_have_a_folder_of_their_own(self, output: FolderOutput, tmp_path: Path) -> None:
        source = SourceDescription(kind="csv", uri="/list.csv", extra_columns=("phrase",))
        place_job(output, make_job(output.uri, task=Task.EMBED_TEXT, text_column="phrase", source=source))
        add_part(output, 0, [{**embedded(0, 1.0, 0.0), "uri": "", "phrase": "a red apple"}], extra=["phrase"])

        export(PartRows(output), Layout.CLIP_RETRIEVAL, tmp_path / "to")

        assert np.load(tmp_path / "to" / "text_emb" / "text_emb_0.npy").shape == (1, 2)
        table = pq.read_table(tmp_path / "to" / "metadata" / "metadata_0.parquet")
        assert table.column_names[0] == "caption"
        assert table["caption"].to_pylist() == ["a red apple"]
        assert "phrase" not in table.column_names

    @pytest.mark.parametrize("rows", [[failed(0)], [classified(0)]])
    def test_without_a_vector_there_is_nothing_to_write(
        self, output: FolderOutput, tmp_path: Path, rows: Sequence[dict[str, Any]]
    ) -> None:
        add_part(output, 0, rows)

        with pytest.raises(UsageError, match="--store-embeddings"):
            export(PartRows(output), Layout.CLIP_RETRIEVAL, tmp_path / "to")
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]

    def test_numpy_is_not_needed(self, finished: FolderOutput, tmp_path: Path) -> None:
        code = (
            "import pathlib, sys; sys.modules['numpy'] = None\n"
            "from clipfleet.exports import Layout, export\n"
            "from clipfleet.outputs.folder import FolderOutput\n"
            "from clipfleet.results.part_rows import PartRows\n"
            "source, to = map(pathlib.Path, sys.argv[1:])\n"
            "print(export(PartRows(FolderOutput(source)), Layout.CLIP_RETRIEVAL, to).rows)\n"
        )
        shown = subprocess.run(
            [sys.executable, "-c", code, finished.uri, tmp_path / "to"],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert shown.stdout == "3\n"
        assert (tmp_path / "to" / "img_emb" / "img_emb_0.npy").stat().st_size == 128 + 3 * 2 * 2


class TestOpenaiBatch:
    def test_ok_rows_are_output_and_failed_ones_errors(self, finished: FolderOutput, tmp_path: Path) -> None:
        counts = export(PartRows(finished), Layout.OPENAI_BATCH, tmp_path / "to")

        assert (counts.rows, counts.left_out, counts.notes) == (7, 0, ())
        output, errors = lines(tmp_path / "to" / "output.jsonl"), lines(tmp_path / "to" / "error.jsonl")
        assert [line["custom_id"] for line in output] == ["img2", "img4", "img5"]
        assert [line["custom_id"] for line in errors] == ["img0", "img1", "img3", "img6"]
        for line in [*output, *errors]:
            assert list(line) == ["id", "custom_id", "response", "error"]
            assert line["id"].startswith("batch_req_")
        assert output[0] == {
            "id": f"batch_req_{JOB_ID}-2",
            "custom_id": "img2",
            "response": {
                "status_code": 200,
                "request_id": f"{JOB_ID}-2",
                "body": {
                    "object": "list",
                    "data": [
                        {"object": "embedding", "index": 0, "embedding": [float(np.float16(0.1)), 1.0]}
                    ],
                    "model": "demo",
                    "usage": {"prompt_tokens": 0, "total_tokens": 0},
                    "item": {
                        "item_index": 2, "item_id": "img2", "uri": "/p/2.jpg", "width": 640, "height": 480,
                        "content_hash": None, "model_fingerprint": None,
                    },
                },
            },
            "error": None,
        }  # fmt: skip
        assert errors[0] == {
            "id": f"batch_req_{JOB_ID}-0",
            "custom_id": "img0",
            "response": None,
            "error": {"code": "not_found", "message": "no such file"},
        }

    def test_the_batch_object(self, finished: FolderOutput, tmp_path: Path) -> None:
        export(PartRows(finished), Layout.OPENAI_BATCH, tmp_path / "to")

        created, ended = 1_795_521_600, int(FINISHED_AT.timestamp())
        assert json.loads((tmp_path / "to" / "batch.json").read_text()) == {
            "id": f"batch_{JOB_ID}", "object": "batch", "endpoint": "/v1/embeddings", "errors": None,
            "input_file_id": "/images", "completion_window": "24h", "status": "completed",
            "output_file_id": "output.jsonl", "error_file_id": "error.jsonl",
            "created_at": created, "in_progress_at": created, "expires_at": None,
            "finalizing_at": ended, "completed_at": ended, "failed_at": None, "expired_at": None,
            "cancelling_at": None, "cancelled_at": None,
            "request_counts": {"total": 7, "completed": 3, "failed": 4}, "metadata": None,
        }  # fmt: skip

    @pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED])
    def test_the_batch_object_of_an_early_end(
        self, output: FolderOutput, tmp_path: Path, state: JobState
    ) -> None:
        add_part(output, 0, [embedded(0, 0.5, 1.0)])
        reader = PartRows(output, early_end=lambda: EarlyEnd(state, FINISHED_AT))

        export(reader, Layout.OPENAI_BATCH, tmp_path / "to")

        batch = json.loads((tmp_path / "to" / "batch.json").read_text())
        times = {name for name, value in batch.items() if name.endswith("_at") and value is not None}
        ended = int(FINISHED_AT.timestamp())
        assert (batch["status"], batch[f"{state}_at"]) == (state, ended)
        assert times == ({"cancelling_at", "cancelled_at"} if state == "cancelled" else {"failed_at"})

    def test_labels_of_all_sets_are_answers(self, output: FolderOutput, tmp_path: Path) -> None:
        sets = (LabelSet(name="kinds", labels=("cat", "dog")), LabelSet(name="mood", labels=("up", "down")))
        place_job(output, make_job(output.uri, labels=("cat",), label_sets=sets))
        kinds = {"label_kinds": "cat", "score_kinds": 0.75, "labels_kinds": ["cat", "dog"],
                 "scores_kinds": [0.75, 0.25]}  # fmt: skip
        mood = {"label_mood": "up", "score_mood": 0.5, "labels_mood": ["up"], "scores_mood": [0.5]}
        add_part(output, 0, [{**classified(0), **kinds, **mood, "source_label": "mine"}],
                 label_sets=["kinds", "mood"], extra=["source_label"])  # fmt: skip

        export(PartRows(output), Layout.OPENAI_BATCH, tmp_path / "to")

        (line,) = lines(tmp_path / "to" / "output.jsonl")
        body = line["response"]["body"]
        answers = [
            {"object": "classification", "index": 0, "label_set": "kinds",
             "label": "cat", "score": 0.75, "labels": ["cat", "dog"], "scores": [0.75, 0.25]},
            {"object": "classification", "index": 1, "label_set": "mood",
             "label": "up", "score": 0.5, "labels": ["up"], "scores": [0.5]},
        ]  # fmt: skip
        assert body["data"] == answers
        assert body["item"]["source_label"] == "mine"
        assert not [name for name in body["item"] if name.startswith(("label", "score"))]
        batch = json.loads((tmp_path / "to" / "batch.json").read_text())
        assert batch["endpoint"] == "/v1/classifications"

    def test_a_file_that_would_be_empty_is_missing(self, output: FolderOutput, tmp_path: Path) -> None:
        add_part(output, 0, [failed(0)])

        export(PartRows(output), Layout.OPENAI_BATCH, tmp_path / "to")

        assert sorted(path.name for path in (tmp_path / "to").iterdir()) == ["batch.json", "error.jsonl"]
        batch = json.loads((tmp_path / "to" / "batch.json").read_text())
        assert (batch["output_file_id"], batch["error_file_id"]) == (None, "error.jsonl")
        assert batch["status"] == "in_progress"

    def test_shared_ids_are_replaced_by_the_index(self, output: FolderOutput, tmp_path: Path) -> None:
        add_part(output, 0, [{**embedded(0, 1.0, 0.0), "item_id": "1"}, {**failed(1), "item_id": "x"}])
        add_part(output, 1, [{**embedded(2, 1.0, 0.0), "item_id": "x"}])

        counts = export(PartRows(output), Layout.OPENAI_BATCH, tmp_path / "to")

        assert "custom_id is the item_index" in counts.notes[0]
        found = lines(tmp_path / "to" / "output.jsonl") + lines(tmp_path / "to" / "error.jsonl")
        assert [line["custom_id"] for line in found] == ["0", "2", "1"]
        assert found[1]["response"]["body"]["item"]["item_id"] == "x"


class TestCsv:
    def test_all_rows_and_columns_are_there(self, output: FolderOutput, tmp_path: Path) -> None:
        note = 'a, "b"\nc \u732b'
        extra = ["source_label", "source_status", "note"]
        rows = [{**classified(0), "source_label": "mine", "note": note}, failed(1)]
        add_part(output, 0, rows, extra=extra)

        counts = export(PartRows(output), Layout.CSV, tmp_path / "to")

        assert (counts.rows, counts.left_out) == (2, 0)
        with (tmp_path / "to" / "rows.csv").open(newline="") as file:
            found = list(csv.DictReader(file))
        assert [one["status"] for one in found] == ["ok", "failed"]
        assert (found[0]["label"], found[0]["source_label"], found[0]["note"]) == ("cat", "mine", note)
        assert json.loads(found[0]["labels"]) == ["cat", "dog"]


class TestTheFolder:
    @LAYOUTS
    def test_a_folder_that_holds_something_is_left_as_it_is(
        self, finished: FolderOutput, tmp_path: Path, layout: Layout
    ) -> None:
        (tmp_path / "to").mkdir()
        (tmp_path / "to" / "mine.txt").write_text("mine")

        with pytest.raises(UsageError, match="not empty"):
            export(PartRows(finished), layout, tmp_path / "to")
        assert [path.name for path in (tmp_path / "to").iterdir()] == ["mine.txt"]

    @LAYOUTS
    def test_a_second_export_does_not_replace_the_first(
        self, finished: FolderOutput, tmp_path: Path, layout: Layout
    ) -> None:
        export(PartRows(finished), layout, tmp_path / "to")
        with pytest.raises(UsageError, match="not empty"):
            export(PartRows(finished), layout, tmp_path / "to")

    def test_an_empty_folder_will_do(self, finished: FolderOutput, tmp_path: Path) -> None:
        (tmp_path / "a").mkdir()
        for to in (tmp_path / "a", tmp_path / "b" / "c"):
            export(PartRows(finished), Layout.CSV, to)
            assert [path.name for path in to.iterdir()] == ["rows.csv"]

    def test_a_home_that_is_not_there_is_an_ordinary_name(
        self, finished: FolderOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.chdir(tmp_path)
        export(PartRows(finished), Layout.CSV, Path("~nobody-of-this-name/to"))

        assert (tmp_path / "~nobody-of-this-name" / "to" / "rows.csv").exists()

    def test_the_current_folder_is_not_pulled_away(
        self, finished: FolderOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        (tmp_path / "here").mkdir()
        monkeypatch.chdir(tmp_path / "here")

        with pytest.raises(UsageError, match="is the current folder"):
            export(PartRows(finished), Layout.CSV, Path())

    @pytest.mark.parametrize("link", [False, True])
    def test_a_file_or_a_link_is_no_folder(self, finished: FolderOutput, tmp_path: Path, link: bool) -> None:
        if link:
            (tmp_path / "to").symlink_to(tmp_path / "nowhere")
        else:
            (tmp_path / "to").write_text("")

        with pytest.raises(UsageError, match="is not a folder"):
            export(PartRows(finished), Layout.CSV, tmp_path / "to")

    @pytest.mark.parametrize("to", ["s3://bucket/x", "file:///tmp/x"])
    def test_a_url_is_no_folder(
        self, finished: FolderOutput, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, to: str
    ) -> None:
        monkeypatch.chdir(tmp_path)
        with pytest.raises(UsageError, match="a local folder"):
            export(PartRows(finished), Layout.CSV, Path(to))
        assert sorted(path.name for path in tmp_path.iterdir()) == ["out"]

    def test_where_nothing_can_be_written_it_says_so(self, finished: FolderOutput) -> None:
        with pytest.raises(OutputUnavailableError, match="/proc"):
            export(PartRows(finished), Layout.CSV, Path("/proc/clipfleet/to"))

    @LAYOUTS
    def test_what_breaks_off_leaves_nothing_behind(
        self, finished: FolderOutput, tmp_path: Path, layout: Layout
    ) -> None:
        finished.replace(keys.part(2), b"PAR1 damaged")

        with pytest.raises(OutputDamagedError, match=r"part-00000002\.parquet"):
            export(PartRows(finished), layout, tmp_path / "deep" / "to")
        assert list((tmp_path / "deep").iterdir()) == []

    @LAYOUTS
    def test_it_is_not_seen_before_it_is_whole(
        self, finished: FolderOutput, tmp_path: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[bool] = []
        original = os.fsync
        monkeypatch.setattr(
            os, "fsync", lambda descriptor: seen.append((tmp_path / "to").exists()) or original(descriptor)
        )

        export(PartRows(finished), layout, tmp_path / "to")

        assert len(seen) == sum(path.is_file() for path in (tmp_path / "to").rglob("*"))
        assert not any(seen)

    def test_without_a_part_there_are_no_results_yet(self, output: FolderOutput, tmp_path: Path) -> None:
        with pytest.raises(ResultsNotReadyError):
            export(PartRows(output), Layout.CSV, tmp_path / "to")
        assert list(tmp_path.iterdir()) == []


def test_when_a_job_was_finished(finished: FolderOutput) -> None:
    assert PartRows(finished).finished_at() == FINISHED_AT
    finished.remove(keys.SUCCESS)
    assert PartRows(finished).finished_at() is None
    finished.create(keys.SUCCESS, b"")
    finished.replace(keys.MANIFEST, b"{}")
    with pytest.raises(OutputDamagedError, match=r"_manifest\.json"):
        PartRows(finished).finished_at()


def test_chosen_columns_are_read_alone(finished: FolderOutput) -> None:
    stored = PartRows(finished).read(["item_id", "embedding"])

    rows = [one for batch in stored.batches for one in batch.to_pylist()]
    assert [list(one) for one in rows] == [["item_id", "embedding"]] * 7
    assert row(2)["item_id"] == rows[2]["item_id"]
