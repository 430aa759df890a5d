"""What a vacuum removes, and what it spares."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import lance
import pyarrow as pa
import pytest

from clipfleet.contract.jobs import Job, StoreVersion
from clipfleet.errors import OutputUnavailableError
from clipfleet.ledger.locks import LockLostError
from clipfleet.outputs import open_output
from clipfleet.outputs.job_file import job_of
from clipfleet.store import dataset as dataset_module
from clipfleet.store.dataset import VectorDataset, VersionConflictError
from clipfleet.store.maintenance.vacuum import Vacuumed, vacuum
from clipfleet.store.place import EmbeddedBy, Migration, StorePlace
from tests.support.held_stores import MINE, OTHER, filling_job, held, item_ids, lost, make_store
from tests.support.jobs import make_job, place_job
from tests.support.store_rows import NO_ADDRESSES, addresses_of, item, make_dataset, stored_rows
from tests.support.waiting import wait_until

KEEP = timedelta(days=7)
NOW = datetime.now(UTC)
IN_A_MONTH = NOW + timedelta(days=30)


@pytest.fixture
def place(tmp_path: Path) -> StorePlace:
    """A store with versions 1 to 4."""
    return make_store(tmp_path / "store", "ab", "c", "d")


def current(place: StorePlace) -> VectorDataset:
    return VectorDataset.open(place.dataset_uri(MINE))


def run(place: StorePlace, *jobs: Job, keep: timedelta = KEEP, now: datetime = IN_A_MONTH) -> Vacuumed:
    return vacuum(held(place, *jobs), keep, now)


def test_old_versions_go_and_the_rows_stay(place: StorePlace) -> None:
    done = run(place)

    assert done.versions == 3
    assert [*current(place).times()] == [4]
    assert item_ids(current(place)) == [*"abcd"]
    assert run(place) == Vacuumed()
    assert [*current(place).times()] == [4], "nothing was to be done"


def test_what_is_young_stays(place: StorePlace) -> None:
    assert run(place, now=NOW + timedelta(days=6)) == Vacuumed()
    assert run(place, keep=timedelta(0), now=NOW + timedelta(minutes=50)) == Vacuumed()
    assert len(current(place).times()) == 4


def test_a_version_is_as_old_as_the_one_after_it(place: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """It may have been the newest one for long when a search or a comparison began to read it."""
    reader, days = current(place), {1: 1, 2: 2, 3: 3, 4: 4, 5: 29}
    assert reader.version == 4
    reader.replace(addresses_of(reader, [item("a")]), stored_rows([item("a")]).to_batches(), {})
    times = VectorDataset.times
    monkeypatch.setattr(
        VectorDataset,
        "times",
        lambda dataset: {n: NOW + timedelta(days=days.get(n, 30)) for n in times(dataset)},
    )

    assert run(place).versions == 3

    assert [*times(current(place))] == [4, 5]
    assert item_ids(reader) == [*"abcd"]


def test_vectors_that_were_the_current_ones_until_now_stay(place: StorePlace) -> None:
    make_dataset(place.dataset_uri(OTHER), [item("a")])
    reader = current(place)
    age(place)

    place.change(lambda one: one.model_copy(update={"current": EmbeddedBy(model="new", fingerprint=OTHER)}))

    assert run(place, now=NOW + timedelta(days=6)).models == []
    assert item_ids(reader) == [*"abcd"]
    assert run(place).models == [MINE]


def age(place: StorePlace, days: int = 30) -> None:
    """Let all files of a store be so old."""
    then = (NOW - timedelta(days=days)).timestamp()
    for path in Path(place.uri).rglob("*"):
        os.utime(path, (then, then))


def test_versions_that_jobs_need_stay(place: StorePlace) -> None:
    labelling = StoreVersion(
        uri=place.uri, store_id=place.read().store_id, version=3, model_fingerprint=MINE, dimension=4
    )
    labels = make_job(labels=("cat",), vectors=labelling)

    assert run(place, labels).versions == 2
    assert [*current(place).times()] == [3, 4]


def test_a_job_that_fills_the_store_keeps_what_it_was_compared_with_and_what_came_later(
    place: StorePlace,
) -> None:
    """One of the later ones may have its commit."""
    assert run(place, filling_job(place, base_version=3)).versions == 2
    assert [*current(place).times()] == [3, 4]
    assert run(place, filling_job(place, base_version=3, fingerprint=OTHER)).versions == 1


def test_vectors_of_earlier_models_go_once_they_are_old(place: StorePlace) -> None:
    make_dataset(place.dataset_uri(OTHER), [item("a")])

    assert run(place, now=NOW + timedelta(days=6)).models == []
    assert run(place, filling_job(place, fingerprint=None)).models == []
    assert run(place, filling_job(place, fingerprint=OTHER)).models == []
    assert run(place, filling_job(place)).models == [OTHER]
    assert not Path(place.dataset_uri(OTHER)).exists()
    assert item_ids(current(place)) == [*"abcd"]


def test_a_migration_keeps_its_vectors(place: StorePlace) -> None:
    make_dataset(place.dataset_uri(OTHER), [item("a")])
    to = EmbeddedBy(model="new", fingerprint=OTHER, dimension=4)
    migration = Migration(migration_id="d" * 32, to=to, began_at=NOW)
    place.change(lambda store: store.model_copy(update={"migration": migration}))

    assert run(place).models == []
    assert item_ids(VectorDataset.open(place.dataset_uri(OTHER))) == ["a"]


def test_a_removal_that_was_killed_goes_on(place: StorePlace) -> None:
    make_dataset(place.dataset_uri(OTHER), [item("a")])
    for manifest in Path(place.dataset_uri(OTHER), "_versions").iterdir():
        manifest.unlink()

    assert run(place).models == [OTHER]
    assert not Path(place.dataset_uri(OTHER)).exists()


def test_outputs_of_ended_jobs_go_and_those_of_others_stay(place: StorePlace) -> None:
    ended, running = filling_job(place, "ended"), filling_job(place, "running", base_version=4)
    for job in (ended, running):
        place_job(open_output(job.output), job)

    assert run(place, running, now=NOW + timedelta(days=6)).jobs == []
    assert run(place, running).jobs == ["ended"]
    assert not Path(ended.output).exists()
    assert Path(running.output, "_clipfleet", "job.json").exists()
    assert Path(place.uri, "store.json").exists()


def test_files_of_killed_commits_go_an_hour_later(place: StorePlace) -> None:
    left = Path(place.dataset_uri(MINE), "data", "0101.lance")
    left.write_bytes(b"rows")

    vacuum(held(place), KEEP)
    assert left.exists(), "another program may be about to commit it"
    two_hours_ago = (NOW - timedelta(hours=2)).timestamp()
    os.utime(left, (two_hours_ago, two_hours_ago))
    vacuum(held(place), KEEP)

    assert not left.exists()
    assert current(place).properties == {"kind": "vacuum"}, "commits that began before are refused"
    assert item_ids(current(place)) == [*"abcd"]


def test_a_commit_that_stood_still_meanwhile_is_refused(place: StorePlace) -> None:
    """Its files may be gone."""
    stale = current(place)

    def rows_and_a_vacuum() -> Iterator[pa.RecordBatch]:
        yield from stored_rows([item("z")]).to_batches()
        run(place)

    with pytest.raises((VersionConflictError, OutputUnavailableError)):
        stale.replace(NO_ADDRESSES, rows_and_a_vacuum(), {})
    assert item_ids(current(place)) == [*"abcd"]


def test_scratch_files_go(place: StorePlace) -> None:
    scratch = Path(place.uri, "_clipfleet", "tmp", "x")
    scratch.parent.mkdir(parents=True, exist_ok=True)
    scratch.write_bytes(b"x")

    run(place)

    assert not scratch.exists()


def test_nothing_goes_from_a_store_that_was_lost_while_its_files_were_listed(place: StorePlace) -> None:
    job = filling_job(place, "ended")
    place_job(open_output(job.output), job)

    with pytest.raises(LockLostError):
        vacuum(lost(place), KEEP, IN_A_MONTH)

    assert len(current(place).times()) == 4
    assert job_of(open_output(job.output)) == job


def test_it_is_alive_while_versions_are_removed(place: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    """On S3 that may take longer than a lock lasts."""
    calls: list[str] = []
    removes = lance.LanceDataset.cleanup_old_versions

    def slow(*arguments: Any, **options: Any) -> Any:
        calls.append("removal")
        wait_until(lambda: calls[-1] == "alive", "it is alive")
        return removes(*arguments, **options)

    monkeypatch.setattr(lance.LanceDataset, "cleanup_old_versions", slow)
    monkeypatch.setattr(dataset_module, "_SIGN_OF_LIFE_SECONDS", 0.01)
    store = replace(held(place), alive=lambda: calls.append("alive"))

    assert vacuum(store, KEEP, IN_A_MONTH).versions == 3
