"""How many threads decode, how many run the forward, how they wait: the rule of `thread_rule.py` is from here.

    python -m ops.bench.threads [--images 300] [--rounds 3] [--cache FOLDER]

The way from a folder to Parquet of `e2e.py`, on a warm worker, once per round with each set of settings.
"""

from __future__ import annotations

import statistics
import sys
import tempfile
from contextlib import ExitStack
from pathlib import Path

from ops.bench.e2e import Bench, Way
from ops.bench.pile import DEFAULT_CACHE
from ops.bench.report import Report, bench_parser
from ops.bench.rounds import in_turns, median_ratio

_DECODE, _BATCH, _FORWARD = "CLIPFLEET_DECODE_THREADS", "CLIPFLEET_BATCH_SIZE", "OMP_NUM_THREADS"
_BASE = "as it is"
GRID: dict[str, dict[str, str]] = {
    _BASE: {},
    "batch 64": {_BATCH: "64"},
    "batch 16": {_BATCH: "16"},
    "1 decodes": {_DECODE: "1"},
    "4 decode": {_DECODE: "4"},
    "1 runs the forward": {_FORWARD: "1"},
    "waiting threads sleep": {"OMP_WAIT_POLICY": "passive"},
    "they spin": {"OMP_WAIT_POLICY": "active"},
}


def main() -> int:
    """Measure the grid."""
    parser = bench_parser(__doc__)
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--sets", default=",".join(GRID), help="default: %(default)s")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="default: %(default)s")
    options = parser.parse_args()
    with (
        Report("threads", options.json) as report,
        tempfile.TemporaryDirectory(prefix="clipfleet-threads-") as folder,
        ExitStack() as children,
    ):
        bench = Bench(Path(folder), options.cache, options.images, children)
        ways = [Way(name, settings=GRID[name]) for name in options.sets.split(",")]
        routes = {way.name: lambda way=way: bench.worker(way).per_second for way in ways}
        found = in_turns(routes, options.rounds, warm_up=False)
        table = report.table({"settings": "<22", "images/s": "8.1f", "by the first": "12.3f"})
        for name, rates in found.items():
            table.row(name, statistics.median(rates), median_ratio(rates, found[ways[0].name]))
        report.fact("images_per_second", found)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
