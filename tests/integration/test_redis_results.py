"""Rows in Redis read back, and a submit whose output is Redis, against a real server."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import UTC, date, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest
import redis

from clipfleet.contract.jobs import REDIS_OUTPUT, Job, JobState, SourceDescription
from clipfleet.contract.parts import part_schema
from clipfleet.errors import (
    OutputDamagedError,
    OutputUnavailableError,
    RedisUnavailableError,
    ResultsExpiredError,
    ResultsNotReadyError,
    TooManyItemsError,
)
from clipfleet.hints import Hints
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs import objects
from clipfleet.outputs import redis as redis_output
from clipfleet.outputs.redis import RedisOutput
from clipfleet.outputs.staged import StagedReader
from clipfleet.results.redis_rows import RedisRows
from clipfleet.results.rows import rows as rows_of
from clipfleet.results.rows import vectors as vectors_of
from clipfleet.sources.batches import item_batch
from clipfleet.submit.submission import Submission
from clipfleet_worker.chunk.job_contexts import JobContexts
from clipfleet_worker.sinks.redis import RedisSink
from tests.support.ledger import claim, make_job
from tests.support.redis_rows import DIMENSION, bring, chunk_rows, complete, redis_job, submit_job

ReaderOf = Callable[..., RedisRows]


@pytest.fixture
def reader_of(ledger: Ledger, store: RedisStore) -> ReaderOf:
    """Submits a job (by default of as many chunks), completes chunks of it with these rows, and reads."""

    def reader_of(*written: pa.Table, chunks: int = 0) -> RedisRows:
        items = written[0].num_rows if written else 4
        job = submit_job(ledger, chunks=chunks or len(written), chunk_items=items)
        for rows in written:
            claimed = claim(ledger)
            complete(ledger, claimed, bring(RedisSink(store), claimed, rows))
        return RedisRows(ledger, store, job)

    return reader_of


class TestReading:
    def test_rows_are_read_as_written(self, reader_of: ReaderOf) -> None:
        written = [chunk_rows(0, failed=[1]), chunk_rows(4)]
        reader = reader_of(*written)

        stream = reader.read()

        read = pa.Table.from_batches(stream.batches, stream.schema)
        assert read.equals(pa.concat_tables(written))
        assert read.schema.field("embedding").type == pa.list_(pa.float16(), DIMENSION)
        assert reader.job() == redis_job().model_copy(update={"created_at": reader.job().created_at})
        assert reader.finished_at() is not None

    def test_many_rows_come_in_batches_and_in_order(self, ledger: Ledger, store: RedisStore) -> None:
        job = submit_job(ledger, chunks=3, chunk_items=700)
        claims = [claim(ledger) for _ in range(3)]
        for claimed in reversed(claims):
            rows = chunk_rows(claimed.chunk_id * 700, 700)
            complete(ledger, claimed, bring(RedisSink(store), claimed, rows))

        batches = list(RedisRows(ledger, store, job).read().batches)

        assert max(batch.num_rows for batch in batches) == 500
        indexes = [index for batch in batches for index in batch.column("item_index").to_pylist()]
        assert indexes == list(range(2100))

    def test_while_the_job_runs_the_rows_of_complete_chunks_are_read(self, reader_of: ReaderOf) -> None:
        reader = reader_of(chunk_rows(0), chunks=3)

        assert [row["item_index"] for row in rows_of(reader)] == [0, 1, 2, 3]
        assert reader.finished_at() is None
        assert reader.early_end() is None

    def test_one_row_is_read_by_its_index(self, reader_of: ReaderOf) -> None:
        written = chunk_rows(0)
        reader = reader_of(written, chunks=2)

        found = reader.row_at(2)

        assert found is not None
        assert found.to_pylist() == written.slice(2, 1).to_pylist()
        assert reader.row_at(4) is None

    def test_an_early_end_is_reported(self, ledger: Ledger, reader_of: ReaderOf) -> None:
        reader = reader_of(chunk_rows(0), chunks=2)
        before = datetime.now(UTC)
        ledger.cancel("job", ttl_seconds=60)

        end = reader.early_end()

        assert end is not None
        assert end.state == "cancelled"
        assert before - timedelta(seconds=1) < end.at < datetime.now(UTC) + timedelta(seconds=1)
        assert reader.finished_at() is None

    def test_vectors_leave_failures_out(self, reader_of: ReaderOf) -> None:
        index, matrix = vectors_of(reader_of(chunk_rows(0, failed=[0, 2])))

        assert index.tolist() == [1, 3]
        assert matrix.tolist() == [[1.0] * DIMENSION, [3.0] * DIMENSION]

    def test_a_job_without_vectors_has_none(self, reader_of: ReaderOf) -> None:
        reader = reader_of(chunk_rows(0, failed=[0, 1, 2, 3]))

        index, matrix = vectors_of(reader)

        assert (index.size, matrix.size) == (0, 0)
        assert [row["embedding"] for row in rows_of(reader)] == [None] * 4

    def test_columns_are_of_the_types_that_json_has(self, reader_of: ReaderOf) -> None:
        extra = {
            "day": pa.array([date(2026, 11, 25), None]), "count": pa.array([7, None], pa.int32()),
            "tags": pa.array([["a", "b"], None]), "raw": pa.array([b"\xff", None]),
            "line": pa.array(["one\ntwo \u2028 three", "ä\"'"]),
        }  # fmt: skip
        schema = part_schema(DIMENSION, [pa.field(name, values.type) for name, values in extra.items()])
        plain = chunk_rows(0, 2).drop_columns("shelf").to_pylist()
        columns = {name: values.to_pylist() for name, values in extra.items()}
        table = pa.Table.from_pylist(
            [row | {name: columns[name][n] for name in columns} for n, row in enumerate(plain)], schema
        )

        first, second = rows_of(reader_of(table))

        names = ("day", "count", "tags", "raw")
        assert [first[name] for name in names] == ["2026-11-25", 7, ["a", "b"], "/w=="]
        assert (first["line"], second["line"]) == ("one\ntwo \u2028 three", "ä\"'")
        assert [second[name] for name in names] == [None] * 4

    def test_only_the_columns_that_are_asked_for_are_read(self, reader_of: ReaderOf) -> None:
        stream = reader_of(chunk_rows(0)).read(["shelf", "item_id"])

        assert stream.schema.names == ["shelf", "item_id"]
        assert next(stream.batches).to_pylist()[0] == {"shelf": "shelf 0", "item_id": "id-0"}

    def test_one_failure_of_each_kind_is_an_example(self, reader_of: ReaderOf) -> None:
        assert reader_of(chunk_rows(0, failed=[1, 2])).failure_examples() == {"not_found": "404"}

    def test_before_the_first_chunk_there_is_nothing_yet(self, reader_of: ReaderOf) -> None:
        with pytest.raises(ResultsNotReadyError, match="job job: no results yet, it is running"):
            reader_of(chunks=1).read()

    def test_expired_rows_are_named(self, reader_of: ReaderOf, redis_client: redis.Redis) -> None:
        reader = reader_of(chunk_rows(0))
        redis_client.delete(keys.job("job", keys.ROWS))

        with pytest.raises(ResultsExpiredError, match="CLIPFLEET_RESULT_TTL_SECONDS"):
            reader.read()

    def test_rows_that_expire_while_they_are_read_do_not_look_like_all_of_them(
        self, reader_of: ReaderOf, redis_client: redis.Redis
    ) -> None:
        batches = reader_of(chunk_rows(0, 700)).read().batches
        assert next(batches).num_rows == 500
        redis_client.delete(keys.job("job", keys.ROWS))

        with pytest.raises(OutputUnavailableError, match="rows were removed while they were read"):
            list(batches)

    @pytest.mark.parametrize(
        ("suffix", "value"), [(keys.ROWS, "{"), (keys.ROWS, '{"item_index": "x"}'), (keys.VECTORS, "abc")]
    )
    def test_foreign_values_are_damage(
        self, reader_of: ReaderOf, redis_client: redis.Redis, suffix: str, value: str
    ) -> None:
        stream = reader_of(chunk_rows(0)).read()
        redis_client.hset(keys.job("job", suffix), "2", value)

        with pytest.raises(OutputDamagedError, match="rows 0 to 3 of job job are damaged"):
            list(stream.batches)


class FakeSource:
    """Items that are made as they are asked for."""

    def __init__(
        self, count: int, *, kind: str = "txt", uri: str = "/a.jpg", on_batch: Callable[[], object] = int
    ) -> None:
        self.description = SourceDescription(kind=kind, uri="/list")
        self._count, self._on_batch, self._uri = count, on_batch, uri

    def batches(self) -> Iterator[pa.RecordBatch]:
        for first in range(0, self._count, 8192):
            self._on_batch()
            count = min(8192, self._count - first)
            yield item_batch(first, None, pa.array([self._uri] * count, pa.string()))


Submit = Callable[[FakeSource], None]


@pytest.fixture
def submit(ledger: Ledger, store: RedisStore) -> Submit:
    """Submits a job whose output is Redis."""

    def submit(source: FakeSource) -> None:
        job = make_job(output=REDIS_OUTPUT).model_copy(update={"source": source.description})
        hints = cast(Hints, SimpleNamespace(publish_work=lambda count=1: None))
        Submission(ledger, hints, RedisOutput(store, job.job_id), job).run(source)

    return submit


class TestSubmit:
    def test_items_are_staged_for_workers(self, ledger: Ledger, store: RedisStore, submit: Submit) -> None:
        submit(FakeSource(1300))

        assert (ledger.status("job").chunks, ledger.status("job").total) == (3, 1300)
        claims = [claim(ledger) for _ in range(3)]
        with StagedReader(RedisOutput(store, "job"), job_id="job") as reader:
            tables = [reader.read_chunk(c.first_chunk, c.chunks, c.chunk_id) for c in claims]
        assert pa.concat_tables(tables)["item_index"].to_pylist() == list(range(1300))

    def test_too_many_items_of_a_stream_end_the_job_and_leave_nothing_of_them(
        self, ledger: Ledger, store: RedisStore, submit: Submit, redis_client: redis.Redis
    ) -> None:
        seen: list[Any] = []
        source = FakeSource(
            100_001, kind="stdin", on_batch=lambda: seen.append([*RedisOutput(store, "job").names("")])
        )

        with pytest.raises(TooManyItemsError, match="more than 100,000 items"):
            submit(source)

        assert len(seen) == 13
        assert ledger.status("job").state is JobState.CANCELLED
        suffixes = (keys.ITEMS, *keys.RESULT_SUFFIXES)
        assert not redis_client.exists(*(keys.job("job", suffix) for suffix in suffixes))

    def test_a_hundred_thousand_fit(self, ledger: Ledger, submit: Submit) -> None:
        submit(FakeSource(100_000))

        assert ledger.status("job").total == 100_000

    def test_a_full_memory_interrupts_a_submit_which_resumes_later(
        self, ledger: Ledger, submit: Submit, redis_client: redis.Redis
    ) -> None:
        batches: list[int] = []

        def fill() -> None:
            batches.append(len(batches))
            if len(batches) == 2:
                redis_client.config_set("maxmemory", 1)

        try:
            with pytest.raises(RedisUnavailableError, match=r"memory is full.* job id job to resume"):
                submit(FakeSource(9000, kind="stdin", on_batch=fill))
        finally:
            redis_client.config_set("maxmemory", 0)

        submit(FakeSource(9000, kind="stdin"))

        assert ledger.status("job").total == 9000

    def test_a_later_job_of_the_same_name_is_another_job(
        self, ledger: Ledger, store: RedisStore, submit: Submit, redis_client: redis.Redis
    ) -> None:
        """Both read their items from standard input: only their items differ."""
        contexts = JobContexts(ledger, store, ())
        for uri in ("/monday.jpg", "/tuesday.jpg"):
            redis_client.flushall()  # the time of the one before is over
            submit(FakeSource(3, kind="stdin", uri=uri))
            claimed = claim(ledger)

            assert contexts.get(claimed).items(claimed)["uri"].to_pylist() == [uri] * 3


class TestObjects:
    """`RedisOutput` as an output like any other; see `clipfleet.outputs.Output`."""

    @pytest.fixture
    def output(self, ledger: Ledger, store: RedisStore) -> RedisOutput:
        submit_job(ledger, sealed=False)
        return RedisOutput(store, "job")

    def test_a_large_object_is_refused(self, output: RedisOutput, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(redis_output, "_MAX_OBJECT_BYTES", 5 << 20)

        with pytest.raises(TooManyItemsError, match=r"has 6 MiB.*choose a smaller `chunk_size=`"):
            output.create("a", bytes(6 << 20))

    def test_the_job_file_is_the_job_of_the_ledger(self, output: RedisOutput, ledger: Ledger) -> None:
        data = output.read(objects.JOB_FILE)

        assert data is not None
        assert Job.model_validate_json(data) == ledger.job("job")
        assert not output.create(objects.JOB_FILE, b"{}")
        assert objects.JOB_FILE not in list(output.names(""))

    def test_clearing_leaves_the_job(self, output: RedisOutput, ledger: Ledger) -> None:
        output.create("a", b"")

        output.clear()

        assert list(output.names("")) == []
        assert ledger.status("job").state is JobState.SUBMITTING
