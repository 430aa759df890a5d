"""Collects the tests of the ledger once, and runs some of them in a fork for each request.

Started as a script with a folder and what pytest is to collect. Requests come as lines of JSON on standard
input, answers go to standard output. It imports nothing of `ops`, for the tests may be those of another tree.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import select
import signal
import sys
import time
import traceback
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

import pytest

_PROBE = re.compile(rb" @([\w.]+)$", re.MULTILINE)
_PR_SET_PDEATHSIG, _PR_SET_CHILD_SUBREAPER = 1, 36
_LOGS = "valkey.log"
_READ_BYTES = 1 << 22


class ForkingHost:
    """A plugin of pytest in place of its loop over the tests."""

    def __init__(self, requests: TextIO, answers: TextIO, folder: Path) -> None:
        self._requests = requests
        self._answers = answers
        self._folder = folder
        self._failure = ""

    def pytest_configure(self) -> None:
        """Never look for a smaller example of a failure: that takes minutes."""
        from hypothesis import Phase, settings

        init = settings.__init__

        def without_shrinking(self: settings, *positional: Any, **options: Any) -> None:
            if "phases" in options:
                options["phases"] = [phase for phase in options["phases"] if phase is not Phase.shrink]
            init(self, *positional, **options)

        setattr(settings, "__init__", without_shrinking)  # noqa: B010 - mypy allows no assignment to a method

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool | None:
        """Answer requests until there are no more."""
        if session.testsfailed:  # some could not be collected: pytest says so
            return None
        self._answer({"tests": [item.nodeid for item in session.items]})
        for line in self._requests:
            self._answer(self._run_forked(session, json.loads(line)))
        return True

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the first thing that fails."""
        if report.failed and not self._failure:
            lines = [line for line in report.longreprtext.splitlines() if line.startswith("E ")]
            self._failure = " ".join((lines or [report.when or ""])[0][1:].split()) or "failed"

    def _answer(self, answer: Mapping[str, Any]) -> None:
        self._answers.write(f"{json.dumps(answer)}\n")
        self._answers.flush()

    def _run_forked(self, session: pytest.Session, request: Mapping[str, Any]) -> Mapping[str, Any]:
        reading, writing = os.pipe()
        pid = os.fork()
        if pid == 0:
            os.close(reading)
            self._run_and_exit(session, request, writing)
        os.close(writing)
        try:
            with os.fdopen(reading, "rb", buffering=0) as events:
                return _outcome(_events(events.fileno(), pid, request["limits"]))
        finally:
            _kill_children()

    def _run_and_exit(self, session: pytest.Session, request: Mapping[str, Any], events: int) -> None:
        """Run tests in this fork and exit without the clean-up of the host."""
        try:
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)  # else a test that hangs outlives all
            silence = os.open(os.devnull, os.O_RDWR)
            for descriptor in (0, 1, 2):
                os.dup2(silence, descriptor)
            for event in self._run(session, request):
                os.write(events, f"{json.dumps(event)}\n".encode())
            session.config.hook.pytest_sessionfinish(session=session, exitstatus=0)
        except BaseException:
            os.write(events, f"{json.dumps({'error': traceback.format_exc()})}\n".encode())
        finally:
            os._exit(0)

    def _run(self, session: pytest.Session, request: Mapping[str, Any]) -> Iterator[Mapping[str, Any]]:
        by_name = {item.nodeid: item for item in session.items}
        items = [by_name[name] for name in request["tests"]]
        for item, following in zip(items, [*items[1:], None], strict=True):
            yield {"begin": item.nodeid}
            began, self._failure = time.monotonic(), ""
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            seconds = round(time.monotonic() - began, 3)
            blocks = sorted(self._blocks_that_ran()) if request["is_survey"] else []
            yield {"end": item.nodeid, "seconds": seconds, "failure": self._failure, "blocks": blocks}
            if self._failure and not request["is_survey"]:
                return

    def _blocks_that_ran(self) -> set[str]:
        """Names that scripts with probes have written into the logs of servers since the last time."""
        found = set()
        for log in self._folder.rglob(_LOGS):
            with log.open("r+b") as file:
                while lines := file.readlines(_READ_BYTES):
                    found.update(_PROBE.findall(b"".join(lines)))
                file.truncate(0)
        return {name.decode() for name in found}


def _kill_children() -> None:
    """Servers that a killed test has left: they are ours, as nobody else reaps them."""
    children = Path(f"/proc/self/task/{os.getpid()}/children")
    while pids := children.read_text().split():
        for pid in map(int, pids):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def _end(*_: object) -> None:
    _kill_children()
    os._exit(128 + signal.SIGTERM)


def _events(descriptor: int, pid: int, limits: Mapping[str, float]) -> Iterator[Mapping[str, Any]]:
    """What a fork says, until it ends; one that says nothing for too long is killed."""
    rest, limit = b"", max(limits.values())
    while True:
        if not select.select([descriptor], [], [], limit)[0]:
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
            yield {"limit": limit}
            return
        received = os.read(descriptor, 1 << 16)
        if not received:
            os.waitpid(pid, 0)
            return
        *lines, rest = (rest + received).split(b"\n")
        for line in lines:
            event = json.loads(line)
            limit = limits.get(event.get("begin", ""), limit)
            yield event


def _outcome(events: Iterator[Mapping[str, Any]]) -> Mapping[str, Any]:
    """All that came of a request: the tests that ended, and what failed first."""
    running, ended = "", []
    failed: dict[str, str] = {}
    for event in events:
        if "begin" in event:
            running = event["begin"]
        elif "end" in event:
            running = ""
            ended.append({"test": event["end"], "seconds": event["seconds"], "blocks": event["blocks"]})
            if event["failure"]:
                failed.setdefault(event["end"], event["failure"])
        elif "limit" in event:
            failed.setdefault(running or "the end", f"not over after {event['limit']:.0f} s")
        else:
            return {"error": event["error"]}
    if running and not failed:
        failed[running] = "the process that ran it has ended"
    return {"ended": ended, "failed": failed}


def main(arguments: Sequence[str]) -> int:
    """Serve until standard input ends."""
    folder, *tests = arguments
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1)
    signal.signal(signal.SIGTERM, _end)
    requests, answers = os.fdopen(os.dup(0)), os.fdopen(os.dup(1), "w")
    log = os.open(f"{folder}/host.log", os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for descriptor, replaced in ((os.open(os.devnull, os.O_RDONLY), 0), (log, 1), (log, 2)):
        os.dup2(descriptor, replaced)
    servers = Path(folder, "tests")
    options = ["-q", "--capture=no", "-p", "no:cacheprovider", "--basetemp", str(servers)]
    return int(pytest.main([*options, *tests], plugins=[ForkingHost(requests, answers, servers)]))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
