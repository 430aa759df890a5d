"""Asking again: what, how often, when, and what is told in the end. The clock moves when somebody sleeps."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import replace

import pytest

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import HostLeftAlone, ItemFailure, TransientFailure
from clipfleet_worker.fetch.retrying import ChunkTime, RetryingFetcher, RetryPolicy
from tests.support.doubles import Clock

POLICY = RetryPolicy()
OVERLOADED = TransientFailure(ErrorCode.SERVER_ERROR, "h: HTTP status 503")
SLOW = TransientFailure(ErrorCode.TIMEOUT, "h: not finished within 30 s")
CUT = TransientFailure(ErrorCode.INCOMPLETE_BODY, "h: the body broke off")
NAMELESS = TransientFailure(ErrorCode.DNS_FAILED, "h: Temporary failure in name resolution")


def told(seconds: float) -> TransientFailure:
    return TransientFailure(ErrorCode.RATE_LIMITED, "h: HTTP status 429", retry_after_seconds=seconds)


def alone(seconds: float, *, is_old: bool = False) -> HostLeftAlone:
    return HostLeftAlone(ErrorCode.CONNECT_FAILED, "h: not asked", wait_seconds=seconds, is_old=is_old)


class Host:
    """Answers one after the other, the last one for ever; each costs some seconds of the clock."""

    def __init__(self, answers: Sequence[bytes | Exception], clock: Clock, cost_seconds: float = 0.0) -> None:
        self.answers, self.clock, self.cost_seconds = list(answers), clock, cost_seconds
        self.asked_at: list[float] = []
        self.calls: list[str] = []

    async def start(self) -> None:
        self.calls.append("start")

    async def close(self) -> None:
        self.calls.append("close")

    async def fetch(self, uri: str) -> bytes:
        self.asked_at.append(self.clock.now - 100)
        self.clock.now += self.cost_seconds
        answer = self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


class Trial:
    """One fetch: when the host was asked, and what came of it."""

    def __init__(
        self,
        *answers: bytes | Exception,
        policy: RetryPolicy = POLICY,
        chance: float = 1.0,
        cost_seconds: float = 0.0,
        chunk_seconds: float = 180.0,
    ) -> None:
        clock, time_left = Clock(), ChunkTime(chunk_seconds)
        host = Host(answers, clock, cost_seconds)

        async def sleep(seconds: float) -> None:
            clock.now += seconds
            time_left.seconds = chunk_seconds - (clock.now - 100)

        fetcher = RetryingFetcher(host, policy, monotonic=clock, chance=lambda: chance, sleep=sleep)
        self.result: bytes | str
        try:
            self.result = asyncio.run(fetcher.fetch("http://h/x", time_left))
        except ItemFailure as failure:
            self.result = str(failure)
        self.asked_at = host.asked_at


def test_what_is_there_is_asked_for_once() -> None:
    trial = Trial(b"x")
    assert (trial.result, trial.asked_at) == (b"x", [0])


@pytest.mark.parametrize("code", ["bad_uri", "not_found", "too_many_bytes", "http_error", "robots_refused"])
def test_what_will_not_get_better_is_asked_for_once(code: str) -> None:
    trial = Trial(ItemFailure(ErrorCode(code), "h: no"))
    assert (trial.result, trial.asked_at) == (f"{code}: h: no", [0])


@pytest.mark.parametrize("failure", [OVERLOADED, SLOW, CUT, told(0.0)])
def test_a_passing_trouble_costs_no_row(failure: TransientFailure) -> None:
    assert Trial(failure, b"x").result == b"x"


def test_delays_double_up_to_their_cap_and_the_code_is_the_last_one() -> None:
    trial = Trial(told(0), OVERLOADED)
    assert trial.asked_at == [0, 1.5, 4.5, 10.5, 22.5]
    assert trial.result == "server_error: h: HTTP status 503 (5 attempts)"
    capped = replace(POLICY, attempts=7, max_delay_seconds=4.0)
    assert Trial(OVERLOADED, policy=capped).asked_at == [0, 1.5, 4.5, 8.5, 12.5, 16.5, 20.5]


def test_with_the_least_luck_an_outage_of_ten_seconds_is_still_outlived() -> None:
    assert Trial(OVERLOADED, chance=0.0).asked_at == [0, 0.75, 2.25, 5.25, 11.25]


@pytest.mark.parametrize("failure", [SLOW, CUT, NAMELESS])
def test_what_costs_much_is_tried_twice(failure: TransientFailure) -> None:
    assert len(Trial(failure).asked_at) == 2
    assert len(Trial(failure, policy=replace(POLICY, attempts=1)).asked_at) == 1


def test_an_attempt_that_took_all_the_time_there_is_was_the_last() -> None:
    trial = Trial(SLOW, cost_seconds=30.0)
    assert trial.asked_at == [0]
    assert trial.result == "timeout: h: not finished within 30 s"
    assert Trial(SLOW, cost_seconds=10.0).asked_at == [0, 11.5]


class TestRetryAfter:
    @pytest.mark.parametrize(
        ("answers", "asked_at"),
        [
            ([told(7), b"x"], [0, 7]),
            ([told(50), told(40), b"x"], [0, 50, 90]),  # longer than we insist by ourselves
            ([told(0.1), told(0.1), b"x"], [0, 1.5, 4.5]),  # a short one does not undo the back-off
            ([told(15)], [0, 15, 30, 45, 60]),  # the number of attempts holds
        ],
    )
    def test_it_is_waited_for(self, answers: list[bytes | Exception], asked_at: list[float]) -> None:
        assert Trial(*answers).asked_at == asked_at

    @pytest.mark.parametrize(("seconds", "chunk_seconds"), [(61, 180.0), (1e9, 180.0), (20, 20.0), (20, 5.0)])
    def test_a_long_one_ends_the_item_at_once(self, seconds: float, chunk_seconds: float) -> None:
        trial = Trial(told(seconds), b"x", chunk_seconds=chunk_seconds)
        assert trial.asked_at == [0]
        assert trial.result == "rate_limited: h: HTTP status 429"


def test_no_attempt_is_waited_for_that_the_chunk_has_no_time_for() -> None:
    trial = Trial(OVERLOADED, chunk_seconds=10.0)
    assert trial.asked_at == [0, 1.5, 4.5]
    assert trial.result == "server_error: h: HTTP status 503 (3 attempts)"


class TestHostThatIsLeftAlone:
    def test_it_is_waited_for_and_that_is_no_attempt(self) -> None:
        trial = Trial(*[alone(2.0)] * 7, OVERLOADED, OVERLOADED, b"x", chance=0.5)
        assert trial.result == b"x"
        assert len(trial.asked_at) == 10

    def test_as_long_as_the_outage_is_young(self) -> None:
        trial = Trial(*[alone(4.0)] * 9, alone(4.0, is_old=True), chance=0.0)
        assert trial.asked_at == [0, 4, 8, 12, 16, 20, 24, 28, 32, 36]
        assert trial.result == "connect_failed: h: not asked"

    def test_an_old_outage_is_waited_for_a_few_seconds(self) -> None:
        """The host may be well, and only those that asked last were unlucky."""
        assert Trial(alone(4.0, is_old=True), chance=0.0).asked_at == [0, 4, 8]
        assert Trial(alone(4.0, is_old=True), b"x", chance=0.0).result == b"x"
        assert Trial(alone(8.5, is_old=True), chance=0.0).asked_at == [0]

    def test_those_seconds_count_from_when_the_item_was_first_refused(self) -> None:
        trial = Trial(*[alone(4.0)] * 5, alone(1.0, is_old=True), chance=0.0)
        assert trial.asked_at == [0, 4, 8, 12, 16, 20]

    def test_nor_is_an_old_outage_waited_for_by_whoever_was_its_trial(self) -> None:
        assert Trial(SLOW, alone(1.0, is_old=True), chance=0.0, cost_seconds=15.0).asked_at == [0, 15.75]

    def test_items_come_back_one_after_the_other(self) -> None:
        times = [Trial(alone(4.0), b"x", chance=chance).asked_at[1] for chance in (0.0, 0.5, 1.0)]
        assert times == [4.0, 4.75, 5.5]

    def test_who_has_failed_himself_tells_his_own_failure(self) -> None:
        assert (
            Trial(OVERLOADED, OVERLOADED, alone(9.0, is_old=True)).result
            == "server_error: h: HTTP status 503 (2 attempts)"
        )

    def test_the_chunk_s_time_bounds_it(self) -> None:
        assert Trial(alone(4.0), chunk_seconds=9.0, chance=0.0).asked_at == [0, 4, 8]


def test_a_bug_is_nobody_s_passing_trouble() -> None:
    with pytest.raises(ZeroDivisionError):
        Trial(ZeroDivisionError())


def test_the_fetcher_is_opened_and_closed_with_it() -> None:
    host = Host([], Clock())
    fetcher = RetryingFetcher(host, POLICY)
    asyncio.run(fetcher.start())
    asyncio.run(fetcher.close())
    assert host.calls == ["start", "close"]
