"""How slices become batches and batches become features: order, sizes, back-pressure, failures."""

from __future__ import annotations

import gc
import threading
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import partial
from itertools import chain
from types import SimpleNamespace

import numpy as np
import pytest

from clipfleet.contract.jobs import ErrorCode, ItemError, Lane, Precision
from clipfleet_worker.encode import batcher as batcher_module
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


def make_image(value: int) -> np.ndarray:
    return np.full((8, 8, 3), value, dtype=np.uint8)


def features_of(*values: int) -> np.ndarray:
    return FakeEncoder().encode_images(np.stack([make_image(value) for value in values]))


def part(
    encoder: FakeEncoder, values: Sequence[int], outcomes: Outcomes | None = None, *, lane: Lane = Lane.NORMAL
) -> ItemSlice:
    """A slice whose images stand at positions 0, 1, ... of a chunk."""
    images = [make_image(value) for value in values]
    return ItemSlice(encoder, lane, images, list(range(len(values))), outcomes or Outcomes(len(values)))


def texts_part(encoder: FakeEncoder, texts: list[str], outcomes: Outcomes | None = None) -> ItemSlice:
    return ItemSlice(encoder, Lane.NORMAL, texts, list(range(len(texts))), outcomes or Outcomes(len(texts)))


def queue_texts(batcher: Batcher, encoder: FakeEncoder, prompts: list[str], lane: Lane) -> InThread:
    """Ask for texts in a thread; returns once they are queued."""
    call = InThread(lambda: batcher.encode_texts(encoder, prompts, lane))
    wait_until(lambda: len(batcher._calls) > 0, "the texts are queued")
    return call


Make = Callable[..., Batcher]


@pytest.fixture
def make() -> Iterator[Make]:
    """Makes batchers, and stops them at the end of the test."""
    made: list[Batcher] = []

    def make(batch_size: int, *, least_batch: int | None = None, ring_batches: int = 1000) -> Batcher:
        made.append(Batcher(batch_size, least_batch=least_batch, ring_batches=ring_batches))
        return made[-1]

    yield make
    for batcher in made:
        batcher.stop()


@pytest.fixture
def batcher(make: Make) -> Batcher:
    return make(2)


def start(batcher: Batcher, *slices: ItemSlice) -> None:
    """Submit slices, then start."""
    for one in slices:
        batcher.submit(one)
    batcher.start()


def wait(*slices: ItemSlice) -> None:
    for one in slices:
        one.outcomes.wait()


def encode(batcher: Batcher, *slices: ItemSlice) -> None:
    start(batcher, *slices)
    wait(*slices)


def codes(part: ItemSlice) -> list[ErrorCode | None]:
    return [error and error.code for error in part.outcomes.errors]


class TestBatches:
    @pytest.mark.parametrize(
        ("batch_size", "slices", "passes"),
        [
            (4, [(Lane.NORMAL, [1, 2, 3]), (Lane.NORMAL, [4, 5, 6])], [[1, 2, 3, 4], [5, 6]]),
            (2, [(Lane.NORMAL, [1, 2, 3, 4, 5])], [[1, 2], [3, 4], [5]]),
            (4, [(Lane.BULK, [30, 31, 32]), (Lane.NORMAL, [20, 21]), (Lane.HIGH, [10, 11])],
             [[10, 11, 20, 21], [30, 31, 32]]),
        ],
        ids=["a batch mixes chunks", "a large slice is split in order", "better lanes go first"],
    )  # fmt: skip
    def test_which_items_share_a_batch(
        self, make: Make, batch_size: int, slices: list[tuple[Lane, list[int]]], passes: list[list[int]]
    ) -> None:
        encoder = Recorder()

        encode(make(batch_size), *(part(encoder, values, lane=lane) for lane, values in slices))

        assert encoder.passes == passes

    @pytest.mark.parametrize(
        ("least", "seconds_each", "sizes"),
        [
            (8, 0.1, [16, 8, 8, 8, 8, 8, 8]),
            (8, 0.0495, [16, 14, 14, 14, 6]),
            (8, 0.001, [16, 32, 16]),
            (None, 0.1, [32, 32]),
        ],
        ids=["slow", "a little slow", "fast", "on a GPU"],
    )
    def test_batches_of_a_slow_model_are_smaller(
        self,
        make: Make,
        monkeypatch: pytest.MonkeyPatch,
        least: int | None,
        seconds_each: float,
        sizes: list[int],
    ) -> None:
        clock = Clock()
        monkeypatch.setattr(batches, "time", SimpleNamespace(monotonic=clock))
        monkeypatch.setattr(batcher_module, "time", SimpleNamespace(monotonic=clock))

        def take(values: list[int]) -> None:
            clock.now += seconds_each * len(values)

        encoder = Recorder(take)

        encode(make(32, least_batch=least), part(encoder, range(64)))

        assert [len(one) for one in encoder.passes] == sizes

    def test_a_batch_that_the_device_cannot_encode_measures_nothing(self, make: Make) -> None:
        encoder = Recorder(lambda values: None if len(encoder.passes) > 2 else RuntimeError("the device"))
        lost, good = part(encoder, range(1, 17)), part(encoder, range(1, 41))

        start(batcher := make(32, least_batch=8), lost)
        with pytest.raises(RuntimeError, match="the device"):
            lost.outcomes.wait()
        batcher.submit(good)
        wait(good)

        first = encoder.passes[2]
        assert len(first) == 16  # not 32, as if the model were infinitely fast

    def test_every_item_gets_its_own_features(self, make: Make) -> None:
        values, positions = [10, 60, 120, 180, 240], [4, 0, 3, 1, 2]
        images = [make_image(value) for value in values]
        one = ItemSlice(FakeEncoder(), Lane.NORMAL, images, positions, Outcomes(5))

        encode(make(3), one)

        for position, expected in zip(positions, features_of(*values), strict=True):
            np.testing.assert_allclose(one.outcomes.features[position], expected)

    def test_a_batch_holds_one_model_and_the_other_keeps_its_place(self, make: Make) -> None:
        first, second = Recorder(), Recorder()
        slices = [part(first, [1, 2]), part(second, [5]), part(first, [3, 4]), part(second, [6, 7])]

        encode(make(4), *slices)

        assert first.passes == [[1, 2, 3, 4]]
        assert second.passes == [[5, 6, 7]]

    def test_texts_of_several_chunks_share_a_batch_but_not_with_images(self, make: Make) -> None:
        encoder = Recorder()
        last = ItemSlice(encoder, Lane.NORMAL, ["d", "e"], [1, 0], Outcomes(2))

        encode(make(4), texts_part(encoder, ["a", "b", "c"]), part(encoder, [1, 2]), last)

        assert encoder.passes == [["a", "b", "c", "d"], [1, 2], ["e"]]
        np.testing.assert_array_equal(last.outcomes.features[0], FakeEncoder().encode_texts(["e"])[0])

    def test_images_of_an_interrupted_chunk_are_not_encoded(self, batcher: Batcher) -> None:
        encoder = Recorder()
        gone, wanted = part(encoder, [1, 2]), part(encoder, [3])
        gone.outcomes.interrupt(ChunkInterrupted("lost"))

        start(batcher, gone, wanted)

        wait(wanted)
        assert encoder.passes == [[3]]

    def test_the_time_is_noted_before_the_chunk_goes_on(self, batcher: Batcher) -> None:
        # Given a chunk that looks at its totals as soon as its last item has ended
        class Watched(Outcomes):
            noted: set[str]

            def deliver(self, positions: Sequence[int], features: np.ndarray) -> None:
                self.noted = set(self.seconds)
                super().deliver(positions, features)

        outcomes = Watched(2)

        encode(batcher, part(FakeEncoder(), [1, 2], outcomes))

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

    def wait_until_asked(self, times: int = 1) -> None:
        wait_until(lambda: len(self.asked) == times, "a result is asked for")


class Deliveries(Outcomes):
    """Notes in a list that several chunks share what it is given."""

    def __init__(self, count: int, log: list[str], name: str) -> None:
        super().__init__(count)
        self._log, self._name = log, name

    def deliver(self, positions: Sequence[int], features: np.ndarray) -> None:
        self._log.append(self._name)
        super().deliver(positions, features)


class TestSeveralBatchesUnderWay:
    @pytest.fixture
    def device(self) -> Device:
        return Device()

    @pytest.fixture
    def log(self) -> list[str]:
        return []

    def test_a_second_batch_is_begun_before_the_first_is_done_and_a_third_is_not(
        self, batcher: Batcher, device: Device
    ) -> None:
        one = part(device, [1, 2, 3, 4, 5, 6])

        start(batcher, one)

        device.wait_until_asked()
        assert (device.begun, device.asked) == ([[1, 2], [3, 4]], [[1, 2]])
        device.go.release()
        device.wait_until_asked(2)
        assert (device.begun, device.asked) == ([[1, 2], [3, 4], [5, 6]], [[1, 2], [3, 4]])
        device.go.release(2)
        wait(one)
        np.testing.assert_array_equal(np.stack(one.outcomes.features), features_of(*range(1, 7)))

    def test_a_partial_batch_waits_for_an_idle_device(self, batcher: Batcher, device: Device) -> None:
        first, second = part(device, [1, 2, 3]), part(device, [4])
        start(batcher, first)
        device.wait_until_asked()
        assert device.begun == [[1, 2]]

        batcher.submit(second)
        device.go.release(2)

        wait(first, second)
        assert device.begun == [[1, 2], [3, 4]]

    def test_one_behind_is_begun_only_when_it_would_find_room(self, batcher: Batcher, device: Device) -> None:
        # Earlier it would only keep others waiting, of a better lane.
        device.room.acquire()
        bulk, urgent = part(device, [1, 2, 3, 4]), part(device, [5, 6], lane=Lane.HIGH)
        start(batcher, bulk)
        wait_until(lambda: device.begun, "a batch is begun")

        batcher.submit(urgent)
        device.room.release()

        device.wait_until_asked()
        assert (device.begun, device.asked) == ([[1, 2], [5, 6]], [[1, 2]])
        device.go.release(3)
        wait(bulk)
        assert device.begun == [[1, 2], [5, 6], [3, 4]]

    def test_where_some_of_the_device_is_idle_a_partial_batch_goes_behind(
        self, batcher: Batcher, device: Device
    ) -> None:
        device.is_partly_idle = True
        one = part(device, [1, 2, 3])

        start(batcher, one)

        device.wait_until_asked()
        assert (device.begun, device.asked) == ([[1, 2], [3]], [[1, 2]])
        device.go.release(2)
        wait(one)

    def test_a_batch_is_delivered_before_the_room_behind_the_next_one_is_waited_for(
        self, batcher: Batcher, device: Device
    ) -> None:
        first, second = part(device, [1, 2]), part(device, [3, 4])
        start(batcher, first, second)
        wait_until(lambda: len(device.begun) == 2, "both are begun")

        device.room.acquire()  # the second one keeps all of the device busy
        device.go.release()

        wait(first)
        device.room.release()
        device.go.release()
        wait(second)

    def test_a_batch_that_is_done_is_not_kept_waiting_by_calls(
        self, batcher: Batcher, device: Device, log: list[str]
    ) -> None:
        device.is_partly_idle = True
        device.room.acquire()
        urgent = part(device, [1, 2], Deliveries(2, log, "features"), lane=Lane.HIGH)
        start(batcher, urgent)
        wait_until(lambda: device.begun, "a batch is begun")
        device.go.release()
        calls = [InThread(lambda: batcher.call(lambda: log.append("call"), Lane.BULK)) for _ in range(3)]
        wait_until(lambda: len(batcher._calls) == 3, "calls wait")

        device.room.release()

        wait(urgent)
        for call in calls:
            call.result()
        assert log == ["features", "call", "call", "call"]

    def test_texts_are_delivered_before_the_next_ones_are_begun(self, make: Make, log: list[str]) -> None:
        class Noted(Device):
            def encode_texts(self, prompts: list[str]) -> np.ndarray:
                log.append("begun")
                return super().encode_texts(prompts)

        encode(make(1), texts_part(Noted(), ["red", "blue"], Deliveries(2, log, "delivered")))

        assert log == ["begun", "delivered"] * 2

    def test_where_one_may_be_under_way_it_is_over_before_the_next(
        self, make: Make, device: Device, log: list[str]
    ) -> None:
        device.batches_in_flight = 1
        slices = [part(device, [n], Deliveries(1, log, f"{n}")) for n in (1, 2)]

        start(make(1), *slices)

        device.wait_until_asked()
        assert device.begun == [[1]]
        device.go.release(2)
        wait(*slices)
        assert log == ["1", "2"]

    def test_a_failure_that_shows_late_finds_the_guilty_and_spares_the_batch_behind(
        self, batcher: Batcher, log: list[str]
    ) -> None:
        device = Device(lambda values: RuntimeError("boom") if 13 in values else None)
        mixed = part(device, [1, 13], Deliveries(2, log, "mixed"))
        behind = part(device, [3, 4], Deliveries(2, log, "behind"))
        device.go.release(1000)

        encode(batcher, mixed, behind)

        assert device.begun == [[1, 13], [3, 4], [0], [1], [13]]
        assert codes(mixed) == [None, ErrorCode.CRASHED]
        assert codes(behind) == [None, None]
        assert log == ["mixed", "behind"]

    def test_a_batch_that_cannot_be_begun_does_not_overtake_the_one_before(
        self, batcher: Batcher, log: list[str]
    ) -> None:
        class Full(Device):
            def begin_images(self, pixels: np.ndarray) -> PendingFeatures:
                if len(pixels) > 1 and pixels[0, 0, 0, 0] == 3:
                    raise MemoryError("no room")
                return super().begin_images(pixels)

        device = Full()
        first, second = (part(device, [n, n + 1], Deliveries(2, log, f"{n}")) for n in (1, 3))
        device.go.release(1000)

        encode(batcher, first, second)

        assert codes(first) == codes(second) == [None, None]
        assert log == ["1", "3"]
        assert device.begun == [[1, 2], [3], [4]]

    def test_a_stop_delivers_what_is_under_way_and_begins_nothing(
        self, batcher: Batcher, device: Device
    ) -> None:
        slices = [part(device, [n, n + 1]) for n in (1, 3, 5)]
        start(batcher, *slices)
        device.wait_until_asked()

        stopping = InThread(batcher.stop)
        wait_until(lambda: batcher._stopping, "the stop has begun")
        device.go.release(1000)
        stopping.result()

        wait(*slices[:2])
        with pytest.raises(BatcherStopped):
            wait(slices[2])
        assert device.begun == [[1, 2], [3, 4]]

    def test_calls_and_whole_batches_take_turns(self, make: Make, device: Device) -> None:
        batcher, images = make(1), part(device, [1, 2, 3, 4])
        device.go.release(1000)
        texts = queue_texts(batcher, device, [f"thing {n}" for n in range(192)], Lane.NORMAL)

        encode(batcher, images)

        texts.result()
        assert device.begun == [[1], [2], [3], [4]]
        assert [len(prompts) for prompts in device.passes] == [64, 64, 64]

    def test_texts_that_are_items_are_delivered_behind_the_images_before_them(
        self, batcher: Batcher, device: Device, log: list[str]
    ) -> None:
        images = part(device, [1, 2], Deliveries(2, log, "images"))
        texts = texts_part(device, ["a", "b"], Deliveries(2, log, "texts"))

        start(batcher, images, texts)

        device.wait_until_asked()
        assert device.passes == [["a", "b"]]
        device.go.release()
        wait(texts)
        assert log == ["images", "texts"]

    def test_the_time_of_the_batch_before_is_not_counted_twice(
        self, monkeypatch: pytest.MonkeyPatch, device: Device
    ) -> None:
        # Given two batches that are begun at 100 s and finished at 104 s and 106 s
        clock = Clock()
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
    def test_a_full_ring_holds_up_who_submits(self, make: Make) -> None:
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
        batcher.start()
        call.result()
        wait(first, second)

    def test_one_that_is_full_has_room_for_a_batch_of_the_best_lane(self, make: Make) -> None:
        encoder = FakeEncoder()
        lanes = (Lane.BULK, Lane.BULK, Lane.HIGH, Lane.HIGH)

        encode(make(2, ring_batches=1), *(part(encoder, [1], lane=lane) for lane in lanes))

    def test_many_threads_through_a_small_ring_lose_nothing(self, make: Make) -> None:
        batcher, encoder = make(3, ring_batches=1), FakeEncoder()
        batcher.start()
        chunks = [[part(encoder, [n, n + 1]) for n in range(20)] for _ in range(8)]

        for call in [InThread(lambda slices=slices: list(map(batcher.submit, slices))) for slices in chunks]:
            call.result()

        for one in chain(*chunks):
            wait(one)
            assert all(feature is not None for feature in one.outcomes.features)


class TestTexts:
    def test_texts_come_back_in_order_whatever_their_number(self, batcher: Batcher) -> None:
        encoder, prompts = Recorder(), [f"thing {n}" for n in range(150)]
        batcher.start()

        features = batcher.encode_texts(encoder, prompts, Lane.NORMAL)

        np.testing.assert_array_equal(features, FakeEncoder().encode_texts(prompts))
        assert [len(texts) for texts in encoder.passes] == [64, 64, 22]

    def test_texts_wait_for_a_better_lane_and_go_before_a_worse_one(self, batcher: Batcher) -> None:
        encoder = Recorder()
        texts = queue_texts(batcher, encoder, ["b"], Lane.NORMAL)
        start(batcher, part(encoder, [1], lane=Lane.HIGH))
        texts.result()
        bulk = part(encoder, [3], lane=Lane.BULK)
        batcher.submit(bulk)
        wait(bulk)

        assert encoder.passes == [[1], ["b"], [3]]

    def test_a_large_label_set_does_not_hold_up_the_images_of_its_lane(self, batcher: Batcher) -> None:
        encoder, prompts = Recorder(), [f"thing {n}" for n in range(192)]
        texts = queue_texts(batcher, encoder, prompts, Lane.NORMAL)

        encode(batcher, part(encoder, [1, 2, 3, 4]))

        texts.result()
        assert encoder.passes == [prompts[:64], [1, 2], prompts[64:128], [3, 4], prompts[128:]]


class TestCalls:
    def test_its_answer_or_error_comes_back_from_the_batchers_thread(self, batcher: Batcher) -> None:
        def fails() -> None:
            raise MemoryError("no room")

        batcher.start()

        with pytest.raises(MemoryError, match="no room"):
            batcher.call(fails, Lane.NORMAL)
        assert batcher.call(threading.current_thread, Lane.BULK).name == "batcher"

    def test_a_call_of_a_worse_lane_is_not_passed_over_for_ever(self, make: Make) -> None:
        # Given images of a better lane that never run dry
        batcher, encoder = make(1), Recorder()
        texts = queue_texts(batcher, encoder, ["a"], Lane.BULK)

        encode(batcher, part(encoder, list(range(30))))

        texts.result()
        assert encoder.passes.index(["a"]) == 8
        assert len(encoder.passes) == 31

    def test_items_of_a_worse_lane_go_after_some_calls(self, make: Make) -> None:
        # Given calls of a better lane that never run dry, as many relabelled chunks make them
        batcher, order = make(1), list[str]()
        encoder = Recorder(lambda values: order.append("image"))  # type: ignore[func-returns-value]
        calls = [InThread(lambda: batcher.call(lambda: order.append("call"), Lane.HIGH)) for _ in range(20)]
        wait_until(lambda: len(batcher._calls) == 20, "calls wait")

        encode(batcher, part(encoder, [1, 2]))

        for call in calls:
            call.result()
        assert [place for place, one in enumerate(order) if one == "image"] == [8, 17]

    def test_a_call_of_a_worse_lane_goes_after_some_of_a_better_one(self, make: Make) -> None:
        batcher, order = make(1), list[Lane]()
        lanes = [Lane.BULK, *[Lane.HIGH] * 20]
        calls = []
        for count, lane in enumerate(lanes, 1):
            calls.append(InThread(partial(batcher.call, partial(order.append, lane), lane)))
            wait_until(lambda count=count: len(batcher._calls) == count, "the call waits")  # type: ignore[misc]

        batcher.start()

        for call in calls:
            call.result()
        assert order.index(Lane.BULK) == 8


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


class TestFeaturesThatAreNoVectors:
    OVERFLOW = "the model overflows in fp16; set CLIPFLEET_PRECISION=fp32"

    @pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 0.0])
    def test_only_its_own_item_fails(self, make: Make, value: float) -> None:
        encoder = Overflowing(value, Precision.FP16)
        innocent, mixed = part(encoder, [1, 2, 3]), part(encoder, [4, 13, 5])

        encode(make(8), innocent, mixed)

        assert codes(innocent) == [None] * 3
        assert codes(mixed) == [None, ErrorCode.CRASHED, None]
        assert mixed.outcomes.errors[1].detail.startswith(self.OVERFLOW)
        before, spoilt, after = mixed.outcomes.features
        assert spoilt is None
        np.testing.assert_array_equal([before, after], features_of(4, 5))

    def test_so_it_is_with_a_text(self, batcher: Batcher) -> None:
        one = texts_part(Overflowing(np.nan, Precision.FP16), ["bad", "good"])

        encode(batcher, one)

        failure, good = one.outcomes.errors
        assert failure is not None and failure.detail.startswith(self.OVERFLOW)
        assert good is None

    def test_where_no_precision_would_help_none_is_advised(self, batcher: Batcher) -> None:
        one = part(Overflowing(np.nan, Precision.FP32), [13])

        encode(batcher, one)

        detail = "the model gives no finite vector for this image"
        assert one.outcomes.errors == [ItemError(ErrorCode.CRASHED, detail)]

    def test_it_is_found_also_in_a_batch_that_was_halved(self, make: Make) -> None:
        class Choosy(Overflowing):
            def encode_images(self, pixels: np.ndarray) -> np.ndarray:
                if len(pixels) > 2:
                    raise MemoryError("no room")
                return super().encode_images(pixels)

        one = part(Choosy(np.nan, Precision.BF16), [4, 13, 5, 6])

        encode(make(8), one)

        assert codes(one) == [None, ErrorCode.CRASHED, None, None]


class TestFailures:
    @pytest.mark.parametrize("values", [[4, 13, 5], [13], [13, 13, 13]], ids=["one", "alone", "all"])
    @pytest.mark.parametrize(
        ("error", "code"),
        [(RuntimeError("boom"), ErrorCode.CRASHED), (MemoryError("no room"), ErrorCode.OUT_OF_MEMORY)],
    )
    def test_the_guilty_images_are_found(
        self, make: Make, error: Exception, code: ErrorCode, values: list[int]
    ) -> None:
        encoder = Recorder(lambda batch: error if 13 in batch else None)
        innocent, mixed, alone = part(encoder, [1, 2, 3]), part(encoder, values), part(encoder, values)

        encode(make(8), innocent, mixed)
        encode(make(8), alone)

        expected = [code if value == 13 else None for value in values]
        assert (codes(innocent), codes(mixed), codes(alone)) == ([None] * 3, expected, expected)
        assert [feature is None for feature in mixed.outcomes.features] == [v == 13 for v in values]

    @pytest.mark.parametrize("texts", [["a", "bad", "c"], ["bad"]])
    def test_the_guilty_text_is_found(self, make: Make, texts: list[str]) -> None:
        class Choosy(FakeEncoder):
            def encode_texts(self, prompts: list[str]) -> np.ndarray:
                if "bad" in prompts:
                    raise RuntimeError("index out of range")
                return super().encode_texts(prompts)

        one = texts_part(Choosy(), texts)

        encode(make(8), one)

        assert codes(one) == [ErrorCode.CRASHED if text == "bad" else None for text in texts]

    def test_a_thread_that_is_missing_for_a_pass_is_no_images_fault(self, make: Make) -> None:
        lacking = RuntimeError("can't start new thread")
        one = part(Recorder(lambda values: lacking if 13 in values else None), [4, 13, 5])

        with pytest.raises(WorkerShortageError, match="another thread"):
            encode(make(8), one)
        assert codes(one) == [None] * 3

    def test_a_batch_that_is_too_large_for_the_device_is_halved(self, make: Make) -> None:
        encoder = Recorder(lambda values: MemoryError("no room") if len(values) > 2 else None)
        one = part(encoder, list(range(8)))

        encode(make(8), one)

        assert codes(one) == [None] * 8
        assert [values for values in encoder.passes if len(values) <= 2] == [[0, 1], [2, 3], [4, 5], [6, 7]]

    @pytest.mark.parametrize("kind", [Recorder, Device])
    @pytest.mark.parametrize("error", [RuntimeError("device gone"), MemoryError("device gone")])
    def test_when_nothing_works_the_chunks_wait_and_no_image_fails(
        self, batcher: Batcher, kind: type[Recorder], error: Exception
    ) -> None:
        encoder = kind(lambda values: error)
        if isinstance(encoder, Device):
            encoder.go.release(1000)
        slices = [part(encoder, [1, 2]), part(encoder, [3, 4])]

        start(batcher, *slices)

        for one in slices:
            with pytest.raises(type(error), match="device gone"):
                wait(one)
            assert codes(one) == [None, None]

    def test_a_device_that_fails_is_not_asked_again_for_every_image(self, make: Make) -> None:
        encoder = Recorder(lambda values: RuntimeError("device gone"))

        with pytest.raises(RuntimeError, match="device gone"):
            encode(make(256), part(encoder, [1] * 256))

        assert len(encoder.passes) == 2

    @pytest.mark.parametrize("under_way", [1, 2])
    def test_a_gpu_that_is_lost_ends_the_thread_and_with_it_the_process(
        self, batcher: Batcher, monkeypatch: pytest.MonkeyPatch, under_way: int
    ) -> None:
        deaths: list[threading.ExceptHookArgs] = []
        monkeypatch.setattr(threading, "excepthook", deaths.append)
        device = Device(lambda values: RuntimeError("CUDA error: device-side assert triggered"))
        device.batches_in_flight = under_way
        device.go.release(1000)

        with pytest.raises(RuntimeError, match="device-side assert"):
            encode(batcher, part(device, [1, 2, 3, 4]))

        wait_until(lambda: deaths, "the thread has died")
        assert deaths[0].thread is not None
        assert deaths[0].thread.name == "batcher"


class TestMemory:
    @pytest.mark.parametrize("what", ["a call", "texts"])
    def test_what_has_failed_is_freed_with_its_error(self, batcher: Batcher, what: str) -> None:
        # Given a model: were it in a cycle, its memory would be taken until Python looks for those
        class Failing(FakeEncoder):
            def encode_texts(self, prompts: list[str]) -> np.ndarray:
                raise RuntimeError("no such kernel")

        encoder = Failing()
        freed = weakref.ref(encoder)
        batcher.start()
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

    @pytest.mark.parametrize("what", ["images", "texts"])
    def test_an_idle_batcher_keeps_no_model_alive(self, batcher: Batcher, what: str) -> None:
        encoder = FakeEncoder()
        alive = weakref.ref(encoder)
        batcher.start()
        if what == "images":
            outcomes = Outcomes(2)
            batcher.submit(part(encoder, [1, 2], outcomes))
            outcomes.wait()
        else:
            batcher.encode_texts(encoder, ["red"], Lane.NORMAL)

        del encoder

        wait_until(lambda: alive() is None, "the model is freed")


class TestStopping:
    def test_what_waits_is_failed(self, batcher: Batcher) -> None:
        images = part(FakeEncoder(), [1])
        batcher.submit(images)
        texts = queue_texts(batcher, FakeEncoder(), ["a"], Lane.NORMAL)

        batcher.stop()
        batcher.stop()  # once more is harmless

        for waits in (images.outcomes.wait, texts.result):
            with pytest.raises(BatcherStopped):
                waits()

    def test_who_waits_for_the_ring_is_told(self, make: Make) -> None:
        batcher, encoder = make(1, ring_batches=1), FakeEncoder()
        batcher._changed = changed = WatchedCondition()
        batcher.submit(part(encoder, [1]))
        call = InThread(lambda: batcher.submit(part(encoder, [2])))
        assert changed.somebody_waits.wait(PATIENCE_SECONDS)

        batcher.stop()

        with pytest.raises(BatcherStopped):
            call.result()

    def test_nothing_is_taken_afterwards(self, batcher: Batcher) -> None:
        batcher.stop()

        with pytest.raises(BatcherStopped):
            batcher.submit(part(FakeEncoder(), [1]))
        with pytest.raises(BatcherStopped):
            batcher.call(lambda: 7, Lane.NORMAL)


def test_a_batch_has_a_limit_and_an_idle_device_has_none() -> None:
    pulse = Pulse("batcher")
    batcher, device = Batcher(4, pulse=pulse), Device()
    start(batcher, part(device, [1]))
    device.wait_until_asked()
    assert (pulse.phase.name, pulse.phase.limit_seconds) == ("encode", LOAD_LIMIT_SECONDS)
    device.go.release()
    wait_until(lambda: pulse.phase.is_idle, "the batcher is idle")
    batcher.stop()
