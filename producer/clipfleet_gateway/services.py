"""What all requests share: the client for jobs, the gateway's place, and threads for calls that block."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from functools import partial
from typing import Self, TypeVar

from clipfleet.client import Client
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.events.outbox import Outbox
from clipfleet.ledger.jobs import Ledger
from clipfleet.ledger.locks import Locks
from clipfleet.outputs import Output, open_output, output_uri
from clipfleet.settings import DAY_SECONDS
from clipfleet_gateway.batches.advancing import Advancing
from clipfleet_gateway.batches.jobs import BatchJobs
from clipfleet_gateway.batches.store import BatchStore
from clipfleet_gateway.files.store import FileStore
from clipfleet_gateway.jobs.advancing import Jobs
from clipfleet_gateway.jobs.store import JobStore
from clipfleet_gateway.jobs.submitting import Submitting
from clipfleet_gateway.keys import asked
from clipfleet_gateway.keys.quotas import Quotas
from clipfleet_gateway.keys.ring import KeyRing, now_in_utc
from clipfleet_gateway.known_models import KnownModels
from clipfleet_gateway.meters import Meters
from clipfleet_gateway.policies.logs import DecisionLogs
from clipfleet_gateway.policies.shelf import PolicyShelf
from clipfleet_gateway.settings import GatewaySettings

T = TypeVar("T")
# Each kind of calls has threads of its own, so that none waits behind another kind whose store is slow.
_PLACE_THREADS, _REDIS_THREADS, _KEY_THREADS = 32, 32, 8
_LOCK_SECONDS = 20.0  # after a kill, another gateway goes on with a batch


class Services:
    """Opened once, closed with the gateway. Redis and the place are first asked by a request."""

    def __init__(self, settings: GatewaySettings) -> None:
        """Raises `UsageError` if a setting is missing or wrong."""
        self._opened = ExitStack()
        self.settings = settings
        self.meters = Meters()
        self.place: Output = open_output(output_uri(settings.require_gateway_output()))
        self.keys = KeyRing(self.place)
        self.files = FileStore(self.place)
        self.policies = PolicyShelf(self.place)
        self.logs = DecisionLogs(self.place, self.policies, settings.gateway_keep_decisions_days)
        # Patience is the clients': they are told to come again, and hold nothing meanwhile.
        self.client = self._opened.enter_context(Client(settings, patience_seconds=0, resumes=True))
        self.quotas = self._opened.enter_context(Quotas(settings.require_redis_url()))
        ledger = Ledger(settings.require_redis_url())
        self._opened.callback(ledger.close)
        locks = Locks(settings.require_redis_url(), ttl_seconds=_LOCK_SECONDS, retakes=True)
        self._opened.callback(locks.close)
        self.models = KnownModels(self.place, self.client.workers)
        outbox = Outbox(settings.require_redis_url())
        self._opened.callback(outbox.close)
        self.batches = Advancing(
            BatchStore(self.place), self.files, self.keys,
            BatchJobs(self.client, ledger, self.files, self.policies, self.logs),
            self.models, self.policies, self.quotas.spend, outbox.publish, locks.held,
            settings.gateway_batch_requests,
        )  # fmt: skip
        self.jobs = Jobs(
            JobStore(self.place),
            Submitting(self.client, self.files, self.policies, self.logs),
            ledger,
            self.models,
            self.keys,
            self.quotas.spend,
            locks.held,
        )
        self._place_threads = self._threads(_PLACE_THREADS, "place")
        self._redis_threads = self._threads(_REDIS_THREADS, "redis")
        self._key_threads = self._threads(_KEY_THREADS, "keys")

    def _threads(self, most: int, name: str) -> ThreadPoolExecutor:
        """Threads that end with the services; calls that still wait for one are dropped."""
        threads = ThreadPoolExecutor(most, name)
        self._opened.callback(threads.shutdown, cancel_futures=True)
        return threads

    def closing(self, close: Callable[[], object]) -> None:
        """Close something of a route with the services, before them."""
        self._opened.callback(close)

    def sweep(self) -> None:
        """Remove what has expired, and what uploads and writes that were killed have left. Idempotent."""
        with suppress(RedisUnavailableError):  # the next one notes the models that are served
            self.models.served()
        self.files.remove_expired()
        self.place.sweep_scratch(idle_seconds=DAY_SECONDS)
        coming = self.batches.coming_files()
        for key in self.keys.all():
            self.files.remove_strays(key.name, coming)
            asked.forget(self.place, key.name, now_in_utc())

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._opened.close()

    async def call(self, function: Callable[..., T], *arguments: object, **named: object) -> T:
        """Run a call that may block in a thread, such as one of the place; cancelling does not end it."""
        return await _run(self._place_threads, partial(function, *arguments, **named))

    async def ask(self, function: Callable[..., T], *arguments: object) -> T:
        """The same for calls of Redis and work of the CPU, for requests that wait for workers before all."""
        return await _run(self._redis_threads, partial(function, *arguments))

    async def look(self, function: Callable[..., T], *arguments: object) -> T:
        """The same for what every request needs of the place: its key."""
        return await _run(self._key_threads, partial(function, *arguments))


async def _run(threads: ThreadPoolExecutor, function: Callable[[], T]) -> T:
    return await asyncio.get_running_loop().run_in_executor(threads, function)
