"""One job of a `MemoryLedger`: the transitions of `transitions.lua` in Python. Times are in ms."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

from clipfleet.contract.bottleneck import Meters
from clipfleet.contract.jobs import Job, JobState
from clipfleet.ledger.status import JobStatus
from clipfleet.ledger.values import DEFAULT_RETENTION, LaneBacklog, Retention

CLAIMABLE = (JobState.SUBMITTING, JobState.RUNNING)
EARLY_ENDS = (JobState.CANCELLED, JobState.FAILED)
MOST_BACK_OFF_MS = 300_000
MOST_WAIT_MS = 60_000
_ENOUGH_ROWS = 1000
_ENOUGH_SHARE = 0.1
_NAMED_CODES = 3


@dataclass(slots=True)
class MemoryChunk:
    """A staged chunk. It is done, leased (it has an owner), due, or was never claimed."""

    is_done: bool = False
    owner: str = ""  # token
    deadline: int = 0  # of the lease
    due: int | None = None  # released or lost: from when on it may be claimed
    troubles: Counter[str] = field(default_factory=Counter)
    settled: int = 0  # of the present lease, see `LeaseReport`
    doing: str = ""
    decided: int = -1  # the last generation whose decisions were announced

    def put_back(self, due: int | None) -> None:
        """End the lease."""
        self.owner, self.due = "", due
        self.forget_report()

    def forget_report(self) -> None:
        """Drop what is reported of the lease."""
        self.settled, self.doing = 0, ""


@dataclass(slots=True)
class MemoryJob:
    """A job and its chunks."""

    job: Job
    created: int
    traceparent: str = ""
    retention: Retention = DEFAULT_RETENTION
    state: JobState = JobState.SUBMITTING
    sealed: bool = False
    source_sum: str = ""
    files: list[tuple[int, int]] = field(default_factory=list)  # first chunk, chunks
    chunks: list[MemoryChunk] = field(default_factory=list)
    items: int = 0
    next_chunk: int = 0  # the first one that was never claimed
    turn: int = 0  # of its last claim
    ok: int = 0
    failed: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    seconds: dict[str, float] = field(default_factory=dict)
    meters: dict[str, float] = field(default_factory=dict)
    ran: int = 0
    ran_failed: int = 0
    reason: str = ""
    outage_since: int | None = None
    starved_since: int | None = None
    starved: int = 0
    finish_token: str = ""
    fingerprint_of_vectors: str = ""
    finish_due: int | None = None
    writers: dict[str, int] = field(default_factory=dict)  # token that lost its lease -> its deadline
    finished: int | None = None
    expires: int | None = None
    progress: int = 0  # number of entries of the stream
    ends: list[tuple[int, JobState]] = field(default_factory=list)  # generation and final state
    max_error_rate: float | None = None
    generation: int = 0
    retry_codes: tuple[str, ...] = ()
    carried: int = 0  # rows that were complete before this generation
    draft: str = ""  # token of the retry or rebuild in place

    @property
    def open_items(self) -> int:
        """Items without a row yet."""
        return self.items - self.ok - self.failed

    @property
    def done_chunks(self) -> int:
        """Number of complete chunks."""
        return sum(chunk.is_done for chunk in self.chunks)

    @property
    def leased(self) -> list[tuple[int, MemoryChunk]]:
        """Leased chunks by their IDs."""
        return [(number, chunk) for number, chunk in enumerate(self.chunks) if chunk.owner]

    def due(self, now: int | None = None) -> list[int]:
        """Chunks that were released or lost, those due first; only those due by then, if a time is given."""
        found = [
            (chunk.due, str(number))
            for number, chunk in enumerate(self.chunks)
            if chunk.due is not None and (now is None or chunk.due <= now)
        ]
        return [int(number) for _, number in sorted(found)]

    def claimable(self, now: int) -> list[int]:
        """Chunks that may be claimed now, the next one first."""
        if self.state not in CLAIMABLE:
            return []
        return self.due(now) + list(range(self.next_chunk, len(self.chunks)))

    @property
    def backlog(self) -> LaneBacklog:
        """Its pending and finished work."""
        queued = len(self.chunks) - self.next_chunk + len(self.due())
        return LaneBacklog(queued, len(self.leased), self.done_chunks, self.open_items)

    def oldest_due(self, now: int) -> int:
        """Since when a chunk is due that has not been claimed; now if none is."""
        since = [chunk.due for chunk in self.chunks if chunk.due is not None and chunk.due <= now]
        if self.chunks and self.next_chunk == 0:  # it was never claimed
            since.append(self.created)
        return min(since, default=now)

    def note_writer(self, token: str, deadline: int) -> None:
        """Record a worker that has lost its lease and may still be inside a write."""
        if not self.job.output_is_redis:
            self.writers[token] = deadline

    def end_starving(self, now: int) -> None:
        """Record that there is work again, or that the source has ended."""
        if self.starved_since is not None:
            self.starved += max(0, now - self.starved_since)
            self.starved_since = None

    def note_outage(self, reason: str, now: int, outage_seconds: float) -> bool:
        """Record an outage; True if it has lasted for too long."""
        self.reason = reason
        if self.outage_since is None:
            self.outage_since = now
        return now - self.outage_since > outage_seconds * 1000

    def end_outage(self) -> None:
        """Record that a chunk has come through."""
        if self.outage_since is not None and self.state in CLAIMABLE:
            self.reason = ""
        self.outage_since = None

    def end(self, state: JobState, reason: str, now: int, ttl_seconds: float) -> None:
        """Bring the job into a final state."""
        if self.finish_token:
            self.note_writer(self.finish_token, now if self.finish_due is None else self.finish_due)
        for _, chunk in self.leased:
            self.note_writer(chunk.owner, chunk.deadline)
        for chunk in self.chunks:
            chunk.put_back(None)
            chunk.troubles.clear()
        self.state, self.reason, self.finished = state, reason, now
        self.finish_token, self.finish_due = "", None
        kept_seconds = self.retention.result_seconds if self.job.output_is_redis else 0
        self.expires = now + int(max(ttl_seconds, kept_seconds) * 1000)
        self.progress += 1
        self.ends.append((self.generation, state))

    def finish_if_done(self, now: int) -> bool:
        """Have a sealed job finished whose chunks are all complete; where its rows live in Redis, end it."""
        is_open = not self.state.is_final and self.state is not JobState.FINISHING
        if not (self.sealed and is_open and self.done_chunks == len(self.chunks)):
            return False
        if self.job.output_is_redis:
            self.end(self.final_state, "", now, self.retention.job_seconds)
        else:
            self.state, self.finish_due = JobState.FINISHING, now
        return True

    @property
    def final_state(self) -> JobState:
        """That of a job whose chunks are all complete."""
        return JobState.COMPLETED_WITH_ERRORS if self.failed else JobState.COMPLETED

    def why_stop(self) -> str:
        """Why too many rows have failed for the job to continue; empty if it may continue."""
        rate, enough = self.max_error_rate, float(_ENOUGH_ROWS)
        if self.sealed:
            enough = min(enough, _ENOUGH_SHARE * (self.items - self.carried))
        if rate is None or not self.ran or self.ran < enough or self.ran_failed / self.ran <= rate:
            return ""
        codes = sorted(self.codes.items(), key=lambda pair: (-pair[1], pair[0]))[:_NAMED_CODES]
        leading = ", ".join(f"{count} {code}" for code, count in codes)
        return (
            f"{self.ran_failed} of {self.ran} rows failed ({100 * self.ran_failed / self.ran:.1f} %), more "
            f"than the error rate of {rate:.14g} that is allowed; failed so far: {leading}; `clipfleet retry "
            f"{self.job.job_id}` goes on, with --max-error-rate to allow more"
        )

    def status(self, now: int) -> JobStatus:
        """A snapshot."""
        starving_until = now if self.finished is None else self.finished
        starving = 0 if self.starved_since is None else max(0, starving_until - self.starved_since)
        settled = sum(chunk.settled for _, chunk in self.leased)
        return JobStatus(
            job_id=self.job.job_id, state=self.state, lane=self.job.lane, model=self.job.model,
            generation=self.generation, sealed=self.sealed, total=self.items, ok=self.ok, failed=self.failed,
            chunks=len(self.chunks), done_chunks=self.done_chunks, leased_chunks=len(self.leased),
            due_chunks=len(self.due()), codes=dict(self.codes), work_seconds=dict(self.seconds),
            reason=self.reason, created_ms=self.created, finished_ms=self.finished, ran=self.ran,
            asked_ms=now, starved_ms=self.starved + starving, meters=Meters(dict(self.meters)),
            source_sum=self.source_sum, settled=min(settled, self.open_items),
            doing=Counter(chunk.doing for _, chunk in self.leased if chunk.doing),
        )  # fmt: skip


def back_off(first_seconds: float, times: int, most_ms: int) -> int:
    """The first back-off, doubled each further time up to an upper bound."""
    return int(min(most_ms, first_seconds * 1000 * 2 ** min(20, times - 1)))
