"""`clipfleet backfill`: what it prints, its exit codes, and the mistakes of its callers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pytest

from clipfleet import commands as cli
from clipfleet.backfill import outcome
from clipfleet.backfill.migrating import StoreMigration, abandon_migration
from clipfleet.backfill.night import Backfill
from clipfleet.backfill.opening import listed_source
from clipfleet.commands.stores import backfill
from clipfleet.ledger.values import WorkerFacts
from tests.support.backfills import FINGERPRINTS, Nights
from tests.support.documents import ROOT

Run = Callable[..., tuple[int, str, str]]

# The base install: the extra brings numpy, too.
WITHOUT_LANCE = """
import importlib.util, sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in ("lance", "numpy"):
            raise ModuleNotFoundError(name)

sys.meta_path.insert(0, Blocked())
whole = importlib.util.find_spec
importlib.util.find_spec = lambda name, package=None: None if name == "lance" else whole(name, package)
from clipfleet.commands import main
main()
"""


class FakeClient:
    """A client without Redis, whose jobs run when they are waited for."""

    def __init__(self, nights: Nights) -> None:
        self._nights = nights
        self.facts: list[WorkerFacts] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...

    def workers(self) -> list[WorkerFacts]:
        return self.facts

    def backfill(self, source: str, store: str, *, options: Any, on_listed: Any) -> Backfill:
        opened = partial(listed_source, source, options, self._nights.place.uri)
        return Backfill(self._nights.services, self._nights.place, opened, options, on_listed)

    def migrate(
        self, source: str, store: str, *, options: Any, most_failed: float | None, on_listed: Any
    ) -> StoreMigration:
        opened = partial(listed_source, source, options, self._nights.place.uri)
        return StoreMigration(
            self._nights.services, self._nights.place, opened, options, most_failed, on_listed
        )

    def abandon_migration(self, store: str) -> bool:
        return abandon_migration(self._nights.services, self._nights.place)


@pytest.fixture
def nights(folder: Path) -> Nights:
    """A store beside a folder `photos` with three files; the third one fails."""
    photos = folder / "photos"
    photos.mkdir()
    for name in "abc":
        (photos / f"{name}.jpg").write_bytes(name.encode())
    nights = Nights(folder / "store")
    nights.images[f"{photos}/c.jpg"] = None
    return nights


@pytest.fixture
def client(nights: Nights, monkeypatch: pytest.MonkeyPatch) -> FakeClient:
    made = FakeClient(nights)
    monkeypatch.setattr(backfill, "open_client", lambda: made)
    return made


@pytest.fixture
def run(client: FakeClient, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs `clipfleet backfill WORDS --store store`; returns its exit code and what it prints."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipfleet", "backfill", *words, "--store", "store"])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets one of its own
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


def test_the_numbers_of_a_night(run: Run, nights: Nights) -> None:
    code, out, err = run("photos", "-m", "demo", "--json")

    found = json.loads(out)
    assert (code, err) == (3, "")
    assert found.pop("seconds") >= 0
    assert found == {
        "store": nights.place.uri, "version": 2, "new": 2, "changed": 0, "same": 0, "gone": 0, "failed": 1,
        "copied": 0, "fetched_bytes": 200, "left": 0, "late": 0, "job_id": nights.ledger.jobs()[0].job_id,
        "state": "completed_with_errors",
    }  # fmt: skip


def test_a_night_in_words(run: Run, nights: Nights) -> None:
    code, out, err = run("photos", "-m", "demo")

    done, failed = err.splitlines()
    assert (code, out) == (3, "")
    assert done.startswith("Done in ")
    assert done.endswith(
        f": 2 new, 0 changed, 0 the same, 0 gone, 1 failed. {nights.place.uri} has version 2"
    )
    assert failed.startswith("failed items keep the vectors they had, and are tried again next time: ")
    assert Path(failed.split()[-1]).read_text() == '{"item_id": "c.jpg"}\n'


@pytest.mark.parametrize(
    ("fail_on", "code"), [("any", 3), ("never", 0), ("0.3", 3), ("0.34", 0), ("1", 0), ("0", 3)]
)
def test_failures_end_it_with_code_3_if_they_matter(run: Run, fail_on: str, code: int) -> None:
    assert run("photos", "-m", "demo", "--fail-on", fail_on)[0] == code


def test_a_limited_night_says_so(run: Run, nights: Nights) -> None:
    nights.images.clear()
    code, _, err = run("photos", "-m", "demo", "--max-items", "2")

    assert (code, err.splitlines()[-1]) == (0, "1 item above --max-items: run it again for them")


@pytest.mark.parametrize(("fail_on", "code"), [("any", 3), ("never", 0), ("0.5", 0)])
def test_items_that_other_backfills_were_faster_with_each_time(
    run: Run, nights: Nights, monkeypatch: pytest.MonkeyPatch, fail_on: str, code: int
) -> None:
    nights.images.clear()
    for photo in Path("photos").iterdir():
        os.utime(photo, (time.time() + 3600,) * 2)  # each time it may have been written once more
    run("photos", "-m", "demo")
    whole = outcome.of_job
    monkeypatch.setattr(
        outcome, "of_job", lambda *it: replace(found := whole(*it), counts=replace(found.counts, late=1))
    )
    words = ("photos", "--fail-on", fail_on)

    code_of_json, out, _ = run(*words, "--json")
    assert (code_of_json, json.loads(out)["late"]) == (code, 1)
    code_of_words, _, err = run(*words)
    assert code_of_words == code
    assert err.splitlines()[-1].startswith("1 item of this night came late: other backfills have changed")


def test_a_dry_run(run: Run, nights: Nights) -> None:
    code, out, _ = run("photos", "-m", "demo", "--dry-run", "--json")
    assert (code, json.loads(out)) == (
        0, {"store": nights.place.uri, "items": 3, "new": 3, "to_check": 0, "same": 0, "gone": 0, "left": 0}
    )  # fmt: skip

    err = run("photos", "-m", "demo", "--dry-run", "--max-items", "1")[2]
    assert err == (
        "would run 3 items of 3: 3 new, 0 that may have changed, 2 of them in another night; 0 the same, "
        "0 gone; nothing was changed\n"
    )
    assert (nights.place.read_if_there(), nights.ledger.jobs()) == (None, [])


def test_without_waiting_it_prints_the_job(run: Run, nights: Nights, client: FakeClient) -> None:
    client.facts = [WorkerFacts("w", "host", 1, ("demo",))]
    code, out, err = run("photos", "-m", "demo", "--no-wait", "--json")

    job_id = nights.ledger.jobs()[0].job_id
    found = {"store": nights.place.uri, "job_id": job_id, "is_another": False}
    assert (code, json.loads(out)) == (0, found)
    assert "no connected worker can commit to a store: install the extra" in err

    client.facts = [WorkerFacts("w", "host", 1, ("demo",), fills_stores=True)]
    err = run("photos", "-m", "demo", "--no-wait")[2]
    assert err.startswith("an earlier backfill is in progress, run this one after it: follow job ")
    assert "no connected worker" not in err


@pytest.mark.parametrize("words", [(), ("--json",)])
def test_without_waiting_a_night_that_has_ended_prints_its_result(
    run: Run, nights: Nights, words: tuple[str, ...]
) -> None:
    named = ("photos", "-m", "demo", "--job-id", "monday", *words)
    first = run(*named)

    again = run(*named, "--no-wait")

    assert (first[0], again[0]) == (3, 3)
    if words:
        assert json.loads(again[1]) | {"seconds": 0} == json.loads(first[1]) | {"seconds": 0}
    else:
        assert "2 new, 0 changed, 0 the same, 0 gone, 1 failed" in again[2]


def test_so_does_one_without_anything_to_run(run: Run, nights: Nights) -> None:
    nights.images.clear()
    for photo in Path("photos").iterdir():
        os.utime(photo, (time.time() - 3600,) * 2)
    run("photos", "-m", "demo")
    Path("photos/a.jpg").unlink()

    found = json.loads(run("photos", "--no-wait", "--json")[1])

    assert (found["gone"], found["same"], found["job_id"]) == (1, 2, None)


def test_a_job_that_was_cancelled(run: Run, nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nights, "work", lambda job: nights.ledger.cancel(job.job_id, ttl_seconds=60))

    code, _, err = run("photos", "-m", "demo")

    assert (code, "is cancelled: nothing was committed; run it again" in err) == (4, True)


def test_a_job_that_has_failed(run: Run, nights: Nights, monkeypatch: pytest.MonkeyPatch) -> None:
    reason = "output_refused: start the worker with a folder above it"
    monkeypatch.setattr(nights, "work", lambda job: nights.ledger.fail(job.job_id, reason, ttl_seconds=60))

    code, _, err = run("photos", "-m", "demo")

    said, reason = err.splitlines()
    assert (code, said.endswith("nothing was committed; deal with the reason, then run it again")) == (
        1,
        True,
    )
    assert reason.endswith("start the worker with a folder above it")


def test_a_migration(run: Run, nights: Nights) -> None:
    run("photos", "-m", "demo")
    nights.images[f"{nights.place.uri.removesuffix('store')}photos/b.jpg"] = None

    code, out, err = run("photos", "--migrate", "-m", "new:one", "--json")
    assert (code, json.loads(out)["switched"]) == (3, False)

    code, _, err = run("photos", "--migrate", "-m", "new:one", "--fail-on", "0.5")
    assert code == 0
    assert "store has the new vectors now" in err
    assert nights.place.read().current.fingerprint == FINGERPRINTS["new:one"]


def test_a_migration_is_abandoned(run: Run, nights: Nights) -> None:
    run("photos", "-m", "demo")
    nights.images = dict.fromkeys(
        [f"{nights.place.uri.removesuffix('store')}photos/{name}.jpg" for name in "abc"]
    )
    assert run("photos", "--migrate", "-m", "new:one")[0] == 3

    assert (
        run("--abandon-migration", "--json")[1] == f'{{"store": "{nights.place.uri}", "abandoned": true}}\n'
    )
    assert run("--abandon-migration")[2] == "there is no migration\n"


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "SOURCE is missing: give a folder"),
        (("photos", "--fail-on", "some"), "--fail-on 'some' is neither never, any nor a share from 0 to 1"),
        (("photos", "--fail-on", "1.5"), "--fail-on '1.5' is neither"),
        (("photos", "--migrate", "--no-wait"), "--no-wait does not go with --migrate"),
        (("photos", "--migrate", "--max-items", "3"), "--max-items does not go with --migrate"),
        (("none",), "does not exist"),
        (("photos", "--keep-gone", "99999999999"), "Invalid value for '--keep-gone': '99999999999' is more"),
        (("photos", "--keep-gone", "0.5"), "Invalid value for '--keep-gone': '0.5' is not a whole number"),
        ((".",), "store lies in the source: name a folder or prefix outside it"),
        (("store/inner/..",), "store lies in the source"),
    ],
)
def test_mistakes(run: Run, folder: Path, words: tuple[str, ...], message: str) -> None:
    (folder / "store" / "inner").mkdir(parents=True)

    code, out, err = run(*words)

    assert (code, out) == (2, "")
    assert message in err


@pytest.mark.parametrize("source", ["list.txt", "./*.jpg", "photos"])
def test_a_store_may_stand_beside_a_list_or_among_the_files_of_a_pattern(
    run: Run, folder: Path, source: str
) -> None:
    (folder / "list.txt").write_text("photos/a.jpg\n")
    (folder / "d.jpg").write_bytes(b"d")

    assert run(source, "-m", "demo", "--dry-run")[0] == 0


@pytest.mark.parametrize("words", [("photos",), ("photos", "--migrate", "-m", "x"), ("--abandon-migration",)])
def test_without_the_extra_it_says_how_to_get_it(folder: Path, words: tuple[str, ...]) -> None:
    run = subprocess.run(
        [sys.executable, "-c", WITHOUT_LANCE, "backfill", *words, "--store", "store"],
        capture_output=True, text=True, check=False, cwd=folder,
        env=os.environ | {"CLIPFLEET_REDIS_URL": "redis://127.0.0.1:1/0", "PYTHONPATH": str(ROOT)},
    )  # fmt: skip

    assert run.stderr == "error: stores need Lance: pip install 'clipfleet[store]'\n"
    assert (run.returncode, run.stdout, [*folder.iterdir()]) == (2, "", [])
