"""The commit of a job: from its parts and its list of gone items to the store, once."""

from __future__ import annotations

from pathlib import Path

import pyarrow as pa
import pytest

from clipfleet.errors import OutputConflictError, OutputDamagedError, OutputUnavailableError
from clipfleet.store.committing.commit import Counts
from clipfleet.store.committing.of_job import JobCommit, SupersededError, commit_gone, commit_job
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.gone_items import write_gone
from clipfleet.store.place import EmbeddedBy, Migration, StoreFile, StorePlace, store_place
from tests.support.store_jobs import job_with, row
from tests.support.store_rows import DIMENSION, LISTED_AT

MINE, OTHER = "a" * 16, "b" * 16


@pytest.fixture
def place(tmp_path: Path) -> StorePlace:
    place = store_place(str(tmp_path / "store"))
    place.create(EmbeddedBy(model="demo"))
    return place


def ids(place: StorePlace, fingerprint: str = MINE) -> list[str]:
    dataset = VectorDataset.open(place.dataset_uri(fingerprint))
    return sorted(name for batch in dataset.batches(["item_id"]) for name in batch["item_id"].to_pylist())


def current(place: StorePlace) -> EmbeddedBy:
    return place.read().current


def migrating(place: StorePlace) -> str:
    migration = Migration(migration_id="d" * 32, to=EmbeddedBy(model="new"), began_at=LISTED_AT)
    place.change(lambda store: store.model_copy(update={"migration": migration}))
    return migration.migration_id


def test_a_first_job_makes_the_dataset_and_then_the_store_says_so(place: StorePlace) -> None:
    job, output = job_with(place, [[row("a"), row("b")], [row("c"), row("d", "failed")]])

    done = commit_job(place, job, output, 2, MINE)

    assert done == JobCommit(2, MINE, Counts(new=3, failed=1))
    assert ids(place) == ["a", "b", "c"]
    assert (current(place).fingerprint, current(place).dimension) == (MINE, DIMENSION)
    assert commit_job(place, job, output, 2, MINE) == done


def test_a_second_job_changes_it(place: StorePlace) -> None:
    commit_job(place, *job_with(place, [[row("a"), row("b")]]), 1, MINE)
    job, output = job_with(place, [[row("c")]], "second", fingerprint=MINE, base_version=2)
    gone = pa.RecordBatch.from_pydict({"item_id": ["a"], "digest": [5]})
    assert write_gone(output, [gone]) == write_gone(output, [gone]) == 1

    done = commit_job(place, job, output, 1, "")

    assert (done.counts, ids(place)) == (Counts(new=1, gone=1), ["b", "c"])


def test_nothing_is_committed_where_nothing_could_be_embedded(place: StorePlace) -> None:
    for fingerprint in ("", MINE):
        job, output = job_with(place, [[row("a", "failed")]], f"job-{fingerprint}")
        assert commit_job(place, job, output, 1, fingerprint) == JobCommit(0, "", Counts(failed=1))

    assert current(place).fingerprint is None


def test_vectors_that_are_gone_are_not_replaced_by_those_of_one_night(place: StorePlace) -> None:
    commit_job(place, *job_with(place, [[row("a"), row("b")]]), 1, MINE)
    job, output = job_with(place, [[row("c")]], "second", fingerprint=MINE, base_version=2)
    assert job.store is not None
    Path(place.dataset_uri(MINE)).rename(place.dataset_uri(OTHER))

    with pytest.raises(OutputDamagedError, match="is gone"):
        commit_job(place, job, output, 1, MINE)
    with pytest.raises(OutputDamagedError, match="is gone"):
        commit_gone(place, job.store, lambda: ())
    assert not Path(place.dataset_uri(MINE)).exists()


def test_a_migration_to_the_vectors_that_the_store_has_commits_nothing(place: StorePlace) -> None:
    commit_job(place, *job_with(place, [[row("a")]]), 1, MINE)
    job, output = job_with(place, [[row("b")]], "moving", migration_id=migrating(place))

    with pytest.raises(SupersededError, match=f"has the vectors of {MINE} already"):
        commit_job(place, job, output, 1, MINE)
    assert ids(place) == ["a"]


def test_the_rows_say_which_model_made_them_where_redis_has_lost_that(place: StorePlace) -> None:
    job, output = job_with(place, [[row("a", "failed")], [row("b", "failed"), row("c")]])

    done = commit_job(place, job, output, 2, "")

    assert (done.fingerprint, done.counts) == (MINE, Counts(new=1, failed=2))
    assert (ids(place), current(place).fingerprint) == (["c"], MINE)


@pytest.mark.parametrize("model", [OTHER, None])
@pytest.mark.parametrize("pinned", [MINE, ""])
def test_vectors_of_several_models_are_not_committed(
    place: StorePlace, model: str | None, pinned: str
) -> None:
    job, output = job_with(place, [[row("a")], [row("b", "failed"), row("c", model=model)]])

    with pytest.raises(
        OutputConflictError, match=rf"night has .* {MINE} and {model or 'none'}, .* backfill` again"
    ):
        commit_job(place, job, output, 2, pinned)

    assert current(place).fingerprint is None


def test_vectors_of_no_known_model_are_not_failed_items(place: StorePlace) -> None:
    job, output = job_with(place, [[row("a", model=None)]])

    with pytest.raises(OutputConflictError, match="fingerprints none and none"):
        commit_job(place, job, output, 1, "")


def test_a_killed_commit_goes_on(place: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    job, output = job_with(place, [[row("a")]])
    change = StorePlace.change
    monkeypatch.setattr(StorePlace, "change", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        commit_job(place, job, output, 1, MINE)
    monkeypatch.setattr(StorePlace, "change", change)

    assert commit_job(place, job, output, 1, MINE).counts == Counts(new=1)
    assert (ids(place), current(place).fingerprint) == (["a"], MINE)


def test_a_job_of_a_model_that_the_store_has_no_more_is_superseded(place: StorePlace) -> None:
    commit_job(place, *job_with(place, [[row("a")]]), 1, MINE)

    for target, pinned in ({"fingerprint": OTHER}, ""), ({}, OTHER):
        job, output = job_with(place, [[row("b")]], f"late-{pinned}", **target)
        with pytest.raises(SupersededError, match=f"fingerprint {MINE} by now"):
            commit_job(place, job, output, 1, pinned)

    assert ids(place) == ["a"]


def test_a_migration_fills_its_own_dataset_and_leaves_the_current_one(place: StorePlace) -> None:
    commit_job(place, *job_with(place, [[row("a")]]), 1, MINE)
    migration = migrating(place)

    rows = [row("a", model=OTHER), row("b", model=OTHER)]
    job, output = job_with(place, [rows], "new", migration_id=migration)
    commit_job(place, job, output, 1, OTHER)

    store: StoreFile = place.read()
    assert (ids(place), ids(place, OTHER), store.current.fingerprint) == (["a"], ["a", "b"], MINE)
    assert store.migration is not None
    assert (store.migration.to.model, store.migration.to.fingerprint) == ("new", OTHER)


def test_a_job_of_a_migration_that_has_ended_is_superseded(place: StorePlace) -> None:
    job, output = job_with(place, [[row("a")]], migration_id="c" * 32)
    with pytest.raises(SupersededError, match="has ended"):
        commit_job(place, job, output, 1, OTHER)

    migrating(place)
    with pytest.raises(SupersededError, match="has ended"):
        commit_job(place, job, output, 1, OTHER)


def test_another_store_at_the_same_place_is_left_alone(place: StorePlace) -> None:
    job, output = job_with(place, [[row("a")]], store_id="e" * 32)

    with pytest.raises(OutputConflictError, match="holds another store by now"):
        commit_job(place, job, output, 1, MINE)


def test_a_missing_part_commits_nothing(place: StorePlace) -> None:
    job, output = job_with(place, [[row("a")]])

    with pytest.raises((FileNotFoundError, OutputUnavailableError)):
        commit_job(place, job, output, 2, MINE)

    assert current(place).fingerprint is None
