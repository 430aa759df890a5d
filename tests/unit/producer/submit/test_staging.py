"""How items are cut into chunks and files, how an interrupted submit goes on, how chunks are read back."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from clipfleet.contract.versions import SCHEMA_VERSION
from clipfleet.errors import (
    OutputTooNewError,
    OutputUnavailableError,
    OutputUnreachableError,
    SourceChangedError,
)
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.staged import StagedReader
from clipfleet.sources.batches import item_batch
from clipfleet.submit.staging import StagedFile, Stager
from tests.support.doubles import Clock
from tests.support.jobs import FullDisk

JOB = "20261124-3f9a1c2b7d4e"


def batch(first: int, count: int, extra: Sequence[str] | None = None) -> pa.RecordBatch:
    uris = pa.array([f"https://a.example/{first + number}.jpg" for number in range(count)], pa.string())
    return item_batch(first, None, uris, {} if extra is None else {"note": pa.array(extra, pa.string())})


def batches(*sizes: int) -> list[pa.RecordBatch]:
    return [batch(sum(sizes[:position]), size) for position, size in enumerate(sizes)]


def timed(clock: Clock, steps: Iterable[tuple[float, pa.RecordBatch]]) -> Iterator[pa.RecordBatch]:
    for seconds, one in steps:
        clock.now += seconds
        yield one


def stager(output: FolderOutput, size: int = 10, *, clock: Clock | None = None, **options: int) -> Stager:
    return Stager(output, JOB, size, monotonic=clock or Clock(), **options)


def read_chunk(output: FolderOutput, first_chunk: int, chunks: int, chunk_id: int) -> pa.Table:
    with StagedReader(output, job_id=JOB) as reader:
        return reader.read_chunk(first_chunk, chunks, chunk_id)


def known(files: Iterable[StagedFile]) -> list[tuple[int, int]]:
    return [(file.first_chunk, file.chunks) for file in files]


def names(output: FolderOutput) -> list[str]:
    """All that lies there, scratch files included."""
    return sorted(path.name for path in Path(output.uri).rglob("*") if path.is_file())


def chunks_of(output: FolderOutput, files: Iterable[StagedFile]) -> list[list[int]]:
    """The indexes of the items of each chunk."""
    return [
        read_chunk(output, file.first_chunk, file.chunks, file.first_chunk + number)["item_index"].to_pylist()
        for file in files
        for number in range(file.chunks)
    ]


def all_items(output: FolderOutput, files: Iterable[StagedFile]) -> list[int]:
    return [index for chunk in chunks_of(output, files) for index in chunk]


class TestCutting:
    def test_chunks_have_their_size_and_the_last_may_be_shorter(self, output: FolderOutput) -> None:
        files = list(stager(output).stage(batches(3, 25, 1, 6)))

        assert files == [StagedFile(0, 4, 35, objects.LAYOUT.staged_file(0, 4))]
        assert [len(chunk) for chunk in chunks_of(output, files)] == [10, 10, 10, 5]

    def test_a_chunk_with_images_in_it_is_shorter_and_so_is_its_file(self, output: FolderOutput) -> None:
        def with_images() -> Iterator[pa.RecordBatch]:
            for first in range(0, 64, 4):
                images = pa.array([b"x" * 3_000_000] * 4, pa.binary())
                yield item_batch(first, None, batch(first, 4)["uri"], {"_bytes": images})

        files = list(stager(output, 50).stage(with_images()))

        assert [(file.chunks, file.items) for file in files] == [(2, 24), (2, 24), (2, 16)]
        assert [len(chunk) for chunk in chunks_of(output, files)] == [12, 12, 12, 12, 12, 4]
        assert list(stager(output, 50).stage(with_images(), known(files))) == []

    def test_a_file_is_visible_when_it_is_yielded_and_not_before(self, output: FolderOutput) -> None:
        stream = stager(output, 2, chunks_per_file=1).stage(batches(4))

        next(stream)
        assert names(output) == ["items-00000000-1.staged"]
        next(stream)
        assert names(output) == ["items-00000000-1.staged", "items-00000001-1.staged"]

    def test_nothing_in_nothing_out(self, output: FolderOutput) -> None:
        assert list(stager(output).stage([])) == []
        assert not Path(output.uri).exists()

    def test_extra_columns_and_types_are_kept(self, output: FolderOutput) -> None:
        source = batch(0, 3, ["007", "", "x"])
        list(stager(output, 2).stage([source]))

        rows = read_chunk(output, 0, 2, 0)
        assert rows.schema.remove_metadata() == source.schema
        assert rows.to_pylist() == source.slice(0, 2).to_pylist()

    def test_the_footer_says_whose_file_it_is(self, output: FolderOutput) -> None:
        _, file = stager(output, 2, chunks_per_file=1).stage(batches(4))

        footer = pq.read_metadata(Path(output.uri, file.name)).metadata
        expected = {
            b"job_id": JOB.encode(),
            b"first_chunk": b"1",
            b"schema_version": str(SCHEMA_VERSION).encode(),
        }
        assert {name: footer[name] for name in expected} == expected

    @settings(deadline=None, max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
    @given(
        sizes=st.lists(st.integers(0, 40), max_size=12),
        shape=st.tuples(st.integers(1, 20), st.integers(1, 5)),
        data=st.data(),
    )
    def test_every_item_is_staged_once_in_order_also_by_a_call_that_resumes(
        self, tmp_path_factory: pytest.TempPathFactory, sizes: list[int], shape: tuple[int, int], data: Any
    ) -> None:
        output, clock, total = FolderOutput(tmp_path_factory.mktemp("out")), Clock(), sum(sizes)
        chunk_size, chunks_per_file = shape
        pauses = [data.draw(st.sampled_from([0.0, 0.7, 3.0])) for _ in sizes]
        one = stager(output, chunk_size, chunks_per_file=chunks_per_file, clock=clock)

        files = list(one.stage(timed(clock, zip(pauses, batches(*sizes), strict=True))))

        assert all_items(output, files) == list(range(total))
        assert sum(file.items for file in files) == total
        assert all(file.chunks <= chunks_per_file for file in files)
        firsts = [sum(file.chunks for file in files[:position]) for position in range(len(files))]
        assert [file.first_chunk for file in files] == firsts

        before = files[: data.draw(st.integers(0, len(files)))]
        after = list(one.stage(batches(total), known(before)))
        assert all_items(output, before + after) == list(range(total))


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
        ids=["first row", "first row of an incomplete chunk", "shorter chunk", "whole chunks", "fast source"],
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

        files = list(stager(output, clock=clock).stage(source))

        assert [(file.chunks, file.items) for file in files] == expected
        assert all_items(output, files) == list(range(sum(count for _, count in steps)))

    def test_a_batch_without_rows_is_a_pause(self, output: FolderOutput, clock: Clock) -> None:
        steps = [(0.0, batch(0, 4)), (1.0, batch(4, 0)), (1.1, batch(4, 0)), (9.0, batch(4, 0))]
        stream = stager(output, clock=clock).stage(timed(clock, steps))

        assert next(stream).items == 4
        assert clock.now == 102.1
        assert list(stream) == []


class TestInterruption:
    def test_stopping_leaves_only_what_was_yielded(self, output: FolderOutput) -> None:
        stream = stager(output, 2, chunks_per_file=2).stage(batches(5, 5))
        made = [Path(next(stream).name).name for _ in range(2)]

        stream.close()  # type: ignore[attr-defined]

        assert names(output) == made

    def test_a_source_that_fails_leaves_only_what_was_yielded(self, output: FolderOutput) -> None:
        def failing() -> Iterator[pa.RecordBatch]:
            yield batch(0, 7)
            raise RuntimeError("source broke")

        with pytest.raises(RuntimeError, match="source broke"):
            list(stager(output, 2, chunks_per_file=2).stage(failing()))
        assert names(output) == ["items-00000000-2.staged"]

    def test_a_resumed_call_does_not_write_again_what_is_staged(self, output: FolderOutput) -> None:
        (file,) = stager(output).stage(batches(25))
        written_at = Path(output.uri, file.name).stat().st_mtime_ns

        assert list(stager(output).stage(batches(7, 18), known([file]))) == []
        assert Path(output.uri, file.name).stat().st_mtime_ns == written_at

    def test_a_file_the_ledger_never_heard_of_is_replaced(self, output: FolderOutput) -> None:
        list(stager(output).stage([batch(0, 10, ["old"] * 10)]))  # by a submit that died before it said so

        files = list(stager(output).stage([batch(0, 10, ["new"] * 10)]))

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
    def test_a_change_names_the_first_item(self, output: FolderOutput, changed: Any, words: str) -> None:
        files = list(stager(output).stage([batch(0, 25)]))

        with pytest.raises(SourceChangedError, match=words):
            list(stager(output).stage(changed, known(files)))
        assert names(output) == ["items-00000000-3.staged"]

    def test_of_a_changed_extra_column_no_value_is_shown(self, output: FolderOutput) -> None:
        files = list(stager(output).stage([batch(0, 12, ["secret"] * 12)]))

        with pytest.raises(SourceChangedError, match="item 11 differs in note") as caught:
            list(stager(output).stage([batch(0, 12, ["secret"] * 11 + ["other"])], known(files)))
        assert "secret" not in str(caught.value)

    def test_a_gap_in_what_the_ledger_knows_is_our_bug(self, output: FolderOutput) -> None:
        with pytest.raises(ValueError, match="gap"):
            list(stager(output).stage(batches(30), [(1, 1)]))

    def test_a_known_file_that_is_gone_is_an_output_error(self, output: FolderOutput) -> None:
        output.create(objects.JOB_FILE, b"{}")

        with pytest.raises(OutputUnavailableError, match="items-00000000-1"):
            list(stager(output).stage(batches(30), [(0, 1)]))


class TestDisk:
    @pytest.mark.parametrize("rows", [2, 20_000])
    def test_a_full_disk_is_worth_waiting_for(self, tmp_path: Path, rows: int) -> None:
        with pytest.raises(OutputUnavailableError, match="No space left") as caught:
            list(stager(FullDisk(tmp_path), 2000).stage(batches(rows)))
        assert not isinstance(caught.value, OutputUnreachableError)

    def test_a_failed_publish_leaves_nothing(self, tmp_path: Path) -> None:
        output = RefusingOutput(tmp_path)
        output.answers = [OutputUnavailableError("store away")]

        with pytest.raises(OutputUnavailableError, match="store away"):
            list(stager(output, 2).stage(batches(5)))
        assert names(output) == []

    def test_a_taken_name_under_which_there_is_nothing_is_waited_for(self, tmp_path: Path) -> None:
        output = RefusingOutput(tmp_path)
        output.answers = [False]
        with pytest.raises(OutputUnavailableError, match="was replaced or removed in the meantime"):
            list(stager(output).stage(batches(1)))

        (file,) = stager(output).stage(batches(1))
        assert list(output.names(objects.STAGED_PREFIX)) == [file.name]

    def test_an_output_that_cannot_be(self, tmp_path: Path) -> None:
        (tmp_path / "file").write_text("x")

        with pytest.raises(OutputUnreachableError):
            list(stager(FolderOutput(tmp_path / "file")).stage(batches(5)))


class RefusingOutput(FolderOutput):
    """A store that gives these answers first."""

    answers: Sequence[bool | Exception] = ()

    def publish(self, scratch: Path, name: str, **options: Any) -> bool:
        if not self.answers:
            return super().publish(scratch, name, **options)
        answer, *self.answers = self.answers
        if isinstance(answer, Exception):
            raise answer
        return answer


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
    def staged(self, tmp_path: Path) -> CountingOutput:
        output = CountingOutput(tmp_path / "out")
        list(stager(output, 5, chunks_per_file=4).stage(batches(60)))
        output.create(objects.JOB_FILE, b"{}")
        return output

    def test_a_file_is_opened_once_for_all_its_chunks(self, staged: CountingOutput) -> None:
        with StagedReader(staged, job_id=JOB) as reader:
            for chunk_id in (4, 7, 5, 6, 4):
                rows = reader.read_chunk(4, 4, chunk_id)
                assert rows.column("item_index").to_pylist() == list(range(5 * chunk_id, 5 * chunk_id + 5))

        assert staged.opened == [objects.LAYOUT.staged_file(4, 4)]
        assert staged.files[0].closed

    def test_waits_for_others_are_short(
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

        assert staged.opened == [objects.LAYOUT.staged_file(first, 4) for first in (0, 4, 8, 4)]
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

    def test_a_missing_file_is_worth_waiting_for_while_the_job_is_there(self, staged: CountingOutput) -> None:
        with pytest.raises(OutputUnavailableError, match=r"items-00000012-4\.staged.*missing") as caught:
            read_chunk(staged, 12, 4, 12)
        assert not isinstance(caught.value, OutputUnreachableError)

    def test_a_missing_output_is_not(self, tmp_path: Path) -> None:
        with pytest.raises(OutputUnreachableError, match="mounted"):
            read_chunk(FolderOutput(tmp_path / "nowhere"), 0, 4, 0)

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"not a parquet file at all", b"PAR1" * 40])
    def test_a_damaged_file_says_so(self, staged: CountingOutput, content: bytes) -> None:
        staged.replace(objects.LAYOUT.staged_file(0, 4), content)

        with pytest.raises(OutputUnreachableError, match=r"items-00000000-4\.staged: damaged"):
            read_chunk(staged, 0, 4, 0)
        assert all(file.closed for file in staged.files)

    def test_a_damaged_row_group_is_read_again_once_it_is_mended(self, staged: CountingOutput) -> None:
        name = objects.LAYOUT.staged_file(0, 4)
        whole = staged.read(name) or b""
        staged.replace(name, whole[:4] + bytes(400) + whole[404:])

        with StagedReader(staged, job_id=JOB) as reader:
            with pytest.raises(OutputUnreachableError, match="damaged"):
                reader.read_chunk(0, 4, 0)
            staged.replace(name, whole)
            assert reader.read_chunk(0, 4, 0).num_rows == 5

    def test_a_file_of_another_job_is_refused(self, staged: CountingOutput) -> None:
        whose = f"belongs to job '{JOB}', not to another"
        with (
            StagedReader(staged, job_id="another") as reader,
            pytest.raises(OutputUnreachableError, match=whose),
        ):
            reader.read_chunk(0, 4, 0)
        assert staged.files[0].closed

    def test_a_file_under_a_wrong_name_is_refused(self, staged: CountingOutput) -> None:
        content = staged.read(objects.LAYOUT.staged_file(0, 4)) or b""
        for first, chunks in ((12, 4), (0, 3)):
            staged.create(objects.LAYOUT.staged_file(first, chunks), content)
            with pytest.raises(OutputUnreachableError, match="does not contain the chunks"):
                read_chunk(staged, first, chunks, first)

    def test_a_later_schema_is_refused(self, output: FolderOutput) -> None:
        list(replace(stager(output), schema_version=SCHEMA_VERSION + 1).stage(batches(5)))

        with pytest.raises(OutputTooNewError, match="update this worker"):
            read_chunk(output, 0, 1, 0)

    def test_a_chunk_outside_the_file_is_our_bug(self, staged: CountingOutput) -> None:
        with pytest.raises(ValueError, match="not among"):
            read_chunk(staged, 0, 4, 4)
