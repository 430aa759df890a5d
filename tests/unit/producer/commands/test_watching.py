"""`clipfleet watch`: which jobs it follows, and how it ends."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import typer

from clipfleet import client as clients
from clipfleet import commands as cli
from clipfleet.client import Client
from clipfleet.commands.watching import follow_all
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.memory import MemoryLedger
from tests.support.doubles import Clock
from tests.support.ledger import add_job

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> MemoryLedger:
    ledger = MemoryLedger(now=clock)
    monkeypatch.setattr(clients, "Ledger", lambda *_, **__: ledger)
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", "redis://nowhere.invalid/0")
    return ledger


@pytest.fixture
def run(
    ledger: MemoryLedger, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipfleet", *words])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets one of its own
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


def follow(*steps: Callable[[], object], as_json: bool = False) -> int:
    """Follow all jobs; between two looks one step happens. Returns the exit code."""
    left: Iterator[Callable[[], object]] = iter(steps)
    with Client() as client, pytest.raises(typer.Exit) as end:
        follow_all(client, as_json=as_json, sleep=lambda _: next(left)())
    assert list(left) == []
    return end.value.exit_code


def nothing() -> None:
    pass


def test_without_a_running_job_it_says_so_and_what_to_do(run: Run, ledger: MemoryLedger) -> None:
    add_job(ledger)
    ledger.cancel("job", ttl_seconds=60)

    code, out, err = run("watch", "--all")

    assert (code, out) == (0, "")
    assert err.startswith("no job is running; submit one with `clipfleet classify ")
    assert "`clipfleet jobs`" in err


@pytest.mark.parametrize("words", [["watch"], ["watch", "job", "--all"]])
def test_one_job_or_all_of_them(run: Run, ledger: MemoryLedger, words: list[str]) -> None:
    add_job(ledger)

    code, out, err = run(*words)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "--all" in err


def test_jobs_appear_and_end_while_it_watches(
    ledger: MemoryLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    add_job(ledger, "one")

    code = follow(
        nothing,
        lambda: add_job(ledger, "two"),
        lambda: ledger.cancel("one", ttl_seconds=60),
        lambda: ledger.fail("two", "the disk is full", ttl_seconds=60),
    )

    assert code == 1
    lines = capsys.readouterr().err.splitlines()
    assert [line.split(" in ")[0] for line in lines] == ["one cancelled", "two failed"]


def test_the_exit_code_says_whether_all_have_completed(ledger: MemoryLedger) -> None:
    add_job(ledger, "one")
    assert follow(lambda: ledger.cancel("one", ttl_seconds=60)) == 4


def test_each_job_that_ends_is_a_line_of_json(
    ledger: MemoryLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("one", "two"):
        add_job(ledger, name)

    follow(*(lambda name=name: ledger.cancel(name, ttl_seconds=60) for name in ("two", "one")), as_json=True)

    captured = capsys.readouterr()
    found = [json.loads(line) for line in captured.out.splitlines()]
    assert [(one["job_id"], one["state"], one["task"]) for one in found] == [
        ("two", "cancelled", "embed"), ("one", "cancelled", "embed"),
    ]  # fmt: skip
    assert captured.err == ""


def test_an_outage_of_redis_is_waited_out(
    ledger: MemoryLedger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    add_job(ledger)
    unfinished, answers = ledger.unfinished, iter([True, False, False, True, True, True])

    def sometimes(*args: object, **options: object) -> object:
        if next(answers):
            return unfinished(*args, **options)  # type: ignore[arg-type]
        raise RedisUnavailableError("Redis does not answer")

    monkeypatch.setattr(ledger, "unfinished", sometimes)

    code = follow(nothing, nothing, nothing, lambda: ledger.cancel("job", ttl_seconds=60))

    assert code == 4
    assert capsys.readouterr().err.count("Redis does not answer; waiting for it") == 1


def test_ctrl_c_ends_it_with_a_line_about_the_jobs(
    ledger: MemoryLedger, capsys: pytest.CaptureFixture[str]
) -> None:
    add_job(ledger)

    def interrupt() -> None:
        raise KeyboardInterrupt

    assert follow(interrupt) == 130
    assert capsys.readouterr().err == (
        "The jobs go on without this terminal. Watch them again with `clipfleet watch --all`\n"
    )
    assert ledger.status("job").state == "running"
