"""A circuit breaker per host: after repeated failures one trial request at a time until it answers again.

Meanwhile other requests fail at once, with the time of the next trial and whether the outage is an old one.
Hosts do not affect each other.
"""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from clipfleet.contract.jobs import ErrorCode, ItemError
from clipfleet_worker.failures import HostLeftAlone, ItemFailure, TransientFailure
from clipfleet_worker.process.shortages import shortage_behind

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class BreakerPolicy:
    """When a host's circuit opens, and for how long."""

    failing_urls: int = 10  # different ones in a row: retries of one bad URL are no outage
    first_pause_seconds: float = 1.0  # before the first trial; doubles with each failed trial
    max_pause_seconds: float = 5.0
    max_retry_after_seconds: float = 60.0  # cap of the host's own Retry-After
    young_seconds: float = 30.0  # age up to which an outage is a young one
    remembered_hosts: int = 10_000


class HostBreaker:
    """One for all hosts; belongs to one event loop."""

    def __init__(
        self, policy: BreakerPolicy | None = None, *, monotonic: Callable[[], float] = time.monotonic
    ) -> None:
        self._policy = policy or BreakerPolicy()
        self._monotonic = monotonic
        self._troubles: OrderedDict[str, _Trouble] = OrderedDict()  # of hosts whose last answer was a failure

    @contextmanager
    def watch(self, host: str, url: str) -> Iterator[None]:
        """Around one request: records how it ends.

        Args:
            host: with its port.
            url: of the request.

        Raises:
            HostLeftAlone: the request must not be made.
            WorkerShortageError: it failed for a shortage of this worker.
        """
        is_trial = self._enter(host)
        try:
            yield
        except ItemFailure as failure:
            shortage = shortage_behind(failure)
            if shortage is not None:
                self._learned_nothing(host, is_trial=is_trial)
                raise shortage from failure
            if isinstance(failure, TransientFailure) and failure.error.code is not ErrorCode.INCOMPLETE_BODY:
                self._failed(host, url, failure, is_trial=is_trial)
            else:  # 404 and the like: the host answers, or did so to begin with
                self._is_back(host)
            raise
        except BaseException:  # cancelled
            self._learned_nothing(host, is_trial=is_trial)
            raise
        else:
            self._is_back(host)

    def _learned_nothing(self, host: str, *, is_trial: bool) -> None:
        if is_trial and (trouble := self._troubles.get(host)):
            trouble.is_tried = False

    def refusal(self, host: str) -> HostLeftAlone | None:
        """The error of a request now, unless it may be a trial; None if requests to the host may be made."""
        trouble = self._troubles.get(host)
        if trouble is None or trouble.opened_at is None:
            return None
        return self._refusal(host, trouble, trouble.opened_at)

    def _enter(self, host: str) -> bool:
        """Whether the request is a trial."""
        trouble = self._troubles.get(host)
        if trouble is None or trouble.opened_at is None:
            return False
        if trouble.is_tried or self._monotonic() < trouble.next_trial_at:
            raise self._refusal(host, trouble, trouble.opened_at)
        trouble.is_tried = True
        return True

    def _refusal(self, host: str, trouble: _Trouble, opened_at: float) -> HostLeftAlone:
        now = self._monotonic()
        pause = max(0.0, trouble.next_trial_at - now)
        if trouble.is_tried:
            pause += self._policy.first_pause_seconds
        detail = (
            f"{host}: no request made after {trouble.failures} failures in a row, "
            f"the last: {trouble.last.detail}; next trial in {pause:.0f} s"
        )
        is_old = now - opened_at >= self._policy.young_seconds
        return HostLeftAlone(trouble.last.code, detail, wait_seconds=pause, is_old=is_old)

    def _failed(self, host: str, url: str, failure: TransientFailure, *, is_trial: bool) -> None:
        trouble = self._troubles.get(host)
        if trouble is None:
            trouble = self._troubles[host] = _Trouble(failure.error, self._policy.first_pause_seconds)
            if len(self._troubles) > self._policy.remembered_hosts:
                self._troubles.popitem(last=False)
        self._troubles.move_to_end(host)
        trouble.failures += 1
        trouble.last = failure.error
        now, told = self._monotonic(), failure.retry_after_seconds or 0.0
        if trouble.opened_at is None:
            trouble.urls.add(hash(url))
            if len(trouble.urls) >= self._policy.failing_urls:
                self._open(host, trouble, now, told)
        elif is_trial:
            trouble.is_tried = False
            trouble.pause_seconds = min(trouble.pause_seconds * 2, self._policy.max_pause_seconds)
            trouble.next_trial_at = now + self._pause_seconds(trouble, told)

    def _open(self, host: str, trouble: _Trouble, now: float, told: float) -> None:
        trouble.urls.clear()
        trouble.opened_at = now
        trouble.next_trial_at = now + self._pause_seconds(trouble, told)
        log.warning(
            "%s gets only trial requests for now: %d failures in a row, the last: %s",
            host,
            trouble.failures,
            trouble.last.detail,
            extra={"action": "host_left_alone"},
        )

    def _pause_seconds(self, trouble: _Trouble, told: float) -> float:
        return max(trouble.pause_seconds, min(told, self._policy.max_retry_after_seconds))

    def _is_back(self, host: str) -> None:
        trouble = self._troubles.pop(host, None)
        if trouble is not None and trouble.opened_at is not None:
            log.info("%s answers again", host, extra={"action": "host_is_back"})


@dataclass(slots=True)
class _Trouble:
    """Failures of one host without an answer in between."""

    last: ItemError
    pause_seconds: float
    failures: int = 0
    urls: set[int] = field(default_factory=set)  # hashes of those that failed, until the circuit opens
    opened_at: float | None = None  # when the circuit has opened
    next_trial_at: float = 0.0
    is_tried: bool = False  # a trial is under way
