"""Loads a command line. Imports next to nothing, so that it is there before an early Ctrl-C."""

from __future__ import annotations

import sys
from collections.abc import Callable


def load_and_run(load: Callable[[], Callable[[], None]]) -> None:
    """Import a program, then run it. A Ctrl-C during the import prints no traceback (exit code 130)."""
    try:
        program = load()
    except KeyboardInterrupt:
        sys.exit(130)
    program()
