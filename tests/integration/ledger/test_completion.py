"""What a shell is offered at Tab: commands and jobs, and nothing, at once, where Redis is away."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from clipfleet.ledger.jobs import Ledger
from tests.support.ledger import add_job


def complete(program: str, module: str, line: str, **environment: str) -> list[str]:
    """What bash is offered for the last word of a line; it must hear nothing else."""
    words = line.split(" ")
    found = subprocess.run(
        [sys.executable, "-m", module],
        env={
            **{name: value for name, value in os.environ.items() if not name.startswith("CLIPFLEET_")},
            f"_{program.replace('-', '_').upper()}_COMPLETE": "complete_bash",
            "COMP_WORDS": line,
            "COMP_CWORD": str(len(words) - 1),
            **environment,
        },
        capture_output=True,
        text=True,
        check=True,
    )
    assert found.stderr == ""
    return found.stdout.split()


def test_commands_are_offered() -> None:
    assert complete("clipfleet", "clipfleet", "clipfleet re") == [
        "relabel", "results", "report", "resume", "retry", "rebuild",
    ]  # fmt: skip
    assert complete("clipfleet-worker", "clipfleet_worker", "clipfleet-worker models p") == ["pull"]


def test_jobs_are_offered_newest_first(ledger: Ledger, redis_url: str) -> None:
    for job_id in ("nightly-1", "nightly-2", "other"):
        add_job(ledger, job_id)

    offered = complete("clipfleet", "clipfleet", "clipfleet watch nigh", CLIPFLEET_REDIS_URL=redis_url)

    assert offered == ["nightly-2", "nightly-1"]


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"CLIPFLEET_REDIS_URL": "redis://127.0.0.1:1/0"},
        {"CLIPFLEET_REDIS_URL": "http://x", "CLIPFLEET_REDIS_URLS": "a misspelt one"},
    ],
)
def test_without_redis_nothing_is_offered_nor_said(environment: dict[str, str]) -> None:
    assert complete("clipfleet", "clipfleet", "clipfleet watch x", **environment) == []


@pytest.mark.parametrize("program", ["clipfleet", "clipfleet-worker"])
def test_the_script_for_a_shell_is_printed(program: str) -> None:
    script = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m {program.replace('-', '_')} --show-completion; true"],
        capture_output=True,
        text=True,
        check=True,
    ).stdout

    assert f"_{program.replace('-', '_').upper()}_COMPLETE=complete_bash" in script
