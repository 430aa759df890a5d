"""Layouts of other programs: row i belongs to row i, nothing is overwritten, nothing appears by halves."""

from __future__ import annotations

import csv
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml

from clipfleet.contract.columns import LABEL_COLUMNS
from clipfleet.contract.heads import HeadKind
from clipfleet.contract.jobs import JobState, SourceDescription, Task
from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.contract.parts import part_schema
from clipfleet.errors import OutputDamagedError, OutputUnavailableError, ResultsNotReadyError, UsageError
from clipfleet.exports import Layout, export
from clipfleet.labels.marks import read_marks
from clipfleet.ledger.status import EarlyEnd
from clipfleet.moderation.deciding import with_decisions
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from clipfleet.results.rows import rows
from tests.support.heads import head_file
from tests.support.jobs import JOB_ID, make_job, place_job
from tests.support.policies import make_policy, moderation_job
from tests.support.rows import accepting, add_part, classified, embedded, failed, note_manifest, row

FINISHED_AT = datetime(2026, 11, 24, 13, 0, 30, 250_000, tzinfo=UTC)
HEADS = (
    head_file(4, 2, labels=("cat", "dog"), licence="MIT").of_job,
    head_file(4, 2, kind=HeadKind.MULTILABEL, name="tags", labels=("a", "b")).of_job,
)
BY_HEADS = {
    "head_taste": "cat", "head_taste_score": 0.75, "head_tags": "a", "head_tags_score": 0.5,
    "head_tags_accepted": ["a"],
}  # fmt: skip
OF_LABELS_OR_IMAGES = (Layout.LABEL_STUDIO, Layout.FIFTYONE, Layout.WEBDATASET, Layout.HUGGING_FACE_IMAGES)
LAYOUTS = pytest.mark.parametrize("layout", [one for one in Layout if one not in OF_LABELS_OR_IMAGES])


@pytest.fixture
def to(folder: Path) -> Path:
    """A folder that is not there yet, in the current one."""
    return folder / "to"


@pytest.fixture
def finished(output: FolderOutput) -> FolderOutput:
    """An embed job with failures at the beginning, in the middle and at the end."""
    place_job(output, make_job(output.uri))
    add_part(output, 0, [failed(0), failed(1)], dimension=1)
    add_part(output, 1, [embedded(2, 0.1, 1.0), failed(3), embedded(4, 0.25, -1.0)])
    add_part(output, 2, [embedded(5, -0.5, 65504.0), failed(6)])
    parts = list(output.names(objects.LAYOUT.part_prefix))
    note_manifest(output, parts, job_id="job", finished_at=FINISHED_AT.isoformat())
    return output


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().split("\n")[:-1]]


def names(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


class TestClipRetrieval:
    def export(self, output: FolderOutput, to: Path) -> tuple[np.ndarray, pa.Table]:
        export(PartRows(output), Layout.CLIP_RETRIEVAL, to)
        (vectors,) = to.glob("*_emb/*_emb_0.npy")
        return np.load(vectors), pq.read_table(to / "metadata" / "metadata_0.parquet")

    def test_row_i_belongs_to_row_i(self, finished: FolderOutput, to: Path) -> None:
        matrix, table = self.export(finished, to)

        assert table["item_index"].to_pylist() == [2, 4, 5]
        expected = np.array([[0.1, 1.0], [0.25, -1.0], [-0.5, 65504.0]], np.float16)
        assert matrix.dtype == np.dtype("<f2")
        assert matrix.tobytes() == expected.tobytes()

    def test_these_files_and_no_others(self, finished: FolderOutput, to: Path) -> None:
        counts = export(PartRows(finished), Layout.CLIP_RETRIEVAL, to)

        assert (counts.rows, counts.left_out, counts.notes) == (3, 4, ())
        assert names(to) == ["img_emb/img_emb_0.npy", "metadata/metadata_0.parquet", "stats/0.json"]
        stats = json.loads((to / "stats" / "0.json").read_text())
        assert stats["sample_count"] == 3
        parts = [stats[f"{name}_duration"] for name in ("read", "inference", "write")]
        assert stats["total_duration"] == pytest.approx(sum(parts))

    def test_the_header_is_what_readers_look_for(self, finished: FolderOutput, to: Path) -> None:
        # embedding-reader takes the first line of the first 300 bytes apart with these
        self.export(finished, to)

        start = (to / "img_emb" / "img_emb_0.npy").read_bytes()[:300]
        first_line = start.split(b"\n")[0].decode("latin-1")
        assert start[6:8] == b"\x01\x00"
        assert re.search(r"'shape': \(([0-9]+), ([0-9]+)\)", first_line)[1] == "3"  # type: ignore[index]
        assert re.search(r"'descr': '([<f0-9]+)'", first_line)[1] == "<f2"  # type: ignore[index]
        assert "'fortran_order': False" in first_line

    def test_metadata_begin_with_what_readers_know(self, output: FolderOutput, to: Path) -> None:
        uris = ["/p/a.jpg", "https://example.org/b.jpg", "s3://bucket/c.jpg", "data:image/png;base64,AA", ""]
        rows = [
            {**embedded(index, 0.5, 0.5), "uri": uri, "caption": f"text {index}", "shelf": "7"}
            for index, uri in enumerate(uris)
        ]
        add_part(output, 0, rows, extra=["shelf", "caption"])
        place_job(output, make_job(output.uri))

        _, table = self.export(output, to)

        assert table.column_names == [
            "image_path", "caption", "url", "item_index", "item_id",
            "width", "height", "content_hash", "model_fingerprint", "shelf",
        ]  # fmt: skip
        assert table["image_path"].to_pylist() == ["/p/a.jpg", "img1", "img2", "img3", "img4"]
        assert table["url"].to_pylist() == [None, uris[1], uris[2], None, None]
        assert table["caption"].to_pylist() == [f"text {index}" for index in range(5)]

    def test_columns_of_the_source_replace_no_others(self, output: FolderOutput, to: Path) -> None:
        extra = ["url", "source_url", "image_path", "source_label", "i"]
        add_part(output, 0, [embedded(0, 1.0, 0.0) | {name: f"my {name}" for name in extra}], extra=extra)

        _, table = self.export(output, to)

        (found,) = table.to_pylist()
        expected = {
            "image_path": "/p/0.jpg", "url": "my url",  # the only one there is
            "source_source_url": "my url", "source_url": "my source_url",
            "source_image_path": "my image_path", "source_label": "my source_label",
        }  # fmt: skip
        assert {name: found[name] for name in expected} == expected
        assert len(set(table.column_names)) == len(table.column_names)

    @pytest.mark.parametrize("kind", [pa.list_(pa.string()), pa.int64(), pa.timestamp("ns")])
    def test_a_caption_may_be_no_text(self, output: FolderOutput, to: Path, kind: pa.DataType) -> None:
        value: Any = ["a", "b"] if pa.types.is_list(kind) else 7
        add_part(output, 0, [{**embedded(0, 1.0, 0.0), "caption": value}], types={"caption": kind})

        _, table = self.export(output, to)

        assert table.column_names[:2] == ["image_path", "url"]
        assert table["caption"].type.equals(kind)
        for layout in (Layout.CSV, Layout.OPENAI_BATCH):
            export(PartRows(output), layout, to.parent / layout)

    def test_labels_of_a_classify_job_are_metadata(self, output: FolderOutput, to: Path) -> None:
        place_job(output, make_job(output.uri, labels=("cat", "dog"), store_embeddings=True))
        add_part(output, 0, [{**classified(0), "embedding": [1.0, 0.0]}, failed(1)])

        _, table = self.export(output, to)

        assert [(one["label"], one["labels"]) for one in table.to_pylist()] == [("cat", ["cat", "dog"])]

    def test_heads_are_metadata_too(self, output: FolderOutput, to: Path) -> None:
        place_job(output, make_job(output.uri, heads=HEADS, task=Task.CLASSIFY, store_embeddings=True))
        add_part(output, 0, [{**embedded(0, 1.0, 0.0), **BY_HEADS}], heads=HEADS)

        _, metadata = self.export(output, to)

        assert metadata.select([*BY_HEADS]).to_pylist() == [BY_HEADS]
        assert "label" not in metadata.schema.names  # the job has no label set

    def test_texts_have_a_folder_of_their_own(self, output: FolderOutput, to: Path) -> None:
        source = SourceDescription(kind="csv", uri="/list.csv", extra_columns=("phrase",))
        place_job(output, make_job(output.uri, task=Task.EMBED_TEXT, text_column="phrase", source=source))
        add_part(output, 0, [{**embedded(0, 1.0, 0.0), "uri": "", "phrase": "a red apple"}], extra=["phrase"])

        matrix, table = self.export(output, to)

        assert "text_emb/text_emb_0.npy" in names(to)
        assert matrix.shape == (1, 2)
        assert table.column_names[0] == "caption"
        assert table["caption"].to_pylist() == ["a red apple"]
        assert "phrase" not in table.column_names

    @pytest.mark.parametrize("row", [failed(0), classified(0)])
    def test_without_a_vector_nothing_is_written(self, output: FolderOutput, to: Path, row: Any) -> None:
        add_part(output, 0, [row])

        with pytest.raises(UsageError, match="`store_embeddings=True`"):
            export(PartRows(output), Layout.CLIP_RETRIEVAL, to)
        assert sorted(path.name for path in to.parent.iterdir()) == ["out"]

    def test_numpy_is_not_needed(self, finished: FolderOutput, to: Path) -> None:
        code = (
            "import pathlib, sys; sys.modules['numpy'] = None\n"
            "from clipfleet.exports import Layout, export\n"
            "from clipfleet.outputs.folder import FolderOutput\n"
            "from clipfleet.results.part_rows import PartRows\n"
            "source, to = map(pathlib.Path, sys.argv[1:])\n"
            "print(export(PartRows(FolderOutput(source)), Layout.CLIP_RETRIEVAL, to).rows)\n"
        )
        shown = subprocess.run(
            [sys.executable, "-c", code, finished.uri, to],
            capture_output=True, text=True, check=True, timeout=60,
        )  # fmt: skip
        assert shown.stdout == "3\n"
        assert (to / "img_emb" / "img_emb_0.npy").stat().st_size == 128 + 3 * 2 * 2


class TestOpenaiBatch:
    def batch(self, to: Path) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((to / "batch.json").read_text())
        return found

    def test_ok_rows_are_output_and_failed_ones_errors(self, finished: FolderOutput, to: Path) -> None:
        counts = export(PartRows(finished), Layout.OPENAI_BATCH, to)

        assert (counts.rows, counts.left_out, counts.notes) == (7, 0, ())
        output, errors = lines(to / "output.jsonl"), lines(to / "error.jsonl")
        assert [line["custom_id"] for line in output] == ["img2", "img4", "img5"]
        assert [line["custom_id"] for line in errors] == ["img0", "img1", "img3", "img6"]
        vector = {"object": "embedding", "index": 0, "embedding": [float(np.float16(0.1)), 1.0]}
        body = {
            "object": "list", "data": [vector], "model": "demo",
            "usage": {"prompt_tokens": 0, "total_tokens": 0},
            "item": {
                "item_index": 2, "item_id": "img2", "uri": "/p/2.jpg", "width": 640, "height": 480,
                "content_hash": None, "model_fingerprint": None,
            },
        }  # fmt: skip
        response = {"status_code": 200, "request_id": f"{JOB_ID}-2", "body": body}
        error = {"code": "not_found", "message": "no such file"}
        for line, number, answer, problem in ((output[0], 2, response, None), (errors[0], 0, None, error)):
            assert list(line.items()) == [
                ("id", f"batch_req_{JOB_ID}-{number}"), ("custom_id", f"img{number}"),
                ("response", answer), ("error", problem),
            ]  # fmt: skip

    def test_the_batch_object(self, finished: FolderOutput, to: Path) -> None:
        export(PartRows(finished), Layout.OPENAI_BATCH, to)

        created, ended = 1_795_521_600, int(FINISHED_AT.timestamp())
        assert self.batch(to) == {
            "id": f"batch_{JOB_ID}", "object": "batch", "endpoint": "/v1/embeddings", "errors": None,
            "input_file_id": "/images", "completion_window": "24h", "status": "completed",
            "output_file_id": "output.jsonl", "error_file_id": "error.jsonl",
            "created_at": created, "in_progress_at": created, "expires_at": None,
            "finalizing_at": ended, "completed_at": ended, "failed_at": None, "expired_at": None,
            "cancelling_at": None, "cancelled_at": None,
            "request_counts": {"total": 7, "completed": 3, "failed": 4}, "metadata": None,
        }  # fmt: skip

    @pytest.mark.parametrize("state", [JobState.CANCELLED, JobState.FAILED])
    def test_the_batch_object_of_an_early_end(self, output: FolderOutput, to: Path, state: JobState) -> None:
        add_part(output, 0, [embedded(0, 0.5, 1.0)])

        export(PartRows(output, early_end=lambda: EarlyEnd(state, FINISHED_AT)), Layout.OPENAI_BATCH, to)

        batch = self.batch(to)
        times = {name for name, value in batch.items() if name.endswith("_at") and value is not None}
        assert (batch["status"], batch[f"{state}_at"]) == (state, int(FINISHED_AT.timestamp()))
        assert times == ({"cancelling_at", "cancelled_at"} if state == "cancelled" else {"failed_at"})

    def test_labels_of_all_sets_are_answers(self, output: FolderOutput, to: Path) -> None:
        sets = (LabelSet(name="kinds", labels=("cat", "dog")), LabelSet(name="mood", labels=("up", "down")))
        place_job(output, make_job(output.uri, labels=("cat",), label_sets=sets))
        answers = {
            "kinds": {"label": "cat", "score": 0.75, "labels": ["cat", "dog"], "scores": [0.75, 0.25]},
            "mood": {"label": "up", "score": 0.5, "labels": ["up"], "scores": [0.5]},
        }
        columns = {f"{field}_{name}": value for name, one in answers.items() for field, value in one.items()}
        row = {**classified(0), **columns, "source_label": "mine"}
        add_part(output, 0, [row], label_sets=[*answers], extra=["source_label"])

        export(PartRows(output), Layout.OPENAI_BATCH, to)

        (line,) = lines(to / "output.jsonl")
        body = line["response"]["body"]
        assert body["data"] == [
            {"object": "classification", "index": index, "label_set": name, **answer}
            for index, (name, answer) in enumerate(answers.items())
        ]
        assert body["item"]["source_label"] == "mine"
        assert not [name for name in body["item"] if name.startswith(("label", "score"))]
        assert self.batch(to)["endpoint"] == "/v1/classifications"

    def test_a_row_without_an_accepted_label_has_an_answer(self, output: FolderOutput, to: Path) -> None:
        label_set = LabelSet(labels=("cat", "dog"), kind=LabelKind.MULTI)
        place_job(output, make_job(output.uri, labels=("cat",), label_sets=(label_set,)))
        rows = [accepting(0, "dog", "cat"), accepting(1)]
        add_part(output, 0, rows, accepted=["accepted"])

        export(PartRows(output), Layout.OPENAI_BATCH, to)

        columns = (*LABEL_COLUMNS, "accepted")
        bodies = [line["response"]["body"] for line in lines(to / "output.jsonl")]
        assert [body["data"] for body in bodies] == [
            [{"object": "classification", "index": 0, **{name: row[name] for name in columns}}]
            for row in rows
        ]
        assert "accepted" not in bodies[0]["item"]

    def test_heads_are_answers_after_labels_and_vectors(self, output: FolderOutput, to: Path) -> None:
        place_job(output, make_job(output.uri, heads=HEADS))
        add_part(output, 0, [{**embedded(0, 1.0, 0.0), **BY_HEADS}], heads=HEADS)

        export(PartRows(output), Layout.OPENAI_BATCH, to)

        (line,) = lines(to / "output.jsonl")
        body = line["response"]["body"]
        assert body["data"] == [
            {"object": "embedding", "index": 0, "embedding": [1.0, 0.0]},
            {"object": "classification", "index": 1, "head": "taste", "label": "cat", "score": 0.75},
            {"object": "classification", "index": 2, "head": "tags", "label": "a", "score": 0.5,
             "accepted": ["a"]},
        ]  # fmt: skip
        assert not [name for name in body["item"] if name.startswith("head")]

    def test_a_file_that_would_be_empty_is_missing(self, output: FolderOutput, to: Path) -> None:
        add_part(output, 0, [failed(0)])

        export(PartRows(output), Layout.OPENAI_BATCH, to)

        assert names(to) == ["batch.json", "error.jsonl"]
        batch = self.batch(to)
        assert (batch["output_file_id"], batch["error_file_id"]) == (None, "error.jsonl")
        assert batch["status"] == "in_progress"

    def test_shared_ids_are_replaced_by_the_index(self, output: FolderOutput, to: Path) -> None:
        add_part(output, 0, [{**embedded(0, 1.0, 0.0), "item_id": "1"}, {**failed(1), "item_id": "x"}])
        add_part(output, 1, [{**embedded(2, 1.0, 0.0), "item_id": "x"}])

        counts = export(PartRows(output), Layout.OPENAI_BATCH, to)

        assert "custom_id is the item_index" in counts.notes[0]
        found = lines(to / "output.jsonl") + lines(to / "error.jsonl")
        assert [line["custom_id"] for line in found] == ["0", "2", "1"]
        assert found[1]["response"]["body"]["item"]["item_id"] == "x"


class TestHuggingFace:
    def card(self, to: Path) -> tuple[dict[str, Any], str]:
        _, front, body = (to / "README.md").read_text().split("---\n", 2)
        return yaml.safe_load(front), body

    def features(self, to: Path) -> dict[str, Any]:
        found = self.card(to)[0]["dataset_info"]["features"]
        return {one.pop("name"): one for one in found}

    def test_all_rows_are_there_and_counted(self, finished: FolderOutput, to: Path) -> None:
        counts = export(PartRows(finished), Layout.HUGGING_FACE, to)

        assert (counts.rows, counts.left_out) == (7, 0)
        assert names(to) == ["README.md", "data/train-00000.parquet"]
        table = pq.read_table(to / "data")
        assert table.to_pylist() == list(rows(PartRows(finished)))
        front, body = self.card(to)
        (split,) = front["dataset_info"]["splits"]
        assert (split["name"], split["num_examples"]) == ("train", 7)
        assert front["license"] == "unknown"
        assert "| failed | 4: 4 `not_found` |" in body
        assert "| `embedding` | list of 2 float16 | L2-normalised vector |" in body
        assert [
            line.split("`")[1] for line in body.splitlines() if line.startswith("| `")
        ] == table.column_names
        assert self.features(to)["embedding"] == {"list": "float16", "length": 2}

    def test_more_rows_than_a_file_should_hold_go_into_several(
        self, finished: FolderOutput, to: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("clipfleet.exports.hugging_face._ROWS_PER_FILE", 2)
        monkeypatch.setattr("clipfleet.results.formats._GROUP_ROWS", 2)

        export(PartRows(finished), Layout.HUGGING_FACE, to)

        files = sorted((to / "data").iterdir())
        assert [path.name for path in files] == [f"train-{number:05d}.parquet" for number in range(3)]
        assert pq.read_table(to / "data")["item_index"].to_pylist() == list(range(7))

    def test_columns_with_the_labels_of_one_set_are_class_labels(
        self, output: FolderOutput, to: Path
    ) -> None:
        sets = (LabelSet(name="kinds", labels=("no", "1")), LabelSet(name="classes", preset="imagenet1k"))
        place_job(output, make_job(output.uri, labels=("no",), label_sets=sets))
        values = {"label": "no", "label_kinds": "no", "label_classes": "tench", "embedding": None}
        add_part(output, 0, [{**classified(0), **values}], label_sets=["kinds", "classes"])

        export(PartRows(output), Layout.HUGGING_FACE, to)

        found = self.features(to)
        kinds = {"class_label": {"names": {"0": "no", "1": "1"}}}
        assert found["label"] == found["label_kinds"] == {"dtype": kinds}
        assert found["labels"] == found["labels_kinds"] == {"list": kinds}
        assert (found["label_classes"], found["labels_classes"]) == ({"dtype": "string"}, {"list": "string"})
        assert "embedding" not in found  # the job keeps none
        assert (
            "| `labels_kinds` | list of class label | the best labels, descending, of the set `kinds` |"
            in self.card(to)[1]
        )
        assert pq.read_table(to / "data")["label"].to_pylist() == ["no"]

    def test_accepted_labels_are_class_labels_and_explained(self, output: FolderOutput, to: Path) -> None:
        label_set = LabelSet(labels=("cat", "dog"), none=True)
        place_job(output, make_job(output.uri, labels=("cat",), label_sets=(label_set,)))
        add_part(output, 0, [accepting(0, "dog"), accepting(1), failed(2)], accepted=["accepted"])

        export(PartRows(output), Layout.HUGGING_FACE, to)

        assert self.features(to)["accepted"] == self.features(to)["labels"]
        assert "| `accepted` | list of class label | all labels that reach" in self.card(to)[1]
        stored = pq.read_table(to / "data")
        assert (stored["label"].to_pylist(), stored["accepted"].to_pylist()) == (
            ["dog", None, None], [["dog"], [], None],
        )  # fmt: skip

    def test_labels_of_heads_are_class_labels_and_explained(self, output: FolderOutput, to: Path) -> None:
        place_job(output, make_job(output.uri, heads=HEADS, task=Task.CLASSIFY))
        add_part(output, 0, [{**row(0), **BY_HEADS}, failed(1)], heads=HEADS)

        export(PartRows(output), Layout.HUGGING_FACE, to)

        found, (front, body) = self.features(to), self.card(to)
        tags = {"class_label": {"names": {"0": "a", "1": "b"}}}
        assert found["head_taste"] == {"dtype": {"class_label": {"names": {"0": "cat", "1": "dog"}}}}
        assert (found["head_tags"], found["head_tags_accepted"]) == ({"dtype": tags}, {"list": tags})
        assert front["task_categories"] == ["image-classification"]
        assert "| `head_taste_score` | float32 | its score, by the head `taste` |" in body
        assert "reach their thresholds, best first, by the head `tags` |" in body
        assert "| heads | `taste` (sha256 `" in body and "licence MIT), `tags` (" in body
        assert "licence not stated)" in body
        assert "predictions of the model" in body

    def test_labels_that_each_item_chooses_are_text(self, output: FolderOutput, to: Path) -> None:
        source = SourceDescription(kind="csv", uri="/list.csv", extra_columns=("set",))
        sets = tuple(LabelSet(name=name, labels=(name,)) for name in "ab")
        place_job(
            output,
            make_job(output.uri, labels=("a",), label_sets=sets, label_set_column="set", source=source),
        )
        add_part(output, 0, [classified(0)])

        export(PartRows(output), Layout.HUGGING_FACE, to)

        assert self.features(to)["label"] == {"dtype": "string"}

    @pytest.mark.parametrize(
        ("kind", "value", "feature", "stored"),
        [
            (
                pa.timestamp("us", "UTC"),
                7,
                {"dtype": "timestamp[us, tz=UTC]"},
                datetime.fromtimestamp(7e-6, UTC),
            ),
            (pa.list_(pa.list_(pa.int8())), [[1]], {"list": {"list": "int8"}}, [[1]]),
            (pa.large_list(pa.int8()), [1], {"large_list": "int8"}, [1]),
            (
                pa.list_(pa.struct({"a": pa.bool_()})),
                [{"a": True}],
                {"list": [{"name": "a", "dtype": "bool"}]},
                [{"a": True}],
            ),
            (pa.dictionary(pa.int8(), pa.string()), "x", {"dtype": "string"}, "x"),
            (pa.map_(pa.string(), pa.int64()), [("a", 1)], {"dtype": "string"}, '[["a", 1]]'),
        ],
        ids=str,
    )
    def test_columns_of_the_source_keep_what_the_hub_has_a_type_for(
        self, output: FolderOutput, to: Path, kind: pa.DataType, value: Any, feature: Any, stored: Any
    ) -> None:
        add_part(output, 0, [{**embedded(0, 1.0, 0.0), "x": value}], types={"x": kind})

        export(PartRows(output), Layout.HUGGING_FACE, to)

        assert self.features(to)["x"] == feature
        assert pq.read_table(to / "data")["x"].to_pylist() == [stored]


def test_csv_has_all_rows_and_columns(output: FolderOutput, to: Path) -> None:
    note = 'a, "b"\nc \u732b'
    rows = [{**classified(0), "source_label": "mine", "note": note}, failed(1)]
    add_part(output, 0, rows, extra=["source_label", "source_status", "note"])

    counts = export(PartRows(output), Layout.CSV, to)

    assert (counts.rows, counts.left_out) == (2, 0)
    with (to / "rows.csv").open(newline="") as file:
        found = list(csv.DictReader(file))
    assert [one["status"] for one in found] == ["ok", "failed"]
    assert (found[0]["label"], found[0]["source_label"], found[0]["note"]) == ("cat", "mine", note)
    assert json.loads(found[0]["labels"]) == ["cat", "dog"]


class TestLabelStudio:
    def export(self, output: FolderOutput, to: Path) -> tuple[list[dict[str, Any]], str]:
        export(PartRows(output), Layout.LABEL_STUDIO, to)
        assert names(to) == ["config.xml", "tasks.json"]
        return json.loads((to / "tasks.json").read_text()), (to / "config.xml").read_text()

    def test_one_label_of_each_image_is_predicted(self, output: FolderOutput, to: Path) -> None:
        things = LabelSet(name="things", labels=("cat", 'a "dog" & <more>'))
        place_job(output, make_job(output.uri, task=Task.CLASSIFY, label_sets=(things,)))
        facts = {"content_hash": "abc", "model_fingerprint": "f00d", "uri": "https://example.org/0.jpg"}
        add_part(output, 0, [classified(0) | facts, failed(1), classified(2)])

        tasks, config = self.export(output, to)

        result = {
            "id": "things", "from_name": "things", "to_name": "image", "type": "choices",
            "value": {"choices": ["cat"]}, "score": 0.75,
        }  # fmt: skip
        assert tasks[0] == {
            "data": {
                "image": facts["uri"], "uri": facts["uri"], "item_index": 0, "item_id": "img0",
                "content_hash": "abc", "label_sets": ["things"],
            },
            "predictions": [{"model_version": "f00d", "score": 0.75, "result": [result]}],
        }  # fmt: skip
        assert [task["data"]["item_index"] for task in tasks] == [0, 2]
        assert tasks[1]["data"]["image"] == "/data/local-files/?d=p/2.jpg"
        view = ElementTree.fromstring(config)  # noqa: S314 - we wrote it
        assert [one.get("value") for one in view.iter("Choice")] == list(things.labels)
        assert [one.attrib for one in view.iter("Choices")] == [
            {"name": "things", "toName": "image", "choice": "single", "required": "true"}
        ]

    def test_all_accepted_labels_of_each_set_are_predicted(self, output: FolderOutput, to: Path) -> None:
        sets = tuple(
            LabelSet(name=name, labels=("cat", "dog"), kind=LabelKind.MULTI) for name in ("first", "second")
        )
        job = make_job(output.uri, task=Task.CLASSIFY, label_sets=sets)
        place_job(output, job)
        some = [accepting(0, "dog", "cat"), accepting(1)]
        for one in some:
            one |= {f"{name}_first": one[name] for name in (*LABEL_COLUMNS, "accepted")}
            one |= {f"{name}_second": None for name in (*LABEL_COLUMNS, "accepted")}
        add_part(output, 0, some, label_sets=("first", "second"), accepted=job.accepted_columns)

        tasks, config = self.export(output, to)

        results = [task["predictions"][0]["result"] for task in tasks]
        assert [[(one["from_name"], one["value"]["choices"]) for one in some] for some in results] == [
            [("first", ["dog", "cat"])], [],
        ]  # fmt: skip
        assert config.count('choice="multiple"') == config.count("<Header") == 2

    def test_what_is_marked_comes_back_as_marks_of_its_set(self, output: FolderOutput, to: Path) -> None:
        sets = tuple(LabelSet(name=name, labels=("cat", "dog")) for name in ("first", "second"))
        place_job(output, make_job(output.uri, task=Task.CLASSIFY, label_sets=sets))
        one = classified(4)
        one |= {f"{name}_{own.name}": one[name] for own in sets for name in LABEL_COLUMNS}
        add_part(output, 0, [one], label_sets=("first", "second"))
        (task,), _ = self.export(output, to)
        results = task["predictions"][0]["result"]
        results[1]["value"] = {"choices": ["dog"]}
        annotation = {"result": results, "completed_by": {"email": "ann@example.org"}}
        (to.parent / "back.json").write_text(json.dumps([{**task, "annotations": [annotation]}]))

        for name, shown in ("first", "cat"), ("second", "dog"):
            marks = read_marks([to.parent / "back.json"], ("cat", "dog"), name)
            assert {(one.label, one.verdict, one.item_index, one.by) for one in marks} == {
                (label, "yes" if label == shown else "no", 4, "ann@example.org") for label in ("cat", "dog")
            }
        assert read_marks([to.parent / "back.json"], ("cat", "dog"), "third") == []

    def test_rows_without_labels_are_refused(self, finished: FolderOutput, to: Path) -> None:
        with pytest.raises(UsageError, match="no label set has labelled its rows: run `clipfleet relabel`"):
            export(PartRows(finished), Layout.LABEL_STUDIO, to)
        assert not to.exists()


class TestFiftyOne:
    def export(self, output: FolderOutput, to: Path) -> dict[str, dict[str, Any]]:
        export(PartRows(output), Layout.FIFTYONE, to)
        return {path.name: json.loads(path.read_text()) for path in to.iterdir()}

    def target(self, index: int, label: int, confidence: float | None) -> dict[str, Any]:
        about = {"item_index": index, "item_id": f"img{index}"}
        return {"label": label, "confidence": confidence, "attributes": about}

    def test_each_image_in_a_file_has_its_label(self, output: FolderOutput, to: Path) -> None:
        things = LabelSet(name="things", labels=("dog", "cat"))
        place_job(output, make_job(output.uri, task=Task.CLASSIFY, label_sets=(things,)))
        some = [classified(0), failed(1), {**classified(2), "label": None}, classified(3), classified(4)]
        some[3]["uri"], some[4]["uri"] = "https://example.org/3.jpg", some[0]["uri"]
        add_part(output, 0, some)

        counts = export(PartRows(output), Layout.FIFTYONE, to)

        assert json.loads((to / "labels.json").read_text()) == {
            "classes": ["dog", "cat"], "labels": {"/p/0.jpg": self.target(0, 1, 0.75), "/p/2.jpg": None},
        }  # fmt: skip
        assert (counts.rows, counts.left_out, counts.lack) == (2, 3, "a file with an image of their own")

    def test_of_multi_sets_all_accepted_labels_each_set_in_its_file(
        self, output: FolderOutput, to: Path
    ) -> None:
        sets = tuple(
            LabelSet(name=name, labels=("cat", "dog"), kind=LabelKind.MULTI) for name in ("first", "second")
        )
        job = make_job(output.uri, task=Task.CLASSIFY, label_sets=sets)
        place_job(output, job)
        one = accepting(0, "dog", "cat")
        one |= {f"{name}_first": one[name] for name in (*LABEL_COLUMNS, "accepted")}
        one |= {f"{name}_second": None for name in LABEL_COLUMNS} | {"accepted_second": []}
        add_part(output, 0, [one], label_sets=("first", "second"), accepted=job.accepted_columns)

        found = self.export(output, to)

        assert {name: file["labels"]["/p/0.jpg"] for name, file in found.items()} == {
            "labels.json": [self.target(0, 1, 0.75), self.target(0, 0, 0.625)], "labels-second.json": [],
        }  # fmt: skip

    def test_where_no_image_is_a_file_nothing_is_written(self, output: FolderOutput, to: Path) -> None:
        things = LabelSet(name="things", labels=("dog", "cat"))
        place_job(output, make_job(output.uri, task=Task.CLASSIFY, label_sets=(things,)))
        add_part(output, 0, [{**classified(0), "uri": "https://example.org/3.jpg"}])

        with pytest.raises(UsageError, match="no row has an image in a file, which FiftyOne looks for"):
            self.export(output, to)
        assert not to.exists()


class TestTheFolder:
    @LAYOUTS
    def test_one_that_holds_something_stays(self, finished: FolderOutput, to: Path, layout: Layout) -> None:
        to.mkdir()
        (to / "mine.txt").write_text("mine")

        with pytest.raises(UsageError, match="not empty"):
            export(PartRows(finished), layout, to)
        assert names(to) == ["mine.txt"]

    @pytest.mark.parametrize("name", ["a", "b/c", "~nobody-of-this-name/to"])
    def test_one_that_can_be_made_or_is_empty(self, finished: FolderOutput, to: Path, name: str) -> None:
        (to.parent / "a").mkdir()

        export(PartRows(finished), Layout.CSV, Path(name))

        assert names(to.parent / name) == ["rows.csv"]

    @pytest.mark.parametrize(
        ("name", "words"),
        [
            ("file", "is not a folder"),
            ("link", "is not a folder"),
            ("s3://bucket/x", "a local folder"),
            ("file:///tmp/x", "a local folder"),
        ],
    )
    def test_what_cannot_be_used(self, finished: FolderOutput, folder: Path, name: str, words: str) -> None:
        Path("file").touch()
        Path("link").symlink_to("nowhere")

        with pytest.raises(UsageError, match=words):
            export(PartRows(finished), Layout.CSV, Path(name))
        assert sorted(path.name for path in folder.iterdir()) == ["file", "link", "out"]

    def test_the_current_one(self, finished: FolderOutput, to: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        to.mkdir()
        monkeypatch.chdir(to)

        with pytest.raises(UsageError, match="is the current folder"):
            export(PartRows(finished), Layout.CSV, Path())

    def test_where_nothing_can_be_written_it_says_so(self, finished: FolderOutput) -> None:
        with pytest.raises(OutputUnavailableError, match="/proc"):
            export(PartRows(finished), Layout.CSV, Path("/proc/clipfleet/to"))

    @LAYOUTS
    def test_what_breaks_off_leaves_nothing(self, finished: FolderOutput, to: Path, layout: Layout) -> None:
        finished.replace(objects.LAYOUT.part(2), b"PAR1 damaged")

        with pytest.raises(OutputDamagedError, match=r"part-00000002\.parquet"):
            export(PartRows(finished), layout, to / "deep")
        assert list(to.iterdir()) == []

    @LAYOUTS
    def test_it_is_not_seen_before_it_is_whole(
        self, finished: FolderOutput, to: Path, layout: Layout, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        seen: list[bool] = []
        fsync = os.fsync
        monkeypatch.setattr(os, "fsync", lambda descriptor: seen.append(to.exists()) or fsync(descriptor))

        export(PartRows(finished), layout, to)

        assert seen == [False] * len(names(to))

    def test_without_a_part_there_are_no_results_yet(self, output: FolderOutput, to: Path) -> None:
        with pytest.raises(ResultsNotReadyError):
            export(PartRows(output), Layout.CSV, to)
        assert list(to.parent.iterdir()) == []


class TestDecisions:
    """Of a moderation job."""

    @pytest.fixture
    def moderated(self, output: FolderOutput) -> FolderOutput:
        job = moderation_job(make_policy(), output.uri)
        place_job(output, job)
        schema = part_schema(None, accepted_columns=["accepted"], has_decisions=True)
        scored = {**accepting(0, "cat"), "model_fingerprint": "f00d"}
        empty = pa.Table.from_pylist([{name: scored.get(name) for name in schema.names}], schema)
        rows_of = with_decisions(empty, job, 0, FINISHED_AT)
        footer = {"job_id": job.job_id, "chunk_id": "0", "ok": "1", "failed": "0"}
        with output.scratch() as path:
            pq.write_table(rows_of.replace_schema_metadata(footer), path)
            output.publish(path, objects.LAYOUT.part(0))
        return output

    def test_a_line_of_a_batch_has_its_decision(self, moderated: FolderOutput, to: Path) -> None:
        export(PartRows(moderated), Layout.OPENAI_BATCH, to)

        (line,) = lines(to / "output.jsonl")
        assert line["response"]["body"]["decision"]["decision"] == "flag"
        assert not [name for name in line["response"]["body"]["item"] if name.startswith("deci")]

    def test_the_card_says_what_they_are(self, moderated: FolderOutput, to: Path) -> None:
        export(PartRows(moderated), Layout.HUGGING_FACE, to)

        card = (to / "README.md").read_text()
        assert "| `decision` | string | `flag`, `review`, `allow`, or `undecided`" in card
        assert "| `decision_reasons` | list of struct | the conditions that counted" in card


def test_when_a_job_was_finished(finished: FolderOutput) -> None:
    assert PartRows(finished).finished_at() == FINISHED_AT
    finished.remove(objects.SUCCESS)
    assert PartRows(finished).finished_at() is None
    finished.create(objects.SUCCESS, b"")
    finished.replace(objects.MANIFEST, b"{}")
    with pytest.raises(OutputDamagedError, match=r"_manifest\.json"):
        PartRows(finished).finished_at()


def test_chosen_columns_are_read_alone(finished: FolderOutput) -> None:
    stored = PartRows(finished).read(["item_id", "embedding"])

    rows = [one for batch in stored.batches for one in batch.to_pylist()]
    assert [list(one) for one in rows] == [["item_id", "embedding"]] * 7
    assert row(2)["item_id"] == rows[2]["item_id"]
