"""Delivers the webhook events that are due; the workers of all machines share them by leases.

An event whose worker is killed, or cannot reach Redis after the answer, is sent again with the same id once
its lease has expired. A receiver that hangs or is away holds a few requests of its own and delays no other.
"""

from __future__ import annotations

import asyncio
import logging
import math
import threading
import time
import uuid
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from enum import StrEnum
from functools import partial
from typing import TypeVar

from clipfleet.contract.webhooks import Delivery, Endpoint, secret_id
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.events.outbox import Outbox
from clipfleet.webhooks.bodies import EventDamagedError, event_body
from clipfleet.webhooks.schedule import GONE_STATUS, next_delay_seconds
from clipfleet.webhooks.signing import signed_headers
from clipfleet_worker.process.shortages import LenientThreadPool
from clipfleet_worker.process.watchdog import Pulse
from clipfleet_worker.webhooks.pace import Pace
from clipfleet_worker.webhooks.poster import Answer, Poster

log = logging.getLogger(__name__)
T = TypeVar("T")

REQUEST_SECONDS = 20.0  # timeout of a request
MAX_REQUESTS = 256  # at a time: a hundred endpoints that hang from the start hold fewer

_LEASE_SECONDS = 60.0  # longer than a request, and the record of its end while Redis restarts
_POLL_SECONDS = 1.0  # for what other programs publish, and what is tried again
_MANY = 4  # requests that an endpoint has room for
_UNKNOWN_SECONDS = 2.0  # before the next attempt for an endpoint that this worker does not know
_RETRY_SECONDS = 1.0  # of a record, while Redis is away
_STOP_SECONDS = 5.0  # for what is under way, and what the last chunks have published
_BEAT_SECONDS, _BEAT_LIMIT_SECONDS = 1.0, 60.0  # nothing may block the event loop
_REDIS_CALLS = 4  # at a time, in threads


class Outcome(StrEnum):
    """How an attempt ended."""

    DELIVERED = "delivered"
    RETRIED = "retried"  # there will be another one
    FAILED = "failed"  # the last one


class Courier:
    """One per process. Its thread runs from `start` to `stop`."""

    def __init__(
        self,
        outbox: Outbox,
        poster: Poster,
        *,
        pulse: Pulse | None = None,
        poll_seconds: float = _POLL_SECONDS,
        lease_seconds: float = _LEASE_SECONDS,
        stop_seconds: float = _STOP_SECONDS,
    ) -> None:
        self._outbox = outbox
        self._poster = poster
        self._pulse = pulse or Pulse("courier")
        self._poll_seconds = poll_seconds
        self._lease_seconds = lease_seconds
        self._stop_seconds = stop_seconds
        self._threads = LenientThreadPool(_REDIS_CALLS, thread_name_prefix="courier-redis")
        self._endpoints: dict[str, Endpoint] = {}
        self._secrets: dict[str, tuple[str, ...]] = {}  # by endpoint; never logged
        self._read_at = -math.inf  # the endpoints, monotonic
        self._paces: dict[str, Pace] = {}
        self._under_way: dict[asyncio.Task[None], Delivery] = {}
        self._token = ""  # of a claim without an answer
        self._news = asyncio.Event()
        self._is_stopping = False
        self._is_redis_away = False
        self._loop: asyncio.AbstractEventLoop  # from `start` on: none is left open
        self._thread = threading.Thread(target=self._run, name="courier", daemon=True)
        self.outcomes: Counter[Outcome] = Counter()  # of attempts

    def start(self) -> None:
        """Start the thread."""
        self._loop = asyncio.new_event_loop()
        self._thread.start()

    def wake(self) -> None:
        """Look for due deliveries now. From any thread; does nothing before `start` and after `stop`."""
        self._call_in_loop(self._news.set)

    def request_stop(self) -> None:
        """Begin to stop: deliver what is due, once, then release what is not answered; returns at once."""
        self._call_in_loop(self._begin_to_stop)

    def stop(self) -> None:
        """Stop, and wait for that; if Redis is away, not for ever: then leases expire."""
        self.request_stop()
        if self._thread.is_alive():
            self._thread.join(2 * self._stop_seconds)

    def _call_in_loop(self, call: Callable[[], object]) -> None:
        if self._thread.is_alive():
            with suppress(RuntimeError):  # it has ended in between
                self._loop.call_soon_threadsafe(call)

    def _begin_to_stop(self) -> None:
        self._is_stopping = True
        self._news.set()

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        try:
            self._loop.run_until_complete(self._work())
        finally:
            self._loop.close()

    async def _work(self) -> None:
        await self._poster.start()
        beating = asyncio.create_task(self._beat())
        try:
            while not self._is_stopping:
                if not await self._claim_some():
                    await self._rest()
            await self._end()
        finally:
            beating.cancel()
            await asyncio.gather(beating, return_exceptions=True)
            await self._poster.close()
            self._threads.shutdown(wait=False)

    async def _beat(self) -> None:
        try:
            while True:
                self._pulse.enter("turn", _BEAT_LIMIT_SECONDS)
                await asyncio.sleep(_BEAT_SECONDS)
        finally:
            self._pulse.rest("stopped")

    async def _rest(self) -> None:
        """Wait for news, for the end of a pause, or for the next poll."""
        now = time.monotonic()
        pauses = [pace.paused_until - now for pace in self._paces.values() if pace.paused_until > now]
        with suppress(TimeoutError):
            async with asyncio.timeout(min([self._poll_seconds, *pauses])):
                await self._news.wait()
        self._news.clear()

    async def _claim_some(self) -> bool:
        """Claim due deliveries and begin to send them; False if there are none, or no room, or no Redis."""
        try:
            await self._read_endpoints()
            # Apart, so that those with little room do not keep the claims for the others small.
            found = [await self._claim_for(_MANY, math.inf), await self._claim_for(1, _MANY)]
        except RedisUnavailableError as error:
            self._note_redis(error)
            return False
        self._note_redis(None)
        return any(found)

    async def _claim_for(self, least: int, most: float) -> bool:
        """Claim for the endpoints with so much room, as much as the one with the least can take."""
        rooms = {name: pace.room for name, pace in self._paces.items()}
        chosen = {name: room for name, room in rooms.items() if least <= room < most}
        limit = min([*chosen.values(), MAX_REQUESTS - len(self._under_way)])
        if not chosen or limit < 1:
            return False
        self._token = self._token or uuid.uuid4().hex  # once more after a call without an answer
        others = [name for name in rooms if name not in chosen]
        claim = partial(self._outbox.claim, self._token, limit, self._lease_seconds, others)
        deliveries = await self._in_thread(claim)
        self._token = ""
        if any(delivery.endpoint_id not in self._endpoints for delivery in deliveries):
            self._read_at = -math.inf  # one is new
        for delivery in deliveries:
            self._begin(delivery)
        return bool(deliveries)

    async def _read_endpoints(self) -> None:
        """Read the endpoints, once a second at most."""
        if time.monotonic() - self._read_at < self._poll_seconds:
            return
        found = await self._in_thread(self._outbox.endpoints)
        current = {one.endpoint_id: one for one in found if one.disabled is None}
        self._secrets = {name: await self._secrets_of(one) for name, one in current.items()}
        self._read_at = time.monotonic()
        self._endpoints = current
        self._paces = {name: self._paces.get(name) or Pace() for name in current}

    async def _secrets_of(self, endpoint: Endpoint) -> tuple[str, ...]:
        """The secrets of an endpoint, which are read again after a rotation."""
        known = self._secrets.get(endpoint.endpoint_id, ())
        if tuple(map(secret_id, known)) == endpoint.secret_ids:
            return known
        return await self._in_thread(partial(self._outbox.secrets, endpoint))

    def _begin(self, delivery: Delivery) -> None:
        pace = self._paces.get(delivery.endpoint_id) or Pace()
        pace.in_flight += 1
        task = asyncio.create_task(self._deliver(delivery, pace, time.monotonic() + self._lease_seconds))
        self._under_way[task] = delivery
        task.add_done_callback(partial(self._ended, pace))

    def _ended(self, pace: Pace, task: asyncio.Task[None]) -> None:
        was_full = not pace.room or len(self._under_way) >= MAX_REQUESTS
        pace.in_flight -= 1
        if not task.cancelled():
            del self._under_way[task]
        if was_full:
            self._news.set()

    async def _deliver(self, delivery: Delivery, pace: Pace, deadline: float) -> None:
        """Send one delivery and record the end; if Redis is away for longer than the lease, do not."""
        endpoint = self._endpoints.get(delivery.endpoint_id)
        if endpoint is None:  # added, removed or disabled a moment ago; or another version's
            await self._insist(partial(self._outbox.release, [delivery], _UNKNOWN_SECONDS), deadline)
            return
        try:
            answer = await self._attempt(endpoint, delivery)
        except EventDamagedError as error:
            await self._record_failure(delivery, str(error), deadline)
            return
        except Exception as error:  # a fault of ours must stop neither the others nor the thread
            log.exception("webhook %s: not sent", delivery.event_id, extra=_context(delivery, "faulty"))
            answer = Answer(f"a fault of clipfleet: {type(error).__name__}")
        pace.note(answer)
        await self._record(delivery, answer, deadline)

    async def _attempt(self, endpoint: Endpoint, delivery: Delivery) -> Answer:
        body = event_body(delivery.event_id, delivery.type, delivery.created_ms, delivery.data)
        secrets = self._secrets[endpoint.endpoint_id]
        if not secrets:
            return Answer(f"its secret is not in Redis: `clipfleet webhooks rotate {endpoint.endpoint_id}`")
        headers = signed_headers(secrets, delivery.event_id, int(time.time()), body)
        return await self._poster.post(endpoint.url, headers, body)

    async def _record(self, delivery: Delivery, answer: Answer, deadline: float) -> None:
        if answer.is_delivered:
            self.outcomes[Outcome.DELIVERED] += 1
            log.debug("webhook %s: delivered", delivery.event_id, extra=_context(delivery, "delivered"))
            await self._insist(partial(self._outbox.delivered, delivery), deadline)
            return
        if answer.status == GONE_STATUS:
            self.outcomes[Outcome.FAILED] += 1
            log.warning(
                "webhooks: %s is disabled: %s", delivery.endpoint_id, answer.error,
                extra=_context(delivery, "disabled"),
            )  # fmt: skip
            await self._insist(partial(self._outbox.disable, delivery, answer.error), deadline)
            return
        attempts = delivery.attempts + 1
        delay = next_delay_seconds(attempts, answer.retry_after_seconds)
        if delay is None:
            await self._record_failure(delivery, answer.error, deadline)
            return
        self.outcomes[Outcome.RETRIED] += 1
        log.info(
            "webhook %s: attempt %d failed (%s), the next one in %.0f s", delivery.event_id, attempts,
            answer.error, delay, extra=_context(delivery, "retried"),
        )  # fmt: skip
        await self._insist(partial(self._outbox.retry, delivery, delay, answer.error), deadline)

    async def _record_failure(self, delivery: Delivery, error: str, deadline: float) -> None:
        self.outcomes[Outcome.FAILED] += 1
        log.warning("webhook %s: given up (%s)", delivery.event_id, error, extra=_context(delivery, "failed"))
        await self._insist(partial(self._outbox.fail, delivery, error), deadline)

    async def _insist(self, call: Callable[[], object], deadline: float) -> None:
        """Call the outbox until Redis answers, or the lease is over."""
        while True:
            try:
                await self._in_thread(call)
            except RedisUnavailableError as error:
                self._note_redis(error)
                if time.monotonic() + _RETRY_SECONDS > deadline:
                    return
                await asyncio.sleep(_RETRY_SECONDS)
            else:
                return

    async def _end(self) -> None:
        """Deliver what the last chunks have published, wait for what is under way, release the rest."""
        with suppress(TimeoutError):
            async with asyncio.timeout(self._stop_seconds):
                while await self._claim_some():
                    pass
                while self._under_way:
                    await asyncio.wait(list(self._under_way))
        for task in self._under_way:
            task.cancel()
        await asyncio.gather(*self._under_way, return_exceptions=True)
        held = list(self._under_way.values())
        if not held:
            return
        try:
            await self._in_thread(partial(self._outbox.release, held))
        except RedisUnavailableError as error:
            self._note_redis(error)

    def _note_redis(self, error: RedisUnavailableError | None) -> None:
        """Log that Redis is away, once for each time."""
        if error is not None and not self._is_redis_away:
            log.warning("webhooks wait: %s", error, extra={"action": "webhooks_wait"})
        self._is_redis_away = error is not None

    async def _in_thread(self, call: Callable[[], T]) -> T:
        return await self._loop.run_in_executor(self._threads, call)


def _context(delivery: Delivery, outcome: str) -> dict[str, str]:
    return {"action": f"webhook_{outcome}", "endpoint_id": delivery.endpoint_id}
