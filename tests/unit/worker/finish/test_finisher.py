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

from clipfleet.contract.columns import label_columns
from clipfleet.contract.heads import HeadKind
from clipfleet.contract.jobs import Job, JobState
from clipfleet.contract.label_sets import DEFAULT_BACKGROUND, LabelKind, LabelSet, Preset
from clipfleet.contract.parts import PartCounts, PartIdentity, part_schema
from clipfleet.errors import OutputConflictError, OutputUnavailableError, OutputUnreachableError
from clipfleet.ledger.answers import FinishAnswer
from clipfleet.ledger.jobs import FINISH, FinishClaim, JobStatus, Lease, Ledger
from clipfleet.ledger.locks import Locks
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.staged import StagedReader
from clipfleet_worker.chunk.held_lease import HeldLease
from clipfleet_worker.chunk.job_contexts import JobContext
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.finish.committing import StoreCommits
from clipfleet_worker.finish.finisher import Finisher
from clipfleet_worker.sinks.parts import PartSink
from tests.support.heads import head_file
from tests.support.jobs import JOB_ID, FullDisk, make_finish_claim, make_job, make_status

TTL_SECONDS = 3600
NO_LOCKS = cast(Locks, None)  # no job of these fills a store
ENDS = (objects.LAYOUT.errors, objects.MANIFEST, objects.SUCCESS)


class Killed(BaseException):
    """The process is gone."""


class SteppingOutput(FolderOutput):
    """Notes each change that others can see; before or after the step `kill_at` the process is killed."""

    def __init__(self, folder: Path, kill_at: float) -> None:
        super().__init__(folder)
        self.steps: list[str] = []
        self._kill_at = kill_at
        self.before_publish: Callable[[str], object] = lambda name: None

    @contextmanager
    def step(self, name: str) -> Iterator[None]:
        if len(self.steps) + 0.5 > self._kill_at:
            raise Killed
        self.steps.append(name)
        yield
        if len(self.steps) > self._kill_at:
            raise Killed

    def publish(self, scratch: Path, name: str, **options: Any) -> bool:
        self.before_publish(name)
        with self.step(name):
            return super().publish(scratch, name, **options)

    def replace_if(self, scratch: Path, name: str, version: str, **options: Any) -> bool:
        with self.step(name):
            return super().replace_if(scratch, name, version, **options)


def finishing(**values: Any) -> JobStatus:
    return make_status(
        **{"state": JobState.FINISHING, "chunks": 2, "total": 3, "ok": 1, "failed": 2, **values}
    )


class Bench(HeldLease):
    """A job of which every chunk has its part; its ledger and its lease."""

    def __init__(self, folder: Path, *, kill_at: float = float("inf"), chunks: int = 2) -> None:
        super().__init__(Lease(JOB_ID, FINISH, "token"))
        self.output, self.job = SteppingOutput(folder, kill_at), make_job(folder)
        self.statuses = [finishing(chunks=chunks)]  # what the ledger says next; the last one stays
        self.staged = [(0, chunks)]
        self.answer = FinishAnswer.COMPLETED
        self.ended: list[tuple[FinishClaim, int]] = []
        self.limits: list[float] = []  # of the steps, one for each part
        self.parts_until_interrupted = chunks
        self.is_held = True

    def status(self, job_id: str) -> JobStatus:
        assert job_id == JOB_ID
        return self.statuses.pop(0) if len(self.statuses) > 1 else self.statuses[0]

    def staged_files(self, job_id: str) -> list[tuple[int, int]]:
        assert job_id == JOB_ID
        return self.staged

    def finish(self, claim: FinishClaim, *, ttl_seconds: int) -> FinishAnswer:
        with self.output.step("ledger"):
            self.ended.append((claim, ttl_seconds))
        return self.answer

    def enter(self, step: str, limit_seconds: float, longest_seconds: float | None = None) -> None:
        if step == "finish":
            self.limits.append(limit_seconds)
            if len(self.limits) > self.parts_until_interrupted:
                raise ChunkInterrupted("the worker drains")

    def confirm(self) -> None:
        if not self.is_held:
            raise ChunkInterrupted("lost")

    def run(self, output: FolderOutput | None = None) -> str:
        output = output or self.output
        context = JobContext(self.job, output, PartSink(output), StagedReader(output, job_id=JOB_ID))
        ledger = cast(Ledger, self)
        finisher = Finisher(ledger, TTL_SECONDS, StoreCommits(ledger, NO_LOCKS))
        return finisher.finish(make_finish_claim(self.job), context, self)

    def manifest(self) -> dict[str, Any]:
        self.run()
        return cast(dict[str, Any], json.loads((Path(self.output.uri) / objects.MANIFEST).read_bytes()))


def row(index: int, error_code: str | None = None, **extra: str) -> dict[str, Any]:
    failure = {"error_code": error_code, "error_detail": error_code and "no\nluck"}
    base = {"item_index": index, "item_id": f"näme {index}", "uri": f"/p/{index}.jpg"}
    return {**base, "status": "failed" if error_code else "ok", **failure, **extra}


def add_part(
    folder: Path, chunk_id: int, *rows: dict[str, Any], job_id: str = JOB_ID,
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
    add_part(tmp_path / "out", 0, row(0), row(1, "not_found"))
    add_part(tmp_path / "out", 1, row(2, "timeout"))
    return tmp_path / "out"


def contents(folder: Path) -> dict[str, Any]:
    """What the job left at its end, without the time of the end."""
    files: dict[str, Any] = {name: (folder / name).read_bytes() for name in ENDS}
    return files | {objects.MANIFEST: json.loads(files[objects.MANIFEST]) | {"finished_at": ""}}


class TestFiles:
    def test_success_comes_last_and_the_ledger_after_it(self, folder: Path) -> None:
        bench = Bench(folder)

        assert bench.run() == "completed"

        assert bench.output.steps == [objects.LAYOUT.errors, objects.MANIFEST, objects.SUCCESS, "ledger"]
        assert bench.ended == [(make_finish_claim(bench.job), TTL_SECONDS)]
        assert [limit > 0 for limit in bench.limits] == [True, True]

    def test_the_manifest_holds_the_job_its_parts_and_the_counts_of_their_footers(self, folder: Path) -> None:
        bench = Bench(folder)  # whose ledger was restored from an old copy, and counts less than there is
        bench.statuses.append(finishing(ok=0, failed=0))

        manifest = bench.manifest()
        assert Job.model_validate(manifest["job"]) == bench.job
        assert (manifest["total"], manifest["ok"], manifest["failed"]) == (3, 1, 2)
        assert manifest["errors_by_code"] == {"not_found": 1, "timeout": 1}
        assert manifest["parts"] == [
            {"name": "data/part-00000000.parquet", "rows": 2, "failed": 1},
            {"name": "data/part-00000001.parquet", "rows": 1, "failed": 1},
        ]
        assert manifest["created_at"] == "2026-11-24T12:00:00+00:00"
        assert manifest["finished_at"] > manifest["created_at"]

    def test_the_manifest_holds_the_label_sets_in_full(self, folder: Path) -> None:
        bench = Bench(folder)
        own = LabelSet(name="own", labels=("cat",), kind=LabelKind.MULTI, thresholds={"cat": 0.7})
        preset = LabelSet(name="things", preset=Preset.IMAGENET1K_SIMPLE, none=True)
        bench.job = make_job(folder, labels=("x",), label_sets=(own, preset))

        first, second = bench.manifest()["label_sets"]

        assert first == own.model_dump(mode="json")
        assert (first["thresholds"], first["background"]) == ({"cat": 0.7}, [*DEFAULT_BACKGROUND])
        assert (second["name"], second["preset"], second["none"]) == ("things", "imagenet1k-simple", True)
        assert (second["labels"][0], len(second["labels"]), len(second["templates"])) == ("tench", 1000, 7)
        assert second["templates"][0] == "itap of a {}."

    def test_of_a_part_without_failures_only_the_footer_is_read(self, tmp_path: Path) -> None:
        add_part(tmp_path, 0, row(0, "not_found"), counts=PartCounts(1, 0, {}))

        assert Bench(tmp_path, chunks=1).manifest()["errors_by_code"] == {}
        assert (tmp_path / objects.LAYOUT.errors).read_bytes() == b""

    def test_errors_are_a_line_for_each_failed_row_with_the_sources_columns(self, tmp_path: Path) -> None:
        add_part(tmp_path, 0, row(0, shelf="7"), row(1, "not_found", shelf="9"), extra=["shelf"])
        Bench(tmp_path, chunks=1).run()

        (line,) = (tmp_path / objects.LAYOUT.errors).read_text().splitlines()
        assert json.loads(line) | {"status": "failed"} == row(1, "not_found", shelf="9")

    def test_errors_have_no_column_of_label_sets_and_heads_but_one_of_the_source(
        self, tmp_path: Path
    ) -> None:
        sets = tuple(LabelSet(name=name, labels=("cat",), none=True) for name in ("one", "two"))
        head = head_file(4, 2, kind=HeadKind.MULTILABEL).of_job
        ours = ["accepted", "accepted_one", "accepted_two", *label_columns("one"), *label_columns("two")]
        ours += head.columns
        for name, label_sets in (("ours", sets), ("theirs", (LabelSet(labels=("a", "b")),))):
            bench = Bench(tmp_path / name, chunks=1)
            heads = (head,) if name == "ours" else ()
            bench.job = make_job(tmp_path / name, labels=("x",), label_sets=label_sets, heads=heads)
            values = dict.fromkeys(ours if name == "ours" else ["accepted"], "x")
            add_part(tmp_path / name, 0, row(1, "not_found", **values), extra=[*values])
            bench.run()

        found = [(tmp_path / name / objects.LAYOUT.errors).read_text() for name in ("ours", "theirs")]
        assert ["accepted" in json.loads(line) for line in found] == [False, True]
        assert not [name for name in json.loads(found[0]) if name.startswith(("label", "accepted", "head"))]

    def test_other_files_in_the_output_do_not_count(self, folder: Path) -> None:
        for name in (
            "data/part-list.txt",
            "data/part-00000000 (copy).parquet",
            "data/part-00000002.parquet.crc",
        ):
            (folder / name).write_bytes(b"x")

        assert [part["rows"] for part in Bench(folder).manifest()["parts"]] == [2, 1]


class TestRepeating:
    @pytest.mark.parametrize("kill_at", [0, 0.5, 1, 1.5, 2, 2.5, 3, 3.5])
    def test_killed_between_any_two_steps_the_next_one_ends_it(self, folder: Path, kill_at: float) -> None:
        # Given what an undisturbed end leaves, also if it is repeated
        Bench(folder).run()
        expected = contents(folder)
        Bench(folder).run()
        assert contents(folder) == expected
        for name in ENDS:
            (folder / name).unlink()

        # When the process is killed before (whole numbers) or after a step
        killed = Bench(folder, kill_at=kill_at)
        with pytest.raises(Killed):
            killed.run()
        assert len(killed.output.steps) == int(kill_at + 0.5)

        # Then _SUCCESS is there only with all the rest, and the next finisher ends it
        if (folder / objects.SUCCESS).exists():
            assert contents(folder) == expected
        Bench(folder).run()
        assert contents(folder) == expected
        assert list((folder / objects.TMP).iterdir()) == []

    @pytest.mark.parametrize(
        ("change", "words"), [({"parts_until_interrupted": 1}, "drains"), ({"is_held": False}, "lost")]
    )
    def test_a_finisher_that_drains_or_has_lost_its_lease_writes_nothing(
        self, folder: Path, change: dict[str, Any], words: str
    ) -> None:
        bench = Bench(folder)
        vars(bench).update(change)

        with pytest.raises(ChunkInterrupted, match=words):
            bench.run()

        assert not any((folder / name).exists() for name in ENDS)

    @pytest.mark.parametrize("writes", [0, 1, 2])
    @pytest.mark.parametrize(
        "later",
        [
            {"state": JobState.COMPLETED_WITH_ERRORS},
            {"state": JobState.RUNNING, "generation": 1},
            {"generation": 1},
        ],
    )
    def test_one_that_slept_writes_nothing_into_what_came_after_it(
        self, folder: Path, writes: int, later: dict[str, Any]
    ) -> None:
        # Given that another one finished the job, and somebody retried it, after so many writes of ours
        bench = Bench(folder)
        bench.statuses = [finishing()] * (1 + writes) + [finishing(**later)]

        with pytest.raises(ChunkInterrupted):
            bench.run()

        assert bench.output.steps == list(ENDS[:writes])
        assert not (folder / objects.SUCCESS).exists()

    @pytest.mark.parametrize(
        ("state", "stays"),  # that of the next generation may be that one's
        [("running", False), ("paused", False), ("finishing", True), ("completed", True)],
    )
    def test_one_that_slept_before_its_last_write_takes_it_back(
        self, folder: Path, state: str, stays: bool
    ) -> None:
        bench = Bench(folder)
        bench.statuses = [finishing()] * 5 + [finishing(state=JobState(state), generation=1)]
        bench.answer = FinishAnswer.STALE

        assert bench.run() == "stale"

        assert (folder / objects.SUCCESS).exists() == stays

    @pytest.mark.parametrize("name", [objects.LAYOUT.errors, objects.MANIFEST])
    def test_what_a_later_generation_wrote_while_one_slept_stays(self, folder: Path, name: str) -> None:
        bench, later = Bench(folder), Bench(folder)
        later.staged = []
        asleep = [lambda: later.run(FolderOutput(folder))]
        bench.output.before_publish = lambda found: found == name and asleep and asleep.pop()()

        with pytest.raises(ChunkInterrupted, match="written by another worker meanwhile"):
            bench.run()

        assert "ledger" not in bench.output.steps
        assert later.ended


class TestSweeping:
    def test_late_parts_of_the_job_before_are_removed_before_success(self, folder: Path) -> None:
        add_part(folder, 7, row(0), job_id="before")
        (folder / objects.LAYOUT.part(8, "jsonl")).write_bytes(b"{}\n")
        mine = folder / "data/part-of-my-notes.txt"
        mine.write_bytes(b"x")

        with pytest.raises(Killed):
            Bench(folder, kill_at=2).run()

        assert not (folder / objects.SUCCESS).exists()
        assert sorted(folder.glob("data/part-*")) == [
            folder / objects.LAYOUT.part(0),
            folder / objects.LAYOUT.part(1),
            mine,
        ]

    @pytest.fixture
    def leftovers(self, folder: Path) -> list[Path]:
        """What a killed worker and a killed submit leave: half a part, unknown items."""
        (folder / objects.LAYOUT.staged_file(0, 2)).write_bytes(b"the items")
        leftovers = [folder / objects.TMP / "3f9a1c2b", folder / objects.LAYOUT.staged_file(2, 1)]
        for path in leftovers:
            path.write_bytes(b"half")
        return leftovers

    @pytest.mark.usefixtures("leftovers")
    def test_so_are_files_of_killed_processes(self, folder: Path) -> None:
        (folder / objects.JOB_FILE).write_bytes(b"{}")
        with pytest.raises(Killed):
            Bench(folder, kill_at=2).run()

        assert not (folder / objects.SUCCESS).exists()
        left = {path.name for path in (folder / objects.INTERNAL).rglob("*")}
        assert left == {"items-00000000-2.staged", "job.json", "tmp"}

    def test_a_ledger_that_was_lost_removes_no_items(self, folder: Path, leftovers: list[Path]) -> None:
        bench = Bench(folder)
        bench.staged = []
        bench.run()

        assert (folder / objects.LAYOUT.staged_file(0, 2)).exists()
        assert all(path.exists() for path in leftovers)


def break_part(folder: Path) -> None:
    (folder / objects.LAYOUT.part(1)).write_bytes(b"PAR1 not what it was")


def place_part_of_another_job(folder: Path) -> None:
    (folder / objects.LAYOUT.part(1)).unlink()
    add_part(folder, 1, row(2), job_id="other")


def place_part_of_another_chunk(folder: Path) -> None:
    (folder / objects.LAYOUT.part(0)).replace(folder / objects.LAYOUT.part(1))
    add_part(folder, 0, row(0))


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        (
            lambda folder: (folder / objects.LAYOUT.part(1)).unlink(),
            OutputUnavailableError,
            "0001.parquet is not there",
        ),
        (break_part, OutputUnreachableError, r"part-00000001\.parquet: damaged"),
        (place_part_of_another_job, OutputConflictError, r"00001\.parquet belongs to job 'other', chunk 1"),
        (place_part_of_another_chunk, OutputConflictError, "chunk 0"),
    ],
)
def test_a_part_that_is_not_in_place_is_named_and_nothing_is_written(
    folder: Path, change: Callable[[Path], None], error: type[Exception], words: str
) -> None:
    change(folder)
    bench = Bench(folder)

    with pytest.raises(error, match=words):
        bench.run()

    assert bench.output.steps == []


def test_a_full_disk_is_waited_for(folder: Path) -> None:
    with pytest.raises(OutputUnavailableError, match="No space left") as caught:
        Bench(folder).run(FullDisk(folder))
    assert not isinstance(caught.value, OutputUnreachableError)
