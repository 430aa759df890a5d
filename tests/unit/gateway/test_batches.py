"""The steps of a batch, each repeatable: after a kill at any change another gateway goes on."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import pytest

from clipfleet.contract.jobs import JobState, Lane
from clipfleet.contract.webhooks import EventType
from clipfleet.errors import (
    JobConflictError,
    OutputConflictError,
    QuotaExceededError,
    RedisUnavailableError,
    SourceError,
)
from clipfleet.ledger.locks import LockLostError
from clipfleet.outputs import open_output
from clipfleet.outputs.folder import FolderOutput
from clipfleet.outputs.objects import JOB_FILE
from clipfleet_gateway.batches.jobs import Row
from clipfleet_gateway.batches.lines import LineError
from clipfleet_gateway.batches.record import BatchRecord, Checked, Ending
from clipfleet_gateway.errors import NOT_RUN, NOT_SUBMITTED, limited
from clipfleet_gateway.shapes.batches import BatchStatus, Endpoint
from tests.support.batches import DIMENSION, Desk, FakeJobs, KilledError, jsonl, line, mortal, worker

LINES = jsonl(
    line("a"),
    line("b", {"model": "demo", "input": ["b0", "b1", "b2"]}),
    line("c", {"model": "demo", "input": ["c0"], "encoding_format": "base64"}),
    line("d"),
)
ITEMS = 6


@pytest.fixture
def desk(place: FolderOutput) -> Desk:
    return Desk(place)


def running(desk: Desk, data: bytes = LINES, **other: Any) -> BatchRecord:
    batch = desk.advance(desk.begin(data, **other))
    assert (batch.status, batch.is_submitted) == (BatchStatus.IN_PROGRESS, True)
    return batch


def ids(lines: list[dict[str, Any]]) -> list[str]:
    return [one["custom_id"] for one in lines]


def files_of(desk: Desk, batch: BatchRecord) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    return desk.written(batch.output_file), desk.written(batch.error_file)


def test_completed(desk: Desk) -> None:
    batch = running(desk, metadata={"night": "1"}, output_expires_after_seconds=3600)
    assert desk.jobs.keys[0].lane is Lane.BULK
    assert desk.advance(batch) == batch, "the job runs"
    shown = batch.shown(desk.advancing().progress(batch))
    assert (shown.request_counts.total, shown.request_counts.completed) == (4, 4)
    assert (shown.output_file_id, shown.error_file_id) == (None, None)

    desk.now.later(seconds=5)
    desk.jobs.end(batch.id)
    batch = desk.advance(batch)

    done, failed = files_of(desk, batch)
    assert (ids(done), failed, batch.error_file) == (["a", "b", "c", "d"], [], None)
    first = done[0]
    assert set(first) == {"id", "custom_id", "response", "error"}
    assert (first["id"], first["error"]) == (f"batch_req_{batch.id}-1", None)
    assert (first["response"]["status_code"], first["response"]["request_id"]) == (200, f"{batch.id}-1")
    assert first["response"]["body"]["data"][0]["embedding"] == [0.0] * DIMENSION
    assert [one["embedding"] for one in done[1]["response"]["body"]["data"]] == [
        [float(n)] * DIMENSION for n in (1, 2, 3)
    ]
    assert isinstance(done[2]["response"]["body"]["data"][0]["embedding"], str)
    assert batch.output_file is not None
    assert (batch.output_file.purpose, batch.output_file.expires_at) == (
        "batch_output", batch.output_file.created_at + 3600,
    )  # fmt: skip
    shown = batch.shown()
    assert (shown.status, shown.output_file_id, shown.error_file_id) == (
        "completed",
        batch.output_file.id,
        None,
    )
    assert (shown.request_counts.total, shown.request_counts.completed, shown.request_counts.failed) == (
        4,
        4,
        0,
    )
    assert (shown.metadata, shown.model, shown.errors) == ({"night": "1"}, "demo", None)
    assert (shown.created_at, shown.expires_at) == (shown.in_progress_at, shown.created_at + 86_400)
    assert shown.finalizing_at == shown.completed_at == shown.created_at + 5
    assert (shown.failed_at, shown.expired_at, shown.cancelling_at, shown.cancelled_at) == (None,) * 4


def left(desk: Desk) -> Counter[str]:
    """How many objects there are in each folder of the place."""
    folders = ("files/mine/", "batches/mine/", "asked/mine/", "open/", "work/", "jobs/", "_clipfleet/tmp/")
    return Counter({one: len([*desk.place.names(one)]) for one in folders if [*desk.place.names(one)]})


def test_what_an_ended_batch_leaves(desk: Desk) -> None:
    batch = running(desk)
    open_output(desk.store.job_output(batch.id)).create(JOB_FILE, b"{}")
    desk.jobs.failing = {1: ("not_an_image", "text")}
    desk.jobs.end(batch.id)
    desk.advance(batch)

    assert left(desk) == {"files/mine/": 6, "batches/mine/": 1, "asked/mine/": 1}
    folders = [path for path in Path(desk.place.uri).rglob("*") if path.is_dir()]
    assert [path for path in folders if batch.id in path.name] == []


def test_a_bad_input_takes_its_whole_line_with_it(desk: Desk) -> None:
    batch = running(desk)
    desk.jobs.failing = {2: ("not_an_image", "a text"), 5: ("timeout", "")}
    desk.jobs.end(batch.id, JobState.COMPLETED_WITH_ERRORS)
    batch = desk.advance(batch)

    done, failed = files_of(desk, batch)
    assert (ids(done), ids(failed), batch.counts) == (["a", "c"], ["b", "d"], (2, 2))
    assert failed[0]["response"] is None
    assert failed[0]["error"] == {
        "code": "not_an_image", "message": "input[1]: not an image: a text", "param": "input[1]",
    }  # fmt: skip
    assert failed[1]["error"] == {"code": "timeout", "message": "input: timeout", "param": "input"}
    assert batch.status is BatchStatus.COMPLETED


def test_a_batch_in_which_nothing_is_right_has_no_output_file(desk: Desk) -> None:
    batch = running(desk, jsonl(line("a")))
    desk.jobs.failing = {0: ("empty", "")}
    desk.jobs.end(batch.id)
    batch = desk.advance(batch)

    assert (batch.output_file, ids(desk.written(batch.error_file))) == (None, ["a"])


def test_dimensions_are_judged_by_line(desk: Desk) -> None:
    wrong = {"model": "demo", "input": "x", "dimensions": DIMENSION + 1}
    batch = running(desk, jsonl(line("a", wrong), line("b", {**wrong, "dimensions": DIMENSION})))
    desk.jobs.end(batch.id)

    done, failed = files_of(desk, desk.advance(batch))

    assert (ids(done), ids(failed)) == (["b"], ["a"])
    assert failed[0]["error"]["param"] == "dimensions"


def test_zero_shot(desk: Desk) -> None:
    lines = [
        line(
            name,
            {"model": "demo", "inputs": "https://x/a.jpg", "parameters": {"candidate_labels": labels}},
            url="/v1/zero-shot",
        )
        for name, labels in (("a", ["cat", "dog"]), ("b", ["x", "y", "z"]))
    ]
    batch = running(desk, jsonl(*lines), endpoint=Endpoint.ZERO_SHOT)
    desk.jobs.end(batch.id)

    done, _ = files_of(desk, desk.advance(batch))

    assert [[one["label"] for one in line["response"]["body"]] for line in done] == [
        ["cat", "dog"],
        ["x", "y", "z"],
    ]


def test_lines_without_a_model_wait_for_a_worker_that_says_which(desk: Desk) -> None:
    body = {"inputs": "https://x/a.jpg", "parameters": {"candidate_labels": ["cat", "dog"]}}
    desk.workers = []
    batch = desk.begin(jsonl(line("a", body, url="/v1/zero-shot")), Endpoint.ZERO_SHOT)
    assert desk.advance(batch).status is BatchStatus.VALIDATING

    desk.workers = [worker("demo")]
    found = desk.advance(batch)
    assert (found.status, found.shown().model) == (BatchStatus.IN_PROGRESS, "demo")

    desk.workers.append(worker("other"))
    body["inputs"] = "https://x/b.jpg"
    failed = desk.advance(desk.begin(jsonl(line("a", body, url="/v1/zero-shot")), Endpoint.ZERO_SHOT))
    assert (failed.status, failed.errors[0].param) == (BatchStatus.FAILED, "model")


class TestEarlyEnds:
    def test_cancelled_keeps_what_is_done(self, desk: Desk) -> None:
        batch = running(desk)
        desk.jobs.done = 3  # of the second line, one input is missing

        cancelling = desk.advancing().cancel(batch)
        assert (cancelling.status, cancelling.cancelling_at) == (BatchStatus.CANCELLING, batch.created_at)
        assert desk.advancing().cancel(cancelling) == cancelling, "once"
        batch = desk.advance(batch)

        done, failed = files_of(desk, batch)
        assert (ids(done), ids(failed)) == (["a"], ["b", "c", "d"])
        assert {one["error"]["code"] for one in failed} == {"batch_cancelled"}
        assert (batch.status, batch.cancelled_at, batch.finalizing_at) == (
            BatchStatus.CANCELLED, batch.created_at, None,
        )  # fmt: skip
        assert desk.jobs.states[batch.id] is JobState.CANCELLED
        assert desk.advancing().cancel(batch) == batch

    def test_cancelled_before_it_is_validated(self, desk: Desk) -> None:
        batch = desk.begin(LINES)
        desk.advancing().cancel(batch)
        batch = desk.advance(batch)

        assert (batch.status, batch.output_file, batch.error_file) == (BatchStatus.CANCELLED, None, None)
        assert desk.jobs.submits == 0

    def test_cancelled_while_it_is_submitted(self, desk: Desk) -> None:
        batch = desk.begin(LINES)
        desk.jobs.raises = RedisUnavailableError("away")
        with pytest.raises(RedisUnavailableError):
            desk.advance(batch)
        desk.advancing().cancel(desk.found(batch))
        desk.jobs.raises = None
        batch = desk.advance(batch)

        assert batch.status is BatchStatus.CANCELLED
        assert ids(desk.written(batch.error_file)) == ["a", "b", "c", "d"]

    def test_a_completed_one_cannot_be_cancelled(self, desk: Desk) -> None:
        batch = running(desk)
        desk.jobs.end(batch.id)
        batch = desk.advance(batch)

        assert desk.advancing().cancel(batch) == batch

    def test_expired_keeps_what_is_done(self, desk: Desk) -> None:
        batch = running(desk)
        desk.jobs.done = 4
        desk.now.later(hours=24)
        batch = desk.advance(batch)

        done, failed = files_of(desk, batch)
        assert (ids(done), ids(failed)) == (["a", "b"], ["c", "d"])
        assert {one["error"]["code"] for one in failed} == {"batch_expired"}
        assert (batch.status, batch.expired_at, batch.finalizing_at) == (
            BatchStatus.EXPIRED, batch.expires_at, batch.expires_at,
        )  # fmt: skip

    def test_a_job_that_ended_in_time_is_completed_although_no_gateway_was_there(self, desk: Desk) -> None:
        batch = running(desk)
        desk.jobs.end(batch.id)
        desk.now.later(hours=30)

        assert desk.advance(batch).status is BatchStatus.COMPLETED

    def test_a_job_that_somebody_cancels(self, desk: Desk) -> None:
        batch = running(desk)
        desk.jobs.done = 1
        desk.jobs.end(batch.id, JobState.CANCELLED)
        batch = desk.advance(batch)

        assert batch.status is BatchStatus.CANCELLED
        assert ids(desk.written(batch.output_file)) == ["a"]

    def test_a_job_that_fails(self, desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
        batch = running(desk)
        desk.jobs.done = 1
        desk.jobs.end(batch.id, JobState.FAILED)
        batch = desk.advance(batch)

        assert (batch.status, [one.code for one in batch.errors]) == (BatchStatus.FAILED, ["job_failed"])
        assert batch.errors[0].message == NOT_RUN
        assert "/srv/place: disk full" in caplog.text
        assert (ids(desk.written(batch.output_file)), ids(desk.written(batch.error_file))) == (
            ["a"],
            ["b", "c", "d"],
        )


class TestTroubleOfASubmit:
    @pytest.mark.parametrize("error", [QuotaExceededError("full"), JobConflictError("two submits")])
    def test_what_passes_is_waited_for(self, desk: Desk, error: Exception) -> None:
        desk.jobs.raises = error
        batch = desk.begin(LINES)
        with pytest.raises(type(error)):
            desk.advance(batch)
        batch = desk.found(batch)
        assert (batch.status, batch.is_submitted) == (BatchStatus.IN_PROGRESS, False)

        desk.jobs.raises = None
        assert desk.advance(batch).is_submitted

    def test_a_job_that_was_cancelled_meanwhile(self, desk: Desk) -> None:
        batch = desk.begin(LINES)
        desk.jobs.end(batch.id, JobState.CANCELLED)
        desk.jobs.raises = JobConflictError("accepts no more items")

        assert desk.advance(batch).status is BatchStatus.CANCELLED

    def test_what_does_not_pass_fails_the_batch(self, desk: Desk) -> None:
        desk.jobs.raises = SourceError("file-1 was deleted")
        batch = desk.advance(desk.begin(LINES))

        assert (batch.status, batch.errors[0].message) == (BatchStatus.FAILED, "file-1 was deleted")
        assert ids(desk.written(batch.error_file)) == ["a", "b", "c", "d"]

    def test_a_line_that_the_key_may_read_no_more_fails_the_batch(self, desk: Desk) -> None:
        """The sources of the key were narrowed after the validation."""
        desk.jobs.raises = LineError("not_allowed", "This key may not read s3://photos/a.jpg", "input")
        batch = desk.advance(desk.begin(LINES))

        assert (batch.status, batch.errors[0].message) == (
            BatchStatus.FAILED, "This key may not read s3://photos/a.jpg",
        )  # fmt: skip
        assert ids(desk.written(batch.error_file)) == ["a", "b", "c", "d"]

    def test_a_path_of_the_gateway_is_for_its_log(self, desk: Desk, caplog: pytest.LogCaptureFixture) -> None:
        desk.jobs.raises = OutputConflictError("/srv/place/jobs/batch_1 holds job other")
        batch = desk.advance(desk.begin(LINES))

        assert (batch.status, batch.errors[0].message) == (BatchStatus.FAILED, NOT_SUBMITTED)
        assert f"{batch.id} is not submitted: /srv/place/jobs/batch_1 holds job other" in caplog.text

    def test_an_input_file_that_is_deleted_before_it_is_read(self, desk: Desk) -> None:
        batch = desk.begin(LINES)
        desk.files.delete("mine", batch.input_file_id)

        batch = desk.advance(batch)

        assert (batch.status, batch.errors[0].code) == (BatchStatus.FAILED, "input_file_gone")

    def test_an_input_file_that_is_deleted_later_changes_nothing(self, desk: Desk) -> None:
        batch = running(desk)
        desk.files.delete("mine", batch.input_file_id)
        desk.jobs.end(batch.id)

        assert desk.advance(batch).counts == (4, 0)

    def test_a_job_that_redis_has_lost_is_submitted_again(self, desk: Desk) -> None:
        batch = running(desk)
        del desk.jobs.states[batch.id]

        assert desk.advance(batch).is_submitted
        assert desk.jobs.submits == 2

    def test_a_quota_that_is_spent(self, desk: Desk) -> None:
        desk.refuses = limited("This key may have 5 items a day", 60, "quota_exceeded")
        batch = desk.advance(desk.begin(LINES))

        assert (batch.status, batch.errors[0].code) == (BatchStatus.FAILED, "quota_exceeded")
        assert desk.jobs.submits == 0

    def test_a_revoked_key_keeps_its_batches(self, desk: Desk) -> None:
        batch = desk.begin(LINES)
        desk.keys.revoke("mine")

        assert desk.advance(batch).is_submitted


class TestRepeatedRequests:
    def test_an_open_batch_of_the_same_content_is_returned(self, desk: Desk) -> None:
        batch = desk.begin(LINES, metadata={"a": "1"})

        assert desk.begin(LINES, metadata={"a": "1"}) == batch, "of another upload of the same content"
        others = [
            desk.begin(LINES),
            desk.begin(LINES, metadata={"a": "2"}),
            desk.begin(LINES[:-1], metadata={"a": "1"}),
            desk.begin(LINES, Endpoint.ZERO_SHOT, metadata={"a": "1"}),
        ]  # fmt: skip
        assert len({batch.id, *(one.id for one in others)}) == 5

    def test_an_ended_one_is_followed_by_a_new_one(self, desk: Desk) -> None:
        batch = running(desk)
        desk.jobs.end(batch.id)
        desk.advance(batch)

        again = desk.begin(LINES)
        assert again.id != batch.id
        assert desk.begin(LINES) == again

    def test_one_that_is_cancelled_is_followed_by_a_new_one_at_once(self, desk: Desk) -> None:
        batch = running(desk)
        keyed = running(desk, idempotency_key="night 1")
        for one in (batch, keyed):
            assert desk.advancing().cancel(one).status is BatchStatus.CANCELLING

        again = desk.begin(LINES)

        assert again.id != batch.id
        assert desk.begin(LINES) == again
        assert desk.begin(LINES, idempotency_key="night 1").id == keyed.id

    def test_an_idempotency_key_makes_one_batch_even_after_its_end(self, desk: Desk) -> None:
        batch = running(desk, idempotency_key="night 1")
        desk.jobs.end(batch.id)
        batch = desk.advance(batch)

        assert desk.begin(LINES, idempotency_key="night 1") == batch
        assert desk.begin(jsonl(line("z")), idempotency_key="night 1") == batch, "the route refuses it"
        assert desk.begin(LINES, idempotency_key="night 2").id != batch.id

    @pytest.mark.parametrize("is_killed_after", [False, True])
    @pytest.mark.parametrize("lives", range(6))
    def test_killed_while_it_is_made(self, desk: Desk, lives: int, is_killed_after: bool) -> None:
        first = desk.begin(jsonl(line("other")))
        with suppress(KilledError):
            Desk(mortal(desk.place, lives, after=is_killed_after), desk.now).begin(LINES)

        batch = desk.begin(LINES)

        assert desk.begin(LINES) == batch == desk.found(batch)
        assert {*desk.store.open()} == {("mine", first.id), ("mine", batch.id)}
        found, _ = desk.store.listed("mine", after=None, limit=10)
        assert {one.id for one in found} == {first.id, batch.id}


def test_batches_are_listed_newest_first(desk: Desk) -> None:
    made = []
    for number in range(5):
        made.append(desk.begin(jsonl(line(f"{number}"))))
        desk.now.later(seconds=1)

    page, has_more = desk.store.listed("mine", after=None, limit=2)
    assert ([one.id for one in page], has_more) == ([made[4].id, made[3].id], True)
    page, has_more = desk.store.listed("mine", after=page[-1].id, limit=5)
    assert ([one.id for one in page], has_more) == ([one.id for one in made[2::-1]], False)
    assert desk.store.listed("other", after=None, limit=5) == ([], False)
    assert desk.store.find("other", made[0].id) is None
    assert desk.store.find("mine", "../mine/x") is None


@pytest.mark.parametrize("is_killed_after", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("ending", ["completed", "cancelled", "expired", "invalid"])
def test_killed_at_any_change_the_next_gateway_goes_on(
    tmp_path: Path, is_killed_after: bool, ending: str
) -> None:
    """Every line is in exactly one file, whichever change is interrupted."""
    kills = 0
    while is_killed_at(kills, Desk(FolderOutput(tmp_path / f"{kills}")), ending, after=is_killed_after):
        kills += 1
    assert kills > (3 if ending == "invalid" else 10)


def is_killed_at(change: int, desk: Desk, ending: str, *, after: bool) -> bool:
    """Run a batch to its end with a kill at one of the changes of the place; False if there are fewer."""
    is_valid = ending != "invalid"
    batch = desk.begin(LINES if is_valid else LINES + b"{")
    desk.jobs.failing = {2: ("not_an_image", "x")}
    was_killed = False
    for advancing in (desk.advancing(mortal(desk.place, change, after=after)), desk.advancing()):
        try:
            advancing.advance("mine", batch.id)
            _end(desk, desk.found(batch), ending)
            advancing.advance("mine", batch.id)
            break
        except KilledError:
            was_killed = True
            desk.jobs.done = 5 if ending == "cancelled" else None  # a late part, seen by the second one only
    found = desk.found(batch)
    assert found.status == (ending if is_valid else "failed")
    lines = [one for file in files_of(desk, found) for one in file]
    assert sorted(ids(lines)) == (["a", "b", "c", "d"] if is_valid else [])
    assert not [*desk.store.open(), *desk.place.names(f"work/{batch.id}/")]
    assert desk.spent == ({batch.id: ITEMS} if is_valid else {})
    records = [name for name in desk.place.names("files/mine/") if name.endswith(".json")]
    referred = [one for one in (found.output_file, found.error_file) if one is not None]
    assert len(records) == 1 + len(referred), "no file that is found belongs to no batch"
    return was_killed


def _end(desk: Desk, batch: BatchRecord, ending: str) -> None:
    if ending == "completed":
        desk.jobs.end(batch.id)
    elif ending == "cancelled":
        desk.jobs.done = 4
        desk.advancing().cancel(batch)
    elif ending == "expired":
        desk.jobs.done = 4
        desk.now.later(hours=25)


@pytest.mark.parametrize("is_late", [False, True], ids=["while it writes", "before it writes"])
def test_a_gateway_that_was_frozen_changes_nothing(desk: Desk, is_late: bool) -> None:
    """Another one ends the batch meanwhile, with a row more."""
    batch = running(desk)
    desk.jobs.done = 1
    desk.jobs.end(batch.id, JobState.CANCELLED)
    stale = desk.advancing()._ending(batch, Ending.CANCELLED)
    assert stale is not None

    def end() -> None:
        desk.jobs.done = 5
        desk.advance(batch)

    class Frozen(FakeJobs):
        def rows(self, checked: Checked, output: str) -> Iterator[Row]:
            rows = [*desk.jobs.rows(checked, output)]
            end()
            return iter(rows)

    if is_late:
        end()
    assert desk.advancing(jobs=Frozen(desk.files, desk.jobs.policies))._step(stale, lambda: None) is None

    done, failed = files_of(desk, desk.found(batch))
    assert (ids(done), ids(failed)) == (["a", "b", "c"], ["d"])
    contents = [name for name in desk.place.names("files/mine/") if name.endswith(".bytes")]
    assert len(contents) == 3, "what it has written is gone"


@pytest.mark.parametrize("stops_with", [None, LockLostError("gone")], ids=["to its end", "until it notices"])
def test_a_gateway_that_was_frozen_in_a_submit_leaves_no_job(
    desk: Desk, stops_with: Exception | None
) -> None:
    """The ledger learns of the job when the batch has ended and nobody looks at it any more."""
    batch = desk.begin(LINES)

    class Frozen(FakeJobs):
        def submit(self, *arguments: Any) -> None:
            desk.advancing().cancel(desk.found(batch))
            desk.advance(batch)
            desk.jobs.submit(*arguments)
            if stops_with is not None:
                raise stops_with

        def cancel(self, job_id: str) -> None:
            desk.jobs.cancel(job_id)

    with pytest.raises(LockLostError) if stops_with else nullcontext():
        desk.advancing(jobs=Frozen(desk.files, desk.jobs.policies)).advance("mine", batch.id)

    assert desk.found(batch).status is BatchStatus.CANCELLED
    assert desk.jobs.states == {batch.id: JobState.CANCELLED}
    assert not [*desk.store.open(), *desk.place.names(f"work/{batch.id}/")]


def test_files_that_no_record_names_yet_are_no_strays(desk: Desk) -> None:
    """All gateways were down for two days, between the two files and the end."""
    batch = running(desk)
    desk.jobs.done = 3
    desk.jobs.end(batch.id, JobState.CANCELLED)
    while not batch.has_files:
        batch = desk.advancing()._step(batch, lambda: None) or batch
    desk.now.later(days=2)

    desk.files.remove_strays("mine", desk.advancing().coming_files())
    done, failed = files_of(desk, desk.advance(batch))

    assert (ids(done), ids(failed)) == (["a"], ["b", "c", "d"])


def test_an_open_batch_that_was_never_made_is_forgotten_a_day_later(desk: Desk) -> None:
    """Its gateway was killed before the record; the same request would have made it."""
    batch = desk.begin(LINES)
    desk.place.remove(f"batches/mine/{batch.id}.json")

    desk.advancing().advance("mine", batch.id)
    assert desk.advancing().open() == [("mine", batch.id)]

    desk.now.later(hours=25)
    desk.advancing().advance("mine", batch.id)
    assert desk.advancing().open() == []


def test_records_are_json(desk: Desk) -> None:
    batch = running(desk)

    data = desk.place.read(f"batches/mine/{batch.id}.json")
    assert data is not None and json.loads(data)["revision"] == 2


@pytest.mark.parametrize("ending", ["completed", "failed", "expired", "cancelled"])
def test_each_end_is_announced_once(desk: Desk, ending: str) -> None:
    batch = desk.begin(LINES if ending != "failed" else b"no line")
    if ending != "failed":
        batch = desk.advance(batch)
    assert not desk.published or ending == "failed"
    if ending == "cancelled":
        desk.advancing().cancel(batch)
    elif ending == "expired":
        desk.now.later(hours=25)
    elif ending == "completed":
        desk.jobs.end(batch.id)

    for _ in range(3):
        desk.advance(batch)

    assert desk.found(batch).status == ending
    data = json.dumps({"id": batch.id})
    assert desk.published == {f"evt-{batch.id}-{ending}": (EventType(f"batch.{ending}"), data)}
