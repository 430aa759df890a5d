"""`make chaos`: break a running system by a schedule, then check what is left. See `--help`.

Exit code 0: everything is as promised. 1: it is not; the way to repeat the run and the history are told.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ops.chaos.checker import check
from ops.chaos.claims import read_claims
from ops.chaos.contenders import CONTENDERS, Contender
from ops.chaos.customers import Customers
from ops.chaos.faults import System
from ops.chaos.fleet import Fleet
from ops.chaos.history import History, read_history
from ops.chaos.measures import Notes, measure
from ops.chaos.nemesis import Nemesis
from ops.chaos.report import Outcome, print_report
from ops.chaos.scales import SCALES, parts_of
from ops.chaos.schedule import PlannedFault, Scale, make_schedule
from ops.chaos.servers import Servers
from ops.chaos.soak import Growth, growths
from ops.chaos.workload import OutputKind

_CRASH_SECONDS = 30.0  # for crash points that were not reached yet
_END_SECONDS = 240.0  # for the jobs that are under way when the faults are over


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    options = _options(arguments)
    codes = [_run_part(options, scale) for scale in parts_of(options.scale)]
    return max(codes)


def _run_part(options: argparse.Namespace, scale: Scale) -> int:
    if options.soak_seconds is not None:
        scale = replace(scale, soak_seconds=options.soak_seconds)
    schedule = make_schedule(options.seed, scale)
    if options.schedule:
        for fault in schedule:
            print(fault)
        return 0
    console = Console(width=130, highlight=False)
    folder = Path(tempfile.mkdtemp(prefix="clipfleet-chaos-", dir=options.folder)).absolute()
    console.print(
        f"chaos: seed {options.seed}, scale {scale.name}, {options.system}: {len(schedule)} faults in about "
        f"{scale.seconds:.0f} s; history in {folder}"
    )
    outcome = run(CONTENDERS[options.system], options.seed, scale, schedule, folder)
    print_report(console, outcome)
    code = _verdict(console, outcome, folder, must_fail=options.must_fail)
    if code == 0 and not options.keep:
        shutil.rmtree(folder)
    return code


def _verdict(console: Console, outcome: Outcome, folder: Path, *, must_fail: bool) -> int:
    """Say whether the run is as it should be; returns the exit code."""
    if not outcome.violations:
        console.print("As promised: every input has one row, every job its events, nothing is left behind.")
        return 1 if must_fail else 0
    if must_fail:
        console.print("It lost or doubled, as expected of a system without a ledger.")
        return 0
    console.print(
        f"NOT as promised. Again: make chaos CHAOS_SEED={outcome.seed} CHAOS_SCALE={outcome.scale.name}; "
        f"history, logs and outputs: {folder}"
    )
    return 1


def run(
    contender: Contender, seed: int, scale: Scale, schedule: Sequence[PlannedFault], folder: Path
) -> Outcome:
    """Carry a schedule out against a system in a folder, and check what is left."""
    began, wall_began = time.monotonic(), time.time()
    history = History(folder / "history.jsonl", began)
    history.note("run", seed=seed, scale=scale.name, system=contender.body)
    (folder / "schedule.txt").write_text("".join(f"{fault}\n" for fault in schedule))
    with Servers(folder, seed, with_sentinels=scale.with_sentinels) as servers:
        environment = servers.environment()
        os.environ.update({name: value for name, value in environment.items() if name.startswith("AWS_")})
        fleet = Fleet(folder / "fleet", scale.workers, environment, history, body=contender.body)
        service = contender.service(servers, environment, history, folder)
        system = System(servers, fleet, Customers(folder, seed, servers.site, history, service), history)
        try:
            fleet.start()
            system.customers.start()
            remarks, grown = _break(system, schedule, scale.soak_seconds)
        finally:
            fleet.stop()
        history.note("survey")
        growing = [str(growth) for growth in grown if not growth.is_flat]
        world = replace(contender.world(system, folder), growing=growing)
        completed = contender.completed(servers, system.customers.plans)
    history.note("end")
    history.close()
    claims = read_claims(fleet.claims_folder)
    notes = Notes(
        began=began,
        wall_began=wall_began,
        events=list(read_history(history.path)),
        claims=claims,
        ended=fleet.ended,
        frozen=fleet.frozen,
        completed=completed,
        s3_jobs=frozenset(plan.job_id for plan, _ in world.jobs if plan.output is OutputKind.S3),
    )
    return Outcome(
        seed=seed,
        scale=scale,
        system=contender.body,
        seconds=time.monotonic() - began,
        planned=Counter(fault.kind for fault in schedule),
        measured=measure(notes),
        workers=len(fleet.ended),
        claims=len(claims),
        losses=sum(claim.losses > 0 for claim in claims),
        world=world,
        violations=check(world),
        remarks=remarks,
    )


def _break(
    system: System, schedule: Sequence[PlannedFault], soak_seconds: float
) -> tuple[list[str], list[Growth]]:
    """The faults, then work without them, then time for the jobs to end.

    Returns:
        What people should know, and how the workers changed in the time without faults.
    """
    nemesis = Nemesis(schedule, system)
    nemesis.run()
    system.servers.heal()
    nemesis.wait_for(lambda: not system.fleet.any_armed, _CRASH_SECONDS)
    unreached = system.fleet.disarm()
    grown = growths(nemesis.soak(soak_seconds))
    system.customers.close()
    system.history.note("customers_close")
    remarks = [f"{unreached} crash points were not reached"] if unreached else []
    if not nemesis.wait_for(lambda: system.customers.are_done, _END_SECONDS):
        remarks.append(f"jobs still run {_END_SECONDS:g} s after the last fault")
    return [*remarks, *(f"soak: {growth}" for growth in grown)], grown


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Break a running system by a schedule, then check what is left.",
        epilog="CHAOS_SEED and CHAOS_SCALE in the environment are the defaults of --seed and --scale.",
    )
    parser.add_argument("--seed", type=int, default=_seed(os.environ.get("CHAOS_SEED")))
    parser.add_argument("--scale", choices=list(SCALES), default=os.environ.get("CHAOS_SCALE") or "default")
    parser.add_argument("--system", choices=list(CONTENDERS), default="clipfleet")
    parser.add_argument(
        "--must-fail",
        action="store_true",
        help="exit code 0 if something is wrong, 1 if not",
    )
    parser.add_argument("--soak-seconds", type=float, help="of work after the faults; default: the scale's")
    parser.add_argument("--folder", type=Path, help="where the run makes its own folder; default: TMPDIR")
    parser.add_argument("--keep", action="store_true", help="leave the folder there also where all is well")
    parser.add_argument("--schedule", action="store_true", help="print the faults of this seed, do nothing")
    options = parser.parse_args(arguments)
    if options.scale not in SCALES:
        parser.error(f"CHAOS_SCALE={options.scale} is none of {', '.join(SCALES)}")
    return options


def _seed(text: str | None) -> int:
    return int(text) if text else random.randrange(1_000_000)


if __name__ == "__main__":
    sys.exit(main())
