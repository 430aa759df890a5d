"""What `make chaos` reports of a run: who died holding what, and how long recovery took."""

from __future__ import annotations

from ops.chaos.checker import Attempts
from ops.chaos.claims import ClaimNote
from ops.chaos.fleet import Ended
from ops.chaos.measures import Notes, measure
from ops.chaos.recovery import Death, Recovery, Span, chunk_recoveries, server_recoveries, slowest
from ops.chaos.schedule import FaultKind
from ops.chaos.survey import attempts_of

NO_JOBS: frozenset[str] = frozenset()


def claim(at: float, worker: int, losses: int = 0, *, job: str = "a", generation: int = 0) -> ClaimNote:
    return ClaimNote(at, worker, job, 0, generation, losses, failures=0)


class TestChunks:
    def test_from_a_death_to_the_next_claim(self) -> None:
        claims = [claim(1, 1), claim(5.5, 2, losses=1)]
        deaths = [Death(1, 2.0, FaultKind.KILL)]

        assert chunk_recoveries(claims, deaths, [], NO_JOBS) == [Recovery(FaultKind.KILL, 3.5)]

    def test_a_second_loss_waits_for_its_back_off(self) -> None:
        claims = [claim(1, 1), claim(5, 2, losses=1), claim(12, 3, losses=2)]
        deaths = [Death(1, 2.0, FaultKind.KILL), Death(2, 6.0, FaultKind.CRASH_POINT)]

        second = chunk_recoveries(claims, deaths, [], NO_JOBS)[1]

        assert second == Recovery(FaultKind.CRASH_POINT, 6.0, is_first_loss=False)

    def test_what_was_given_back_or_belongs_to_others_does_not_count(self) -> None:
        given_back = [claim(1, 1), claim(5, 2)]
        before_the_claim = [claim(3, 1), claim(5, 2, losses=1)]
        next_generation = [claim(1, 1), claim(5, 2, losses=1, generation=1)]
        deaths = [Death(1, 2.0, FaultKind.KILL)]

        for claims in (given_back, before_the_claim, next_generation):
            assert chunk_recoveries(claims, deaths, [], NO_JOBS) == []

    def test_a_worker_that_was_frozen_then_killed_was_lost_when_it_froze(self) -> None:
        claims = [claim(1, 1), claim(5, 2, losses=1)]
        deaths = [Death(1, 4.0, FaultKind.KILL), Death(1, 2.0, FaultKind.ZOMBIE)]

        assert chunk_recoveries(claims, deaths, [], NO_JOBS) == [Recovery(FaultKind.ZOMBIE, 3.0)]

    def test_a_broken_server_excuses_those_who_need_it(self) -> None:
        claims = [claim(1, 1), claim(5, 2, losses=1)]
        deaths = [Death(1, 2.0, FaultKind.KILL)]
        redis, s3 = Span(1, FaultKind.REDIS_KILL, 3, 4), Span(2, FaultKind.S3_OUTAGE, 3, 4)

        def is_undisturbed(span: Span, s3_jobs: frozenset[str] = NO_JOBS) -> bool:
            return chunk_recoveries(claims, deaths, [span], s3_jobs)[0].is_undisturbed

        assert not is_undisturbed(redis)
        assert is_undisturbed(s3)
        assert not is_undisturbed(s3, frozenset({"a"}))
        assert is_undisturbed(Span(1, FaultKind.REDIS_KILL, 20, 21))


def test_a_server_is_back_with_the_next_chunk() -> None:
    spans = [
        Span(1, FaultKind.REDIS_KILL, 10, 11),
        Span(2, FaultKind.S3_OUTAGE, 20, 30),
        Span(3, FaultKind.REDIS_RESET, 50, 50),
        Span(4, FaultKind.KILL, 12, 12),
    ]
    completed = {False: [10.5, 11.5, 30.1, 34.0], True: [34.0]}

    found = server_recoveries(spans, completed)
    amid_others = server_recoveries([spans[1], Span(5, FaultKind.REDIS_FREEZE, 25, 33)], completed)[0]

    assert not amid_others.is_undisturbed
    assert found == [Recovery(FaultKind.REDIS_KILL, 0.5), Recovery(FaultKind.S3_OUTAGE, 4.0)]
    assert slowest([*found, Recovery(FaultKind.REDIS_KILL, 0.1)]) == {
        FaultKind.REDIS_KILL: 0.5,
        FaultKind.S3_OUTAGE: 4.0,
    }


def test_owners_that_were_struck_down_are_counted_per_chunk_and_generation() -> None:
    claims = [claim(1, 1), claim(5, 2, losses=1), claim(9, 3, losses=2), claim(20, 4, generation=1)]
    deaths = [Death(1, 2.0, FaultKind.KILL), Death(2, 6.0, FaultKind.ZOMBIE), Death(4, 30.0, FaultKind.KILL)]

    assert attempts_of(claims, deaths) == [
        Attempts("a", 0, losses=2, failures=0, deaths=2),
        Attempts("a", 0, losses=0, failures=0, deaths=1),
    ]


def test_faults_that_did_not_strike_are_not_counted() -> None:
    in_step, of_producer = "death at a crash point", "death of a producer"
    events = [
        {"what": "fault", "number": 1, "kind": in_step, "point": "mid_write", "at_seconds": 1},
        {"what": "fault_ended", "number": 1, "kind": in_step, "at_seconds": 1},
        {"what": "fault", "number": 2, "kind": in_step, "point": "mid_fetch", "at_seconds": 2},
        {"what": "fault_ended", "number": 2, "kind": in_step, "at_seconds": 2},
        {"what": "fault", "number": 3, "kind": of_producer, "point": "mid_submit", "at_seconds": 3},
        {"what": "fault_ended", "number": 3, "kind": of_producer, "at_seconds": 3},
        {"what": "producer_ended", "fault": 3, "code": 0},
    ]
    ended = [
        Ended(1, 0, -9, "crash point", struck_by=1, at=1001.5),
        Ended(2, 0, 0, "SIGTERM", at=1010.0, took_seconds=2.5),
        Ended(3, 0, 0, "SIGTERM", at=1010.0, took_seconds=9.5, is_last=True),
    ]
    notes = Notes(
        began=1000.0, events=events, claims=[claim(1001, 1), claim(1004, 2, losses=1)],
        ended=ended, frozen=[], completed={"a": [1004.0]}, s3_jobs=NO_JOBS,
    )  # fmt: skip

    measured = measure(notes)

    assert measured.done == {
        FaultKind.CRASH_POINT: 1, FaultKind.PRODUCER_CRASH: 0, FaultKind.FREEZE_IN_STEP: 0,
        FaultKind.OVERWRITE: 0,
    }  # fmt: skip
    assert measured.crash_points == {"mid_write": 1}
    assert measured.slowest == {FaultKind.CRASH_POINT: 2.5, FaultKind.TERMINATE: 2.5}
