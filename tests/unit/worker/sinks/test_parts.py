"""Parts in an output: created once, adopted only where job, chunk and generation are those of the claim."""

from __future__ import annotations

import errno
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.contract.parts import PartCounts, PartIdentity, part_schema
from clipfleet.contract.versions import SCHEMA_VERSION
from clipfleet.errors import OutputConflictError, OutputUnavailableError, OutputUnreachableError
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.parquet import footer, open_parquet
from clipfleet.results import rows as results
from clipfleet.results.part_rows import PartRows
from clipfleet_worker.sinks.parts import PartSink
from tests.support.failing import failing

OURS = PartIdentity("job-a", 3, 0)
COUNTS = PartCounts(ok=1, failed=2, codes={"not_found": 1, "timeout": 1})
OF_STORES = {"same": "0", "copied": "0"}
OTHER_CHUNK = replace(OURS, chunk_id=4)
OF_OURS = {"job_id": "job-a", "chunk_id": "3", "generation": "0", "ok": "1", "failed": "0", "codes": "{}"}


def rows(*uris: str, dimension: int = 2) -> pa.Table:
    """Rows of a part, ok and without an answer."""
    values = [
        {"item_index": number, "item_id": str(number), "uri": uri, "status": "ok"}
        for number, uri in enumerate(uris)
    ]
    return pa.Table.from_pylist(values, part_schema(dimension))


def put(output: FolderOutput, identity: PartIdentity, name: str) -> None:
    """Another writer's part, under any name."""
    elsewhere = FolderOutput(Path(output.uri, "elsewhere"))
    PartSink(elsewhere).write(identity, rows("/theirs.jpg"), PartCounts(1, 0, {}))
    output.replace(name, elsewhere.read(objects.LAYOUT.part(identity.chunk_id)))


def uris(output: FolderOutput) -> list[str]:
    return [row["uri"] for row in results.rows(PartRows(output))]


@pytest.fixture
def output(tmp_path: Path) -> FolderOutput:
    return FolderOutput(tmp_path / "out")


@pytest.fixture
def sink(output: FolderOutput) -> PartSink:
    return PartSink(output)


class TestWriting:
    def test_the_footer_says_whose_it_is_and_how_many_rows_failed(
        self, sink: PartSink, output: FolderOutput
    ) -> None:
        sink.write(OURS, rows("/a.jpg"), COUNTS)

        file = open_parquet(output, objects.LAYOUT.part(3))
        counts = {"ok": "1", "failed": "2", "codes": '{"not_found": 1, "timeout": 1}', **OF_STORES}
        assert footer(file) == {**OF_OURS, **counts, "schema_version": str(SCHEMA_VERSION)}
        file.close(force=True)

    def test_a_part_without_vectors_does_not_set_the_length_of_all_others(
        self, sink: PartSink, output: FolderOutput
    ) -> None:
        # Given a first part that was given up before the model, and its dimension, was known
        failed = rows("/a.jpg", dimension=1)
        sink.write(replace(OURS, chunk_id=0), failed, PartCounts(0, 1, {"model_unavailable": 1}))
        vectors = pa.FixedSizeListArray.from_arrays(pa.array([0.5, -0.5], pa.float16()), 2)
        position = failed.schema.get_field_index("embedding")
        good = rows("/b.jpg").set_column(position, part_schema(2).field("embedding"), vectors)
        sink.write(replace(OURS, chunk_id=1), good, PartCounts(1, 0, {}))

        assert [row["embedding"] for row in results.rows(PartRows(output))] == [None, [0.5, -0.5]]


class TestFinding:
    def test_a_part_of_another_chunk_is_a_conflict_and_stays(
        self, sink: PartSink, output: FolderOutput
    ) -> None:
        put(output, OTHER_CHUNK, objects.LAYOUT.part(3))

        with pytest.raises(OutputConflictError) as caught:
            sink.find(OURS)
        for word in (objects.LAYOUT.part(3), OTHER_CHUNK.job_id, f"chunk {OTHER_CHUNK.chunk_id}"):
            assert word in str(caught.value)
        with pytest.raises(OutputConflictError, match=f"job {OTHER_CHUNK.job_id!r}"):
            sink.write(OURS, rows("/a.jpg"), COUNTS)
        assert uris(output) == ["/theirs.jpg"]

    @pytest.mark.parametrize(
        "metadata",
        [{}, {"job_id": "job-a"}, OF_OURS | {"chunk_id": "three"}, OF_OURS | {"codes": "{"},
         OF_OURS | {"codes": "[1]"}],
    )  # fmt: skip
    def test_a_file_of_another_program_is_a_conflict(
        self, sink: PartSink, output: FolderOutput, metadata: dict[str, str]
    ) -> None:
        with output.scratch() as path:
            pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(metadata), path)
            output.publish(path, objects.LAYOUT.part(3))

        with pytest.raises(OutputConflictError, match=r"part-00000003\.parquet is not a part"):
            sink.find(OURS)

    @pytest.mark.parametrize("keep", [0, 3, 100, -9, -2])
    def test_a_damaged_file_is_a_conflict(self, sink: PartSink, output: FolderOutput, keep: int) -> None:
        sink.write(OURS, rows("/a.jpg"), COUNTS)
        output.replace(objects.LAYOUT.part(3), output.read(objects.LAYOUT.part(3))[:keep])

        with pytest.raises(OutputConflictError, match=r"part-00000003\.parquet is not a part"):
            sink.find(OURS)

    def test_garbage_between_the_magic_words_is_a_conflict(
        self, sink: PartSink, output: FolderOutput
    ) -> None:
        # Arrow reports this one as an OSError
        garbage = b"\xff" * 64
        output.create(
            objects.LAYOUT.part(3), b"PAR1" + garbage + len(garbage).to_bytes(4, "little") + b"PAR1"
        )

        with pytest.raises(OutputConflictError, match=r"part-00000003\.parquet is not a part"):
            sink.find(OURS)


class TestTheWorldFails:
    def test_a_read_that_fails_is_no_conflict(self, sink: PartSink, monkeypatch: pytest.MonkeyPatch) -> None:
        sink.write(OURS, rows("/a.jpg"), COUNTS)
        monkeypatch.setattr(pq, "ParquetFile", failing(OSError(errno.ESTALE, "Stale file handle")))

        with pytest.raises(OutputUnavailableError, match="Stale file handle") as caught:
            sink.find(OURS)
        assert not isinstance(caught.value, OutputUnreachableError)

    def test_no_right_to_read_is_no_conflict(
        self, sink: PartSink, output: FolderOutput, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(output, "open", failing(OutputUnreachableError("Permission denied")))

        with pytest.raises(OutputUnreachableError, match="Permission denied"):
            sink.find(OURS)
