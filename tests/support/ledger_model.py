"""What the ledger promises, as plain Python: a twin of the Lua scripts for `test_ledger_states.py`.

It predicts the answer of every call and the state after it. Where the ledger may choose (which of several new
jobs of a lane), it tells what may be chosen. Time has three values only: past, now and later.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field
from enum import Enum, auto

from clipfleet.contract.jobs import Job, JobState, Lane
from clipfleet.contract.parts import PartCounts
from clipfleet.ledger.jobs import FINISH, Claim, Draft, FinishClaim, Lease

CLAIMABLE = (JobState.SUBMITTING, JobState.RUNNING)
AGEING = 8


class Place(Enum):
    """Where a staged chunk is; always in exactly one place."""

    FRESH = auto()  # nobody has claimed it yet
    LEASED = auto()
    BACK = auto()  # released or lost
    DONE = auto()


class Outage(Enum):
    """Since when chunks of a job have been released for the world's sake."""

    NONE = auto()
    RECENT = auto()
    OLD = auto()  # longer than a job is left alone


@dataclass
class ModelChunk:
    """One staged chunk."""

    items: int
    place: Place = Place.FRESH
    token: str = ""  # of the owner, while leased
    lease_is_over: bool = False  # nobody renewed it, and nobody has reconciled it yet
    is_due: bool = True  # while back: whether its back-off is over
    troubles: Counter[str] = field(default_factory=Counter)


@dataclass
class ModelJob:
    """One job."""

    job: Job
    state: JobState = JobState.SUBMITTING
    sealed: bool = False
    files: list[tuple[int, int]] = field(default_factory=list)  # first chunk, chunks
    chunks: list[ModelChunk] = field(default_factory=list)
    next_chunk: int = 0
    turn: int = 0  # of its last claim
    ok: int = 0
    failed: int = 0
    codes: Counter[str] = field(default_factory=Counter)
    reason: str = ""
    outage: Outage = Outage.NONE
    finish_token: str = ""
    finish_is_due: bool = False
    generation: int = 0
    retry_codes: tuple[str, ...] = ()
    draft: str = ""  # token of the retry that began last
    draft_in_place: str = ""  # token of the one that was put in place last
    max_error_rate: float | None = None
    carried: int = 0  # rows that were ready when this generation began
    ran: int = 0  # rows that were run in it
    ran_failed: int = 0
    ends: list[tuple[int, JobState]] = field(default_factory=list)  # one for each generation, at most

    def in_place(self, *places: Place) -> list[int]:
        """Ids of the chunks in one of these places."""
        return [number for number, chunk in enumerate(self.chunks) if chunk.place in places]

    @property
    def items(self) -> int:
        """Items of all staged chunks."""
        return sum(chunk.items for chunk in self.chunks)

    def file_of(self, chunk_id: int) -> tuple[int, int]:
        """The staged file that holds a chunk."""
        return next(file for file in self.files if file[0] <= chunk_id < sum(file))

    def claimable_now(self) -> set[int]:
        """Chunks of which the next claim of this job must take one: what came back goes first."""
        if self.state not in CLAIMABLE:
            return set()
        back = {number for number in self.in_place(Place.BACK) if self.chunks[number].is_due}
        fresh = {self.next_chunk} if self.next_chunk < len(self.chunks) else set()
        return back or fresh

    def why_stop(self) -> str:
        """Why too many rows have failed for the job to go on; empty if it may."""
        rate = self.max_error_rate
        enough = min(1000.0, 0.1 * (self.items - self.carried)) if self.sealed else 1000.0
        if rate is None or not self.ran or self.ran < enough or self.ran_failed / self.ran <= rate:
            return ""
        codes = sorted(self.codes.items(), key=lambda pair: (-pair[1], pair[0]))
        leading = ", ".join(f"{count} {code}" for code, count in codes[:3])
        return (
            f"{self.ran_failed} of {self.ran} rows failed ({100 * self.ran_failed / self.ran:.1f} %), more "
            f"than the error rate of {rate:g} that is allowed; failed so far: {leading}; `clipfleet retry "
            f"{self.job.job_id}` goes on, with --max-error-rate to allow more"
        )

    def has_work(self) -> bool:
        """Whether claims must find the job in its lane, now or after a back-off."""
        return self.state in CLAIMABLE and bool(self.in_place(Place.BACK, Place.FRESH))


class ModelLedger:
    """Jobs by id, and what each token got."""

    def __init__(self) -> None:
        self.jobs: dict[str, ModelJob] = {}
        self.turns = 0  # claims that found something
        self._claimed: dict[str, tuple[str, int]] = {}
        self._finishes: dict[str, str] = {}

    # --- the producer's side ---

    def submit(self, job: Job) -> tuple[bool, JobState]:
        if job.job_id in self.jobs:
            return False, self.jobs[job.job_id].state
        self.jobs[job.job_id] = ModelJob(job, max_error_rate=job.max_error_rate)
        return True, JobState.SUBMITTING

    def stage(self, job_id: str, first_chunk: int, items_of_chunks: Sequence[int]) -> str:
        job = self.jobs[job_id]
        file = (first_chunk, len(items_of_chunks))
        if file in job.files:
            return "known"
        if job.state not in (JobState.SUBMITTING, JobState.PAUSED) or job.sealed:
            return "refused"
        if first_chunk != len(job.chunks):
            return "gap"
        job.files.append(file)
        job.chunks += [ModelChunk(items) for items in items_of_chunks]
        return "staged"

    def seal(self, job_id: str, chunks: int, items: int) -> str:
        job = self.jobs[job_id]
        if (chunks, items) != (len(job.chunks), job.items):
            return "mismatch"
        if job.sealed:
            return "sealed"
        if job.state.is_final:
            return "refused"
        job.sealed = True
        if job.state is JobState.SUBMITTING:
            job.state = JobState.RUNNING
        self._finish_if_done(job)
        return "sealed"

    def pause(self, job_id: str, reason: str) -> tuple[bool, JobState]:
        job = self.jobs[job_id]
        changed = job.state in CLAIMABLE
        if changed:
            job.state, job.reason = JobState.PAUSED, reason
        return changed, job.state

    def resume(self, job_id: str) -> tuple[bool, JobState]:
        job = self.jobs[job_id]
        changed = job.state is JobState.PAUSED
        if changed:
            job.state = JobState.RUNNING if job.sealed else JobState.SUBMITTING
            job.reason, job.outage = "", Outage.NONE
            for number in job.in_place(Place.BACK):
                self._put(job.chunks[number], Place.BACK, is_due=True)
            self._finish_if_done(job)
        return changed, job.state

    def cancel(self, job_id: str) -> tuple[bool, JobState]:
        job = self.jobs[job_id]
        if job.state.is_final or job.state is JobState.FINISHING:
            return False, job.state
        self._end(job, JobState.CANCELLED, "")
        return True, job.state

    def fail(self, job_id: str, reason: str, holder: Claim | None) -> None:
        job = self.jobs[job_id]
        if not job.state.is_final and (holder is None or self.owns(holder)):
            self._end(job, JobState.FAILED, reason)

    # --- the worker's side ---

    def claim_choices(
        self, token: str, lanes: Sequence[Lane], models: Collection[str], excluded: Collection[str]
    ) -> set[tuple[str, int]]:
        """What a claim may answer; it must answer one of these unless there are none."""
        if token in self._claimed:
            job_id, number = self._claimed[token]
            chunk = self.jobs[job_id].chunks[number]
            return {(job_id, number)} if _owns(chunk, token) else set()
        for lane in _order(lanes, self.turns + 1):
            choices = {
                (job_id, number)
                for job_id, job in self.jobs.items()
                if job.job.lane is lane and job.job.model in models and job_id not in excluded
                for number in job.claimable_now()
            }
            if choices:
                first = min(self.jobs[job_id].turn for job_id, _ in choices)
                return {choice for choice in choices if self.jobs[choice[0]].turn == first}
        return set()

    def claimed(self, claim: Claim) -> None:
        """The ledger chose this one."""
        job = self.jobs[claim.job_id]
        chunk = job.chunks[claim.chunk_id]
        chunk.place, chunk.token, chunk.lease_is_over = Place.LEASED, claim.token, False
        job.next_chunk = max(job.next_chunk, claim.chunk_id + 1)
        if claim.token not in self._claimed:
            self.turns += 1
            job.turn = self.turns
        self._claimed[claim.token] = (claim.job_id, claim.chunk_id)

    def must_say_more(
        self, lanes: Sequence[Lane], models: Collection[str], excluded: Collection[str]
    ) -> bool:
        """Whether the worker could claim again at once; a claim may say so in vain, but never miss it."""
        return any(
            job.claimable_now()
            for job_id, job in self.jobs.items()
            if job.job.lane in lanes and job.job.model in models and job_id not in excluded
        )

    def renew(self, lease: Lease) -> str:
        job = self.jobs[lease.job_id]
        if job.state in (JobState.CANCELLED, JobState.FAILED):
            return "cancelled"
        if lease.chunk == FINISH:
            held = job.state is JobState.FINISHING and job.finish_token == lease.token
            job.finish_is_due = job.finish_is_due and not held
            return "held" if held else "lost"
        chunk = job.chunks[int(lease.chunk)]
        if not _owns(chunk, lease.token):
            return "lost"
        chunk.lease_is_over = False
        return "paused" if job.state is JobState.PAUSED else "held"

    def complete(self, claim: Claim, counts: PartCounts, ran: tuple[int, int]) -> str:
        job = self.jobs[claim.job_id]
        chunk = job.chunks[claim.chunk_id]
        if claim.chunk_id >= job.next_chunk:
            return "missing"
        if job.state in (JobState.CANCELLED, JobState.FAILED):
            return "cancelled"
        if claim.generation != job.generation:
            return "stale"
        if chunk.place is Place.DONE:
            return "already"
        self._put(chunk, Place.DONE)
        chunk.troubles.clear()
        job.ok += counts.ok
        job.failed += counts.failed
        job.codes.update(counts.codes)
        if job.outage is not Outage.NONE and job.state in CLAIMABLE:
            job.reason = ""
        job.outage = Outage.NONE
        job.ran += ran[0]
        job.ran_failed += ran[1]
        if self._finish_if_done(job):
            return "finishing"
        if reason := job.why_stop():
            self._end(job, JobState.CANCELLED, reason)
            return "stopped"
        return "done"

    def release(self, claim: Claim, kind: str, reason: str) -> str:
        job = self.jobs[claim.job_id]
        chunk = job.chunks[claim.chunk_id]
        if not _owns(chunk, claim.token):
            return "not_held"
        chunk.troubles["waits" if kind == "drain" else kind] += 1
        self._put(chunk, Place.BACK, is_due=kind == "drain")
        if kind != "waits" or job.state not in CLAIMABLE:
            return "released"
        job.reason = reason
        if job.outage is Outage.OLD:
            job.state = JobState.PAUSED
            return "paused"
        job.outage = Outage.RECENT
        return "released"

    def reconcile(self) -> tuple[int, int]:
        lost = 0
        for job in self.jobs.values():
            for number in job.in_place(Place.LEASED):
                chunk = job.chunks[number]
                if chunk.lease_is_over:
                    lost += 1
                    chunk.troubles["losses"] += 1
                    self._put(chunk, Place.BACK, is_due=chunk.troubles["losses"] == 1)
        return lost, len(self._due_finishes())

    # --- the end ---

    def claim_finish_choices(self, token: str) -> set[str]:
        """What `claim_finish` may answer; it must answer one of these unless there are none."""
        if token in self._finishes:
            job = self.jobs[self._finishes[token]]
            held = job.state is JobState.FINISHING and job.finish_token == token
            return {job.job.job_id} if held else set()
        return self._due_finishes()

    def finish_claimed(self, claim: FinishClaim) -> None:
        """The ledger chose this one."""
        job = self.jobs[claim.job_id]
        job.finish_token, job.finish_is_due = claim.token, False
        self._finishes[claim.token] = claim.job_id

    def postpone_finish(self, claim: FinishClaim, reason: str, *, is_lasting: bool) -> str:
        job = self.jobs[claim.job_id]
        if job.state is not JobState.FINISHING or job.finish_token != claim.token:
            return "not_held"
        if job.outage is Outage.OLD and is_lasting:
            self._end(job, JobState.FAILED, reason)
            return "failed"
        job.finish_token, job.finish_is_due, job.reason = "", False, reason
        if job.outage is Outage.OLD:
            job.state = JobState.PAUSED
            return "paused"
        job.outage = Outage.RECENT
        return "postponed"

    def finish(self, claim: FinishClaim) -> str:
        job = self.jobs[claim.job_id]
        if claim.generation != job.generation:
            return "stale"
        if job.state.is_final:
            return job.state.value
        if job.state is not JobState.FINISHING:
            return "stale"
        self._end(job, JobState.COMPLETED_WITH_ERRORS if job.failed else JobState.COMPLETED, "")
        return job.state.value

    # --- going on ---

    def begin_draft(self, job_id: str, token: str) -> None:
        self.jobs[job_id].draft = token

    def retry(
        self,
        job_id: str,
        token: str,
        draft: Draft,
        *,
        generation: int,
        codes: Sequence[str],
        max_error_rate: float | None,
    ) -> tuple[str, JobState | None]:
        job = self.jobs[job_id]
        if job.draft_in_place == token:
            return "started", job.state
        if job.draft != token:
            return "taken", None
        if not job.state.is_final:
            return "refused", job.state
        job.state = JobState.RUNNING if job.sealed else JobState.SUBMITTING
        job.generation, job.retry_codes, job.reason, job.outage = generation, tuple(codes), "", Outage.NONE
        if max_error_rate is not None:
            job.max_error_rate = max_error_rate
        self._put_in_place(job, token, draft)
        return "started", job.state

    def lose_everything(self) -> None:
        """The server forgets all it knew."""
        self.jobs, self.turns, self._claimed, self._finishes = {}, 0, {}, {}

    def rebuild(
        self,
        lost: ModelJob,
        token: str,
        draft: Draft,
        *,
        state: JobState,
        generation: int,
        codes: Sequence[str],
    ) -> JobState:
        """`lost` is what was known of the job; only what its output shows comes back."""
        job = ModelJob(
            lost.job, state, sealed=state is not JobState.SUBMITTING, files=list(lost.files),
            chunks=[ModelChunk(chunk.items) for chunk in lost.chunks],
            generation=generation, retry_codes=tuple(codes), max_error_rate=lost.job.max_error_rate,
        )  # fmt: skip
        self.jobs[job.job.job_id] = job
        self._put_in_place(job, token, draft)
        return job.state

    def _put_in_place(self, job: ModelJob, token: str, draft: Draft) -> None:
        job.next_chunk, job.ok, job.failed = draft.next_chunk, draft.ok, draft.failed
        job.codes = Counter(draft.codes)
        job.carried, job.ran, job.ran_failed = draft.ok + draft.failed, 0, 0
        job.draft, job.draft_in_place = "", token
        for number, chunk in enumerate(job.chunks):
            is_done = bool(draft.done[number // 8] & 0x80 >> number % 8)
            is_fresh = number >= draft.next_chunk
            self._put(chunk, Place.DONE if is_done else Place.FRESH if is_fresh else Place.BACK)
            chunk.troubles.clear()
        assert job.in_place(Place.BACK) == list(draft.due)
        self._finish_if_done(job)

    # --- time ---

    def leases_are_over(self, chunks: Iterable[tuple[str, int]]) -> None:
        for job_id, number in chunks:
            self.jobs[job_id].chunks[number].lease_is_over = True

    def finish_claims_are_over(self) -> None:
        for job in self.jobs.values():
            job.finish_is_due = job.state is JobState.FINISHING

    def back_offs_are_over(self, job_id: str) -> None:
        for chunk in self.jobs[job_id].chunks:
            chunk.is_due = True

    def outage_is_old(self, job_id: str) -> None:
        job = self.jobs[job_id]
        if job.outage is Outage.RECENT:
            job.outage = Outage.OLD

    # --- inside ---

    def owns(self, claim: Claim) -> bool:
        """Whether a chunk is still leased to who claimed it."""
        return _owns(self.jobs[claim.job_id].chunks[claim.chunk_id], claim.token)

    def leased(self) -> list[tuple[str, int]]:
        """Every leased chunk."""
        return [(job_id, n) for job_id, job in self.jobs.items() for n in job.in_place(Place.LEASED)]

    def has_claimable_work(self) -> bool:
        """Whether a worker that serves everything would get a chunk now."""
        return any(job.claimable_now() for job in self.jobs.values())

    def worst_trouble(self) -> int:
        """How often the unluckiest chunk came back for one reason."""
        chunks = (chunk for job in self.jobs.values() for chunk in job.chunks)
        return max((count for chunk in chunks for count in chunk.troubles.values()), default=0)

    def has_something_to_reconcile(self) -> bool:
        """Whether a lease is over or a job waits to be finished."""
        leases = (self.jobs[job_id].chunks[number] for job_id, number in self.leased())
        return bool(self._due_finishes()) or any(chunk.lease_is_over for chunk in leases)

    def _due_finishes(self) -> set[str]:
        return {job_id for job_id, job in self.jobs.items() if job.finish_is_due}

    def _put(self, chunk: ModelChunk, place: Place, *, is_due: bool = True) -> None:
        chunk.place, chunk.token, chunk.lease_is_over, chunk.is_due = place, "", False, is_due

    def _finish_if_done(self, job: ModelJob) -> bool:
        all_done = len(job.in_place(Place.DONE)) == len(job.chunks)
        if job.sealed and all_done and not job.state.is_final and job.state is not JobState.FINISHING:
            job.state, job.finish_is_due = JobState.FINISHING, True
            return True
        return False

    def _end(self, job: ModelJob, state: JobState, reason: str) -> None:
        job.state, job.reason, job.finish_token, job.finish_is_due = state, reason, "", False
        job.ends.append((job.generation, state))
        for number in job.in_place(Place.LEASED, Place.BACK):
            self._put(job.chunks[number], Place.FRESH)
            job.chunks[number].troubles.clear()


def _owns(chunk: ModelChunk, token: str) -> bool:
    return chunk.place is Place.LEASED and chunk.token == token


def _order(lanes: Sequence[Lane], turn: int) -> Sequence[Lane]:
    """In which a claim looks into lanes, which come best first."""
    if turn % AGEING:
        return lanes
    lowest, *others = reversed(lanes)
    return lanes[::-1] if turn % (2 * AGEING) or len(lanes) < 3 else [others[0], lowest, *others[1:]]
