"""One-time settings of a worker process: of Python and Arrow in processes of their own, and open files."""

from __future__ import annotations

import os
import resource
import subprocess
import sys
from typing import Any

import pytest

from clipfleet_worker.process.start import raise_open_files_limit

ALLOCATOR = ("ARROW_DEFAULT_MEMORY_POOL", "MALLOC_ARENA_MAX")
INFINITE = resource.RLIM_INFINITY


def run_python(code: str, environment: dict[str, str] | None = None) -> str:
    clean = {name: value for name, value in os.environ.items() if name not in ALLOCATOR}
    environment = clean | (environment or {})
    argv = [sys.executable, "-c", code]
    return subprocess.run(argv, env=environment, capture_output=True, text=True, check=True).stdout.strip()


@pytest.mark.parametrize(
    ("environment", "pool"), [({}, "system"), ({"ARROW_DEFAULT_MEMORY_POOL": "mimalloc"}, "mimalloc")]
)
def test_commands_use_malloc_unless_the_variable_is_set(environment: dict[str, str], pool: str) -> None:
    code = (
        "import sys; sys.argv = ['clipfleet-worker', '--help']\n"
        "from clipfleet_worker.__main__ import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "import pyarrow; print(pyarrow.default_memory_pool().backend_name)"
    )
    assert run_python(code, environment).splitlines()[-1] == pool


def test_modules_are_not_looked_at_by_the_collector_and_garbage_still_is() -> None:
    code = """
import gc, weakref
from clipfleet_worker.process.start import calm_collector
calm_collector()
class Node: pass
node = Node(); node.itself = node
seen = weakref.ref(node)
del node
assert seen() is not None
gc.collect()
print(gc.get_freeze_count() > 1000, seen() is None, gc.get_threshold()[0] > 700)
"""
    assert run_python(code) == "True True True"


@pytest.mark.parametrize(
    ("soft", "hard", "expected"),
    [
        (1024, 1_048_576, 65_536), (1024, 4096, 4096), (1024, INFINITE, 65_536),
        (100_000, 1_048_576, 100_000), (4096, 4096, 4096), (INFINITE, INFINITE, INFINITE),
    ],
)  # fmt: skip
def test_the_soft_limit_is_raised_not_lowered(soft: int, hard: int, expected: int, monkeypatch: Any) -> None:
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda kind: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda kind, both: limits.append(both))
    raise_open_files_limit(connections=256)
    assert limits[-1] == (expected, hard)


@pytest.mark.parametrize(("connections", "warned"), [(256, False), (1000, True)])
def test_too_few_files_are_reported(connections: int, warned: bool, monkeypatch: Any, caplog: Any) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda kind: (4096, 4096))
    raise_open_files_limit(connections=connections)
    assert ("ulimit -n" in caplog.text) is warned
