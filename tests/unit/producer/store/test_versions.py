"""Versions as users name them: by a number or a date."""

from __future__ import annotations

from datetime import UTC, datetime
from pathlib import Path

import pytest

from clipfleet.errors import OutputDamagedError, UsageError
from clipfleet.store.dataset import VectorDataset, remove_dataset
from clipfleet.store.place import EmbeddedBy, StorePlace, store_place
from clipfleet.store.versions import current_dataset, version_at
from tests.support.store_rows import NO_ADDRESSES, item, make_dataset, stored_rows

MINE, OTHER = "a" * 16, "b" * 16


@pytest.fixture
def place(tmp_path: Path) -> StorePlace:
    """A store whose version 1 is empty, 2 has one row, 3 two and 4 three."""
    place = store_place(str(tmp_path / "store"))
    place.create(EmbeddedBy(model="demo", fingerprint=MINE, dimension=4))
    dataset = make_dataset(place.dataset_uri(MINE), [item("a")])
    for name in ("b", "c"):
        dataset = dataset.replace(NO_ADDRESSES, stored_rows([item(name)]).to_batches(), {})
    return place


@pytest.fixture
def times(monkeypatch: pytest.MonkeyPatch) -> None:
    """Version 2 is of the last second of a day, 3 of the first one of the next, 4 of its noon."""
    committed = {
        1: datetime(2026, 11, 30, 23, 0, tzinfo=UTC),
        2: datetime(2026, 11, 30, 23, 59, 59, 999_999, tzinfo=UTC),
        3: datetime(2026, 12, 1, tzinfo=UTC),
        4: datetime(2026, 12, 1, 12, 0, tzinfo=UTC),
    }
    monkeypatch.setattr(VectorDataset, "times", lambda _: committed)


@pytest.mark.usefixtures("times")
@pytest.mark.parametrize(
    ("text", "version"),
    [
        (None, 4), ("1", 1), ("3", 3),
        ("2026-11-30", 2), ("20261130", 2), ("2026-12-01", 4), ("2027-01-01", 4),
        ("2026-11-30T23:59", 1), ("2026-12-01T11:59:59", 3), ("2026-12-01T12:00", 4),
        ("2026-12-01 12:00:00Z", 4), ("2026-12-01T12:30+01:00", 3),
    ],
)  # fmt: skip
def test_a_version_is_named_by_number_or_date(place: StorePlace, text: str | None, version: int) -> None:
    _, found = current_dataset(place, text)

    assert (found.version, found.count()) == (version, version - 1)


@pytest.mark.usefixtures("times")
@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("5", "no version 5"),
        ("0", "no version 0"),
        ("20261301", "no version 20261301"),
        (
            "2026-11-29",
            "no version of 2026-11-29 .any more.: the oldest one is 1, of 2026-11-30 23:00:00 UTC",
        ),
        ("yesterday", "'yesterday' is neither a version nor a date such as 2026-11-30"),
        ("-1", "neither"),
        ("9999-12-31T", "neither"),
    ],
)
def test_one_that_is_not_there(place: StorePlace, text: str, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        current_dataset(place, text)


def test_digits_are_a_date_only_if_no_version_has_this_number(
    place: StorePlace, monkeypatch: pytest.MonkeyPatch
) -> None:
    times, seen = VectorDataset.times, [{20261130: datetime(2026, 12, 9, tzinfo=UTC)}]  # removed meanwhile
    monkeypatch.setattr(VectorDataset, "times", lambda one: seen.pop() if seen else times(one))

    with pytest.raises(UsageError, match="no version 20261130"):
        version_at(current_dataset(place)[1], "20261130")


def test_a_store_without_vectors(tmp_path: Path) -> None:
    place = store_place(str(tmp_path / "new"))
    with pytest.raises(UsageError, match="there is no store"):
        current_dataset(place)

    place.create(EmbeddedBy(model="demo"))
    with pytest.raises(UsageError, match="has no vectors yet"):
        current_dataset(place)


def test_vectors_that_are_gone_are_damage(place: StorePlace) -> None:
    remove_dataset(place.dataset_uri(MINE))

    with pytest.raises(OutputDamagedError, match=r"is gone, though .*/store.json names it"):
        current_dataset(place)


@pytest.fixture
def migrated(place: StorePlace, monkeypatch: pytest.MonkeyPatch) -> VectorDataset:
    """Versions 5 and 7 are of a migration, 6 of other programs, 8 of a night after it.

    Each is of a day of its own. Before it the store had these vectors once: 3 and 4 are of nights.
    """
    dataset = make_dataset(place.dataset_uri(OTHER), [item("a")])
    kinds = ("backfill", "backfill", "migration", "vacuum", "migration", "backfill")
    for name, kind in zip("bcdefg", kinds, strict=True):
        dataset = dataset.replace(NO_ADDRESSES, stored_rows([item(name)]).to_batches(), {"kind": kind})
    days = {number: datetime(2026, 12, number, tzinfo=UTC) for number in range(1, 9)}
    monkeypatch.setattr(VectorDataset, "times", lambda _: days)
    return dataset


@pytest.mark.parametrize("day", [4, 5, 6])
def test_a_date_of_a_migration_is_refused_until_its_end(migrated: VectorDataset, day: int) -> None:
    """Whatever was done with the files meanwhile."""
    with pytest.raises(
        UsageError, match=rf"being filled by a migration at 2026-12-0{day}, .* whole version is 7"
    ):
        version_at(migrated, f"2026-12-0{day}")


def test_dates_before_and_after_a_migration_are_read(migrated: VectorDataset) -> None:
    found = [version_at(migrated, text).version for text in ("2026-12-03", "2026-12-07", "2026-12-08", "5")]

    assert found == [3, 7, 8, 5]
