"""What a worker opens for a job: only below its roots, only where the job's own file lies."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, cast

import pytest

from clipfleet.contract.jobs import REDIS_OUTPUT, Job, read_job
from clipfleet.errors import (
    JobUnreadableError,
    OutputTooNewError,
    OutputUnavailableError,
    OutputUnreachableError,
    RedisUnavailableError,
)
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.redis import RedisOutput
from clipfleet_worker.chunk import job_contexts
from clipfleet_worker.chunk.job_contexts import JobContexts
from clipfleet_worker.sinks.parts import PartSink
from clipfleet_worker.sinks.redis import RedisSink
from tests.support.jobs import make_claim, make_finish_claim, make_job, place_job, stage_items


class FakeLedger:
    """Knows jobs; counts how often it is asked."""

    def __init__(self, *jobs: Job) -> None:
        self.jobs: dict[str, str] = {}
        for job in jobs:
            self.add(job)
        self.asked: list[str] = []
        self.error: Exception | None = None

    def add(self, job: Job) -> Job:
        self.jobs[job.job_id] = job.model_dump_json()
        return job

    def submit(self, job: Job) -> Job:
        """Add a job, and place its file into its output."""
        place_job(FolderOutput(Path(job.output)), job)
        return self.add(job)

    def job(self, job_id: str) -> Job:
        self.asked.append(job_id)
        if self.error is not None:
            raise self.error
        return read_job(self.jobs[job_id])


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job whose output lies below the root `root`, and holds its file."""
    job = make_job(tmp_path / "root" / "out")
    place_job(FolderOutput(Path(job.output)), job)
    return job


@pytest.fixture
def ledger(job: Job) -> FakeLedger:
    return FakeLedger(job)


def contexts(ledger: FakeLedger, *roots: Path) -> JobContexts:
    return JobContexts(cast(Ledger, ledger), RedisStore("redis://nowhere.invalid"), roots)


@pytest.fixture
def opened(ledger: FakeLedger, tmp_path: Path) -> JobContexts:
    return contexts(ledger, tmp_path / "elsewhere", tmp_path / "root")


def rewrite(job: Job, **values: Any) -> None:
    """Change the job's own file behind the job's back."""
    path = Path(job.output, keys.JOB_FILE)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _leads_below(link: Path, folder: Path) -> bool:
    return link.is_symlink() and link.readlink().is_relative_to(folder)


class TestOpening:
    def test_the_job_with_its_output_its_parts_and_its_items(self, job: Job, opened: JobContexts) -> None:
        stage_items(FolderOutput(Path(job.output)), job, ["/a.jpg", "/b.jpg"])

        context = opened.get(make_claim(job))

        assert context.job == job
        assert context.output.uri == job.output
        assert isinstance(context.sink, PartSink)
        assert context.items(make_claim(job))["uri"].to_pylist() == ["/a.jpg", "/b.jpg"]

    def test_a_job_whose_results_stay_in_redis_needs_no_root(self) -> None:
        job = make_job(REDIS_OUTPUT)

        context = contexts(FakeLedger(job)).get(make_claim(job))

        assert isinstance(context.sink, RedisSink)
        assert isinstance(context.output, RedisOutput)

    def test_a_job_is_opened_once_for_chunks_and_finishing(
        self, job: Job, ledger: FakeLedger, opened: JobContexts
    ) -> None:
        first = opened.get(make_claim(job))

        assert opened.get(make_claim(job, chunk_id=7)) is first
        assert opened.get(make_finish_claim(job)) is first
        assert ledger.asked == [job.job_id]

    def test_a_job_of_the_same_name_that_differs_is_opened_anew(
        self, job: Job, ledger: FakeLedger, opened: JobContexts
    ) -> None:
        opened.get(make_claim(job))
        changed = job.model_copy(update={"top_k": 9})
        Path(job.output, keys.JOB_FILE).unlink()
        ledger.submit(changed)

        assert opened.get(make_claim(changed)).job == changed

    def test_the_least_recently_used_ones_go(
        self, job: Job, ledger: FakeLedger, opened: JobContexts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(job_contexts, "_KEPT_CONTEXTS", 2)
        b, c = (ledger.submit(make_job(Path(job.output).with_name(name), job_id=name)) for name in "bc")

        for one in (job, b, job, c, job, b):
            opened.get(make_claim(one))

        assert ledger.asked == [job.job_id, "b", "c", "b"]

    def test_only_the_last_few_jobs_hold_on_to_their_staged_files(
        self, ledger: FakeLedger, opened: JobContexts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """One of a job whose items bring their images is large."""
        monkeypatch.setattr(job_contexts, "_CONTEXTS_WITH_FILES", 2)
        jobs = [ledger.submit(make_job(tmp_path / "root" / name, job_id=name)) for name in "abcd"]
        for one in jobs:
            stage_items(FolderOutput(Path(one.output)), one, [f"/{one.job_id}.jpg"])

        def read(one: Job) -> list[str]:
            return cast(list[str], opened.get(make_claim(one)).items(make_claim(one))["uri"].to_pylist())

        assert [read(one) for one in jobs] == [["/a.jpg"], ["/b.jpg"], ["/c.jpg"], ["/d.jpg"]]
        held = [link for link in Path("/proc/self/fd").iterdir() if _leads_below(link, tmp_path)]
        assert len(held) == 2
        assert read(jobs[0]) == ["/a.jpg"]

    def test_what_failed_is_tried_again(self, job: Job, ledger: FakeLedger, opened: JobContexts) -> None:
        ledger.error = RedisUnavailableError("away")
        with pytest.raises(RedisUnavailableError):
            opened.get(make_claim(job))

        ledger.error = None
        assert opened.get(make_claim(job)).job == job


class TestRoots:
    @pytest.mark.parametrize("roots", [(), ("elsewhere",), ("ro",)])
    def test_an_output_outside_is_rejected_and_the_setting_is_named(
        self, job: Job, ledger: FakeLedger, tmp_path: Path, roots: tuple[str, ...]
    ) -> None:
        with pytest.raises(OutputUnreachableError, match="CLIPFLEET_OUTPUT_ROOTS"):
            contexts(ledger, *(tmp_path / root for root in roots)).get(make_claim(job))

    def test_the_root_itself_is_inside(self, job: Job, ledger: FakeLedger) -> None:
        assert contexts(ledger, Path(job.output)).get(make_claim(job)).job == job

    @pytest.mark.parametrize(
        "output",
        # The last two would lie below the root, where the worker was started, if they were relative paths.
        [
            "{0}/root/../outside",
            "{0}/root/link",
            "{0}/root/link/../../outside",
            "file://{0}/outside",
            "~/outside",
        ],
    )
    def test_no_path_leads_out_of_a_root(
        self, ledger: FakeLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "root" / "link").symlink_to(tmp_path / "outside")
        monkeypatch.chdir(tmp_path / "root")
        job = ledger.add(make_job(output.format(tmp_path), job_id="sly"))
        place_job(FolderOutput(tmp_path / "outside"), job)

        with pytest.raises(OutputUnreachableError, match="outside"):
            contexts(ledger, tmp_path / "root").get(make_claim(job))

    @pytest.mark.parametrize("name", [keys.INTERNAL, keys.TMP])
    def test_scratch_files_lie_below_the_roots_too(
        self, job: Job, ledger: FakeLedger, tmp_path: Path, name: str
    ) -> None:
        """A worker makes and removes files there."""
        link = Path(job.output, name)
        link.parent.mkdir(exist_ok=True)
        if link.exists():
            shutil.copytree(link, tmp_path / "outside")
            shutil.rmtree(link)
        link.symlink_to(tmp_path / "outside")

        with pytest.raises(OutputUnreachableError, match="outside"):
            contexts(ledger, tmp_path / "root").get(make_claim(job))

    def test_a_root_may_be_a_link(self, job: Job, ledger: FakeLedger, tmp_path: Path) -> None:
        (tmp_path / "mount").symlink_to(tmp_path / "root")
        linked = job.model_copy(update={"output": f"{tmp_path}/mount/out"})
        Path(job.output, keys.JOB_FILE).unlink()
        ledger.submit(linked)

        assert contexts(ledger, tmp_path / "mount").get(make_claim(linked)).job == linked


class FakeOutput:
    """Holds a job file and nothing else."""

    def __init__(self, job: Job, *, is_there: bool = True) -> None:
        self.uri = job.output
        self._data = job.model_dump_json().encode() if is_there else None

    def read(self, name: str) -> bytes | None:
        assert name == keys.JOB_FILE
        return self._data


class TestBuckets:
    """Which outputs on S3 are opened. The roots do not matter for them, nor the buckets for folders."""

    @pytest.fixture
    def job(self) -> Job:
        return make_job("s3://results/nightly")

    def opened(
        self, monkeypatch: pytest.MonkeyPatch, job: Job, *buckets: str, is_there: bool = True
    ) -> JobContexts:
        output = FakeOutput(job, is_there=is_there)
        monkeypatch.setattr(job_contexts, "output_of", lambda *_: output)
        store = RedisStore("redis://nowhere.invalid")
        return JobContexts(cast(Ledger, FakeLedger(job)), store, (), buckets)

    @pytest.mark.parametrize("buckets", [(), ("results",), ("images", "results")])
    def test_all_buckets_or_those_of_the_list(
        self, monkeypatch: pytest.MonkeyPatch, job: Job, buckets: tuple[str, ...]
    ) -> None:
        assert self.opened(monkeypatch, job, *buckets).get(make_claim(job)).job == job

    @pytest.mark.parametrize("bucket", ["images", "result", "results-2", "Results"])
    def test_another_bucket_is_refused_and_the_setting_is_named(
        self, monkeypatch: pytest.MonkeyPatch, job: Job, bucket: str
    ) -> None:
        with pytest.raises(OutputUnreachableError, match="add results to CLIPFLEET_S3_BUCKETS"):
            self.opened(monkeypatch, job, bucket).get(make_claim(job))

    def test_where_the_job_file_is_missing_it_may_be_another_store(
        self, monkeypatch: pytest.MonkeyPatch, job: Job
    ) -> None:
        with pytest.raises(OutputUnreachableError, match=r"job\.json is not there.*AWS_ENDPOINT_URL"):
            self.opened(monkeypatch, job, is_there=False).get(make_claim(job))

    def test_a_worker_whose_s3_cannot_be_used_gives_the_reason(
        self, monkeypatch: pytest.MonkeyPatch, job: Job
    ) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nonsense")
        store = RedisStore("redis://nowhere.invalid")

        with pytest.raises(OutputUnreachableError, match=r"cannot use S3.*nonsense"):
            JobContexts(cast(Ledger, FakeLedger(job)), store, ()).get(make_claim(job))


class TestJobFile:
    def test_where_it_is_missing_the_folder_is_another_one(self, job: Job, opened: JobContexts) -> None:
        Path(job.output, keys.JOB_FILE).unlink()

        with pytest.raises(OutputUnreachableError, match=r"job\.json is not there.*shared"):
            opened.get(make_claim(job))

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"job_id": "other"}, OutputUnreachableError, "holds job"),
            ({"top_k": 9}, OutputUnreachableError, "holds job"),
            ({"model": "x:y"}, OutputUnreachableError, "holds job"),
            ({"schema_version": 99, "a_new_field": 1}, OutputTooNewError, r"schema version 99.*update"),
        ],
    )
    def test_the_output_of_another_job_or_a_newer_version_is_not_written_to(
        self, job: Job, opened: JobContexts, change: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        rewrite(job, **change)

        with pytest.raises(error, match=words):
            opened.get(make_claim(job))

    def test_what_makes_no_other_job_may_differ(self, job: Job, opened: JobContexts) -> None:
        rewrite(job, lane="bulk", created_at="2020-01-01T00:00:00Z")

        assert opened.get(make_claim(job)).job == job

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "null", '{"schema_version": 1}', '{"schema_version": "x"}', '"text"', "\x00"]
    )
    def test_garbage_is_reported_in_one_line(self, job: Job, opened: JobContexts, text: str) -> None:
        Path(job.output, keys.JOB_FILE).write_text(text)

        with pytest.raises(OutputUnreachableError, match=r"job\.json") as caught:
            opened.get(make_claim(job))
        assert "\n" not in str(caught.value)

    def test_a_file_that_cannot_be_read_now_is_waited_for(
        self, job: Job, opened: JobContexts, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def fail(*_: object) -> bytes:
            raise OutputUnavailableError("stale handle")

        monkeypatch.setattr(FolderOutput, "read", fail)

        with pytest.raises(OutputUnavailableError, match="stale handle") as caught:
            opened.get(make_claim(job))
        assert not isinstance(caught.value, OutputUnreachableError)


def test_a_job_of_a_newer_ledger_is_left_to_newer_workers(
    job: Job, ledger: FakeLedger, opened: JobContexts
) -> None:
    spec = json.loads(ledger.jobs[job.job_id]) | {"schema_version": 99, "a_new_field": 1}
    ledger.jobs[job.job_id] = json.dumps(spec)
    with pytest.raises(JobUnreadableError):
        read_job(ledger.jobs[job.job_id])

    with pytest.raises(OutputTooNewError, match=r"schema version 99.*update"):
        opened.get(make_claim(job))
