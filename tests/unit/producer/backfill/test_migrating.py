"""A migration: it fills other vectors beside the current ones, and switches when nothing is missing."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from clipfleet.backfill.migrating import StoreMigration, abandon_migration
from clipfleet.backfill.options import BackfillOptions
from clipfleet.backfill.outcome import BackfillResult
from clipfleet.contract.jobs import JobState
from clipfleet.errors import JobConflictError, OutputDamagedError, UsageError
from clipfleet.ledger.locks import LockLostError
from clipfleet.sources.batches import Source
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import EmbeddedBy, StorePlace
from tests.support.backfills import FINGERPRINTS, Nights, uris
from tests.support.store_rows import ListedItems, item

OLD, NEW = FINGERPRINTS["demo"], FINGERPRINTS["new:one"]


@pytest.fixture
def nights(tmp_path: Path) -> Nights:
    """A store with `a` to `d`."""
    nights = Nights(tmp_path / "store")
    nights.night(listed("abcd")).wait()
    nights.fetched.clear()
    return nights


def listed(ids: str, **versions: str | None) -> ListedItems:
    return ListedItems([item(name, versions.get(name, "5 v1")) for name in ids])


def migration(
    nights: Nights, source: Source | Callable[[], Source], most_failed: float | None = 0.0, **options: Any
) -> StoreMigration:
    opened = source if callable(source) else lambda: source
    given = BackfillOptions(**{"model": "new:one"} | options)
    return StoreMigration(nights.services, nights.place, opened, given, most_failed)


def current(nights: Nights) -> str | None:
    return nights.place.read().current.fingerprint


def counts(result: BackfillResult) -> tuple[int, int, int, int]:
    return result.new, result.changed, result.gone, result.failed


def test_the_store_switches_when_all_is_there(nights: Nights) -> None:
    result = migration(nights, listed("abcd")).run()

    assert (result.switched, counts(result), result.same) == (True, (4, 0, 0, 0), 0)
    assert (current(nights), nights.place.read().migration) == (NEW, None)
    assert nights.fetched == uris("abcd")  # once
    assert nights.ids() == nights.ids("new:one") == [*"abcd"]
    jobs = nights.ledger.jobs()
    assert [one.lane for one in jobs] == ["bulk", "normal"]


def test_the_next_night_fills_the_new_vectors(nights: Nights) -> None:
    migration(nights, listed("abcd")).run()

    result = nights.night(listed("abcde"), model=None).wait()

    assert (counts(result), result.same) == ((1, 0, 0, 0), 4)
    assert (nights.ids(), nights.ids("new:one")) == ([*"abcd"], [*"abcde"])


def test_a_night_in_between_is_in_the_new_vectors(nights: Nights) -> None:
    """It finishes while the first job of the migration does."""
    sources = iter([listed("abcd"), *[listed("bcdef") for _ in range(5)]])
    nights.meanwhile = lambda: nights.night(listed("bcdef")).wait()

    result = migration(nights, lambda: next(sources)).run()

    assert (result.switched, counts(result), result.same) == (True, (6, 0, 1, 0), 0)
    assert nights.ids() == nights.ids("new:one") == [*"bcdef"]


def test_a_night_after_the_last_comparison_is_compared_with_again(nights: Nights) -> None:
    """The items that it found are not in the listing that was compared before."""
    opened = 0

    def source() -> Source:
        nonlocal opened
        opened += 1
        if opened == 2:  # its listing has begun
            nights.night(listed("abcde")).wait()
        return listed("abcd" if opened < 3 else "abcde")

    assert migration(nights, source).run().switched
    assert (opened, nights.ids("new:one")) == (3, [*"abcde"])


def test_a_night_that_is_in_progress_is_waited_for(nights: Nights) -> None:
    nights.night(listed("abcde")).begin()

    assert migration(nights, listed("abcde")).run().switched
    assert nights.ids() == nights.ids("new:one") == [*"abcde"]
    assert any("fills the current vectors: waiting for it" in line for line in nights.said)


@pytest.mark.parametrize("has_committed", [True, False])
def test_a_night_just_before_the_switch_is_compared_with(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, has_committed: bool
) -> None:
    """It had the lock, which the migration has lost without notice."""
    change = nights.place.change
    late = [nights.night(listed("abcde"))]

    def changed(to: Any, **options: Any) -> Any:
        if options and late:
            night = late.pop()
            night.begin()
            if has_committed:
                night.wait()
        return change(to, **options)

    monkeypatch.setattr(nights.place, "change", changed)

    assert migration(nights, lambda: listed("abcd" if late else "abcde")).run().switched
    assert nights.ids() == nights.ids("new:one") == [*"abcde"]


def test_a_lock_that_was_lost_before_the_switch(nights: Nights) -> None:
    def lost(name: str) -> None:
        nights.locks.alive = lambda name: None
        nights.night(listed("abcde")).wait()
        raise LockLostError(name)

    def source() -> Source:
        if nights.ledger.jobs()[0].lane == "bulk":  # only the switch is left
            nights.locks.alive = lost
        return listed("abcde" if nights.ids() == [*"abcde"] else "abcd")

    assert migration(nights, source).run().switched
    assert nights.ids() == nights.ids("new:one") == [*"abcde"]


def test_items_without_versions_are_asked_until_all_are_the_same(nights: Nights) -> None:
    source = ListedItems([item(name, None) for name in "abcd"])

    assert migration(nights, source).run().switched
    assert nights.fetched == uris("abcdabcd")


def test_a_source_that_never_rests_does_not_keep_it_from_its_end(nights: Nights) -> None:
    opened = 0

    def source() -> Source:
        nonlocal opened
        opened += 1
        nights.images["s3://bucket/a"] = f"image {opened}"
        return listed("abcd", a=f"{opened} x")

    result = migration(nights, source).run()

    assert (result.switched, opened) == (True, 3)
    assert (counts(result), result.same) == ((4, 0, 0, 0), 0)  # each item once


# --- failures ---


def test_it_does_not_switch_where_items_would_lose_their_vectors(nights: Nights) -> None:
    nights.images = dict.fromkeys(uris("ae"))  # the store never had `e`

    result = migration(nights, listed("abcde")).run()

    assert (result.switched, counts(result)) == (False, (3, 0, 0, 2))
    assert (current(nights), nights.place.read().migration is not None) == (OLD, True)
    assert nights.said[-1].startswith("1 item with vectors failed, more than may: nothing was switched")

    nights.fetched.clear()
    nights.images = dict.fromkeys(uris("e"))
    again = migration(nights, listed("abcde")).run()

    assert (again.switched, counts(again), again.same, current(nights)) == (True, (1, 0, 0, 1), 3, NEW)
    assert sorted({*nights.fetched}) == uris("ae")


@pytest.mark.parametrize(("most_failed", "switched"), [(0.2, False), (0.25, True), (None, True)])
def test_some_may_fail(nights: Nights, most_failed: float | None, switched: bool) -> None:
    nights.images = dict.fromkeys(uris("a"))

    assert migration(nights, listed("abcd"), most_failed).run().switched is switched


@pytest.mark.parametrize("model", ["new:one", "demo"])
@pytest.mark.parametrize("most_failed", [None, 1.0])
def test_it_never_switches_to_nothing(
    nights: Nights, monkeypatch: pytest.MonkeyPatch, most_failed: float | None, model: str
) -> None:
    monkeypatch.setitem(FINGERPRINTS, "demo", "d" * 16)
    nights.images = dict.fromkeys(uris("abcd"))

    assert not migration(nights, listed("abcd"), most_failed, model=model).run().switched
    assert current(nights) == OLD


def test_a_job_that_was_cancelled_ends_it_without_a_switch(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(nights, "work", lambda job: nights.ledger.cancel(job.job_id, ttl_seconds=60))

    result = migration(nights, listed("abcd")).run()

    assert (result.switched, result.state, current(nights)) == (False, JobState.CANCELLED, OLD)


@pytest.mark.parametrize("model", ["demo", "new:one"])
def test_vectors_that_are_gone_are_an_error(nights: Nights, model: str) -> None:
    nights.images = dict.fromkeys(uris("a"))
    migration(nights, listed("abcd")).run()
    Path(nights.place.dataset_uri(FINGERPRINTS[model])).rename(nights.place.dataset_uri("f" * 16))

    with pytest.raises(OutputDamagedError, match=f"{FINGERPRINTS[model]}.lance is gone, though"):
        migration(nights, listed("abcd")).run()
    assert nights.place.read().migration is not None


# --- interrupted, repeated, abandoned ---


def test_a_repeated_call_continues(nights: Nights) -> None:
    begun = migration(nights, listed("abcd"))

    def killed(*_: object, **__: object) -> Any:
        raise KeyboardInterrupt

    nights.meanwhile = killed  # in its first job, when all rows are there
    with pytest.raises(KeyboardInterrupt):
        begun.run()
    assert nights.place.read().migration is not None

    result = migration(nights, listed("abcd")).run()

    assert (result.switched, counts(result), nights.fetched) == (True, (4, 0, 0, 0), uris("abcd"))
    assert "of this migration is in progress: waiting for it" in nights.said[0]


def test_a_call_after_its_end_changes_nothing(nights: Nights) -> None:
    migration(nights, listed("abcd")).run()

    result = migration(nights, listed("abcde")).run()

    assert (result.switched, counts(result), nights.ids("new:one")) == (True, (0, 0, 0, 0), [*"abcd"])
    assert "has these vectors already" in nights.said[-1]


def test_other_weights_under_the_same_name_are_other_vectors(
    nights: Nights, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(FINGERPRINTS, "demo", "d" * 16)
    names = [f"{number:02}" for number in range(40)]
    source = ListedItems([item(name) for name in names])

    result = migration(nights, source, model="demo").run()

    assert (result.switched, counts(result), result.same) == (True, (40, 0, 0, 0), 0)
    assert (current(nights), nights.ids()) == ("d" * 16, names)
    assert sorted(nights.fetched) == uris(names)  # each one once


@pytest.mark.parametrize("precision", [None, "fp32"])
def test_the_same_weights_are_noticed_by_a_small_job(nights: Nights, precision: str | None) -> None:
    """Also where another option turns out to make the same vectors."""
    dataset = VectorDataset.open(nights.place.dataset_uri(OLD))
    source = ListedItems([item(f"{number}") for number in range(100)])

    result = migration(nights, source, model="demo", precision=precision).run()

    store = nights.place.read()
    assert (result.switched, counts(result), result.version) == (True, (0, 0, 0, 0), dataset.version)
    assert (store.current.fingerprint, store.current.dimension) == (OLD, 4)
    assert (store.current.precision, store.migration) == (precision or "auto", None)
    assert nights.said[-1].endswith("has these vectors already")
    assert (len(nights.fetched), nights.ids()) == (16, [*"abcd"])


def test_only_one_migration_at_a_time(nights: Nights) -> None:
    nights.images = dict.fromkeys(uris("a"))
    migration(nights, listed("abcd")).run()

    with pytest.raises(
        UsageError, match=r"migrates to new:one already .*: let it end, or .*abandon_migration"
    ):
        migration(nights, listed("abcd"), model="third:one").run()


def test_it_needs_to_know_to_what(nights: Nights) -> None:
    with pytest.raises(UsageError, match="to which vectors: give a `model=`"):
        migration(nights, listed("abcd"), model=None).run()


def test_what_is_not_given_stays(nights: Nights) -> None:
    seen: list[EmbeddedBy] = []

    def note() -> None:
        found = nights.place.read().migration
        assert found is not None
        seen.append(found.to)

    nights.meanwhile = note
    migration(nights, listed("abcd"), model=None, decode="exact").run()

    assert [(one.model, one.decode, one.exif) for one in seen] == [("demo", "exact", "ignore")]


def test_an_abandoned_migration_leaves_the_store_as_it_was(nights: Nights) -> None:
    nights.images = dict.fromkeys(uris("a"))
    migration(nights, listed("abcd")).run()

    assert abandon_migration(nights.services, nights.place)
    assert not abandon_migration(nights.services, nights.place)
    assert (current(nights), nights.place.read().migration) == (OLD, None)


def test_a_migration_notices_that_it_was_abandoned(nights: Nights) -> None:
    nights.meanwhile = lambda: abandon_migration(nights.services, nights.place)

    with pytest.raises(JobConflictError, match="was abandoned meanwhile"):
        migration(nights, listed("abcd")).run()
    assert current(nights) == OLD


def test_abandoning_cancels_its_job(nights: Nights) -> None:
    def killed(*_: object, **__: object) -> Any:
        raise KeyboardInterrupt

    begun = migration(nights, listed("abcd"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nights, "work", killed)
        with pytest.raises(KeyboardInterrupt):
            begun.run()

    assert abandon_migration(nights.services, nights.place)
    assert nights.ledger.jobs()[0].state is JobState.CANCELLED


def test_there_must_be_a_store(tmp_path: Path) -> None:
    nights = Nights(tmp_path / "none")
    place: StorePlace = nights.place

    with pytest.raises(UsageError, match="there is no store"):
        migration(nights, listed("a")).run()
    with pytest.raises(UsageError, match="there is no store"):
        abandon_migration(nights.services, place)
