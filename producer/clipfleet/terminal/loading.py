"""Loads a command line. Imports nothing else, so that it is there before an early Ctrl-C."""

from __future__ import annotations

import sys
from importlib import import_module


def run_main(module: str) -> None:
    """Import a module and call its `main`. A Ctrl-C during the import prints no traceback (exit code 130)."""
    try:
        main = import_module(module).main
    except KeyboardInterrupt:
        sys.exit(130)
    main()
