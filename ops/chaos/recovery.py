"""How long recovery took, by kind of fault. Pure: works on the history."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ops.chaos.claims import ClaimNote
from ops.chaos.schedule import REDIS_FAULTS, S3_FAULTS, FaultKind

SERVER_FAULTS = REDIS_FAULTS | S3_FAULTS


@dataclass(frozen=True, slots=True)
class Span:
    """A fault as it happened; seconds since the start of the run."""

    number: int
    kind: FaultKind
    began_at: float
    ended_at: float


@dataclass(frozen=True, slots=True)
class Death:
    """A worker that was lost: died, or was frozen beyond its lease."""

    worker: int
    at: float
    kind: FaultKind


@dataclass(frozen=True, slots=True)
class Recovery:
    """One recovery."""

    kind: FaultKind
    seconds: float
    is_first_loss: bool = True  # later ones wait for a back-off that doubles
    is_undisturbed: bool = True  # no server was broken meanwhile


def chunk_recoveries(
    claims: Sequence[ClaimNote], deaths: Sequence[Death], spans: Sequence[Span], s3_jobs: frozenset[str]
) -> list[Recovery]:
    """From the loss of a worker until each chunk that it held was claimed again.

    Args:
        claims: all claims of the run, by time.
        deaths: of all workers.
        spans: the faults of servers.
        s3_jobs: whose chunks suffer when S3 does.
    """
    before: dict[tuple[str, int, int], ClaimNote] = {}
    found = []
    for claim in claims:
        key = (claim.job_id, claim.chunk_id, claim.generation)
        previous = before.get(key)
        before[key] = claim
        if previous is None or claim.losses <= previous.losses:  # new, or given back in time
            continue
        death = first_death(previous, claim.at, deaths)
        if death is not None:
            matter = (span for span in spans if _matters(span, claim.job_id in s3_jobs))
            disturbed = any(_overlap(span, death.at, claim.at) for span in matter)
            is_first = claim.losses == 1
            found.append(Recovery(death.kind, claim.at - death.at, is_first, not disturbed))
    return found


def server_recoveries(spans: Sequence[Span], completed: Mapping[bool, Sequence[float]]) -> list[Recovery]:
    """From the end of each fault of a server, or the death of a primary, until the next chunk was completed.

    Args:
        spans: the faults.
        completed: times at which chunks were completed, in order; `True`: of outputs in S3, `False`: of all.
    """
    found = []
    for span in spans:
        times = completed[span.kind in S3_FAULTS]
        since = _mended_at(span)
        position = bisect_right(times, since)
        if span.kind in SERVER_FAULTS and position < len(times):
            back_at = times[position]
            needs_s3 = span.kind in S3_FAULTS
            others = (other for other in spans if other is not span and _matters(other, needs_s3))
            disturbed = any(_overlap(other, since, back_at) for other in others)
            found.append(Recovery(span.kind, back_at - since, is_undisturbed=not disturbed))
    return found


def slowest(recoveries: Iterable[Recovery]) -> dict[FaultKind, float]:
    """The longest of each kind, in seconds."""
    found: dict[FaultKind, float] = {}
    for recovery in recoveries:
        found[recovery.kind] = max(recovery.seconds, found.get(recovery.kind, 0.0))
    return found


def first_death(claim: ClaimNote, until: float, deaths: Iterable[Death]) -> Death | None:
    """How the worker of a claim was lost before another worker claimed the chunk."""
    its = (death for death in deaths if death.worker == claim.worker and claim.at <= death.at <= until)
    return min(its, key=lambda death: death.at, default=None)


def _mended_at(span: Span) -> float:
    """From when on the system can recover: a failover is its recovery."""
    return span.began_at if span.kind is FaultKind.FAILOVER else span.ended_at


def _matters(span: Span, needs_s3: bool) -> bool:
    """Whether a fault holds up all work, or that which needs S3."""
    return span.kind in REDIS_FAULTS or (needs_s3 and span.kind in S3_FAULTS)


def _overlap(span: Span, begin: float, end: float) -> bool:
    """Whether a server was broken, or coming back, within a time."""
    return span.began_at <= end and span.ended_at + _COMING_BACK_SECONDS >= begin


_COMING_BACK_SECONDS = 5.0
