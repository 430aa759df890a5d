"""`make chaos` in small: a run of some seconds ends as promised; a system that loses rows is found."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from clipfleet.redis.connection import connect
from ops.chaos.history import read_history
from ops.chaos.scales import SCALES
from ops.chaos.schedule import make_schedule
from ops.chaos.sentinel import SentinelPair
from ops.chaos.servers import SingleRedis, fake_time_library
from tests.conftest import service_is_missing
from tests.support.documents import ROOT
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.figures, pytest.mark.timeout(600), pytest.mark.usefixtures("chaos_servers")]

RUN_SECONDS = 500


def chaos(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    """A run of its own; one that hangs stops what it has started, as for Ctrl-C."""
    command = [sys.executable, "-m", "ops.chaos.run", "--folder", folder, *arguments]
    with subprocess.Popen(
        command, cwd=ROOT, env=os.environ | {"COLUMNS": "130"}, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    ) as running:  # fmt: skip
        try:
            out, err = running.communicate(timeout=RUN_SECONDS)
        except BaseException:
            running.send_signal(signal.SIGINT)
            with suppress(subprocess.TimeoutExpired):
                running.communicate(timeout=60)
            running.kill()
            raise
    return subprocess.CompletedProcess(command, running.returncode, out, err)


def test_a_run_of_some_seconds_ends_as_promised(tmp_path: Path) -> None:
    result = chaos(tmp_path, "--scale", "mini", "--seed", "1", "--keep")

    assert result.returncode == 0, result.stdout + result.stderr
    (folder,) = tmp_path.iterdir()
    events = list(read_history(folder / "history.jsonl"))
    begun = {event["number"]: event["kind"] for event in events if event["what"] == "fault"}
    assert begun == {fault.number: fault.kind for fault in make_schedule(1, SCALES["mini"])}
    assert sum(event["what"] == "job_ended" for event in events) >= 6
    print(result.stdout)


def test_a_worker_without_the_ledger_loses_or_doubles(tmp_path: Path) -> None:
    """The same faults and checker: it can fail. Which rows are hit is chance: a few seeds are tried."""
    results, plain = [], ("--scale", "mini", "--system", "plain-acks", "--must-fail")
    for seed in range(1, 5):
        results.append(chaos(tmp_path, *plain, "--seed", str(seed)))
        if results[-1].returncode == 0:
            break

    assert results[-1].returncode == 0, "\n".join(result.stdout + result.stderr for result in results)
    print(results[-1].stdout)


def test_a_failover_by_sentinel_keeps_what_was_acknowledged(tmp_path: Path) -> None:
    with SentinelPair(tmp_path) as pair:
        before = pair.primary_port
        with connect(pair.primary_url) as client:
            client.set("clipfleet:written", "before")
        seconds = pair.fail_over()

        assert pair.primary_port != before
        with connect(pair.primary_url) as client:
            assert client.get("clipfleet:written") == "before"
    print(f"Sentinels named the other one {seconds:.1f} s after the primary was killed")


def test_the_clock_of_the_server_jumps_and_stays_where_it_is_put(tmp_path: Path) -> None:
    if fake_time_library() is None:
        service_is_missing("Debian's package faketime")

    def ahead_seconds() -> float:
        with connect(redis.direct_url) as client:
            now: Any = client.time()
        return float(now[0]) - time.time()

    with SingleRedis(tmp_path) as redis:
        for seconds, wanted in ((3600, 3600), (-600, 3000)):
            redis.move_clock(seconds)
            wait_until(lambda wanted=wanted: abs(ahead_seconds() - wanted) < 60, f"{wanted} s ahead")
        redis.kill()
        redis.start_again()

        assert abs(ahead_seconds() - 3000) < 60


def test_the_schedule_is_printed_and_depends_on_the_seed_alone(tmp_path: Path) -> None:
    first, again, other = (
        chaos(tmp_path, "--scale", "short", "--seed", seed, "--schedule").stdout for seed in ("7", "7", "8")
    )

    assert first == again
    assert first != other
    assert first.splitlines() == [str(fault) for fault in make_schedule(7, SCALES["short"])]
