"""The group `store`: what it prints, and the mistakes of its callers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from clipfleet import commands as cli
from clipfleet.store.committing.of_job import commit_gone, commit_job
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.indexing import build_index
from clipfleet.store.maintenance.compacting import compact
from clipfleet.store.maintenance.forgetting import forget
from clipfleet.store.place import EmbeddedBy, Migration, StorePlace, store_place
from tests.support.held_stores import held
from tests.support.store_jobs import job_with, row
from tests.support.store_rows import LISTED_AT, NO_ADDRESSES, item, make_dataset, stored_rows

MINE = "a" * 16
Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def run(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `clipfleet store WORDS` beside the store; returns its exit code and what it prints."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipfleet", "store", *words])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets one of its own
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def place(folder: Path) -> StorePlace:
    """A store with two items, and a third one that is gone."""
    place = store_place(str(folder / "vectors"))
    place.create(EmbeddedBy(model="demo", fingerprint=MINE, dimension=4))
    dataset = make_dataset(place.dataset_uri(MINE), [item("a"), item("b")])
    gone = stored_rows([item("c")], gone_at=LISTED_AT).to_batches()
    counts = json.dumps({"new": 0, "gone": 1})
    dataset.replace(NO_ADDRESSES, gone, {"kind": "backfill", "job_id": "night", "counts": counts})
    return place


def test_info_needs_no_redis(run: Run, place: StorePlace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", "redis://127.0.0.1:1/0")

    code, out, err = run("info", place.uri)
    assert (code, out.splitlines()[-1], err) == (0, "jobs         unknown (Redis is away)", "")

    code, out, _ = run("info", place.uri, "--json")
    assert (code, json.loads(out)["jobs"]) == (0, None)


def test_info_says_what_a_store_holds(run: Run, place: StorePlace) -> None:
    code, out, _ = run("info", "vectors", "--json")

    found = json.loads(out)
    assert (code, found["store"], found["store_id"]) == (0, place.uri, place.read().store_id)
    assert (found["model"], found["fingerprint"], found["dimension"]) == ("demo", MINE, 4)
    assert (found["version"], found["versions"], found["rows"], found["gone"]) == (3, 3, 2, 1)
    assert found["bytes"] > 1000
    assert (found["migration"], found["index"], found["jobs"]) == (None, None, None)
    lines = run("info", "vectors")[1].splitlines()
    assert "model        demo, precision auto" in lines
    assert "rows         2, and 1 of gone items" in lines


def test_info_names_a_migration(run: Run, place: StorePlace) -> None:
    began_at = datetime(2026, 11, 30, 22, tzinfo=UTC)
    migration = Migration(migration_id="d" * 32, to=EmbeddedBy(model="new"), began_at=began_at)
    place.change(lambda store: store.model_copy(update={"migration": migration}))

    assert json.loads(run("info", "vectors", "--json")[1])["migration"]["to"]["model"] == "new"
    assert "migration    to new, since 2026-11-30 22:00:00" in run("info", "vectors")[1]


def test_a_store_before_its_first_night(run: Run, folder: Path) -> None:
    store_place(str(folder / "new")).create(EmbeddedBy(model="demo"))

    assert json.loads(run("info", "new", "--json")[1])["rows"] == 0
    assert "none yet: no job that fills the store has finished" in run("info", "new")[1]
    assert run("log", "new")[0] == 2


def test_log_lists_versions_from_the_newest_on(run: Run, place: StorePlace) -> None:
    newest, _, first = json.loads(run("log", "vectors", "--json")[1])["versions"]

    assert (newest["version"], newest["kind"], newest["job_id"]) == (3, "backfill", "night")
    assert newest["counts"] == {"new": 0, "gone": 1}
    assert (first["version"], first["kind"], first["job_id"], first["counts"]) == (1, "create", None, {})
    committed = VectorDataset.open(place.dataset_uri(MINE)).times()[3]
    assert datetime.fromisoformat(newest["at"]) == committed
    assert f"      3  {committed:%Y-%m-%d %H:%M:%S}  backfill  night  1 gone" in run("log", "vectors")[1]


def test_log_counts_the_items_that_no_job_had_to_ask(run: Run, place: StorePlace) -> None:
    night = {"fingerprint": MINE, "base_version": 3, "same": 59}
    job, output = job_with(place, [[row("d"), row("a", "same")]], "second", **night)
    commit_job(place, job, output, 1, "")
    target = job.store
    assert target is not None
    commit_gone(place, target, lambda: [pa.RecordBatch.from_pydict({"item_id": ["d"], "digest": [5]})])

    third, second, *_ = json.loads(run("log", "vectors", "--json")[1])["versions"]

    assert (second["counts"]["new"], second["counts"]["late"]) == (1, 1), "another image is in the store"
    assert second["counts"]["same"] == 59
    assert (third["counts"]["gone"], third["counts"]["same"]) == (1, 59)
    assert "1 new, 59 same, 1 late" in run("log", "vectors")[1]


def test_log_names_compactions_also_beside_an_index(run: Run, place: StorePlace) -> None:
    build_index(VectorDataset.open(place.dataset_uri(MINE)))
    before = [one["version"] for one in json.loads(run("log", "vectors", "--json")[1])["versions"]]

    compact(held(place))

    code, out, err = run("log", "vectors", "--json")
    assert (code, err) == (0, "")
    kinds = {one["version"]: one["kind"] for one in json.loads(out)["versions"]}
    made = [kind for version, kind in kinds.items() if version not in before]
    assert {*made} == {"compact"}
    assert run("log", "vectors")[1].count(" compact ") == len(made)
    assert run("export", "vectors", "--to", "now", "--as-of", "2999-01-01")[0] == 0


def test_log_says_how_many_items_were_forgotten(run: Run, place: StorePlace) -> None:
    forget(held(place), ["a", "b", "none"])

    newest = json.loads(run("log", "vectors", "--json")[1])["versions"][0]
    assert (newest["kind"], newest["counts"]) == ("forget", {"forgotten": 2})
    assert " forget " in (line := run("log", "vectors")[1].splitlines()[2])
    assert line.rstrip().endswith("2 forgotten")


def test_export_writes_a_snapshot_also_of_an_earlier_version(run: Run, place: StorePlace) -> None:
    code, out, _ = run("export", "vectors", "--to", "new", "--format", "parquet", "--json")
    about = {"store": place.uri, "version": 3, "to": "new", "format": "parquet"}
    assert (code, json.loads(out)) == (0, {**about, "rows": 2})

    earlier = run("export", "vectors", "--to", "old", "--as-of", "1", "--vector-type", "float32")

    assert (earlier[0], earlier[2]) == (0, "0 rows of version 1 -> old\n")
    found = pq.read_table("new")
    assert found["item_id"].to_pylist() == ["a", "b"]
    assert found.schema.metadata[b"fingerprint"] == MINE.encode()
    assert run("export", "vectors", "--to", "new")[2].endswith(
        "new is not empty: choose another folder, or remove what is there\n"
    )
    assert "no version 9" in run("export", "vectors", "--to", "newer", "--as-of", "9")[2]


def test_changes_are_json_lines_whether_asked_for_or_not(run: Run, place: StorePlace) -> None:
    assert run("changes", "vectors", "--since", "0", "--json") == run("changes", "vectors", "--since", "0")


def test_changes_since_a_later_version_are_refused(run: Run, place: StorePlace) -> None:
    code, out, err = run("changes", "vectors", "--since", "3", "--as-of", "2")

    assert (code, out) == (2, "")
    assert "--since 3 is version 3, and --as-of 2 the earlier version 2" in err
    assert run("changes", "vectors", "--since", "2", "--as-of", "2")[0] == 0


def test_index_needs_the_locks_of_redis(run: Run, place: StorePlace) -> None:
    code, out, err = run("index", "vectors")

    assert (code, out) == (2, "")
    assert "CLIPFLEET_REDIS_URL is not set" in err


@pytest.mark.parametrize("command", ["info", "log"])
def test_where_no_store_is(run: Run, command: str) -> None:
    code, out, err = run(command, "nothing")

    assert (code, out) == (2, "")
    assert "nothing: there is no store; `clipfleet backfill` makes one" in err
    assert run(command, " ")[2].startswith("error: Invalid value for 'STORE': empty value")
