"""What a worker asks of Python and Arrow, each in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest


def run_python(code: str, environment: dict[str, str] | None = None) -> str:
    clean = {name: value for name, value in os.environ.items() if name != "ARROW_DEFAULT_MEMORY_POOL"}
    return subprocess.run(
        [sys.executable, "-c", code],
        env=clean | (environment or {}),
        capture_output=True,
        text=True,
        check=True,
    ).stdout.strip()


@pytest.mark.parametrize(
    ("environment", "pool"), [({}, "system"), ({"ARROW_DEFAULT_MEMORY_POOL": "mimalloc"}, "mimalloc")]
)
def test_the_commands_of_a_worker_use_malloc_unless_told_otherwise(
    environment: dict[str, str], pool: str
) -> None:
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
