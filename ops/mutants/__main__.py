"""`make lua-mutants`: how many small faults in the Lua scripts the tests of the ledger find.

Each comparison and each arithmetic operator is flipped, and each write is dropped, one at a time. The first
test that fails or hangs kills the mutant. A survey with probes in the scripts finds out which tests run which
place: only those are tried. Results are appended to `bench-results/lua-mutants.jsonl`; `--resume` skips what
has one. Exit code 0: at least the wanted share was killed. 1: too few were, or tests fail without any mutant.
"""

from __future__ import annotations

import argparse
import json
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from queue import SimpleQueue

from rich.console import Console
from rich.markup import escape

from ops.mutants.hosts import ROOT, Host, HostError, scripts_folder
from ops.mutants.lua import LuaError, Source
from ops.mutants.order import Order
from ops.mutants.places import Mutant, all_mutants, probed
from ops.mutants.report import Result, line_of, result_of, summary

_RESULTS = ROOT / "bench-results" / "lua-mutants.jsonl"
_SURVEY_LIMIT_SECONDS = 600.0  # of a test
_NAMES = (
    "ledger*", "errands", "quota", "error_rate", "writers", "redis_rows*", "planted_values", "leftovers",
    "completion", "keys_in_lua", "one_image_job",
)  # fmt: skip
# Wherever they are moved below these folders.
_TESTS = (
    *(f"tests/integration/**/test_{name}.py" for name in _NAMES),
    "tests/promises/test_ledger*.py",
    "tests/integration/ledger/**/test_*.py",
    "tests/unit/**/ledger/**/test_*.py",
)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    options = _options(arguments)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # else copies stay behind
    console = Console(soft_wrap=True, highlight=False)
    try:
        results = _run(options, console)
    except (HostError, LuaError) as error:
        console.print(f"error: {escape(str(error))}")
        return 1
    console.print(summary(results))
    return 0 if sum(bool(one.killed_by) for one in results) >= options.wanted_share * len(results) else 1


def _run(options: argparse.Namespace, console: Console) -> Sequence[Result]:
    sources = {path.stem: Source(path.stem, path.read_text()) for path in _scripts(options.root)}
    mutants = [one for one in all_mutants(sources.values()) if one.script in (options.only or sources)]
    known = _known()
    keys = {mutant: result_of(options.root.name, mutant, {}, 0, 0).key for mutant in mutants}
    if options.survivors:
        mutants = [one for one in mutants if keys[one] in known and not known[keys[one]].killed_by]
    done = {one: known[keys[one]] for one in mutants if options.resume and keys[one] in known}
    left = [mutant for mutant in mutants if mutant not in done]
    console.print(f"{len(mutants)} mutants, {len(done)} of them with a result")
    if left:
        with ExitStack() as stack:
            tests = _tests(options.root, options.tests)
            hosts = [stack.enter_context(Host(options.root, tests)) for _ in range(options.workers)]
            order = _survey(hosts[0], sources, console)
            for mutant, result in done.items():
                order.learn(mutant, result.killed_by)
            for mutant, result in _try_all(left, sources, hosts, order, options):
                done[mutant] = result
                console.print(f"{len(done)}/{len(mutants)} {line_of(result)}")
    return [done[mutant] for mutant in mutants]


def _survey(host: Host, sources: Mapping[str, Source], console: Console) -> Order:
    """Run all tests without a mutant. Raises `HostError` if one fails."""
    began = time.monotonic()
    outcome = host.survey({name: probed(source) for name, source in sources.items()}, _SURVEY_LIMIT_SECONDS)
    if outcome.failed:
        test, failure = next(iter(outcome.failed.items()))
        raise HostError(f"{len(outcome.failed)} tests fail without any mutant; {test}: {failure}")
    order = Order(outcome.ended)
    seconds = time.monotonic() - began
    console.print(
        f"{len(outcome.ended)} tests, {order.tests} of them run scripts: {seconds:.0f} s without a mutant"
    )
    return order


def _try_all(
    mutants: Sequence[Mutant],
    sources: Mapping[str, Source],
    hosts: Sequence[Host],
    order: Order,
    options: argparse.Namespace,
) -> Iterator[tuple[Mutant, Result]]:
    """As many at a time as there are hosts; each result is kept at once."""
    idle: SimpleQueue[Host] = SimpleQueue()
    for host in hosts:
        idle.put(host)

    def attempt(mutant: Mutant) -> tuple[Mutant, Result]:
        host = idle.get()
        try:
            return mutant, _try(mutant, sources[mutant.script].text, host, order, options.root.name)
        finally:
            idle.put(host)

    _RESULTS.parent.mkdir(exist_ok=True)
    pool = ThreadPoolExecutor(len(hosts))
    try:
        with _RESULTS.open("a") as file:
            for mutant, result in pool.map(attempt, mutants):
                file.write(f"{json.dumps(asdict(result))}\n")
                file.flush()
                yield mutant, result
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # what is under way ends with its host


def _try(mutant: Mutant, text: str, host: Host, order: Order, tree: str) -> Result:
    began = time.monotonic()
    limits = order.limits(mutant)
    failed = host.run(mutant.script, mutant.of(text), limits).failed if limits else {}
    result = result_of(tree, mutant, failed, len(limits), time.monotonic() - began)
    order.learn(mutant, result.killed_by)
    return result


def _known() -> dict[tuple[str, str, str, int, str, str], Result]:
    """The last result of each mutant."""
    lines = _RESULTS.read_text().splitlines() if _RESULTS.exists() else []
    return {result.key: result for result in (Result(**json.loads(line)) for line in lines)}


def _scripts(root: Path) -> list[Path]:
    return sorted(scripts_folder(root).glob("*.lua"))


def _tests(root: Path, patterns: Sequence[str]) -> list[str]:
    """Files that match, relative to the tree. Raises `HostError` if there are none."""
    found = sorted({str(path.relative_to(root)) for pattern in patterns for path in root.glob(pattern)})
    if not found:
        raise HostError(f"{root}: no test matches {' '.join(patterns)}")
    return found


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make lua-mutants",
        description="How many small faults in the Lua scripts the tests of the ledger find.",
    )
    parser.add_argument("--only", nargs="+", metavar="SCRIPT", help="names without .lua")
    parser.add_argument("--resume", action="store_true", help="leave out what has a result already")
    parser.add_argument("--survivors", action="store_true", help="only those that survived the last time")
    parser.add_argument(
        "--root", type=lambda path: Path(path).resolve(), default=ROOT, help="another checkout"
    )
    parser.add_argument("--tests", nargs="+", metavar="PATTERN", default=_TESTS, help="below the root")
    parser.add_argument("--workers", type=int, choices=(1, 2), default=2, help="mutants at a time")
    parser.add_argument("--wanted-share", type=float, default=0.0, help="of the mutants, else exit code 1")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
