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
from clipfleet.errors import OutputConflictError, OutputUnavailableError
from clipfleet.ledger import keys
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.parquet import parquet_errors
from clipfleet.parts import part_files
from clipfleet.results import rows as results
from clipfleet.results.part_rows import PartRows
from clipfleet_worker.sinks.parts import PartSink
from tests.support.jobs import FullDisk, make_job, place_job

OURS = PartIdentity("job-a", 3, 0)
COUNTS = PartCounts(ok=1, failed=1, codes={"not_found": 1})
FORMATS = pytest.mark.parametrize("part_format", list(PartFormat))


def rows(*uris: str, **extra: str) -> pa.Table:
    """An ok row with a vector for the first URI, failed ones for the others."""
    values: list[dict[str, Any]] = [
        {"item_index": number, "item_id": str(number), "uri": uri, "status": "failed", **extra}
        for number, uri in enumerate(uris)
    ]
    values[0] |= {"status": "ok", "embedding": [0.25, -1.0], "score": 0.1, "label": "a\u2028b"}
    return pa.Table.from_pylist(values, part_schema(2, [pa.field(name, pa.string()) for name in extra]))


def sink(output: FolderOutput, job_id: str = OURS.job_id) -> PartSink:
    return PartSink(output, part_files(PartFormat.JSONL, job_id))


def jsonl_rows(output: FolderOutput) -> list[dict[str, Any]]:
    path = Path(output.uri, keys.part(OURS.chunk_id, PartFormat.JSONL))
    return [json.loads(line) for line in path.read_text().splitlines()]


@pytest.fixture
def output(tmp_path: Path) -> FolderOutput:
    return FolderOutput(tmp_path / "out")


class TestEveryFormat:
    @FORMATS
    def test_the_second_writer_adopts_what_is_there(
        self, output: FolderOutput, part_format: PartFormat
    ) -> None:
        first = PartSink(output, part_files(part_format, OURS.job_id))
        second = PartSink(output, part_files(part_format, OURS.job_id))
        first.write(OURS, rows("/a.jpg"), COUNTS)

        assert second.write(OURS, rows("/b.jpg"), PartCounts(1, 0, {})) == COUNTS
        assert second.find(OURS) == COUNTS

    @FORMATS
    def test_a_retry_replaces_the_part_that_it_has_read(
        self, output: FolderOutput, part_format: PartFormat
    ) -> None:
        target = PartSink(output, part_files(part_format, OURS.job_id))
        target.write(OURS, rows("/a.jpg", "/b.jpg"), COUNTS)
        later, counts = replace(OURS, generation=1), PartCounts(2, 0, {})

        older = target.older(later)
        assert older is not None
        assert older.rows.equals(rows("/a.jpg", "/b.jpg"))
        assert target.write(later, rows("/a.jpg", "/c.jpg"), counts, over=older) == counts

        assert target.find(later) == counts
        with pytest.raises(OutputUnavailableError, match="generation 1 by now"):
            target.find(OURS)
        assert [row["uri"] for row in results.rows(PartRows(output))] == ["/a.jpg", "/c.jpg"]

    @FORMATS
    def test_a_full_disk_is_waited_for(self, tmp_path: Path, part_format: PartFormat) -> None:
        with pytest.raises(OutputUnavailableError, match="No space left"):
            PartSink(FullDisk(tmp_path), part_files(part_format, "j")).write(OURS, rows("/a.jpg"), COUNTS)


class TestParquet:
    def test_what_repeats_has_a_dictionary_and_what_has_an_order_has_statistics(
        self, output: FolderOutput
    ) -> None:
        kinds = {
            "shelf": pa.string(),
            "tags": pa.list_(pa.string()),
            "nested": pa.struct([("a", pa.int32()), ("b", pa.large_list(pa.float64()))]),
            "pairs": pa.map_(pa.string(), pa.int32()),
            "fixed": pa.list_(pa.int16(), 2),
        }
        values = {"shelf": "7", "tags": ["x", "y"], "nested": {"a": 1, "b": [0.5]}, "pairs": [("k", 1)]}
        row = {
            "item_index": 0, "item_id": "0", "uri": "/a.jpg", "status": "ok", "content_hash": "ab",
            "label": "pie", "labels": ["pie"], "scores": [0.5], "fixed": [1, 2], "embedding": [0.5, 1.0],
        }  # fmt: skip
        extra = [pa.field(name, kind) for name, kind in kinds.items()]
        written = pa.Table.from_pylist([row | values], part_schema(2, extra))
        files = part_files(PartFormat.PARQUET, OURS.job_id)
        PartSink(output, files).write(OURS, written, COUNTS)

        with pq.ParquetFile(Path(output.uri, files.name(OURS.chunk_id))) as file:
            group = file.metadata.row_group(0)
            columns = [group.column(number) for number in range(group.num_columns)]
        without = {column.path_in_schema for column in columns if not column.has_dictionary_page}
        assert without == {"item_index", "item_id", "uri", "embedding.list.element", "content_hash"}
        without = {column.path_in_schema for column in columns if not column.is_stats_set}
        assert without == {"embedding.list.element", "content_hash"}


class TestJsonl:
    def test_a_part_holds_its_rows_and_nothing_else(self, output: FolderOutput) -> None:
        written = rows("/a.jpg", "/b.jpg", zip="007")
        sink(output).write(OURS, written, COUNTS)

        assert jsonl_rows(output) == written.to_pylist()
        assert list(jsonl_rows(output)[0]) == written.schema.names

    def test_other_readers_see_the_same_rows(self, output: FolderOutput) -> None:
        written = rows("/a.jpg", "/b.jpg", zip="007")
        sink(output).write(OURS, written, COUNTS)
        pattern = str(Path(output.uri, keys.PART_GLOBS["jsonl"]))

        found = duckdb.read_json(pattern, format="newline_delimited")
        assert found.columns == written.schema.names
        assert len(found.fetchall()) == 2
        table = pyarrow.json.read_json(Path(output.uri, keys.part(3, "jsonl")))
        assert table["uri"].to_pylist() == ["/a.jpg", "/b.jpg"]
        assert table["embedding"].to_pylist() == [[0.25, -1.0], None]

    def test_a_late_part_of_the_job_before_is_known_by_its_footer_and_replaced(
        self, output: FolderOutput
    ) -> None:
        other = replace(OURS, job_id="job-b")
        sink(output, "job-b").write(other, rows("/theirs.jpg"), COUNTS)
        with part_files(PartFormat.JSONL, OURS.job_id).open(output, keys.part(3, "jsonl")) as part:
            assert part.footer() == (other, COUNTS)

        assert sink(output).find(OURS) is None
        sink(output).write(OURS, rows("/ours.jpg"), COUNTS)

        assert [row["uri"] for row in jsonl_rows(output)] == ["/ours.jpg"]
        assert sink(output).find(OURS) == COUNTS

    def test_parts_of_two_generations_are_never_the_same_bytes(self, output: FolderOutput) -> None:
        """S3 replaces by content: who saw the one must not take the other for it."""
        sink(output).write(OURS, rows("/a.jpg", "/b.jpg"), COUNTS)
        before = output.read(keys.part(3, "jsonl"))
        for generation in (1, 2):
            identity = replace(OURS, generation=generation)
            sink(output).write(identity, rows("/a.jpg", "/b.jpg"), COUNTS, over=sink(output).older(identity))
            after = output.read(keys.part(3, "jsonl"))
            assert after != before
            assert [row["uri"] for row in jsonl_rows(output)] == ["/a.jpg", "/b.jpg"]
            before = after

    def test_the_part_of_another_chunk_in_its_place_is_a_conflict_and_stays(
        self, output: FolderOutput
    ) -> None:
        # Given a part of another chunk under the name of ours
        other = replace(OURS, chunk_id=4)
        sink(output, other.job_id).write(other, rows("/theirs.jpg"), COUNTS)
        theirs = Path(output.uri, keys.part(other.chunk_id, "jsonl"))
        theirs.rename(Path(output.uri, keys.part(OURS.chunk_id, "jsonl")))

        for call in (lambda: sink(output).find(OURS), lambda: sink(output).write(OURS, rows("/a"), COUNTS)):
            with pytest.raises(OutputConflictError, match=r"part-00000003\.jsonl"):
                call()
        assert [row["uri"] for row in jsonl_rows(output)] == ["/theirs.jpg"]

    def test_a_part_that_was_changed_is_no_part(self, output: FolderOutput) -> None:
        sink(output).write(OURS, rows("/a.jpg"), COUNTS)
        data = output.read(keys.part(3, "jsonl"))
        assert data is not None
        output.replace(keys.part(3, "jsonl"), data.replace(b"/a.jpg", b"/b.jpg"))

        with pytest.raises(OutputConflictError, match="no footer"):
            sink(output).find(OURS)

    def test_a_writer_that_dies_before_the_part_leaves_nothing_to_adopt(self, output: FolderOutput) -> None:
        # Given a footer without a part
        with output.scratch() as path:
            part_files(PartFormat.JSONL, OURS.job_id).write(output, path, OURS, rows("/a.jpg"), COUNTS)
        assert sink(output).find(OURS) is None

        # When another writer gets something else
        counts = PartCounts(1, 0, {})
        assert sink(output).write(OURS, rows("/b.jpg"), counts) == counts

        # Then its own footer counts
        assert sink(output).find(OURS) == counts

    def test_the_same_rows_in_a_later_generation_belong_to_it(self, output: FolderOutput) -> None:
        later = replace(OURS, generation=2)
        sink(output).write(OURS, rows("/a.jpg"), COUNTS)

        with output.scratch() as path:
            part_files(PartFormat.JSONL, OURS.job_id).write(output, path, later, rows("/a.jpg"), COUNTS)
            assert output.publish(path, keys.part(3, "jsonl"), replace=True)

        assert sink(output).find(later) == COUNTS
        # And a late writer of the first generation takes nothing back
        with pytest.raises(OutputUnavailableError, match="generation 2 by now"):
            sink(output).write(OURS, rows("/a.jpg"), COUNTS)
        assert sink(output).find(later) == COUNTS

    def test_a_damaged_footer_is_named(self, output: FolderOutput) -> None:
        sink(output).write(OURS, rows("/a.jpg"), COUNTS)
        (footer,) = Path(output.uri, keys.INTERNAL).glob("footer-*")
        footer.write_text("{}")

        with pytest.raises(OutputConflictError, match="footer-part-00000003"):
            sink(output).find(OURS)


class TestCopiedParts:
    """Parts that were copied somewhere without what lies beside them."""

    def test_of_two_formats_it_is_not_guessed_which_is_meant(self, output: FolderOutput) -> None:
        for part_format in PartFormat:
            target = PartSink(output, part_files(part_format, OURS.job_id))
            target.write(OURS, rows("/a.jpg"), COUNTS)

        with pytest.raises(OutputConflictError, match="two formats"):
            PartRows(output).read()
        place_job(output, make_job(output.uri, job_id=OURS.job_id, part_format=PartFormat.JSONL))
        assert [row["uri"] for row in results.rows(PartRows(output))] == ["/a.jpg"]


def test_memory_that_is_missing_for_reading_is_no_damage(output: FolderOutput) -> None:
    lacking = pa.ArrowMemoryError("malloc of size 64 failed")

    with pytest.raises(MemoryError), parquet_errors(output, "part-00000000.parquet"):
        raise lacking
