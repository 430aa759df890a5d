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
from pathlib import Path

from rich.console import Console

from clipfleet.client import Client
from clipfleet.redis_connection import connect
from clipfleet.settings import Settings
from ops.chaos.checker import World, check
from ops.chaos.claims import read_claims
from ops.chaos.customers import Customers
from ops.chaos.faults import System
from ops.chaos.fleet import Fleet
from ops.chaos.history import History, read_history
from ops.chaos.measures import Notes, measure
from ops.chaos.nemesis import Nemesis
from ops.chaos.report import Outcome, print_report
from ops.chaos.scales import SCALES
from ops.chaos.schedule import PlannedFault, Scale, make_schedule
from ops.chaos.servers import Servers, processes_of
from ops.chaos.survey import attempts_of, completion_events, completions, survey_jobs
from ops.chaos.workload import OutputKind
from tests.support.ledger import keys_without_ttl

_CRASH_SECONDS = 30.0  # for crash points that were not reached yet
_END_SECONDS = 240.0  # for the jobs that are under way when the faults are over
_EXIT_VIOLATED = 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run; returns the exit code."""
    options = _options(arguments)
    scale = SCALES[options.scale]
    schedule = make_schedule(options.seed, scale)
    console = Console(width=130)
    if options.schedule:
        for fault in schedule:
            print(fault)
        return 0
    folder = Path(tempfile.mkdtemp(prefix="clipfleet-chaos-", dir=options.folder))
    console.print(
        f"chaos: seed {options.seed}, scale {scale.name}: {len(schedule)} faults in about "
        f"{scale.seconds:.0f} s; history in {folder}",
        highlight=False,
    )
    outcome = run(options.seed, scale, schedule, folder)
    print_report(console, outcome)
    if outcome.violations:
        console.print(
            f"NOT as promised. Again: make chaos CHAOS_SEED={options.seed} CHAOS_SCALE={scale.name}; "
            f"history, logs and outputs: {folder}",
            highlight=False,
        )
        return _EXIT_VIOLATED
    console.print("As promised: every input has one row, every job its events, nothing is left behind.")
    if not options.keep:
        shutil.rmtree(folder)
    return 0


def run(seed: int, scale: Scale, schedule: Sequence[PlannedFault], folder: Path) -> Outcome:
    """Carry a schedule out in a folder, and check what is left."""
    began, wall_began = time.monotonic(), time.time()
    history = History(folder / "history.jsonl", began)
    history.note("run", seed=seed, scale=scale.name)
    (folder / "schedule.txt").write_text("".join(f"{fault}\n" for fault in schedule))
    with Servers(folder, seed) as servers:
        environment = servers.environment()
        os.environ.update({name: value for name, value in environment.items() if name.startswith("AWS_")})
        fleet = Fleet(folder / "fleet", scale.workers, environment, history, body="clipfleet")
        customers = Customers(
            folder, seed, redis_url=servers.url, environment=environment, site=servers.site, history=history
        )
        system = System(servers, fleet, customers, history)
        try:
            fleet.start()
            customers.start()
            notes = _break(system, schedule)
        finally:
            fleet.stop()
        history.note("survey")
        world = _survey(system, folder)
        completed = completions(servers.direct_url, customers.plans)
    history.note("end")
    history.close()
    claims = read_claims(fleet.claims_folder)
    measured = measure(
        Notes(
            began=began,
            wall_began=wall_began,
            events=list(read_history(history.path)),
            claims=claims,
            ended=fleet.ended,
            frozen=fleet.frozen,
            completed=completed,
            s3_jobs=frozenset(plan.job_id for plan in customers.plans if plan.output is OutputKind.S3),
        )
    )
    return Outcome(
        seed=seed,
        scale=scale,
        seconds=time.monotonic() - began,
        planned=Counter(fault.kind for fault in schedule),
        measured=measured,
        workers=len(fleet.ended),
        claims=len(claims),
        losses=sum(claim.losses > 0 for claim in claims),
        world=world,
        violations=check(world),
        notes=notes,
    )


def _break(system: System, schedule: Sequence[PlannedFault]) -> list[str]:
    """The faults, then time for the jobs to end; returns what people should know."""
    nemesis = Nemesis(schedule, system)
    nemesis.run()
    system.servers.heal()
    nemesis.wait_for(lambda: not system.fleet.any_armed, _CRASH_SECONDS)
    unreached = system.fleet.disarm()
    system.customers.close()
    system.history.note("customers_close")
    notes = [f"{unreached} crash points were not reached"] if unreached else []
    if not nemesis.wait_for(lambda: system.customers.are_done, _END_SECONDS):
        notes.append(f"jobs still run {_END_SECONDS:g} s after the last fault")
    return notes


def _survey(system: System, folder: Path) -> World:
    servers, customers, fleet = system.servers, system.customers, system.fleet
    with Client(Settings(redis_url=servers.direct_url)) as client:
        jobs = list(survey_jobs(client, customers.plans))
    with connect(servers.direct_url) as redis:
        without_ttl = keys_without_ttl(redis)
    ends = [
        f"worker {end.number} in slot {end.slot}: exit code {end.code} after {end.ended_by or 'nothing'}"
        for end in fleet.ended
        if (end.ended_by, end.code) not in (("SIGKILL", -9), ("crash point", -9), ("SIGTERM", 0))
        and end.struck_by is None
    ]
    return World(
        jobs=jobs,
        events=completion_events(servers.direct_url),
        picture_hashes=customers.picture_hashes,
        attempts=attempts_of(read_claims(fleet.claims_folder)),
        keys_without_ttl=without_ttl,
        processes=processes_of(str(folder)),
        worker_ends=[*ends, *customers.failures],
    )


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Break a running system by a schedule, then check what is left.",
        epilog="CHAOS_SEED and CHAOS_SCALE in the environment are the defaults of --seed and --scale.",
    )
    parser.add_argument("--seed", type=int, default=_seed(os.environ.get("CHAOS_SEED")))
    parser.add_argument("--scale", choices=list(SCALES), default=os.environ.get("CHAOS_SCALE") or "default")
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
