"""Run benches one after the other, each in a process of its own: `make bench`, `make bench decode tail`.

    python -m ops.bench [NAME ...] [-- OPTIONS of each]

It measures nothing itself. The next bench runs also if one fails or misses a goal.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import sys
from importlib.util import find_spec

BENCHES = (
    "forward",
    "decode",
    "s3_read",
    "e2e",
    "overhead",
    "submit",
    "ledger",
    "scale",
    "tail",
    "latency",
    "gateway",
    "moderation",
    "relabel",
    "replay",
    "backfill",
    "store_memory",
    "report_memory",
    "search",
    "gpu",
)


def main() -> int:
    """Run them; return 1 if one failed or missed a goal."""
    known = [name for name in BENCHES if find_spec(f"ops.bench.{name}")]
    words = sys.argv[1:]
    end = words.index("--") if "--" in words else len(words)
    own, passed_on = words[:end], words[end + 1 :]
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "names",
        nargs="*",
        metavar="NAME",
        help=f"of {', '.join(known)}; default: all, gpu where there is one",
    )
    names = parser.parse_args(own).names or [
        name for name in known if name != "gpu" or shutil.which("nvidia-smi")
    ]
    if unknown := [name for name in names if name not in known]:
        parser.error(f"there is no bench {unknown[0]!r}; there are {', '.join(known)}")
    codes = {}
    for name in names:
        print(f"\n=== {name}", flush=True)
        codes[name] = subprocess.run(
            [sys.executable, "-m", f"ops.bench.{name}", *passed_on], check=False
        ).returncode
    if failed := [name for name, code in codes.items() if code]:
        print(f"\nfailed, or missed a goal: {', '.join(failed)}")
    return 1 if any(codes.values()) else 0


if __name__ == "__main__":
    sys.exit(main())
