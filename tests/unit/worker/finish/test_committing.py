"""The end of a job that fills a store: one commit, under the lock, whatever is killed in between."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest

from clipfleet.contract.jobs import Job, JobState
from clipfleet.errors import OutputConflictError, OutputRefusedError, OutputUnavailableError
from clipfleet.ledger.answers import FinishAnswer
from clipfleet.ledger.jobs import FINISH, FinishClaim, JobStatus, Lease, Ledger
from clipfleet.ledger.locks import Alive, LockLostError, Locks, LockTakenError
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.staged import StagedReader
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import EmbeddedBy, StorePlace, store_place
from clipfleet_worker.chunk.held_lease import HeldLease
from clipfleet_worker.chunk.job_contexts import JobContext
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.finish import committing
from clipfleet_worker.finish.committing import NoStoreExtraError, StoreBusyError, StoreCommits
from clipfleet_worker.finish.finisher import Finisher
from clipfleet_worker.sinks.parts import PartSink
from tests.support.jobs import make_finish_claim, make_status
from tests.support.store_jobs import job_with, row
from tests.unit.worker.finish.test_finisher import Killed, SteppingOutput

MINE, OTHER = "a" * 16, "b" * 16
LEFT = {
    objects.LAYOUT.errors, objects.MANIFEST, objects.SUCCESS,
}  # fmt: skip


class FakeLocks:
    """One lock, which another program may hold, or take while it is held."""

    def __init__(self) -> None:
        self.is_taken = self.is_lost = False
        self.names: list[str] = []

    @contextmanager
    def held(self, name: str, *, wait: Callable[[], object] | None = None) -> Iterator[Alive]:
        assert wait is None  # the slot must not wait
        if self.is_taken:
            raise LockTakenError(name)
        self.names.append(name)

        def alive() -> None:
            if self.is_lost:
                raise LockLostError(name)

        yield alive


class Bench(HeldLease):
    """A job of a store whose chunks are all done; its ledger and its lease."""

    def __init__(self, place: StorePlace, job: Job, output: FolderOutput, chunks: int) -> None:
        super().__init__(Lease(job.job_id, FINISH, "token"))
        self.place, self.job, self.chunks = place, job, chunks
        self.folder = Path(output.uri)
        self.output = SteppingOutput(self.folder, float("inf"))
        self.locks = FakeLocks()
        self.pinned = MINE
        self.is_held = True
        self.writable: Callable[[str], object] = lambda uri: None
        self.ended: list[FinishClaim] = []

    def status(self, job_id: str) -> JobStatus:
        return make_status(job_id=job_id, state=JobState.FINISHING, chunks=self.chunks)

    def staged_files(self, job_id: str) -> list[tuple[int, int]]:
        return [(0, self.chunks)]

    def pin_model(self, job_id: str, fingerprint: str = "") -> str:
        self.pinned = self.pinned or fingerprint
        return self.pinned

    def finish(self, claim: FinishClaim, *, ttl_seconds: int) -> FinishAnswer:
        with self.output.step("ledger"):
            self.ended.append(claim)
        return FinishAnswer.COMPLETED

    def confirm(self) -> None:
        if not self.is_held:
            raise ChunkInterrupted("lost")

    def run(self, kill_at: float = float("inf")) -> str:
        output = self.output = SteppingOutput(self.folder, kill_at)
        context = JobContext(
            self.job, output, PartSink(output), StagedReader(output, job_id=self.job.job_id),
            check_place=lambda uri: self.writable(uri),
        )  # fmt: skip
        ledger = cast(Ledger, self)
        finisher = Finisher(ledger, 3600, StoreCommits(ledger, cast(Locks, self.locks)))
        return finisher.finish(make_finish_claim(self.job), context, self)

    @property
    def manifest(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads((self.folder / objects.MANIFEST).read_bytes())
        return found

    @property
    def ids(self) -> list[str]:
        dataset = VectorDataset.open(self.place.dataset_uri(MINE))
        return sorted(one for batch in dataset.batches(["item_id"]) for one in batch["item_id"].to_pylist())

    @property
    def versions(self) -> int:
        return VectorDataset.open(self.place.dataset_uri(MINE)).version

    @property
    def left(self) -> set[str]:
        files = (path.relative_to(self.folder) for path in self.folder.rglob("*") if path.is_file())
        return {str(path) for path in files}


@pytest.fixture
def place(tmp_path: Path) -> StorePlace:
    place = store_place(str(tmp_path / "store"))
    place.create(EmbeddedBy(model="demo"))
    return place


@pytest.fixture
def bench(place: StorePlace) -> Bench:
    parts = [[row("a"), row("b", "failed")], [row("c"), row("d", "same")]]
    return Bench(place, *job_with(place, parts), 2)


class TestCommit:
    def test_the_rows_are_in_the_store_the_manifest_says_so_and_the_parts_are_gone(
        self, bench: Bench
    ) -> None:
        assert bench.run() == "completed"

        assert bench.ids == ["a", "c"]
        assert bench.left == LEFT
        manifest = bench.manifest
        assert (manifest["ok"], manifest["failed"], manifest["same"], manifest["copied"]) == (3, 1, 1, 0)
        assert manifest["fetched_bytes"] == 100
        assert manifest["store"] | {"counts": {}} == {
            "uri": bench.place.uri, "version": 2, "fingerprint": MINE, "counts": {},
        }  # fmt: skip
        assert (manifest["store"]["counts"]["new"], manifest["store"]["counts"]["failed"]) == (2, 1)
        assert bench.locks.names == [f"store:{bench.place.read().store_id}"]
        assert '"b"' in (bench.folder / objects.LAYOUT.errors).read_text()

    @pytest.mark.parametrize("kill_at", [0.5, 1.5, 2.5, 3.5])
    def test_a_killed_finish_goes_on_with_one_commit(self, bench: Bench, kill_at: float) -> None:
        with pytest.raises(Killed):
            bench.run(kill_at)

        assert bench.run() == "completed"

        assert (bench.ids, bench.versions, bench.left) == (["a", "c"], 2, LEFT)
        assert bench.manifest["store"]["counts"]["new"] == 2

    def test_a_ledger_that_has_forgotten_the_end_gets_it_again_without_the_parts(self, bench: Bench) -> None:
        bench.run()
        before = bench.manifest

        assert bench.run() == "completed"

        assert (len(bench.ended), bench.versions, bench.manifest) == (2, 2, before)

    def test_a_ledger_that_has_forgotten_the_model_gets_it_again(self, bench: Bench) -> None:
        bench.pinned = ""

        assert bench.run() == "completed"

        assert (bench.ids, bench.pinned, bench.manifest["store"]["fingerprint"]) == (["a", "c"], MINE, MINE)

    def test_vectors_of_several_models_stay_where_they_are(self, place: StorePlace) -> None:
        bench = Bench(place, *job_with(place, [[row("a")], [row("b", model=OTHER)]]), 2)
        before = bench.left

        with pytest.raises(OutputConflictError, match=f"{MINE} and {OTHER}, .* none was committed"):
            bench.run()

        assert before <= bench.left
        assert bench.place.read().current.fingerprint is None

    def test_a_lost_lease_changes_nothing(self, bench: Bench) -> None:
        bench.is_held = False

        with pytest.raises(ChunkInterrupted):
            bench.run()

        assert bench.place.read().current.fingerprint is None

    @pytest.mark.parametrize("trouble", ["is_taken", "is_lost"])
    def test_another_program_that_writes_to_the_store_postpones_the_end(
        self, bench: Bench, trouble: str
    ) -> None:
        setattr(bench.locks, trouble, True)
        with pytest.raises(StoreBusyError, match="another program writes to"):
            bench.run()
        assert not bench.ended

        setattr(bench.locks, trouble, False)
        assert (bench.run(), bench.ids) == ("completed", ["a", "c"])

    def test_a_store_of_another_model_takes_nothing_and_the_manifest_says_so(
        self, bench: Bench, place: StorePlace
    ) -> None:
        bench.run()
        late = Bench(place, *job_with(place, [[row("x")]], "late"), 1)
        late.pinned = OTHER

        assert late.run() == "completed"

        assert f"fingerprint {MINE} by now" in late.manifest["store"]["superseded"]
        assert (bench.ids, late.left) == (["a", "c"], LEFT)

    def test_a_store_that_is_gone_or_another_one_is_a_conflict(self, bench: Bench) -> None:
        store = bench.place.read()
        Path(bench.place.uri, "store.json").unlink()
        with pytest.raises(OutputConflictError, match="there is no store"):
            bench.run()

        bench.place.create(store.current)
        with pytest.raises(OutputConflictError, match="holds another store by now"):
            bench.run()

    def test_parts_that_cannot_be_removed_are_left(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        def refuse(self: FolderOutput, name: str) -> None:
            raise OutputUnavailableError(f"{name}: the disk is away")

        monkeypatch.setattr(FolderOutput, "remove", refuse)
        with caplog.at_level(logging.WARNING):
            assert bench.run() == "completed"

        assert "parts of job night are left" in caplog.text


class TestWorkersThatCannotCommit:
    def test_one_without_the_extra_writes_nothing(
        self, bench: Bench, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(committing, "has_store_extra", lambda: False)
        before = bench.left

        with pytest.raises(NoStoreExtraError):
            bench.run()

        assert bench.left == before

    @pytest.mark.parametrize("forbidden", ["", f"/{MINE}.lance", f"/{MINE}.lance/data"])
    def test_the_store_and_its_dataset_must_lie_where_the_worker_may_write(
        self, bench: Bench, forbidden: str
    ) -> None:
        def refuse(uri: str) -> None:
            if uri == bench.place.uri + forbidden:
                raise OutputRefusedError(f"{uri} is outside")

        bench.writable = refuse
        with pytest.raises(OutputRefusedError, match="is outside"):
            bench.run()

        assert bench.place.read().current.fingerprint is None
