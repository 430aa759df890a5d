"""Fetching many URLs on one event loop: slices, the gate, the chunk's deadline, bugs, the end."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Iterator
from unittest.mock import MagicMock

import pytest

from clipfleet.contract.bottleneck import Meter
from clipfleet.contract.jobs import ErrorCode, ItemError, Lane
from clipfleet.errors import SourceUnavailableError
from clipfleet_worker.failures import ChunkInterrupted, ItemFailure
from clipfleet_worker.fetch import loop as loop_module
from clipfleet_worker.fetch.http.host_turns import HostTurns
from clipfleet_worker.fetch.loop import FetchedSlice, FetchLoop, FetchRequest
from clipfleet_worker.fetch.retrying import ChunkTime
from clipfleet_worker.fetch.waiting_bytes import WaitingBytes
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.process.watchdog import Pulse
from tests.support.doubles import PATIENCE_SECONDS, Clock
from tests.support.scenarios import in_loop, settle
from tests.support.waiting import wait_until

HANG = object()
ARRIVED = ItemError(ErrorCode.EMPTY, "arrived")
DEADLINE_SECONDS = 180.0


class FakeFetcher:
    """Answers by URI: bytes, an exception, or never; by default one byte."""

    def __init__(self) -> None:
        self.answers: dict[str, object] = {}
        self.asked: list[str] = []
        self.cancelled: list[str] = []
        self.is_started = self.is_closed = False

    async def start(self) -> None:
        self.is_started = True

    async def close(self) -> None:
        self.is_closed = True

    async def fetch(self, uri: str, time_left: ChunkTime) -> bytes:
        self.asked.append(uri)
        await asyncio.sleep(0)
        answer = self.answers.get(uri, b"x")
        if answer is HANG:
            try:
                await asyncio.Event().wait()
            except asyncio.CancelledError:
                self.cancelled.append(uri)
                raise
        if isinstance(answer, BaseException):
            raise answer
        assert isinstance(answer, bytes)
        return answer


class Bench:
    """A running loop with a double inside; what arrives is `delivered` unless a test takes it."""

    def __init__(self, limit: int = 1000) -> None:
        self.fetcher, self.clock = FakeFetcher(), Clock()
        self.waiting_bytes = WaitingBytes(limit)
        self.loop = FetchLoop(self.fetcher, self.waiting_bytes, DEADLINE_SECONDS, monotonic=self._look)
        self.slices: list[FetchedSlice] = []
        self.looks = 0  # at the clock
        self.loop.start()

    def _look(self) -> float:
        self.looks += 1
        return self.clock.now

    def fetch(
        self, *uris: str, on_slice: Callable[[FetchedSlice], None] | None = None, lane: Lane = Lane.NORMAL
    ) -> Outcomes:
        outcomes = Outcomes(len(uris))

        def arrive(fetched: FetchedSlice) -> None:
            self.slices.append(list(fetched))
            for position, _ in fetched:
                outcomes.fail(position, ARRIVED)

        self.loop.fetch(FetchRequest(list(enumerate(uris)), outcomes, on_slice or arrive, lane))
        return outcomes

    def fetch_what_hangs(self) -> Outcomes:
        self.fetcher.answers["slow"] = HANG
        outcomes = self.fetch("slow")
        wait_until(lambda: self.fetcher.asked, "the fetch has begun")
        return outcomes

    def let_the_loop_run(self) -> None:
        """What could go on in the loop has gone on."""
        asyncio.run_coroutine_threadsafe(settle(), self.loop._loop).result(PATIENCE_SECONDS)

    def let_a_check_pass(self) -> None:
        before = self.looks
        wait_until(lambda: self.looks >= before + 4, "the deadline was looked at")


@pytest.fixture
def benches(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[..., Bench]]:
    monkeypatch.setattr(loop_module, "_CHECK_SECONDS", 0.01)
    made: list[Bench] = []

    def make(limit: int = 1000) -> Bench:
        made.append(Bench(limit))
        return made[-1]

    yield make
    for bench in made:
        bench.loop.stop()


@pytest.fixture
def bench(benches: Callable[..., Bench]) -> Bench:
    return benches()


def test_waits_for_turns_are_reported_to_the_chunk_and_its_lane_to_who_hands_them_out(bench: Bench) -> None:
    came: list[str] = []
    turns, is_free = HostTurns(1, 10), asyncio.Event()

    async def in_turn(uri: str, _: ChunkTime) -> bytes:
        if uri != "elsewhere":
            async with turns.at("h"):
                came.append(uri)
                await is_free.wait()
        return b"x"

    bench.fetcher.fetch = in_turn  # type: ignore[method-assign]
    chunks = [bench.fetch(name, lane=Lane.BULK) for name in ("now", "bulk")]
    chunks += [bench.fetch(name, lane=Lane.HIGH) for name in ("high", "elsewhere")]
    bench.let_the_loop_run()
    bench.loop._loop.call_soon_threadsafe(is_free.set)

    for outcomes in chunks:
        outcomes.wait()
    assert came == ["now", "high", "bulk"]
    assert all(outcomes.waits[Meter.TURNS] > 0 for outcomes in chunks[1:3])
    assert Meter.TURNS not in chunks[3].waits


class TestSlices:
    def test_every_url_arrives_once_at_its_position(self, bench: Bench) -> None:
        uris = [f"u{n}" for n in range(40)]
        bench.fetcher.answers = {uri: uri.encode() for uri in uris}

        bench.fetch(*uris).wait()

        arrived = sorted(pair for one in bench.slices for pair in one)
        assert arrived == [(n, uri.encode()) for n, uri in enumerate(uris)]
        assert sorted(map(len, bench.slices)) == [8, 16, 16]

    def test_what_is_there_does_not_wait_for_a_slow_url(self, bench: Bench) -> None:
        bench.fetcher.answers["slow"] = HANG
        arrived = threading.Event()

        bench.fetch("quick", "slow", on_slice=lambda fetched: arrived.set())

        assert arrived.wait(PATIENCE_SECONDS)

    def test_a_failure_is_the_items_error(self, bench: Bench) -> None:
        bench.fetcher.answers["gone"] = ItemFailure(ErrorCode.NOT_FOUND, "HTTP status 404")

        outcomes = bench.fetch("a", "gone", "b")

        outcomes.wait()
        assert outcomes.errors == [ARRIVED, ItemError(ErrorCode.NOT_FOUND, "HTTP status 404"), ARRIVED]


class TestGate:
    def test_no_fetch_begins_while_too_many_bytes_wait(self, benches: Callable[..., Bench]) -> None:
        bench = benches(limit=10)
        bench.fetcher.answers["first"] = b"0123456789"
        bench.fetch("first").wait()
        outcomes = bench.fetch("second", "third")
        bench.let_the_loop_run()
        assert bench.fetcher.asked == ["first"]

        bench.waiting_bytes.remove(10)

        outcomes.wait()
        assert sorted(bench.fetcher.asked) == ["first", "second", "third"]

    @in_loop
    async def test_room_that_is_gone_again_opens_nothing(self) -> None:
        # Given bytes that were decoded, and others that arrived before the loop heard of it
        waiting = WaitingBytes(10)
        waiting.bind(asyncio.get_running_loop())
        waiting.add(10)
        waiting.remove(10)
        waiting.add(10)
        await asyncio.sleep(0)

        # When somebody waits, Then he sleeps: were he to spin, nothing else would run in this loop
        task = asyncio.create_task(waiting.wait_open())
        await settle()
        assert not task.done()
        waiting.remove(10)
        await task

    def test_the_deadline_stands_still_while_the_gate_is_closed(self, benches: Callable[..., Bench]) -> None:
        bench = benches(limit=10)
        bench.waiting_bytes.add(10)
        outcomes = bench.fetch("a")
        bench.let_a_check_pass()

        bench.clock.now += 10 * DEADLINE_SECONDS
        bench.let_a_check_pass()
        bench.waiting_bytes.remove(10)

        outcomes.wait()
        assert bench.fetcher.asked == ["a"]
        assert outcomes.errors == [ARRIVED]


def test_open_items_are_timeouts_at_the_deadline_and_the_others_stay(bench: Bench) -> None:
    bench.fetcher.answers["slow"] = HANG
    outcomes = bench.fetch("quick", "slow")
    wait_until(lambda: bench.slices, "the quick one has arrived")
    bench.let_a_check_pass()

    bench.clock.now += DEADLINE_SECONDS + 1

    outcomes.wait()
    assert outcomes.errors == [ARRIVED, ItemError(ErrorCode.TIMEOUT, "not fetched within the chunk's 180 s")]
    assert bench.fetcher.cancelled == ["slow"]


class TestInterruption:
    def test_a_chunk_that_is_not_ours_any_more_is_not_fetched_on(self, bench: Bench) -> None:
        bench.fetch_what_hangs().interrupt(ChunkInterrupted("lost"))

        wait_until(lambda: bench.fetcher.cancelled == ["slow"], "the fetch is cancelled")

    @pytest.mark.parametrize("others", [[], ["slow"]])
    def test_a_bug_interrupts_the_chunk(self, bench: Bench, others: list[str]) -> None:
        bench.fetcher.answers |= {"bad": ZeroDivisionError("bug"), "slow": HANG}

        with pytest.raises(ZeroDivisionError):
            bench.fetch("bad", *others).wait()
        bench.fetch("good").wait()  # other chunks go on

    def test_a_fetch_that_cancels_itself_is_a_bug(self, bench: Bench) -> None:
        bench.fetcher.answers["odd"] = asyncio.CancelledError()

        with pytest.raises(RuntimeError, match="cancelled"):
            bench.fetch("odd").wait()

    def test_a_slice_that_cannot_be_passed_on_interrupts_the_chunk(self, bench: Bench) -> None:
        with pytest.raises(OverflowError):
            bench.fetch(*"0123456789abcdef", on_slice=MagicMock(side_effect=OverflowError)).wait()

    def test_a_store_that_is_away_is_no_bug(self, bench: Bench, caplog: pytest.LogCaptureFixture) -> None:
        bench.fetcher.answers |= {"s3": SourceUnavailableError("the store is away"), "slow": HANG}

        with pytest.raises(SourceUnavailableError):
            bench.fetch("s3", "slow").wait()

        assert not caplog.records


class TestEnd:
    def test_it_opens_and_closes_the_fetcher(self) -> None:
        bench = Bench()
        assert bench.fetcher.is_started
        bench.loop.stop()
        assert bench.fetcher.is_closed
        bench.loop.stop()

    def test_a_chunk_under_way_is_released(self) -> None:
        bench = Bench()
        outcomes = bench.fetch_what_hangs()

        bench.loop.stop()

        with pytest.raises(ChunkInterrupted):
            outcomes.wait()

    def test_bytes_may_be_decoded_after_the_loop_has_ended(self) -> None:
        bench = Bench(limit=1)
        bench.fetch("a").wait()
        bench.loop.stop()
        bench.waiting_bytes.remove(1)
        assert bench.waiting_bytes.count == 0


def test_it_shows_that_its_loop_turns_until_it_is_stopped() -> None:
    clock = Clock()
    pulse = Pulse("fetch loop", clock)
    loop = FetchLoop(FakeFetcher(), WaitingBytes(1), DEADLINE_SECONDS, pulse=pulse)
    loop.start()
    wait_until(lambda: pulse.phase.name == "turn", "the loop turns")
    clock.now += 100
    wait_until(lambda: pulse.phase.since == clock.now, "it turns once more")
    assert not pulse.phase.is_idle
    loop.stop()
    assert pulse.phase.is_idle
