"""A store that fails in every known way: nothing is lost, doubled or undone; the same call succeeds later."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import pyarrow as pa
import pytest

from clipfleet.contract.jobs import JobState, PartFormat
from clipfleet.contract.parts import PartCounts, PartIdentity, part_schema
from clipfleet.errors import OutputUnavailableError, OutputUnreachableError
from clipfleet.ledger.jobs import Ledger
from clipfleet.outputs import objects
from clipfleet.outputs.s3 import S3Output, s3_output
from clipfleet.outputs.staged import StagedReader
from clipfleet.parts import part_files
from clipfleet.results import rows as results
from clipfleet.results.part_rows import PartRows
from clipfleet.s3.client import make_client
from clipfleet.sources import open_source
from clipfleet.submit.submission import Submission
from clipfleet_worker.sinks.parts import PartSink
from tests.support.hints import CountedHints
from tests.support.jobs import place_job
from tests.support.ledger import make_job
from tests.support.leftovers import left_in_output
from tests.support.s3 import S3Bucket
from tests.support.s3_front import Fault, Rule, S3Front

pytestmark = pytest.mark.long

Answer = TypeVar("Answer")

DONE = [fault for fault in Fault if fault.name.startswith("DONE_BUT") and fault is not Fault.DONE_BUT_STALL]
STALLS = [fault for fault in Fault if "STALL" in fault.name]
# A right that is missing is no fault of the moment.
PASSING = [fault for fault in Fault if fault not in (*STALLS, Fault.ACCESS_DENIED)]
OK, FAILED = PartCounts(1, 0, {}), PartCounts(0, 1, {"timeout": 1})


def rule(fault: Fault, **where: Any) -> Rule:
    """A precondition fails only where there is one."""
    return Rule(fault=fault, conditional=True if fault is Fault.PRECONDITION_FAILED else None, **where)


def parts(fault: Fault, method: str = "PUT", **where: Any) -> Rule:
    return rule(fault, method=method, path="*/part-*", **where)


@pytest.fixture
def output(s3: S3Bucket, front: S3Front) -> S3Output:
    output = s3_output(f"{s3.uri}/jobs/one", make_client())
    assert output.has_conditional_writes
    return output


@pytest.fixture
def sink(output: S3Output) -> PartSink:
    return PartSink(output)


def again(call: Callable[[], Answer], *, times: int = 40) -> Answer:
    """Repeat a call until it succeeds, as chunks do; it may fail only with what is retried."""
    for _ in range(times):
        try:
            return call()
        except OutputUnavailableError as error:
            assert not isinstance(error, OutputUnreachableError), error
            assert "\n" not in str(error)
    raise AssertionError(f"still not after {times} times")


def part(chunk_id: int, generation: int = 0) -> PartIdentity:
    return PartIdentity("job", chunk_id, generation)


def rows(writer: str, *, failed: bool = False) -> pa.Table:
    values = {"item_index": 0, "item_id": "0", "uri": writer, "status": "failed" if failed else "ok"}
    return pa.Table.from_pylist([values], part_schema(2))


def writers(output: S3Output) -> list[str]:
    """Who wrote each part, by the store itself."""
    return [row["uri"] for row in results.rows(PartRows(output))]


@pytest.mark.parametrize("kind", list(PartFormat))
def test_a_part_is_written_once_whatever_fails(front: S3Front, output: S3Output, kind: PartFormat) -> None:
    sink = PartSink(output, part_files(kind, "job"))
    place_job(output, make_job(output=output.uri).model_copy(update={"part_format": kind}))
    for chunk_id, fault in enumerate(PASSING):
        with front.broken_by(parts(fault, times=1)):
            counts = again(lambda: sink.write(part(chunk_id), rows("first"), OK), times=3)  # noqa: B023
        assert counts == OK, fault
        assert sink.write(part(chunk_id), rows("second"), OK) == OK

    assert front.hits == dict.fromkeys(PASSING, 1)
    assert writers(output) == ["first"] * len(PASSING)
    assert len(list(output.names(objects.LAYOUT.part_prefix))) == len(PASSING)


def test_a_part_whose_answer_was_lost_is_adopted(front: S3Front, output: S3Output, sink: PartSink) -> None:
    for chunk_id, fault in enumerate(DONE):
        with (
            front.broken_by(parts(fault)),
            pytest.raises(OutputUnavailableError, match=output.uri + "/data/part-"),
        ):
            sink.write(part(chunk_id), rows("first"), OK)

        # The next owner of the chunk looks before it computes; one that does not comes to the same.
        assert sink.find(part(chunk_id)) == OK
        assert sink.write(part(chunk_id), rows("second"), FAILED) == OK
    assert writers(output) == ["first"] * len(DONE)


@pytest.mark.parametrize("kind", list(PartFormat))
def test_a_late_writer_of_the_generation_before_replaces_nothing(output: S3Output, kind: PartFormat) -> None:
    """Though the later generation came to the same rows as the one that the late writer has read."""
    sink = PartSink(output, part_files(kind, "job"))
    sink.write(part(0), rows("first", failed=True), FAILED)
    late = sink.older(part(0, 1))
    sink.write(part(0, 1), rows("second"), OK, over=sink.older(part(0, 1)))
    sink.write(part(0, 2), rows("first", failed=True), FAILED, over=sink.older(part(0, 2)))

    with pytest.raises(OutputUnavailableError, match="is of generation 2 by now"):
        sink.write(part(0, 1), rows("late"), OK, over=late)

    assert writers(output) == ["first"]
    assert sink.find(part(0, 2)) == FAILED


def test_every_try_to_put_a_part_looks_at_the_lease_first(front: S3Front, sink: PartSink) -> None:
    confirmed: list[int] = []
    with front.broken_by(parts(PASSING[0], times=1)):
        sink.write(part(0), rows("first"), OK, confirm=lambda: confirmed.append(1))
    assert len(confirmed) >= 2


def test_a_retry_replaces_once_whatever_fails(front: S3Front, output: S3Output, sink: PartSink) -> None:
    def retry(chunk_id: int) -> PartCounts:
        found = sink.find(part(chunk_id, 1))
        if found is not None:
            return found
        older = sink.older(part(chunk_id, 1))
        return sink.write(part(chunk_id, 1), rows("retry"), OK, over=older)

    for chunk_id, fault in enumerate(PASSING):
        sink.write(part(chunk_id), rows("first", failed=True), FAILED)
        with front.broken_by(*(parts(fault, method, times=1) for method in ("PUT", "GET"))):
            assert again(lambda: retry(chunk_id), times=5) == OK, fault  # noqa: B023

    assert writers(output) == ["retry"] * len(PASSING)


def test_a_later_generation_is_never_undone(front: S3Front, output: S3Output, sink: PartSink) -> None:
    for chunk_id, fault in enumerate(PASSING):
        sink.write(part(chunk_id), rows("first", failed=True), FAILED)
        seen_late = sink.older(part(chunk_id, 1))
        sink.write(part(chunk_id, 2), rows("second retry"), OK, over=sink.older(part(chunk_id, 2)))
        with front.broken_by(parts(fault, times=1)):
            for _ in range(2):
                with pytest.raises(OutputUnavailableError):
                    sink.write(part(chunk_id, 1), rows("late"), OK, over=seen_late)

    assert writers(output) == ["second retry"] * len(PASSING)


def test_silence_is_cut_off_and_the_same_call_succeeds_later(s3: S3Bucket, front: S3Front) -> None:
    impatient = s3_output(f"{s3.uri}/jobs/one", make_client(attempts=1, read_timeout_seconds=1))
    sink = PartSink(impatient)
    assert again(lambda: impatient.has_conditional_writes)
    for chunk_id, fault in enumerate(STALLS):
        method = "GET" if fault is Fault.STALL_IN_ANSWER else "PUT"
        with (
            front.broken_by(parts(fault, method)),
            pytest.raises(OutputUnavailableError, match="jobs/one/data/part"),
        ):
            sink.write(part(chunk_id), rows("first"), OK)
            sink.find(part(chunk_id))
        assert again(lambda: sink.write(part(chunk_id), rows("second"), OK)) == OK  # noqa: B023

    assert again(lambda: len(writers(impatient))) == len(STALLS)


def test_rows_are_read_whole_or_not_at_all(front: S3Front, output: S3Output, sink: PartSink) -> None:
    names = [f"chunk {chunk_id}" for chunk_id in range(8)]
    for chunk_id, name in enumerate(names):
        sink.write(part(chunk_id), rows(name), OK)
    reads: list[int] = []

    def read() -> list[str]:
        reads.append(1)
        return writers(output)

    faults = [fault for fault in PASSING if fault not in DONE]
    with front.broken_by(*(rule(fault, chance=0.02) for fault in faults)):
        for _ in range(10):
            assert again(read) == names
    assert len(front.hits) > 5
    assert len(reads) > 10


@pytest.mark.parametrize("seed", [1, 2])
def test_a_submit_that_is_repeated_stages_every_item_once(
    s3: S3Bucket, ledger: Ledger, tmp_path: Path, front: S3Front, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    uris = [f"https://example.org/{n}.jpg" for n in range(600)]
    (tmp_path / "urls.txt").write_text("\n".join(uris))
    source = open_source(str(tmp_path / "urls.txt"))
    changes = {"source": source.description, "chunk_size": 1}
    job = make_job(output=f"{s3.uri}/jobs/one").model_copy(update=changes)

    def submit() -> None:
        output = s3_output(job.output, make_client())
        Submission(ledger, CountedHints(), output, job).run(open_source(job.source.uri))

    with S3Front(s3.endpoint, seed=seed) as other, monkeypatch.context() as patch:
        for name, value in other.environment({}).items():
            patch.setenv(name, value)
        other.place(*(rule(fault, chance=0.02) for fault in PASSING))
        again(submit)
        assert other.hits

    status = ledger.status("job")
    assert (status.state, status.sealed, status.total, status.chunks) == (JobState.RUNNING, True, 600, 600)
    chunks = [(first, n, first + k) for first, n in ledger.staged_files("job") for k in range(n)]
    with StagedReader(s3_output(job.output, make_client()), job_id="job") as reader:
        assert [uri for one in chunks for uri in reader.read_chunk(*one)["uri"].to_pylist()] == uris


def test_what_a_cut_off_probe_leaves_is_swept(s3: S3Bucket, front: S3Front) -> None:
    output = s3_output(f"{s3.uri}/jobs/one", make_client(attempts=1))
    with front.broken_by(Rule(fault=Fault.RESET, method="DELETE")):
        assert output.has_conditional_writes
    assert len(left_in_output(output)) == 1

    output.sweep([])

    assert left_in_output(output) == []


def test_a_missing_right_is_not_waited_for(front: S3Front, output: S3Output) -> None:
    with front.broken_by(Rule(fault=Fault.ACCESS_DENIED)):
        for call in (
            lambda: output.read("x"),
            lambda: output.version("x"),
            lambda: output.create("x", b""),
            lambda: list(output.names("")),
        ):
            with pytest.raises(OutputUnreachableError, match="the credentials need"):
                call()
