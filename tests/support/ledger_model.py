"""The ledger in memory as the model of `test_ledger_states.py`: it predicts every answer of the Lua scripts.

Where those may choose (which of several new jobs of a lane), it names the choices, and takes what was chosen.
Its clock stands still; marks are made past instead.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

from clipfleet.contract.jobs import JobState, Lane
from clipfleet.ledger.jobs import Claim, FinishClaim
from clipfleet.ledger.memory import MemoryLedger, lane_order
from clipfleet.ledger.memory_job import CLAIMABLE, MemoryJob

_NOW = 1e9  # seconds
_LONG_AGO = 1  # ms


def done(job: MemoryJob) -> set[int]:
    """Complete chunks."""
    return {number for number, chunk in enumerate(job.chunks) if chunk.is_done}


def file_of(job: MemoryJob, chunk_id: int) -> tuple[int, int]:
    """The staged file that holds a chunk."""
    return next(file for file in job.files if file[0] <= chunk_id < sum(file))


def has_work(job: MemoryJob) -> bool:
    """Whether claims must find the job in its lane, now or after a back-off."""
    return job.state in CLAIMABLE and (job.next_chunk < len(job.chunks) or bool(job.due()))


class ModelLedger(MemoryLedger):
    """A ledger in memory that shows what is inside."""

    def __init__(self) -> None:
        super().__init__(now=lambda: _NOW)

    @property
    def known(self) -> dict[str, MemoryJob]:
        """All jobs by id."""
        return self._jobs

    @property
    def turns(self) -> int:
        """Claims that found something."""
        return self._turns

    def lose_everything(self) -> dict[str, MemoryJob]:
        """The server forgets all it knew: what it was."""
        lost = dict(self._jobs)
        self.__init__()  # type: ignore[misc]
        return lost

    # --- what a claim may answer ---

    def claim_choices(
        self, token: str, lanes: Sequence[Lane], models: Collection[str], excluded: Collection[str]
    ) -> set[tuple[str, int]]:
        """It must answer one of these unless there are none."""
        if token in self._claimed:
            job_id, number = self._claimed[token]
            return {(job_id, number)} if self._jobs[job_id].chunks[number].owner == token else set()
        for lane in lane_order(lanes, self._turns + 1):
            found = [job for job in self._serving([lane], models, excluded) if self.claimable_now(job)]
            first = min((job.turn for job in found), default=0)
            if found:
                return {
                    (job.job.job_id, number)
                    for job in found
                    for number in self.claimable_now(job)
                    if job.turn == first
                }
        return set()

    def claimable_now(self, job: MemoryJob) -> list[int]:
        """Chunks of which the next claim of this job must take one: what came back goes first."""
        due = job.due(self._now()) if job.state in CLAIMABLE else []
        return due or job.claimable(self._now())[:1]

    def claimed(self, claim: Claim) -> None:
        """The ledger chose this one."""
        job = self._jobs[claim.job_id]
        deadline = self._now() + 3_600_000
        if claim.token in self._claimed:
            job.chunks[claim.chunk_id].deadline = deadline
        else:
            self._grant(job, claim.chunk_id, claim.token, deadline)

    def must_say_more(
        self, lanes: Sequence[Lane], models: Collection[str], excluded: Collection[str]
    ) -> bool:
        """Whether the worker could claim again at once; a claim may say so in vain, but never miss it."""
        return any(self.claimable_now(job) for job in self._serving(lanes, models, excluded))

    def _serving(
        self, lanes: Sequence[Lane], models: Collection[str], excluded: Collection[str]
    ) -> list[MemoryJob]:
        return [
            job
            for job_id, job in self._jobs.items()
            if job.job.lane in lanes and job.job.model in models and job_id not in excluded
        ]

    def claim_finish_choices(self, token: str) -> set[str]:
        """What `claim_finish` may answer; it must answer one of these unless there are none."""
        if token in self._finishes:
            job = self._jobs[self._finishes[token]]
            return {job.job.job_id} if job.finish_token == token else set()
        return {job.job.job_id for job in self._finishable()}

    def finish_claimed(self, claim: FinishClaim) -> None:
        """The ledger chose this one."""
        others = [job_id for job_id in self._jobs if job_id != claim.job_id]
        assert self.claim_finish(claim.token, 3600, others) is not None

    # --- time ---

    def leases_are_over(self, chunks: Iterable[tuple[str, int]]) -> None:
        for job_id, number in chunks:
            self._jobs[job_id].chunks[number].deadline = _LONG_AGO

    def finish_claims_are_over(self) -> None:
        for job in self._jobs.values():
            if job.state is JobState.FINISHING:
                job.finish_due = _LONG_AGO

    def back_offs_are_over(self, job_id: str) -> None:
        job = self._jobs[job_id]
        for number in job.due():
            job.chunks[number].due = _LONG_AGO

    def outage_is_old(self, job_id: str) -> None:
        if self._jobs[job_id].outage_since is not None:
            self._jobs[job_id].outage_since = _LONG_AGO

    # --- inside ---

    def owns(self, claim: Claim) -> bool:
        """Whether a chunk is still leased to who claimed it."""
        return self._holds(self._jobs[claim.job_id], claim)

    def leased(self) -> list[tuple[str, int]]:
        """Every leased chunk."""
        return [(job_id, number) for job_id, job in self._jobs.items() for number, _ in job.leased]

    def has_claimable_work(self) -> bool:
        """Whether a worker that serves everything would get a chunk now."""
        return any(self.claimable_now(job) for job in self._jobs.values())

    def worst_trouble(self) -> int:
        """How often the unluckiest chunk came back for one reason."""
        chunks = (chunk for job in self._jobs.values() for chunk in job.chunks)
        return max((count for chunk in chunks for count in chunk.troubles.values()), default=0)

    def has_something_to_reconcile(self) -> bool:
        """Whether a lease is over or a job waits to be finished."""
        over = (chunk.deadline <= self._now() for job in self._jobs.values() for _, chunk in job.leased)
        return bool(self._finishable()) or any(over)
