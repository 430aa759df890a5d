"""Another policy on stored vectors, beside moderating the images anew; and whether the changes are right.

    python -m ops.bench.replay [--items 100000] [--images 1000] [--rounds 3] [--cache FOLDER]

One worker has the default model (random weights, which do not change the speed) and the demo model. In each
round some JPEGs of 640x480 are moderated, from files to decided rows in a folder; then as many stored vectors
as there are items are replayed: both policies decide on each, the decisions are compared, and all changes are
written. `anew s` is extrapolated: the seconds of an image, by the ledger from the submit to the end of the
job, times the items. `replay s` is by the clock, from the call to its end.

`vectors` keeps the decided rows in a folder, `vectors, Redis` in Redis as without `--output`; `scores` has a
policy with other thresholds only, which needs no worker.

The changes of the demo model must be exactly those that open_clip (texts) and numpy (scores in double
precision, rules item by item) find; the few items are left out that have a score within 3e-6 of a threshold,
which rounding decides. The goals leave out that model with rows in Redis: these are slower than its forward
pass.
"""

from __future__ import annotations

import argparse
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from clipfleet.client import JobOptions
from clipfleet.contract.jobs import MAX_ITEMS_IN_REDIS, Precision
from clipfleet.replay.outcome import Replayed
from ops.bench.pile import DEFAULT_CACHE, MODEL, hub_environment, image_folder
from ops.bench.report import Report, Table, bench_parser, positive
from tests.support.cluster import Cluster
from tests.support.replays import (
    DIMENSION,
    mixed_vectors,
    place_output,
    require_judged_changes,
    write_policies,
)
from tests.support.stored_vectors import unit_vectors

LEAST_RATIO = 20.0

_DIMENSIONS = {"demo": DIMENSION, MODEL: 512}
_WARM_UP_IMAGES = 64
_SECONDS = 1800.0


class _Cluster(Cluster):
    """A cluster of one worker, which may use all cores."""

    def environment(self) -> dict[str, str]:
        found = super().environment()
        del found["OMP_NUM_THREADS"]
        return found


@dataclass(frozen=True, slots=True)
class Stored:
    """Vectors of one model, in a finished output, and three policies."""

    model: str
    folder: Path
    vectors: np.ndarray
    old: Path
    other: Path  # other thresholds and rules than `old`
    reworded: Path  # other prompts, too


def stored(cluster: Cluster, folder: Path, model: str, items: int) -> Stored:
    """Write vectors and policies of a model."""
    folder.mkdir()
    dimension = _DIMENSIONS[model]
    vectors = mixed_vectors(items) if model == "demo" else unit_vectors(0, items, dimension)
    options = JobOptions(model=model, precision=Precision.FP32 if model == "demo" else Precision.AUTO)
    job = cluster.client.embed_text(["a dog"], options=options)
    job.wait(_SECONDS)
    fingerprint = next(job.results())["model_fingerprint"]
    place_output(folder / "vectors", vectors, fingerprint, model=model, precision=options.precision)
    return Stored(model, folder, vectors, *write_policies(folder, model, dimension))


def seconds_anew(cluster: Cluster, policy: Path, images: Path, name: str) -> float:
    """Seconds of an image that is moderated, by the ledger's clock."""
    output = cluster.folder / name
    status = cluster.client.moderate(images, policy, options=JobOptions(output=output)).wait(_SECONDS)
    if status.failed or not status.ok:
        raise SystemExit(f"{status}: {cluster.logs()}")
    shutil.rmtree(output)
    return float(status.lasted_seconds) / status.total


def seconds_of_replay(cluster: Cluster, one: Stored, way: str) -> tuple[float, Replayed]:
    """Seconds of a replay, and what it has found; its changes are in `changes.parquet`."""
    options = JobOptions(output=one.folder / "decided", overwrite=True) if way == "vectors" else JobOptions()
    origin, policy, against = one.folder / "vectors", one.reworded, one.old
    if way == "scores":  # of the rows that a replay has kept
        origin, policy = one.folder / "decided" / "old", one.other
    began = time.perf_counter()
    found = cluster.client.replay(
        origin, policy, against=against, changes=one.folder / "changes.parquet", options=options
    )
    seconds = time.perf_counter() - began
    if found.items != len(one.vectors) or found.failed or found.from_scores != (way == "scores"):
        raise SystemExit(f"{way}: {found.document()}")
    return seconds, found


def require_exact(one: Stored, way: str) -> int:
    """Compare the changes with those of an independent computation; return their number."""
    policy = one.other if way == "scores" else one.reworded
    return len(require_judged_changes(one.folder / "changes.parquet", one.vectors, one.old, policy))


def main() -> int:
    """Print a table; return 1 if a goal is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--items", type=positive, default=MAX_ITEMS_IN_REDIS)
    parser.add_argument("--images", type=positive, default=1000)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="where images and weights are kept")
    options = parser.parse_args()
    with Report("replay", options.json) as report, tempfile.TemporaryDirectory() as temporary:
        images, warm_up = (image_folder(options.cache, n) for n in (options.images, _WARM_UP_IMAGES))
        settings = {
            **hub_environment(options.cache),
            "CLIPFLEET_MODELS": f"demo,{MODEL}",
            "CLIPFLEET_FILE_ROOTS": f"{options.cache},{temporary}",
        }
        with _Cluster(Path(temporary), settings) as cluster:
            worker = cluster.start_worker()
            ratios = _compare(report, cluster, options, images, warm_up)
            worker.terminate()
        for (model, way), found in ratios.items():
            if (model, way) == ("demo", "vectors, Redis"):
                continue
            report.goal(f"{model}, {way}: anew / replay", statistics.median(found), at_least=LEAST_RATIO)
    return report.exit_code


def _compare(
    report: Report, cluster: Cluster, options: argparse.Namespace, images: Path, warm_up: Path
) -> Mapping[tuple[str, str], list[float]]:
    """The ratios of all rounds, by model and way."""
    sides = {
        name: stored(cluster, cluster.folder / name, model, options.items)
        for name, model in (("ViT-B-32", MODEL), ("demo", "demo"))
    }
    table = report.table(
        {
            "model": "<8", "images/s": "8,.1f", "anew s": "9,.1f", "way": "<14", "replay s": "8.2f",
            "items/s": "10,.0f", "ratio": "8,.1f", "changes": "8,",
        },
        f"{options.items:,} stored vectors, against {options.images:,} images",
    )  # fmt: skip
    ratios: dict[tuple[str, str], list[float]] = {}
    for number in range(options.rounds):
        for name, one in sides.items():
            if not number:
                seconds_anew(cluster, one.reworded, warm_up, f"warm-up-{name}")
            anew = seconds_anew(cluster, one.reworded, images, f"anew-{name}-{number}")
            for way in ("vectors", "vectors, Redis", "scores"):
                seconds, found = seconds_of_replay(cluster, one, way)
                if name == "demo" and not number:
                    report.fact(f"changes judged, {way}", require_exact(one, way))
                ratio = anew * options.items / seconds
                ratios.setdefault((name, way), []).append(ratio)
                _row(table, name, anew, options.items, way, seconds, found)
    return ratios


def _row(table: Table, name: str, anew: float, items: int, way: str, seconds: float, found: Replayed) -> None:
    table.row(
        name, 1 / anew, anew * items, way, seconds, items / seconds, anew * items / seconds, found.changed
    )


if __name__ == "__main__":
    sys.exit(main())
