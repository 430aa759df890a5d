"""What a worker opens for a job: only below its roots, only where the job's own file lies."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import pyarrow as pa
import pytest

from clipfleet.contract.jobs import REDIS_OUTPUT, Job, StoredVectors, StoreVersion, read_job
from clipfleet.contract.parts import PartRange, range_batch
from clipfleet.contract.policies import DecisionLog
from clipfleet.contract.stores import StoreTarget
from clipfleet.errors import (
    OutputConflictError,
    OutputTooNewError,
    OutputUnavailableError,
    RedisUnavailableError,
    ResultsExpiredError,
    UsageError,
)
from clipfleet.errors import OutputRefusedError as Refused
from clipfleet.errors import OutputUnreachableError as Unreachable
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.row_store import RedisStore
from clipfleet.moderation.log import write_policy
from clipfleet.outputs import objects, open_output
from clipfleet.outputs.bound_folder import BoundFolderOutput
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.redis import RedisOutput
from clipfleet.relabel.origin import origin_of_store
from clipfleet.relabel.source import VectorSource
from clipfleet.results.store_rows import store_rows
from clipfleet.results.vector_ranges import PartRanges
from clipfleet.store.place import StorePlace
from clipfleet.submit.staging import Stager
from clipfleet_worker.chunk import job_contexts
from clipfleet_worker.chunk.job_contexts import JobContext, JobContexts
from clipfleet_worker.sinks.parts import PartSink
from clipfleet_worker.sinks.redis import RedisSink
from tests.support.jobs import make_claim, make_finish_claim, make_job, place_job, stage_items
from tests.support.policies import make_policy, moderation_job
from tests.support.store_rows import FINGERPRINT, item, make_store
from tests.support.stored_vectors import place_vectors, stored_vectors, unit_vectors, vector_rows


class FakeLedger:
    """Knows jobs and counts how often it is asked, by a worker with the roots `elsewhere` and `root`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.jobs: dict[str, str] = {}
        self.asked: list[str] = []
        self.error: Exception | None = None
        self.opened = self.with_roots(folder / "elsewhere", folder / "root")

    def with_roots(
        self, *roots: Path, buckets: tuple[str, ...] = (), file_roots: tuple[Path, ...] = ()
    ) -> JobContexts:
        store = RedisStore("redis://nowhere.invalid")
        return JobContexts(cast(Ledger, self), store, roots, buckets, file_roots)

    def add(self, job: Job) -> Job:
        self.jobs[job.job_id] = job.model_dump_json()
        return job

    def submit(self, output: Path, **values: Any) -> Job:
        """Add a job, and place its file into its output."""
        job = make_job(output, **values)
        Path(output, objects.JOB_FILE).unlink(missing_ok=True)
        place_job(FolderOutput(output), job)
        return self.add(job)

    def job(self, job_id: str) -> Job:
        self.asked.append(job_id)
        if self.error is not None:
            raise self.error
        return read_job(self.jobs[job_id])

    def open(self, job: Job) -> JobContext:
        return self.opened.get(make_claim(job))


@pytest.fixture
def ledger(tmp_path: Path) -> FakeLedger:
    return FakeLedger(tmp_path)


@pytest.fixture
def job(ledger: FakeLedger, tmp_path: Path) -> Job:
    """A job whose output lies below the root `root`, and holds its file."""
    return ledger.submit(tmp_path / "root" / "out")


def rewrite(job: Job, **values: Any) -> None:
    """Change the job's own file behind the job's back."""
    path = Path(job.output, objects.JOB_FILE)
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


def _leads_below(link: Path, folder: Path) -> bool:
    return link.is_symlink() and link.readlink().is_relative_to(folder)


class TestDecisionLog:
    """The place of decision records must lie where the worker may write, and be the submit's own."""

    POLICY = make_policy()

    def submit(self, ledger: FakeLedger, log: Path, output: Path | str) -> Job:
        place = DecisionLog(uri=str(log))
        job = moderation_job(self.POLICY, str(output), decisions=place)
        if output != REDIS_OUTPUT:
            place_job(FolderOutput(Path(output)), job)
        return ledger.add(job)

    @pytest.mark.parametrize("output", ["root/out", REDIS_OUTPUT])
    def test_records_go_to_a_place_below_the_roots(
        self, ledger: FakeLedger, tmp_path: Path, output: str
    ) -> None:
        log = tmp_path / "root" / "log"
        job = self.submit(ledger, log, output if output == REDIS_OUTPUT else tmp_path / output)
        write_policy(FolderOutput(log), job)

        found = ledger.open(job).decision_log

        assert isinstance(found, BoundFolderOutput)
        assert found.create("_decisions/records/20261203/x", b"x")
        assert (log / "_decisions/records/20261203/x").read_bytes() == b"x"

    def test_the_output_is_opened_once(self, ledger: FakeLedger, tmp_path: Path) -> None:
        output = tmp_path / "root" / "out"
        context = ledger.open(self.submit(ledger, output, output))

        assert context.decision_log is context.output

    def test_a_place_elsewhere_is_refused(self, ledger: FakeLedger, tmp_path: Path) -> None:
        job = self.submit(ledger, tmp_path / "log", REDIS_OUTPUT)
        write_policy(FolderOutput(tmp_path / "log"), job)

        with pytest.raises(Refused, match="outside this worker's output roots"):
            ledger.open(job)

    def test_another_disk_is_not_the_place(self, ledger: FakeLedger, tmp_path: Path) -> None:
        (tmp_path / "root" / "log").mkdir(parents=True)
        job = self.submit(ledger, tmp_path / "root" / "log", REDIS_OUTPUT)

        with pytest.raises(
            Unreachable, match=r"lacks the policy of job .*shared between producer and worker"
        ):
            ledger.open(job)


class TestStores:
    """A store, and the dataset in it, must lie where the worker may write."""

    FINGERPRINT = "a" * 16

    def job_of(self, ledger: FakeLedger, store: Path) -> Job:
        output = store / "_jobs" / "night"
        target = StoreTarget(uri=str(store), store_id="1" * 32, listed_at=datetime(2026, 11, 1, tzinfo=UTC))
        return ledger.submit(output, job_id="night", store=target)

    def test_below_a_root_it_may(self, ledger: FakeLedger, tmp_path: Path) -> None:
        context = ledger.open(self.job_of(ledger, tmp_path / "root" / "store"))

        context.require_writable_store("")
        context.require_writable_store(self.FINGERPRINT)

    def test_a_store_elsewhere_is_refused_even_if_the_output_is_not(
        self, ledger: FakeLedger, tmp_path: Path
    ) -> None:
        target = StoreTarget(
            uri=str(tmp_path), store_id="1" * 32, listed_at=datetime(2026, 11, 1, tzinfo=UTC)
        )
        job = ledger.submit(tmp_path / "root" / "out", store=target)

        with pytest.raises(Refused, match="outside this worker's output roots"):
            ledger.open(job)

    @pytest.mark.parametrize("link", [f"{FINGERPRINT}.lance", f"{FINGERPRINT}.lance/data"])
    def test_a_link_in_place_of_the_dataset_that_leads_elsewhere_is_refused(
        self, ledger: FakeLedger, tmp_path: Path, link: str
    ) -> None:
        store = tmp_path / "root" / "store"
        context = ledger.open(self.job_of(ledger, store))
        (store / link).parent.mkdir(exist_ok=True)
        (store / link).symlink_to(tmp_path)

        with pytest.raises(Refused, match=f"{link} is outside"):
            context.require_writable_store(self.FINGERPRINT)

    def test_a_link_in_place_of_the_jobs_is_refused(self, ledger: FakeLedger, tmp_path: Path) -> None:
        store = tmp_path / "root" / "store"
        store.mkdir(parents=True)
        (tmp_path / "away").mkdir()
        (store / "_jobs").symlink_to(tmp_path / "away")

        with pytest.raises(Refused, match="outside"):
            ledger.open(self.job_of(ledger, store))

    def test_in_s3_the_bucket_counts(self, ledger: FakeLedger) -> None:
        contexts = ledger.with_roots(buckets=("mine",))

        with pytest.raises(Refused, match="CLIPFLEET_S3_BUCKETS"):
            contexts.check_place("s3://theirs/store")
        contexts.check_place("s3://mine/store")


class TestOpening:
    def test_the_job_with_its_output_its_parts_and_its_items(self, job: Job, ledger: FakeLedger) -> None:
        stage_items(FolderOutput(Path(job.output)), job, ["/a.jpg", "/b.jpg"])

        context = ledger.open(job)

        assert context.job == job
        assert context.output.uri == job.output
        assert isinstance(context.sink, PartSink)
        assert context.items(make_claim(job))["uri"].to_pylist() == ["/a.jpg", "/b.jpg"]

    def test_a_job_whose_results_stay_in_redis_needs_no_root(self, ledger: FakeLedger) -> None:
        context = ledger.with_roots().get(make_claim(ledger.add(make_job(REDIS_OUTPUT))))

        assert isinstance(context.sink, RedisSink)
        assert isinstance(context.output, RedisOutput)

    def test_a_job_is_opened_once_for_chunks_and_finishing(self, job: Job, ledger: FakeLedger) -> None:
        first = ledger.open(job)

        assert ledger.opened.get(make_claim(job, chunk_id=7)) is first
        assert ledger.opened.get(make_finish_claim(job)) is first
        assert ledger.asked == [job.job_id]

    def test_a_job_of_the_same_name_that_differs_is_opened_anew(self, job: Job, ledger: FakeLedger) -> None:
        ledger.open(job)
        changed = ledger.submit(Path(job.output), top_k=9)

        assert ledger.open(changed).job == changed

    def test_the_least_recently_used_go(self, ledger: FakeLedger, tmp_path: Path, monkeypatch: Any) -> None:
        monkeypatch.setattr(job_contexts, "_KEPT_CONTEXTS", 2)
        jobs = {name: ledger.submit(tmp_path / "root" / name, job_id=name) for name in "abc"}

        for name in "abacab":
            ledger.open(jobs[name])

        assert ledger.asked == ["a", "b", "c", "b"]

    def test_only_the_last_few_jobs_hold_staged_files(self, ledger: FakeLedger, monkeypatch: Any) -> None:
        """One of a job whose items bring their images is large."""
        monkeypatch.setattr(job_contexts, "_CONTEXTS_WITH_FILES", 2)
        jobs = [ledger.submit(ledger.folder / "root" / name, job_id=name) for name in "abcd"]
        for one in jobs:
            stage_items(FolderOutput(Path(one.output)), one, [f"/{one.job_id}.jpg"])

        def read(one: Job) -> list[str]:
            return cast(list[str], ledger.open(one).items(make_claim(one))["uri"].to_pylist())

        assert [read(one) for one in jobs] == [["/a.jpg"], ["/b.jpg"], ["/c.jpg"], ["/d.jpg"]]
        held = [link for link in Path("/proc/self/fd").iterdir() if _leads_below(link, ledger.folder)]
        assert len(held) == 2
        assert read(jobs[0]) == ["/a.jpg"]

    def test_what_failed_is_tried_again(self, job: Job, ledger: FakeLedger) -> None:
        ledger.error = RedisUnavailableError("away")
        with pytest.raises(RedisUnavailableError):
            ledger.open(job)

        ledger.error = None
        assert ledger.open(job).job == job


class TestRoots:
    @pytest.mark.parametrize("roots", [[], ["elsewhere"], ["ro"]])
    def test_an_output_outside_is_rejected(self, job: Job, ledger: FakeLedger, roots: list[str]) -> None:
        with pytest.raises(Refused, match="CLIPFLEET_OUTPUT_ROOTS"):
            ledger.with_roots(*(ledger.folder / root for root in roots)).get(make_claim(job))

    def test_the_root_itself_is_inside(self, job: Job, ledger: FakeLedger) -> None:
        assert ledger.with_roots(Path(job.output)).get(make_claim(job)).job == job

    # The last two would lie below the root, where the worker was started, if they were relative paths.
    @pytest.mark.parametrize(
        "output", ["{0}/root/../out", "{0}/root/link", "{0}/root/link/../../out", "file://{0}/out", "~/out"]
    )
    def test_no_path_leads_out_of_a_root(
        self, ledger: FakeLedger, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
    ) -> None:
        monkeypatch.setenv("HOME", str(tmp_path))
        (tmp_path / "root").mkdir()
        (tmp_path / "root" / "link").symlink_to(tmp_path / "out")
        monkeypatch.chdir(tmp_path / "root")
        job = ledger.add(make_job(output.format(tmp_path)))
        place_job(FolderOutput(tmp_path / "out"), job)

        with pytest.raises(Refused, match="outside this worker's output roots"):
            ledger.open(job)

    @pytest.mark.parametrize("name", [objects.INTERNAL, objects.TMP])
    def test_scratch_files_lie_below_the_roots_too(self, job: Job, ledger: FakeLedger, name: str) -> None:
        """A worker makes and removes files there."""
        link = Path(job.output, name)
        link.parent.mkdir(exist_ok=True)
        if link.exists():
            link.rename(ledger.folder / "outside")
        link.symlink_to(ledger.folder / "outside")

        with pytest.raises(Refused, match="outside"):
            ledger.open(job)

    def test_a_root_may_be_a_link(self, ledger: FakeLedger, tmp_path: Path) -> None:
        (tmp_path / "root").symlink_to(tmp_path / "mounted")
        (tmp_path / "mounted").mkdir()
        job = ledger.submit(tmp_path / "root" / "out")

        assert ledger.with_roots(tmp_path / "root").get(make_claim(job)).job == job


class TestBuckets:
    """Which outputs on S3 are opened. The roots do not matter for them, nor the buckets for folders."""

    @pytest.fixture
    def job(self, ledger: FakeLedger) -> Job:
        return ledger.add(make_job("s3://results/nightly"))

    @pytest.fixture
    def output(self, job: Job, monkeypatch: pytest.MonkeyPatch) -> SimpleNamespace:
        """Holds the job's file and nothing else."""
        data = job.model_dump_json().encode()
        output = SimpleNamespace(uri=job.output, read={objects.JOB_FILE: data}.__getitem__)
        monkeypatch.setattr(job_contexts, "output_of", lambda *_: output)
        return output

    @pytest.mark.usefixtures("output")
    @pytest.mark.parametrize("buckets", [(), ("results",), ("images", "results")])
    def test_all_or_those_of_the_list(self, ledger: FakeLedger, job: Job, buckets: tuple[str, ...]) -> None:
        assert ledger.with_roots(buckets=buckets).get(make_claim(job)).job == job

    @pytest.mark.usefixtures("output")
    @pytest.mark.parametrize("bucket", ["images", "result", "results-2", "Results"])
    def test_another_is_refused_with_the_way_out(self, ledger: FakeLedger, job: Job, bucket: str) -> None:
        with pytest.raises(Refused, match="add results to CLIPFLEET_S3_BUCKETS"):
            ledger.with_roots(buckets=(bucket,)).get(make_claim(job))

    def test_without_its_file_it_is_another_store(self, ledger: FakeLedger, job: Job, output: Any) -> None:
        output.read = lambda name: None
        with pytest.raises(Unreachable, match=r"job\.json is not there.*AWS_ENDPOINT_URL"):
            ledger.open(job)

    def test_why_s3_cannot_be_used_is_named(self, ledger: FakeLedger, job: Job, monkeypatch: Any) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL_S3", "nonsense")

        with pytest.raises(Refused, match=r"cannot use S3.*nonsense"):
            ledger.open(job)


class TestVectors:
    """From where the vectors of a job that labels them again are read."""

    @pytest.fixture
    def origin(self, tmp_path: Path) -> FolderOutput:
        return FolderOutput(tmp_path / "vectors" / "old")

    @pytest.fixture
    def job(self, ledger: FakeLedger, origin: FolderOutput, tmp_path: Path) -> Job:
        tables = [vector_rows(first, unit_vectors(first, 4, 8), "f00d") for first in (0, 4)]
        vectors = stored_vectors(origin, place_vectors(origin, tables), "f00d", 8)
        job = ledger.submit(tmp_path / "root" / "out", labels=("a", "b"), vectors=vectors)
        staged = range_batch([PartRange(0, 0, 1, 4), PartRange(4, 1, 1, 4)])
        (file,) = Stager(FolderOutput(Path(job.output)), job.job_id, 1).stage([staged])
        assert file.chunks == 2
        return job

    def contexts(self, ledger: FakeLedger, *folders: str) -> JobContexts:
        root, *others = (ledger.folder / name for name in ("root", *folders))
        return ledger.with_roots(root, file_roots=tuple(others))

    def test_the_items_of_a_chunk_are_the_rows_of_its_parts(self, ledger: FakeLedger, job: Job) -> None:
        claim = make_claim(job, chunks=2, chunk_id=1)

        items = self.contexts(ledger, "vectors").get(claim).items(claim)

        assert items["item_index"].to_pylist() == [4, 5, 6, 7]
        assert items["embedding"].null_count == 0

    def test_they_may_lie_below_the_roots_of_outputs(self, ledger: FakeLedger, job: Job) -> None:
        claim = make_claim(job, chunks=2)

        items = ledger.with_roots(ledger.folder).get(claim).items(claim)

        assert items.num_rows == 4

    @pytest.mark.parametrize("folders", [(), ("elsewhere",), ("vector",)])
    def test_elsewhere_they_are_refused(self, ledger: FakeLedger, job: Job, folders: tuple[str, ...]) -> None:
        context, claim = self.contexts(ledger, *folders).get(make_claim(job)), make_claim(job, chunks=2)

        with pytest.raises(Refused, match=r"vectors/old.*outside this worker's roots.*CLIPFLEET_FILE_ROOTS"):
            context.items(claim)

    def test_whoever_finishes_the_job_needs_none(
        self, ledger: FakeLedger, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(job_contexts, "open_output", Mock(side_effect=UsageError("S3 is not configured")))
        context = self.contexts(ledger).get(make_finish_claim(job))

        assert context.is_held()
        with pytest.raises(Refused, match="S3 is not configured"):
            context.items(make_claim(job, chunks=2))

    def test_they_are_opened_once(
        self, ledger: FakeLedger, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        opening = Mock(side_effect=open_output)
        monkeypatch.setattr(job_contexts, "open_output", opening)
        context = self.contexts(ledger, "vectors").get(make_claim(job))

        for chunk in (0, 1):
            context.items(make_claim(job, chunks=2, chunk_id=chunk))

        opening.assert_called_once()

    def test_a_link_in_between_leads_nowhere(self, ledger: FakeLedger, job: Job) -> None:
        context = self.contexts(ledger, "vectors").get(make_claim(job, chunks=2))
        old = ledger.folder / "vectors" / "old"
        old.rename(ledger.folder / "secret")
        old.symlink_to(ledger.folder / "secret")

        with pytest.raises(Refused):
            context.items(make_claim(job, chunks=2))

    def test_a_bucket_that_must_not_be_used_is_refused(self, ledger: FakeLedger, tmp_path: Path) -> None:
        vectors = StoredVectors(
            uri="s3://secret/old",
            job_id="old",
            created_at=datetime(2026, 1, 1, tzinfo=UTC),
            model_fingerprint="f00d",
            dimension=8,
        )
        job = ledger.submit(tmp_path / "root" / "out", labels=("a", "b"), vectors=vectors)
        (_,) = Stager(FolderOutput(Path(job.output)), job.job_id, 1).stage(
            [range_batch([PartRange(0, 0, 1, 4)])]
        )
        context = ledger.with_roots(tmp_path / "root", buckets=("results",)).get(make_claim(job))

        with pytest.raises(Refused, match="add secret to CLIPFLEET_S3_BUCKETS"):
            context.items(make_claim(job))

    def test_rows_that_have_expired_in_redis_fail_the_job(
        self, ledger: FakeLedger, job: Job, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        context = self.contexts(ledger, "vectors").get(make_claim(job, chunks=2))
        expired = Mock(side_effect=ResultsExpiredError("the rows with the vectors have expired"))
        monkeypatch.setattr(PartRanges, "read", expired)

        with pytest.raises(OutputConflictError, match="have expired"):
            context.items(make_claim(job, chunks=2))


class TestVectorsOfStores:
    """From where the vectors of a store are read, which Lance opens by their paths."""

    @pytest.fixture
    def place(self, tmp_path: Path) -> StorePlace:
        return make_store(tmp_path / "vectors" / "store", [item("a"), item("b")])

    @pytest.fixture
    def job(self, ledger: FakeLedger, place: StorePlace, tmp_path: Path) -> Job:
        origin = origin_of_store(store_rows(place))
        job = ledger.submit(tmp_path / "root" / "out", labels=("a", "b"), vectors=origin.vectors)
        (_,) = Stager(FolderOutput(Path(job.output)), job.job_id, 1).stage(
            VectorSource(origin, 512).batches()
        )
        return job

    def items(self, ledger: FakeLedger, job: Job, *file_roots: str) -> pa.Table:
        roots = tuple(ledger.folder / name for name in file_roots)
        claim = make_claim(job)
        return ledger.with_roots(ledger.folder / "root", file_roots=roots).get(claim).items(claim)

    def test_a_store_below_the_roots_of_files(self, ledger: FakeLedger, job: Job) -> None:
        assert self.items(ledger, job, "vectors")["item_id"].to_pylist() == ["a", "b"]

    def test_a_store_elsewhere(self, ledger: FakeLedger, job: Job) -> None:
        with pytest.raises(Refused, match=r"vectors/store.*outside this worker's roots"):
            self.items(ledger, job, "vector")

    @pytest.mark.parametrize("link", ["", "data", "_versions", "file"])
    def test_a_link_in_a_dataset_leads_nowhere(
        self, ledger: FakeLedger, job: Job, place: StorePlace, link: str
    ) -> None:
        dataset = Path(place.dataset_uri(FINGERPRINT))
        inside = next((dataset / "data").iterdir()) if link == "file" else dataset / link
        inside.rename(ledger.folder / "secret")
        inside.symlink_to(ledger.folder / "secret")

        with pytest.raises(Refused, match=r"outside this worker's roots"):
            self.items(ledger, job, "vectors")

    def test_a_link_that_stays_below_the_roots(self, ledger: FakeLedger, job: Job, place: StorePlace) -> None:
        data = Path(place.dataset_uri(FINGERPRINT), "data")
        data.rename(ledger.folder / "vectors" / "other disk")
        data.symlink_to(ledger.folder / "vectors" / "other disk")

        assert self.items(ledger, job, "vectors").num_rows == 2

    def test_a_bucket_that_must_not_be_used(self, ledger: FakeLedger, tmp_path: Path) -> None:
        vectors = StoreVersion(
            uri="s3://secret/store", store_id="0" * 32, version=2, model_fingerprint=FINGERPRINT, dimension=4
        )
        job = ledger.submit(tmp_path / "root" / "out", labels=("a", "b"), vectors=vectors)
        (_,) = Stager(FolderOutput(Path(job.output)), job.job_id, 1).stage(
            [range_batch([PartRange(0, 0, 1, 2)])]
        )
        context = ledger.with_roots(tmp_path / "root", buckets=("results",)).get(make_claim(job))

        with pytest.raises(Refused, match="add secret to CLIPFLEET_S3_BUCKETS"):
            context.items(make_claim(job))


class TestJobFile:
    def test_where_it_is_missing_the_folder_is_another_one(self, job: Job, ledger: FakeLedger) -> None:
        Path(job.output, objects.JOB_FILE).unlink()

        with pytest.raises(Unreachable, match=r"job\.json is not there.*shared"):
            ledger.open(job)

    @pytest.mark.parametrize(
        ("change", "error", "words"),
        [
            ({"job_id": "other"}, Unreachable, "holds job"),
            ({"top_k": 9}, Unreachable, "holds job"),
            ({"model": "x:y"}, Unreachable, "holds job"),
            ({"schema_version": 99, "a_new_field": 1}, OutputTooNewError, r"schema version 99.*update"),
        ],
    )
    def test_the_output_of_another_job_or_a_newer_version_is_not_written_to(
        self, job: Job, ledger: FakeLedger, change: dict[str, Any], error: type[Exception], words: str
    ) -> None:
        rewrite(job, **change)

        with pytest.raises(error, match=words):
            ledger.open(job)

    def test_what_makes_no_other_job_may_differ(self, job: Job, ledger: FakeLedger) -> None:
        rewrite(job, lane="bulk", created_at="2020-01-01T00:00:00Z")

        assert ledger.open(job).job == job

    @pytest.mark.parametrize(
        "text", ["", "{", "[]", "null", '{"schema_version": 1}', '{"schema_version": "x"}', '"text"', "\x00"]
    )
    def test_garbage_is_reported_in_one_line(self, job: Job, ledger: FakeLedger, text: str) -> None:
        Path(job.output, objects.JOB_FILE).write_text(text)

        with pytest.raises(Unreachable, match=r"job\.json") as caught:
            ledger.open(job)
        assert "\n" not in str(caught.value)

    def test_a_silent_one_is_waited_for(self, job: Job, ledger: FakeLedger, monkeypatch: Any) -> None:
        monkeypatch.setattr(FolderOutput, "read", Mock(side_effect=OutputUnavailableError("stale handle")))

        with pytest.raises(OutputUnavailableError, match="stale handle") as caught:
            ledger.open(job)
        assert not isinstance(caught.value, Unreachable)


def test_a_job_of_a_newer_ledger_is_left_to_newer_workers(job: Job, ledger: FakeLedger) -> None:
    spec = json.loads(ledger.jobs[job.job_id]) | {"schema_version": 99, "a_new_field": 1}
    ledger.jobs[job.job_id] = json.dumps(spec)

    with pytest.raises(OutputTooNewError, match=r"schema version 99.*update"):
        ledger.open(job)
