"""The worker's side of the ledger: leases on chunks, and on the finishing of jobs."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from datetime import UTC, datetime

import redis

from clipfleet.contract.bottleneck import NO_METERS, Meters
from clipfleet.contract.jobs import Lane
from clipfleet.contract.webhooks import DecisionEvent
from clipfleet.ledger import keys
from clipfleet.ledger.answers import (
    CompleteAnswer,
    FinishAnswer,
    PostponeAnswer,
    ReleaseAnswer,
    RenewAnswer,
)
from clipfleet.ledger.arguments import decisions_arguments, flat, measured_argument
from clipfleet.ledger.drafts import DRAFT_SCRIPTS
from clipfleet.ledger.scripts import LuaScripts
from clipfleet.ledger.values import (
    DEFAULT_RETENTION,
    Claim,
    FinishClaim,
    Lease,
    LeaseReport,
    WorkerFacts,
)
from clipfleet.redis.connection import connect, damage_of, redis_errors

_SCRIPTS = (
    "submit", "stage", "seal", "claim", "renew", "report", "complete", "release", "reconcile", "claim_finish",
    "finish", "postpone_finish", "cancel", "pause", "status", "jobs", "unfinished", "heartbeat", "farewell",
    "workers", "backlog", "writers", "pin_model", *DRAFT_SCRIPTS,
)  # fmt: skip


class ChunkLedger:
    """Calls of workers. All raise `RedisUnavailableError` while Redis is unavailable."""

    def __init__(self, url: str, *, client: redis.Redis | None = None) -> None:
        self._url = url
        self._redis = client or connect(url)
        scripts = LuaScripts(self._redis, url, _SCRIPTS)
        self._run, self._run_each = scripts.run, scripts.run_each

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def ping(self) -> None:
        """Raise `RedisUnavailableError` unless Redis answers."""
        with redis_errors(self._url):
            self._redis.ping()

    def now(self) -> datetime:
        """The time by the clock of Redis, which all programs share."""
        with redis_errors(self._url):
            seconds, microseconds = self._redis.time()
        return datetime.fromtimestamp(seconds, UTC).replace(microsecond=microseconds)

    def claim(
        self,
        token: str,
        lease_seconds: float,
        lanes: Sequence[Lane],
        models: Sequence[str],
        excluded_jobs: Iterable[str] = (),
    ) -> Claim | None:
        """Lease the best chunk that is due; the same token gets the same chunk again."""
        answer = self._run(
            "claim", token, int(lease_seconds * 1000), len(lanes), *(lane.value for lane in lanes),
            len(models), *models, *excluded_jobs,
        )  # fmt: skip
        return Claim.of_answer(token, answer) if answer else None

    def renew(self, leases: Sequence[Lease], lease_seconds: float) -> list[RenewAnswer]:
        """Extend leases, in one call; the answers have their order."""
        if not leases:
            return []
        flat = [part for lease in leases for part in (lease.job_id, lease.chunk, lease.token)]
        return [RenewAnswer(word) for word in self._run("renew", int(lease_seconds * 1000), *flat)]

    def pin_model(self, job_id: str, fingerprint: str = "") -> str:
        """Decide which model the vectors of a job are of, unless that is decided; return what is decided.

        Idempotent. Without a fingerprint nothing is decided. An empty string is returned if no worker has
        decided yet, or the job is unknown.
        """
        return str(self._run("pin_model", job_id, fingerprint))

    def report(self, reports: Sequence[LeaseReport], ended: Sequence[Lease] = ()) -> None:
        """Record how far chunks are, in one call; reports of leases that are not held are ignored.

        Args:
            reports: replace the earlier ones of the same leases.
            ended: leases whose reports are removed. Those that are left are ignored, and go with the job.
        """
        facts = [
            part
            for one in reports
            for part in (one.lease.job_id, one.lease.chunk, one.lease.token, one.settled, one.doing)
        ]
        gone = [part for lease in ended for part in (lease.job_id, lease.token)]
        self._run("report", len(reports), *facts, *gone)

    def last_early_end(self) -> str:
        """A text that changes whenever a job is cancelled or fails; cheap to poll every second."""
        with redis_errors(self._url):
            return str(self._redis.get(keys.EARLY_END))

    def complete(
        self,
        claim: Claim,
        *,
        ok: int,
        failed: int,
        codes: Mapping[str, int],
        work_seconds: Mapping[str, float],
        ran: tuple[int, int] | None = None,
        meters: Meters = NO_METERS,
        ttl_seconds: int = DEFAULT_RETENTION.job_seconds,
        decisions: Sequence[DecisionEvent] | None = None,
    ) -> CompleteAnswer:
        """Mark a chunk complete and add its counts, once its part is in place. Idempotent.

        Args:
            claim: the chunk.
            ok: good rows of its part.
            failed: failed rows of its part.
            codes: failed rows by error code.
            work_seconds: working time by step.
            ran: rows that were run for it, and how many of them failed, if a retry has kept others; by
                default all rows of the part.
            meters: where the time of the chunk went.
            ttl_seconds: how long the job is kept if this call ends it.
            decisions: those to announce; None for a job that announces none.
        """
        return CompleteAnswer(
            self._run(
                "complete", claim.job_id, claim.chunk_id, claim.token, claim.generation, ok, failed,
                *(ran or (ok + failed, failed)), ttl_seconds * 1000, int(claim.has_history),
                measured_argument(work_seconds, meters), *decisions_arguments(decisions), *flat(codes),
            )
        )  # fmt: skip

    def decided(self, job_id: str, chunk: int) -> int:
        """The last generation in which the decisions of a chunk were announced; -1 if none were."""
        with damage_of(job_id), redis_errors(self._url):
            return _generation(self._redis.hget(keys.job(job_id, keys.DECIDED), str(chunk)))

    def decided_chunks(self, job_id: str) -> dict[int, int]:
        """`decided` of each chunk for which it is not -1."""
        with damage_of(job_id), redis_errors(self._url):
            found = self._redis.hgetall(keys.job(job_id, keys.DECIDED))
        return {int(chunk): _generation(text) for chunk, text in found.items() if str(chunk).isdecimal()}

    def release(
        self,
        claim: Claim,
        kind: str,
        *,
        reason: str,
        first_back_off_seconds: float = 1.0,
        outage_seconds: float = 86400.0,
    ) -> ReleaseAnswer:
        """Release a chunk that is not complete; `kind` is `failures`, `waits` (an outage) or `drain`."""
        answer = self._run(
            "release", claim.job_id, claim.chunk_id, claim.token, kind, int(first_back_off_seconds * 1000),
            reason, int(outage_seconds * 1000),
        )  # fmt: skip
        return ReleaseAnswer(answer[0])

    def reconcile(
        self,
        first_back_off_seconds: float = 2.0,
        worker_silence_seconds: float = 60.0,
        lease_seconds: float = 30.0,
        period_seconds: float = 5.0,
    ) -> tuple[int, int]:
        """Release chunks with an expired lease, and remove silent workers. Every worker calls it each period.

        A gap between two calls that exceeds half a lease and two periods means that Redis was unavailable:
        leases are extended by it.

        Returns:
            Number of chunks lost, and of jobs to be finished.
        """
        lost, finishing = self._run(
            "reconcile", int(first_back_off_seconds * 1000), int(worker_silence_seconds * 1000),
            int(lease_seconds * 1000), int(period_seconds * 1000),
        )  # fmt: skip
        return int(lost), int(finishing)

    def claim_finish(
        self, token: str, lease_seconds: float, excluded_jobs: Iterable[str] = ()
    ) -> FinishClaim | None:
        """Lease the finishing of a job whose chunks are all done."""
        answer = self._run("claim_finish", token, int(lease_seconds * 1000), *excluded_jobs)
        return FinishClaim.of_answer(token, answer) if answer else None

    def finish(self, claim: FinishClaim, *, ttl_seconds: int) -> FinishAnswer:
        """End a job whose manifest is written. Idempotent."""
        word = self._run("finish", claim.job_id, claim.generation, ttl_seconds * 1000, claim.token)
        return FinishAnswer(word)

    def postpone_finish(
        self,
        claim: FinishClaim,
        delay_seconds: float,
        reason: str = "",
        *,
        outage_seconds: float = 86400.0,
        ttl_seconds: int = DEFAULT_RETENTION.job_seconds,
        is_lasting: bool = False,
    ) -> PostponeAnswer:
        """Release the finishing of a job, to be claimed again after the delay; the status shows the reason.

        A job whose finishing fails for longer than `outage_seconds` is paused. If the trouble `is_lasting` (a
        part is gone), the job fails instead, and can be retried.
        """
        return PostponeAnswer(
            self._run(
                "postpone_finish", claim.job_id, claim.token, int(delay_seconds * 1000), reason,
                int(outage_seconds * 1000), ttl_seconds * 1000, "failed" if is_lasting else "paused",
            )
        )  # fmt: skip

    def heartbeat(self, facts: WorkerFacts) -> None:
        """Record that a worker is alive, and which models it serves."""
        self._run("heartbeat", facts.worker_id, facts.to_json())

    def farewell(self, worker_id: str) -> None:
        """Remove a worker that has ended; its leases stay. Idempotent."""
        self._run("farewell", worker_id)

    def workers(self, silence_seconds: float = 30) -> list[WorkerFacts]:
        """Workers whose last heartbeat is at most this old, that of the oldest heartbeat first."""
        workers = []
        answer = self._run("workers", int(silence_seconds * 1000))
        for text, silent_ms in zip(answer[::2], answer[1::2], strict=True):
            with suppress(ValueError):  # not written by a worker
                workers.append(WorkerFacts.of_json(text, silent_seconds=int(silent_ms) / 1000))
        return workers


def _generation(noted: str | bytes | None) -> int:
    """A generation as `complete.lua` notes it; -1 for none, and for what it cannot have noted."""
    text = str(noted)
    return int(text) if text.isdecimal() and len(text) < 10 else -1
