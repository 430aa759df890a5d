"""The end of a job: which files are written, in which order, and that a repetition mends what a kill left."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest

from clipfleet.contract.jobs import Job, JobState
from clipfleet.contract.parts import PartCounts, PartIdentity, part_schema
from clipfleet.errors import OutputConflictError, OutputUnavailableError, OutputUnreachableError
from clipfleet.ledger import keys
from clipfleet.ledger.answers import FinishAnswer
from clipfleet.ledger.jobs import FINISH, FinishClaim, JobStatus, Lease, Ledger
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.staged import StagedReader
from clipfleet_worker.chunk.held_lease import HeldLease
from clipfleet_worker.chunk.job_contexts import JobContext
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.finish.finisher import Finisher
from clipfleet_worker.sinks.parts import PartSink
from tests.support.jobs import JOB_ID, FullDisk, make_finish_claim, make_job, make_status

TTL_SECONDS = 3600
ENDS = (keys.ERRORS, keys.MANIFEST, keys.SUCCESS)


class Killed(BaseException):
    """The process is gone."""


class Steps:
    """Counts what leaves a trace outside the process, and kills it at the given step: before it, or after."""

    def __init__(self, kill_at: float = float("inf")) -> None:
        self.done: list[str] = []
        self._kill_at = kill_at

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        if len(self.done) + 0.5 > self._kill_at:
            raise Killed
        self.done.append(name)
        yield
        if len(self.done) > self._kill_at:
            raise Killed


class SteppingOutput(FolderOutput):
    """Counts each change that others can see."""

    def __init__(self, folder: Path, steps: Steps) -> None:
        super().__init__(folder)
        self._steps = steps

    def publish(self, scratch: Path, name: str, **options: Any) -> bool:
        with self._steps.step(name):
            return super().publish(scratch, name, **options)

    def replace_if(self, scratch: Path, name: str, version: str, **options: Any) -> bool:
        with self._steps.step(name):
            return super().replace_if(scratch, name, version, **options)


class FakeLedger:
    """Knows one job; notes that it ended."""

    def __init__(self, status: JobStatus, steps: Steps) -> None:
        self._status = status
        self.later: list[JobStatus] = []  # what the ledger says next
        self._steps = steps
        self.staged = [(0, status.chunks)]
        self.ended: list[tuple[FinishClaim, int]] = []
        self.answer = FinishAnswer.COMPLETED

    def status(self, job_id: str) -> JobStatus:
        assert job_id == self._status.job_id
        if self.later:
            self._status = self.later.pop(0)
        return self._status

    def staged_files(self, job_id: str) -> list[tuple[int, int]]:
        assert job_id == self._status.job_id
        return self.staged

    def finish(self, claim: FinishClaim, *, ttl_seconds: int) -> FinishAnswer:
        with self._steps.step("ledger"):
            self.ended.append((claim, ttl_seconds))
        return self.answer


class FinishLease(HeldLease):
    """Notes each part, and is interrupted at the one that the bench names."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(Lease(JOB_ID, FINISH, "token"))
        self._bench = bench

    def enter(self, step: str, limit_seconds: float, longest_seconds: float | None = None) -> None:
        if step != "finish":
            return
        self._bench.limits.append(limit_seconds)
        if len(self._bench.limits) > self._bench.parts_until_interrupted:
            raise ChunkInterrupted("the worker drains")

    def confirm(self) -> None:
        if not self._bench.is_held:
            raise ChunkInterrupted("lost")


class Bench:
    """A job of which every chunk has its part."""

    def __init__(self, folder: Path, *, chunks: int = 2, kill_at: float = float("inf")) -> None:
        self.steps = Steps(kill_at)
        self.output = SteppingOutput(folder, self.steps)
        self.job = make_job(folder)
        status = make_status(state=JobState.FINISHING, chunks=chunks, total=3, ok=1, failed=2)
        self.ledger = FakeLedger(status, self.steps)
        self.limits: list[float] = []  # of the steps
        self.parts_until_interrupted = chunks
        self.is_held = True

    def finish(self, output: FolderOutput | None = None) -> str:
        output = output or self.output
        context = JobContext(self.job, output, PartSink(output), StagedReader(output, job_id=self.job.job_id))
        finisher = Finisher(cast(Ledger, self.ledger), TTL_SECONDS)
        return finisher.finish(make_finish_claim(self.job), context, FinishLease(self))

    def manifest(self) -> dict[str, Any]:
        return cast(dict[str, Any], json.loads((Path(self.output.uri) / keys.MANIFEST).read_bytes()))


def row(index: int, error_code: str | None = None, **extra: str) -> dict[str, Any]:
    return {
        "item_index": index,
        "item_id": f"näme {index}",
        "uri": f"/p/{index}.jpg",
        "status": "failed" if error_code else "ok",
        "error_code": error_code,
        "error_detail": error_code and "no\nluck",
        **extra,
    }


def add_part(
    folder: Path, chunk_id: int, rows: Sequence[dict[str, Any]], *, job_id: str = JOB_ID,
    counts: PartCounts | None = None, extra: Sequence[str] = (),
) -> None:  # fmt: skip
    codes = [one["error_code"] for one in rows if one["error_code"]]
    counts = counts or PartCounts(len(rows) - len(codes), len(codes), Counter(codes))
    schema = part_schema(2, [pa.field(name, pa.string()) for name in extra])
    table = pa.Table.from_pylist(list(rows), schema)
    PartSink(FolderOutput(folder)).write(PartIdentity(job_id, chunk_id, 0), table, counts)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """An output with two parts."""
    folder = tmp_path / "out"
    add_part(folder, 0, [row(0), row(1, "not_found")])
    add_part(folder, 1, [row(2, "timeout")])
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """What the job left at its end, without the time of the end."""
    files = {name: (folder / name).read_bytes() for name in ENDS}
    manifest = json.loads(files[keys.MANIFEST])
    del manifest["finished_at"]
    return files | {keys.MANIFEST: json.dumps(manifest).encode()}


class TestFiles:
    def test_success_comes_last_and_the_ledger_after_it(self, folder: Path) -> None:
        bench = Bench(folder)

        assert bench.finish() == "completed"

        assert bench.steps.done == [keys.ERRORS, keys.MANIFEST, keys.SUCCESS, "ledger"]
        assert bench.ledger.ended == [(make_finish_claim(bench.job), TTL_SECONDS)]
        assert [limit > 0 for limit in bench.limits] == [True, True]  # a step for each part

    def test_the_manifest_holds_the_job_its_counts_and_its_parts(self, folder: Path) -> None:
        bench = Bench(folder)
        bench.finish()

        manifest = bench.manifest()
        assert Job.model_validate(manifest["job"]) == bench.job
        assert (manifest["total"], manifest["ok"], manifest["failed"]) == (3, 1, 2)
        assert manifest["errors_by_code"] == {"not_found": 1, "timeout": 1}
        assert manifest["parts"] == [
            {"name": "part-00000000.parquet", "rows": 2, "failed": 1},
            {"name": "part-00000001.parquet", "rows": 1, "failed": 1},
        ]
        assert manifest["created_at"] == "2026-11-24T12:00:00+00:00"
        assert manifest["finished_at"] > manifest["created_at"]

    def test_the_counts_are_those_of_the_footers(self, folder: Path) -> None:
        # Given a ledger that was restored from an old copy, and counts less than there is
        bench = Bench(folder)
        bench.ledger.later = [make_status(state=JobState.FINISHING, chunks=2, total=3, ok=0, failed=0)]
        bench.finish()

        assert bench.manifest()["ok"] == 1
        assert bench.manifest()["failed"] == 2

    def test_of_a_part_without_failures_only_the_footer_is_read(self, tmp_path: Path) -> None:
        add_part(tmp_path, 0, [row(0, "not_found")], counts=PartCounts(1, 0, {}))
        bench = Bench(tmp_path, chunks=1)
        bench.finish()

        assert bench.output.read(keys.ERRORS) == b""
        assert bench.manifest()["errors_by_code"] == {}

    def test_the_errors_are_one_line_for_each_failed_row_with_the_sources_columns(
        self, tmp_path: Path
    ) -> None:
        add_part(tmp_path, 0, [row(0, shelf="7"), row(1, "not_found", shelf="9")], extra=["shelf"])
        bench = Bench(tmp_path, chunks=1)
        bench.finish()

        expected = row(1, "not_found", shelf="9")
        del expected["status"]
        (line,) = (tmp_path / keys.ERRORS).read_text().splitlines()
        assert json.loads(line) == expected

    def test_other_files_in_the_output_do_not_count(self, folder: Path) -> None:
        for name in ("part-list.txt", "part-00000000 (copy).parquet", "part-00000002.parquet.crc"):
            (folder / name).write_bytes(b"x")
        bench = Bench(folder)

        bench.finish()

        assert [part["rows"] for part in bench.manifest()["parts"]] == [2, 1]


class TestRepeating:
    @pytest.mark.parametrize("kill_at", [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5])
    def test_killed_between_any_two_steps_the_next_one_ends_it(self, folder: Path, kill_at: float) -> None:
        # Given what an undisturbed end leaves, also if it is repeated
        Bench(folder).finish()
        expected = contents(folder)
        Bench(folder).finish()
        assert contents(folder) == expected
        for name in ENDS:
            (folder / name).unlink()

        # When the process is killed before (whole numbers) or after a step
        killed = Bench(folder, kill_at=kill_at)
        with pytest.raises(Killed):
            killed.finish()
        assert len(killed.steps.done) == int(kill_at + 0.5)

        # Then _SUCCESS is there only with all the rest, and the next finisher ends it
        if (folder / keys.SUCCESS).exists():
            assert contents(folder) == expected
        Bench(folder).finish()
        assert contents(folder) == expected
        assert list((folder / keys.TMP).iterdir()) == []

    def test_a_finisher_that_is_interrupted_has_written_nothing(self, folder: Path) -> None:
        bench = Bench(folder)
        bench.parts_until_interrupted = 1

        with pytest.raises(ChunkInterrupted):
            bench.finish()

        assert bench.steps.done == []

    @pytest.mark.parametrize("writes", [0, 1, 2])
    @pytest.mark.parametrize(
        "later",
        [
            {"state": JobState.COMPLETED_WITH_ERRORS},
            {"state": JobState.RUNNING, "generation": 1},
            {"state": JobState.FINISHING, "generation": 1},
        ],
    )
    def test_a_finisher_that_slept_writes_nothing_into_what_came_after_it(
        self, folder: Path, writes: int, later: dict[str, Any]
    ) -> None:
        # Given that another one finished the job, and somebody retried it, after so many writes of ours
        bench = Bench(folder)
        finishing = make_status(state=JobState.FINISHING, chunks=2)
        bench.ledger.later = [finishing] * (1 + writes) + [make_status(chunks=2, **later)]

        with pytest.raises(ChunkInterrupted):
            bench.finish()

        assert bench.steps.done == [keys.ERRORS, keys.MANIFEST, keys.SUCCESS][:writes]
        assert not (folder / keys.SUCCESS).exists()

    @pytest.mark.parametrize(
        ("later", "stays"),
        [
            ({"state": JobState.RUNNING, "generation": 1}, False),
            ({"state": JobState.PAUSED, "generation": 1}, False),
            ({"state": JobState.FINISHING, "generation": 1}, True),  # it may be that one's
            ({"state": JobState.COMPLETED, "generation": 1}, True),
        ],
    )
    def test_a_finisher_that_slept_before_its_last_write_takes_it_back(
        self, folder: Path, later: dict[str, Any], stays: bool
    ) -> None:
        bench = Bench(folder)
        finishing = make_status(state=JobState.FINISHING, chunks=2)
        bench.ledger.later = [finishing] * 5 + [make_status(chunks=2, **later)]
        bench.ledger.answer = FinishAnswer.STALE

        assert bench.finish() == "stale"

        assert (folder / keys.SUCCESS).exists() == stays


class TestLateFinishers:
    """One that sleeps inside a write wakes up in the midst of a later generation, or of another job."""

    @pytest.mark.parametrize("name", [keys.ERRORS, keys.MANIFEST])
    def test_what_a_later_generation_wrote_stays(self, folder: Path, name: str) -> None:
        bench = Bench(folder)
        later = Bench(folder)
        later.ledger.staged = []
        asleep = [lambda: later.finish(FolderOutput(folder))]

        class Sleeping(SteppingOutput):
            def publish(self, scratch: Path, name_: str, **options: Any) -> bool:
                if name_ == name and asleep:
                    asleep.pop()()
                return super().publish(scratch, name_, **options)

        with pytest.raises(ChunkInterrupted, match="written by another worker meanwhile"):
            bench.finish(Sleeping(folder, bench.steps))

        assert "ledger" not in bench.steps.done
        assert later.ledger.ended

    def test_nothing_is_written_without_the_lease(self, folder: Path) -> None:
        bench = Bench(folder)
        bench.is_held = False

        with pytest.raises(ChunkInterrupted, match="lost"):
            bench.finish()

        assert not any((folder / name).exists() for name in ENDS)


class TestForeignParts:
    def test_those_of_the_job_before_are_removed_before_the_job_is_finished(self, folder: Path) -> None:
        add_part(folder, 7, [row(0)], job_id="before")
        late = folder / keys.part(8, "jsonl")
        late.write_bytes(b"{}\n")
        mine = folder / "part-of-my-notes.txt"
        mine.write_bytes(b"x")

        with pytest.raises(Killed):
            Bench(folder, kill_at=2).finish()

        assert not (folder / keys.SUCCESS).exists()
        assert sorted(folder.glob("part-*")) == [folder / keys.part(0), folder / keys.part(1), mine]


class TestSweeping:
    @pytest.fixture
    def leftovers(self, folder: Path) -> list[Path]:
        """What a killed worker and a killed submit leave: half a part, unknown items."""
        (folder / keys.staged_file(0, 2)).write_bytes(b"the items")
        leftovers = [folder / keys.TMP / "3f9a1c2b", folder / keys.staged_file(2, 1)]
        for path in leftovers:
            path.write_bytes(b"half")
        return leftovers

    @pytest.mark.usefixtures("leftovers")
    def test_files_of_killed_processes_are_removed_before_success(self, folder: Path) -> None:
        (folder / keys.JOB_FILE).write_bytes(b"{}")
        with pytest.raises(Killed):
            Bench(folder, kill_at=2).finish()

        assert not (folder / keys.SUCCESS).exists()
        assert sorted(path.name for path in (folder / keys.INTERNAL).rglob("*")) == [
            "items-00000000-2.parquet", "job.json", "tmp",
        ]  # fmt: skip

    def test_a_ledger_that_was_lost_removes_no_items(self, folder: Path, leftovers: list[Path]) -> None:
        bench = Bench(folder)
        bench.ledger.staged = []
        bench.finish()

        assert (folder / keys.staged_file(0, 2)).exists()
        assert all(path.exists() for path in leftovers)


def break_part(folder: Path) -> None:
    (folder / keys.part(1)).write_bytes(b"PAR1 not what it was")


def place_part_of_another_job(folder: Path) -> None:
    (folder / keys.part(1)).unlink()
    add_part(folder, 1, [row(2)], job_id="other")


def place_part_of_another_chunk(folder: Path) -> None:
    (folder / keys.part(0)).replace(folder / keys.part(1))
    add_part(folder, 0, [row(0)])


class TestTheWorldFails:
    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            (
                lambda folder: (folder / keys.part(1)).unlink(),
                OutputUnavailableError,
                r"part-00000001\.parquet is not there",
            ),
            (break_part, OutputUnreachableError, r"part-00000001\.parquet: damaged"),
            (
                place_part_of_another_job,
                OutputConflictError,
                r"00001\.parquet belongs to job 'other', chunk 1",
            ),
            (place_part_of_another_chunk, OutputConflictError, "chunk 0"),
        ],
    )
    def test_a_part_that_is_not_in_place_is_named_and_nothing_is_written(
        self, folder: Path, change: Callable[[Path], None], error: type[Exception], words: str
    ) -> None:
        change(folder)
        bench = Bench(folder)

        with pytest.raises(error, match=words):
            bench.finish()

        assert bench.steps.done == []

    def test_a_full_disk_is_waited_for(self, folder: Path) -> None:
        bench = Bench(folder)

        with pytest.raises(OutputUnavailableError, match="No space left") as caught:
            bench.finish(FullDisk(folder))
        assert not isinstance(caught.value, OutputUnreachableError)
        assert bench.steps.done == []
