"""`up` with a worker of the test's own: `python -m tests.support.up_with DIR MODULE ARGUMENT...`."""

from __future__ import annotations

import sys
from pathlib import Path

from clipfleet_worker.machine.up import Up

if __name__ == "__main__":
    directory, *program = sys.argv[1:]
    sys.exit(Up(Path(directory), worker_argv=[sys.executable, "-m", *program]).run())
