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
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from rich.console import Console

from ops.chaos.checker import Sources, World, check
from ops.chaos.claims import read_claims, read_completions
from ops.chaos.contenders import CONTENDERS, Contender, Setting
from ops.chaos.customers import Customers
from ops.chaos.faults import System
from ops.chaos.findings import Findings, Inspector
from ops.chaos.fleet import Fleet
from ops.chaos.history import History, read_history
from ops.chaos.material import Material
from ops.chaos.measures import Notes, measure
from ops.chaos.nemesis import Nemesis
from ops.chaos.observer import Observer
from ops.chaos.planting import Planter
from ops.chaos.report import Outcome, print_report
from ops.chaos.scales import SCALES, parts_of
from ops.chaos.schedule import FaultKind, PlannedFault, Scale, make_schedule
from ops.chaos.servers import Servers, fake_time_library
from ops.chaos.soak import Growth, growths
from ops.chaos.values import References
from ops.chaos.workload import OutputKind

_CRASH_SECONDS = 30.0  # for crash points that were not reached yet
CAUGHT_PREFIX = "First: "  # of the line with the first violation
_SETTLE_SECONDS = 30.0
_END_SECONDS = 240.0  # for the jobs that are under way when the faults are over
_EARLY_END_SECONDS = 120.0  # likewise, where something is expected to be wrong


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    options = _options(arguments)
    codes = [_run_part(options, scale) for scale in parts_of(options.scale)]
    return max(codes)


def _run_part(options: argparse.Namespace, scale: Scale) -> int:
    if options.soak_seconds is not None:
        scale = replace(scale, soak_seconds=options.soak_seconds)
    contender = CONTENDERS[options.system]
    spared = contender.spared | {FaultKind[name.upper()] for name in options.without}
    if not fake_time_library():
        spared |= {FaultKind.REDIS_CLOCK}
    schedule = [fault for fault in make_schedule(options.seed, scale) if fault.kind not in spared]
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
    if scale.counts.get(FaultKind.REDIS_CLOCK) and not fake_time_library():
        console.print("Without Debian's package `faketime` the clock of Redis does not jump.")
    outcome = run(contender, options.seed, scale, schedule, folder, stops_early=options.stop_early)
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
    first = outcome.violations[0]
    print(f"{CAUGHT_PREFIX}{first.kind}: {first.where}: {first.detail}")  # in one line, however long it is
    if must_fail:
        console.print("It lost or doubled, as expected of a system without a ledger.")
        return 0
    console.print(
        f"NOT as promised. Again: make chaos CHAOS_SEED={outcome.seed} CHAOS_SCALE={outcome.scale.name}; "
        f"history, logs and outputs: {folder}"
    )
    return 1


def run(
    contender: Contender,
    seed: int,
    scale: Scale,
    schedule: Sequence[PlannedFault],
    folder: Path,
    *,
    stops_early: bool = False,
) -> Outcome:
    """Carry a schedule out against a system in a folder, and check what is left.

    Args:
        contender: the system.
        seed: of all that the schedule leaves to chance.
        scale: of the schedule.
        schedule: what is broken when.
        folder: of the run.
        stops_early: at the first thing that is wrong.
    """
    history = History(folder / "history.jsonl", time.monotonic())
    history.note("run", seed=seed, scale=scale.name, system=contender.body)
    (folder / "schedule.txt").write_text("".join(f"{fault}\n" for fault in schedule))
    findings = Findings(history)
    with Servers(folder, seed, with_sentinels=scale.with_sentinels) as servers:
        environment = servers.environment()
        _use_store(environment)
        material = Material(folder / "images", servers.site.url)
        sources = Sources(material.hashes, material.uri)
        setting = Setting(servers, environment, history, folder, Inspector(sources, References()), findings)
        customers = Customers(folder, seed, servers.site, material, history, contender.service(setting))
        fleet = Fleet(folder / "fleet", scale.workers, environment, history, body=contender.body)
        planter = Planter(lambda: servers.redis.direct_url, folder / "out", customers.write_manifest)
        system = System(servers, fleet, customers, history, planter)
        with Observer(folder / "out", servers.front, customers, findings) as observer:
            is_enough = observer.has_found_something if stops_early else lambda: False
            try:
                fleet.start()
                customers.start()
                nemesis = Nemesis(schedule, system, is_enough)
                remarks, grown = _break(
                    nemesis, system, scale.soak_seconds, _EARLY_END_SECONDS if stops_early else _END_SECONDS
                )
                nemesis.wait_for(contender.settle(system), _SETTLE_SECONDS)
            finally:
                fleet.stop()
            history.note("survey")
            _use_store(servers.store.environment())  # without the detour
            world = replace(
                # What is under way is no news where the run was stopped.
                World((), (), sources, worker_ends=customers.failures)
                if is_enough()
                else contender.world(system, sources, folder),
                growing=[str(growth) for growth in grown if not growth.is_flat],
                changes=observer.wrong_changes() if contender.has_watched_outputs else (),
                noticed=findings.found,
            )
    history.note("end")
    history.close()
    return _outcome(seed, scale, schedule, system, world, remarks)


def _use_store(environment: Mapping[str, str]) -> None:
    """Whatever asks S3 in this process asks there from now on."""
    os.environ.update({name: value for name, value in environment.items() if name.startswith("AWS_")})


def _outcome(
    seed: int,
    scale: Scale,
    schedule: Sequence[PlannedFault],
    system: System,
    world: World,
    remarks: Sequence[str],
) -> Outcome:
    fleet, began = system.fleet, system.history.began
    claims = read_claims(fleet.claims_folder)
    notes = Notes(
        began=began,
        events=list(read_history(system.history.path)),
        claims=claims,
        ended=fleet.ended,
        frozen=fleet.frozen,
        completed=read_completions(fleet.claims_folder),
        s3_jobs=frozenset(plan.job_id for plan, _ in world.jobs if plan.output is OutputKind.S3),
    )
    return Outcome(
        seed=seed,
        scale=scale,
        system=fleet.body,
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
    nemesis: Nemesis, system: System, soak_seconds: float, end_seconds: float
) -> tuple[list[str], list[Growth]]:
    """The faults, then work without them, then time for the jobs to end.

    Returns:
        What people should know, and how the workers changed in the time without faults.
    """
    nemesis.run()
    system.servers.heal()
    nemesis.wait_for(lambda: not system.fleet.any_armed, _CRASH_SECONDS)
    unreached = system.fleet.disarm()
    grown = growths(nemesis.soak(soak_seconds))
    system.customers.close()
    system.history.note("customers_close")
    remarks = [f"{unreached} crash points were not reached"] if unreached else []
    if not nemesis.wait_for(lambda: system.customers.are_done, end_seconds):
        waiting = ", ".join(system.customers.waited_for(end_seconds))
        remarks.append(f"jobs still run {end_seconds:g} s after the last fault; waited for it: {waiting}")
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
    parser.add_argument(
        "--without",
        nargs="+",
        default=(),
        choices=[kind.name.lower() for kind in FaultKind],
        help="faults that are left out; all else stays as it is",
    )
    parser.add_argument("--stop-early", action="store_true", help="at the first thing that is wrong")
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
