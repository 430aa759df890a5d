"""The whole path, from images to Parquet through Valkey and Celery, beside programs in use today.

    python -m ops.bench.e2e [--images 1000] [--rounds 3] [--ways folder,http] [--peers] [--cache FOLDER]

ViT-B-32 with random weights, JPEGs of 640x480. Each round runs every way once, so that a busy machine slows
all alike. Reported are medians, and medians of the ratios within a round.

`images/s` is the rate of a warm worker: items divided by the seconds from the begin of its first chunk,
before the items are read, to the last part in place. `steady` leaves out the first batch. `whole` is all
items divided by the seconds from the start of `clipfleet-worker up -- clipfleet embed ...` to its exit. The
ceiling is 1 / (1/F + 1/D): bare forward and bare decode, each alone on all cores, before and after the ways
of a round.

The plain loop is `plain_loop.py`; `--peers` adds clip-retrieval 2.45.0, in an environment of its own in the
cache (`peers-requirements.txt`).
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from clipfleet_worker.machine.embedded.s3 import BUCKET, EmbeddedS3
from ops.bench import clip_retrieval
from ops.bench.environment import clean_environment
from ops.bench.file_server import serving
from ops.bench.pile import DEFAULT_CACHE, MODEL, hub_environment, image_folder
from ops.bench.report import Report, bench_parser, names_of, positive
from ops.bench.rounds import median_ratio
from ops.bench.timed_worker import Times, read_times
from tests.support.cluster import Cluster
from tests.support.documents import ROOT

PLAIN, PEER = "plain loop", "clip-retrieval"
_WARM_UP_IMAGES = 256


@dataclass(frozen=True, slots=True)
class Way:
    """One way through clipfleet."""

    name: str
    source: str = "folder"  # folder, http, s3
    sink: str = "folder"  # folder, s3
    backend: str = "torch"
    precision: str = "auto"

    @property
    def engine(self) -> tuple[str, str]:
        """The settings that the bare forward depends on."""
        return self.backend, self.precision


WAYS = (
    Way("folder"),
    Way("folder-fp32", precision="fp32"),
    Way("openvino", backend="openvino"),
    Way("openvino-fp32", backend="openvino", precision="fp32"),
    Way("http", source="http"),
    Way("s3", source="s3"),
    Way("s3-output", sink="s3"),
)


@dataclass(slots=True)
class Found:
    """The results of the rounds for one way; images/s."""

    worker: list[float] = field(default_factory=list)
    steady: list[float] = field(default_factory=list)
    whole: list[float] = field(default_factory=list)
    efficiency: list[float] = field(default_factory=list)
    forward: list[float] = field(default_factory=list)
    decode: list[float] = field(default_factory=list)


class _Cluster(Cluster):
    """A cluster of one worker, which may use all cores."""

    def environment(self) -> dict[str, str]:
        found = super().environment()
        del found["OMP_NUM_THREADS"]
        paths = [str(ROOT), found.get("PYTHONPATH", "")]  # the worker runs in a folder of its own
        return {**found, "PYTHONPATH": os.pathsep.join(filter(None, paths))}


class Bench:
    """Images, servers and folders for one run."""

    def __init__(self, folder: Path, cache: Path, images: int, children: ExitStack) -> None:
        self._folder = folder
        self.count = images
        self._environment = hub_environment(cache)
        self._cache = cache
        self.image_folder = image_folder(cache, images)
        self._children = children
        self._store: EmbeddedS3 | None = None
        self._site: int | None = None
        self._runs = 0

    def worker(self, way: Way) -> Times:
        """Run one job on a warm worker."""
        folder = self._new_folder()
        times = folder / "times.jsonl"
        with _Cluster(folder, self._settings(way)) as cluster:
            cluster.start_worker(program=("ops.bench.timed_worker", str(times)))
            warm_up = self._list(folder, Way("warm-up"), _WARM_UP_IMAGES)
            for job, source, output in (
                ("warm-up", warm_up, str(folder / "warm-up")),
                ("job", self._source(folder, way), self._output(folder, way)),
            ):
                words = ("embed", source, "--model", MODEL, "--output", output, "--job-id", job)
                cluster.run_json(*words, "--precision", way.precision, seconds=900)
        found = read_times(times, "job")
        if found.items != self.count:
            raise SystemExit(f"{way.name}: {found.items} of {self.count} images")
        return found

    def whole(self, way: Way) -> float:
        """Seconds of `up -- clipfleet embed ...`, a new server and a cold worker included."""
        folder = self._new_folder()
        words = ["embed", self._source(folder, way), "--model", MODEL, "--output", self._output(folder, way)]
        program = Path(sys.executable).with_name("clipfleet-worker")
        up = [str(program), "up", "--models", MODEL, "--dir", str(folder / "up"), "--"]
        command = [str(program.with_name("clipfleet")), *words, "--precision", way.precision]
        return self._seconds([*up, *command], self._settings(way) | {"CLIPFLEET_OUTPUT_ROOTS": str(folder)})

    def plain(self) -> float:
        """Images/s of the plain loop, without its loading."""
        command = [sys.executable, "-m", "ops.bench.plain_loop", str(self.image_folder)]
        found = json.loads(self._output_of(command, {}).splitlines()[-1])
        return float(found["images"] / found["loop"])

    def peer(self) -> tuple[float, float]:
        """Images/s of clip-retrieval: inside its own loop, and of its whole process."""
        output = self._new_folder() / "vectors"
        command = clip_retrieval.command(self._cache, self.image_folder, output)
        seconds = self._seconds(command, {})
        return clip_retrieval.images_per_second(output), self.count / seconds

    def bare(self, engine: tuple[str, str]) -> dict[str, float]:
        """Forward and decode alone, images/s."""
        backend, precision = engine
        command = [
            sys.executable,
            "-m",
            "ops.bench.bare",
            str(self.image_folder),
            "--precision",
            precision,
        ]
        found: dict[str, float] = json.loads(self._output_of(command, _backend(backend)).splitlines()[-1])
        return found

    def _new_folder(self) -> Path:
        self._runs += 1
        folder = self._folder / str(self._runs)
        folder.mkdir()
        return folder

    def _settings(self, way: Way) -> dict[str, str]:
        settings = self._environment | _backend(way.backend)
        settings |= {"CLIPFLEET_MODELS": MODEL, "CLIPFLEET_ALLOW_PRIVATE": "127.0.0.0/8"}
        settings |= {"CLIPFLEET_FILE_ROOTS": f"{self._folder},{self.image_folder}"}
        if "s3" in (way.source, way.sink):
            settings |= self._s3().environment()
        return settings

    def _source(self, folder: Path, way: Way) -> str:
        return str(self.image_folder) if way.source == "folder" else self._list(folder, way, self.count)

    def _list(self, folder: Path, way: Way, count: int) -> str:
        names = sorted(path.name for path in self.image_folder.iterdir())[:count]
        bases = {
            "folder": lambda: str(self.image_folder),
            "http": lambda: f"http://127.0.0.1:{self._port()}",
            "s3": lambda: f"s3://{BUCKET}/images",
        }
        if way.source == "s3":
            self._s3()
        base = bases[way.source]()
        path = folder / f"{way.name}.txt"
        path.write_text("".join(f"{base}/{name}\n" for name in names))
        return str(path)

    def _output(self, folder: Path, way: Way) -> str:
        return str(folder / "output") if way.sink == "folder" else f"s3://{BUCKET}/output-{self._runs}"

    def _s3(self) -> EmbeddedS3:
        if self._store is None:
            self._store = self._children.enter_context(EmbeddedS3(self._folder / "store"))
            client = _client(self._store)
            for path in self.image_folder.iterdir():
                client.upload_file(str(path), BUCKET, f"images/{path.name}")
        return self._store

    def _port(self) -> int:
        if self._site is None:
            self._site = self._children.enter_context(serving(self.image_folder))
        return self._site

    def _seconds(self, command: Sequence[str], environment: Mapping[str, str]) -> float:
        began = time.monotonic()
        self._output_of(command, environment)
        return time.monotonic() - began

    def _output_of(self, command: Sequence[str], environment: Mapping[str, str]) -> str:
        done: subprocess.CompletedProcess[str] = subprocess.run(
            command,
            env={**clean_environment(), **self._environment, **environment},
            capture_output=True,
            text=True,
            check=False,
            cwd=ROOT,
        )
        if done.returncode:
            raise SystemExit(f"{' '.join(command)} ended with {done.returncode}: {done.stderr[-3000:]}")
        return done.stdout


def _backend(name: str) -> dict[str, str]:
    """The backend, also for torch: by default a worker uses OpenVINO if it is installed."""
    return {"CLIPFLEET_BACKEND": name}


def _client(store: EmbeddedS3) -> Any:
    import boto3

    found = store.environment()
    return boto3.client(
        "s3",
        endpoint_url=store.endpoint,
        aws_access_key_id=found["AWS_ACCESS_KEY_ID"],
        aws_secret_access_key=found["AWS_SECRET_ACCESS_KEY"],
        region_name=found["AWS_REGION"],
    )


class Rounds:
    """The results of the rounds, by the name of the way."""

    def __init__(self, bench: Bench, ways: Sequence[Way], *, with_peers: bool, with_whole: bool) -> None:
        self._bench = bench
        self._ways = ways
        self._with_peers = with_peers
        self._with_whole = with_whole
        self.found = {name: Found() for name in (*(way.name for way in ways), PLAIN, PEER)}

    def run_one(self) -> None:
        """Run each way once, between two measurements of its ceilings; then the other programs."""
        engines = {way.engine for way in self._ways}
        before = {engine: self._bench.bare(engine) for engine in engines}
        times = {way.name: self._bench.worker(way) for way in self._ways}
        after = {engine: self._bench.bare(engine) for engine in engines}
        for way in self._ways:
            forward, decode = (
                statistics.mean((before[way.engine][what], after[way.engine][what]))
                for what in ("forward", "decode")
            )
            found, worker = self.found[way.name], times[way.name]
            found.worker.append(worker.per_second)
            found.steady.append(worker.steady_per_second)
            found.efficiency.append(worker.per_second * (1 / forward + 1 / decode))
            found.forward.append(forward)
            found.decode.append(decode)
            if self._with_whole and (way.source, way.sink) == ("folder", "folder"):
                found.whole.append(self._bench.count / self._bench.whole(way))
        self.found[PLAIN].worker.append(self._bench.plain())
        if self._with_peers:
            loop, whole = self._bench.peer()
            self.found[PEER].worker.append(loop)
            self.found[PEER].whole.append(whole)


def main() -> int:
    """Measure, print, compare with the goals."""
    parser = bench_parser(__doc__)
    parser.add_argument("--images", type=positive, default=1000)
    parser.add_argument("--rounds", type=positive, default=3)
    possible = _possible_ways()
    parser.add_argument(
        "--ways", type=names_of(possible), default=",".join(possible), help="default: %(default)s"
    )
    parser.add_argument("--peers", action="store_true", help="clip-retrieval, too")
    parser.add_argument("--no-whole", action="store_true", help="leave out the whole processes")
    parser.add_argument("--cache", type=Path, default=DEFAULT_CACHE, help="default: %(default)s")
    options = parser.parse_args()
    ways = [way for way in WAYS if way.name in options.ways]
    with (
        Report("e2e", options.json) as report,
        tempfile.TemporaryDirectory(prefix="clipfleet-e2e-") as folder,
        ExitStack() as children,
    ):
        if options.peers:
            clip_retrieval.install(options.cache)
        bench = Bench(Path(folder), options.cache, options.images, children)
        rounds = Rounds(bench, ways, with_peers=options.peers, with_whole=not options.no_whole)
        for number in range(options.rounds):
            rounds.run_one()
            print(f"round {number + 1} of {options.rounds} is done", file=sys.stderr, flush=True)
        print_medians(report, rounds.found, options.images)
    return report.exit_code


def _possible_ways() -> list[str]:
    return [way.name for way in WAYS if find_spec(way.backend)]


def print_medians(report: Report, all_found: Mapping[str, Found], images: int) -> None:
    """A table of medians, then the ratios that have goals."""
    columns = {name: "8.1f" for name in ("images/s", "steady/s", "whole/s", "bare/s", "decode/s")}
    table = report.table(
        {"way": "<15"} | columns | {"efficiency": "10.3f"}, f"{images} JPEGs 640x480, ViT-B-32"
    )
    for name, found in all_found.items():
        values = (
            found.worker, found.steady, found.whole, found.forward, found.decode, found.efficiency,
        )  # fmt: skip
        if found.worker:
            table.row(name, *(statistics.median(one) if one else "-" for one in values))
    report.fact("rounds", {name: asdict(found) for name, found in all_found.items()})
    for way, other, attribute, at_least in (
        ("folder", PEER, "steady", 4.0),
        ("openvino", PEER, "steady", 4.6),
        ("folder", PEER, "whole", 4.0),
        ("folder-fp32", PLAIN, "worker", 1.0),
        ("openvino-fp32", PLAIN, "worker", 2.2),
    ):
        of_peer = "whole" if attribute == "whole" else "worker"
        these = getattr(all_found.get(way, Found()), attribute)
        those = getattr(all_found[other], of_peer)
        if these and those:
            report.goal(f"{way}, {attribute}, by {other}", median_ratio(these, those), at_least=at_least)
    for way in ("folder", "openvino"):
        if efficiency := all_found.get(way, Found()).efficiency:
            report.goal(f"{way}: efficiency", statistics.median(efficiency), at_least=0.9)


if __name__ == "__main__":
    sys.exit(main())
