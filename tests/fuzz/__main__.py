"""Fuzzing by hand: `python -m tests.fuzz --runs 100000 image csv`, or `make fuzz` for all targets.

Each target runs in a process of its own, so that one which dies is noticed. With `--engine atheris` (to be
installed beside) the code under test is instrumented and new inputs are found by coverage; the default,
damage by seed, needs nothing and can be repeated. A crash is written to a file and told; exit code 1.
"""

from __future__ import annotations

import argparse
import faulthandler
import hashlib
import os
import resource
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from tests.fuzz.mutations import mutated

_MEMORY_BYTES = 4 << 30
_SLOW_SECONDS = 60  # for one input: the stacks are told, and the process ends


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", metavar="TARGET", help="none: all")
    parser.add_argument("--runs", type=int, default=10_000, help="of each target")
    parser.add_argument("--seed", type=int, default=0, help="of the first damage")
    parser.add_argument("--engine", choices=["seeds", "atheris"], default="seeds")
    parser.add_argument("--crashes", type=Path, default=Path("fuzz-crashes"), help="folder for what crashes")
    parser.add_argument("--inside", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    given = _arguments()
    if given.inside:
        resource.setrlimit(resource.RLIMIT_DATA, (_MEMORY_BYTES, resource.RLIM_INFINITY))
        run = _by_coverage if given.engine == "atheris" else _by_seeds
        return run(given.targets[0], given.runs, given.seed, given.crashes)
    failed = [name for name in given.targets or _targets() if not _passes(name, given)]
    if failed:
        print(f"FAILED: {', '.join(failed)}")
    return 1 if failed else 0


def _targets() -> dict[str, Any]:
    from tests.fuzz.targets import TARGETS, server_targets, worker_targets

    return worker_targets() | server_targets() | TARGETS


def _passes(name: str, given: argparse.Namespace) -> bool:
    command = [
        sys.executable, "-m", "tests.fuzz", "--inside", "--runs", str(given.runs), "--seed", str(given.seed),
        "--engine", given.engine, "--crashes", str(given.crashes), name,
    ]  # fmt: skip
    with TemporaryDirectory() as folder:  # whatever a target that dies leaves goes with it
        code = subprocess.run(command, env=os.environ | {"TMPDIR": folder}, check=False).returncode
    if code < 0 or code > 1:
        print(f"{name}: the process died, exit code {code}", flush=True)
    return code == 0


def _by_seeds(name: str, runs: int, first_seed: int, crashes: Path) -> int:
    """Damage by seed."""
    target = _targets()[name]
    seeds = target.seeds()
    outcomes: Counter[str] = Counter()
    slowest, slowest_seed, began = 0.0, 0, time.monotonic()
    with TemporaryDirectory() as folder:
        run = target.make(Path(folder))
        for seed in range(first_seed, first_seed + runs):
            data = mutated(seeds, seed)
            faulthandler.dump_traceback_later(_SLOW_SECONDS, exit=True)
            started = time.monotonic()
            try:
                outcome = target.outcome(run, data)
            except BaseException as error:
                if isinstance(error, KeyboardInterrupt):
                    raise
                outcome = f"CRASH {type(error).__name__}"
                if outcomes[outcome] < 3:
                    _keep(crashes, name, data, f"seed {seed}: {error!r:.300}")
            seconds = time.monotonic() - started
            outcomes[outcome] += 1
            if seconds > slowest:
                slowest, slowest_seed = seconds, seed
    faulthandler.cancel_dump_traceback_later()
    told = ", ".join(f"{outcome} {count:,}" for outcome, count in outcomes.most_common())
    print(
        f"{name}: {runs:,} runs in {time.monotonic() - began:.0f} s; {told}; "
        f"slowest {slowest:.2f} s (seed {slowest_seed})",
        flush=True,
    )
    return int(any(outcome.startswith("CRASH") for outcome in outcomes))


def _keep(folder: Path, name: str, data: bytes, why: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    path = folder / f"{name.replace(' ', '-')}-{hashlib.sha256(data).hexdigest()[:12]}"
    path.write_bytes(data)
    print(f"{name}: {why}\n  kept in {path}", flush=True)


def _by_coverage(name: str, runs: int, first_seed: int, crashes: Path) -> int:
    """Damage by atheris, which watches what the code does with it; ends the process by itself."""
    import atheris

    with TemporaryDirectory() as folder:
        corpus, run_folder = Path(folder, "corpus"), Path(folder, "run")
        corpus.mkdir()
        run_folder.mkdir()
        with atheris.instrument_imports(include=["clipfleet", "clipfleet_worker"]):
            target = _targets()[name]
            run = target.make(run_folder)
            for number, data in enumerate(target.seeds()):
                (corpus / str(number)).write_bytes(data)
        crashes.mkdir(parents=True, exist_ok=True)
        limits = [f"-runs={runs}", f"-seed={first_seed + 1}", "-max_len=65536"]
        options = [*limits, f"-artifact_prefix={crashes}/"]

        def check(data: bytes) -> None:
            target.outcome(run, bytes(data))

        atheris.Setup([sys.argv[0], *options, str(corpus)], check)
        atheris.Fuzz()
    return 0


if __name__ == "__main__":
    sys.exit(main())
