"""`python -m clipfleet`, and the command `clipfleet`."""

from __future__ import annotations

from clipfleet.terminal.loading import run_main


def main() -> None:
    """Load the commands, then run them."""
    run_main("clipfleet.commands")


if __name__ == "__main__":
    main()
