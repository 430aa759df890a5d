"""How jobs are named at the command line, and what is shown of them and of workers."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from unittest.mock import Mock

import pytest

from clipfleet import client
from clipfleet import commands as cli
from clipfleet.contract.jobs import Job
from clipfleet.ledger.jobs import WorkerFacts
from clipfleet.ledger.memory import MemoryLedger
from clipfleet.outputs.folder import FolderOutput
from clipfleet.store.place import EmbeddedBy, store_place
from tests.support.doubles import Clock
from tests.support.jobs import place_job
from tests.support.ledger import (
    add_finishing_job,
    add_job,
    claim,
    claim_finish,
    complete,
    draft,
    make_job,
)
from tests.support.rows import add_part, row

Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def ledger(monkeypatch: pytest.MonkeyPatch, clock: Clock) -> MemoryLedger:
    """The ledger of all clients; each job is submitted a second after the one before."""
    ledger = MemoryLedger(now=clock)
    monkeypatch.setattr(client, "Ledger", lambda *_, **__: ledger)
    return ledger


@pytest.fixture
def run(
    ledger: MemoryLedger, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Run:
    """Runs `clipfleet WORDS` in an empty folder; returns its exit code and what it prints."""
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", "redis://nowhere.invalid/0")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["clipfleet", *words])
        monkeypatch.setattr(sys, "excepthook", sys.excepthook)  # typer sets one of its own
        with pytest.raises(SystemExit) as end:
            cli.main()
        captured = capsys.readouterr()
        return int(end.value.code or 0), captured.out, captured.err

    return run


@pytest.fixture
def newest(ledger: MemoryLedger, clock: Clock, folder: Path) -> Job:
    """The second of two jobs; the folder `out` is its output."""
    for job_id in ("older", "newer"):
        clock.now += 1
        job = add_job(ledger, job=make_job(job_id, output=str(folder / "out")))
    place_job(FolderOutput(folder / "out"), job)
    return job


@pytest.mark.parametrize("name", ["newer", "last", "out", "./out", "{folder}/out"])
def test_a_job_is_named_by_its_id_as_the_last_one_or_by_its_output(
    run: Run, ledger: MemoryLedger, newest: Job, folder: Path, name: str
) -> None:
    named = name.format(folder=folder)

    assert json.loads(run("status", named, "--json")[1])["job_id"] == "newer"
    assert run("pause", named)[2] == "job newer is paused\n"
    assert run("resume", named)[2] == "job newer is running\n"
    assert json.loads(run("cancel", named, "--json")[1]) == {
        "job_id": "newer", "state": "cancelled", "changed": True,
    }  # fmt: skip
    assert run("watch", named)[0] == 4
    assert ledger.status("older").state == "running"


def test_a_job_whose_finish_fails_says_why(run: Run, ledger: MemoryLedger) -> None:
    add_finishing_job(ledger)
    assert run("cancel", "job")[2] == "job job is finishing already\n"
    ledger.postpone_finish(claim_finish(ledger), 5, "ValueError: a bug")

    assert run("cancel", "job")[2] == (
        "job job is finishing already: its finish has failed, and is tried again (ValueError: a bug)\n"
    )
    assert "state    finishing (ValueError: a bug)" in run("status", "job")[1]


def test_last_is_the_newest_job_whatever_is_called_so_and_a_job_has_priority_over_a_folder(
    run: Run, ledger: MemoryLedger, newest: Job, clock: Clock, folder: Path
) -> None:
    for name in ("last", "out", "later"):  # the first one is of an older version
        clock.now += 1
        add_job(ledger, name)
    place_job(FolderOutput(folder / "last"), make_job("other", output=str(folder / "last")))

    for name, job_id in (("last", "later"), ("out", "out"), ("./out", "newer")):
        assert json.loads(run("status", name, "--json")[1])["job_id"] == job_id
    assert "/out: no results yet" in run("results", "last")[2]  # of the job, not of the folder


def test_a_new_job_cannot_be_called_last(run: Run, folder: Path) -> None:
    (folder / "a.jpg").touch()

    code, _, err = run("embed", "a.jpg", "--job-id", "last")

    assert (code, err) == (
        2, "error: job id 'last' is reserved: it names the newest job; choose another --job-id\n",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["", " "])
@pytest.mark.parametrize(
    "command",
    [
        "status", "watch", "cancel", "pause", "resume", "retry", "rebuild", "results",
        "export --layout csv --to new", "show 0 --job",
    ],
)  # fmt: skip
def test_an_empty_name_is_not_the_current_folder(
    run: Run, ledger: MemoryLedger, folder: Path, command: str, name: str
) -> None:
    job = add_job(ledger, job=make_job("job", output=str(folder)))
    place_job(FolderOutput(folder), job)

    code, out, err = run(*command.split(), name)

    assert (code, out) == (2, "")
    assert "empty value: give a job id, `last` or an output" in err
    assert ledger.status("job").state == "running"
    assert not (folder / "new").exists()


@pytest.mark.parametrize("command", ["status", "retry", "rebuild", "results", "export --layout csv --to new"])
@pytest.mark.parametrize("start", ["", "./"])
def test_a_name_that_is_too_long_for_a_file_is_an_error(run: Run, command: str, start: str) -> None:
    code, out, err = run(*command.split(), start + "x" * 300)

    assert (code in (1, 2), out, err.count("\n")) == (True, "", 1), err
    assert ("File name too long" if start else "No job 'xxx") in err


@pytest.mark.parametrize("command", ["status", "watch", "cancel", "pause", "resume", "retry", "results"])
@pytest.mark.parametrize(
    ("seconds", "words"),
    [("604800", "7 days"), ("86400", "1 day"), ("129600", "36 hours"), ("90", "90 seconds")],
)
def test_an_unknown_job_is_an_error_that_says_how_long_jobs_are_kept(
    run: Run, monkeypatch: pytest.MonkeyPatch, command: str, seconds: str, words: str
) -> None:
    monkeypatch.setenv("CLIPFLEET_JOB_TTL_SECONDS", seconds)

    assert run(command, "nope") == (
        2,
        "",
        f"error: No job 'nope'. Finished jobs are kept for {words}; older results can be read by their "
        "folder: `clipfleet results FOLDER`\n",
    )


def test_without_a_job_there_is_no_last_one(run: Run) -> None:
    assert run("status", "last") == (
        2, "", "error: no job has been submitted to this Redis yet, or all have expired\n",
    )  # fmt: skip


@pytest.mark.parametrize("name", ["./empty", "empty", "s3://"])
def test_an_output_without_a_job_is_named(run: Run, folder: Path, name: str) -> None:
    (folder / "empty").mkdir()

    code, out, err = run("status", name)

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert "no job has this output" in err or "write s3://BUCKET/PATH" in err


@pytest.mark.parametrize("command", ["status", "retry", "rebuild", "cancel"])
def test_a_store_that_is_taken_for_an_output_is_named(run: Run, folder: Path, command: str) -> None:
    store_place(str(folder / "vectors")).create(EmbeddedBy(model="demo"))

    code, out, err = run(command, "vectors")

    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{folder}/vectors is a store, not the output of a job: `clipfleet store log` lists" in err
    assert "`clipfleet backfill` tries failed items again" in err


def test_a_job_that_redis_has_lost_is_read_or_restored_by_its_output(run: Run, folder: Path) -> None:
    output = FolderOutput(folder / "out x")
    place_job(output, make_job("lost", output=output.uri))

    code, _, err = run("status", "./out x")

    assert code == 2
    assert "Redis no longer knows its job lost" in err
    assert "`clipfleet results './out x'`" in err
    assert "`clipfleet rebuild './out x'`" in err


def test_a_job_of_the_same_id_with_another_output_is_not_taken_for_it(
    run: Run, ledger: MemoryLedger, folder: Path
) -> None:
    place_job(FolderOutput(folder / "out"), make_job("job", output=str(folder / "out")))
    add_job(ledger, job=make_job("job", output="/elsewhere"))

    code, _, err = run("cancel", "./out")

    assert (code, "whose output is /elsewhere" in err) == (2, True)
    assert ledger.status("job").state == "running"


def test_jobs_show_what_they_do(run: Run, newest: Job, clock: Clock) -> None:
    clock.now += 90

    code, out, _ = run("jobs")
    listed = json.loads(run("jobs", "--json")[1])["jobs"]

    assert code == 0
    _, _, first, second = [line.split() for line in out.splitlines()]
    words = ["running", "embed", "/images", newest.output, "demo", "10", "0", "0"]
    assert [first[:9], second[:9]] == [["newer", *words], ["older", *words]]
    assert first[-4:] == ["1", "min", "30", "s"]
    expected = {"task": "embed", "source": "/images", "output": newest.output, "labels": "", "ok": 0}
    assert expected.items() <= listed[0].items()
    assert [(job["job_id"], job["age_seconds"], job["seconds"]) for job in listed] == [
        ("newer", 90.0, None), ("older", 91.0, None),
    ]  # fmt: skip


def test_the_status_of_an_ended_job_shows_how_long_it_took(
    run: Run, ledger: MemoryLedger, newest: Job, clock: Clock
) -> None:
    clock.now += 20
    ledger.cancel("newer", ttl_seconds=600)
    clock.now += 100

    lines = dict(line.split(maxsplit=1) for line in run("status", "last")[1].splitlines())

    assert lines["took"] == "20 s"
    assert lines["created"].endswith("UTC (2 min ago)")
    assert [lines[name] for name in ("task", "source", "output", "model", "state")] == [
        "embed", "/images", newest.output, "demo", "cancelled",
    ]  # fmt: skip
    assert (lines["rows"], lines["chunks"]) == (
        "0 ok, 0 failed", "0 of 1 done, 0 running, 0 waiting to retry",
    )  # fmt: skip


def test_workers_are_listed_with_what_they_serve_and_hold(
    run: Run, ledger: MemoryLedger, clock: Clock
) -> None:
    ledger.heartbeat(WorkerFacts("w-1", "host", 7, ("demo", "one:x"), "cuda", held_chunks=3, up_seconds=3700))
    clock.now += 5

    assert run("workers")[1].splitlines()[-1].split() == [
        "w-1", "host", "7", "cuda", "demo,", "one:x", "3", "1", "h", "1", "min", "5", "s", "ago",
    ]  # fmt: skip
    (found,) = json.loads(run("workers", "--json")[1])["workers"]
    assert found == {
        "worker_id": "w-1", "host": "host", "pid": 7, "models": ["demo", "one:x"], "device": "cuda",
        "held_chunks": 3, "up_seconds": 3700, "refused_jobs": [], "fills_stores": False,
            "silent_seconds": 5.0,
    }  # fmt: skip


def test_without_a_worker_the_way_out_is_named(run: Run) -> None:
    code, out, err = run("workers")

    assert (code, out) == (0, "")
    assert "no worker is connected: start one with `clipfleet-worker run --models MODEL`" in err
    assert json.loads(run("workers", "--json")[1]) == {"workers": []}


@pytest.mark.parametrize(
    ("code", "words"),
    [
        ("tiemout", "did you mean timeout? rows of this job failed with not_found;"),
        ("nope", "'nope': rows of this job failed with not_found; docs/reference/errors.md lists all codes"),
    ],
)
def test_an_unknown_error_code_is_an_error_that_names_the_codes_of_the_job(
    run: Run, ledger: MemoryLedger, code: str, words: str
) -> None:
    add_job(ledger, chunks=2)
    complete(ledger, claim(ledger), ok=9, failed=1)
    ledger.cancel("job", ttl_seconds=600)

    exit_code, _, err = run("retry", "job", "--codes", code)

    assert (exit_code, words in err, len(err) < 200) == (2, True, True), err


@pytest.mark.parametrize("command", ["retry", "rebuild"])
def test_a_job_whose_submit_was_interrupted_is_not_waited_for(
    run: Run, ledger: MemoryLedger, command: str
) -> None:
    add_job(ledger, sealed=False)
    begin_retry(ledger)

    code, out, err = run(command, "job")

    assert (code, out, err) == (
        1, "", "not all items of job job are staged: submit again with the same command and `--job-id job`\n",
    )  # fmt: skip
    assert run(command, "job", "--no-wait")[0] == 0


def begin_retry(ledger: MemoryLedger) -> None:
    """Retry a job with one chunk."""
    ledger.cancel("job", ttl_seconds=600)
    ledger.drafts.begin("job", "token")
    assert ledger.drafts.retry("job", "token", draft(1), generation=1)[0] == "started"


def test_seconds_are_of_the_job_where_a_command_joins_it(
    run: Run, ledger: MemoryLedger, clock: Clock, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("clipfleet.hints.Hints", Mock())
    (folder / "a.jpg").touch()
    submit = ("embed", "a.jpg", "-o", "out", "--job-id", "job", "--json")
    first = json.loads(run(*submit, "--no-wait")[1])
    clock.now += 60
    monkeypatch.setattr(ledger, "wait_for_progress", lambda *_: ledger.cancel("job", ttl_seconds=600))

    joined = json.loads(run(*submit)[1])

    assert (first["seconds"] < 60, joined["seconds"], joined["already_ended"]) == (True, 60.0, False)
    begin_retry(ledger)
    assert json.loads(run("retry", "job", "--json")[1])["seconds"] is None


def test_only_words_of_the_library_are_put_as_options_of_the_command_line(
    run: Run, ledger: MemoryLedger, clock: Clock, folder: Path
) -> None:
    output = str(folder / "q `output=` x")
    add_job(ledger, job=make_job(output=output))
    ledger.pause("job", "full: give another `output=`")

    lines = run("status", "job")[1].splitlines()

    assert f"output   {output}" in lines
    assert "state    paused (full: give another --output)" in lines
    assert f"-> {output}\n" in run("rebuild", "job", "--no-wait")[2]


def test_chosen_columns_are_printed_once_each_and_may_have_a_comma_in_their_name(
    run: Run, folder: Path
) -> None:
    rows = [{**row(0), "x,y": "far"}]
    add_part(FolderOutput(folder / "out"), 0, rows, extra=["x,y"])

    for layout, printed in (("csv", 'item_id,"x,y",status\nimg0,far,ok\n'), ("jsonl", None)):
        columns = 'item_id, "x,y",item_id,status'
        code, out, err = run("results", "./out", "--format", layout, "--columns", columns)
        assert (code, err) == (0, "")
        assert printed is None or out == printed
    assert json.loads(out) == {"item_id": "img0", "x,y": "far", "status": "ok"}


def test_a_handle_shows_its_job(ledger: MemoryLedger, run: Run, newest: Job) -> None:
    with client.Client() as producer:
        assert repr(producer.job("newer")) == f"<JobHandle newer: embed /images -> {newest.output}>"
