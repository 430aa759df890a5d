"""What a store is, and how its description changes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from clipfleet.contract.jobs import DecodeRoute
from clipfleet.errors import OutputDamagedError, OutputTooNewError, OutputUnreachableError, UsageError
from clipfleet.store.place import STORE_FILE, EmbeddedBy, StoreFile, StorePlace, store_place

DEMO = EmbeddedBy(model="demo")


@pytest.fixture
def place(tmp_path: Path) -> StorePlace:
    return store_place(str(tmp_path / "store"))


def test_there_is_none_at_first(place: StorePlace) -> None:
    assert place.read_if_there() is None
    with pytest.raises(UsageError, match="there is no store; `clipfleet backfill` makes one"):
        place.read()


def test_vectors_without_a_description_are_no_new_store(place: StorePlace) -> None:
    place.create(DEMO)
    Path(place.dataset_uri("0" * 16), "data").mkdir(parents=True)
    Path(place.uri, STORE_FILE).unlink()

    for look in (place.read_if_there, place.read):
        with pytest.raises(OutputDamagedError, match=r"store\.json is gone, .*0{16}\.lance is there: bring"):
            look()


def test_of_two_programs_that_make_one_the_first_decides(place: StorePlace) -> None:
    made = place.create(DEMO)

    assert place.create(EmbeddedBy(model="other")) == made == place.read()


def test_names(place: StorePlace) -> None:
    assert place.dataset_uri("0" * 16) == f"{place.uri}/{'0' * 16}.lance"
    assert place.job_output("night") == f"{place.uri}/_jobs/night"


def test_a_change_sees_what_others_have_changed_meanwhile(place: StorePlace) -> None:
    place.create(DEMO)
    seen: list[StoreFile] = []

    def change(store: StoreFile) -> StoreFile:
        seen.append(store)
        if len(seen) == 1:
            place.change(lambda one: with_current(one, decode=DecodeRoute.EXACT))
        return with_current(store, dimension=512)

    after = place.change(change)

    assert len(seen) == 2
    assert (after.current.decode, after.current.dimension) == (DecodeRoute.EXACT, 512)
    assert place.read() == after


def with_current(store: StoreFile, **values: Any) -> StoreFile:
    return store.model_copy(update={"current": store.current.model_copy(update=values)})


def test_a_change_to_the_same_writes_nothing(place: StorePlace) -> None:
    place.create(DEMO)
    path = Path(place.uri, STORE_FILE)
    before = path.stat().st_mtime_ns

    place.change(lambda one: one)

    assert path.stat().st_mtime_ns == before


def test_a_change_that_is_always_overtaken_ends(place: StorePlace) -> None:
    place.create(DEMO)
    path = Path(place.uri, STORE_FILE)

    def change(store: StoreFile) -> StoreFile:
        path.write_bytes(path.read_bytes() + b" ")
        return with_current(store, dimension=5)

    with pytest.raises(OutputUnreachableError, match="other programs change it all the time"):
        place.change(change)


@pytest.mark.parametrize(
    ("change", "error", "words"),
    [
        ({"schema_version": 2}, OutputTooNewError, "has version 2, this clipfleet reads 1: update clipfleet"),
        ({"store_id": "x"}, OutputDamagedError, "store_id"),
        ({"current": {"model": "demo", "fingerprint": "../../etc"}}, OutputDamagedError, "fingerprint"),
    ],
)
def test_what_this_version_does_not_write(
    place: StorePlace, change: dict[str, Any], error: type[Exception], words: str
) -> None:
    place.create(DEMO)
    path = Path(place.uri, STORE_FILE)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))

    with pytest.raises(error, match=words):
        place.read()


@pytest.mark.parametrize("text", ["", "{", "[]", "{}"])
def test_what_is_no_description(place: StorePlace, text: str) -> None:
    place.create(DEMO)
    Path(place.uri, STORE_FILE).write_text(text)

    with pytest.raises(
        OutputDamagedError, match="not the description of a store: restore it from a backup, or"
    ):
        place.read()


@pytest.mark.parametrize("below", ["", "/store"])
def test_a_file_is_no_place(tmp_path: Path, below: str) -> None:
    file = tmp_path / "list.csv"
    file.write_text("url\n")
    place = store_place(f"{file}{below}")

    for look in (place.look, place.read):
        with pytest.raises(UsageError, match=r"list\.csv is a file: name a folder"):
            look()
