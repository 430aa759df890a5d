"""What a run has shown, as a table for people."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from ops.chaos.checker import GIVEN_UP_CODE, MAX_ATTEMPTS, Kind, Violation, World, count_rows
from ops.chaos.measures import Measured
from ops.chaos.schedule import FaultKind, Scale
from ops.chaos.servers import DRAIN_SECONDS, LEASE_SECONDS, RECONCILE_SECONDS

_SHOWN_VIOLATIONS = 20
_USUAL_LEASE_SECONDS = 30.0  # the default of CLIPFLEET_LEASE_SECONDS

_UNTIL = {
    FaultKind.KILL: "its chunks run again",
    FaultKind.CRASH_POINT: "its chunks run again",
    FaultKind.ZOMBIE: "its chunks run again",
    FaultKind.FREEZE_IN_STEP: "",
    FaultKind.FEW_DESCRIPTORS: "",
    FaultKind.LITTLE_MEMORY: "",
    FaultKind.OVERWRITE: "",
    FaultKind.PLANT: "",
    FaultKind.PRODUCER_CRASH: "",
    FaultKind.TERMINATE: "the exit, code 0; without Redis 70",
}


@dataclass(frozen=True, slots=True)
class Outcome:
    """All that is reported."""

    seed: int
    scale: Scale
    system: str
    seconds: float
    planned: Mapping[FaultKind, int]
    measured: Measured
    workers: int  # processes that were started
    claims: int
    losses: int
    world: World
    violations: Sequence[Violation]
    remarks: Sequence[str] = ()


def print_report(console: Console, outcome: Outcome) -> None:
    """The tables, then the verdict."""
    console.print(_faults_table(outcome))
    console.print(_world_table(outcome))
    for remark in outcome.remarks:
        console.print(remark)
    for violation in outcome.violations[:_SHOWN_VIOLATIONS]:
        console.print(f"[red]{violation.kind}[/]: {escape(f'{violation.where}: {violation.detail}')}")
    hidden = len(outcome.violations) - _SHOWN_VIOLATIONS
    if hidden > 0:
        console.print(f"... and {hidden} more")


def _faults_table(outcome: Outcome) -> Table:
    title = f"{outcome.system}: seed {outcome.seed}, scale {outcome.scale.name}, {outcome.seconds:.0f} s"
    table = Table(title=title, box=box.SIMPLE_HEAD)
    table.add_column("fault")
    for name in ("planned", "done", "slowest recovery", "in worse times"):
        table.add_column(name, justify="right")
    table.add_column("until")
    for kind in FaultKind:
        if outcome.planned.get(kind):
            table.add_row(
                kind.value,
                str(outcome.planned[kind]),
                str(outcome.measured.done.get(kind, 0)),
                _seconds(outcome.measured.slowest.get(kind)),
                _seconds(outcome.measured.slowest_disturbed.get(kind)),
                _UNTIL.get(kind, "the next chunk is complete"),
            )
    table.caption = "\n".join(_remarks(outcome))
    return table


def _remarks(outcome: Outcome) -> Iterator[str]:
    """How the table is to be read."""
    yield f"lease {LEASE_SECONDS:g} s, reconcile {RECONCILE_SECONDS:g} s, drain {DRAIN_SECONDS:g} s"
    yield "worse times: a server was broken or coming back, or it was a second loss, which waits for longer"
    if outcome.planned.get(FaultKind.S3_OUTAGE):
        away_seconds = outcome.scale.s3_outage_seconds
        minutes = away_seconds * _USUAL_LEASE_SECONDS / LEASE_SECONDS / 60
        yield f"S3 is away for {away_seconds:g} s; with leases of 30 s as usual that would be {minutes:g} min"
    points = sorted(outcome.measured.crash_points.items())
    if points:
        yield "deaths at: " + ", ".join(f"{point} {count}" for point, count in points)


def _world_table(outcome: Outcome) -> Table:
    world, violations = outcome.world, outcome.violations
    ends = sum(plan.generations for plan, _ in world.jobs)
    states = Counter(left.state for _, left in world.jobs)
    table = Table(box=box.SIMPLE_HEAD, show_header=False)
    table.add_column(justify="right")
    table.add_column()
    rows = (
        (len(world.jobs), "jobs (" + ", ".join(f"{count} {state}" for state, count in states.items()) + ")"),
        (sum(len(plan.items) for plan, _ in world.jobs), "items"),
        (sum(len(left.rows) for _, left in world.jobs), "rows"),
        (count_rows(violations, Kind.MISSING), "missing"),
        (count_rows(violations, Kind.DOUBLED), "doubled"),
        (count_rows(violations, Kind.STRANGE) + count_rows(violations, Kind.WRONG), "wrong"),
        (_given_up(world), f"rows of chunks that {MAX_ATTEMPTS} workers died of, as they say"),
        (count_rows(violations, Kind.GIVEN_UP), "rows of other chunks that were given up"),
        (len(world.events), f"events, for {ends} ends of jobs, retries included"),
        (outcome.workers, "worker processes"),
        (outcome.claims, f"claims, {outcome.losses} after a loss"),
        (_losses_without_death(world), "losses of chunks whose worker was not struck down"),
        (len(violations), "violations in all"),
    )
    for number, what in rows:
        table.add_row(f"{number:,}", what)
    return table


def _losses_without_death(world: World) -> int:
    """Leases that expired although their owner was neither killed nor frozen."""
    return sum(max(0, one.losses - one.deaths) for one in world.attempts)


def _given_up(world: World) -> int:
    """Rows that say that their chunk was given up, and may."""
    rightly = {(one.job_id, one.chunk_id) for one in world.attempts if one.is_given_up_rightly}
    return sum(
        row.error_code == GIVEN_UP_CODE and (plan.job_id, row.item_index // plan.chunk_size) in rightly
        for plan, left in world.jobs
        for row in left.rows
    )


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.1f} s"
