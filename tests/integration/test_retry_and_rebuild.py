"""Retries and rebuilds of real outputs with a real ledger; the tests act as the workers."""

from __future__ import annotations

import json
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa
import pytest
import redis

from clipfleet.client import Client, JobOptions
from clipfleet.contract.jobs import ErrorCode, JobState, PartFormat
from clipfleet.contract.parts import PartCounts, PartIdentity, part_schema
from clipfleet.errors import (
    JobConflictError,
    JobNotFoundError,
    OutputConflictError,
    OutputDamagedError,
)
from clipfleet.hints import Hints
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Claim, Ledger
from clipfleet.outputs import Output, open_output
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.job_file import (
    Generation,
    StagedFiles,
    StagedNote,
    generation_of,
    job_of,
    note_generation,
    staged_files,
)
from clipfleet.parts import part_files
from clipfleet.resume.rebuild import Rebuild
from clipfleet.resume.retry import Retry, parts_in_place
from clipfleet.settings import Settings
from clipfleet.sources import open_source
from clipfleet.submit.staging import Stager
from clipfleet.submit.submission import Submission
from clipfleet_worker.sinks.parts import PartSink
from tests.support.ledger import claim_finish, let_back_offs_pass, make_job, server_now_ms, try_claim
from tests.support.s3 import S3Bucket

ITEMS, CHUNK = 12, 2
CHUNKS = ITEMS // CHUNK


class CountedHints:
    """Hints that are counted instead of sent."""

    def __init__(self) -> None:
        self.work = self.finish = 0

    def publish_work(self, count: int = 1) -> None:
        self.work += count

    def publish_finish(self) -> None:
        self.finish += 1


class Scene:
    """One job, its output, and everything that may happen to them."""

    def __init__(self, ledger: Ledger, client: redis.Redis, output: Output, folder: Path, kind: PartFormat):
        names = (f"https://example.org/{number}.jpg" for number in range(ITEMS))
        (folder / "urls.txt").write_text("\n".join(names))
        source = open_source(str(folder / "urls.txt"))
        changes = {"source": source.description, "chunk_size": CHUNK, "part_format": kind}
        self.job = make_job(output=output.uri).model_copy(update=changes)
        self.ledger, self.client, self.output, self.hints = ledger, client, output, CountedHints()
        self.sink = PartSink(output, part_files(kind, "job"))

    def submit(self, items: int = ITEMS) -> None:
        """All of the source, or its beginning: then the submit is killed."""
        submission = Submission(self.ledger, cast(Hints, self.hints), self.output, self.job)
        if items == ITEMS:
            submission.run(open_source(self.job.source.uri))
            return
        self.ledger.submit(self.job)
        self.output.create(keys.JOB_FILE, self.job.model_dump_json().encode())
        self.stage(items)
        StagedNote(self.output).write(((0, items // CHUNK),), items)
        self.ledger.stage("job", 0, items // CHUNK, items)

    def stage(self, items: int, *, chunk_size: int = CHUNK) -> None:
        """One staged file with the beginning of the source."""
        (batch,) = open_source(self.job.source.uri).batches()
        assert len(list(Stager(self.output, "job", chunk_size).stage([batch.slice(0, items)]))) == 1

    def work(
        self, *, failing: Collection[int] = (), chunks: int = CHUNKS, code: str = "timeout"
    ) -> list[int]:
        """Take chunks and write their parts; in a retry only what had failed is done. Returns their ids."""
        taken: list[int] = []
        while len(taken) < chunks and (claimed := try_claim(self.ledger)) is not None:
            rows, counts = self.rows(claimed, failing, code)
            identity = PartIdentity("job", claimed.chunk_id, claimed.generation)
            older = self.sink.older(identity) if claimed.generation else None
            counts = self.sink.write(identity, rows, counts, over=older)
            self.ledger.complete(
                claimed, ok=counts.ok, failed=counts.failed, codes=counts.codes, work_seconds={}
            )
            taken.append(claimed.chunk_id)
        return taken

    def rows(self, claimed: Claim, failing: Collection[int], code: str) -> tuple[pa.Table, PartCounts]:
        indexes = range(claimed.chunk_id * CHUNK, (claimed.chunk_id + 1) * CHUNK)
        failed = [index for index in indexes if index in failing]
        rows = [
            {
                "item_index": index, "item_id": str(index), "uri": f"generation {claimed.generation}",
                "status": "failed" if index in failed else "ok",
                "error_code": code if index in failed else None,
            }
            for index in indexes
        ]  # fmt: skip
        counts = PartCounts(CHUNK - len(failed), len(failed), {code: len(failed)} if failed else {})
        return pa.Table.from_pylist(rows, part_schema(2)), counts

    def finish(self) -> str:
        self.output.replace(keys.SUCCESS, b"")
        return self.ledger.finish(claim_finish(self.ledger), ttl_seconds=1000)

    def end(self, *, failing: Collection[int] = ()) -> None:
        """Submit and work off all of it."""
        self.submit()
        self.work(failing=failing)
        self.finish()

    def retry(self, *codes: ErrorCode, output: Output | None = None) -> bool:
        output = output or self.output
        parts = partial(parts_in_place, output, self.job)
        hints = cast(Hints, self.hints)
        return Retry(self.ledger, hints, output, parts, self.job, lease_seconds=0.0).run(codes)

    def forget(self) -> None:
        self.client.flushall()

    def rebuild(self) -> JobState:
        job = job_of(self.output)
        assert job is not None
        return Rebuild(self.ledger, cast(Hints, self.hints), self.output, job, 1000).run()

    def part_name(self, chunk_id: int) -> str:
        return keys.part(chunk_id, self.job.part_format)

    def is_success(self) -> bool:
        return self.output.read(keys.SUCCESS) is not None

    def events(self) -> list[tuple[str, str]]:
        return [(entry["generation"], entry["state"]) for _, entry in self.client.xrange(keys.EVENTS)]


@pytest.fixture(params=["folder", "folder, JSON Lines", "S3"])
def scene(request: pytest.FixtureRequest, ledger: Ledger, redis_client: redis.Redis, tmp_path: Path) -> Scene:
    """The same for each kind of output."""
    uri = str(tmp_path / "out")
    if request.param == "S3":
        bucket: S3Bucket = request.getfixturevalue("s3")
        uri = f"{bucket.uri}/out"
    kind = PartFormat.JSONL if "JSON" in request.param else PartFormat.PARQUET
    return Scene(ledger, redis_client, open_output(uri), tmp_path, kind)


@pytest.fixture
def folder_scene(ledger: Ledger, redis_client: redis.Redis, tmp_path: Path) -> Scene:
    """Where the kind of output makes no difference."""
    return Scene(ledger, redis_client, FolderOutput(tmp_path / "out"), tmp_path, PartFormat.PARQUET)


class TestRetry:
    def test_chunks_with_failed_rows_are_run_again_and_no_others(self, scene: Scene) -> None:
        scene.end(failing=[3, 8, 9])

        assert scene.retry()

        assert not scene.is_success()
        assert generation_of(scene.output) == Generation(number=1)
        assert scene.hints.work == CHUNKS + 2
        assert scene.work(failing=[9]) == [1, 4]
        assert scene.finish() == "completed_with_errors"
        status = scene.ledger.status("job")
        assert (status.ok, status.failed, status.codes) == (11, 1, {"timeout": 1})
        # And once more
        assert scene.retry()
        assert scene.work() == [4]
        assert scene.finish() == "completed"
        assert [int(generation) for generation, _ in scene.events()] == [0, 1, 2]

    def test_of_some_codes(self, folder_scene: Scene) -> None:
        folder_scene.submit()
        folder_scene.work(failing=[0], chunks=1)
        folder_scene.work(failing=[2], code="not_found")
        folder_scene.finish()

        assert not folder_scene.retry(ErrorCode.SERVER_ERROR)
        assert folder_scene.retry(ErrorCode.NOT_FOUND, ErrorCode.SERVER_ERROR)

        status = folder_scene.ledger.status("job")
        assert (status.ok, status.failed, status.codes) == (9, 1, {"timeout": 1})
        claimed = try_claim(folder_scene.ledger)
        assert claimed is not None
        assert (claimed.chunk_id, claimed.retry_codes) == (1, ("not_found", "server_error"))

    def test_where_nothing_failed_nothing_changes(self, scene: Scene) -> None:
        scene.end()

        assert not scene.retry()

        assert scene.is_success()
        assert scene.ledger.status("job").state is JobState.COMPLETED

    def test_a_retry_that_is_under_way_is_left_alone(self, folder_scene: Scene) -> None:
        folder_scene.end(failing=[3])
        assert folder_scene.retry()
        assert folder_scene.retry()

        assert folder_scene.ledger.status("job").generation == 1
        assert folder_scene.work() == [1]

    def test_a_job_that_has_not_ended_is_refused_with_the_way_to_follow_it(self, folder_scene: Scene) -> None:
        folder_scene.submit()

        with pytest.raises(JobConflictError, match="clipfleet watch job"):
            folder_scene.retry()

    def test_two_at_once_start_one_generation(self, folder_scene: Scene) -> None:
        # Given a retry that is overtaken by another one, down to its end, before it removes _SUCCESS
        folder_scene.end(failing=[3])

        class Overtaken(FolderOutput):
            def remove(self, name: str) -> None:
                assert folder_scene.retry()
                folder_scene.work()
                folder_scene.finish()
                super().remove(name)

        with pytest.raises(JobConflictError, match="another retry of job job began at the same time"):
            folder_scene.retry(output=Overtaken(Path(folder_scene.output.uri)))

        assert folder_scene.events() == [("0", "completed_with_errors"), ("1", "completed")]
        assert folder_scene.is_success()

    def test_a_retry_that_is_overtaken_joins_the_other(self, folder_scene: Scene) -> None:
        folder_scene.end(failing=[3])

        class Overtaken(FolderOutput):
            def remove(self, name: str) -> None:
                assert folder_scene.retry()
                super().remove(name)

        assert folder_scene.retry(output=Overtaken(Path(folder_scene.output.uri)))
        assert folder_scene.ledger.status("job").generation == 1
        assert not folder_scene.is_success()

    def test_a_later_generation_that_is_noted_is_not_written_over(self, scene: Scene) -> None:
        assert note_generation(scene.output, Generation(number=2, codes=("timeout",)))
        assert note_generation(scene.output, Generation(number=2))
        assert not note_generation(scene.output, Generation(number=1))
        assert generation_of(scene.output) == Generation(number=2)

    def test_a_part_that_was_removed_is_made_again(self, scene: Scene) -> None:
        scene.end()
        scene.output.remove(scene.part_name(2))

        assert scene.retry()
        assert scene.work() == [2]
        assert scene.finish() == "completed"

    def test_a_damaged_part_is_named_with_the_way_out(self, scene: Scene) -> None:
        scene.end()
        scene.output.replace(scene.part_name(2), b"what is this")

        with pytest.raises(
            OutputDamagedError, match=r"part-00000002\.\w+ is not a complete part .* remove it"
        ):
            scene.retry()
        assert scene.is_success()

    def test_an_output_that_holds_another_job_by_now_is_refused(self, folder_scene: Scene) -> None:
        folder_scene.end(failing=[3])
        other = folder_scene.job.model_copy(update={"job_id": "other"})
        folder_scene.output.replace(keys.JOB_FILE, other.model_dump_json().encode())

        with pytest.raises(OutputConflictError, match="no longer contains job job"):
            folder_scene.retry()

    def test_a_late_part_of_another_job_counts_as_none(self, scene: Scene) -> None:
        """A worker of the job before was frozen inside the write: the chunk is run again."""
        scene.end(failing=[3])
        scene.output.remove(scene.part_name(2))
        whose = PartSink(scene.output, part_files(scene.job.part_format, "other"))
        rows, counts = scene.rows(cast(Claim, _Chunk2()), [4], "timeout")
        whose.write(PartIdentity("other", 2, 0), rows, counts)

        assert scene.retry()

        assert scene.ledger.status("job").due_chunks == 2

    def test_a_cancelled_job_resumes(self, scene: Scene) -> None:
        # Given one chunk that is done, one that was under way and whose part is there, and one without
        scene.submit()
        scene.work(chunks=1)
        second, third = try_claim(scene.ledger), try_claim(scene.ledger)
        assert second is not None and third is not None
        rows, counts = scene.rows(second, [], "")
        scene.ledger.cancel("job", ttl_seconds=1000)
        scene.sink.write(PartIdentity("job", 1, 0), rows, counts)

        assert scene.retry()

        assert scene.ledger.status("job").ok == 2 * CHUNK
        assert scene.work() == [2, 3, 4, 5]
        assert scene.finish() == "completed"
        assert scene.events() == [("0", "cancelled"), ("1", "completed")]

    def test_a_job_that_was_cancelled_during_its_submit_is_submitted_to_its_end(
        self, folder_scene: Scene
    ) -> None:
        folder_scene.submit(items=6)
        folder_scene.ledger.cancel("job", ttl_seconds=1000)

        assert folder_scene.retry()
        assert folder_scene.ledger.status("job").state is JobState.SUBMITTING
        folder_scene.submit()

        assert folder_scene.work() == list(range(CHUNKS))
        assert folder_scene.finish() == "completed"


class _Chunk2:
    chunk_id, generation = 2, 0


class TestRebuild:
    def test_chunks_whose_part_is_there_are_done(self, scene: Scene) -> None:
        scene.submit()
        scene.work(chunks=2, failing=[1])
        lost = try_claim(scene.ledger)
        assert lost is not None
        scene.forget()

        assert scene.rebuild() is JobState.RUNNING

        status = scene.ledger.status("job")
        assert (status.state, status.total, status.ok, status.failed) == (JobState.RUNNING, ITEMS, 3, 1)
        assert (status.sealed, status.done_chunks, status.codes) == (True, 2, {"timeout": 1})
        assert scene.hints.work == CHUNKS + 4
        assert scene.work() == [2, 3, 4, 5]
        assert scene.finish() == "completed_with_errors"

    def test_a_worker_that_held_a_chunk_before_continues(self, scene: Scene) -> None:
        scene.submit()
        asleep = try_claim(scene.ledger)
        assert asleep is not None
        rows, counts = scene.rows(asleep, [], "")
        scene.forget()
        scene.rebuild()

        counts = scene.sink.write(PartIdentity("job", 0, 0), rows, counts)
        done = {"ok": counts.ok, "failed": counts.failed, "codes": {}, "work_seconds": {}}
        assert scene.ledger.complete(asleep, **cast(Any, done)) == "missing"

        assert scene.work() == list(range(CHUNKS))
        assert scene.finish() == "completed"
        assert scene.ledger.status("job").ok == ITEMS

    @pytest.mark.parametrize("failing", [[], [3]])
    def test_a_job_that_had_ended_is_over(self, scene: Scene, failing: list[int]) -> None:
        scene.end(failing=failing)
        before = scene.ledger.status("job")
        scene.forget()
        scene.rebuild()

        after = scene.ledger.status("job")
        assert (after.state, after.ok, after.codes) == (before.state, before.ok, before.codes)
        assert scene.events() == []
        assert scene.is_success()
        assert scene.retry() == bool(failing)

    def test_a_job_whose_last_part_was_there_is_finished(self, scene: Scene) -> None:
        scene.submit()
        scene.work()
        scene.forget()
        scene.rebuild()

        assert scene.hints.finish == 1
        assert scene.finish() == "completed"

    def test_a_retry_resumes_where_it_was(self, scene: Scene) -> None:
        scene.end(failing=[1, 3, 5])
        scene.retry(ErrorCode.TIMEOUT)
        scene.work(chunks=1)
        scene.forget()
        scene.rebuild()

        status = scene.ledger.status("job")
        assert (status.state, status.generation, status.done_chunks) == (JobState.RUNNING, 1, CHUNKS - 2)
        claimed = try_claim(scene.ledger)
        assert claimed is not None
        assert (claimed.chunk_id, claimed.generation, claimed.retry_codes) == (1, 1, ("timeout",))
        scene.ledger.release(claimed, "drain", reason="the test")
        let_back_offs_pass(scene.client, "job")
        assert scene.work(failing=[3]) == [1, 2]
        assert scene.finish() == "completed_with_errors"
        assert scene.events() == [("1", "completed_with_errors")]

    @pytest.mark.parametrize("manifest", [b'{"finished_at": "2026-01-02T03:04:05+00:00"}', b"[]", b"{", None])
    def test_a_job_that_is_over_ended_when_its_manifest_says(
        self, folder_scene: Scene, manifest: bytes | None
    ) -> None:
        folder_scene.end()
        if manifest is not None:
            folder_scene.output.replace(keys.MANIFEST, manifest)
        folder_scene.forget()
        before_ms = server_now_ms(folder_scene.client)

        assert folder_scene.rebuild() is JobState.COMPLETED

        ended = folder_scene.ledger.status("job").finished_ms
        is_told = manifest is not None and b"finished_at" in manifest
        assert ended is not None
        assert ended == 1_767_323_045_000 if is_told else ended >= before_ms

    def test_a_job_that_is_known_stays_as_it_is(self, folder_scene: Scene) -> None:
        folder_scene.submit()
        folder_scene.work(chunks=1)
        claimed = try_claim(folder_scene.ledger)
        before = folder_scene.ledger.status("job")

        assert folder_scene.rebuild() is JobState.RUNNING

        assert folder_scene.ledger.status("job") == before
        assert claimed is not None

    def test_a_killed_submit_is_resumed(self, scene: Scene) -> None:
        scene.submit(items=6)
        scene.work(chunks=2)
        scene.forget()
        scene.rebuild()
        status = scene.ledger.status("job")
        assert (status.state, status.chunks, status.total) == (JobState.SUBMITTING, 3, 6)
        assert (status.sealed, status.done_chunks) == (False, 2)

        scene.submit()

        status = scene.ledger.status("job")
        assert (status.sealed, status.chunks, status.total) == (True, CHUNKS, ITEMS)
        assert scene.work() == [2, 3, 4, 5]
        assert scene.finish() == "completed"

    @pytest.mark.parametrize("items", [2, 4, 8, ITEMS])
    @pytest.mark.parametrize("is_sealed", [False, True])
    def test_a_file_that_the_ledger_never_got_does_not_count(
        self, folder_scene: Scene, items: int, is_sealed: bool
    ) -> None:
        folder_scene.submit(items=ITEMS if is_sealed else 6)
        folder_scene.stage(items, chunk_size=1)
        folder_scene.forget()
        folder_scene.rebuild()

        assert folder_scene.ledger.staged_files("job") == [(0, CHUNKS if is_sealed else 3)]
        folder_scene.submit()
        assert folder_scene.work() == list(range(CHUNKS))
        assert folder_scene.ledger.status("job").ok == ITEMS

    def test_a_file_that_was_noted_and_then_written_again_is_counted_as_it_is(
        self, folder_scene: Scene
    ) -> None:
        # Given two submits that were killed before they reached the ledger; the source paused for the second
        folder_scene.submit(items=6)
        folder_scene.stage(3, chunk_size=1)
        folder_scene.forget()
        folder_scene.rebuild()

        assert folder_scene.ledger.staged_files("job") == [(0, 3)]
        assert folder_scene.ledger.status("job").total == 3

    def test_a_finished_job_of_which_a_part_has_gone_is_not_over(self, folder_scene: Scene) -> None:
        folder_scene.end()
        folder_scene.output.remove(folder_scene.part_name(5))
        folder_scene.forget()
        folder_scene.rebuild()

        assert not folder_scene.is_success()
        assert folder_scene.work() == [5]
        assert folder_scene.finish() == "completed"

    def test_another_job_of_its_id_is_refused(self, folder_scene: Scene) -> None:
        folder_scene.submit()
        folder_scene.forget()
        other = folder_scene.job.model_copy(update={"output": "/elsewhere"})
        folder_scene.ledger.submit(other)

        with pytest.raises(
            JobConflictError, match="has a different one with this id, with output /elsewhere"
        ):
            folder_scene.rebuild()

    @pytest.mark.parametrize("name", [keys.STAGED_FILES, keys.GENERATION])
    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"number": "x", "files": 1}'])
    def test_a_damaged_note_is_named(self, folder_scene: Scene, name: str, data: bytes) -> None:
        folder_scene.submit()
        folder_scene.output.replace(name, data)
        folder_scene.forget()

        with pytest.raises(OutputDamagedError, match=name):
            folder_scene.rebuild()


class TestClient:
    @pytest.fixture
    def submit(self, redis_url: str, tmp_path: Path) -> Callable[[], Any]:
        (tmp_path / "urls.txt").write_text("https://example.org/1.jpg")
        options = JobOptions(output=tmp_path / "out", model="demo", job_id="job")

        def submit() -> Any:
            with Client(Settings(redis_url=redis_url)) as client:
                return client.embed(tmp_path / "urls.txt", options=options).status()

        return submit

    def test_a_submit_of_a_job_that_was_forgotten_finds_what_is_there(
        self, submit: Callable[[], Any], redis_client: redis.Redis, tmp_path: Path
    ) -> None:
        submit()
        output = FolderOutput(tmp_path / "out")
        rows = [{"item_index": 0, "item_id": "0", "uri": "/", "status": "ok"}]
        counts = PartCounts(1, 0, {})
        table = pa.Table.from_pylist(rows, part_schema(2))
        PartSink(output).write(PartIdentity("job", 0, 3), table, counts)
        output.create(keys.SUCCESS, b"")
        redis_client.flushall()

        status = submit()

        assert (status.state, status.ok, status.generation) == (JobState.COMPLETED, 1, 3)

    def test_an_output_that_was_moved_is_refused(
        self, submit: Callable[[], Any], redis_url: str, tmp_path: Path
    ) -> None:
        submit()
        (tmp_path / "out").rename(tmp_path / "moved")

        with Client(Settings(redis_url=redis_url)) as client:
            with pytest.raises(OutputConflictError, match=f"was moved here from {tmp_path}/out"):
                client.rebuild(tmp_path / "moved")
            with pytest.raises(JobNotFoundError, match="no job has this output"):
                client.rebuild(tmp_path / "out")

    def test_what_is_staged_is_noted(self, submit: Callable[[], Any], tmp_path: Path) -> None:
        submit()

        noted = json.loads((tmp_path / "out" / keys.STAGED_FILES).read_text())
        source_sum = noted.pop("source_sum")
        assert len(source_sum) == 32
        assert noted == {"items": 1, "files": [[0, 1]], "is_sealed": True}

    def test_of_two_submits_that_note_at_once_one_continues(self, tmp_path: Path) -> None:
        output = FolderOutput(tmp_path / "out")
        first, second = StagedNote(output), StagedNote(output)
        assert first.write(((0, 3),), 6)
        assert not second.write(((0, 2),), 4)
        assert first.write(((0, 3), (3, 1)), 8, is_sealed=True)

        assert staged_files(output) == StagedFiles(files=((0, 3), (3, 1)), items=8, is_sealed=True)
        # A submit that resumes starts from the ledger, not from the note
        assert StagedNote(output).write(((0, 3),), 6)
