"""Has inputs done while a request waits: bounded, cancelled with the request, and told what went wrong."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from urllib.parse import urlsplit

from clipfleet.errors import ClipfleetError, JobNotFoundError
from clipfleet_gateway.asking.ends import Ends
from clipfleet_gateway.asking.failures import failure
from clipfleet_gateway.asking.jobs import Kind, RequestJobs, Row, new_job_id
from clipfleet_gateway.asking.micro_batches import MicroBatches, Share
from clipfleet_gateway.asking.room import Keep, Room
from clipfleet_gateway.asking.served import ServedModels
from clipfleet_gateway.errors import unavailable
from clipfleet_gateway.inputs.asked import Asked, Item
from clipfleet_gateway.inputs.images import own_file_id
from clipfleet_gateway.services import Services

_LOG = logging.getLogger(__name__)
MOST_WAITING_INPUTS = 4096  # that wait at a time, of all requests of a gateway;
_MOST_BYTES = 512 << 20  # of their images and labels
ANSWER_SECONDS = 300.0
_AWAY_SECONDS = 30.0  # for so long a request waits for workers
_LOOK_SECONDS = 5.0  # between looks at a job whose end may have been missed


class Asker:
    """Shared by all requests of a gateway; for one event loop."""

    def __init__(
        self,
        services: Services,
        jobs: RequestJobs,
        served: ServedModels,
        *,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._call = services.ask
        self._meters = services.meters
        self._jobs = jobs
        self._monotonic = monotonic
        self._served = served
        self._ends = Ends(jobs.ledger, lambda function: asyncio.ensure_future(services.ask(function)))
        self._batches = MicroBatches(self._run)
        self._room = Room(MOST_WAITING_INPUTS, _MOST_BYTES)

    def close(self) -> None:
        """End the thread that reads the ends of jobs."""
        self._ends.close()

    async def rows(self, asked: Asked) -> list[Row]:
        """The rows of all items, in their order; they must be admitted.

        A row on which a policy has decided is no failure, whatever came of its input.

        Raises:
            ApiError: one of them failed, or workers are away.
        """
        await self._ends.begin()
        rows = await self._rows(asked)
        for param, row in zip(asked.params, rows, strict=True):
            if row.error is not None:
                raise failure(row.error, param)
        return rows

    @asynccontextmanager
    async def admitted(self, owner: str, model: str, inputs: int, size_bytes: int) -> AsyncIterator[Keep]:
        """Count the inputs of a request of a key, and bound the time of what is inside.

        What a request keeps is counted before anything is awaited: it may be long until Redis answers.

        Yields:
            A call to count further bytes, before they are read. It raises `ApiError`.

        Raises:
            ApiError: the model is not known, they are too large, too much waits, or the time is over.
        """
        try:
            async with asyncio.timeout(ANSWER_SECONDS):
                with self._room.held(owner, inputs) as keep:
                    keep(size_bytes)
                    self._meters.waiting_inputs.inc(inputs)
                    try:
                        await self._served.require(model)
                        yield keep
                    finally:
                        self._meters.waiting_inputs.dec(inputs)
        except TimeoutError:
            raise unavailable(f"No answer within {ANSWER_SECONDS:g} s: try again, or send less") from None

    async def _rows(self, asked: Asked) -> list[Row]:
        """The rows of inputs that are done in one job or several, by host."""
        positions: dict[Kind, list[int]] = {}
        hashed = asked.label_set.hash if asked.label_set else ""
        for position, item in enumerate(asked.items):
            kind = Kind(
                asked.task, asked.model, asked.label_set, hashed, _host(item), asked.policy, asked.owner
            )
            positions.setdefault(kind, []).append(position)
        shares = []
        for kind, some in positions.items():
            items = [asked.items[position] for position in some]
            shares.append(self._batches.add(kind, items, sum(map(size_bytes_of, items))))
        try:
            found = await _all([share.rows for share in shares])
        finally:
            for share in shares:
                share.rows.cancel()  # of the others, if one was in vain
        by_position = {
            position: row
            for some, rows in zip(positions.values(), found, strict=True)
            for position, row in zip(some, rows, strict=True)
        }
        return [by_position[position] for position in range(len(asked.items))]

    async def _run(self, kind: Kind, shares: list[Share]) -> None:
        """Have a job done for some requests."""
        job_id = new_job_id()
        ended = self._ends.expect(job_id)

        def withdraw(_: object) -> None:
            if all(share.rows.done() for share in shares):
                self._ends.forget(job_id)

        for share in shares:
            share.rows.add_done_callback(withdraw)
        items = [item for share in shares for item in share.items]
        self._meters.shared_job_inputs.observe(len(items))
        try:
            rows = await self._done(job_id, kind, items, ended, shares)
            for share in shares:
                some, rows = rows[: len(share.items)], rows[len(share.items) :]
                if not share.rows.done():
                    share.rows.set_result(some)
        except Exception as error:
            for share in shares:
                if not share.rows.done():
                    share.rows.set_exception(error)
        finally:
            self._ends.forget(job_id)

    async def _done(
        self, job_id: str, kind: Kind, items: Sequence[Item], ended: asyncio.Future[None], shares: list[Share]
    ) -> list[Row]:
        submitted_at = self._monotonic()
        await self._call(self._jobs.submit, job_id, kind, items)
        try:
            while not ended.done():
                await asyncio.wait([ended], timeout=_LOOK_SECONDS)
                if not ended.done() and await self._call(self._has_ended, job_id):
                    break
                await self._require_workers(kind.model, submitted_at)
            if all(share.rows.done() for share in shares):
                raise _GoneError
            rows = await self._call(self._jobs.rows, job_id, len(items))
            if len(rows) < len(items):
                raise unavailable("The job of this request was cancelled, or its rows are lost: try again")
        except BaseException:
            await self._cancel(job_id)
            raise
        return rows

    def _has_ended(self, job_id: str) -> bool:
        try:
            return self._jobs.state(job_id).is_final
        except JobNotFoundError:
            return True  # and there are no rows

    async def _require_workers(self, model: str, since: float) -> None:
        away = await self._served.away_seconds(model)
        waited = self._monotonic() - since
        if waited >= _AWAY_SECONDS and (away is None or away >= _AWAY_SECONDS):
            raise unavailable(f"No worker serves {model} now: try again")

    async def _cancel(self, job_id: str) -> None:
        with suppress(JobNotFoundError):
            try:
                await self._call(self._jobs.cancel, job_id)
            except ClipfleetError as error:
                _LOG.warning("job %s is not cancelled: %s", job_id, error)


async def _all(waiting: Sequence[asyncio.Future[list[Row]]]) -> list[list[Row]]:
    """All results. Nearly always there is one, which needs no more than itself."""
    return [await waiting[0]] if len(waiting) == 1 else await asyncio.gather(*waiting)


class _GoneError(Exception):
    """Nobody waits any more."""


def _host(item: Item) -> str:
    """The host of a URL; other places are told apart from content only."""
    if isinstance(item, str) or "url" not in item:
        return ""
    url = str(item["url"])
    with suppress(ValueError):
        parts = urlsplit(url)
        return parts.netloc.lower() if parts.scheme in ("http", "https") else parts.scheme or "/"
    return url


def kept_bytes(asked: Asked) -> int:
    """How much is kept of it while it waits, but the content of own files."""
    labels = asked.label_set.labels if asked.label_set else ()
    return sum(map(len, labels)) + sum(
        size_bytes_of(item) for item in asked.items if own_file_id(item) is None
    )


def size_bytes_of(item: Item) -> int:
    """How much of it is kept while it waits."""
    if isinstance(item, str):
        return len(item)
    return len(item["bytes"]) if "bytes" in item else len(item["url"])
