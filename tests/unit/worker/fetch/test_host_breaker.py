"""When a host is left alone, who tries it again, how long that lasts, and that others never notice."""

from __future__ import annotations

import asyncio
import errno
from collections.abc import Iterator

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


@pytest.mark.parametrize(
    "code",
    [ErrorCode.CONNECT_FAILED, ErrorCode.TIMEOUT, ErrorCode.SERVER_ERROR, ErrorCode.RATE_LIMITED],
)
def test_kinds_of_failure_that_count(breaker: Breaker, code: ErrorCode) -> None:
    breaker.fail(3, end=TransientFailure(code, "h: no"))
    assert refused(breaker).error.code is code


@pytest.mark.parametrize(
    "end",
    [
        ItemFailure(ErrorCode.NOT_FOUND, "h: HTTP status 404"),
        ItemFailure(ErrorCode.TOO_MANY_BYTES, "h: large"),
        TransientFailure(ErrorCode.INCOMPLETE_BODY, "h: the body broke off"),
    ],
)
def test_answers_of_other_kinds_show_that_the_host_is_there(breaker: Breaker, end: ItemFailure) -> None:
    breaker.fail(2)
    breaker.ask("gone", end)
    breaker.fail(2)
    assert breaker.ask("good") is None


def test_one_url_that_is_asked_for_again_and_again_is_no_outage(breaker: Breaker) -> None:
    for _ in range(50):
        assert breaker.ask("bad", DOWN) is None


class TestTrials:
    def test_one_request_tries_and_the_others_wait(self, breaker: Breaker) -> None:
        breaker.fail(3)
        breaker.clock.now += 1.0
        with breaker.breaker.watch("h:80", "trial"):
            assert refused(breaker).wait_seconds == 1.0
        assert breaker.ask("any") is None

    def test_pauses_grow_while_it_is_in_vain(self, breaker: Breaker) -> None:
        breaker.fail(3)
        pauses, began = [], breaker.clock.now
        for _ in range(12):
            pauses.append(refused(breaker).wait_seconds)
            breaker.clock.now += pauses[-1]
            assert breaker.ask("trial", DOWN) is None
        assert pauses == [1, 2, 4, 5, 5, 5, 5, 5, 5, 5, 5, 5]
        assert breaker.clock.now - began == sum(pauses)

    def test_an_outage_grows_old(self, breaker: Breaker) -> None:
        breaker.fail(3)
        breaker.clock.now += 29.0
        breaker.ask("trial", DOWN)
        assert (refused(breaker).wait_seconds, refused(breaker).is_old) == (2.0, False)
        breaker.clock.now += 1.5
        assert refused(breaker).is_old

    def test_what_this_worker_lacks_says_nothing_about_the_host(self, breaker: Breaker) -> None:
        short = TransientFailure(ErrorCode.CONNECT_FAILED, "h: Too many open files")
        short.__cause__ = OSError(errno.EMFILE, "Too many open files")
        for number in range(5):
            with pytest.raises(WorkerShortageError), breaker.breaker.watch("h:80", f"u{number}"):
                raise short
        assert breaker.breaker.refusal("h:80") is None
        breaker.fail(3)
        breaker.clock.now += 1

        with pytest.raises(WorkerShortageError), breaker.breaker.watch("h:80", "trial"):
            raise short

        assert breaker.ask("next trial") is None  # it was no trial

    def test_a_cancelled_trial_has_shown_nothing(self, breaker: Breaker) -> None:
        breaker.fail(3)
        breaker.clock.now += 1.0
        breaker.ask("trial", asyncio.CancelledError())
        assert breaker.ask("next trial", DOWN) is None
        assert breaker.ask("other") is not None

    def test_any_answer_ends_it(self, breaker: Breaker) -> None:
        breaker.fail(3)
        breaker.clock.now += 1.0
        breaker.ask("trial", ItemFailure(ErrorCode.NOT_FOUND, "h: HTTP status 404"))
        breaker.fail(2)
        assert breaker.ask("good") is None

    def test_requests_that_were_under_way_when_it_began_change_no_pause(self, breaker: Breaker) -> None:
        late = breaker.breaker.watch("h:80", "late")
        late.__enter__()
        breaker.fail(3)
        assert late.__exit__(type(DOWN), DOWN, None) is False
        assert refused(breaker).wait_seconds == 1.0

    def test_and_one_of_them_that_succeeds_ends_it(self, breaker: Breaker) -> None:
        late = breaker.breaker.watch("h:80", "late")
        late.__enter__()
        breaker.fail(3)
        late.__exit__(None, None, None)
        assert breaker.ask("other") is None

    def test_a_host_that_names_a_time_is_left_alone_as_long(self, breaker: Breaker) -> None:
        said = TransientFailure(ErrorCode.RATE_LIMITED, "h: HTTP status 429", retry_after_seconds=20)
        breaker.fail(3, end=said)
        assert refused(breaker).wait_seconds == 20.0
        endless = Breaker()
        endless.fail(3, end=TransientFailure(ErrorCode.RATE_LIMITED, "h: no", retry_after_seconds=1e9))
        assert refused(endless).wait_seconds == 60.0


def test_hosts_know_nothing_of_each_other_s_troubles(breaker: Breaker) -> None:
    for host in ("h:80", "h:81", "i:80"):
        breaker.fail(2, host=host)
    breaker.ask("u9", DOWN, host="h:81")
    assert breaker.ask("u9", host="h:81") is not None
    assert breaker.ask("u9", host="h:80") is None
    assert breaker.ask("u9", host="i:80") is None


def test_what_is_remembered_is_bounded() -> None:
    breaker = Breaker(BreakerPolicy(failing_urls=2, remembered_hosts=100))
    for number in range(1000):
        breaker.fail(2, host=f"host{number}:80")
    assert len(breaker.breaker._troubles) == 100
    assert breaker.ask("u", host="host999:80") is not None
    assert breaker.ask("u", host="host0:80") is None


def test_hosts_without_trouble_cost_nothing(breaker: Breaker) -> None:
    def hosts() -> Iterator[str]:
        yield from (f"host{number}:80" for number in range(100))

    for host in hosts():
        breaker.ask("u", host=host)
        breaker.ask("u", DOWN, host=host)
        breaker.ask("u", host=host)
    assert not breaker.breaker._troubles
