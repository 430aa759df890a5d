"""How items are cut into chunks and files, how an interrupted submit goes on, how chunks are read back."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipfleet.errors import (
    OutputTooNewError,
    OutputUnavailableError,
    OutputUnreachableError,
    SourceChangedError,
)
from clipfleet.ledger import keys
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.staged import StagedReader
from clipfleet.sources.batches import item_batch
from clipfleet.submit.staging import StagedFile, Stager
from tests.support.doubles import Clock
from tests.support.jobs import FullDisk

JOB = "20261124-3f9a1c2b7d4e"


def batch(first: int, count: int, extra: Sequence[str] | None = None) -> pa.RecordBatch:
    uris = pa.array(
        [f"https://a.example/{number}.jpg" for number in range(first, first + count)], pa.string()
    )
    columns = {} if extra is None else {"note": pa.array(extra, pa.string())}
    return item_batch(first, None, uris, columns)


def batches(*sizes: int) -> list[pa.RecordBatch]:
    starts = [sum(sizes[:position]) for position in range(len(sizes))]
    return [batch(start, size) for start, size in zip(starts, sizes, strict=True)]


def timed(clock: Clock, steps: Iterable[tuple[float, pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    for seconds, one in steps:
        clock.now += seconds
        yield one


def read_chunk(output: FolderOutput, first_chunk: int, chunks: int, chunk_id: int) -> pa.Table:
    with StagedReader(output, job_id=JOB) as reader:
        return reader.read_chunk(first_chunk, chunks, chunk_id)


def known(files: Iterable[StagedFile]) -> list[tuple[int, int]]:
    return [(file.first_chunk, file.chunks) for file in files]


def staged_names(output: FolderOutput) -> list[str]:
    return sorted(path.name for path in Path(output.uri, keys.INTERNAL).glob("items-*"))


def tmp_names(output: FolderOutput) -> list[str]:
    return [path.name for path in Path(output.uri, keys.TMP).iterdir()]


def all_items(output: FolderOutput, files: Iterable[StagedFile]) -> list[int]:
    found: list[int] = []
    for file in files:
        for chunk_id in range(file.first_chunk, file.first_chunk + file.chunks):
            rows = read_chunk(output, file.first_chunk, file.chunks, chunk_id)
            found += rows.column("item_index").to_pylist()
    return found


@pytest.fixture
def output(tmp_path: Path) -> FolderOutput:
    return FolderOutput(tmp_path / "out")


@pytest.fixture
def clock() -> Clock:
    return Clock()


class TestCutting:
    def test_chunks_are_exactly_of_their_size_and_the_last_may_be_shorter(
        self, output: FolderOutput, clock: Clock
    ) -> None:
        files = list(Stager(output, JOB, 10, monotonic=clock).stage(batches(3, 25, 1, 6)))

        assert files == [StagedFile(0, 4, 35, keys.staged_file(0, 4))]
        sizes = [read_chunk(output, 0, 4, chunk_id).num_rows for chunk_id in range(4)]
        assert sizes == [10, 10, 10, 5]
        assert all_items(output, files) == list(range(35))

    def test_a_chunk_with_images_in_it_is_shorter_and_so_is_its_file(
        self, output: FolderOutput, clock: Clock
    ) -> None:
        def with_images() -> Iterator[pa.RecordBatch]:
            for first in range(0, 64, 4):
                images = pa.array([b"x" * 3_000_000] * 4, pa.binary())
                yield item_batch(first, None, batch(first, 4)["uri"], {"_bytes": images})

        files = list(Stager(output, JOB, 50, monotonic=clock).stage(with_images()))

        assert [(file.chunks, file.items) for file in files] == [(2, 24), (2, 24), (2, 16)]
        sizes = [
            read_chunk(output, file.first_chunk, 2, file.first_chunk + number).num_rows
            for file in files
            for number in range(2)
        ]
        assert sizes == [12, 12, 12, 12, 12, 4]
        assert list(Stager(output, JOB, 50).stage(with_images(), known(files))) == []

    def test_a_file_holds_at_most_its_number_of_chunks(self, output: FolderOutput, clock: Clock) -> None:
        files = list(Stager(output, JOB, 2, chunks_per_file=3, monotonic=clock).stage(batches(15)))

        assert known(files) == [(0, 3), (3, 3), (6, 2)]
        assert [file.items for file in files] == [6, 6, 3]
        assert staged_names(output) == [Path(file.name).name for file in files]

    def test_a_file_is_visible_when_it_is_yielded_and_not_before(
        self, output: FolderOutput, clock: Clock
    ) -> None:
        stream = Stager(output, JOB, 2, chunks_per_file=1, monotonic=clock).stage(batches(4))

        next(stream)
        assert staged_names(output) == ["items-00000000-1.parquet"]
        next(stream)
        assert staged_names(output) == ["items-00000000-1.parquet", "items-00000001-1.parquet"]

    def test_nothing_in_nothing_out(self, output: FolderOutput, clock: Clock) -> None:
        assert list(Stager(output, JOB, 2, monotonic=clock).stage([])) == []
        assert not Path(output.uri).exists()

    def test_extra_columns_and_types_are_kept(self, output: FolderOutput, clock: Clock) -> None:
        source = [batch(0, 3, ["007", "", "x"])]

        list(Stager(output, JOB, 2, monotonic=clock).stage(source))

        rows = read_chunk(output, 0, 2, 0)
        assert rows.schema.remove_metadata() == source[0].schema
        assert rows.to_pylist() == source[0].slice(0, 2).to_pylist()

    def test_the_footer_says_whose_file_it_is(self, output: FolderOutput, clock: Clock) -> None:
        files = list(Stager(output, JOB, 2, chunks_per_file=1, monotonic=clock).stage(batches(4)))

        with pq.ParquetFile(Path(output.uri, files[1].name)) as file:
            footer = file.metadata.metadata
        assert footer[b"job_id"] == JOB.encode()
        assert footer[b"first_chunk"] == b"1"
        assert footer[b"schema_version"] == b"1"

    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        sizes=st.lists(st.integers(0, 40), max_size=12),
        chunk_size=st.integers(1, 20),
        chunks_per_file=st.integers(1, 5),
        pauses=st.lists(st.sampled_from([0.0, 0.7, 3.0]), min_size=12, max_size=12),
    )
    def test_every_item_is_staged_once_and_in_order(
        self,
        tmp_path_factory: pytest.TempPathFactory,
        sizes: list[int],
        chunk_size: int,
        chunks_per_file: int,
        pauses: list[float],
    ) -> None:
        output, clock = FolderOutput(tmp_path_factory.mktemp("out")), Clock()
        steps = zip(pauses, batches(*sizes), strict=False)
        stager = Stager(output, JOB, chunk_size, chunks_per_file=chunks_per_file, monotonic=clock)

        files = list(stager.stage(timed(clock, steps)))

        assert all_items(output, files) == list(range(sum(sizes)))
        assert sum(file.items for file in files) == sum(sizes)
        assert all(file.chunks <= chunks_per_file for file in files)
        assert [file.first_chunk for file in files] == [
            sum(file.chunks for file in files[:position]) for position in range(len(files))
        ]


class TestClock:
    @pytest.mark.parametrize(
        ("steps", "expected"),
        [
            ([(0.0, 10), (1.9, 10), (0.2, 10), (0.1, 10)], [(3, 30), (1, 10)]),
            # The rest of the third batch came at 2.5 s: the second file is young at 2.6 s.
            ([(0.0, 4), (1.5, 4), (1.0, 4), (0.1, 8)], [(1, 10), (1, 10)]),
            ([(0.0, 4), (1.9, 4), (0.2, 1), (0.1, 10)], [(1, 9), (1, 10)]),
            # The few rows go with the whole chunk, since the first of them has waited, too.
            ([(0.0, 12), (3.0, 2), (0.0, 1)], [(2, 14), (1, 1)]),
            ([(0.0, 100)] * 10, [(100, 1000)]),
        ],
        ids=[
            "first row",
            "first row of an incomplete chunk",
            "a shorter chunk",
            "whole chunks",
            "fast source",
        ],
    )
    def test_a_file_is_closed_two_seconds_after_its_first_row(
        self,
        output: FolderOutput,
        clock: Clock,
        steps: list[tuple[float, int]],
        expected: list[tuple[int, int]],
    ) -> None:
        made = batches(*(count for _, count in steps))
        source = timed(clock, zip((seconds for seconds, _ in steps), made, strict=True))

        files = list(Stager(output, JOB, 10, monotonic=clock).stage(source))

        assert [(file.chunks, file.items) for file in files] == expected
        assert all_items(output, files) == list(range(sum(count for _, count in steps)))

    def test_a_source_that_pauses_says_so_with_a_batch_without_rows(
        self, output: FolderOutput, clock: Clock
    ) -> None:
        steps = [(0.0, batch(0, 4)), (1.0, batch(4, 0)), (1.1, batch(4, 0)), (9.0, batch(4, 0))]
        stream = Stager(output, JOB, 10, monotonic=clock).stage(timed(clock, steps))

        assert next(stream).items == 4
        assert clock.now == 102.1
        assert list(stream) == []

    def test_a_resumed_call_needs_the_same_items_and_not_the_same_pauses(
        self, output: FolderOutput, clock: Clock
    ) -> None:
        stager = Stager(output, JOB, 10, monotonic=clock)
        steps = [(0.0, batch(0, 13)), (2.5, batch(13, 1)), (0.1, batch(14, 30))]
        stream = stager.stage(timed(clock, steps))
        before = [next(stream)]
        stream.close()  # type: ignore[attr-defined]
        assert [(file.chunks, file.items) for file in before] == [(2, 14)]

        after = list(stager.stage(batches(5, 39), known(before)))

        assert all_items(output, before + after) == list(range(44))
        assert after[0].first_chunk == 2


class TestInterruption:
    def test_stopping_leaves_only_what_was_yielded(self, output: FolderOutput, clock: Clock) -> None:
        stream = Stager(output, JOB, 2, chunks_per_file=2, monotonic=clock).stage(batches(5, 5))
        next(stream)
        next(stream)

        stream.close()  # type: ignore[attr-defined]

        assert len(staged_names(output)) == 2
        assert tmp_names(output) == []

    def test_a_source_that_fails_leaves_only_what_was_yielded(
        self, output: FolderOutput, clock: Clock
    ) -> None:
        def failing() -> Iterator[pa.RecordBatch]:
            yield batch(0, 7)
            raise RuntimeError("source broke")

        files: list[StagedFile] = []
        with pytest.raises(RuntimeError, match="source broke"):
            files.extend(Stager(output, JOB, 2, chunks_per_file=2, monotonic=clock).stage(failing()))

        assert staged_names(output) == ["items-00000000-2.parquet"]
        assert tmp_names(output) == []

    def test_a_resumed_call_goes_on_where_the_ledger_stands(self, output: FolderOutput, clock: Clock) -> None:
        stager = Stager(output, JOB, 10, chunks_per_file=2, monotonic=clock)
        stream = stager.stage(batches(30, 25))
        before = [next(stream)]
        stream.close()  # type: ignore[attr-defined]
        path = Path(output.uri, before[0].name)
        written_at = path.stat().st_mtime_ns

        after = list(stager.stage(batches(7, 48), known(before)))

        assert known(after) == [(2, 2), (4, 2)]
        assert all_items(output, before + after) == list(range(55))
        assert path.stat().st_mtime_ns == written_at

    def test_when_all_is_staged_nothing_is_left_to_do(self, output: FolderOutput, clock: Clock) -> None:
        stager = Stager(output, JOB, 10, monotonic=clock)
        files = list(stager.stage(batches(25)))

        assert list(stager.stage(batches(25), known(files))) == []

    def test_a_file_the_ledger_never_heard_of_is_replaced(self, output: FolderOutput, clock: Clock) -> None:
        # Given a submit that died after publishing a file and before telling the ledger
        stager = Stager(output, JOB, 10, monotonic=clock)
        list(stager.stage([batch(0, 10, ["old"] * 10)]))

        # When it is repeated with a source that changed in between
        files = list(stager.stage([batch(0, 10, ["new"] * 10)]))

        # Then the file holds what the ledger will be told about
        assert read_chunk(output, 0, 1, 0).column("note").to_pylist() == ["new"] * 10
        assert known(files) == [(0, 1)]

    @pytest.mark.parametrize(
        ("changed", "words"),
        [
            ([batch(0, 13), batch(500, 12)], "item 13 differs in item_index, item_id, uri"),
            ([batch(0, 24)], "ends before item 24"),
            ([batch(0, 20)], "ends before item 20"),
            ([batch(0, 3)], "ends before item 3"),
            ([batch(0, 25, ["x"] * 25)], "note"),
        ],
    )
    def test_a_source_that_changed_names_the_first_item(
        self, output: FolderOutput, clock: Clock, changed: list[pa.RecordBatch], words: str
    ) -> None:
        stager = Stager(output, JOB, 10, monotonic=clock)
        files = list(stager.stage([batch(0, 25)]))

        with pytest.raises(SourceChangedError, match=words):
            list(stager.stage(changed, known(files)))
        assert staged_names(output) == ["items-00000000-3.parquet"]

    def test_a_changed_extra_column_is_noticed_and_no_value_is_shown(
        self, output: FolderOutput, clock: Clock
    ) -> None:
        stager = Stager(output, JOB, 10, monotonic=clock)
        files = list(stager.stage([batch(0, 12, ["secret"] * 12)]))

        with pytest.raises(SourceChangedError, match="item 11 differs in note") as caught:
            list(stager.stage([batch(0, 12, ["secret"] * 11 + ["other"])], known(files)))
        assert "secret" not in str(caught.value)

    def test_a_gap_in_what_the_ledger_knows_is_our_bug(self, output: FolderOutput, clock: Clock) -> None:
        with pytest.raises(ValueError, match="gap"):
            list(Stager(output, JOB, 10, monotonic=clock).stage(batches(30), [(1, 1)]))

    def test_a_known_file_that_is_gone_is_an_output_error(self, output: FolderOutput, clock: Clock) -> None:
        output.create(keys.JOB_FILE, b"{}")

        with pytest.raises(OutputUnavailableError, match="items-00000000-1"):
            list(Stager(output, JOB, 10, monotonic=clock).stage(batches(30), [(0, 1)]))


class TestDisk:
    @pytest.mark.parametrize("rows", [2, 20_000])
    def test_a_full_disk_is_worth_waiting_for(self, tmp_path: Path, clock: Clock, rows: int) -> None:
        stager = Stager(FullDisk(tmp_path), JOB, 2000, monotonic=clock)

        with pytest.raises(OutputUnavailableError) as caught:
            list(stager.stage(batches(rows)))
        assert not isinstance(caught.value, OutputUnreachableError)
        assert "No space left" in str(caught.value)

    def test_a_failed_publish_leaves_nothing(
        self, output: FolderOutput, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def failing(*args: object, **options: object) -> bool:
            raise OutputUnavailableError("store away")

        monkeypatch.setattr(output, "publish", failing)

        with pytest.raises(OutputUnavailableError, match="store away"):
            list(Stager(output, JOB, 2, monotonic=clock).stage(batches(5)))
        assert staged_names(output) == []
        assert tmp_names(output) == []

    def test_an_output_that_cannot_be(self, tmp_path: Path, clock: Clock) -> None:
        (tmp_path / "file").write_text("x")

        with pytest.raises(OutputUnreachableError):
            list(Stager(FolderOutput(tmp_path / "file"), JOB, 2, monotonic=clock).stage(batches(5)))


class CountingOutput(FolderOutput):
    """Counts how often each object is opened, and whether it was closed."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder)
        self.opened: list[str] = []
        self.files: list[pa.NativeFile] = []

    def open(self, name: str) -> pa.NativeFile:
        self.opened.append(name)
        self.files.append(super().open(name))
        return self.files[-1]


class TestReading:
    @pytest.fixture
    def staged(self, tmp_path: Path, clock: Clock) -> CountingOutput:
        output = CountingOutput(tmp_path / "out")
        list(Stager(output, JOB, 5, chunks_per_file=4, monotonic=clock).stage(batches(60)))
        output.create(keys.JOB_FILE, b"{}")
        return output

    def test_a_file_is_opened_once_for_all_its_chunks(self, staged: CountingOutput) -> None:
        with StagedReader(staged, job_id=JOB) as reader:
            for chunk_id in (4, 7, 5, 6, 4):
                rows = reader.read_chunk(4, 4, chunk_id)
                assert rows.column("item_index").to_pylist() == list(range(5 * chunk_id, 5 * chunk_id + 5))

        assert staged.opened == [keys.staged_file(4, 4)]
        assert staged.files[0].closed

    def test_who_waits_for_others_waits_for_the_world_and_not_for_long(
        self, staged: CountingOutput, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Else, where a store does not answer, the last of many readers would seem to hang."""
        there, answer = threading.Event(), threading.Event()
        open_file = staged.open

        def stuck(name: str) -> pa.NativeFile:
            there.set()
            assert answer.wait(30)
            return open_file(name)

        monkeypatch.setattr(staged, "open", stuck)
        reader = StagedReader(staged, job_id=JOB, patience_seconds=0.01)
        with ThreadPoolExecutor(1) as pool:
            first = pool.submit(reader.read_chunk, 0, 4, 0)
            assert there.wait(30)

            with pytest.raises(OutputUnavailableError, match="timed out behind another reader"):
                reader.read_chunk(0, 4, 1)
            reader.close_unless_busy()

            answer.set()
            assert len(first.result()) == 5
        assert len(reader.read_chunk(0, 4, 1)) == 5
        reader.close_unless_busy()
        assert all(file.closed for file in staged.files)

    def test_the_least_recently_used_file_is_closed(self, staged: CountingOutput) -> None:
        with StagedReader(staged, job_id=JOB, capacity=2) as reader:
            for first in (0, 4, 0, 8, 0, 4):
                reader.read_chunk(first, 4, first)

        assert staged.opened == [keys.staged_file(first, 4) for first in (0, 4, 8, 4)]
        assert all(file.closed for file in staged.files)

    def test_many_threads_read_the_right_chunks(self, staged: CountingOutput) -> None:
        barrier = threading.Barrier(8)

        def read(seed: int) -> None:
            barrier.wait()
            for step in range(60):
                chunk_id = (seed * 7 + step * 5) % 12
                rows = reader.read_chunk(chunk_id // 4 * 4, 4, chunk_id)
                assert rows.column("item_index").to_pylist()[0] == 5 * chunk_id

        with StagedReader(staged, job_id=JOB, capacity=1) as reader, ThreadPoolExecutor(8) as pool:
            list(pool.map(read, range(8)))
        assert all(file.closed for file in staged.files)

    def test_reading_one_chunk_keeps_nothing_open(self, staged: CountingOutput) -> None:
        assert read_chunk(staged, 8, 4, 11).column("item_index").to_pylist() == list(range(55, 60))
        assert staged.files[0].closed

    def test_a_missing_file_is_worth_waiting_for_while_the_job_is_there(self, staged: CountingOutput) -> None:
        with pytest.raises(OutputUnavailableError, match=r"items-00000012-4\.parquet.*missing") as caught:
            read_chunk(staged, 12, 4, 12)
        assert not isinstance(caught.value, OutputUnreachableError)

    def test_a_missing_output_is_not(self, tmp_path: Path) -> None:
        with pytest.raises(OutputUnreachableError, match="mounted"):
            read_chunk(FolderOutput(tmp_path / "nowhere"), 0, 4, 0)

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"not a parquet file at all", b"PAR1" * 40])
    def test_a_damaged_file_says_so(self, staged: CountingOutput, content: bytes) -> None:
        staged.replace(keys.staged_file(0, 4), content)

        with pytest.raises(OutputUnreachableError, match=r"items-00000000-4\.parquet: damaged"):
            read_chunk(staged, 0, 4, 0)
        assert all(file.closed for file in staged.files)

    def test_a_damaged_row_group_says_so(self, staged: CountingOutput) -> None:
        name = keys.staged_file(0, 4)
        whole = staged.read(name)
        assert whole is not None
        staged.replace(name, whole[:4] + bytes(400) + whole[404:])

        with StagedReader(staged, job_id=JOB) as reader:
            with pytest.raises(OutputUnreachableError, match="damaged"):
                reader.read_chunk(0, 4, 0)
            # When it is mended, the next read opens it again.
            staged.replace(name, whole)
            assert reader.read_chunk(0, 4, 0).num_rows == 5

    def test_a_file_of_another_job_is_refused(self, staged: CountingOutput) -> None:
        with (
            StagedReader(staged, job_id="another") as reader,
            pytest.raises(OutputUnreachableError, match=f"belongs to job '{JOB}', not to another"),
        ):
            reader.read_chunk(0, 4, 0)
        assert staged.files[0].closed

    def test_a_file_under_a_wrong_name_is_refused(self, staged: CountingOutput) -> None:
        content = staged.read(keys.staged_file(0, 4))
        assert content is not None
        staged.create(keys.staged_file(12, 4), content)
        staged.create(keys.staged_file(0, 3), content)

        for first, chunks in ((12, 4), (0, 3)):
            with pytest.raises(OutputUnreachableError, match="does not contain the chunks"):
                read_chunk(staged, first, chunks, first)

    def test_a_later_schema_is_refused(
        self, staged: CountingOutput, clock: Clock, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr("clipfleet.submit.staging.SCHEMA_VERSION", 2)
        list(Stager(staged, JOB, 5, monotonic=clock).stage(batches(5)))

        with pytest.raises(OutputTooNewError, match="update this worker"):
            read_chunk(staged, 0, 1, 0)

    def test_a_chunk_outside_the_file_is_our_bug(self, staged: CountingOutput) -> None:
        with pytest.raises(ValueError, match="not among"):
            read_chunk(staged, 0, 4, 4)


class RefusingOutput(FolderOutput):
    """A store that says once that the name is taken, and then that nothing is there."""

    refusals = 1

    def publish(self, scratch: Path, name: str, **options: Any) -> bool:
        if self.refusals:
            self.refusals -= 1
            return False
        return super().publish(scratch, name, **options)


def test_a_file_that_is_not_there_is_never_told_of(tmp_path: Path) -> None:
    output = RefusingOutput(tmp_path)
    with pytest.raises(OutputUnavailableError, match="was replaced or removed in the meantime"):
        list(Stager(output, JOB, 1).stage(batches(1)))

    (file,) = Stager(output, JOB, 1).stage(batches(1))
    assert list(output.names(keys.STAGED_PREFIX)) == [file.name]
