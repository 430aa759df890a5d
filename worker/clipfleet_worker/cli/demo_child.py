"""The producer's side of the demo, as a process beside `up`."""

from __future__ import annotations

import sys
from pathlib import Path


def main() -> None:
    """Label the samples; the argument is the demo's folder. A Ctrl-C prints no traceback."""
    try:
        from clipfleet.errors import ClipfleetError
        from clipfleet.terminal.console import say_error
        from clipfleet_worker.cli import demo

        try:
            sys.exit(demo.label_samples(Path(sys.argv[1])))
        except ClipfleetError as error:
            say_error(error)
            sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
