"""When a host is left alone, who tries it again, how long that lasts, and that others never notice."""

from __future__ import annotations

import asyncio
import errno

import pytest

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import HostLeftAlone, ItemFailure, TransientFailure, WorkerShortageError
from clipfleet_worker.fetch.host_breaker import BreakerPolicy, HostBreaker
from tests.support.doubles import Clock

POLICY = BreakerPolicy(failing_urls=3)
DOWN = TransientFailure(ErrorCode.CONNECT_FAILED, "h: Connection refused")


class Breaker:
    """A breaker, its clock, and short ways to report to it."""

    def __init__(self, policy: BreakerPolicy = POLICY) -> None:
        self.clock = Clock()
        self.breaker = HostBreaker(policy, monotonic=self.clock)

    def ask(self, url: str, end: BaseException | None = None, *, host: str = "h:80") -> HostLeftAlone | None:
        """One request; the refusal if it was not made."""
        made = False
        try:
            with self.breaker.watch(host, url):
                made = True
                if end is not None:
                    raise end
        except HostLeftAlone as refusal:
            return refusal
        except BaseException as error:
            assert error is end
        assert made
        return None

    def fail(self, count: int, *, host: str = "h:80", end: BaseException = DOWN) -> None:
        for number in range(count):
            assert self.ask(f"u{number}", end, host=host) is None


@pytest.fixture
def breaker() -> Breaker:
    return Breaker()


def refused(breaker: Breaker, url: str = "other") -> HostLeftAlone:
    refusal = breaker.ask(url)
    assert refusal is not None
    return refusal


def test_a_host_is_asked_until_so_many_urls_have_failed_in_a_row(breaker: Breaker) -> None:
    breaker.fail(2)
    assert breaker.ask("good") is None
    breaker.fail(3)

    refusal = refused(breaker)

    assert refusal.error.code is ErrorCode.CONNECT_FAILED
    assert refusal.error.detail == (
        "h:80: no request made after 3 failures in a row, the last: h: Connection refused; next trial in 1 s"
    )
    assert refusal.wait_seconds == 1.0


@pytest.mark.parametrize("code", ["connect_failed", "timeout", "server_error", "rate_limited"])
def test_kinds_of_failure_that_count(breaker: Breaker, code: str) -> None:
    breaker.fail(3, end=TransientFailure(ErrorCode(code), "h: no"))
    assert refused(breaker).error.code == code


@pytest.mark.parametrize("code", ["not_found", "too_many_bytes", "incomplete_body"])
def test_answers_of_other_kinds_show_that_the_host_is_there(breaker: Breaker, code: str) -> None:
    kind = TransientFailure if code == "incomplete_body" else ItemFailure
    breaker.fail(2)
    breaker.ask("gone", kind(ErrorCode(code), "h: no"))
    breaker.fail(2)
    assert breaker.ask("good") is None


def test_one_url_that_is_asked_for_again_and_again_is_no_outage(breaker: Breaker) -> None:
    for _ in range(50):
        assert breaker.ask("bad", DOWN) is None


class TestTrials:
    @pytest.fixture
    def breaker(self) -> Breaker:
        """Of a host that is left alone."""
        breaker = Breaker()
        breaker.fail(3)
        return breaker

    def test_one_request_tries_and_the_others_wait(self, breaker: Breaker) -> None:
        breaker.clock.now += 1.0
        with breaker.breaker.watch("h:80", "trial"):
            assert refused(breaker).wait_seconds == 1.0
        assert breaker.ask("any") is None

    def test_pauses_grow_while_it_is_in_vain(self, breaker: Breaker) -> None:
        pauses = []
        for _ in range(12):
            pauses.append(refused(breaker).wait_seconds)
            breaker.clock.now += pauses[-1]
            assert breaker.ask("trial", DOWN) is None
        assert pauses == [1, 2, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5]

    def test_an_outage_grows_old(self, breaker: Breaker) -> None:
        breaker.clock.now += 29.0
        breaker.ask("trial", DOWN)
        assert (refused(breaker).wait_seconds, refused(breaker).is_old) == (2.0, False)
        breaker.clock.now += 1.5
        assert refused(breaker).is_old

    def test_what_this_worker_lacks_says_nothing_about_the_host(self, breaker: Breaker) -> None:
        short = TransientFailure(ErrorCode.CONNECT_FAILED, "h: Too many open files")
        short.__cause__ = OSError(errno.EMFILE, "Too many open files")
        breaker.clock.now += 1
        for number, host in enumerate(["well:80"] * 5 + ["h:80"]):
            with pytest.raises(WorkerShortageError), breaker.breaker.watch(host, f"u{number}"):
                raise short
        assert breaker.breaker.refusal("well:80") is None
        assert breaker.ask("next trial") is None  # it was no trial

    def test_a_cancelled_trial_has_shown_nothing(self, breaker: Breaker) -> None:
        breaker.clock.now += 1.0
        breaker.ask("trial", asyncio.CancelledError())
        assert breaker.ask("next trial", DOWN) is None
        assert breaker.ask("other") is not None

    def test_any_answer_ends_it(self, breaker: Breaker) -> None:
        breaker.clock.now += 1.0
        breaker.ask("trial", ItemFailure(ErrorCode.NOT_FOUND, "h: HTTP status 404"))
        breaker.fail(2)
        assert breaker.ask("good") is None

    @pytest.mark.parametrize("end", [DOWN, None])
    def test_a_request_that_was_under_way_ends_it_only_if_it_succeeds(self, end: ItemFailure | None) -> None:
        breaker = Breaker()
        late = breaker.breaker.watch("h:80", "late")
        late.__enter__()
        breaker.fail(3)
        assert not late.__exit__(end and type(end), end, None)
        refusal = breaker.ask("other")
        assert (refusal and refusal.wait_seconds) == (end and 1.0)

    @pytest.mark.parametrize(("named", "kept"), [(20, 20.0), (1e9, 60.0)])
    def test_a_host_that_names_a_time_is_left_alone_as_long(self, named: float, kept: float) -> None:
        breaker = Breaker()
        breaker.fail(3, end=TransientFailure(ErrorCode.RATE_LIMITED, "h: no", retry_after_seconds=named))
        assert refused(breaker).wait_seconds == kept


def test_hosts_know_nothing_of_each_other_s_troubles(breaker: Breaker) -> None:
    for host in ("h:80", "h:81", "i:80"):
        breaker.fail(2, host=host)
    breaker.ask("u9", DOWN, host="h:81")
    left_alone = [host for host in ("h:80", "h:81", "i:80") if breaker.ask("u9", host=host) is not None]
    assert left_alone == ["h:81"]


def test_what_is_remembered_is_bounded() -> None:
    breaker = Breaker(BreakerPolicy(failing_urls=2, remembered_hosts=100))
    for number in range(1000):
        breaker.fail(2, host=f"host{number}:80")
    assert len(breaker.breaker._troubles) == 100
    assert breaker.ask("u", host="host999:80") is not None
    assert breaker.ask("u", host="host0:80") is None


def test_hosts_without_trouble_cost_nothing(breaker: Breaker) -> None:
    for number in range(100):
        for end in (None, DOWN, None):
            breaker.ask("u", end, host=f"host{number}:80")
    assert not breaker.breaker._troubles
