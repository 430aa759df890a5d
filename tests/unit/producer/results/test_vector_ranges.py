"""Stored rows and vectors, read in ranges of whole parts."""

from __future__ import annotations

import tracemalloc
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path
from threading import Barrier
from typing import Any
from unittest.mock import Mock

import pyarrow as pa
import pytest

from clipfleet.contract.columns import VectorType
from clipfleet.contract.jobs import PartFormat, SourceDescription
from clipfleet.contract.label_sets import LabelKind, LabelSet
from clipfleet.contract.parts import PartRange
from clipfleet.errors import (
    OutputConflictError,
    OutputDamagedError,
    OutputUnavailableError,
    OutputUnreachableError,
    ResultsNotReadyError,
)
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.job_file import job_of
from clipfleet.parts.jsonl import OpenJsonlPart
from clipfleet.parts.parquet import OpenParquetPart, ParquetParts
from clipfleet.results.part_rows import PartRows
from clipfleet.results.vector_ranges import KEPT_COLUMNS, VECTORS_COLUMN, PartRanges
from tests.support.jobs import make_job, place_job
from tests.support.vector_outputs import (
    DIMENSION,
    add_stored_part,
    damage_vectors,
    finish_stored,
    stored_output,
    stored_rows,
    vectors_of,
)

SIZES = (3, 2, 4)
SOURCE = SourceDescription(kind="csv", uri="/list.csv", extra_columns=("caption", "accepted"))


def ranges_of(output: FolderOutput, sizes: tuple[int, ...] = SIZES, **values: Any) -> PartRanges:
    job = stored_output(output, sizes, **values)
    return PartRanges(output, vectors_of(job), job.source.extra_columns)


@pytest.mark.parametrize(
    ("most", "expected"),
    [
        (1, [(0, 0, 1, 3), (3, 1, 1, 2), (5, 2, 1, 4)]),
        (5, [(0, 0, 2, 5), (5, 2, 1, 4)]),
        (6, [(0, 0, 2, 5), (5, 2, 1, 4)]),
        (9, [(0, 0, 3, 9)]),
        (4096, [(0, 0, 3, 9)]),
    ],
)
def test_ranges_are_of_whole_parts(
    output: FolderOutput, most: int, expected: list[tuple[int, int, int, int]]
) -> None:
    assert [*ranges_of(output).ranges(most)] == [PartRange(*one) for one in expected]


@pytest.mark.parametrize("part_format", PartFormat)
@pytest.mark.parametrize("vector_type", VectorType)
@pytest.mark.parametrize("version", [1, 2])
def test_a_range_has_the_rows_of_its_parts(
    output: FolderOutput, part_format: PartFormat, vector_type: VectorType, version: int
) -> None:
    values = {"part_format": part_format, "vector_type": vector_type, "schema_version": version}
    ranges = ranges_of(output, source=SOURCE, **values)

    rows = ranges.read(PartRange(3, 1, 2, 6))

    assert rows.column_names == [*KEPT_COLUMNS, "caption", "accepted", "embedding"]
    number = pa.float32() if vector_type is VectorType.FLOAT32 else pa.float16()
    assert rows.schema.field("embedding").type == pa.list_(number, DIMENSION)
    assert rows["item_index"].to_pylist() == [*range(3, 9)]
    assert rows["caption"].to_pylist() == [f"caption of {index}" for index in range(3, 9)]
    assert rows["embedding"].null_count == 0


def test_a_failed_row_has_its_error_and_no_vector(output: FolderOutput) -> None:
    first, second, *_ = ranges_of(output).read(PartRange(0, 0, 1, 3)).to_pylist()

    assert (first["status"], first["error_code"], first["embedding"]) == ("failed", "not_found", None)
    assert (second["status"], len(second["embedding"])) == ("ok", DIMENSION)


def test_columns_of_labels_are_left_out(output: FolderOutput) -> None:
    sets = tuple(LabelSet(name=name, labels=("a", "b"), kind=LabelKind.MULTI) for name in ("one", "two"))
    job = stored_output(output, labels=("a",), label_sets=sets, store_embeddings=True)

    rows = PartRanges(output, vectors_of(job), ()).read(PartRange(0, 0, 3, 9))

    assert rows.column_names == [*KEPT_COLUMNS, "embedding"]


def test_a_part_without_any_vector_has_those_of_the_others(output: FolderOutput) -> None:
    job = stored_output(output, (2,))
    add_stored_part(output, job, 1, stored_rows(job, 2, 2, failed=(0, 1)))
    finish_stored(output, job, (2, 2))

    rows = PartRanges(output, vectors_of(job), ()).read(PartRange(0, 0, 2, 4))

    assert rows.schema.field("embedding").type.list_size == DIMENSION
    assert rows["embedding"].combine_chunks().is_null().to_pylist() == [True, False, True, True]


@pytest.mark.parametrize("part_format", PartFormat)
def test_vectors_of_another_length_are_refused_unread(
    output: FolderOutput, part_format: PartFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = stored_output(output, part_format=part_format)
    vectors = vectors_of(job).model_copy(update={"dimension": 4})

    for kind in (OpenParquetPart, OpenJsonlPart):
        monkeypatch.setattr(kind, "batches", without_vectors(kind.batches))
    with pytest.raises(OutputConflictError, match="length 8 instead of 4: from another model"):
        PartRanges(output, vectors, ()).read(PartRange(0, 0, 1, 3))


def without_vectors(
    batches: Callable[..., Iterator[pa.RecordBatch]],
) -> Callable[..., Iterator[pa.RecordBatch]]:
    """Refuses to read vectors."""

    def checked(part: Any, columns: list[str]) -> Iterator[pa.RecordBatch]:
        assert VECTORS_COLUMN not in columns, "long vectors were read"
        return batches(part, columns)

    return checked


@pytest.mark.parametrize("has_footer", [True, False])
def test_of_a_long_part_as_json_lines_no_more_than_its_rows_can_have_is_read(
    output: FolderOutput, monkeypatch: pytest.MonkeyPatch, has_footer: bool
) -> None:
    ranges = ranges_of(output, part_format=PartFormat.JSONL)
    path = Path(output.uri, objects.LAYOUT.part(0, PartFormat.JSONL))
    if not has_footer:
        for name in [*output.names(objects.FOOTER_PREFIX)]:
            output.remove(name)
    with path.open("r+b") as file:
        file.truncate(4 << 30)  # a hole
    tracemalloc.start()
    with pytest.raises(OutputDamagedError, match=r"has more than [\d,]+ bytes"):
        ranges.read(PartRange(0, 0, 1, 3))
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 1 << 30


def test_nothing_of_a_part_as_json_lines_is_parsed_before_it_is_known_to_be_ours(
    output: FolderOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges = ranges_of(output, part_format=PartFormat.JSONL)
    for name in [*output.names(objects.FOOTER_PREFIX)]:
        output.remove(name)
    monkeypatch.setattr(OpenJsonlPart, "_rows", Mock(side_effect=AssertionError("rows were read")))

    with pytest.raises(OutputDamagedError, match="is not a part: no footer matches"):
        ranges.read(PartRange(0, 0, 1, 3))


@pytest.mark.parametrize("changed", [PartRange(0, 0, 1, 2), PartRange(1, 0, 1, 3)])
def test_rows_that_are_not_those_of_the_range_are_refused(output: FolderOutput, changed: PartRange) -> None:
    with pytest.raises(OutputDamagedError, match="when the job was submitted"):
        ranges_of(output).read(changed)


@pytest.mark.parametrize("part_format", PartFormat)
def test_no_row_is_read_of_a_part_with_more_rows_than_the_range(
    output: FolderOutput, part_format: PartFormat, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A small file may hold millions of equal rows."""
    ranges = ranges_of(output, (3, 5000), part_format=part_format)
    for kind in (OpenParquetPart, OpenJsonlPart):
        monkeypatch.setattr(kind, "batches", Mock(side_effect=AssertionError("rows were read")))

    with pytest.raises(OutputDamagedError, match="has 5,000 rows, more than when the job was submitted"):
        ranges.read(PartRange(3, 1, 1, 4096))


def test_a_part_that_lies_about_its_rows_is_left_early(
    output: FolderOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges, read = ranges_of(output, (4,)), []

    def batches(part: OpenParquetPart, columns: list[str]) -> Iterator[pa.RecordBatch]:
        for number in range(9):
            read.append(number)
            yield part._file.read(columns=columns).to_batches()[0]

    monkeypatch.setattr(OpenParquetPart, "batches", batches)

    with pytest.raises(OutputDamagedError, match="more than when the job was submitted"):
        ranges.read(PartRange(0, 0, 1, 4))
    assert read == [0, 1]


def test_parts_that_have_more_rows_together_are_not_all_read(
    output: FolderOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges, opened = ranges_of(output, (4,) * 40), []
    whole = ParquetParts.open
    monkeypatch.setattr(
        ParquetParts, "open",
        lambda self, place, name, **most: opened.append(name) or whole(self, place, name, **most),
    )  # fmt: skip

    with pytest.raises(OutputDamagedError, match="items 0 to 39 are not there as they were"):
        ranges.read(PartRange(0, 0, 40, 40))
    assert len(opened) < 40


@pytest.mark.parametrize(
    "written",
    [
        (0, 0, 1, 4097),
        (0, 0, 1, 0),
        (0, 0, 0, 3),
        (0, 0, 4, 3),
        (0, 0, 257, 4096),
        (-1, 0, 1, 1),
        (0, -1, 1, 1),
    ],
)
def test_a_range_that_no_submit_stages_is_refused(output: FolderOutput, written: tuple[int, ...]) -> None:
    with pytest.raises(OutputDamagedError, match="is no range of parts of a chunk"):
        ranges_of(output).read(PartRange(*written))


def test_a_range_with_more_rows_than_the_jobs_chunks_is_refused(output: FolderOutput) -> None:
    job = stored_output(output)

    with pytest.raises(OutputDamagedError, match="is no range of parts of a chunk"):
        PartRanges(output, vectors_of(job), (), most_rows=2).read(PartRange(0, 0, 1, 3))


def test_a_range_has_a_bounded_number_of_parts(output: FolderOutput, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each costs round trips to S3, however small it is."""
    monkeypatch.setattr(PartRows, "rows_of_parts", lambda _: [1] * 600)

    sizes = [part_range.parts for part_range in ranges_of(output).ranges(4096)]

    assert sizes == [256, 256, 88]


def test_parts_in_s3_are_read_at_the_same_time_in_order_and_noted_one_by_one(
    output: FolderOutput, monkeypatch: pytest.MonkeyPatch
) -> None:
    ranges, together, noted = ranges_of(output, (2,) * 7), Barrier(2), []
    ranges.uri = "s3://bucket/output"
    whole = ParquetParts.open

    def opened(files: ParquetParts, place: FolderOutput, name: str, **most: int) -> Any:
        if name != files.name(0):  # that one is read alone
            together.wait(30)
        return whole(files, place, name, **most)

    monkeypatch.setattr(ParquetParts, "open", opened)

    rows = ranges.read(PartRange(0, 0, 7, 14), alive=lambda: noted.append(1))

    assert rows["item_index"].to_pylist() == [*range(14)]
    assert len(noted) == 7


def test_a_read_ends_when_it_is_told_to(output: FolderOutput) -> None:
    with pytest.raises(InterruptedError):
        ranges_of(output).read(PartRange(0, 0, 3, 9), alive=Mock(side_effect=InterruptedError))


def test_a_damaged_part_is_named_with_the_way_out(output: FolderOutput) -> None:
    ranges = ranges_of(output)
    damage_vectors(Path(output.uri, objects.LAYOUT.part(1)))

    with pytest.raises(
        OutputDamagedError,
        match=r"part-00000001\.parquet is damaged: remove it, run `clipfleet retry 2026.*damaged: ",
    ):
        ranges.read(PartRange(0, 0, 2, 5))


def test_without_their_vectors_its_rows_are_still_there(output: FolderOutput) -> None:
    ranges = ranges_of(output)
    damage_vectors(Path(output.uri, objects.LAYOUT.part(1)))

    rows = ranges.read(PartRange(0, 0, 2, 5), with_vectors=False)

    assert rows.column_names == [*KEPT_COLUMNS]
    assert rows["item_index"].to_pylist() == [*range(5)]


def test_all_that_is_needed_is_there_or_not(output: FolderOutput) -> None:
    ranges = ranges_of(output)
    ranges.require_all()

    output.remove(objects.LAYOUT.part(1))
    with pytest.raises(OutputDamagedError, match="missing"):
        ranges.require_all()
    output.remove(objects.JOB_FILE)
    with pytest.raises(OutputUnreachableError, match="is missing"):
        ranges.require_all()


def test_an_output_that_is_overwritten_between_two_reads_is_a_conflict(output: FolderOutput) -> None:
    """Not a part to wait for: the other job may never write it."""
    ranges = ranges_of(output)
    ranges.read(PartRange(0, 0, 1, 3))
    output.remove(objects.LAYOUT.part(1))
    output.remove(objects.JOB_FILE)
    place_job(output, make_job(output.uri, job_id="other"))

    with pytest.raises(OutputConflictError, match="holds job other by now"):
        ranges.read(PartRange(3, 1, 1, 2))


def test_another_job_of_the_same_id_is_a_conflict(output: FolderOutput) -> None:
    """As of a nightly run with a fixed id, whose first output was removed."""
    ranges = ranges_of(output)
    ranges.read(PartRange(0, 0, 1, 3))
    before = job_of(output)
    assert before is not None
    output.remove(objects.JOB_FILE)
    place_job(output, before.model_copy(update={"created_at": before.created_at + timedelta(days=1)}))

    with pytest.raises(OutputConflictError, match="holds another job of the same id by now"):
        ranges.read(PartRange(3, 1, 1, 2))


def test_a_missing_part_may_come_back(output: FolderOutput) -> None:
    ranges = ranges_of(output)
    output.remove(objects.LAYOUT.part(1))

    with pytest.raises(OutputUnavailableError, match=r"part-00000001\.parquet: is not there") as caught:
        ranges.read(PartRange(0, 0, 2, 5))
    assert not isinstance(caught.value, OutputUnreachableError)
    with pytest.raises(OutputDamagedError, match=r"listed in _manifest\.json but missing"):
        [*ranges.ranges(1)]


def test_an_output_that_is_gone_is_unreachable(output: FolderOutput) -> None:
    ranges = ranges_of(output)
    output.remove(objects.JOB_FILE)

    with pytest.raises(OutputUnreachableError, match="is the folder mounted on this machine"):
        ranges.read(PartRange(0, 0, 1, 3))


def test_another_job_in_the_output_is_a_conflict(output: FolderOutput) -> None:
    job = stored_output(output)
    vectors = vectors_of(job).model_copy(update={"job_id": "mine"})

    with pytest.raises(OutputConflictError, match=f"holds job {job.job_id} by now, not mine"):
        PartRanges(output, vectors, ()).read(PartRange(0, 0, 1, 3))


def test_a_part_of_another_job_is_a_conflict(output: FolderOutput) -> None:
    ranges, other = ranges_of(output), FolderOutput(Path(f"{output.uri}-other"))
    stored_output(other, job_id="other")
    name = objects.LAYOUT.part(1)
    output.replace(name, other.read(name) or b"")

    with pytest.raises(OutputConflictError, match="belongs to job 'other'"):
        ranges.read(PartRange(0, 0, 2, 5))


def test_a_part_without_identity_is_damaged(output: FolderOutput) -> None:
    ranges = ranges_of(output, part_format=PartFormat.JSONL)
    for name in [*output.names(objects.FOOTER_PREFIX)]:
        output.remove(name)

    with pytest.raises(OutputDamagedError, match="is not a part: no footer matches"):
        ranges.read(PartRange(0, 0, 1, 3))


def test_a_job_that_has_not_finished_has_no_ranges(output: FolderOutput) -> None:
    ranges = ranges_of(output)
    output.remove(objects.SUCCESS)

    with pytest.raises(ResultsNotReadyError, match="has not finished"):
        [*ranges.ranges(1)]
