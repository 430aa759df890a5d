"""Retries and rebuilds of real outputs with a real ledger; the tests act as the workers."""

from __future__ import annotations

from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path

import pyarrow as pa
import pytest
import redis

from clipfleet.client import Client, JobOptions
from clipfleet.contract.brief import JobBrief
from clipfleet.contract.jobs import ErrorCode, JobState, PartFormat
from clipfleet.contract.parts import PartCounts, PartIdentity, part_schema
from clipfleet.errors import JobConflictError, JobNotFoundError, OutputConflictError, OutputDamagedError
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Claim, JobStatus, Ledger
from clipfleet.outputs import Output, job_file, objects, open_output
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.job_file import Generation, StagedFiles, StagedNote
from clipfleet.parts import part_files
from clipfleet.resume.rebuild import Rebuild
from clipfleet.resume.retry import Retry, parts_in_place
from clipfleet.settings import Settings
from clipfleet.sources import open_source
from clipfleet.submit.staging import Stager
from clipfleet.submit.submission import Submission
from clipfleet_worker.sinks.parts import PartSink
from tests.support import ledger as steps
from tests.support.hints import CountedHints
from tests.support.policies import make_policy, moderation_job

ITEMS, CHUNK = 12, 2
CHUNKS = ITEMS // CHUNK


class Scene:
    """One job, its output, and everything that may happen to them."""

    def __init__(self, ledger: Ledger, client: redis.Redis, output: Output, folder: Path, kind: PartFormat):
        names = (f"https://example.org/{number}.jpg" for number in range(ITEMS))
        (folder / "urls.txt").write_text("\n".join(names))
        source = open_source(str(folder / "urls.txt"))
        changes = {"source": source.description, "chunk_size": CHUNK, "part_format": kind}
        self.job = steps.make_job(output=output.uri).model_copy(update=changes)
        self.ledger, self.client, self.output, self.hints = ledger, client, output, CountedHints()
        self.sink = PartSink(output, part_files(kind, "job"))

    def submit(self, items: int = ITEMS) -> None:
        """All of the source, or its beginning: then the submit is killed."""
        if items == ITEMS:
            submission = Submission(self.ledger, self.hints, self.output, self.job)
            submission.run(open_source(self.job.source.uri))
            return
        self.ledger.submit(self.job)
        self.output.create(objects.JOB_FILE, self.job.model_dump_json().encode())
        self.stage(items)
        StagedNote(self.output).write(((0, items // CHUNK),), items)
        self.ledger.stage("job", 0, items // CHUNK, items)

    def stage(self, items: int, *, chunk_size: int = CHUNK) -> None:
        """One staged file with the beginning of the source."""
        (batch,) = open_source(self.job.source.uri).batches()
        assert len(list(Stager(self.output, "job", chunk_size).stage([batch.slice(0, items)]))) == 1

    def work(self, *, failing: Collection[int] = (), chunks: int = CHUNKS) -> list[int]:
        """Take chunks and write their parts; in a retry only what had failed is done. Returns their ids."""
        taken: list[int] = []
        while len(taken) < chunks and (claimed := steps.try_claim(self.ledger)) is not None:
            counts = self.write(claimed, failing)
            found = {"ok": counts.ok, "failed": counts.failed, "codes": counts.codes}
            self.ledger.complete(claimed, **found, work_seconds={})
            taken.append(claimed.chunk_id)
        return taken

    def write(self, claimed: Claim, failing: Collection[int] = ()) -> PartCounts:
        """The part of a claimed chunk."""
        identity = PartIdentity("job", claimed.chunk_id, claimed.generation)
        older = self.sink.older(identity) if claimed.generation else None
        return self.sink.write(identity, *chunk_rows(identity, failing), over=older)

    def finish(self) -> str:
        self.output.replace(objects.SUCCESS, b"")
        return self.ledger.finish(steps.claim_finish(self.ledger), ttl_seconds=1000)

    def end(self, *, failing: Collection[int] = ()) -> None:
        """Submit and work off all of it."""
        self.submit()
        self.work(failing=failing)
        self.finish()

    def retry(self, *codes: ErrorCode, output: Output | None = None) -> bool:
        output = output or self.output
        parts = partial(parts_in_place, output, self.job)
        return Retry(self.ledger, self.hints, output, parts, self.job, lease_seconds=0.0).run(codes)

    def forget_the_end_of_the_submit(self, *, knows_the_file: bool) -> None:
        """Redis is as it was before the seal, or before it got the staged file."""
        older = {"sealed": 0, "state": "submitting", "source_sum": ""}
        if not knows_the_file:
            older |= {"staged_chunks": 0, "staged_items": 0}
            self.client.delete(keys.job("job", keys.STAGED))
        self.client.hset(keys.job("job"), mapping=older)

    def rebuild(self) -> JobState:
        """Redis forgets everything before."""
        self.client.flushall()
        return self.rebuild_what_is_known()

    def rebuild_what_is_known(self) -> JobState:
        job = job_file.job_of(self.output)
        assert job is not None
        return Rebuild(self.ledger, self.hints, self.output, job, 1000).run()

    def claim(self) -> Claim:
        return steps.claim(self.ledger)

    def part_name(self, chunk_id: int) -> str:
        return objects.LAYOUT.part(chunk_id, self.job.part_format)

    @property
    def status(self) -> JobStatus:
        return self.ledger.status("job")

    @property
    def is_success(self) -> bool:
        return self.output.read(objects.SUCCESS) is not None

    def ends(self) -> list[tuple[str, str]]:
        """Generation and state of each end."""
        return [(generation, state) for _, generation, state in steps.ends(self.client)]


def chunk_rows(identity: PartIdentity, failing: Collection[int] = ()) -> tuple[pa.Table, PartCounts]:
    """What a worker makes of a chunk in which some items fail."""
    indexes = range(identity.chunk_id * CHUNK, (identity.chunk_id + 1) * CHUNK)
    failed = [index for index in indexes if index in failing]
    rows = [
        {
            "item_index": index, "item_id": str(index), "uri": f"generation {identity.generation}",
            "status": "failed" if index in failed else "ok",
            "error_code": "timeout" if index in failed else None,
        }
        for index in indexes
    ]  # fmt: skip
    counts = PartCounts(CHUNK - len(failed), len(failed), {"timeout": len(failed)} if failed else {})
    return pa.Table.from_pylist(rows, part_schema(2)), counts


@pytest.fixture(params=["folder", "folder, JSON Lines", "S3"])
def scene(request: pytest.FixtureRequest, ledger: Ledger, redis_client: redis.Redis, tmp_path: Path) -> Scene:
    """The same for each kind of output."""
    is_s3, is_jsonl = request.param == "S3", "JSON" in request.param
    uri = f"{request.getfixturevalue('s3').uri if is_s3 else tmp_path}/out"
    kind = PartFormat.JSONL if is_jsonl else PartFormat.PARQUET
    return Scene(ledger, redis_client, open_output(uri), tmp_path, kind)


@pytest.fixture
def plain(ledger: Ledger, redis_client: redis.Redis, tmp_path: Path) -> Scene:
    """Where the kind of output makes no difference."""
    return Scene(ledger, redis_client, FolderOutput(tmp_path / "out"), tmp_path, PartFormat.PARQUET)


class TestRetry:
    def test_chunks_with_failed_rows_are_run_again_and_no_others(self, scene: Scene) -> None:
        scene.end(failing=[3, 8, 9])

        assert scene.retry()
        assert scene.retry()  # it is under way

        assert not scene.is_success
        assert job_file.generation_of(scene.output) == Generation(number=1)
        assert scene.hints.work == CHUNKS + 2
        assert scene.work(failing=[9]) == [1, 4]
        assert scene.finish() == "completed_with_errors"
        assert (scene.status.ok, scene.status.failed, scene.status.codes) == (11, 1, {"timeout": 1})
        # And once more
        assert scene.retry()
        assert scene.work() == [4]
        assert scene.finish() == "completed"
        assert [generation for generation, _ in scene.ends()] == ["0", "1", "2"]

    def test_a_job_that_has_not_ended_is_refused_with_the_way_to_follow_it(self, plain: Scene) -> None:
        plain.submit()

        with pytest.raises(JobConflictError, match="clipfleet watch job"):
            plain.retry()

    @pytest.mark.parametrize("down_to_its_end", [False, True])
    def test_two_at_once_start_one_generation(self, plain: Scene, down_to_its_end: bool) -> None:
        # Given a retry that is overtaken by another one before it removes _SUCCESS
        plain.end(failing=[3])

        class Overtaken(FolderOutput):
            def remove(self, name: str) -> None:
                assert plain.retry()
                if down_to_its_end:
                    plain.work()
                    plain.finish()
                super().remove(name)

        overtaken = Overtaken(Path(plain.output.uri))
        if down_to_its_end:
            with pytest.raises(JobConflictError, match="another retry of job job began at the same time"):
                plain.retry(output=overtaken)
            assert plain.ends() == [("0", "completed_with_errors"), ("1", "completed")]
        else:
            assert plain.retry(output=overtaken)  # it joins the other
            assert plain.status.generation == 1
        assert plain.is_success == down_to_its_end

    def test_a_later_generation_that_is_noted_is_not_written_over(self, scene: Scene) -> None:
        assert job_file.note_generation(scene.output, Generation(number=2, codes=("timeout",)))
        assert job_file.note_generation(scene.output, Generation(number=2))
        assert not job_file.note_generation(scene.output, Generation(number=1))
        assert job_file.generation_of(scene.output) == Generation(number=2)

    def test_a_part_that_was_removed_is_made_again(self, scene: Scene) -> None:
        scene.end()
        scene.output.remove(scene.part_name(2))

        assert scene.retry()
        assert scene.work() == [2]
        assert scene.finish() == "completed"

    def test_a_damaged_part_is_named_with_the_way_out(self, scene: Scene) -> None:
        scene.end()
        scene.output.replace(scene.part_name(2), b"what is this")

        with pytest.raises(OutputDamagedError, match=r"part-00000002\.\w+ is not a complete .* remove it"):
            scene.retry()
        assert scene.is_success

    def test_an_output_that_holds_another_job_by_now_is_refused(self, plain: Scene) -> None:
        plain.end(failing=[3])
        other = plain.job.model_copy(update={"job_id": "other"})
        plain.output.replace(objects.JOB_FILE, other.model_dump_json().encode())

        with pytest.raises(OutputConflictError, match="no longer contains job job"):
            plain.retry()

    def test_a_late_part_of_another_job_counts_as_none(self, scene: Scene) -> None:
        """A worker of the job before was frozen inside the write: the chunk is run again."""
        scene.end(failing=[3])
        scene.output.remove(scene.part_name(2))
        whose, theirs = part_files(scene.job.part_format, "other"), PartIdentity("other", 2, 0)
        PartSink(scene.output, whose).write(theirs, *chunk_rows(theirs, failing=[4]))

        assert scene.retry()

        assert scene.status.due_chunks == 2

    def test_a_cancelled_job_resumes(self, scene: Scene) -> None:
        # Given one chunk that is done, one that was under way and whose part is there, and one without
        scene.submit()
        scene.work(chunks=1)
        second, _ = scene.claim(), scene.claim()
        scene.ledger.cancel("job", ttl_seconds=1000)
        scene.write(second)

        assert scene.retry()

        assert scene.status.ok == 2 * CHUNK
        assert scene.work() == [2, 3, 4, 5]
        assert scene.finish() == "completed"
        assert scene.ends() == [("0", "cancelled"), ("1", "completed")]

    def test_a_part_whose_decisions_were_not_announced_runs_again(self, plain: Scene) -> None:
        """Chunk 0 is complete; chunk 1 was cut off after its part was written, in two generations."""
        job = moderation_job(make_policy(), plain.output.uri)
        own = ("task", "label_sets", "policy", "top_k", "schema_version")
        plain.job = plain.job.model_copy(update={name: getattr(job, name) for name in own})
        plain.submit()
        first = plain.claim()
        plain.write(first)
        plain.ledger.complete(first, ok=CHUNK, failed=0, codes={}, work_seconds={}, decisions=[])

        for generation in range(2):
            second = plain.claim()
            assert (second.chunk_id, second.generation) == (1, generation)
            plain.write(second)
            plain.ledger.cancel("job", ttl_seconds=1000)
            assert plain.retry()

        assert plain.status.ok == CHUNK
        assert plain.work() == [1, 2, 3, 4, 5]
        assert plain.finish() == "completed"

    def test_a_job_that_was_cancelled_during_its_submit_is_submitted_to_its_end(self, plain: Scene) -> None:
        plain.submit(items=6)
        plain.ledger.cancel("job", ttl_seconds=1000)

        assert plain.retry()
        assert plain.status.state is JobState.SUBMITTING
        plain.submit()

        assert plain.work() == list(range(CHUNKS))
        assert plain.finish() == "completed"


class TestRebuild:
    def test_chunks_whose_part_is_there_are_done(self, scene: Scene) -> None:
        scene.submit()
        scene.work(chunks=2, failing=[1])
        scene.claim()  # and lost

        assert scene.rebuild() is JobState.RUNNING

        status = scene.status
        assert (status.state, status.total, status.ok, status.failed) == (JobState.RUNNING, ITEMS, 3, 1)
        assert (status.sealed, status.done_chunks, status.codes) == (True, 2, {"timeout": 1})
        assert scene.hints.work == CHUNKS + 4
        assert scene.work() == [2, 3, 4, 5]
        assert scene.finish() == "completed_with_errors"

    @pytest.mark.parametrize("failing", [[], [3]])
    def test_a_job_that_had_ended_is_over(self, scene: Scene, failing: list[int]) -> None:
        scene.end(failing=failing)
        before = scene.status
        scene.rebuild()

        after = scene.status
        assert (after.state, after.ok, after.codes) == (before.state, before.ok, before.codes)
        assert scene.ledger.jobs()[0].brief == JobBrief.of(scene.job)
        assert scene.ends() == []
        assert scene.is_success
        assert scene.retry() == bool(failing)
        assert scene.is_success == (not failing)

    def test_a_job_whose_last_part_was_there_is_finished(self, plain: Scene) -> None:
        plain.submit()
        plain.work()
        plain.rebuild()

        assert plain.hints.finish == 1
        assert plain.finish() == "completed"

    def test_a_retry_resumes_where_it_was(self, scene: Scene) -> None:
        scene.end(failing=[1, 3, 5])
        scene.retry(ErrorCode.TIMEOUT)
        scene.work(chunks=1)
        scene.rebuild()

        status = scene.status
        assert (status.state, status.generation, status.done_chunks) == (JobState.RUNNING, 1, CHUNKS - 2)
        claimed = scene.claim()
        assert (claimed.chunk_id, claimed.generation, claimed.retry_codes) == (1, 1, ("timeout",))
        scene.ledger.release(claimed, "drain", reason="the test")
        steps.let_back_offs_pass(scene.client, "job")
        assert scene.work(failing=[3]) == [1, 2]
        assert scene.finish() == "completed_with_errors"
        assert scene.ends() == [("1", "completed_with_errors")]

    @pytest.mark.parametrize("manifest", [b'{"finished_at": "2026-01-02T03:04:05+00:00"}', b"[]", b"{", None])
    def test_a_job_ended_when_its_manifest_says(self, plain: Scene, manifest: bytes | None) -> None:
        plain.end()
        if manifest is not None:
            plain.output.replace(objects.MANIFEST, manifest)
        before_ms = steps.server_now_ms(plain.client)

        assert plain.rebuild() is JobState.COMPLETED

        ended_ms = plain.status.finished_ms
        assert ended_ms is not None
        if manifest is not None and b"finished_at" in manifest:
            assert ended_ms == 1_767_323_045_000
        else:
            assert ended_ms >= before_ms

    def test_a_job_that_is_known_stays_as_it_is(self, plain: Scene) -> None:
        plain.submit()
        plain.work(chunks=1)
        plain.claim()
        before = plain.status

        assert plain.rebuild_what_is_known() is JobState.RUNNING

        assert plain.status == before

    @pytest.mark.parametrize("knows_the_file", [False, True])
    def test_a_ledger_of_a_moment_ago_gets_what_was_staged_since(
        self, plain: Scene, knows_the_file: bool
    ) -> None:
        """It was restored from a copy that was made during the submit; the source has changed since."""
        plain.submit()
        plain.forget_the_end_of_the_submit(knows_the_file=knows_the_file)
        Path(plain.job.source.uri).write_text("https://example.org/other.jpg")

        assert plain.rebuild_what_is_known() is JobState.RUNNING

        status = plain.status
        assert (status.sealed, status.chunks, status.total) == (True, CHUNKS, ITEMS)
        assert status.source_sum
        assert plain.work() == [*range(CHUNKS)]
        assert plain.finish() == "completed"

    def test_a_ledger_from_before_the_end_is_left_to_the_submit(self, plain: Scene) -> None:
        plain.end()
        plain.forget_the_end_of_the_submit(knows_the_file=False)
        plain.output.sweep(())

        assert plain.rebuild_what_is_known() is JobState.SUBMITTING

    def test_a_killed_submit_is_resumed(self, scene: Scene) -> None:
        scene.submit(items=6)
        scene.work(chunks=2)
        scene.rebuild()
        status = scene.status
        assert (status.state, status.chunks, status.total) == (JobState.SUBMITTING, 3, 6)
        assert (status.sealed, status.done_chunks) == (False, 2)

        scene.submit()

        status = scene.status
        assert (status.sealed, status.chunks, status.total) == (True, CHUNKS, ITEMS)
        assert scene.work() == [2, 3, 4, 5]
        assert scene.finish() == "completed"

    @pytest.mark.parametrize("items", [2, 4, 8, ITEMS])
    @pytest.mark.parametrize("noted", [6, ITEMS])
    def test_a_file_the_ledger_never_got_does_not_count(self, plain: Scene, items: int, noted: int) -> None:
        plain.submit(items=noted)
        plain.stage(items, chunk_size=1)
        plain.rebuild()

        assert plain.ledger.staged_files("job") == [(0, noted // CHUNK)]
        plain.submit()
        assert plain.work() == list(range(CHUNKS))
        assert plain.status.ok == ITEMS

    def test_a_file_that_was_noted_and_then_written_again_is_counted_as_it_is(self, plain: Scene) -> None:
        # Given two submits that were killed before they reached the ledger; the source paused for the second
        plain.submit(items=6)
        plain.stage(3, chunk_size=1)
        plain.rebuild()

        assert plain.ledger.staged_files("job") == [(0, 3)]
        assert plain.status.total == 3

    def test_a_finished_job_of_which_a_part_has_gone_is_not_over(self, plain: Scene) -> None:
        plain.end()
        plain.output.remove(plain.part_name(5))
        plain.rebuild()

        assert not plain.is_success
        assert plain.work() == [5]
        assert plain.finish() == "completed"

    def test_another_job_of_its_id_is_refused(self, plain: Scene) -> None:
        plain.submit()
        plain.client.flushall()
        plain.ledger.submit(plain.job.model_copy(update={"output": "/elsewhere"}))

        with pytest.raises(JobConflictError, match="a different one with this id, with output /elsewhere"):
            plain.rebuild_what_is_known()

    @pytest.mark.parametrize("name", [objects.STAGED_FILES, objects.GENERATION])
    @pytest.mark.parametrize("data", [b"", b"{", b"[]", b'{"number": "x", "files": 1}'])
    def test_a_damaged_note_is_named(self, plain: Scene, name: str, data: bytes) -> None:
        plain.submit()
        plain.output.replace(name, data)

        with pytest.raises(OutputDamagedError, match=name):
            plain.rebuild()


class TestClient:
    @pytest.fixture
    def submit(self, redis_url: str, tmp_path: Path) -> Callable[[], JobStatus]:
        (tmp_path / "urls.txt").write_text("https://example.org/1.jpg")
        options = JobOptions(output=tmp_path / "out", model="demo", job_id="job")

        def submit() -> JobStatus:
            with Client(Settings(redis_url=redis_url)) as client:
                return client.embed(tmp_path / "urls.txt", options=options).status()

        return submit

    def test_a_submit_of_a_job_that_was_forgotten_finds_what_is_there(
        self, submit: Callable[[], JobStatus], redis_client: redis.Redis, tmp_path: Path
    ) -> None:
        submit()
        output, identity = FolderOutput(tmp_path / "out"), PartIdentity("job", 0, 3)
        PartSink(output).write(identity, chunk_rows(identity)[0], PartCounts(1, 0, {}))
        output.create(objects.SUCCESS, b"")
        redis_client.flushall()

        status = submit()

        assert (status.state, status.ok, status.generation) == (JobState.COMPLETED, 1, 3)

    def test_an_output_that_was_moved_is_refused(
        self, submit: Callable[[], JobStatus], redis_url: str, tmp_path: Path
    ) -> None:
        submit()
        (tmp_path / "out").rename(tmp_path / "moved")

        with Client(Settings(redis_url=redis_url)) as client:
            with pytest.raises(OutputConflictError, match=f"was moved here from {tmp_path}/out"):
                client.rebuild(tmp_path / "moved")
            with pytest.raises(JobNotFoundError, match="no job has this output"):
                client.rebuild(tmp_path / "out")


def test_of_two_submits_that_note_at_once_one_continues(tmp_path: Path) -> None:
    output = FolderOutput(tmp_path / "out")
    first, second = StagedNote(output), StagedNote(output)
    assert first.write(((0, 3),), 6)
    assert not second.write(((0, 2),), 4)
    assert first.write(((0, 3), (3, 1)), 8, is_sealed=True)

    assert job_file.staged_files(output) == StagedFiles(files=((0, 3), (3, 1)), items=8, is_sealed=True)
    # A submit that resumes starts from the ledger, not from the note
    assert StagedNote(output).write(((0, 3),), 6)
