"""From the notes of a run to its report: faults that were carried out, how long recovery took."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ops.chaos.claims import ClaimNote
from ops.chaos.fleet import Ended
from ops.chaos.recovery import (
    SERVER_FAULTS,
    Death,
    Recovery,
    Span,
    chunk_recoveries,
    server_recoveries,
    slowest,
)
from ops.chaos.schedule import FaultKind

_KIND_OF_END = {"SIGKILL": FaultKind.KILL, "crash point": FaultKind.CRASH_POINT}


@dataclass(frozen=True, slots=True)
class Notes:
    """All that was noted; times are `time.monotonic()` but for those of the events."""

    began: float  # start of the run
    events: Sequence[Mapping[str, Any]]  # of the history
    claims: Sequence[ClaimNote]
    ended: Sequence[Ended]
    frozen: Sequence[tuple[int, float]]  # worker, when
    completed: Mapping[str, Sequence[float]]  # by job
    s3_jobs: frozenset[str]


@dataclass(frozen=True, slots=True)
class Measured:
    """What is reported."""

    done: Mapping[FaultKind, int]
    crash_points: Mapping[str, int]
    slowest: Mapping[FaultKind, float]
    slowest_disturbed: Mapping[FaultKind, float]  # while a server was broken, or after several losses


def measure(notes: Notes) -> Measured:
    """What the notes say."""
    spans = spans_of(notes.events)
    deaths = deaths_of(notes.ended, notes.frozen)
    chunks = chunk_recoveries(notes.claims, deaths, _on_clock(spans, notes.began), notes.s3_jobs)
    exits = [
        Recovery(FaultKind.TERMINATE, end.took_seconds, is_undisturbed=end.code == 0)  # 70: Redis was away
        for end in notes.ended
        if end.ended_by == "SIGTERM" and not end.is_last
    ]
    found = [*chunks, *exits, *server_recoveries(spans, _completed(notes))]
    ordinary = [one for one in found if one.is_first_loss and one.is_undisturbed]
    others = [one for one in found if not (one.is_first_loss and one.is_undisturbed)]
    return Measured(
        done=_done(notes.events, notes.ended),
        crash_points=_crash_points(notes),
        slowest=slowest(ordinary),
        slowest_disturbed=slowest(others),
    )


def spans_of(events: Iterable[Mapping[str, Any]]) -> list[Span]:
    """The faults that were done, from begin to end."""
    begun: dict[int, Mapping[str, Any]] = {}
    spans = []
    for event in events:
        if event["what"] == "fault":
            begun[event["number"]] = event
        elif event["what"] == "fault_ended":
            first = begun[event["number"]]
            kind = FaultKind(event["kind"])
            spans.append(Span(event["number"], kind, first["at_seconds"], event["at_seconds"]))
    return spans


def _on_clock(spans: Iterable[Span], began: float) -> list[Span]:
    """The faults of servers, on the clock of the claims."""
    return [
        Span(span.number, span.kind, span.began_at + began, span.ended_at + began)
        for span in spans
        if span.kind in SERVER_FAULTS
    ]


def deaths_of(ended: Iterable[Ended], frozen: Iterable[tuple[int, float]]) -> list[Death]:
    """Workers that were struck down."""
    deaths = [
        Death(end.number, end.at, _KIND_OF_END[end.ended_by]) for end in ended if end.ended_by in _KIND_OF_END
    ]
    return deaths + [Death(worker, at, FaultKind.ZOMBIE) for worker, at in frozen]


def _done(events: Sequence[Mapping[str, Any]], ended: Iterable[Ended]) -> dict[FaultKind, int]:
    """Faults that struck: a crash point only where a worker died, a producer's likewise."""
    done = Counter(FaultKind(event["kind"]) for event in events if event["what"] == "fault")
    done[FaultKind.FREEZE_IN_STEP] = sum(event["what"] == "frozen_in_step" for event in events)
    done[FaultKind.OVERWRITE] = sum(event["what"] == "before_ended" for event in events)
    done[FaultKind.CRASH_POINT] = sum(end.struck_by is not None for end in ended)
    done[FaultKind.PRODUCER_CRASH] = sum(
        event["what"] == "producer_ended" and event["code"] == -9 for event in events
    )
    return dict(done)


def _crash_points(notes: Notes) -> dict[str, int]:
    points = {event["number"]: event["point"] for event in notes.events if event["what"] == "fault"}
    struck = [end.struck_by for end in notes.ended if end.struck_by is not None]
    struck += [
        event["fault"] for event in notes.events if event["what"] == "producer_ended" and event["code"] == -9
    ]
    return dict(Counter(points[number] for number in struck))


def _completed(notes: Notes) -> dict[bool, list[float]]:
    """Times of completed chunks since the start of the run: of all jobs, and of those in S3."""
    every = [(job_id, at - notes.began) for job_id, times in notes.completed.items() for at in times]
    return {
        False: sorted(at for _, at in every),
        True: sorted(at for job_id, at in every if job_id in notes.s3_jobs),
    }
