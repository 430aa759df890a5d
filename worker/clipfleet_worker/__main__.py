"""`python -m clipfleet_worker` and `clipfleet-worker`. A Ctrl-C during the imports prints no traceback."""

from __future__ import annotations

import sys

from clipfleet_worker.process.start import choose_allocator


def main() -> None:
    """Load the commands, then run them."""
    choose_allocator()
    try:
        from clipfleet_worker.cli.commands import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
