"""Items that are staged as ranges of parts: one range per chunk, counted by its rows."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from unittest.mock import Mock

import pyarrow as pa
import pytest

from clipfleet.contract.jobs import Job, JobState, SourceDescription, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.contract.parts import PartRange, count_items, holds_ranges, range_batch, staged_ranges
from clipfleet.errors import (
    JobNotFoundError,
    RedisUnavailableError,
    SourceChangedError,
    TooManyItemsError,
    UsageError,
)
from clipfleet.ledger.jobs import Ledger, Quota
from clipfleet.ledger.memory import MemoryLedger
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.staged import StagedReader
from clipfleet.resume.rebuild import Rebuild
from clipfleet.sources.batches import item_batch
from clipfleet.submit.contents import Contents
from clipfleet.submit.redis_bound import within_redis
from clipfleet.submit.submission import Submission
from tests.support.hints import CountedHints
from tests.support.jobs import make_job
from tests.support.ledger_replies import RepliesLedger
from tests.support.vector_outputs import vectors_of

ROWS = (4096, 4096, 100)
ITEMS = sum(ROWS)
RANGES = [PartRange(4096 * number, 8 * number, 8, rows) for number, rows in enumerate(ROWS)]


class RangeSource:
    """Three ranges."""

    description = SourceDescription(kind="vectors", uri="/vectors", options={"job_id": "old"})

    def __init__(self, *ranges: PartRange) -> None:
        self._ranges = ranges or RANGES

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield range_batch(self._ranges)


@pytest.fixture
def job(output: FolderOutput) -> Job:
    return make_job(
        output.uri, task=Task.CLASSIFY, label_sets=(LabelSet(labels=("a", "b")),), chunk_size=4096,
        vectors=vectors_of(make_job("/vectors", job_id="old")), source=RangeSource.description,
    )  # fmt: skip


def submit(ledger: Ledger, output: FolderOutput, job: Job, source: RangeSource | None = None) -> CountedHints:
    hints = CountedHints()
    Submission(ledger, hints, output, job).run(source or RangeSource())
    return hints


class TestCounting:
    def test_ranges_count_as_their_rows_and_items_one_by_one(self) -> None:
        batch = range_batch(RANGES)
        columns = {name: pa.array([7], pa.int64()) for name in ("first_part", "parts", "rows")}
        items = item_batch(0, None, pa.array(["/a.jpg"]), columns)

        assert (holds_ranges(batch.schema), count_items(batch)) == (True, ITEMS)
        assert (holds_ranges(items.schema), count_items(items)) == (False, 1)
        assert staged_ranges(pa.Table.from_batches([batch])) == RANGES

    def test_the_sum_of_a_source_is_about_its_ranges(self) -> None:
        def of(*ranges: PartRange) -> tuple[int, str]:
            contents = Contents()
            list(contents.counted([range_batch(ranges)]))
            return contents.items, contents.sum

        assert of(*RANGES)[0] == ITEMS
        assert of(*RANGES) == of(*RANGES)
        assert of(*RANGES) != of(*RANGES[:2], replace(RANGES[2], first_part=17))

    def test_the_limit_of_redis_is_one_of_rows(self) -> None:
        assert len([*within_redis(RangeSource().batches(), look_ahead=False, max_items=ITEMS)]) == 1
        with pytest.raises(TooManyItemsError):
            within_redis(RangeSource().batches(), look_ahead=True, max_items=ITEMS - 1)


class TestSubmit:
    def test_each_range_is_a_chunk(self, output: FolderOutput, job: Job) -> None:
        ledger = MemoryLedger()

        hints = submit(ledger, output, job)

        status = ledger.status(job.job_id)
        assert (status.chunks, status.total, status.sealed, hints.work) == (3, ITEMS, True, 3)
        with StagedReader(output, job_id=job.job_id, schema_version=job.schema_version) as reader:
            chunks = [staged_ranges(reader.read_chunk(0, 3, chunk_id)) for chunk_id in range(3)]
            assert reader.count_items(0, 3) == ITEMS
        assert chunks == [[one] for one in RANGES]

    def test_a_repeated_submit_compares_the_ranges(self, output: FolderOutput, job: Job) -> None:
        ledger = MemoryLedger()
        submit(ledger, output, job)

        assert submit(ledger, output, job).work == 0
        with pytest.raises(SourceChangedError, match="holds 8,292 items; the source now has 8,291"):
            submit(ledger, output, job, RangeSource(*RANGES[:2], replace(RANGES[2], rows=99)))

    def test_an_interrupted_submit_compares_what_is_staged(self, output: FolderOutput, job: Job) -> None:
        ledger = RepliesLedger()
        ledger.replies["seal"] = RedisUnavailableError("away")
        with pytest.raises(RedisUnavailableError):
            submit(ledger, output, job)
        ledger.replies.clear()

        with pytest.raises(SourceChangedError, match="item 4096 differs in parts"):
            submit(ledger, output, job, RangeSource(RANGES[0], replace(RANGES[1], parts=9)))
        submit(ledger, output, job)

        assert (ledger.status(job.job_id).total, ledger.status(job.job_id).sealed) == (ITEMS, True)

    @pytest.mark.parametrize("is_sealed", [True, False])
    def test_a_rebuilt_job_has_all_items(self, output: FolderOutput, job: Job, is_sealed: bool) -> None:
        ledger = RepliesLedger()
        if not is_sealed:
            ledger.replies["stage"] = RedisUnavailableError("away")  # after the list of staged files
            with pytest.raises(RedisUnavailableError):
                submit(ledger, output, job)
        else:
            submit(ledger, output, job)
        lost = MemoryLedger()

        state = Rebuild(lost, CountedHints(), output, job, 60).run()

        assert state is (JobState.RUNNING if is_sealed else JobState.SUBMITTING)
        assert (lost.status(job.job_id).chunks, lost.status(job.job_id).total) == (3, ITEMS)

    def test_a_job_whose_vectors_are_gone_is_not_rebuilt(self, output: FolderOutput, job: Job) -> None:
        submit(MemoryLedger(), output, job)
        output.replace(objects.SUCCESS, b"")
        lost = MemoryLedger()

        with pytest.raises(UsageError, match="gone"):
            Rebuild(lost, CountedHints(), output, job, 60, Mock(side_effect=UsageError("gone"))).run()

        assert output.read(objects.SUCCESS) == b""
        with pytest.raises(JobNotFoundError):
            lost.status(job.job_id)

    def test_files_are_small_enough_for_a_quota_of_items(self, output: FolderOutput, job: Job) -> None:
        ledger = MemoryLedger(quota=Quota(items=ITEMS))

        submit(ledger, output, job)

        assert ledger.staged_files(job.job_id) == [(0, 1), (1, 1), (2, 1)]
        assert ledger.status(job.job_id).total == ITEMS
