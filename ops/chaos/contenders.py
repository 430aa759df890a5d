"""The systems that a schedule can be carried out against: clipfleet, and a worker without a ledger."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from clipfleet.client import Client
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from clipfleet.settings import Settings
from ops.chaos import plain_service, survey
from ops.chaos.checker import Sources, World
from ops.chaos.claims import read_claims
from ops.chaos.clipfleet_service import ClipfleetService
from ops.chaos.customers import Service
from ops.chaos.faults import System
from ops.chaos.findings import Findings, Inspector
from ops.chaos.fleet import Ended
from ops.chaos.history import History, read_history
from ops.chaos.measures import deaths_of, spans_of
from ops.chaos.plain_service import PlainService
from ops.chaos.schedule import REDIS_FAULTS, FaultKind
from ops.chaos.servers import Servers, processes_of
from tests.support.ledger import keys_without_ttl

_AS_INTENDED = {("SIGKILL", -9), ("crash point", -9), ("SIGTERM", 0)}
_EXIT_WITHOUT_LEDGER = 70  # of a worker that was asked to leave and could give nothing back: Redis was away

_COMING_BACK_SECONDS = 15.0  # after a fault of Redis: a silent connection is given up after ten


@dataclass(frozen=True, slots=True)
class Setting:
    """What a contender is put into."""

    servers: Servers
    environment: Mapping[str, str]  # of its processes
    history: History
    folder: Path
    inspector: Inspector
    findings: Findings


class Contender(Protocol):
    """One of them."""

    @property
    def body(self) -> str:
        """Which of the nursery's programs its workers run."""
        ...

    @property
    def has_watched_outputs(self) -> bool:
        """Whether it promises what becomes of the objects of an output meanwhile, see `ops.chaos.changes`."""
        ...

    @property
    def spared(self) -> frozenset[FaultKind]:
        """What cannot be done to it."""
        ...

    def service(self, setting: Setting) -> Callable[[], AbstractContextManager[Service]]:
        """What opens it for a customer."""
        ...

    def settle(self, system: System) -> Callable[[], bool]:
        """Have it do at once what it would do some minutes later; answers whether that is done."""
        ...

    def world(self, system: System, sources: Sources, folder: Path) -> World:
        """What is left after a run; nothing breaks any more."""
        ...


class Clipfleet:
    """The real thing."""

    body = "clipfleet"
    has_watched_outputs = True
    spared: frozenset[FaultKind] = frozenset()

    def service(self, setting: Setting) -> Callable[[], AbstractContextManager[Service]]:
        """See the protocol."""
        return partial(
            ClipfleetService,
            setting.servers.redis.url,
            setting.environment,
            setting.history,
            setting.folder / "producers.log",
            setting.inspector,
            setting.findings,
        )

    def settle(self, system: System) -> Callable[[], bool]:
        """See the protocol: it sweeps an output once more when whoever was late has gone."""
        redis_url = system.servers.redis.direct_url
        with connect(redis_url) as redis:
            due: Any = redis.zrange(keys.SWEEPS, 0, -1)
            ours = [job_id for job_id in due if job_id not in system.planter.job_ids]
            for job_id in ours:
                redis.zadd(keys.SWEEPS, {job_id: 0}, xx=True)

        def are_swept() -> bool:
            with connect(redis_url) as redis:
                return not ours or all(score is None for score in redis.zmscore(keys.SWEEPS, ours))

        return are_swept

    def world(self, system: System, sources: Sources, folder: Path) -> World:
        """See the protocol."""
        redis_url, customers, fleet = system.servers.redis.direct_url, system.customers, system.fleet
        with Client(Settings(redis_url=redis_url)) as client:
            jobs = list(survey.survey_jobs(client, customers.plans))
        with connect(redis_url) as redis:
            without_ttl = keys_without_ttl(redis)
        return World(
            jobs=jobs,
            events=survey.completion_events(redis_url),
            sources=sources,
            attempts=survey.attempts_of(
                read_claims(fleet.claims_folder), deaths_of(fleet.ended, fleet.frozen)
            ),
            keys_without_ttl=without_ttl,
            processes=processes_of(str(folder)),
            worker_ends=[*_unexpected(fleet.ended, _redis_faults(system.history)), *customers.failures],
            bystanders=frozenset({*customers.overwritten, *system.planter.job_ids}),
        )


class PlainAcks:
    """Celery alone, see `ops.chaos.plain_worker`."""

    body = "plain"
    has_watched_outputs = False
    # It has no --overwrite, no ledger and no outputs of ours; without descriptors or memory it need not do.
    spared = frozenset(
        {
            FaultKind.OVERWRITE, FaultKind.PLANT, FaultKind.FREEZE_IN_STEP, FaultKind.FEW_DESCRIPTORS,
            FaultKind.LITTLE_MEMORY,
        }
    )  # fmt: skip

    def service(self, setting: Setting) -> Callable[[], AbstractContextManager[Service]]:
        """See the protocol."""
        return partial(PlainService, setting.servers.redis.url, setting.history)

    def settle(self, system: System) -> Callable[[], bool]:
        """See the protocol."""
        return lambda: True

    def world(self, system: System, sources: Sources, folder: Path) -> World:
        """See the protocol. How its workers end is not looked at, nor what keys they leave."""
        redis_url, customers = system.servers.redis.direct_url, system.customers
        return World(
            jobs=plain_service.survey(redis_url, folder, customers.plans),
            events=plain_service.events(redis_url),
            sources=sources,
        )


CONTENDERS: dict[str, Contender] = {"clipfleet": Clipfleet(), "plain-acks": PlainAcks()}


def _redis_faults(history: History) -> list[tuple[float, float]]:
    """From when until when Redis was broken, on the clock of the workers' ends."""
    spans = spans_of(read_history(history.path))
    return [
        (span.began_at + history.began, span.ended_at + history.began)
        for span in spans
        if span.kind in REDIS_FAULTS
    ]


def _unexpected(ended: Sequence[Ended], redis_faults: Sequence[tuple[float, float]]) -> list[str]:
    """Workers that ended otherwise than the harness wanted."""

    def is_as_intended(end: Ended) -> bool:
        if (end.ended_by, end.code) == ("SIGTERM", _EXIT_WITHOUT_LEDGER):
            asked_at = end.at - end.took_seconds
            return any(
                began <= end.at and ended + _COMING_BACK_SECONDS >= asked_at for began, ended in redis_faults
            )
        # What a worker does that lacks something is its affair, as long as its rows are right.
        return end.is_limited or end.struck_by is not None or (end.ended_by, end.code) in _AS_INTENDED

    return [
        f"worker {end.number} in slot {end.slot}: exit code {end.code} after {end.ended_by or 'nothing'}"
        for end in ended
        if not is_as_intended(end)
    ]
