"""Parts in an output: created once, adopted only where job, chunk and generation are those of the claim."""

from __future__ import annotations

import errno
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet.contract.parts import PartCounts, PartIdentity, part_schema
from clipfleet.contract.versions import SCHEMA_VERSION
from clipfleet.errors import OutputConflictError, OutputUnavailableError, OutputUnreachableError
from clipfleet.ledger import keys
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.parquet import footer, open_parquet
from clipfleet.results import rows as results
from clipfleet.results.part_rows import PartRows
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.sinks.parts import PartSink
from tests.support.doubles import PATIENCE_SECONDS
from tests.support.jobs import FullDisk

OURS = PartIdentity("job-a", 3, 0)
COUNTS = PartCounts(ok=1, failed=2, codes={"not_found": 1, "timeout": 1})
OTHER_JOB, OTHER_CHUNK = replace(OURS, job_id="job-b"), replace(OURS, chunk_id=4)
RETRIED = replace(OURS, generation=1)


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
    data = elsewhere.read(keys.part(identity.chunk_id))
    assert data is not None
    output.replace(name, data)


def uris(output: FolderOutput) -> list[str]:
    return [row["uri"] for row in results.rows(PartRows(output))]


@pytest.fixture
def output(tmp_path: Path) -> FolderOutput:
    return FolderOutput(tmp_path / "out")


@pytest.fixture
def sink(output: FolderOutput) -> PartSink:
    return PartSink(output)


class TestWriting:
    def test_the_part_has_the_name_of_its_chunk_and_all_rows(
        self, sink: PartSink, output: FolderOutput
    ) -> None:
        written = rows("/a.jpg", "/b.jpg")

        assert sink.write(OURS, written, COUNTS) == COUNTS

        assert list(output.names("")) == ["part-00000003.parquet"]
        found = pq.read_table(Path(output.uri, keys.part(3)))
        assert found.equals(written)

    def test_the_footer_says_whose_it_is_and_how_many_rows_failed(
        self, sink: PartSink, output: FolderOutput
    ) -> None:
        sink.write(OURS, rows("/a.jpg"), COUNTS)

        file = open_parquet(output, keys.part(3))
        assert footer(file) == {
            "job_id": "job-a",
            "chunk_id": "3",
            "generation": "0",
            "ok": "1",
            "failed": "2",
            "codes": '{"not_found": 1, "timeout": 1}',
            "schema_version": str(SCHEMA_VERSION),
        }
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

    def test_the_second_writer_adopts_what_is_there(self, sink: PartSink, output: FolderOutput) -> None:
        sink.write(OURS, rows("/first.jpg"), COUNTS)

        assert sink.write(OURS, rows("/second.jpg"), PartCounts(1, 0, {})) == COUNTS

        assert uris(output) == ["/first.jpg"]
        assert list(Path(output.uri, keys.TMP).iterdir()) == []

    def test_of_many_writers_one_wins_and_all_get_its_counts(
        self, sink: PartSink, output: FolderOutput
    ) -> None:
        barrier = threading.Barrier(8)

        def write(writer: int) -> PartCounts:
            barrier.wait(PATIENCE_SECONDS)
            return sink.write(OURS, rows(f"/{writer}.jpg"), PartCounts(writer, 0, {}))

        with ThreadPoolExecutor(8) as pool:
            answers = set(pool.map(lambda writer: write(writer).ok, range(8)))

        (winner,) = answers
        assert uris(output) == [f"/{winner}.jpg"]

    def test_the_part_of_another_chunk_in_its_place_is_a_conflict_and_stays(
        self, sink: PartSink, output: FolderOutput
    ) -> None:
        put(output, OTHER_CHUNK, keys.part(3))

        with pytest.raises(OutputConflictError, match=f"job {OTHER_CHUNK.job_id!r}"):
            sink.write(OURS, rows("/a.jpg"), COUNTS)

        assert uris(output) == ["/theirs.jpg"]

    def test_a_late_part_of_the_job_before_is_replaced(self, sink: PartSink, output: FolderOutput) -> None:
        """Its worker was frozen inside the write while the job was cancelled, and overwritten by ours."""
        put(output, OTHER_JOB, keys.part(3))

        assert sink.write(OURS, rows("/a.jpg"), COUNTS) == COUNTS

        assert uris(output) == ["/a.jpg"]

    def test_not_by_a_worker_whose_own_job_was_overwritten(self, output: FolderOutput) -> None:
        put(output, OTHER_JOB, keys.part(3))

        with pytest.raises(OutputUnreachableError, match="does not hold job job-a any more"):
            PartSink(output, is_ours=lambda: False).write(OURS, rows("/a.jpg"), COUNTS)

        assert uris(output) == ["/theirs.jpg"]

    def test_nothing_becomes_visible_without_the_lease(self, sink: PartSink, output: FolderOutput) -> None:
        def confirm() -> None:
            raise ChunkInterrupted("lost")

        older = sink.write(replace(OURS, chunk_id=4), rows("/old.jpg"), COUNTS) and sink.older(
            PartIdentity(OURS.job_id, 4, 1)
        )
        put(output, OTHER_JOB, keys.part(5))
        for chunk_id, generation, over in ((3, 0, None), (4, 1, older), (5, 0, None)):
            with pytest.raises(ChunkInterrupted, match="lost"):
                sink.write(
                    PartIdentity(OURS.job_id, chunk_id, generation),
                    rows("/a.jpg"),
                    COUNTS,
                    over=over,
                    confirm=confirm,
                )

        assert list(output.names(keys.PART_PREFIX)) == [keys.part(4), keys.part(5)]
        assert uris(output) == ["/old.jpg", "/theirs.jpg"]

    def test_a_part_that_vanishes_meanwhile_is_written_later(
        self, sink: PartSink, output: FolderOutput, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(output, "publish", lambda *_, **__: False)
            with pytest.raises(OutputUnavailableError, match="was replaced or removed meanwhile"):
                sink.write(OURS, rows("/a.jpg"), COUNTS)

        assert sink.write(OURS, rows("/a.jpg"), COUNTS) == COUNTS


class TestFinding:
    def test_nothing_is_there(self, sink: PartSink) -> None:
        assert sink.find(OURS) is None

    def test_the_counts_come_from_the_footer(self, sink: PartSink) -> None:
        sink.write(OURS, rows("/a.jpg"), COUNTS)

        assert sink.find(OURS) == COUNTS

    def test_a_part_of_another_chunk_is_a_conflict(self, sink: PartSink, output: FolderOutput) -> None:
        put(output, OTHER_CHUNK, keys.part(3))

        with pytest.raises(OutputConflictError) as caught:
            sink.find(OURS)

        for word in (keys.part(3), OTHER_CHUNK.job_id, f"chunk {OTHER_CHUNK.chunk_id}"):
            assert word in str(caught.value)

    def test_a_part_of_another_job_is_none(self, sink: PartSink, output: FolderOutput) -> None:
        put(output, OTHER_JOB, keys.part(3))

        assert sink.find(OURS) is None
        assert sink.older(RETRIED) is None

    @pytest.mark.parametrize(
        "metadata",
        [
            {},
            {"job_id": "job-a"},
            {
                "job_id": "job-a",
                "chunk_id": "three",
                "generation": "0",
                "ok": "1",
                "failed": "0",
                "codes": "{}",
            },
            {"job_id": "job-a", "chunk_id": "3", "generation": "0", "ok": "1", "failed": "0", "codes": "{"},
            {"job_id": "job-a", "chunk_id": "3", "generation": "0", "ok": "1", "failed": "0", "codes": "[1]"},
        ],
    )
    def test_a_file_of_another_program_is_a_conflict(
        self, sink: PartSink, output: FolderOutput, metadata: dict[str, str]
    ) -> None:
        with output.scratch() as path:
            pq.write_table(pa.table({"a": [1]}).replace_schema_metadata(metadata), path)
            output.publish(path, keys.part(3))

        with pytest.raises(OutputConflictError, match=r"part-00000003\.parquet is not a part"):
            sink.find(OURS)

    @pytest.mark.parametrize("keep", [0, 3, 100, -9, -2])
    def test_a_damaged_file_is_a_conflict(self, sink: PartSink, output: FolderOutput, keep: int) -> None:
        sink.write(OURS, rows("/a.jpg"), COUNTS)
        data = output.read(keys.part(3))
        assert data is not None
        output.replace(keys.part(3), data[:keep])

        with pytest.raises(OutputConflictError, match=r"part-00000003\.parquet is not a part"):
            sink.find(OURS)

    def test_garbage_between_the_magic_words_is_a_conflict(
        self, sink: PartSink, output: FolderOutput
    ) -> None:
        # Arrow reports this one as an OSError
        garbage = b"\xff" * 64
        output.create(keys.part(3), b"PAR1" + garbage + len(garbage).to_bytes(4, "little") + b"PAR1")

        with pytest.raises(OutputConflictError, match=r"part-00000003\.parquet is not a part"):
            sink.find(OURS)


class TestRetry:
    def test_the_part_of_the_generation_before_is_not_adopted_but_read(self, sink: PartSink) -> None:
        old = rows("/a.jpg", "/b.jpg")
        sink.write(OURS, old, COUNTS)

        assert sink.find(RETRIED) is None
        older = sink.older(RETRIED)
        assert older is not None
        assert older.rows.equals(old)
        assert older.rows.schema.metadata is None

    def test_nothing_is_older_where_there_is_nothing(self, sink: PartSink) -> None:
        assert sink.older(RETRIED) is None

    def test_it_replaces_the_older_part_and_no_other_way(self, sink: PartSink, output: FolderOutput) -> None:
        sink.write(OURS, rows("/old.jpg"), COUNTS)
        older = sink.older(RETRIED)
        with pytest.raises(OutputUnavailableError, match="was replaced or removed"):
            sink.write(RETRIED, rows("/new.jpg"), PartCounts(1, 0, {}))
        assert uris(output) == ["/old.jpg"]

        assert sink.write(RETRIED, rows("/new.jpg"), PartCounts(1, 0, {}), over=older) == PartCounts(1, 0, {})

        assert uris(output) == ["/new.jpg"]
        assert sink.find(RETRIED) == PartCounts(1, 0, {})

    def test_the_second_writer_of_a_retry_adopts_what_the_first_wrote(
        self, sink: PartSink, output: FolderOutput
    ) -> None:
        sink.write(OURS, rows("/old.jpg"), COUNTS)
        first, second = sink.older(RETRIED), sink.older(RETRIED)
        sink.write(RETRIED, rows("/first.jpg"), COUNTS, over=first)

        assert sink.write(RETRIED, rows("/second.jpg"), PartCounts(1, 0, {}), over=second) == COUNTS
        assert uris(output) == ["/first.jpg"]

    def test_a_worker_of_an_earlier_generation_can_undo_nothing(
        self, sink: PartSink, output: FolderOutput
    ) -> None:
        # Given a first and a second generation, each with a worker that fell asleep before it wrote
        sink.write(OURS, rows("/old.jpg"), COUNTS)
        asleep = sink.older(RETRIED)
        latest = replace(OURS, generation=2)
        sink.write(latest, rows("/latest.jpg"), COUNTS, over=sink.older(latest))

        for identity, over in ((OURS, None), (RETRIED, None), (RETRIED, asleep)):
            with pytest.raises(OutputUnavailableError, match="generation 2 by now") as caught:
                sink.write(identity, rows("/asleep.jpg"), PartCounts(1, 0, {}), over=over)
            assert not isinstance(caught.value, OutputUnreachableError)
        for look in (sink.find, sink.older):
            with pytest.raises(OutputUnavailableError, match="generation 2 by now"):
                look(OURS)
        assert uris(output) == ["/latest.jpg"]

    def test_a_part_that_came_after_the_look_is_not_written_over(
        self, sink: PartSink, output: FolderOutput
    ) -> None:
        # Given that a worker of the cancelled generation wakes up when the retry has found no part
        assert sink.older(RETRIED) is None
        sink.write(OURS, rows("/woke-up.jpg"), COUNTS)

        with pytest.raises(OutputUnavailableError, match="was replaced or removed meanwhile"):
            sink.write(RETRIED, rows("/new.jpg"), COUNTS)
        assert uris(output) == ["/woke-up.jpg"]

    def test_a_part_of_this_generation_that_comes_during_the_look_is_noticed(
        self, sink: PartSink, output: FolderOutput, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        sink.write(OURS, rows("/old.jpg"), COUNTS)
        seen = output.version(keys.part(3))
        sink.write(RETRIED, rows("/new.jpg"), COUNTS, over=sink.older(RETRIED))
        monkeypatch.setattr(output, "version", lambda name: seen)

        with pytest.raises(OutputUnavailableError, match="written meanwhile"):
            sink.older(RETRIED)


class TestTheWorldFails:
    def test_a_full_disk_is_waited_for(self, tmp_path: Path) -> None:
        with pytest.raises(OutputUnavailableError, match="No space left") as caught:
            PartSink(FullDisk(tmp_path)).write(OURS, rows("/a.jpg"), COUNTS)
        assert not isinstance(caught.value, OutputUnreachableError)

    def test_a_read_that_fails_is_no_conflict(self, sink: PartSink, monkeypatch: pytest.MonkeyPatch) -> None:
        sink.write(OURS, rows("/a.jpg"), COUNTS)

        def stale(*_: object) -> None:
            raise OSError(errno.ESTALE, "Stale file handle")

        monkeypatch.setattr(pq, "ParquetFile", stale)

        with pytest.raises(OutputUnavailableError, match="Stale file handle") as caught:
            sink.find(OURS)
        assert not isinstance(caught.value, OutputUnreachableError)

    def test_no_right_to_read_is_no_conflict(
        self, sink: PartSink, output: FolderOutput, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def refuse(name: str) -> pa.NativeFile:
            raise OutputUnreachableError(f"{name}: Permission denied")

        monkeypatch.setattr(output, "open", refuse)

        with pytest.raises(OutputUnreachableError, match="Permission denied"):
            sink.find(OURS)
