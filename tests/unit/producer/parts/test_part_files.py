"""Parts of every format: the rows come back in their types, identity and counts with them."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa
import pyarrow.json
import pyarrow.parquet as pq
import pytest

from clipfleet.contract.jobs import PartFormat
from clipfleet.contract.parts import PartCounts, PartIdentity, part_schema
from clipfleet.errors import OutputConflictError
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.parquet import parquet_errors
from clipfleet.parts import part_files
from clipfleet.results import rows as results
from clipfleet.results.part_rows import PartRows
from clipfleet_worker.sinks.parts import PartSink
from tests.support.jobs import make_job, place_job

OURS = PartIdentity("job-a", 3, 0)
COUNTS = PartCounts(ok=1, failed=1, codes={"not_found": 1})
PART = objects.LAYOUT.part(OURS.chunk_id, PartFormat.JSONL)


def rows(*uris: str, **extra: str) -> pa.Table:
    """An ok row with a vector for the first URI, failed ones for the others."""
    values: list[dict[str, Any]] = [
        {"item_index": number, "item_id": str(number), "uri": uri, "status": "failed", **extra}
        for number, uri in enumerate(uris)
    ]
    values[0] |= {"status": "ok", "embedding": [0.25, -1.0], "score": 0.1, "label": "a\u2028b"}
    return pa.Table.from_pylist(values, part_schema(2, [pa.field(name, pa.string()) for name in extra]))


def sink(output: FolderOutput, part_format: PartFormat = PartFormat.JSONL) -> PartSink:
    return PartSink(output, part_files(part_format, OURS.job_id))


def jsonl_rows(output: FolderOutput) -> list[dict[str, Any]]:
    return [json.loads(line) for line in Path(output.uri, PART).read_text().splitlines()]


def test_what_repeats_has_a_dictionary_and_what_is_sorted_has_statistics(output: FolderOutput) -> None:
    kinds = {
        "shelf": pa.string(),
        "tags": pa.list_(pa.string()),
        "nested": pa.struct([("a", pa.int32()), ("b", pa.large_list(pa.float64()))]),
        "pairs": pa.map_(pa.string(), pa.int32()),
        "fixed": pa.list_(pa.int16(), 2),
    }
    row = {
        "item_index": 0, "item_id": "0", "uri": "/a.jpg", "status": "ok", "content_hash": "ab",
        "label": "pie", "labels": ["pie"], "scores": [0.5], "fixed": [1, 2], "embedding": [0.5, 1.0],
        "shelf": "7", "tags": ["x", "y"], "nested": {"a": 1, "b": [0.5]}, "pairs": [("k", 1)],
    }  # fmt: skip
    schema = part_schema(2, [pa.field(name, kind) for name, kind in kinds.items()])
    sink(output, PartFormat.PARQUET).write(OURS, pa.Table.from_pylist([row], schema), COUNTS)

    group = pq.read_metadata(Path(output.uri, objects.LAYOUT.part(OURS.chunk_id))).row_group(0)
    columns = [group.column(number) for number in range(group.num_columns)]
    without = {column.path_in_schema for column in columns if not column.has_dictionary_page}
    unique = {"item_index", "item_id", "uri", "embedding.list.element", "content_hash"}
    assert without == {*unique, "score", "scores.list.element"}
    without = {column.path_in_schema for column in columns if not column.is_stats_set}
    assert without == {"embedding.list.element", "content_hash"}


class TestJsonl:
    def test_a_part_holds_its_rows_and_nothing_else_for_any_reader(self, output: FolderOutput) -> None:
        written = rows("/a.jpg", "/b.jpg", zip="007")
        sink(output).write(OURS, written, COUNTS)

        assert jsonl_rows(output) == written.to_pylist()
        assert list(jsonl_rows(output)[0]) == written.schema.names
        pattern = str(Path(output.uri, "data/*.jsonl"))
        found = duckdb.read_json(pattern, format="newline_delimited")
        assert found.columns == written.schema.names
        assert len(found.fetchall()) == 2
        table = pyarrow.json.read_json(Path(output.uri, PART))
        assert table["uri"].to_pylist() == ["/a.jpg", "/b.jpg"]
        assert table["embedding"].to_pylist() == [[0.25, -1.0], None]

    def test_parts_of_two_generations_are_never_the_same_bytes(self, output: FolderOutput) -> None:
        """S3 replaces by content: who saw the one must not take the other for it."""
        seen = set()
        for generation in range(3):
            identity = replace(OURS, generation=generation)
            over = sink(output).older(identity) if generation else None
            sink(output).write(identity, rows("/a.jpg", "/b.jpg"), COUNTS, over=over)
            seen.add(output.read(PART))
            assert sink(output).find(identity) == COUNTS
            assert [row["uri"] for row in jsonl_rows(output)] == ["/a.jpg", "/b.jpg"]
        assert len(seen) == 3

    def test_the_part_of_another_chunk_is_a_conflict_and_stays(self, output: FolderOutput) -> None:
        other = replace(OURS, chunk_id=4)
        sink(output).write(other, rows("/theirs.jpg"), COUNTS)
        Path(output.uri, objects.LAYOUT.part(other.chunk_id, "jsonl")).rename(Path(output.uri, PART))

        for call in (lambda: sink(output).find(OURS), lambda: sink(output).write(OURS, rows("/a"), COUNTS)):
            with pytest.raises(OutputConflictError, match=r"part-00000003\.jsonl"):
                call()
        assert [row["uri"] for row in jsonl_rows(output)] == ["/theirs.jpg"]

    def test_a_part_that_was_changed_is_no_part(self, output: FolderOutput) -> None:
        sink(output).write(OURS, rows("/a.jpg"), COUNTS)
        path = Path(output.uri, PART)
        path.write_bytes(path.read_bytes().replace(b"/a.jpg", b"/b.jpg"))

        with pytest.raises(OutputConflictError, match="no footer"):
            sink(output).find(OURS)

    def test_a_footer_without_a_part_is_nothing_to_adopt(self, output: FolderOutput) -> None:
        with output.scratch() as path:  # of a writer that died before it published
            part_files(PartFormat.JSONL, OURS.job_id).write(output, path, OURS, rows("/a.jpg"), COUNTS)
        assert sink(output).find(OURS) is None

        counts = PartCounts(1, 0, {})
        assert sink(output).write(OURS, rows("/b.jpg"), counts) == counts
        assert sink(output).find(OURS) == counts

    def test_a_damaged_footer_is_named(self, output: FolderOutput) -> None:
        sink(output).write(OURS, rows("/a.jpg"), COUNTS)
        (footer,) = Path(output.uri, objects.INTERNAL).glob("footer-*")
        footer.write_text("{}")

        with pytest.raises(OutputConflictError, match="footer-part-00000003"):
            sink(output).find(OURS)


def test_of_two_formats_in_a_copy_it_is_not_guessed_which_is_meant(output: FolderOutput) -> None:
    for part_format in PartFormat:
        sink(output, part_format).write(OURS, rows("/a.jpg"), COUNTS)

    with pytest.raises(OutputConflictError, match="two formats"):
        PartRows(output).read()
    place_job(output, make_job(output.uri, job_id=OURS.job_id, part_format=PartFormat.JSONL))
    assert [row["uri"] for row in results.rows(PartRows(output))] == ["/a.jpg"]


def test_memory_that_is_missing_for_reading_is_no_damage(output: FolderOutput) -> None:
    with pytest.raises(MemoryError), parquet_errors(output, "part-00000000.parquet"):
        raise pa.ArrowMemoryError("malloc of size 64 failed")
