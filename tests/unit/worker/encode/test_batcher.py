"""How slices become batches and batches become features: order, sizes, back-pressure, failures."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest

from clipfleet.contract.jobs import ErrorCode, ItemError, Lane, Precision
from clipfleet_worker.encode import batches
from clipfleet_worker.encode.backends import PendingFeatures
from clipfleet_worker.encode.batcher import Batcher, BatcherStopped
from clipfleet_worker.encode.batches import Batch, ItemSlice, Segment
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.failures import ChunkInterrupted, WorkerShortageError
from clipfleet_worker.outcomes import Outcomes
from clipfleet_worker.process.watchdog import LOAD_LIMIT_SECONDS, Pulse
from tests.support.doubles import PATIENCE_SECONDS, Clock, InThread, WatchedCondition
from tests.support.waiting import wait_until


class Recorder(FakeEncoder):
    """Notes what it is given, in order; an image is known by its grey value. May be told to fail."""

    def __init__(self, fails: Callable[[list[int]], Exception | None] = lambda values: None) -> None:
        super().__init__()
        self.passes: list[list[int] | list[str]] = []
        self._fails = fails

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        values = pixels[:, 0, 0, 0].tolist()
        self.passes.append(values)
        error = self._fails(values)
        if error is not None:
            raise error
        return super().encode_images(pixels)

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        self.passes.append(list(prompts))
        return super().encode_texts(prompts)


class Held(Recorder):
    """Its first pass waits for `go`, so that a test can fill the queues meanwhile."""

    def __init__(self) -> None:
        super().__init__()
        self.entered, self.go = threading.Event(), threading.Event()

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        self.entered.set()
        assert self.go.wait(PATIENCE_SECONDS)
        return super().encode_images(pixels)


def make_image(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, dtype=np.uint8)


def part(
    encoder: FakeEncoder, values: Sequence[int], outcomes: Outcomes | None = None, *, lane: Lane = Lane.NORMAL
) -> ItemSlice:
    """A slice whose images stand at positions 0, 1, ... of a chunk."""
    images = [make_image(value) for value in values]
    return ItemSlice(encoder, lane, images, list(range(len(values))), outcomes or Outcomes(len(values)))


def queue_texts(batcher: Batcher, encoder: FakeEncoder, prompts: list[str], lane: Lane) -> InThread:
    """Ask for texts in a thread; returns once they are queued."""
    call = InThread(lambda: batcher.encode_texts(encoder, prompts, lane))
    wait_until(lambda: batcher._calls[lane], "the texts are queued")
    return call


def make(batch_size: int, *, ring_batches: int = 1000) -> Batcher:
    return Batcher(batch_size, ring_batches=ring_batches)


@pytest.fixture
def run() -> Iterator[Callable[[Batcher], None]]:
    """Starts a batcher, and stops it at the end of the test."""
    started: list[Batcher] = []

    def start(batcher: Batcher) -> None:
        started.append(batcher)
        batcher.start()

    yield start
    for batcher in started:
        batcher.stop()


Run = Callable[[Batcher], None]


def encode(run: Run, batcher: Batcher, *slices: ItemSlice) -> None:
    """Submit slices, start the batcher, and wait until they have ended."""
    for one in slices:
        batcher.submit(one)
    run(batcher)
    for one in slices:
        one.outcomes.wait()


def codes(part: ItemSlice) -> list[ErrorCode | None]:
    return [error and error.code for error in part.outcomes.errors]


def texts_part(encoder: FakeEncoder, texts: list[str], lane: Lane = Lane.NORMAL) -> ItemSlice:
    return ItemSlice(encoder, lane, texts, list(range(len(texts))), Outcomes(len(texts)))


class TestBatches:
    @pytest.mark.parametrize(
        ("batch_size", "slices", "passes"),
        [
            (4, [(Lane.NORMAL, [1, 2, 3]), (Lane.NORMAL, [4, 5, 6])], [[1, 2, 3, 4], [5, 6]]),
            (2, [(Lane.NORMAL, [1, 2, 3, 4, 5])], [[1, 2], [3, 4], [5]]),
            (
                4,
                [(Lane.BULK, [30, 31, 32]), (Lane.NORMAL, [20, 21]), (Lane.HIGH, [10, 11])],
                [[10, 11, 20, 21], [30, 31, 32]],
            ),
        ],
        ids=["a batch mixes chunks", "a large slice is split in order", "better lanes go first"],
    )
    def test_which_items_share_a_batch(
        self, run: Run, batch_size: int, slices: list[tuple[Lane, list[int]]], passes: list[list[int]]
    ) -> None:
        encoder = Recorder()

        encode(run, make(batch_size), *(part(encoder, values, lane=lane) for lane, values in slices))

        assert encoder.passes == passes

    def test_every_item_gets_its_own_features(self, run: Run) -> None:
        batcher, encoder = make(3), FakeEncoder()
        values, positions = [10, 60, 120, 180, 240], [4, 0, 3, 1, 2]
        outcomes = Outcomes(5)
        batcher.submit(ItemSlice(encoder, Lane.NORMAL, [make_image(v) for v in values], positions, outcomes))

        run(batcher)

        outcomes.wait()
        alone = encoder.encode_images(np.stack([make_image(value) for value in values]))
        for position, expected in zip(positions, alone, strict=True):
            np.testing.assert_allclose(outcomes.features[position], expected)

    def test_a_partial_batch_goes_when_nothing_more_comes(self, run: Run) -> None:
        batcher, encoder = make(1000), Recorder()
        run(batcher)
        slices = [part(encoder, [value]) for value in range(20)]

        for one in slices:
            batcher.submit(one)

        for one in slices:
            one.outcomes.wait()
        assert [value for batch in encoder.passes for value in batch] == list(range(20))

    def test_a_batch_holds_one_model_and_the_other_keeps_its_place(self, run: Run) -> None:
        batcher, first, second = make(4), Recorder(), Recorder()
        slices = [part(first, [1, 2]), part(second, [5]), part(first, [3, 4]), part(second, [6, 7])]

        encode(run, batcher, *slices)

        assert first.passes == [[1, 2, 3, 4]]
        assert second.passes == [[5, 6, 7]]

    def test_images_of_an_interrupted_chunk_are_not_encoded(self, run: Run) -> None:
        batcher, encoder = make(4), Recorder()
        gone, wanted = part(encoder, [1, 2]), part(encoder, [3])
        batcher.submit(gone)
        batcher.submit(wanted)
        gone.outcomes.interrupt(ChunkInterrupted("lost"))

        run(batcher)

        wanted.outcomes.wait()
        assert encoder.passes == [[3]]

    def test_the_time_is_noted_before_the_chunk_goes_on(self, run: Run) -> None:
        # Given a chunk that looks at its totals as soon as its last item has ended
        class Watched(Outcomes):
            noted: set[str]

            def deliver(self, positions: Sequence[int], features: np.ndarray) -> None:
                self.noted = set(self.seconds)
                super().deliver(positions, features)

        batcher, outcomes = make(4), Watched(2)
        batcher.submit(part(FakeEncoder(), [1, 2], outcomes))

        run(batcher)

        outcomes.wait()
        assert outcomes.noted == {"encode"}


class Device(Recorder):
    """Works on its own, as a GPU does: a result, or a failure, is there once a test lets it be."""

    def __init__(self, fails: Callable[[list[int]], Exception | None] = lambda values: None) -> None:
        super().__init__()
        self.batches_in_flight = 2
        self.begun: list[list[int]] = []
        self.asked: list[list[int]] = []  # for their results
        self.go = threading.Semaphore(0)  # one for each result
        self.room = threading.Semaphore(1)  # for a batch behind; there is none while a test has taken it
        self.is_partly_idle = False  # when there is room
        self._fails_later = fails

    def begin_images(self, pixels: np.ndarray) -> PendingFeatures:
        values = pixels[:, 0, 0, 0].tolist()
        self.begun.append(values)
        device = self

        class Pending:
            def wait_for_room(self) -> bool:
                assert device.room.acquire(timeout=PATIENCE_SECONDS)
                device.room.release()
                return device.is_partly_idle

            def result(self) -> np.ndarray:
                device.asked.append(values)
                assert device.go.acquire(timeout=PATIENCE_SECONDS)
                error = device._fails_later(values)
                if error is not None:
                    raise error
                return FakeEncoder.encode_images(device, pixels)

        return Pending()


class Deliveries(Outcomes):
    """Notes in a list that several chunks share what it is given."""

    def __init__(self, count: int, log: list[str], name: str) -> None:
        super().__init__(count)
        self._log, self._name = log, name

    def deliver(self, positions: Sequence[int], features: np.ndarray) -> None:
        self._log.append(self._name)
        super().deliver(positions, features)


class TestSeveralBatchesUnderWay:
    def test_a_second_batch_is_begun_before_the_first_is_done_and_a_third_is_not(self, run: Run) -> None:
        batcher, device = make(2), Device()
        one = part(device, [1, 2, 3, 4, 5, 6])
        batcher.submit(one)

        run(batcher)

        wait_until(lambda: device.asked, "a result is asked for")
        assert (device.begun, device.asked) == ([[1, 2], [3, 4]], [[1, 2]])
        device.go.release()
        wait_until(lambda: len(device.asked) == 2, "the next result is asked for")
        assert (device.begun, device.asked) == ([[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 4]])
        device.go.release(2)
        one.outcomes.wait()
        expected = FakeEncoder().encode_images(np.stack([make_image(value) for value in range(1, 7)]))
        np.testing.assert_array_equal(np.stack(one.outcomes.features), expected)

    def test_a_partial_batch_waits_until_the_device_has_nothing_to_do(self, run: Run) -> None:
        batcher, device = make(2), Device()
        first, second = part(device, [1, 2, 3]), part(device, [4])
        batcher.submit(first)
        run(batcher)
        wait_until(lambda: device.asked, "a result is asked for")
        assert device.begun == [[1, 2]]

        batcher.submit(second)
        device.go.release(2)

        second.outcomes.wait()
        assert device.begun == [[1, 2], [3, 4]]

    def test_a_batch_behind_is_begun_only_when_it_would_find_room(self, run: Run) -> None:
        # Earlier it would only keep others waiting, of a better lane.
        batcher, device = make(2), Device()
        device.room.acquire()
        bulk, urgent = part(device, [1, 2, 3, 4]), part(device, [5, 6], lane=Lane.HIGH)
        batcher.submit(bulk)
        run(batcher)
        wait_until(lambda: device.begun, "a batch is begun")

        batcher.submit(urgent)
        device.room.release()

        wait_until(lambda: device.asked, "a result is asked for")
        assert (device.begun, device.asked) == ([[1, 2], [5, 6]], [[1, 2]])
        device.go.release(3)
        bulk.outcomes.wait()
        assert device.begun == [[1, 2], [5, 6], [3, 4]]

    def test_where_some_of_the_device_is_idle_a_partial_batch_goes_behind(self, run: Run) -> None:
        batcher, device = make(2), Device()
        device.is_partly_idle = True
        one = part(device, [1, 2, 3])
        batcher.submit(one)

        run(batcher)

        wait_until(lambda: device.asked, "a result is asked for")
        assert (device.begun, device.asked) == ([[1, 2], [3]], [[1, 2]])
        device.go.release(2)
        one.outcomes.wait()

    def test_a_batch_is_delivered_before_the_room_behind_the_next_one_is_waited_for(self, run: Run) -> None:
        batcher, device = make(2), Device()
        first, second = part(device, [1, 2]), part(device, [3, 4])
        batcher.submit(first)
        batcher.submit(second)
        run(batcher)
        wait_until(lambda: len(device.begun) == 2, "both are begun")

        device.room.acquire()  # the second one keeps all of the device busy
        device.go.release()

        first.outcomes.wait()
        device.room.release()
        device.go.release()
        second.outcomes.wait()

    def test_a_batch_that_is_done_is_not_kept_waiting_by_calls(self, run: Run) -> None:
        batcher, device, log = make(2), Device(), []
        device.is_partly_idle = True
        device.room.acquire()
        urgent = part(device, [1, 2], Deliveries(2, log, "features"), lane=Lane.HIGH)
        batcher.submit(urgent)
        run(batcher)
        wait_until(lambda: device.begun, "a batch is begun")
        device.go.release()
        calls = [InThread(lambda: batcher.call(lambda: log.append("call"), Lane.BULK)) for _ in range(3)]
        wait_until(lambda: len(batcher._calls[Lane.BULK]) == 3, "calls wait")

        device.room.release()

        urgent.outcomes.wait()
        for call in calls:
            call.result()
        assert log == ["features", "call", "call", "call"]

    def test_texts_are_delivered_before_the_next_ones_are_begun(self, run: Run) -> None:
        log: list[str] = []

        class Noted(Device):
            def encode_texts(self, prompts: list[str]) -> np.ndarray:
                log.append("begun")
                return super().encode_texts(prompts)

        batcher, device, outcomes = make(1), Noted(), Deliveries(2, log, "delivered")
        batcher.submit(ItemSlice(device, Lane.NORMAL, ["red", "blue"], [0, 1], outcomes))

        run(batcher)

        outcomes.wait()
        assert log == ["begun", "delivered"] * 2

    def test_where_one_may_be_under_way_it_is_over_before_the_next(self, run: Run) -> None:
        batcher, encoder, log = make(1), Device(), []
        encoder.batches_in_flight = 1
        slices = [part(encoder, [n], Deliveries(1, log, f"{n}")) for n in (1, 2)]
        for one in slices:
            batcher.submit(one)

        run(batcher)

        wait_until(lambda: encoder.asked, "a result is asked for")
        assert encoder.begun == [[1]]
        encoder.go.release(2)
        slices[1].outcomes.wait()
        assert log == ["1", "2"]

    def test_a_failure_that_shows_late_finds_the_guilty_and_spares_the_batch_behind(self, run: Run) -> None:
        log: list[str] = []
        batcher = make(2)
        device = Device(lambda values: RuntimeError("boom") if 13 in values else None)
        mixed, behind = (
            part(device, [1, 13], Deliveries(2, log, "mixed")),
            part(device, [3, 4], Deliveries(2, log, "behind")),
        )
        batcher.submit(mixed)
        batcher.submit(behind)
        device.go.release(1000)

        run(batcher)

        mixed.outcomes.wait()
        behind.outcomes.wait()
        assert device.begun == [[1, 13], [3, 4], [0], [1], [13]]
        assert codes(mixed) == [None, ErrorCode.CRASHED]
        assert behind.outcomes.errors == [None, None]
        assert log == ["mixed", "behind"]

    def test_a_batch_that_cannot_be_begun_does_not_overtake_the_one_before(self, run: Run) -> None:
        class Full(Device):
            def begin_images(self, pixels: np.ndarray) -> PendingFeatures:
                if len(pixels) > 1 and pixels[0, 0, 0, 0] == 3:
                    raise MemoryError("no room")
                return super().begin_images(pixels)

        log: list[str] = []
        batcher, device = make(2), Full()
        slices = [
            part(device, [1, 2], Deliveries(2, log, "first")),
            part(device, [3, 4], Deliveries(2, log, "second")),
        ]
        for one in slices:
            batcher.submit(one)
        device.go.release(1000)

        run(batcher)

        for one in slices:
            one.outcomes.wait()
            assert one.outcomes.errors == [None, None]
        assert log == ["first", "second"]
        assert device.begun == [[1, 2], [3], [4]]

    def test_a_device_without_memory_interrupts_the_chunks_of_both_batches(self, run: Run) -> None:
        batcher, device = make(2), Device(lambda values: MemoryError("no room"))
        slices = [part(device, [1, 2]), part(device, [3, 4])]
        for one in slices:
            batcher.submit(one)
        device.go.release(1000)

        run(batcher)

        for one in slices:
            with pytest.raises(MemoryError, match="no room"):
                one.outcomes.wait()
            assert one.outcomes.errors == [None, None]

    def test_a_stop_delivers_what_is_under_way_and_begins_nothing(self) -> None:
        batcher, device = make(2), Device()
        slices = [part(device, [1, 2]), part(device, [3, 4]), part(device, [5, 6])]
        for one in slices:
            batcher.submit(one)
        batcher.start()
        wait_until(lambda: device.asked, "a result is asked for")

        stopping = InThread(batcher.stop)
        wait_until(lambda: batcher._stopping, "the stop has begun")
        device.go.release(1000)
        stopping.result()

        slices[0].outcomes.wait()
        slices[1].outcomes.wait()
        with pytest.raises(BatcherStopped):
            slices[2].outcomes.wait()
        assert device.begun == [[1, 2], [3, 4]]

    def test_calls_and_whole_batches_take_turns_while_batches_are_under_way(self, run: Run) -> None:
        batcher, device = make(1), Device()
        device.go.release(1000)
        texts = queue_texts(batcher, device, [f"thing {n}" for n in range(192)], Lane.NORMAL)
        images = part(device, [1, 2, 3, 4])
        batcher.submit(images)

        run(batcher)

        texts.result()
        images.outcomes.wait()
        assert device.begun == [[1], [2], [3], [4]]
        assert [len(prompts) for prompts in device.passes] == [64, 64, 64]

    def test_texts_that_are_items_are_delivered_behind_the_images_before_them(self, run: Run) -> None:
        log: list[str] = []
        batcher, device = make(2), Device()
        images = part(device, [1, 2], Deliveries(2, log, "images"))
        texts = ItemSlice(device, Lane.NORMAL, ["a", "b"], [0, 1], Deliveries(2, log, "texts"))
        batcher.submit(images)
        batcher.submit(texts)

        run(batcher)

        wait_until(lambda: device.asked, "a result is asked for")
        assert device.passes == [["a", "b"]]
        device.go.release()
        texts.outcomes.wait()
        assert log == ["images", "texts"]

    def test_the_time_of_the_batch_before_is_not_counted_twice(self, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given two batches that are begun at 100 s and finished at 104 s and 106 s
        clock, device = Clock(), Device()
        monkeypatch.setattr(batches, "time", SimpleNamespace(monotonic=clock))
        device.go.release(2)
        slices = [part(device, [1, 2]), part(device, [3, 4])]
        first, second = (Batch([Segment(one, 0, 2)]) for one in slices)

        clock.now = 104.0
        first.finish(idle_since=0.0)
        clock.now = 106.0
        second.finish(idle_since=104.0)

        assert [one.outcomes.seconds for one in slices] == [{"encode": 4.0}, {"encode": 2.0}]


class TestRing:
    def test_a_full_ring_holds_up_who_submits(self, run: Run) -> None:
        # Given a ring of two images that is full
        batcher, encoder = make(2, ring_batches=1), FakeEncoder()
        batcher._changed = changed = WatchedCondition()
        first, second = part(encoder, [1, 2]), part(encoder, [3, 4])
        batcher.submit(first)

        # When somebody submits more
        call = InThread(lambda: batcher.submit(second))
        assert changed.somebody_waits.wait(PATIENCE_SECONDS)

        # Then it waits until a batch has left the ring
        assert not call.is_done
        run(batcher)
        call.result()
        first.outcomes.wait()
        second.outcomes.wait()

    def test_one_that_is_full_has_room_for_a_batch_of_the_best_lane(self, run: Run) -> None:
        batcher, encoder = make(2, ring_batches=1), FakeEncoder()
        bulk, first, second = (
            part(encoder, [number], lane=lane)
            for number, lane in ((1, Lane.BULK), (2, Lane.HIGH), (3, Lane.HIGH))
        )
        batcher.submit(part(encoder, [4], lane=Lane.BULK))
        batcher.submit(bulk)

        batcher.submit(first)
        batcher.submit(second)

        run(batcher)
        for one in (bulk, first, second):
            one.outcomes.wait()

    def test_many_threads_through_a_small_ring_lose_nothing(self, run: Run) -> None:
        batcher, encoder = make(3, ring_batches=1), FakeEncoder()
        run(batcher)
        chunks = [[part(encoder, [n, n + 1], Outcomes(2)) for n in range(20)] for _ in range(8)]

        def submit(slices: list[ItemSlice]) -> None:
            for one in slices:
                batcher.submit(one)

        for call in [InThread(lambda slices=slices: submit(slices)) for slices in chunks]:
            call.result()

        for slices in chunks:
            for one in slices:
                one.outcomes.wait()
                assert all(feature is not None for feature in one.outcomes.features)


class TestTexts:
    def test_texts_come_back_in_order_whatever_their_number(self, run: Run) -> None:
        batcher, encoder = make(4), Recorder()
        run(batcher)
        prompts = [f"thing {n}" for n in range(150)]

        features = batcher.encode_texts(encoder, prompts, Lane.NORMAL)

        np.testing.assert_array_equal(features, FakeEncoder().encode_texts(prompts))
        assert [len(texts) for texts in encoder.passes] == [64, 64, 22]

    def test_texts_wait_for_a_better_lane_and_go_before_a_worse_one(self, run: Run) -> None:
        batcher, encoder = make(4), Recorder()
        high, bulk = part(encoder, [1], lane=Lane.HIGH), part(encoder, [3], lane=Lane.BULK)
        texts = queue_texts(batcher, encoder, ["b"], Lane.NORMAL)
        batcher.submit(high)
        run(batcher)
        texts.result()
        batcher.submit(bulk)
        bulk.outcomes.wait()

        assert encoder.passes == [[1], ["b"], [3]]

    def test_a_large_label_set_does_not_hold_up_the_images_of_its_lane(self, run: Run) -> None:
        batcher, encoder = make(2), Recorder()
        prompts = [f"thing {n}" for n in range(192)]
        texts = queue_texts(batcher, encoder, prompts, Lane.NORMAL)
        images = part(encoder, [1, 2, 3, 4])
        batcher.submit(images)

        run(batcher)

        texts.result()
        images.outcomes.wait()
        assert encoder.passes == [prompts[:64], [1, 2], prompts[64:128], [3, 4], prompts[128:]]

    def test_texts_that_fail_fail_for_who_asked(self, run: Run) -> None:
        class Broken(FakeEncoder):
            def encode_texts(self, prompts: list[str]) -> np.ndarray:
                raise RuntimeError("no text tower")

        batcher, images = make(2), part(FakeEncoder(), [1])
        run(batcher)

        with pytest.raises(RuntimeError, match="no text tower"):
            batcher.encode_texts(Broken(), ["a"], Lane.NORMAL)

        batcher.submit(images)
        images.outcomes.wait()  # the thread lives on


class TestCalls:
    def test_the_answer_comes_back_from_the_batchers_thread(self, run: Run) -> None:
        batcher = make(2)
        run(batcher)

        assert batcher.call(threading.current_thread, Lane.BULK).name == "batcher"

    def test_what_it_raises_comes_back_too_and_the_thread_lives_on(self, run: Run) -> None:
        def fails() -> None:
            raise MemoryError("no room")

        batcher = make(2)
        run(batcher)

        with pytest.raises(MemoryError, match="no room"):
            batcher.call(fails, Lane.NORMAL)
        assert batcher.call(lambda: 7, Lane.NORMAL) == 7

    def test_a_call_of_a_worse_lane_is_not_passed_over_for_ever(self, run: Run) -> None:
        # Given images of a better lane that never run dry
        batcher, encoder = make(1), Recorder()
        images = part(encoder, list(range(30)), lane=Lane.NORMAL)
        texts = queue_texts(batcher, encoder, ["a"], Lane.BULK)
        batcher.submit(images)

        run(batcher)

        texts.result()
        images.outcomes.wait()
        assert encoder.passes.index(["a"]) == 8
        assert len(encoder.passes) == 31


class TestTextItems:
    def test_texts_of_several_chunks_share_a_batch_but_not_with_images(self, run: Run) -> None:
        batcher, encoder = make(4), Recorder()
        first, second = Outcomes(3), Outcomes(2)
        images = part(encoder, [1, 2])
        batcher.submit(ItemSlice(encoder, Lane.NORMAL, ["a", "b", "c"], [0, 1, 2], first))
        batcher.submit(images)
        batcher.submit(ItemSlice(encoder, Lane.NORMAL, ["d", "e"], [1, 0], second))

        run(batcher)

        for outcomes in (first, second, images.outcomes):
            outcomes.wait()
        assert encoder.passes == [["a", "b", "c", "d"], [1, 2], ["e"]]
        np.testing.assert_array_equal(second.features[0], FakeEncoder().encode_texts(["e"])[0])


class TestFeaturesThatAreNoVectors:
    class Overflowing(FakeEncoder):
        """Gives something else than a unit vector for the image 13, and for the text `bad`."""

        def __init__(self, value: float, precision: Precision) -> None:
            super().__init__()
            self.precision = precision
            self._value = value

        def encode_images(self, pixels: np.ndarray) -> np.ndarray:
            return self._spoilt(super().encode_images(pixels), pixels[:, 0, 0, 0] == 13)

        def encode_texts(self, prompts: list[str]) -> np.ndarray:
            return self._spoilt(super().encode_texts(prompts), np.array([text == "bad" for text in prompts]))

        def _spoilt(self, features: np.ndarray, where: np.ndarray) -> np.ndarray:
            features[where, 1:] = 0
            features[where, 0] = self._value
            return features

    OVERFLOW = "the model overflows in fp16; set CLIPFLEET_PRECISION=fp32"

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
    def test_only_its_own_item_fails(self, run: Run, value: float) -> None:
        batcher, encoder = make(8), self.Overflowing(value, Precision.FP16)
        innocent, mixed = part(encoder, [1, 2, 3]), part(encoder, [4, 13, 5])

        encode(run, batcher, innocent, mixed)

        assert innocent.outcomes.errors == [None] * 3
        before, failure, after = mixed.outcomes.errors
        assert before is after is None
        assert failure is not None
        assert failure.code is ErrorCode.CRASHED
        assert failure.detail.startswith(self.OVERFLOW)
        assert [feature is not None for feature in mixed.outcomes.features] == [True, False, True]
        expected = FakeEncoder().encode_images(np.stack([make_image(4), make_image(5)]))
        np.testing.assert_array_equal(
            [feature for feature in mixed.outcomes.features if feature is not None], expected
        )

    def test_so_it_is_with_a_text(self, run: Run) -> None:
        one = texts_part(self.Overflowing(np.nan, Precision.FP16), ["bad", "good"])

        encode(run, make(8), one)

        failure, good = one.outcomes.errors
        assert failure is not None and failure.detail.startswith(self.OVERFLOW)
        assert good is None

    def test_where_no_precision_would_help_none_is_advised(self, run: Run) -> None:
        batcher, encoder = make(8), self.Overflowing(np.nan, Precision.FP32)
        one = part(encoder, [13])

        encode(run, batcher, one)

        detail = "the model gives no finite vector for this image"
        assert one.outcomes.errors == [ItemError(ErrorCode.CRASHED, detail)]

    def test_it_is_found_also_in_a_batch_that_was_halved(self, run: Run) -> None:
        class Choosy(TestFeaturesThatAreNoVectors.Overflowing):
            def encode_images(self, pixels: np.ndarray) -> np.ndarray:
                if len(pixels) > 2:
                    raise MemoryError("no room")
                return super().encode_images(pixels)

        batcher = make(8)
        one = part(Choosy(np.nan, Precision.BF16), [4, 13, 5, 6])

        encode(run, batcher, one)

        assert codes(one) == [
            None, ErrorCode.CRASHED, None, None,
        ]  # fmt: skip


class TestFailures:
    @pytest.mark.parametrize("values", [[4, 13, 5], [13], [13, 13, 13]], ids=["one", "alone", "all"])
    @pytest.mark.parametrize(
        ("error", "code"),
        [(RuntimeError("boom"), ErrorCode.CRASHED), (MemoryError("no room"), ErrorCode.OUT_OF_MEMORY)],
    )
    def test_the_guilty_images_are_found(
        self, run: Run, error: Exception, code: ErrorCode, values: list[int]
    ) -> None:
        encoder = Recorder(lambda batch: error if 13 in batch else None)
        innocent, mixed = part(encoder, [1, 2, 3]), part(encoder, values)

        encode(run, make(8), innocent, mixed)
        alone = part(encoder, values)
        encode(run, make(8), alone)

        expected = [code if value == 13 else None for value in values]
        assert (codes(innocent), codes(mixed), codes(alone)) == ([None] * 3, expected, expected)
        assert [feature is None for feature in mixed.outcomes.features] == [v == 13 for v in values]

    @pytest.mark.parametrize("texts", [["a", "bad", "c"], ["bad"]])
    def test_the_guilty_text_is_found(self, run: Run, texts: list[str]) -> None:
        class Choosy(FakeEncoder):
            def encode_texts(self, prompts: list[str]) -> np.ndarray:
                if "bad" in prompts:
                    raise RuntimeError("index out of range")
                return super().encode_texts(prompts)

        one = texts_part(Choosy(), texts)

        encode(run, make(8), one)

        assert codes(one) == [ErrorCode.CRASHED if text == "bad" else None for text in texts]

    def test_a_thread_that_is_missing_for_a_pass_is_no_images_fault(self, run: Run) -> None:
        lacking = RuntimeError("can't start new thread")
        batcher, encoder = make(8), Recorder(lambda values: lacking if 13 in values else None)
        one = part(encoder, [4, 13, 5])
        batcher.submit(one)

        run(batcher)

        with pytest.raises(WorkerShortageError, match="another thread"):
            one.outcomes.wait()
        assert one.outcomes.errors == [None] * 3

    def test_a_batch_that_is_too_large_for_the_device_is_halved(self, run: Run) -> None:
        batcher = make(8)
        encoder = Recorder(lambda values: MemoryError("no room") if len(values) > 2 else None)
        one = part(encoder, list(range(8)))

        encode(run, batcher, one)

        assert one.outcomes.errors == [None] * 8
        assert [values for values in encoder.passes if len(values) <= 2] == [[0, 1], [2, 3], [4, 5], [6, 7]]

    @pytest.mark.parametrize("error", [RuntimeError("device gone"), MemoryError("device gone")])
    def test_when_nothing_works_the_chunks_wait_and_no_image_fails(self, run: Run, error: Exception) -> None:
        batcher, encoder = make(4), Recorder(lambda values: error)
        slices = [part(encoder, [1, 2]), part(encoder, [3, 4])]
        for one in slices:
            batcher.submit(one)

        run(batcher)

        for one in slices:
            with pytest.raises(type(error), match="device gone"):
                one.outcomes.wait()
            assert one.outcomes.errors == [None, None]

    def test_a_device_that_fails_is_not_asked_again_for_every_image(self, run: Run) -> None:
        encoder = Recorder(lambda values: RuntimeError("device gone"))

        with pytest.raises(RuntimeError, match="device gone"):
            encode(run, make(256), part(encoder, [1] * 256))

        assert len(encoder.passes) == 2

    @pytest.mark.parametrize("under_way", [1, 2])
    def test_a_gpu_that_is_lost_for_this_process_ends_the_thread_and_with_it_the_process(
        self, monkeypatch: pytest.MonkeyPatch, under_way: int
    ) -> None:
        deaths: list[threading.ExceptHookArgs] = []
        monkeypatch.setattr(threading, "excepthook", deaths.append)
        batcher = make(2)
        device = Device(lambda values: RuntimeError("CUDA error: device-side assert triggered"))
        device.batches_in_flight = under_way
        device.go.release(1000)
        one = part(device, [1, 2, 3, 4])
        batcher.submit(one)

        batcher.start()

        with pytest.raises(RuntimeError, match="device-side assert"):
            one.outcomes.wait()
        wait_until(lambda: deaths, "the thread has died")
        assert deaths[0].thread is not None
        assert deaths[0].thread.name == "batcher"

    @pytest.mark.parametrize("what", ["a call", "texts"])
    def test_what_has_failed_is_freed_with_its_error(self, run: Run, what: str) -> None:
        # Given a model: were it in a cycle, its memory would be taken until Python looks for those
        class Failing(FakeEncoder):
            def encode_texts(self, prompts: list[str]) -> np.ndarray:
                raise RuntimeError("no such kernel")

        batcher, encoder = make(4), Failing()
        freed = weakref.ref(encoder)
        run(batcher)
        gc.disable()
        try:
            with suppress(RuntimeError):
                if what == "texts":
                    batcher.encode_texts(encoder, ["a"] * 200, Lane.NORMAL)
                else:
                    batcher.call(partial(encoder.encode_texts, ["a"]), Lane.NORMAL)
            del encoder
            wait_until(lambda: freed() is None, "it is freed")
        finally:
            gc.enable()


class TestStopping:
    def test_what_waits_is_failed(self) -> None:
        batcher, encoder = make(4), FakeEncoder()
        images = part(encoder, [1])
        batcher.submit(images)
        texts = queue_texts(batcher, encoder, ["a"], Lane.NORMAL)

        batcher.stop()
        batcher.stop()  # once more is harmless

        with pytest.raises(BatcherStopped):
            images.outcomes.wait()
        with pytest.raises(BatcherStopped):
            texts.result()

    def test_who_waits_for_the_ring_is_told(self) -> None:
        batcher, encoder = make(1, ring_batches=1), FakeEncoder()
        batcher._changed = changed = WatchedCondition()
        batcher.submit(part(encoder, [1]))
        call = InThread(lambda: batcher.submit(part(encoder, [2])))
        assert changed.somebody_waits.wait(PATIENCE_SECONDS)

        batcher.stop()

        with pytest.raises(BatcherStopped):
            call.result()

    def test_nothing_is_taken_afterwards(self) -> None:
        batcher, encoder = make(1), FakeEncoder()
        batcher.stop()

        with pytest.raises(BatcherStopped):
            batcher.submit(part(encoder, [1]))
        with pytest.raises(BatcherStopped):
            batcher.encode_texts(encoder, ["a"], Lane.NORMAL)
        with pytest.raises(BatcherStopped):
            batcher.call(lambda: 7, Lane.NORMAL)


@pytest.mark.parametrize("what", ["images", "texts"])
def test_an_idle_batcher_keeps_no_model_alive(run: Callable[[Batcher], None], what: str) -> None:
    batcher = make(4)
    run(batcher)
    encoder = FakeEncoder()
    alive = weakref.ref(encoder)
    if what == "images":
        outcomes = Outcomes(2)
        batcher.submit(part(encoder, [1, 2], outcomes))
        outcomes.wait()
    else:
        batcher.encode_texts(encoder, ["red"], Lane.NORMAL)

    del encoder

    wait_until(lambda: alive() is None, "the model is freed")


class TestPulse:
    def test_a_batch_has_a_limit_and_an_idle_device_has_none(self, run: Run) -> None:
        pulse = Pulse("batcher")
        batcher, encoder = Batcher(4, pulse=pulse), Held()
        outcomes = Outcomes(1)
        run(batcher)
        batcher.submit(part(encoder, [1], outcomes))
        assert encoder.entered.wait(PATIENCE_SECONDS)
        assert (pulse.phase.name, pulse.phase.limit_seconds) == ("encode", LOAD_LIMIT_SECONDS)
        encoder.go.set()
        outcomes.wait()
        wait_until(lambda: pulse.phase.is_idle, "the batcher is idle")
