"""Rows in Redis under everything at once: the real scripts against a model of what may be seen.

Workers stop between any two slices, lose their leases and go on as zombies, complete too early and twice;
Redis loses what was brought; jobs are cancelled and retried. After every step the visible rows must be those
of the chunks that are complete, each whole and from one writer, and ids, vectors, counts, events must fit.

`LEDGER_STEPS=500 pytest tests/integration/test_redis_rows_states.py` walks further, each time another way.
"""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pytest
import redis
from hypothesis import HealthCheck, Phase, settings, stateful
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from clipfleet.contract.jobs import JobState
from clipfleet.hints import Hints
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import Claim, Ledger
from clipfleet.ledger.row_store import RedisStore
from clipfleet.outputs.redis import RedisOutput
from clipfleet.results.redis_rows import RedisRows
from clipfleet.resume.retry import Retry
from clipfleet_worker.sinks import redis as redis_sink
from clipfleet_worker.sinks.redis import RedisSink
from tests.support import redis_rows
from tests.support.ledger import keys_without_ttl, let_back_offs_pass, let_leases_expire, try_claim
from tests.support.redis_rows import chunk_rows, complete, counts, identity, pending_keys, visible_rows

pytestmark = pytest.mark.long

STEPS = int(os.environ.get("LEDGER_STEPS", "40"))
IS_NIGHTLY = "LEDGER_STEPS" in os.environ
CHUNKS, ITEMS = 3, 3
failed_positions = st.sampled_from([[], [], [0], [1, 2]])


@dataclass
class Delivery:
    """A claim in the hands of a worker, which may have lost it."""

    claim: Claim
    rows: pa.Table = field(repr=False)  # what it will have brought once all slices are there
    slices: set[int] = field(default_factory=set)  # those that wait in Redis


class RowsMachine(RuleBasedStateMachine):
    """One job; `visible` is what the model says can be read, by chunk."""

    def __init__(self, client: redis.Redis, ledger: Ledger, store: RedisStore) -> None:
        super().__init__()
        client.flushall()
        self.client, self.ledger, self.store = client, ledger, store
        self.job = redis_rows.redis_job(chunk_items=ITEMS)
        self.deliveries: list[Delivery] = []
        self.visible: dict[int, pa.Table] = {}
        self.done: set[int] = set()  # in this generation
        self.next_chunk = 0  # the first one that nobody has claimed in this generation
        self.generation = 0
        self.ends: list[tuple[str, str]] = []
        self.state = JobState.RUNNING

    @initialize()
    def begin(self) -> None:
        redis_rows.submit_job(self.ledger, chunks=CHUNKS, chunk_items=ITEMS)

    # --- what may happen ---

    @rule(failed=failed_positions)
    @precondition(lambda self: not self.state.is_final)
    def claim(self, failed: list[int]) -> None:
        let_back_offs_pass(self.client, "job")
        claimed = try_claim(self.ledger)
        if claimed is not None:
            assert claimed.chunk_id not in self.done
            self.next_chunk = max(self.next_chunk, claimed.chunk_id + 1)
            first = claimed.chunk_id * ITEMS
            ids = [f"id-{(first + position) % 4}" for position in range(ITEMS)]
            rows = chunk_rows(first, ITEMS, writer=claimed.token, failed=failed, ids=ids)
            self.deliveries.append(Delivery(claimed, rows))

    @rule(data=st.data(), times=st.integers(1, 2))
    @precondition(lambda self: self.deliveries)
    def bring_a_slice(self, data: st.DataObject, times: int) -> None:
        """The next one that is missing; it may arrive twice."""
        delivery = self._any(data)
        missing = sorted(set(range(ITEMS)) - delivery.slices)
        for _ in range(times if missing else 0):
            self._bring(delivery, missing[0])

    @rule(data=st.data(), times=st.integers(1, 2))
    @precondition(lambda self: self.deliveries)
    def bring_the_rest_and_complete(self, data: st.DataObject, times: int) -> None:
        delivery = self._any(data)
        for position in sorted(set(range(ITEMS)) - delivery.slices):
            self._bring(delivery, position)
        for _ in range(times):
            self._complete(delivery)

    @rule(data=st.data())
    @precondition(lambda self: self.deliveries)
    def complete_as_it_is(self, data: st.DataObject) -> None:
        """Too early, too late, or just in time."""
        self._complete(self._any(data))

    @rule(data=st.data(), kind=st.sampled_from(["drain", "waits", "failures"]))
    @precondition(lambda self: self.deliveries)
    def release(self, data: st.DataObject, kind: str) -> None:
        delivery = self._any(data)
        if self.ledger.release(delivery.claim, kind, reason="") == "released":
            delivery.slices.clear()

    @rule()
    def leases_expire(self) -> None:
        let_leases_expire(self.client)
        self.ledger.reconcile()

    @rule(data=st.data())
    @precondition(lambda self: self.deliveries)
    def redis_loses_what_was_brought(self, data: st.DataObject) -> None:
        delivery = self._any(data)
        token = delivery.claim.token
        self.client.delete(*(keys.pending("job", token, suffix) for suffix in keys.RESULT_SUFFIXES))
        delivery.slices.clear()

    @rule()
    @precondition(lambda self: not self.state.is_final)
    def cancel(self) -> None:
        owners = set(self.client.hvals(keys.job("job", keys.OWNERS)))
        assert self.ledger.cancel("job", ttl_seconds=1000) == (True, JobState.CANCELLED)
        for delivery in self.deliveries:
            if delivery.claim.token in owners:
                delivery.slices.clear()
        self._end(JobState.CANCELLED)

    @rule()
    @precondition(lambda self: self.state.is_final)
    def retry(self) -> None:
        parts = RedisRows(self.ledger, self.store, self.job).parts_in_place
        hints = cast(Hints, SimpleNamespace(publish_work=lambda count: None))
        is_started = Retry(
            self.ledger, hints, RedisOutput(self.store, "job"), parts, self.job, lease_seconds=30
        ).run()
        whole = {chunk for chunk, rows in self.visible.items() if not counts(rows).failed}
        assert is_started == (len(whole) < CHUNKS or self.state is JobState.CANCELLED)
        if is_started:
            self.generation += 1
            self.done, self.next_chunk = whole, max(self.visible, default=-1) + 1
            self.state = JobState.RUNNING
            self._end_if_done()

    # --- and what then must be ---

    def _bring(self, delivery: Delivery, position: int) -> None:
        claim = delivery.claim
        rows = delivery.rows.slice(position, 1)
        (rows_of_slice,) = redis_sink._slices(rows)
        word = self.store.write_rows(identity(claim), claim.token, rows_of_slice)
        assert word == (self._refusal(claim) or "written")
        if word == "written":
            delivery.slices.add(position)
        else:
            delivery.slices.clear()

    def _complete(self, delivery: Delivery) -> None:
        claim = delivery.claim
        word = complete(self.ledger, claim, counts(delivery.rows))
        refusal = self._refusal(claim)
        if refusal is not None:
            assert word == refusal
            delivery.slices.clear()
        elif len(delivery.slices) < ITEMS:
            assert word == "incomplete"
        else:
            self.visible[claim.chunk_id] = delivery.rows
            self.done.add(claim.chunk_id)
            delivery.slices.clear()
            assert word == ("ended" if self._end_if_done() else "done")

    def _refusal(self, claim: Claim) -> str | None:
        if claim.chunk_id >= self.next_chunk:
            return "missing"
        if self.state is JobState.CANCELLED:
            return "cancelled"
        if claim.generation != self.generation:
            return "stale"
        return "already" if claim.chunk_id in self.done else None

    def _end_if_done(self) -> bool:
        if len(self.done) < CHUNKS:
            return False
        failed = sum(counts(rows).failed for rows in self.visible.values())
        self._end(JobState.COMPLETED_WITH_ERRORS if failed else JobState.COMPLETED)
        return True

    def _end(self, state: JobState) -> None:
        self.state = state
        self.ends.append((str(self.generation), state.value))

    def _any(self, data: st.DataObject) -> Delivery:
        return data.draw(st.sampled_from(self.deliveries))

    @invariant()
    def everybody_sees_whole_chunks_of_one_writer(self) -> None:
        expected = {
            row["item_index"]: (row["item_id"], row["label"], row["status"])
            for rows in self.visible.values()
            for row in rows.to_pylist()
        }
        seen = visible_rows(self.client)
        assert {i: (row["item_id"], row["label"], row["status"]) for i, row in seen.items()} == expected
        with_vector = {str(index) for index, (_, _, status) in expected.items() if status == "ok"}
        assert with_vector <= set(self.client.hkeys(keys.job("job", keys.VECTORS)))
        lowest: dict[str, int] = {}
        for index in sorted(expected, reverse=True):
            lowest[expected[index][0]] = index
        ids: Any = self.client.hgetall(keys.job("job", keys.IDS))
        assert {name: int(index) for name, index in ids.items()} == lowest

    @invariant()
    def rows_are_counted_once(self) -> None:
        status = self.ledger.status("job")
        assert (status.state, status.generation) == (self.state, self.generation)
        done = [counts(self.visible[chunk]) for chunk in self.done]
        assert status.done_chunks == len(done)
        assert (status.ok, status.failed) == (sum(c.ok for c in done), sum(c.failed for c in done))

    @invariant()
    def what_waits_is_what_was_brought(self) -> None:
        waiting = {name.partition(":pending:")[2].partition(":")[0] for name in pending_keys(self.client)}
        assert waiting == {delivery.claim.token for delivery in self.deliveries if delivery.slices}

    @invariant()
    def each_generation_ends_once_and_nothing_is_kept_for_ever(self) -> None:
        events = [(event["generation"], event["state"]) for _, event in self.client.xrange(keys.EVENTS)]
        assert events == self.ends
        assert max(Counter(generation for generation, _ in events).values(), default=0) <= 1
        assert keys_without_ttl(self.client) == []

    def teardown(self) -> None:
        """Whatever happened, the job can be brought to its end, and every item has a row then."""
        if self.state is JobState.CANCELLED:
            self.retry()
        for _ in range(CHUNKS):
            let_leases_expire(self.client)
            self.ledger.reconcile()
            let_back_offs_pass(self.client, "job")
            if not self.state.is_final:
                claimed = try_claim(self.ledger)
                assert claimed is not None, "a chunk is lost"
                self.next_chunk = max(self.next_chunk, claimed.chunk_id + 1)
                delivery = Delivery(claimed, chunk_rows(claimed.chunk_id * ITEMS, ITEMS))
                RedisSink(self.store).write(
                    identity(claimed), delivery.rows, counts(delivery.rows), token=claimed.token
                )
                delivery.slices = set(range(ITEMS))
                self._complete(delivery)
        assert list(visible_rows(self.client)) == list(range(CHUNKS * ITEMS))
        assert self.state in (JobState.COMPLETED, JobState.COMPLETED_WITH_ERRORS)


@pytest.mark.timeout(0 if IS_NIGHTLY else 300)
def test_whole_chunks_are_seen_once(ledger: Ledger, redis_client: redis.Redis, store: RedisStore) -> None:
    stateful.run_state_machine_as_test(
        lambda: RowsMachine(redis_client, ledger, store),
        settings=settings(
            max_examples=100,
            stateful_step_count=STEPS,
            derandomize=not IS_NIGHTLY,
            database=None,
            deadline=None,
            print_blob=True,
            report_multiple_bugs=False,
            phases=[Phase.generate],  # shrinking takes long, and a failing walk is short enough to be read
            suppress_health_check=list(HealthCheck),
        ),
    )
