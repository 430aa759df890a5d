"""`python -m clipfleet_worker`, and the command `clipfleet-worker`."""

from __future__ import annotations

from clipfleet.terminal.loading import run_main
from clipfleet_worker.process.start import choose_allocator


def main() -> None:
    """Load the commands, then run them."""
    choose_allocator()
    run_main("clipfleet_worker.cli.commands")


if __name__ == "__main__":
    main()
