"""`python -m clipfleet`, and the command `clipfleet`. A Ctrl-C while it loads is no traceback."""

from __future__ import annotations

import sys


def main() -> None:
    """Load the commands, then run them."""
    try:
        from clipfleet.commands import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    run()


if __name__ == "__main__":
    main()
