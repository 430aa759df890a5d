"""The cost of hostile and dead hosts for others: the rate of good URLs with and without bad ones among them.

    python -m ops.bench.tail [--good 20000] [--rounds 2]

A real worker with the demo model, and default settings except for the timeout below, runs jobs alternately:
good URLs alone, and the same with bad ones at random places, each on a host of its own. `hostile`: 200
servers with slow loris, endless bodies, bombs, floods, loops and lies. `silent`: 2 % more that accept and
never answer, with a timeout of 10 s. The rate is that of the good images, from the first to the last one
served. The job itself ends with its slowest URL, so its seconds are printed, too.
"""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from ops.bench.report import Report, Table, bench_parser, names_of, positive
from tests.support.cluster import Cluster
from tests.support.documents import ROOT
from tests.support.images import encoded, make_image

GOOD_HOSTS = 8
HOSTILE_WAYS = (
    "stall",
    "drip-header",
    "drip-body",
    "silent-body",
    "drip-continue",
    "endless",
    "endless-chunks",
    "tiny-chunks",
    "gzip-bomb",
    "header-megabyte",
    "header-lines",
    "continue-flood",
    "chunk-extension",
    "trailers",
    "length-too-long",
    "length-negative",
    "reset-in-body",
    "close",
    "redirect-loop",
    "redirect-body",
)
HOSTILE_URLS = 200
MIN_RATIO = 0.7


@dataclass(frozen=True, slots=True)
class Scenario:
    """Bad URLs among the good ones."""

    name: str
    ways: Sequence[str]
    bad: int
    settings: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class Run:
    """One job."""

    good_per_second: float
    seconds: float


class Site:
    """The web server, in a process of its own."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process
        self.port = int(self._answer())

    def good_answers(self) -> tuple[int, float]:
        """Good answers since the last call, and the seconds from the first to the last one."""
        print("good", file=self._process.stdin, flush=True)
        count, seconds = self._answer().split()
        return int(count), float(seconds)

    def _answer(self) -> str:
        return self._process.stdout.readline() if self._process.stdout else ""


@contextmanager
def running_site(image: Path) -> Iterator[Site]:
    process = subprocess.Popen(
        [sys.executable, "-m", "tests.support.hostile_site", image],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        cwd=ROOT,
    )
    try:
        yield Site(process)
    finally:
        process.communicate()


def main() -> int:
    parser = bench_parser(__doc__)
    parser.add_argument("--good", type=positive, default=20_000, help="good URLs of each job")
    parser.add_argument("--rounds", type=positive, default=2, help="jobs of each kind")
    parser.add_argument("--scenarios", type=names_of(("hostile", "silent")), default="hostile,silent")
    options = parser.parse_args()
    if options.good < 50:
        parser.error("--good: with less than 50 none of the others would be silent")
    scenarios = (
        Scenario("hostile", HOSTILE_WAYS, HOSTILE_URLS * options.good // 20_000, {}),
        Scenario("silent", ("stall",), options.good // 50, {"CLIPFLEET_FETCH_TIMEOUT_SECONDS": "10"}),
    )
    with (
        Report("tail", options.json) as report,
        tempfile.TemporaryDirectory(prefix="clipfleet-tail-") as folder,
    ):
        table = report.table(
            {
                "bad URLs": ">14",
                "without/s": "10.0f",
                "with/s": "8.0f",
                "ratio": "6.2f",
                "s without": "10.1f",
                "s with": "8.1f",
            }
        )
        image = Path(folder) / "image.jpg"
        image.write_bytes(encoded(make_image(1), quality=85))
        with running_site(image) as site:
            ratios = {
                one.name: measure(Path(folder) / one.name, site, one, options.good, options.rounds, table)
                for one in scenarios
                if one.name in options.scenarios
            }
        for name, ratio in ratios.items():
            report.goal(f"{name}: rate with them by the rate without", ratio, at_least=MIN_RATIO)
    return report.exit_code


def measure(folder: Path, site: Site, scenario: Scenario, good: int, rounds: int, table: Table) -> float:
    """Run both kinds of job alternately on one worker; print a row of their medians and the median ratio."""
    with Cluster(folder, scenario.settings) as cluster:
        cluster.start_worker()
        run(cluster, site, "warm-up", urls(site, scenario, good // 20, 0))
        without, with_bad = [], []
        for number in range(rounds):
            without.append(run(cluster, site, f"good-{number}", urls(site, scenario, good, 0)))
            with_bad.append(run(cluster, site, f"bad-{number}", urls(site, scenario, good, scenario.bad)))
    ratio = statistics.median(
        b.good_per_second / a.good_per_second for a, b in zip(without, with_bad, strict=True)
    )
    table.row(
        f"{scenario.bad} {scenario.name}",
        median_rate(without),
        median_rate(with_bad),
        ratio,
        statistics.median(a.seconds for a in without),
        statistics.median(b.seconds for b in with_bad),
    )
    return ratio


def median_rate(runs: Sequence[Run]) -> float:
    return statistics.median(one.good_per_second for one in runs)


def urls(site: Site, scenario: Scenario, good: int, bad: int) -> list[str]:
    """Good URLs on a few hosts, bad ones on a host each, in an order by seed."""
    chance = random.Random(1)
    found = [f"http://127.0.0.{1 + n % GOOD_HOSTS}:{site.port}/good/{n}" for n in range(good)]
    for n in range(bad):
        way = scenario.ways[n % len(scenario.ways)]
        host = f"127.1.{chance.randrange(256)}.{chance.randrange(1, 255)}"
        found.insert(chance.randrange(len(found)), f"http://{host}:{site.port}/{way}/{n}")
    return found


def run(cluster: Cluster, site: Site, name: str, uris: Sequence[str]) -> Run:
    (cluster.folder / f"{name}.txt").write_text("\n".join(uris))
    output = cluster.folder / name
    site.good_answers()
    began = time.perf_counter()
    result = cluster.run(
        "classify",
        f"{name}.txt",
        "--labels",
        "a,b",
        "--model",
        "demo",
        "--output",
        output,
        "--json",
        seconds=3600,
    )
    seconds = time.perf_counter() - began
    if result.returncode not in (0, 3):
        raise SystemExit(f"clipfleet ended with {result.returncode}: {result.stderr}{cluster.logs()}")
    answers, good_seconds = site.good_answers()
    status = json.loads(result.stdout)
    if not status["total"] - len(uris) == status["ok"] - answers == 0:
        raise SystemExit(f"{len(uris)} URLs, {answers} good answers, but: {status}")
    return Run(answers / good_seconds, seconds)


if __name__ == "__main__":
    sys.exit(main())
