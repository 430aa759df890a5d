"""A night of a store: what it runs, commits and counts, and what becomes of one that was interrupted."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from clipfleet.backfill.opening import open_place
from clipfleet.backfill.outcome import BackfillResult
from clipfleet.backfill.rounds import submit_lock
from clipfleet.contract.jobs import JobState
from clipfleet.errors import (
    JobConflictError,
    OutputConflictError,
    OutputDamagedError,
    OutputUnavailableError,
    SourceError,
    UsageError,
)
from clipfleet.job_handle import JobHandle
from clipfleet.ledger.locks import LockLostError
from clipfleet.ledger.memory import MemoryLedger
from clipfleet.outputs import open_output
from clipfleet.outputs.folder import FolderOutput
from clipfleet.resume.rebuild import Rebuild
from clipfleet.sources import ReadOptions, source_of
from clipfleet.store.committing.of_job import commit_job
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.maintenance.forgetting import forget
from clipfleet.store.place import EmbeddedBy, StoreFile
from clipfleet.store.rows import store_schema
from tests.support.backfills import FINGERPRINTS, Nights, uris
from tests.support.held_stores import held
from tests.support.hints import CountedHints
from tests.support.jobs import make_job, place_job
from tests.support.store_rows import DIMENSION, ListedItems, item

SOON = time.time() + 3600  # of files: all tests here are within the tick of their last change


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    return Nights(tmp_path / "store")


def counts(result: BackfillResult) -> dict[str, int]:
    """Those that are not zero, without the version."""
    names = ("new", "changed", "same", "gone", "failed", "copied", "left")
    return {name: getattr(result, name) for name in names if getattr(result, name)}


def listed(ids: str, **versions: str | None) -> ListedItems:
    """An item per letter; `versions` of some of them."""
    return ListedItems([item(name, versions.get(name, "5 v1")) for name in ids])


def test_the_first_night_makes_the_store(nights: Nights) -> None:
    result = nights.night(listed("abcd")).wait()

    assert counts(result) == {"new": 4}
    assert (result.version, result.store, result.ran) == (2, nights.place.uri, 4)
    assert (result.fetched_bytes, result.state) == (400, JobState.COMPLETED)
    assert nights.ids() == [*"abcd"]
    assert nights.place.read().current.fingerprint == FINGERPRINTS["demo"]


def test_the_next_night_runs_only_what_is_new_or_changed(nights: Nights) -> None:
    nights.night(listed("abcd")).wait()
    nights.fetched.clear()
    nights.images["s3://bucket/b"] = "another image"

    result = nights.night(listed("abdef", b="6 v2", d="5 v2")).wait()

    assert counts(result) == {"new": 2, "changed": 1, "same": 2, "gone": 1}
    assert nights.fetched == uris("bdef")
    assert nights.ids() == [*"abdef"]


def test_a_night_without_changes_has_no_job_and_makes_no_version(nights: Nights) -> None:
    before = nights.night(listed("abcd")).wait()

    night = nights.night(listed("abcd"))
    night.begin()
    result = night.wait()

    assert night.job is None
    assert counts(result) == {"same": 4}
    assert (result.version, result.job_id, result.ran) == (before.version, None, 0)


def test_a_version_that_an_item_had_before_says_nothing_of_today(nights: Nights) -> None:
    """S3 lists an object with an ETag that it has had, of a content that is back."""
    for number, version in enumerate(("5 v1", "5 v2", "5 v1")):
        nights.images["s3://bucket/a"] = f"the image of {version}"

        result = nights.night(listed("ab", a=version)).wait()

        assert counts(result) == ({"changed": 1, "same": 1} if number else {"new": 2})
        assert nights.hashes()["a"] == f"the image of {version}"


def test_what_is_gone_is_committed_without_a_job(nights: Nights) -> None:
    nights.night(listed("abcd")).wait()

    result = nights.night(listed("bd")).wait()

    assert (counts(result), result.job_id, result.version) == ({"same": 2, "gone": 2}, None, 3)
    assert nights.ids() == ["b", "d"]


def test_gone_items_are_kept_for_some_days(nights: Nights) -> None:
    nights.night(listed("abc")).wait()
    gone = nights.night(listed("ab"), keep_gone_days=1).wait()
    assert (counts(gone), nights.ids()) == ({"same": 2, "gone": 1}, ["a", "b", "c"])

    assert nights.night(listed("ab"), keep_gone_days=1).wait().version == gone.version
    assert counts(nights.night(listed("ab")).wait()) == {"same": 2}  # they have been gone for long enough
    assert nights.ids() == ["a", "b"]


def test_items_without_a_version_are_asked_each_night(nights: Nights) -> None:
    source = ListedItems([item(name, None) for name in "abc"])
    first = nights.night(source).wait()
    nights.images["s3://bucket/c"] = "another image"

    assert counts(first) == {"new": 3}
    assert counts(nights.night(source).wait()) == {"changed": 1, "same": 2}
    assert counts(nights.night(source).wait()) == {"same": 3}


def test_failed_items_are_tried_again_and_keep_what_they_had(nights: Nights) -> None:
    nights.night(listed("ab")).wait()
    nights.images = dict.fromkeys(uris("bc"))

    result = nights.night(listed("abc", b="5 v2")).wait()
    again = nights.night(listed("abc", b="5 v2")).wait()
    nights.images.clear()
    after = nights.night(listed("abc", b="5 v2")).wait()

    assert counts(result) == counts(again) == {"same": 1, "failed": 2}
    assert (result.state, result.ran) == (JobState.COMPLETED_WITH_ERRORS, 2)
    assert result.errors_file == f"{nights.place.uri}/_jobs/{result.job_id}/_errors.jsonl"
    assert counts(after) == {"same": 2, "new": 1}
    assert nights.ids() == [*"abc"]


def test_where_everything_fails_there_is_no_dataset(nights: Nights) -> None:
    nights.images = dict.fromkeys(uris("ab"))

    assert (counts(nights.night(listed("ab")).wait()), nights.place.read().current.fingerprint) == (
        {"failed": 2}, None,
    )  # fmt: skip


def test_a_night_may_be_limited(nights: Nights) -> None:
    results = [nights.night(listed("abcde"), max_items=2).wait() for _ in range(4)]

    assert [counts(one) for one in results] == [
        {"new": 2, "left": 3}, {"new": 2, "same": 2, "left": 1}, {"new": 1, "same": 4}, {"same": 5},
    ]  # fmt: skip


def test_a_plan_changes_nothing(nights: Nights) -> None:
    plan = nights.night(listed("abc")).plan()
    assert (plan.items, plan.new, plan.to_run, nights.place.read_if_there()) == (3, 3, 3, None)

    nights.night(listed("abc")).wait()
    plan = nights.night(listed("abd", b="5 v2")).plan()

    assert (plan.items, plan.new, plan.to_run, plan.same, len(plan.gone)) == (3, 1, 2, 1, 1)
    assert (len(nights.ledger.jobs()), nights.ids()) == (1, [*"abc"])


class Broken(ListedItems):
    """A source that cannot be read to its end."""

    def batches(self) -> Any:
        yield from super().batches()
        raise SourceError("the listing broke off")


def test_a_listing_that_fails_half_way_changes_nothing(nights: Nights) -> None:
    with pytest.raises(SourceError, match="broke off"):
        nights.night(Broken([item("a")])).wait()
    assert nights.place.read_if_there() is None

    nights.night(listed("abc")).wait()
    with pytest.raises(SourceError, match="broke off"):
        nights.night(Broken([item("a"), item("d")])).wait()
    assert nights.ids() == [*"abc"]
    assert len(nights.ledger.jobs()) == 1


def test_images_without_a_name_are_refused(nights: Nights) -> None:
    options = ReadOptions(named_by_uri=True)
    with pytest.raises(SourceError, match="images without an id"):
        nights.night(source_of([b"image"], options)).wait()

    assert counts(nights.night(source_of([{"id": "one", "bytes": b"image"}], options)).wait()) == {"new": 1}


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"model": "new:one"}, "has vectors with `model=` demo, not new:one: leave the option out"),
        ({"precision": "fp32"}, "`precision=` auto, not fp32"),
        ({"decode": "exact"}, "`decode=` fast, not exact"),
    ],
)
def test_options_that_differ_from_the_store_are_refused(
    nights: Nights, options: Mapping[str, Any], words: str
) -> None:
    nights.night(listed("a")).wait()

    with pytest.raises(UsageError, match=words):
        nights.night(listed("a"), **options).begin()


def test_limited_nights_reach_everything_though_some_items_fail_each_time(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither items that fail nor those that are asked each night keep the others out."""
    failing, names = "ab", "cdefghij"
    source = ListedItems([item(name, None) for name in failing + names])
    now = datetime(2020, 1, 1, tzinfo=UTC)
    monkeypatch.setattr(nights.ledger, "now", lambda: now)
    nights.images = dict.fromkeys(uris(failing))
    for content in ("an image", "another image"):
        nights.images |= dict.fromkeys(uris(names), content)
        for _ in range(40):
            now += timedelta(days=1)
            assert nights.night(source, max_items=2).wait().ran == 2
            if nights.place.read().current.fingerprint and contents(nights) == dict.fromkeys(names, content):
                break
        assert contents(nights) == dict.fromkeys(names, content)


def test_a_store_keeps_its_options(nights: Nights) -> None:
    nights.night(listed("a"), precision="fp32", exif="apply").wait()

    result = nights.night(listed("ab"), model=None).wait()

    assert counts(result) == {"same": 1, "new": 1}
    job = nights.ledger.job(result.job_id or "")
    assert (job.model, job.precision, job.exif, job.lane) == ("demo", "fp32", "apply", "normal")


def test_vectors_that_are_gone_are_not_made_anew(nights: Nights, tmp_path: Path) -> None:
    """Their disk is not mounted, perhaps."""
    nights.night(listed("ab")).wait()
    folder, elsewhere = Path(nights.place.dataset_uri(FINGERPRINTS["demo"])), tmp_path / "elsewhere"
    folder.rename(elsewhere)

    night = nights.night(listed("abc"))
    for call in (night.plan, night.wait):
        with pytest.raises(
            OutputDamagedError, match=r"\.lance is gone, though .*store\.json names it: bring"
        ):
            call()
    assert len(nights.ledger.jobs()) == 1

    elsewhere.rename(folder)
    assert counts(night.wait()) == {"new": 1, "same": 2}


def test_the_results_of_a_job_are_no_store(tmp_path: Path) -> None:
    place = open_place(str(tmp_path))
    place_job(FolderOutput(tmp_path), make_job(tmp_path))

    with pytest.raises(OutputConflictError, match="holds the results of a job: name another folder"):
        open_place(str(tmp_path))
    assert place.read_if_there() is None


# --- several backfills, interrupted ones ---


def test_a_job_id_stands_for_its_night(nights: Nights) -> None:
    first = nights.night(listed("ab"), job_id="monday").wait()
    nights.night(listed("abc"), job_id="tuesday").wait()

    again = nights.night(listed("xyz"), job_id="monday").wait()

    assert replace(again, seconds=first.seconds) == first
    assert nights.ids() == [*"abc"]


def test_a_job_id_of_another_store_is_refused(nights: Nights) -> None:
    nights.ledger.submit(make_job(job_id="monday"))

    with pytest.raises(JobConflictError, match="job monday does not fill"):
        nights.night(listed("ab"), job_id="monday").wait()


def test_a_night_with_the_id_of_one_in_progress_joins_it(nights: Nights) -> None:
    nights.night(listed("ab"), job_id="monday").begin()

    night = nights.night(listed("abc"), job_id="monday")
    night.begin()

    assert (night.job and night.job.job_id, night.is_another) == ("monday", False)
    assert counts(night.wait()) == {"new": 2}


def test_a_night_waits_for_the_one_before(nights: Nights) -> None:
    nights.night(listed("ab")).begin()

    night = nights.night(listed("abc"))
    night.begin()
    assert night.is_another
    result = night.wait()

    assert (counts(result), nights.ids()) == ({"same": 2, "new": 1}, [*"abc"])
    assert nights.fetched == uris("abc")
    assert "is in progress: waiting for it" in nights.said[0]


class KilledError(Exception):
    """Stands for a SIGKILL."""


def interrupt(nights: Nights, monkeypatch: pytest.MonkeyPatch, source: ListedItems, **options: Any) -> None:
    """A backfill that is killed when all is staged but the end of the list."""
    with monkeypatch.context() as patch:

        def killed(*_: object, **__: object) -> None:
            raise KilledError

        patch.setattr(nights.ledger, "seal", killed)
        with pytest.raises(KilledError):
            nights.night(source, **options).wait()


@pytest.mark.parametrize("options", [{}, {"job_id": "monday"}])
def test_an_interrupted_submit_is_replaced(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, options: Mapping[str, str]
) -> None:
    interrupt(nights, monkeypatch, listed("ab"), **options)

    result = nights.night(listed("bc"), **options).wait()

    assert (counts(result), nights.ids()) == ({"new": 2}, ["b", "c"])
    assert "was cancelled: its submit was interrupted" in nights.said[0]
    states = sorted(one.state for one in nights.ledger.jobs())
    assert states == [JobState.CANCELLED, JobState.COMPLETED]
    if options:
        assert result.job_id == "monday-2"
        again = nights.night(listed("x"), **options).wait()
        assert replace(again, seconds=result.seconds) == result


def test_a_submit_in_progress_is_waited_for(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(nights, monkeypatch, listed("ab"), job_id="monday")
    lock = submit_lock(nights.place.read().store_id, "monday")
    nights.locks.taken.add(lock)
    night = nights.night(listed("abc"))
    night.begin()
    assert night.is_another

    nights.locks.taken.remove(lock)

    assert counts(night.wait()) == {"new": 3}


@pytest.mark.parametrize("is_replaced", [False, True])
def test_a_submit_that_has_lost_its_lock_resumes(nights: Nights, is_replaced: bool) -> None:
    def lost(name: str) -> None:
        nights.locks.alive = lambda name: None
        if is_replaced:  # another backfill took it for an interrupted one
            nights.ledger.cancel("monday", ttl_seconds=60)
        raise LockLostError(name)

    nights.locks.alive = lost
    night = nights.night(listed("abc"), job_id="monday")

    if is_replaced:
        with pytest.raises(JobConflictError, match="another backfill has replaced it: run"):
            night.wait()
    else:
        assert counts(night.wait()) == {"new": 3}
    assert [one.job_id for one in nights.ledger.jobs()] == ["monday"]


def test_a_job_that_was_cancelled_commits_nothing(nights: Nights) -> None:
    nights.night(listed("ab")).wait()
    night = nights.night(listed("abc"))
    night.begin()
    assert night.job is not None
    nights.ledger.cancel(night.job.job_id, ttl_seconds=60)

    result = night.wait()

    assert (result.state, result.is_complete, result.version) == (JobState.CANCELLED, False, 2)
    assert nights.ids() == ["a", "b"]


def overtaken(nights: Nights, name: str) -> None:
    """Another night has listed this item a day later, and was faster."""
    dataset = VectorDataset.open(nights.place.dataset_uri(FINGERPRINTS["demo"]))
    rows = next(dataset.batches(dataset.schema.names, where=f"item_id = '{name}'", with_address=True))
    position = rows.schema.get_field_index("listed_at")
    later = [one + timedelta(days=1) for one in rows["listed_at"].to_pylist()]
    fresh = rows.set_column(position, "listed_at", pa.array(later, rows["listed_at"].type))
    dataset.replace(
        rows["_rowaddr"].to_numpy(), [fresh.select(dataset.schema.names).cast(dataset.schema)], {}
    )


def contents(nights: Nights) -> dict[str, str]:
    """Of the images that the store has vectors of."""
    dataset = VectorDataset.open(nights.place.dataset_uri(FINGERPRINTS["demo"]))
    rows = [row for batch in dataset.batches(["item_id", "content_hash"]) for row in batch.to_pylist()]
    return {row["item_id"]: row["content_hash"] for row in rows}


def test_a_night_that_another_one_has_overtaken_is_repeated(nights: Nights) -> None:
    nights.night(listed("ab")).wait()
    nights.images = dict.fromkeys(uris("ab"), "another image")

    nights.meanwhile = lambda: overtaken(nights, "b")
    result = nights.night(listed("abc", a="5 v2", b="5 v2")).wait()

    assert (counts(result), result.late) == ({"new": 1, "changed": 2}, 0)
    assert contents(nights)["b"] == "another image"


def test_a_night_that_is_overtaken_each_time_says_how_many_items_were(nights: Nights) -> None:
    nights.night(listed("ab")).wait()
    nights.images = dict.fromkeys(uris("ab"), "another image")

    def overtake() -> None:
        overtaken(nights, "b")
        nights.meanwhile = overtake

    nights.meanwhile = overtake
    result = nights.night(listed("abc", a="5 v2", b="5 v2")).wait()

    assert (counts(result), result.late) == ({"new": 1, "changed": 1}, 1)
    assert contents(nights)["b"] == "s3://bucket/b"


def test_a_clock_that_was_ahead_for_a_night_does_not_stop_later_ones(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(nights.ledger, "now", lambda: datetime.now(UTC) + timedelta(days=365))
        nights.night(listed("abc")).wait()
    nights.images["s3://bucket/b"] = "another image"

    results = [
        nights.night(listed("ab", b="6 v2")).wait(),
        nights.night(listed("ab", b="7 v3")).wait(),
        nights.night(listed("abd", b="7 v3")).wait(),
    ]

    assert [(counts(one), one.late) for one in results] == [
        ({"changed": 1, "same": 1, "gone": 1}, 0), ({"same": 2}, 0), ({"same": 2, "new": 1}, 0),
    ]  # fmt: skip
    assert contents(nights) == {"a": "s3://bucket/a", "b": "another image", "d": "s3://bucket/d"}


def test_a_file_that_is_written_twice_in_one_tick_is_noticed_whatever_the_clock_of_redis(
    nights: Nights, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its size and time of change stay as they were listed."""
    photos = tmp_path / "photos"
    photos.mkdir()
    file = photos / "a.jpg"
    file.write_bytes(b"1")
    seen = []
    for content, is_ahead in [("first", True), ("second", False), ("third", False)]:
        nights.images[str(file)] = content
        os.utime(file, (SOON, SOON))
        ahead = timedelta(days=365 if is_ahead else 0)
        monkeypatch.setattr(nights.ledger, "now", lambda ahead=ahead: datetime.now(UTC) + ahead)
        nights.night(source_of(photos, ReadOptions(named_by_uri=True))).wait()
        seen.append(contents(nights)["a.jpg"])

    assert seen == ["first", "second", "third"]


def test_a_night_whose_store_has_got_other_vectors_is_repeated(nights: Nights) -> None:
    nights.night(listed("ab")).wait()

    def switch() -> None:
        other = EmbeddedBy(model="new:one", fingerprint=FINGERPRINTS["new:one"], dimension=DIMENSION)
        VectorDataset.create(nights.place.dataset_uri(FINGERPRINTS["new:one"]), store_schema(DIMENSION))
        nights.place.change(lambda store: store.model_copy(update={"current": other}))

    nights.meanwhile = switch
    result = nights.night(listed("abc"), model=None).wait()

    store: StoreFile = nights.place.read()
    assert (counts(result), store.current.fingerprint) == ({"new": 3}, FINGERPRINTS["new:one"])
    assert (nights.ids(), nights.ids("new:one")) == (["a", "b"], [*"abc"])


def test_a_night_whose_items_are_forgotten_before_its_submit_says_so(nights: Nights) -> None:
    """Its list of gone items needs the version that it was compared with."""
    nights.night(listed("abx")).wait()
    night, submit = nights.night(listed("abc")), nights.services.submit

    def forget_and_submit(*arguments: Any) -> JobHandle:
        forget(held(nights.place), ["x"])
        return submit(*arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nights, "services", replace(nights.services, submit=forget_and_submit))
        with pytest.raises(OutputUnavailableError, match=r"version 2 was removed meanwhile .*: run it again"):
            nights.night(listed("abc")).begin()

    assert nights.ids() == ["a", "b"]
    assert counts(night.wait()) == {"new": 1, "same": 2}
    assert nights.ids() == [*"abc"]


def test_a_first_night_that_redis_loses_before_its_commit(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All its rows are there, and only they say which model made them."""
    night = nights.night(listed("abc"))
    night.begin()
    assert night.job is not None
    with monkeypatch.context() as patch:
        patch.setattr(nights, "_finish", lambda job: None)
        nights.work(night.job.job)

    ledger, output = MemoryLedger(), open_output(night.job.job.output)
    assert Rebuild(ledger, CountedHints(), output, night.job.job, 60).run() is JobState.FINISHING

    pinned = ledger.pin_model(night.job.job_id, FINGERPRINTS["new:one"])
    assert pinned == FINGERPRINTS["demo"]
    done = commit_job(nights.place, night.job.job, output, ledger.status(night.job.job_id).chunks, pinned)
    assert (done.counts.new, nights.ids()) == (3, [*"abc"])
