"""One submit against a real ledger and a real folder: killed, resumed, in the way of others."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipfleet.contract.jobs import REDIS_OUTPUT, Job, JobState, SourceDescription
from clipfleet.errors import JobConflictError, RedisUnavailableError
from clipfleet.hints import MAX_HINTS
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs import open_output, output_of
from clipfleet.outputs.staged import StagedReader
from clipfleet.sources import open_source
from clipfleet.sources.batches import item_batch
from clipfleet.submit.submission import Submission
from tests.support.hints import CountedHints
from tests.support.ledger import make_job, try_claim, work_off

ITEMS = 300  # one per chunk, so they make two staged files
FIRST_FILE = 256


class Killed(BaseException):
    """What ends a process at once."""


@pytest.fixture
def job(tmp_path: Path) -> Job:
    """A job that has not been submitted yet."""
    names = (f"https://example.org/{number}.jpg" for number in range(ITEMS))
    (tmp_path / "urls.txt").write_text("\n".join(names))
    source = open_source(str(tmp_path / "urls.txt"))
    job = make_job(output=str(tmp_path / "out"))
    return job.model_copy(update={"source": source.description, "chunk_size": 1})


def submit(ledger: Ledger, job: Job, hints: CountedHints | None = None) -> CountedHints:
    """Run the submit of a job once."""
    hints = hints or CountedHints()
    Submission(ledger, hints, open_output(job.output), job).run(open_source(job.source.uri))
    return hints


def killed_submit(ledger: Ledger, job: Job) -> None:
    """Run the submit until the first file is in the ledger."""

    def die() -> None:
        raise Killed

    with pytest.raises(Killed):
        submit(ledger, job, CountedHints(die))
    assert ledger.status(job.job_id).chunks == FIRST_FILE


def facts(ledger: Ledger) -> tuple[Any, ...]:
    """State, whether sealed, chunks and items of the job."""
    status = ledger.status("job")
    return status.state, status.sealed, status.chunks, status.total


@pytest.mark.parametrize("is_paused", [False, True])
def test_a_killed_submit_resumes_where_it_stopped(ledger: Ledger, job: Job, is_paused: bool) -> None:
    killed_submit(ledger, job)
    if is_paused:
        ledger.pause("job", "store away")

    hints = submit(ledger, job)

    assert facts(ledger) == (JobState.PAUSED if is_paused else JobState.RUNNING, True, ITEMS, ITEMS)
    assert hints.work == MAX_HINTS
    if is_paused:
        assert submit(ledger, job).work == 0
        assert ledger.resume("job") == (True, JobState.RUNNING)
    assert len(work_off(ledger)) == ITEMS


def fail(ledger: Ledger) -> None:
    """A worker cannot reach the output."""
    ledger.fail("job", "output_unreachable: /out is not mounted", ttl_seconds=60)


def stop(ledger: Ledger) -> None:
    """A worker finds more failed rows than are allowed."""
    if claimed := try_claim(ledger):
        codes = {"not_found": 1000}
        word = ledger.complete(claimed, ok=0, failed=1000, codes=codes, work_seconds={})
        assert word == "stopped"


@pytest.mark.parametrize("chunk_size", [1, ITEMS])  # a second file is to be staged, or the job to be sealed
@pytest.mark.parametrize(
    ("happens", "state", "reason"),
    [
        (fail, JobState.FAILED, "output_unreachable: /out is not mounted"),
        (stop, JobState.CANCELLED, "1000 of 1000 rows failed"),
    ],
)
def test_a_job_that_ends_during_its_submit_says_why_in_its_status(
    ledger: Ledger, job: Job, chunk_size: int, happens: Callable[[Ledger], None], state: JobState, reason: str
) -> None:
    strict = job.model_copy(update={"chunk_size": chunk_size, "max_error_rate": 0.5})

    submit(ledger, strict, CountedHints(lambda: happens(ledger)))

    status = ledger.status("job")
    assert (status.state, status.has_stopped_itself) == (state, happens is stop)
    assert reason in status.reason


def test_an_interrupted_submit_names_the_command_that_resumes(
    ledger: Ledger, job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    def away(*_: object) -> None:
        raise RedisUnavailableError("Redis at redis://h/0: gone")

    monkeypatch.setattr(ledger, "seal", away)
    with pytest.raises(RedisUnavailableError, match="gone; submit again with job id job to resume"):
        submit(ledger, job)


class SlowSource:
    """Items that come one by one; before the last one something else happens."""

    description = SourceDescription(kind="stdin", uri="-")

    def __init__(self, uris: Sequence[str], meanwhile: Callable[[], object] = lambda: None) -> None:
        self._uris, self._meanwhile = uris, meanwhile

    def batches(self) -> Iterator[pa.RecordBatch]:
        for number, uri in enumerate(self._uris):
            if number == len(self._uris) - 1:
                self._meanwhile()
            yield item_batch(number, None, pa.array([uri], pa.string()))


@pytest.mark.parametrize("is_redis", [False, True])
def test_a_second_submit_does_not_touch_the_items_of_the_first(
    ledger: Ledger, store: RedisStore, tmp_path: Path, is_redis: bool
) -> None:
    """Both have the same name for their first file, and other items in it."""
    output_name = REDIS_OUTPUT if is_redis else str(tmp_path / "out")
    job = make_job(output=output_name).model_copy(update={"source": SlowSource.description})
    output = output_of(job, store)
    first, second = [f"/first/{n}.jpg" for n in range(5)], [f"/second/{n}.jpg" for n in range(3)]

    def submit(source: SlowSource) -> None:
        Submission(ledger, CountedHints(), output, job).run(source)

    with pytest.raises(JobConflictError, match="another submit of job job is running"):
        submit(SlowSource(second, meanwhile=lambda: submit(SlowSource(first))))

    assert facts(ledger) == (JobState.RUNNING, True, 1, 5)
    with StagedReader(output, job_id="job") as reader:
        assert reader.read_chunk(0, 1, 0)["uri"].to_pylist() == first
