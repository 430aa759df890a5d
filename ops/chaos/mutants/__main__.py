"""`make chaos-mutants`: whether a chaos run finds small faults that are put into copies of the product.

Each mutant is stopped at the first thing that is wrong. Results are appended to
`bench-results/mutants.jsonl`; `--resume` leaves out what has one there for the same scale and seed.
Exit code 0: at least the wanted share was caught. 1: too few were, or a patch does not apply.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ops.chaos.mutants.patches import (
    PRODUCT,
    ROOT,
    Mutant,
    PatchError,
    all_mutants,
    copy_product,
    require_fit,
)
from ops.chaos.run import CAUGHT_PREFIX
from ops.chaos.scales import SCALES

_RESULTS = ROOT / "bench-results" / "mutants.jsonl"


@dataclass(frozen=True, slots=True)
class Result:
    """What came of one mutant."""

    name: str
    scale: str
    seed: int
    caught_by: str  # the first violation; empty: none
    seconds: float
    was_stopped: bool = False  # at the limit, before it had found anything


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    options = _options(arguments)
    console = Console(width=150, highlight=False)
    mutants = [one for one in all_mutants() if not options.only or one.name in options.only]
    try:
        for mutant in mutants:
            require_fit(mutant)
    except PatchError as error:
        console.print(escape(str(error)))
        return 1
    known = {result.name: result for result in _known(options)} if options.resume else {}
    if not options.only and (wrong := _chaos_of(None, options)) != "":
        console.print(
            f"Without any of them, too, something is wrong: {escape(wrong or 'the run had to be stopped')}"
        )
        return 1
    results = []
    for number, mutant in enumerate(mutants, 1):
        result = known.get(mutant.name) or _try(mutant, options)
        results.append(result)
        console.print(f"{number}/{len(mutants)} {_line(result)}")
    caught = sum(bool(result.caught_by) for result in results)
    console.print(_table(mutants, results))
    console.print(f"{caught} of {len(results)} caught")
    return 0 if caught >= options.wanted_share * len(results) else 1


def _try(mutant: Mutant, options: argparse.Namespace) -> Result:
    began = time.monotonic()
    found = _chaos_of(mutant, options)
    seconds = round(time.monotonic() - began, 1)
    result = Result(mutant.name, options.scale, options.seed, found or "", seconds, was_stopped=found is None)
    _RESULTS.parent.mkdir(exist_ok=True)
    with _RESULTS.open("a") as file:
        file.write(f"{json.dumps(asdict(result))}\n")
    return result


def _chaos_of(mutant: Mutant | None, options: argparse.Namespace) -> str | None:
    """The first violation of a run with a mutant, or with the product as it is; empty: there was none.

    None: the run had to be stopped. That tells of this machine as much as of a mutant, so nothing was caught.
    """
    with tempfile.TemporaryDirectory(prefix="clipfleet-mutant-") as name:
        folder = Path(name)
        copy_product(folder, mutant)
        paths = [*(str(folder / part) for part in PRODUCT), os.environ.get("PYTHONPATH", "")]
        return _chaos(folder, os.pathsep.join(filter(None, paths)), options)


def _chaos(folder: Path, python_path: str, options: argparse.Namespace) -> str | None:
    """Likewise of a run with the product in a folder."""
    runs = folder / "runs"
    runs.mkdir()
    command = [
        sys.executable, "-m", "ops.chaos.run", "--scale", options.scale, "--seed", str(options.seed),
        "--stop-early", "--folder", str(runs), *(("--without", *options.without) if options.without else ()),
    ]  # fmt: skip
    try:
        result = subprocess.run(
            command,
            cwd=ROOT,
            env=os.environ | {"PYTHONPATH": python_path},
            capture_output=True,
            text=True,
            check=False,
            timeout=options.limit_seconds,
        )
    except subprocess.TimeoutExpired:
        return None
    lines = result.stdout.splitlines()
    found = next((line for line in lines if line.startswith(CAUGHT_PREFIX)), "")
    if result.returncode == 0:
        return ""
    last = (result.stderr.strip() or "nothing was said").splitlines()[-1]
    return found.removeprefix(CAUGHT_PREFIX) or f"the run ended with code {result.returncode}: {last}"


def _known(options: argparse.Namespace) -> Iterator[Result]:
    lines = _RESULTS.read_text().splitlines() if _RESULTS.exists() else []
    for result in (Result(**json.loads(line)) for line in lines):
        if (result.scale, result.seed) == (options.scale, options.seed):
            yield result


def _line(result: Result) -> str:
    return f"{result.name}: {_what_came(result)} ({result.seconds:.0f} s)"


def _what_came(result: Result) -> str:
    missed = "[red]stopped, not caught[/]" if result.was_stopped else "[red]not caught[/]"
    return escape(result.caught_by) or missed


def _table(mutants: Sequence[Mutant], results: Sequence[Result]) -> Table:
    table = Table(box=box.SIMPLE_HEAD)
    table.add_column("mutant", no_wrap=True)
    table.add_column("what it breaks")
    table.add_column("caught by")
    table.add_column("s", justify="right")
    for mutant, result in zip(mutants, results, strict=True):
        caught_by = _what_came(replace(result, caught_by=result.caught_by[:120]))
        table.add_row(mutant.name, escape(mutant.breaks), caught_by, f"{result.seconds:.0f}")
    return table


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="make chaos-mutants",
        description="Whether a chaos run finds faults put into the product.",
    )
    parser.add_argument("--only", nargs="+", metavar="NAME", choices=[one.name for one in all_mutants()])
    parser.add_argument("--scale", choices=list(SCALES), default=os.environ.get("CHAOS_SCALE") or "short")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("CHAOS_SEED") or 1))
    parser.add_argument("--without", nargs="+", default=(), metavar="FAULT", help="as of `ops.chaos.run`")
    parser.add_argument("--resume", action="store_true", help="leave out what has a result already")
    parser.add_argument(
        "--limit-seconds",
        type=float,
        default=600.0,
        help="of one run; a longer one caught nothing",
    )
    parser.add_argument("--wanted-share", type=float, default=0.5, help="of the mutants, else exit code 1")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    sys.exit(main())
