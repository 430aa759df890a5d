"""`python -m clipfleet_worker`, and the command `clipfleet-worker`."""

from __future__ import annotations

from collections.abc import Callable

from clipfleet.terminal.loading import load_and_run


def _commands() -> Callable[[], None]:
    from clipfleet.allocator import choose_allocator

    choose_allocator()
    from clipfleet_worker.cli.commands import main

    return main


def main() -> None:
    """Load the commands, then run them."""
    load_and_run(_commands)


if __name__ == "__main__":
    main()
