"""Nights of a store: the second one, with nothing new, beside the first.

    python -m ops.bench.backfill [--images 3000] [--sources files,http] [--cache FOLDER]

ViT-B-32 with random weights, JPEGs of 640x480, named by a list: as files, which the command compares by size
and time of change, and as URLs of a server with ETags, which the worker asks one by one. The first night
embeds all but one of a hundred, the second finds nothing new, the third has one of a hundred that is new.
Seconds are those of `clipfleet backfill`, its start included (1 to 2 s); the worker is warm.
"""

from __future__ import annotations

import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from ops.bench.file_server import serving
from ops.bench.pile import DEFAULT_CACHE, MODEL, hub_environment, image_folder
from ops.bench.report import Report, Table, bench_parser, names_of, positive
from tests.support.cluster import Cluster

MOST_OF_THE_FIRST = 0.15

_SOURCES = ("files", "http")
_WARM_UP_IMAGES = 64
_NIGHT_SECONDS = 1800.0


class Nights:
    """Nights of one source into one store."""

    def __init__(self, cluster: Cluster, source: str, images: Sequence[str]) -> None:
        self._cluster = cluster
        self._images = images
        self._list = cluster.folder / f"{source}.txt"
        self._store = cluster.folder / f"store-{source}"

    def run(self, images: int, **expected: int) -> float:
        """Seconds of a night over the first images; they must be treated as expected."""
        self._list.write_text("".join(f"{image}\n" for image in self._images[:images]))
        words: list[str | Path] = ["backfill", self._list, "--store", self._store, "--model", MODEL]
        began = time.monotonic()
        night = self._cluster.run_json(*words, seconds=_NIGHT_SECONDS)
        seconds = time.monotonic() - began
        found = {name: night[name] for name in ("new", "changed", "same", "gone", "failed") if night[name]}
        if found != expected:
            raise SystemExit(f"a night found {found}, not {expected}")
        return seconds


@contextmanager
def running(cache: Path, images: Path) -> Iterator[Cluster]:
    """A cluster with one warm worker, on all cores."""
    settings = hub_environment(cache) | {
        "CLIPFLEET_MODELS": MODEL,
        "CLIPFLEET_FILE_ROOTS": str(images),
        "OMP_NUM_THREADS": str(len(os.sched_getaffinity(0))),
    }
    with (
        tempfile.TemporaryDirectory(prefix="clipfleet-bench-") as folder,
        Cluster(Path(folder), settings) as cluster,
    ):
        worker = cluster.start_worker()
        some = cluster.folder / "warm-up.txt"
        some.write_text("".join(f"{path}\n" for path in sorted(images.iterdir())[:_WARM_UP_IMAGES]))
        words: list[str | Path] = ["embed", some, "--model", MODEL, "--output", cluster.folder / "warm-up"]
        cluster.run_json(*words, seconds=_NIGHT_SECONDS)
        yield cluster
        worker.terminate()


def measure(report: Report, table: Table, nights: Nights, source: str, images: int) -> None:
    """Three nights, as a row and a goal."""
    fresh = max(1, images // 100)
    old = images - fresh
    first = nights.run(old, new=old)
    second = nights.run(old, same=old)
    third = nights.run(images, new=fresh, same=old)
    table.row(source, first, second, third, second / first)
    report.goal(f"{source}: second night / first night", second / first, at_most=MOST_OF_THE_FIRST)


def main() -> int:
    """Print a table; return 1 if a goal is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--images", type=positive, default=3000)
    parser.add_argument("--sources", type=names_of(_SOURCES), default=",".join(_SOURCES))
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="default: %(default)s")
    options = parser.parse_args()
    images = image_folder(options.cache, options.images)
    names = sorted(path.name for path in images.iterdir())
    with (
        Report("backfill", options.json) as report,
        running(options.cache, images) as cluster,
        serving(images) as port,
    ):
        table = report.table(
            {"source": "<8", "first s": "8.1f", "second s": "8.1f", "third s": "8.1f", "ratio": "6.3f"},
            f"{options.images} JPEGs 640x480, ViT-B-32; the third night has 1 % new",
        )
        bases = {"files": str(images), "http": f"http://127.0.0.1:{port}"}
        for source in options.sources:
            nights = Nights(cluster, source, [f"{bases[source]}/{name}" for name in names])
            measure(report, table, nights, source, options.images)
    return report.exit_code


if __name__ == "__main__":
    sys.exit(main())
