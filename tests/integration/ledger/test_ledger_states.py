"""The ledger under everything at once: the real scripts on a real server against the ledger in memory.

Producers die and resume, workers crash between any two steps, lose leases and continue as zombies, jobs are
paused, cancelled and retried, the server loses everything and is rebuilt from what the outputs show, and each
call may be sent twice, as redis-py does after a timeout. After every step both ledgers must have answered the
same, and the server must hold what the model does (`tests/support/ledger_model.py`), and what is true of any
ledger. At the end everything left is driven to its end: no chunk may be lost, no row may count twice, no
generation of a job may end twice.

`LEDGER_STEPS=500 pytest tests/integration/ledger/test_ledger_states.py` walks further, each time another way.
"""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
import redis
from hypothesis import HealthCheck, Phase, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from clipfleet.contract.jobs import JobState, Lane
from clipfleet.contract.parts import PartCounts
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import (
    FINISH,
    MAX_LOSSES,
    Claim,
    Draft,
    FinishClaim,
    Lease,
    LeaseReport,
    Ledger,
)
from clipfleet.ledger.memory_job import CLAIMABLE, MemoryJob
from tests.support import ledger as steps
from tests.support.ledger import LANES, keys_without_ttl, let_back_offs_pass, let_finish_claims_expire
from tests.support.ledger_model import ModelLedger, done, file_of, has_work

pytestmark = pytest.mark.long
T = TypeVar("T")

STEPS = int(os.environ.get("LEDGER_STEPS", "50"))
EXAMPLES = int(os.environ.get("LEDGER_EXAMPLES", "120"))
IS_NIGHTLY = "LEDGER_STEPS" in os.environ
ENDABLE = (*CLAIMABLE, JobState.PAUSED, JobState.FINISHING)
COMPLETED = (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)
INTERVENTIONS = ("pause", "pause", "resume", "resume", "cancel", "fail")
LIVE_JOBS = 3  # at a time
SOURCES = ([2], [3], [1, 2], [2, 1], [1, 1, 2], [])  # chunks of each staged file
MODELS = ("one", "two")
SERVED = (("one",), ("two",), ("two", "one"))  # by each of the workers
TTL_SECONDS = 1000  # of a job that has ended
LATER_SECONDS = 100.0  # after the end of every test

times = st.integers(1, 2)  # how often a call arrives
release_kinds = st.sampled_from(["failures", "waits", "drain"])
lane_choices = st.sampled_from([LANES, LANES, LANES, LANES[:2], LANES[:1]])


def items_of(chunk: int) -> int:
    """Items of a chunk: one, two or three."""
    return chunk % 3 + 1


@dataclass
class Producer:
    """A submit of one job: its source, and how far this run of it has come."""

    job_id: str
    lane: Lane
    model: str
    files: Sequence[int]  # chunks of each staged file
    max_error_rate: float | None = None
    step: int = 0  # of this run: submit, stage each file, seal

    @property
    def last_step(self) -> int:
        """After this one the submit is over."""
        return len(self.files) + 2

    def first_chunk(self, position: int) -> int:
        return sum(self.files[:position])

    def items(self, position: int) -> list[int]:
        """Items of each chunk of a file."""
        first = self.first_chunk(position)
        return [items_of(chunk) for chunk in range(first, first + self.files[position])]

    @property
    def totals(self) -> tuple[int, int]:
        """Chunks and items of the source."""
        return sum(self.files), sum(sum(self.items(position)) for position in range(len(self.files)))


@dataclass(frozen=True)
class Part:
    """What is visible of a chunk."""

    generation: int
    counts: PartCounts


@dataclass
class Delivery:
    """What a worker remembers of one claim."""

    claim: Claim
    older: Part | None  # in place when the chunk was claimed; only that one is replaced
    is_written: bool = False
    ran: tuple[int, int] = (0, 0)  # rows that were run for it, and how many of them failed

    @property
    def place(self) -> tuple[str, int]:
        return self.claim.job_id, self.claim.chunk_id


@dataclass
class Notes:
    """What an output holds beside the parts."""

    is_sealed: bool = False
    is_success: bool = False
    generation: int = 0  # of the retry that was noted last
    codes: tuple[str, ...] = ()


@dataclass(frozen=True)
class Retry:
    """A retry that somebody has begun."""

    job_id: str
    token: str
    draft: Draft
    generation: int
    codes: tuple[str, ...]
    max_error_rate: float | None


@dataclass
class Worker:
    """A worker's memory, which a crash wipes out."""

    models: Sequence[str]
    deliveries: list[Delivery] = field(default_factory=list)
    finishes: list[FinishClaim] = field(default_factory=list)


@dataclass(frozen=True)
class JobFacts:
    """What the server holds about one job."""

    hash: dict[str, str]
    staged: list[str]
    due: dict[int, float]
    owners: dict[int, str]
    troubles: dict[str, int]
    codes: dict[str, int]
    done: set[int]
    done_bits: int


@dataclass(frozen=True)
class SharedFacts:
    """What the server holds about all jobs."""

    leases: list[str]
    finishing: set[str]
    queues: dict[tuple[Lane, str], set[str]]


class LedgerMachine(RuleBasedStateMachine):
    """The rules are what may happen; `store` and `notes` stand for the folders or buckets of the jobs."""

    def __init__(self, client: redis.Redis, ledger: Ledger) -> None:
        super().__init__()
        client.flushall()
        self.client = client
        self.ledger = ledger
        self.model = ModelLedger()
        self.producers: dict[str, Producer] = {}
        self.workers = [Worker(models) for models in SERVED]
        self.store: dict[tuple[str, int], Part] = {}
        self.notes: dict[str, Notes] = {}
        self.retries: list[Retry] = []  # begun, not put in place
        self.past_retries: list[Retry] = []  # put in place, or refused
        self.rebuilt: set[str] = set()
        self.losses = 0  # of everything
        self.claim_tokens: list[tuple[str, Sequence[str]]] = []  # of every claim, and for which models
        self.tokens = 0
        self.past: list[Delivery] = []  # every claim that was ever answered
        self.past_finishes: list[FinishClaim] = []

    def _both(self, call: Callable[[Ledger], T]) -> T:
        """What the ledger answers: it must be what the model answers."""
        predicted = call(self.model)
        answer = call(self.ledger)
        assert answer == predicted
        return answer

    # --- the producer's side ---

    @initialize()
    def begin(self) -> None:
        self._new_job(Lane.NORMAL, "one", [1, 3], steps=2)

    @rule(
        lane=st.sampled_from(LANES),
        model=st.sampled_from(MODELS),
        files=st.sampled_from(SOURCES),
        rate=st.sampled_from([None, None, 0.4, 0.0]),
        steps=st.sampled_from([5, 5, 4, 3, 0]),
    )
    @precondition(lambda self: len(self._live_jobs()) < LIVE_JOBS)
    def new_job(self, lane: Lane, model: str, files: Sequence[int], rate: float | None, steps: int) -> None:
        self._new_job(lane, model, files, rate, steps=steps)

    def _new_job(
        self, lane: Lane, model: str, files: Sequence[int], rate: float | None = None, *, steps: int
    ) -> None:
        job_id = f"job{len(self.producers)}"
        self.producers[job_id] = producer = Producer(job_id, lane, model, files, rate)
        self.notes[job_id] = Notes()
        for _ in range(min(steps, producer.last_step)):
            self._produce(producer)

    @rule(data=st.data(), times=times)
    @precondition(lambda self: any(self._producers_at_work()))
    def produce(self, data: st.DataObject, times: int) -> None:
        """A submit takes its next step."""
        self._produce(data.draw(st.sampled_from(list(self._producers_at_work()))), times)

    @rule(data=st.data(), dies=st.booleans(), times=times)
    @precondition(lambda self: any(not job.sealed for job in self.model.known.values()))
    def producer_has_trouble(self, data: st.DataObject, dies: bool, times: int) -> None:
        """It dies and is started again, or two submit one job: files out of order, the seal too early."""
        producer = self.producers[data.draw(self._job_ids())]
        if dies:
            producer.step = 0
            return
        position = data.draw(st.integers(0, len(producer.files)))
        for _ in range(times):
            self._stage_or_seal(producer, position)

    def _produce(self, producer: Producer, times: int = 1) -> None:
        job = steps.make_job(
            producer.job_id,
            lane=producer.lane,
            model=producer.model,
            max_error_rate=producer.max_error_rate,
        )
        for _ in range(times):
            if producer.step == 0:
                self._both(lambda ledger: ledger.submit(job))
            else:
                self._stage_or_seal(producer, producer.step - 1)
        producer.step += 1

    def _stage_or_seal(self, producer: Producer, position: int) -> None:
        if position < len(producer.files):
            self._stage(producer, position)
        else:
            self._seal(producer)

    def _stage(self, producer: Producer, position: int) -> None:
        first, file = producer.first_chunk(position), producer.items(position)
        self._both(lambda ledger: ledger.stage(producer.job_id, first, len(file), sum(file)))

    def _seal(self, producer: Producer) -> None:
        job = self.model.known[producer.job_id]
        self.notes[producer.job_id].is_sealed |= len(job.chunks) == producer.totals[0]
        self._both(lambda ledger: ledger.seal(producer.job_id, *producer.totals))

    # --- the operator's side ---

    @rule(data=st.data(), action=st.sampled_from(INTERVENTIONS), times=times)
    @precondition(lambda self: self._job_ids_in(*ENDABLE))
    def somebody_intervenes(self, data: st.DataObject, action: str, times: int) -> None:
        paused = self._job_ids_in(JobState.PAUSED)
        choices = paused if paused and action == "resume" else self._job_ids_in(*ENDABLE)
        job_id = data.draw(st.sampled_from(choices))
        for _ in range(times):
            if action == "pause":
                self._both(lambda ledger: ledger.pause(job_id, "by hand"))
            elif action == "resume":
                self._both(lambda ledger: ledger.resume(job_id))
            elif action == "cancel":
                self._both(lambda ledger: ledger.cancel(job_id, ttl_seconds=TTL_SECONDS))
            else:
                claims = [None, *(one.claim for one in self.past if one.claim.job_id == job_id)]
                self._fail(job_id, data.draw(st.sampled_from(claims)))

    def _fail(self, job_id: str, holder: Claim | None) -> None:
        """Somebody ends a job, or a worker that could write no rows and may have lost its chunk since."""
        self._both(lambda ledger: ledger.fail(job_id, "no disk", ttl_seconds=TTL_SECONDS, holder=holder))

    # --- the worker's side ---

    @rule(data=st.data(), times=times)
    def worker_goes_on(self, data: st.DataObject, times: int) -> None:
        """The next step of its oldest chunk, as if nothing ever went wrong."""
        worker = data.draw(st.sampled_from(self.workers))
        if not worker.deliveries:
            self._claim_for(worker, times)
        elif not worker.deliveries[0].is_written:
            self._write(worker.deliveries[0], data.draw(st.sampled_from([0, 0, 1, 3])))
        else:
            delivery = worker.deliveries.pop(0)
            for _ in range(times):
                self._complete(delivery)

    @rule(count=st.integers(1, 4))
    @precondition(lambda self: self.model.has_claimable_work())
    def much_gets_done(self, count: int) -> None:
        """Chunk after chunk, where nothing goes wrong."""
        for _ in range(count):
            self._work_off_one()

    @rule(failed=st.sampled_from([0, 1, 3]))
    @precondition(lambda self: self.model.has_claimable_work())
    def all_of_it_gets_done(self, failed: int) -> None:
        """So that there are jobs which ended, and were retried, more than once."""
        while self.model.has_claimable_work():
            self._work_off_one(failed)
        while finish := self._claim_finish(self._new_token()):
            self._finish(finish)

    def _work_off_one(self, failed: int = 0) -> Claim | None:
        token = self._new_token()
        self.claim_tokens.append((token, MODELS))
        claim = self._claim(token, MODELS, LANES, ())
        if claim is not None:
            delivery = self._delivery(claim)
            self.past.append(delivery)
            self._write(delivery, failed)
            assert self._complete(delivery) in ("done", "finishing", "stopped")
        return claim

    @rule(data=st.data(), lanes=lane_choices, times=times)
    def claim(self, data: st.DataObject, lanes: Sequence[Lane], times: int) -> None:
        """One chunk more; it may be that the worker never sees the answer."""
        worker = data.draw(st.sampled_from(self.workers))
        excluded = data.draw(st.sampled_from([[], [], [], self._live_jobs()[:1]]))
        is_answered = data.draw(st.sampled_from([True, True, True, False]))
        self._claim_for(worker, times, lanes, excluded, is_answered=is_answered)

    def _claim_for(
        self,
        worker: Worker,
        times: int,
        lanes: Sequence[Lane] = LANES,
        excluded: Sequence[str] = (),
        *,
        is_answered: bool = True,
    ) -> None:
        token = self._new_token()
        self.claim_tokens.append((token, worker.models))
        for _ in range(times):
            claim = self._claim(token, worker.models, lanes, excluded)
        if claim is not None and is_answered:
            worker.deliveries.append(self._delivery(claim))
            self.past.append(worker.deliveries[-1])

    def _delivery(self, claim: Claim) -> Delivery:
        return Delivery(claim, self.store.get((claim.job_id, claim.chunk_id)))

    def _claim(
        self, token: str, models: Sequence[str], lanes: Sequence[Lane], excluded: Sequence[str]
    ) -> Claim | None:
        choices = self.model.claim_choices(token, lanes, models, excluded)
        claim = self.ledger.claim(token, 3600, lanes, models, excluded)
        assert (claim is not None) == bool(choices), f"{claim} is not one of {choices}"
        if claim is None:
            return None
        assert (claim.job_id, claim.chunk_id) in choices
        job = self.model.known[claim.job_id]
        chunk = job.chunks[claim.chunk_id]
        troubles = {"losses": claim.losses, "failures": claim.failures, "waits": claim.waits}
        assert Counter(troubles) == chunk.troubles
        assert (claim.first_chunk, claim.chunks) == file_of(job, claim.chunk_id)
        assert (claim.generation, claim.retry_codes) == (job.generation, job.retry_codes)
        assert claim.job_fingerprint == job.job.fingerprint
        self.model.claimed(claim)
        assert claim.more or not self.model.must_say_more(lanes, models, excluded)
        return claim

    @rule(data=st.data(), failed=st.sampled_from([0, 0, 1, 3]))
    @precondition(lambda self: any(self._unwritten()))
    def write(self, data: st.DataObject, failed: int) -> None:
        self._write(data.draw(st.sampled_from(list(self._unwritten()))), failed)

    def _write(self, delivery: Delivery, failed: int = 0) -> None:
        """Put the part in place of the one that was seen, exclusively; one of this generation is adopted."""
        claim, found = delivery.claim, self.store.get(delivery.place)
        if found is not None and found.generation == claim.generation:
            may_be_there = claim.has_history or claim.generation > 0 or claim.job_id in self.rebuilt
            is_zombie = not self.model.owns(claim)  # its own claim says nothing of who came after it
            assert may_be_there or is_zombie, "only a chunk with a history has a part"
            is_first = claim.generation == 0  # else nobody knows which of its rows were kept
            counts = found.counts
            delivery.ran = (counts.ok + counts.failed, counts.failed) if is_first else (0, 0)
            delivery.is_written = True
        elif found is delivery.older:
            counts, delivery.ran = self._counts(claim, found, failed)
            self.store[delivery.place] = Part(claim.generation, counts)
            delivery.is_written = True
        else:  # another generation came in between: the worker begins with the chunk again
            self._release(delivery, "waits")
            self._forget(delivery)

    def _counts(self, claim: Claim, older: Part | None, failed: int) -> tuple[PartCounts, tuple[int, int]]:
        """Of a part whose rows were run, in a retry only those that had failed; and of what was run."""
        items = total = items_of(claim.chunk_id)
        kept = Counter[str]()  # failed rows that are not run again
        if older is not None:
            kept.update({code: n for code, n in older.counts.codes.items() if code not in claim.retry_codes})
            if not claim.retry_codes:
                kept.clear()
            items = older.counts.failed - kept.total()
        failed, code = (items, "chunk_failed") if claim.is_exhausted else (min(failed, items), "timeout")
        codes = kept + Counter({code: failed})
        return PartCounts(total - codes.total(), codes.total(), dict(codes)), (items, failed)

    def _forget(self, delivery: Delivery) -> None:
        for worker in self.workers:
            worker.deliveries = [one for one in worker.deliveries if one is not delivery]

    @rule(data=st.data(), times=times)
    @precondition(lambda self: any(self._written()))
    def complete(self, data: st.DataObject, times: int) -> None:
        worker, delivery = data.draw(st.sampled_from(list(self._written())))
        for _ in range(times):
            self._complete(delivery)
        worker.deliveries.remove(delivery)

    def _complete(self, delivery: Delivery) -> str:
        counts = self.store[delivery.place].counts
        return self._both(
            lambda ledger: ledger.complete(
                delivery.claim,
                ok=counts.ok,
                failed=counts.failed,
                codes=counts.codes,
                work_seconds={"fetch": 0.5},
                ran=delivery.ran,
                ttl_seconds=TTL_SECONDS,
            )
        )

    @rule(data=st.data(), kind=release_kinds, times=times)
    @precondition(lambda self: any(self._held()))
    def release(self, data: st.DataObject, kind: str, times: int) -> None:
        worker, delivery = data.draw(st.sampled_from(list(self._held())))
        for _ in range(times):
            self._release(delivery, kind)
        worker.deliveries.remove(delivery)

    def _release(self, delivery: Delivery, kind: str) -> None:
        how: Any = {"first_back_off_seconds": LATER_SECONDS, "outage_seconds": 3600}
        self._both(lambda ledger: ledger.release(delivery.claim, kind, reason="store away", **how))

    @rule(data=st.data(), call=st.sampled_from(["claim", "complete", "complete", "release", "finish"]))
    @precondition(lambda self: self.past)
    def a_call_arrives_late(self, data: st.DataObject, call: str) -> None:
        """From a zombie, or stuck in the network for a while; nobody reads the answer."""
        delivery = data.draw(st.sampled_from(self.past))
        if call == "claim":
            self._claim(*data.draw(st.sampled_from(self.claim_tokens)), LANES, ())
        elif call == "release":
            self._release(delivery, data.draw(release_kinds))
        elif call == "finish" and self.past_finishes:
            self._finish(data.draw(st.sampled_from(self.past_finishes)))
        elif delivery.is_written:
            self._complete(delivery)

    @rule(data=st.data(), listens=st.booleans(), times=times)
    @precondition(lambda self: any(worker.deliveries or worker.finishes for worker in self.workers))
    def renew(self, data: st.DataObject, listens: bool, times: int) -> None:
        """One call for all that a worker holds; a worker that does not listen goes on as a zombie."""
        busy = [worker for worker in self.workers if worker.deliveries or worker.finishes]
        worker = data.draw(st.sampled_from(busy))
        held = [delivery.claim for delivery in worker.deliveries]
        leases = [Lease(claim.job_id, str(claim.chunk_id), claim.token) for claim in held]
        leases += [Lease(claim.job_id, FINISH, claim.token) for claim in worker.finishes]
        for _ in range(times):
            words = self._both(lambda ledger: ledger.renew(leases, 3600))
        reports = [
            LeaseReport(lease, data.draw(st.integers(0, 3)), "encode") for lease in leases[: len(held)]
        ]
        self._both(lambda ledger: ledger.report(reports, leases[:1] if held and times > 1 else ()))
        if listens:
            gone = {
                lease.token
                for lease, word in zip(leases, words, strict=True)
                if word in ("lost", "cancelled")
            }
            worker.deliveries = [one for one in worker.deliveries if one.claim.token not in gone]
            worker.finishes = [claim for claim in worker.finishes if claim.token not in gone]

    @rule(kind=st.sampled_from(["losses", "failures", "waits"]), times=st.sampled_from([2, MAX_LOSSES]))
    @precondition(lambda self: self.model.worst_trouble() < 2)
    def a_chunk_has_bad_luck(self, kind: str, times: int) -> None:
        """Worker after worker gives it back, or dies of it."""
        for _ in range(times):
            claim = self._claim(self._new_token(), MODELS, LANES, ())
            if claim is None:
                return
            if kind == "losses":
                self._expire([(claim.job_id, claim.chunk_id)])
                self._reconcile()
            else:
                self._release(self._delivery(claim), kind)
                self._age_outages()
            self._end_back_offs(claim.job_id)

    @rule(data=st.data(), times=times)
    @precondition(lambda self: self._owned())
    def a_worker_sleeps_too_long(self, data: st.DataObject, times: int) -> None:
        """Its chunk is given to another, and it knows nothing of that."""
        claim = data.draw(st.sampled_from(self._owned())).claim
        self._expire([(claim.job_id, claim.chunk_id)])
        self._reconcile()
        self._end_back_offs(claim.job_id)
        self._claim_for(self.workers[-1], times)

    @rule(data=st.data())
    @precondition(lambda self: any(worker.deliveries or worker.finishes for worker in self.workers))
    def worker_crashes(self, data: st.DataObject) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        worker.deliveries, worker.finishes = [], []

    # --- time ---

    @rule(data=st.data(), what=st.sampled_from(["lease", "leases", "back-offs", "outage", "finish claims"]))
    @precondition(lambda self: self.model.known)
    def time_passes(self, data: st.DataObject, what: str) -> None:
        leased = self.model.leased()
        if what == "lease" and leased:
            self._expire([data.draw(st.sampled_from(leased))])
        elif what == "leases":
            self._expire(leased)
        elif what == "finish claims":
            self._expire_finish_claims()
        elif what == "outage":
            self._age_outages()
        else:
            self._end_back_offs(data.draw(self._job_ids()))

    def _expire(self, chunks: list[tuple[str, int]]) -> None:
        if chunks:
            steps.let_leases_expire(self.client, *chunks)
            self.model.leases_are_over(chunks)

    @rule(times=times)
    @precondition(lambda self: self.model.has_something_to_reconcile())
    def reconcile(self, times: int) -> None:
        for _ in range(times):
            self._reconcile()

    def _reconcile(self) -> None:
        self._both(lambda ledger: ledger.reconcile(first_back_off_seconds=LATER_SECONDS))

    def _end_back_offs(self, job_id: str) -> None:
        let_back_offs_pass(self.client, job_id)
        self.model.back_offs_are_over(job_id)

    def _age_outages(self) -> None:
        for job_id in self.model.known:
            steps.let_outage_grow_old(self.client, job_id)
            self.model.outage_is_old(job_id)

    def _expire_finish_claims(self) -> None:
        let_finish_claims_expire(self.client)
        self.model.finish_claims_are_over()

    # --- the end ---

    @rule(data=st.data(), answer_is_lost=st.booleans(), times=times)
    @precondition(lambda self: self._job_ids_in(JobState.FINISHING))
    def claim_finish(self, data: st.DataObject, answer_is_lost: bool, times: int) -> None:
        worker = data.draw(st.sampled_from(self.workers))
        old = [token for token, _ in self.claim_tokens[-2:]]  # of the same delivery
        token = data.draw(st.sampled_from([self._new_token(), *old]))
        for _ in range(times):
            claim = self._claim_finish(token)
        if claim is not None and not answer_is_lost:
            worker.finishes.append(claim)

    def _claim_finish(self, token: str) -> FinishClaim | None:
        choices = self.model.claim_finish_choices(token)
        claim = self.ledger.claim_finish(token, 3600)
        assert (claim is not None) == bool(choices), f"{claim} is not one of {choices}"
        if claim is not None:
            assert claim.job_id in choices
            job = self.model.known[claim.job_id]
            assert (claim.generation, claim.job_fingerprint) == (job.generation, job.job.fingerprint)
            self.model.finish_claimed(claim)
            self.past_finishes.append(claim)
        return claim

    @rule(data=st.data(), trouble=st.sampled_from([None, None, "away", "gone"]), times=times)
    @precondition(lambda self: any(worker.finishes for worker in self.workers))
    def finish(self, data: st.DataObject, trouble: str | None, times: int) -> None:
        """The manifest is written, or cannot be; the worker may have lost its claim meanwhile."""
        worker = data.draw(st.sampled_from([worker for worker in self.workers if worker.finishes]))
        claim = worker.finishes.pop()
        for _ in range(times):
            if trouble:
                self._postpone_finish(claim, is_lasting=trouble == "gone")
            else:
                self._finish(claim)

    def _postpone_finish(self, claim: FinishClaim, *, is_lasting: bool) -> None:
        how: Any = {"outage_seconds": 3600, "ttl_seconds": TTL_SECONDS, "is_lasting": is_lasting}
        self._both(lambda ledger: ledger.postpone_finish(claim, LATER_SECONDS, "no disk", **how))

    def _finish(self, claim: FinishClaim) -> None:
        job = self.model.known[claim.job_id]
        if (job.state, job.generation) == (JobState.FINISHING, claim.generation):
            self.notes[claim.job_id].is_success = True
        self._both(lambda ledger: ledger.finish(claim, ttl_seconds=TTL_SECONDS))

    # --- going on after an end ---

    @rule(
        data=st.data(),
        codes=st.sampled_from([(), (), ("timeout",)]),
        rate=st.sampled_from([None, None, None, 0.9, 0.1]),
    )
    @precondition(lambda self: self._ended_jobs() and len(self._live_jobs()) < LIVE_JOBS)
    def somebody_begins_a_retry(
        self, data: st.DataObject, codes: tuple[str, ...], rate: float | None
    ) -> None:
        """The output is looked at; what is begun later puts this one out of the race."""
        job_id = data.draw(st.sampled_from(self._ended_jobs()))
        token = self._new_token()
        self._both(lambda ledger: ledger.drafts.begin(job_id, token))
        draft, newest = self._inventory(job_id, lambda part: not _has_failed(part.counts, codes))
        generation = max(self.model.known[job_id].generation, newest) + 1
        self.retries.append(Retry(job_id, token, draft, generation, codes, rate))
        if data.draw(st.booleans()):
            self._start_retry(self.retries.pop(), 1)

    @rule(data=st.data(), dies=st.sampled_from([False, False, True]), times=times)
    @precondition(lambda self: self.retries)
    def a_retry_starts(self, data: st.DataObject, dies: bool, times: int) -> None:
        retry = data.draw(st.sampled_from(self.retries))
        self.retries.remove(retry)
        if not dies:
            self._start_retry(retry, times)

    def _start_retry(self, retry: Retry, times: int) -> None:
        """As `resume.retry` does it: noted in the output, `_SUCCESS` removed, then the ledger is told."""
        notes, before = self.notes[retry.job_id], self.model.known[retry.job_id].generation
        if notes.generation > retry.generation:
            return
        notes.generation, notes.codes, notes.is_success = retry.generation, retry.codes, False
        for _ in range(times):
            word = self._put_retry_in_place(retry)
        job = self.model.known[retry.job_id]
        if word != "started" and job.state in COMPLETED and job.generation > before:
            notes.is_success = True
        self.past_retries.append(retry)

    def _put_retry_in_place(self, retry: Retry) -> str:
        ids = retry.job_id, retry.token, retry.draft
        how: Any = {
            "generation": retry.generation,
            "codes": retry.codes,
            "max_error_rate": retry.max_error_rate,
        }
        return self._both(lambda ledger: ledger.drafts.retry(*ids, **how))[0]

    @rule(times=times)
    @precondition(lambda self: self.losses < 2)
    def the_server_forgets_everything(self, times: int) -> None:
        """Each job is put back as its output shows it."""
        self.client.flushall()
        lost, self.retries, self.past_retries = self.model.lose_everything(), [], []
        self.losses += 1
        for job_id, job in lost.items():
            self.rebuilt.add(job_id)
            for _ in range(times):
                self._rebuild(job_id, job)

    def _rebuild(self, job_id: str, lost: MemoryJob) -> None:
        notes, token = self.notes[job_id], self._new_token()
        self._both(lambda ledger: ledger.drafts.begin(job_id, token))
        draft, newest = self._inventory(
            job_id,
            lambda part: (
                notes.is_success
                or part.generation >= notes.generation
                or not _has_failed(part.counts, notes.codes)
            ),
            lost,
        )
        state = JobState.RUNNING if notes.is_sealed else JobState.SUBMITTING
        if notes.is_success:
            state = JobState.COMPLETED_WITH_ERRORS if draft.failed else JobState.COMPLETED
        generation = max(notes.generation, newest)
        self._both(
            lambda ledger: ledger.drafts.rebuild(
                lost.job, token, draft, state=state, generation=generation, codes=notes.codes,
                items=lost.items, ttl_seconds=TTL_SECONDS,
            )
        )  # fmt: skip

    def _inventory(
        self, job_id: str, is_done: Callable[[Part], bool], job: MemoryJob | None = None
    ) -> tuple[Draft, int]:
        """What the parts of a job show, and their newest generation."""
        job = job or self.model.known[job_id]
        parts = {
            number: self.store[(job_id, number)]
            for number in range(len(job.chunks))
            if (job_id, number) in self.store
        }
        done = {number: part for number, part in parts.items() if is_done(part)}
        bits, codes = bytearray(-(-len(job.chunks) // 8)), Counter[str]()
        for number, part in done.items():
            bits[number // 8] |= 0x80 >> number % 8
            codes.update(part.counts.codes)
        next_chunk = max(parts, default=-1) + 1
        draft = Draft(
            done=bytes(bits),
            due=[number for number in range(next_chunk) if number not in done],
            next_chunk=next_chunk,
            ok=sum(part.counts.ok for part in done.values()),
            failed=sum(part.counts.failed for part in done.values()),
            codes=codes,
            staged=job.files,
        )
        return draft, max((part.generation for part in parts.values()), default=0)

    # --- what must be true at any time ---

    @invariant()
    def the_server_is_what_the_model_says(self) -> None:
        shared = self._shared_facts()
        for job_id, job in self.model.known.items():
            facts = self._facts(job_id)
            self._check_against_model(facts, job)
            self._check_rows(facts, job_id, job)
            self._check_places(facts, shared, job_id, job)

    def _check_against_model(self, facts: JobFacts, job: MemoryJob) -> None:
        assert facts.hash["state"] == job.state
        assert facts.hash["reason"] == job.reason
        assert int(facts.hash["generation"]) == job.generation
        assert int(facts.hash["staged_items"]) == job.items
        assert facts.staged == [f"{first}-{chunks}" for first, chunks in job.files]
        assert int(facts.hash["next_chunk"]) == job.next_chunk
        assert facts.done == done(job)
        assert set(facts.due) == set(job.due())
        assert facts.owners == {number: chunk.owner for number, chunk in job.leased}
        assert facts.troubles == {
            f"{number}:{kind}": count
            for number, chunk in enumerate(job.chunks)
            for kind, count in chunk.troubles.items()
        }
        assert facts.codes == job.codes
        assert ("outage_since" in facts.hash) == (job.outage_since is not None)

    def _check_rows(self, facts: JobFacts, job_id: str, job: MemoryJob) -> None:
        parts = [self.store[(job_id, number)].counts for number in facts.done]  # no part, no completion
        assert int(facts.hash["ok"]) == sum(part.ok for part in parts)
        assert int(facts.hash["failed"]) == sum(part.failed for part in parts)
        assert int(facts.hash["done_chunks"]) == len(facts.done) == facts.done_bits
        all_done = len(facts.done) == int(facts.hash["staged_chunks"])
        if facts.hash["sealed"] == "1" and all_done:
            # A paused one could not be finished for too long: whoever resumes it has it tried again.
            assert job.state in (JobState.FINISHING, JobState.PAUSED) or job.state.is_final
        if job.state in (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS):
            assert int(facts.hash["ok"]) + int(facts.hash["failed"]) == int(facts.hash["staged_items"])

    def _check_places(self, facts: JobFacts, shared: SharedFacts, job_id: str, job: MemoryJob) -> None:
        """No chunk is in two places, none is nowhere, and claims find the job if it has work."""
        due, owned = set(facts.due), set(facts.owners)
        assert not due & owned | due & facts.done | owned & facts.done
        leased = {lease for lease in shared.leases if lease.startswith(f"{job_id}:")}
        assert leased == {f"{job_id}:{number}" for number in owned}
        if not job.state.is_final:
            claimed_once = set(range(int(facts.hash["next_chunk"])))
            assert due | owned | facts.done == claimed_once
        queues = {queue for queue, members in shared.queues.items() if job_id in members}
        own = {(job.job.lane, job.job.model)}
        assert queues <= own
        assert queues == own or not has_work(job)
        assert not queues or job.state in CLAIMABLE
        assert (job_id in shared.finishing) == (job.state is JobState.FINISHING)

    @invariant()
    def each_job_ends_once(self) -> None:
        events = Counter(
            (entry["job_id"], entry["generation"], entry["state"])
            for _, entry in self.client.xrange(keys.EVENTS)
        )
        assert events == Counter(
            (job_id, str(generation), state.value)
            for job_id, job in self.model.known.items()
            for generation, state in job.ends
        )
        for job_id, job in self.model.known.items():
            ended = [generation for generation, _ in job.ends]
            assert len(set(ended)) == len(ended)
            assert (job.generation in ended) == job.state.is_final or job_id in self.rebuilt

    @invariant()
    def success_is_said_of_finished_jobs_only(self) -> None:
        for job_id, job in self.model.known.items():
            assert not self.notes[job_id].is_success or job.state in COMPLETED, job_id

    @invariant()
    def nothing_is_kept_for_ever(self) -> None:
        assert keys_without_ttl(self.client) == []

    @invariant()
    def claims_are_counted(self) -> None:
        assert int(self.client.get(keys.TURNS) or 0) == self.model.turns

    def _shared_facts(self) -> SharedFacts:
        names = [(lane, model) for lane in LANES for model in MODELS]
        with self.client.pipeline(transaction=False) as ask:
            ask.zrange(keys.LEASES, 0, -1)
            ask.zrange(keys.FINISHING, 0, -1)
            for lane, model in names:
                ask.zrange(keys.lane_queue(lane, model), 0, -1)
            answers: list[Any] = ask.execute()
        leases, finishing, *queues = answers
        members = {name: set(queue) for name, queue in zip(names, queues, strict=True)}
        return SharedFacts(leases, set(finishing), members)

    def _facts(self, job_id: str) -> JobFacts:
        chunks = len(self.model.known[job_id].chunks)
        with self.client.pipeline(transaction=False) as ask:
            ask.hgetall(keys.job(job_id))
            ask.zrange(keys.job(job_id, keys.STAGED), 0, -1)
            ask.zrange(keys.job(job_id, keys.DUE), 0, -1, withscores=True)
            ask.hgetall(keys.job(job_id, keys.OWNERS))
            ask.hgetall(keys.job(job_id, keys.TROUBLES))
            ask.hgetall(keys.job(job_id, keys.CODES))
            ask.bitcount(keys.job(job_id, keys.DONE))
            for number in range(chunks):
                ask.getbit(keys.job(job_id, keys.DONE), number)
            answers: list[Any] = ask.execute()
        facts, staged, due, owners, troubles, codes, done_bits, *bits = answers
        if facts["state"] == JobState.COMPLETED and not done_bits:  # the state says all
            done_bits, bits = chunks, [1] * chunks
        return JobFacts(
            hash=facts,
            staged=staged,
            due={int(number): mark for number, mark in due},
            owners={int(number): token for number, token in owners.items()},
            troubles={name: int(count) for name, count in troubles.items()},
            codes={code: int(count) for code, count in codes.items()},
            done={number for number, bit in enumerate(bits) if bit},
            done_bits=done_bits,
        )

    # --- everything comes to its end ---

    def teardown(self) -> None:
        if sys.exc_info()[0] is not None:  # a step has failed already
            return
        for job_id in list(self.model.known):
            self._end_submit(self.producers[job_id])
        self._expire(self.model.leased())
        self._reconcile()
        for job_id in self.model.known:
            self._end_back_offs(job_id)
        self._follow_one_hint()
        self._expire_finish_claims()
        while finish := self._claim_finish(self._new_token()):
            self._finish(finish)
        self._hear_all_again()
        self._check_end()

    def _hear_all_again(self) -> None:
        """Every call of every worker arrives once more, and changes nothing."""
        for delivery in self.past:
            self._claim(delivery.claim.token, MODELS, LANES, ())
            self._release(delivery, "waits")
            if delivery.is_written:
                self._complete(delivery)
        for finish in self.past_finishes:
            self._claim_finish(finish.token)
            self._postpone_finish(finish, is_lasting=True)
            self._finish(finish)
        for retry in self.past_retries:
            self._put_retry_in_place(retry)

    def _follow_one_hint(self) -> None:
        """A hint that sets off the next one is enough, and it dies when nothing is left."""
        has_hint = True
        while has_hint:
            claim = self._work_off_one()
            has_hint = claim is not None and claim.more
        assert self._claim(self._new_token(), MODELS, LANES, ()) is None

    def _end_submit(self, producer: Producer) -> None:
        self._both(lambda ledger: ledger.resume(producer.job_id))
        for position in range(len(producer.files)):
            self._stage(producer, position)
        self._seal(producer)

    def _check_end(self) -> None:
        self.the_server_is_what_the_model_says()
        self.each_job_ends_once()
        self.nothing_is_kept_for_ever()
        for job_id, job in self.model.known.items():
            assert job.state.is_final, f"{job_id} never ends"
            if job.state in (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS):
                chunks, items = self.producers[job_id].totals
                parts = [part.counts for (owner, _), part in self.store.items() if owner == job_id]
                assert len(parts) == chunks
                assert sum(part.ok + part.failed for part in parts) == items == job.ok + job.failed
                assert sum(part.failed for part in parts) == job.failed
            names = {
                keys.job(job_id, suffix) for suffix in keys.JOB_SUFFIXES if not suffix.startswith(keys.DRAFT)
            }
            assert max(map(self.client.pttl, names)) <= TTL_SECONDS * 1000, f"{job_id} is kept for too long"
        assert self.ledger.reconcile() == (0, 0)
        assert not self.client.exists(keys.LEASES, keys.FINISHING)

    # --- what there is to choose from ---

    def _new_token(self) -> str:
        self.tokens += 1
        return f"delivery{self.tokens}"

    def _job_ids(self) -> st.SearchStrategy[str]:
        return st.sampled_from(sorted(self.model.known))

    def _job_ids_in(self, *states: JobState) -> list[str]:
        return sorted(job_id for job_id, job in self.model.known.items() if job.state in states)

    def _live_jobs(self) -> list[str]:
        """Jobs that have not ended; their submit may not have begun."""
        jobs = self.model.known
        return [job_id for job_id in self.producers if job_id not in jobs or not jobs[job_id].state.is_final]

    def _ended_jobs(self) -> list[str]:
        return sorted(job_id for job_id, job in self.model.known.items() if job.state.is_final)

    def _producers_at_work(self) -> Iterator[Producer]:
        return (producer for producer in self.producers.values() if producer.step < producer.last_step)

    def _held(self) -> Iterator[tuple[Worker, Delivery]]:
        return ((worker, delivery) for worker in self.workers for delivery in worker.deliveries)

    def _owned(self) -> list[Delivery]:
        """Deliveries whose lease is not lost, though it may be over."""
        return [delivery for _, delivery in self._held() if self.model.owns(delivery.claim)]

    def _written(self) -> Iterator[tuple[Worker, Delivery]]:
        return ((worker, delivery) for worker, delivery in self._held() if delivery.is_written)

    def _unwritten(self) -> Iterator[Delivery]:
        return (delivery for _, delivery in self._held() if not delivery.is_written)


def _has_failed(counts: PartCounts, codes: Sequence[str]) -> bool:
    return any(counts.codes.get(code) for code in codes) if codes else counts.failed > 0


@pytest.mark.timeout(0 if IS_NIGHTLY else 300)
def test_nothing_is_lost_and_nothing_counts_twice(ledger: Ledger, redis_client: redis.Redis) -> None:
    stateful.run_state_machine_as_test(
        lambda: LedgerMachine(redis_client, ledger),
        settings=settings(
            max_examples=EXAMPLES,
            stateful_step_count=STEPS,
            derandomize=not IS_NIGHTLY,
            database=None,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            phases=[Phase.generate, Phase.shrink],
            suppress_health_check=list(HealthCheck),
        ),
    )
