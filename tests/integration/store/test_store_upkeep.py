"""`store changes`, `compact`, `vacuum` and `forget`, with a real Redis, in a folder and in S3."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from clipfleet import commands as cli
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.locks import LockLostError, Locks
from clipfleet.outputs import open_output
from clipfleet.store.committing.of_job import lock_name
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.maintenance import holding
from clipfleet.store.maintenance.files import stored_files
from clipfleet.store.maintenance.vacuum import vacuum
from clipfleet.store.place import StorePlace
from tests.support.crashing_store import IN_A_MONTH
from tests.support.held_stores import MINE, current, filling_job, item_ids, make_store
from tests.support.ledger import add_job
from tests.support.s3 import S3Bucket
from tests.support.store_rows import NO_ADDRESSES, item, stored_rows

Run = Callable[..., tuple[int, str, str]]
SECRET = "the-secret-id"
VECTOR = np.array([0.123, -4.56, 7.89, 0.0321], np.float16)


@pytest.fixture(params=["folder", "s3"])
def place(request: pytest.FixtureRequest, tmp_path: Path) -> StorePlace:
    """A store with versions 1 to 4."""
    if request.param == "folder":
        return make_store(tmp_path / "store", "ab", "c", "d")
    bucket: S3Bucket = request.getfixturevalue("s3")
    return make_store(f"{bucket.uri}/store", "ab", "c", "d")


@pytest.fixture
def run(redis_url: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `clipfleet store WORDS`; returns its exit code, stdout and stderr."""
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", redis_url)

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipfleet", "store", *words])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets one of its own
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


def lines(out: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in out.splitlines()]


def test_changes_are_lines_for_another_database(run: Run, place: StorePlace) -> None:
    *everything, end = lines(run("changes", place.uri, "--since", "0")[1])

    assert {one["op"] for one in everything} == {"upsert"}
    assert [one["item_id"] for one in everything] == [*"abcd"]
    assert everything[1]["embedding"] == [1.0, 1.0, 0.0, 0.0]
    assert everything[0]["listed_at"] == "2026-11-01T00:00:00+00:00"
    assert end == {"op": "end", "version": 4, "since": f"{MINE}:4"}

    dataset = current(place)
    (batch, *_) = dataset.batches(["item_id"], with_address=True)
    dataset.replace(batch["_rowaddr"].to_numpy()[:1], stored_rows([item("z")]).to_batches(), {}).compact()
    upsert, delete, end = lines(run("changes", place.uri, "--since", end["since"])[1])

    assert (upsert["op"], upsert["item_id"]) == ("upsert", "z")
    assert delete == {"op": "delete", "item_id": "a"}
    assert end["version"] == current(place).version
    assert [one["op"] for one in lines(run("changes", place.uri, "--since", "3", "--as-of", "4")[1])] == [
        "upsert",
        "end",
    ]


def test_changes_since_what_is_not_there(run: Run, place: StorePlace) -> None:
    assert run("changes", place.uri, "--since", "99")[0] == 2
    assert "no version 99 (any more)" in run("changes", place.uri, "--since", "99")[2]
    code, _, err = run("changes", place.uri, "--since", f"{'c' * 16}:4")

    assert code == 2
    assert "vectors of another model by now" in err
    assert "--since 0" in err


def test_a_store_is_compacted(run: Run, place: StorePlace) -> None:
    code, out, _ = run("compact", place.uri, "--json")

    (about,) = json.loads(out)["datasets"]
    assert (code, about["fingerprint"], about["files_before"], about["files"]) == (0, MINE, 3, 1)
    assert item_ids(current(place)) == [*"abcd"]
    assert json.loads(run("log", place.uri, "--json")[1])["versions"][0]["kind"] == "compact"
    assert f"{MINE}: 1 -> 1 file, version {about['version']}" in run("compact", place.uri)[2]


def test_vacuum_keeps_what_is_young(run: Run, place: StorePlace) -> None:
    code, out, _ = run("vacuum", place.uri, "--keep", "90m", "--json")

    assert code == 0
    assert json.loads(out) == {
        "store": place.uri, "versions": 0, "models": [], "jobs": [], "freed_bytes": 0,
    }  # fmt: skip
    assert f"{place.uri}: there is nothing to remove" in run("vacuum", place.uri)[2]
    assert [*current(place).times()] == [1, 2, 3, 4], "nor is a version added"
    for keep in ("59m", "0d"):
        code, _, err = run("vacuum", place.uri, "--keep", keep)
        assert (code, f"--keep {keep}: at least 1h" in err) == (2, True)
    assert "--keep '7': write days, hours or minutes" in run("vacuum", place.uri, "--keep", "7")[2]


def test_vacuum_spares_what_jobs_of_the_ledger_need(
    place: StorePlace, ledger: Ledger, redis_url: str
) -> None:
    add_job(ledger, job=filling_job(place, "night", base_version=2))

    with holding.held_store(place, redis_url, print) as held:
        done = vacuum(held, timedelta(days=7), IN_A_MONTH)

    assert done.versions == 1
    assert [*current(place).times()] == [2, 3, 4]


def test_nothing_of_a_forgotten_item_is_left(run: Run, place: StorePlace) -> None:
    rows = stored_rows([item(SECRET)], embedding=VECTOR.tolist()).to_batches()
    current(place).replace(NO_ADDRESSES, rows, {})
    assert files_with_it(place)

    code, out, err = run("forget", place.uri, SECRET, "nothing")

    assert (code, out) == (0, "")
    assert "erased 1 item, and 1 earlier version that held them" in err
    assert "not in the store: nothing" in err
    assert "remove the items there, too" in err
    assert files_with_it(place) == []
    assert item_ids(current(place)) == [*"abcd"]


def files_with_it(place: StorePlace) -> list[str]:
    """Files that hold the id or the vector."""
    output, found = open_output(place.uri), []
    for one in stored_files(place):
        data = output.read(one.name) or b""
        if SECRET.encode() in data or VECTOR.tobytes() in data:
            found.append(one.name)
    return found


def test_ids_to_forget_may_stand_in_a_file(run: Run, place: StorePlace, tmp_path: Path) -> None:
    (tmp_path / "ids").write_text("a\n\nb\n")

    found = json.loads(run("forget", place.uri, "--file", str(tmp_path / "ids"), "--json")[1])

    assert (found["forgotten"], found["missing"]) == (["a", "b"], [])
    assert item_ids(current(place)) == ["c", "d"]
    assert "name the items" in run("forget", place.uri)[2]
    assert "an ID is empty" in run("forget", place.uri, "c", "")[2]
    assert item_ids(current(place)) == ["c", "d"]
    code, _, err = run("forget", place.uri, "nothing")
    assert (code, "nothing was erased" in err, "not in the store: nothing" in err) == (0, True, True)
    assert "no-file: No such file" in run("forget", place.uri, "--file", "no-file")[2]


def test_jobs_are_read_after_the_lock_was_taken(
    run: Run, place: StorePlace, ledger: Ledger, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another program submits a job, and only then releases the store."""
    other = Locks(redis_url).held(lock_name(place.read().store_id))
    other.__enter__()

    def submit_and_release(_: float) -> None:
        add_job(ledger, job=filling_job(place, "late"))
        other.__exit__(None, None, None)

    monkeypatch.setattr(holding.time, "sleep", submit_and_release)
    code, _, err = run("forget", place.uri, "a")

    assert code == 2
    assert "have not ended: late; wait for them" in err
    assert "waiting for another program that writes to the store" in err
    assert item_ids(current(place)) == [*"abcd"]


def test_a_lost_lock_ends_the_work(run: Run, place: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost(*_: object, **__: object) -> None:
        raise LockLostError

    monkeypatch.setattr(VectorDataset, "compact", lost)
    code, _, err = run("compact", place.uri)

    assert code == 1
    assert "run the command again" in err
