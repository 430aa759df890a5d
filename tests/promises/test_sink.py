"""What every sink promises: exactly one part per chunk, of the highest generation, and readers read it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipfleet.contract.heads import HeadKind
from clipfleet.contract.jobs import PartFormat
from clipfleet.contract.parts import PartCounts, PartIdentity
from clipfleet.errors import OutputUnavailableError, OutputUnreachableError
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs import objects, open_output
from clipfleet.parts import part_files
from clipfleet.results import rows as results
from clipfleet.results.part_rows import PartRows
from clipfleet.results.redis_rows import RedisRows
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.sinks.parts import PartSink
from clipfleet_worker.sinks.redis import RedisSink
from tests.support.doubles import PATIENCE_SECONDS
from tests.support.failing import failing
from tests.support.heads import head_file
from tests.support.jobs import FullDisk, make_job, place_job
from tests.support.ledger import claim
from tests.support.redis_rows import bring, chunk_rows, complete, redis_job, submit_job

OURS = PartIdentity("job-a", 3, 0)
RETRIED = replace(OURS, generation=1)
COUNTS = PartCounts(ok=1, failed=2, codes={"not_found": 1, "timeout": 1})
OTHER_COUNTS = PartCounts(1, 0, {})
PLACES = ("folder parquet", "folder jsonl", "s3 parquet", "s3 jsonl")


def rows(*labels: str) -> pa.Table:
    """Rows of a chunk that say who wrote them."""
    return pa.concat_tables([chunk_rows(number, 1, writer=label) for number, label in enumerate(labels)])


class Place:
    """An output whose parts have one format, with a job in it."""

    def __init__(self, request: pytest.FixtureRequest, folder: Path) -> None:
        kind, part_format = request.param.split()
        uri = request.getfixturevalue("s3").uri if kind == "s3" else str(folder)
        self.output = open_output(f"{uri}/out")
        self.part_format = PartFormat(part_format)
        self.name = objects.LAYOUT.part(OURS.chunk_id, self.part_format)
        self.sink = self.sink_of(OURS.job_id)
        job = make_job(self.output.uri, job_id=OURS.job_id, part_format=self.part_format)
        place_job(self.output, job)

    def sink_of(self, job_id: str, **options: Any) -> PartSink:
        return PartSink(self.output, part_files(self.part_format, job_id), **options)

    def put_of_other_job(self) -> bytes:
        """A part of another job in the place of ours."""
        theirs = replace(OURS, job_id="job-b")
        self.sink_of(theirs.job_id).write(theirs, rows("theirs"), OTHER_COUNTS)
        return self.output.read(self.name)

    def labels(self) -> list[str]:
        """The writers of the rows that a reader reads."""
        return [row["label"] for row in results.rows(PartRows(self.output))]

    def names(self) -> list[str]:
        return list(self.output.names(objects.LAYOUT.part_prefix))


@pytest.fixture(params=PLACES)
def place(request: pytest.FixtureRequest, tmp_path: Path) -> Place:
    return Place(request, tmp_path)


HEADS = (
    head_file(4, 2).of_job,
    head_file(4, 3, name="tags", kind=HeadKind.MULTILABEL).of_job,
    head_file(4, 1, name="rating", kind=HeadKind.REGRESS).of_job,
)


@pytest.fixture(params=[(), HEADS], ids=["labels", "heads"])
def table(request: pytest.FixtureRequest) -> pa.Table:
    """Rows of a worker, one of them failed."""
    return chunk_rows(0, failed=[2], heads=request.param)


@pytest.fixture(params=[*PLACES, "redis"])
def written(
    request: pytest.FixtureRequest, tmp_path: Path, table: pa.Table
) -> Iterator[tuple[pa.Table, pa.Table]]:
    """Rows that a worker wrote, and those that a reader reads."""
    if request.param == "redis":
        ledger: Ledger = request.getfixturevalue("redis_ledger")
        store: RedisStore = request.getfixturevalue("store")
        submit_job(ledger)
        claimed = claim(ledger)
        complete(ledger, claimed, bring(RedisSink(store), claimed, table))
        stream = RedisRows(ledger, store, redis_job()).read()
    else:
        place = Place(request, tmp_path)
        place.sink.write(OURS, table, COUNTS)
        stream = PartRows(place.output).read()
    yield table, pa.Table.from_batches(stream.batches, stream.schema)


def test_readers_read_what_workers_wrote(written: tuple[pa.Table, pa.Table]) -> None:
    table, read = written

    assert read.to_pylist() == table.to_pylist()
    assert read.schema.equals(table.schema.remove_metadata())


class TestStored:
    """What is recorded of the rows of a chunk is read from its place, whoever has written them."""

    def test_the_rows_in_place_without_their_vectors(self, place: Place, table: pa.Table) -> None:
        place.sink.write(OURS, table, COUNTS)
        place.sink.write(OURS, rows("second"), OTHER_COUNTS)

        assert place.sink.stored(OURS).to_pylist() == table.drop_columns(["embedding"]).to_pylist()

    def test_rows_of_another_generation_or_job_are_not_those_of_the_chunk(self, place: Place) -> None:
        with pytest.raises(OutputUnavailableError, match="replaced or removed meanwhile"):
            place.sink.stored(OURS)
        place.sink.write(RETRIED, rows("new"), COUNTS)
        with pytest.raises(OutputUnavailableError, match="of generation 1 by now"):
            place.sink.stored(OURS)
        place.output.remove(place.name)
        place.put_of_other_job()
        with pytest.raises(OutputUnavailableError, match="replaced or removed meanwhile"):
            place.sink.stored(OURS)

    def test_rows_in_redis_are_visible_with_complete_only(self, store: RedisStore) -> None:
        assert RedisSink(store).stored(OURS) is None


class TestWriting:
    def test_the_part_has_the_name_of_its_chunk_and_its_counts(self, place: Place) -> None:
        assert place.sink.find(OURS) is None
        assert place.sink.write(OURS, rows("a", "b"), COUNTS) == COUNTS

        assert place.names() == [f"data/part-00000003.{place.part_format}"]
        assert place.sink.find(OURS) == COUNTS

    def test_the_second_writer_adopts_the_part_of_the_first(self, place: Place) -> None:
        place.sink.write(OURS, rows("first"), COUNTS)

        assert place.sink.write(OURS, rows("second"), OTHER_COUNTS) == COUNTS

        assert place.labels() == ["first"]
        assert list(place.output.names(objects.TMP)) == []

    def test_of_many_writers_one_wins_and_all_get_its_counts(self, place: Place) -> None:
        barrier = threading.Barrier(8)

        def write(writer: int) -> int:
            barrier.wait(PATIENCE_SECONDS)
            return place.sink.write(OURS, rows(f"{writer}"), PartCounts(writer, 0, {})).ok

        with ThreadPoolExecutor(8) as pool:
            (winner,) = set(pool.map(write, range(8)))

        assert place.labels() == [f"{winner}"]

    def test_a_late_part_of_the_job_before_is_replaced(self, place: Place) -> None:
        """Its worker was frozen during the write while the job was cancelled and overwritten."""
        place.put_of_other_job()
        assert place.sink.find(OURS) is None
        assert place.sink.older(RETRIED) is None

        assert place.sink.write(OURS, rows("a"), COUNTS) == COUNTS

        assert place.labels() == ["a"]

    def test_a_worker_whose_own_job_was_overwritten_replaces_nothing(self, place: Place) -> None:
        theirs = place.put_of_other_job()

        with pytest.raises(OutputUnreachableError, match="does not hold job job-a any more"):
            place.sink_of(OURS.job_id, is_ours=lambda: False).write(OURS, rows("a"), COUNTS)

        assert place.output.read(place.name) == theirs

    @pytest.mark.parametrize("in_place", ["nothing", "an older part", "another job's part"])
    def test_nothing_becomes_visible_without_the_lease(self, place: Place, in_place: str) -> None:
        over = None
        if in_place == "an older part":
            place.sink.write(OURS, rows("old"), COUNTS)
            over = place.sink.older(RETRIED)
        elif in_place == "another job's part":
            place.put_of_other_job()
        before = place.output.read(place.name)
        lost = failing(ChunkInterrupted("lost"))

        with pytest.raises(ChunkInterrupted, match="lost"):
            place.sink.write(RETRIED if over else OURS, rows("a"), COUNTS, over=over, confirm=lost)

        assert place.output.read(place.name) == before

    def test_a_part_that_is_removed_meanwhile_is_written_later(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        publish = place.output.publish

        def lose(path: Path, name: str, **options: Any) -> bool:
            return name != place.name and publish(path, name, **options)

        with monkeypatch.context() as patch:
            patch.setattr(place.output, "publish", lose)
            with pytest.raises(OutputUnavailableError, match="was replaced or removed meanwhile"):
                place.sink.write(OURS, rows("a"), COUNTS)

        assert place.sink.write(OURS, rows("a"), COUNTS) == COUNTS


class TestRetry:
    def test_the_part_of_the_generation_before_is_read_not_adopted(self, place: Place) -> None:
        assert place.sink.older(RETRIED) is None
        place.sink.write(OURS, rows("a", "b"), COUNTS)

        assert place.sink.find(RETRIED) is None
        older = place.sink.older(RETRIED)
        assert older.rows.equals(rows("a", "b"))
        assert older.rows.schema.metadata is None

    def test_it_replaces_the_part_that_it_has_read_and_none_that_came_after_the_look(
        self, place: Place
    ) -> None:
        place.sink.write(OURS, rows("old"), COUNTS)
        older = place.sink.older(RETRIED)
        with pytest.raises(OutputUnavailableError, match="was replaced or removed meanwhile"):
            place.sink.write(RETRIED, rows("new"), OTHER_COUNTS)
        assert place.labels() == ["old"]

        assert place.sink.write(RETRIED, rows("new"), OTHER_COUNTS, over=older) == OTHER_COUNTS
        assert place.labels() == ["new"]
        assert place.sink.find(RETRIED) == OTHER_COUNTS

    def test_its_second_writer_adopts_the_part_of_the_first(self, place: Place) -> None:
        place.sink.write(OURS, rows("old"), COUNTS)
        first, second = place.sink.older(RETRIED), place.sink.older(RETRIED)
        place.sink.write(RETRIED, rows("first"), COUNTS, over=first)

        assert place.sink.write(RETRIED, rows("second"), OTHER_COUNTS, over=second) == COUNTS
        assert place.labels() == ["first"]

    def test_a_worker_of_an_earlier_generation_can_undo_nothing(self, place: Place) -> None:
        # Given a first and a second generation, each with a worker that was frozen before it wrote
        place.sink.write(OURS, rows("old"), COUNTS)
        frozen = place.sink.older(RETRIED)
        latest = replace(OURS, generation=2)
        place.sink.write(latest, rows("latest"), COUNTS, over=place.sink.older(latest))

        for identity, over in ((OURS, None), (RETRIED, None), (RETRIED, frozen)):
            with pytest.raises(OutputUnavailableError, match="generation 2 by now") as caught:
                place.sink.write(identity, rows("frozen"), OTHER_COUNTS, over=over)
            assert not isinstance(caught.value, OutputUnreachableError)
        for look in (place.sink.find, place.sink.older):
            with pytest.raises(OutputUnavailableError, match="generation 2 by now"):
                look(OURS)
        assert place.labels() == ["latest"]

    def test_a_part_of_this_generation_that_comes_during_the_look_is_noticed(
        self, place: Place, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        place.sink.write(OURS, rows("old"), COUNTS)
        seen = place.output.version(place.name)
        place.sink.write(RETRIED, rows("new"), COUNTS, over=place.sink.older(RETRIED))
        monkeypatch.setattr(place.output, "version", lambda name: seen)

        with pytest.raises(OutputUnavailableError, match="written meanwhile"):
            place.sink.older(RETRIED)


@pytest.mark.parametrize("part_format", list(PartFormat))
def test_a_full_disk_is_unavailable_and_may_get_room(tmp_path: Path, part_format: PartFormat) -> None:
    sink = PartSink(FullDisk(tmp_path), part_files(part_format, OURS.job_id))

    with pytest.raises(OutputUnavailableError, match="No space left") as caught:
        sink.write(OURS, rows("a"), COUNTS)

    assert not isinstance(caught.value, OutputUnreachableError)
