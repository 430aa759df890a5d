"""The doctor's frame: findings in order, a time for each check, and what it asks Redis for."""

from __future__ import annotations

import re
import threading
from collections.abc import Iterator

import pytest

from clipfleet_worker.doctor import Check, CheckBroke, Finding, Level, examine, fine, problem
from clipfleet_worker.doctor.redis_rights import COMMANDS
from tests.support.acl_users import USERS_FILE

# What any user may do, and what only connecting needs.
EVERYBODYS = {"HELLO", "AUTH", "PING", "SELECT", "CLIENT SETNAME", "CLIENT SETINFO", "CLIENT ID"}
TRANSACTIONS = {"MULTI", "EXEC", "WATCH", "UNWATCH"}


def scripted(name: str, script: Iterator[Finding], limit_seconds: float = 30.0) -> Check:
    return Check(name, limit_seconds, lambda: script)


def hanging(forever: threading.Event) -> Iterator[Finding]:
    yield fine("first")
    forever.wait()


def broken() -> Iterator[Finding]:
    yield fine("first")
    raise RuntimeError("a bug")


def test_all_checks_are_heard_in_their_order() -> None:
    checks = [scripted("a", iter([fine("1"), problem("2", "do")])), scripted("b", iter([fine("3")]))]

    assert list(examine(checks)) == [
        Finding(Level.OK, "1", "", "a"),
        Finding(Level.PROBLEM, "2", "do", "a"),
        Finding(Level.OK, "3", "", "b"),
    ]


def test_a_check_that_hangs_is_left_alone() -> None:
    forever = threading.Event()
    checks = [scripted("a", hanging(forever), limit_seconds=0.05), scripted("b", iter([fine("3")]))]

    found = list(examine(checks))
    forever.set()

    assert [(one.check, one.level) for one in found] == [("a", "ok"), ("a", "problem"), ("b", "ok")]
    assert "0.05 s" in found[1].what and found[1].remedy


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")  # it is what is shown
def test_a_bug_is_not_hidden() -> None:
    findings = examine([scripted("a", broken())])

    assert next(findings).what == "first"
    with pytest.raises(CheckBroke, match="the check a"):
        next(findings)


def test_it_asks_for_the_rights_that_the_workers_user_has() -> None:
    (line,) = [line for line in USERS_FILE.read_text().splitlines() if "clipfleet-worker" in line]
    granted = {name.upper().replace("|", " ") for name in re.findall(r" \+([\w|]+)", line)}

    assert {command[0] for command in COMMANDS} == granted - EVERYBODYS - TRANSACTIONS
