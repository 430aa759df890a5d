"""Small images are read by one thread at a time, large ones side by side, and waits are short."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest

from clipfleet_worker.decode.lock import DecodeLock
from clipfleet_worker.process.cores import SMALL_IMAGE_SECONDS
from tests.support.doubles import PATIENCE_SECONDS, Clock, InThread

SMALL = SMALL_IMAGE_SECONDS / 2
LARGE = SMALL_IMAGE_SECONDS * 2
SLICE = 32


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def lock(clock: Clock) -> DecodeLock:
    return DecodeLock(patience_seconds=PATIENCE_SECONDS, monotonic=clock, thread_time=clock)


def read(lock: DecodeLock, clock: Clock, seconds: Sequence[float]) -> list[bool]:
    """Read a slice of images that take so many seconds each; whether it held the lock after each."""
    held = []
    with lock.hold() as hold:
        for one in seconds:
            clock.now += one
            hold.count_image()
            held.append(hold.is_held)
    return held


def acquired_and_released(lock: DecodeLock) -> bool:
    with lock.hold() as hold:
        return hold.is_held


def test_small_images_are_read_by_one_thread_at_a_time(lock: DecodeLock) -> None:
    asks = threading.Event()
    with lock.hold() as hold:
        other = InThread(lambda: asks.set() or acquired_and_released(lock))
        assert asks.wait(PATIENCE_SECONDS)
        assert hold.is_held
        assert not other.is_done
    assert other.result()


def test_a_thread_that_waits_behind_large_images_goes_on_beside_them(lock: DecodeLock, clock: Clock) -> None:
    with lock.hold() as hold:
        other = InThread(lambda: acquired_and_released(lock))
        clock.now += 1.0
        for _ in range(SLICE):
            hold.count_image()
        assert not other.result()


def test_the_lock_is_held_while_images_are_small(lock: DecodeLock, clock: Clock) -> None:
    for _ in range(20):
        assert all(read(lock, clock, [SMALL] * SLICE))


@pytest.mark.parametrize("seconds", [0.05, LARGE, 1.2 * SMALL_IMAGE_SECONDS])
def test_large_images_are_read_side_by_side(lock: DecodeLock, clock: Clock, seconds: float) -> None:
    held: list[bool] = []
    began = clock.now
    while len(held) < 15 * SLICE and clock.now < began + 1.9:
        held += read(lock, clock, [seconds] * SLICE)
    assert not held[-1]
    assert sum(held) * seconds < 0.2  # what others may have waited for


def test_small_images_on_a_busy_machine_stay_small_and_those_on_a_slow_disk_do_not(clock: Clock) -> None:
    worked = Clock()
    lock = DecodeLock(monotonic=clock, thread_time=worked)
    for slowed, is_kept in ((2.0, True), (10.0, False)):
        with lock.hold() as hold:
            for _ in range(2 * SLICE):
                worked.now += SMALL_IMAGE_SECONDS / 2
                clock.now += SMALL_IMAGE_SECONDS * slowed
                hold.count_image()
            assert hold.is_held is is_kept


def test_a_thread_that_waited_for_a_cpu_keeps_the_lock(clock: Clock) -> None:
    lock = DecodeLock(monotonic=clock, thread_time=Clock())
    assert all(read(lock, clock, [0.03] + [0.0] * (SLICE - 1)))


def test_after_a_while_small_images_are_noticed(lock: DecodeLock, clock: Clock) -> None:
    read(lock, clock, [0.05] * SLICE)
    assert not acquired_and_released(lock)
    clock.now += 10.0
    assert all(read(lock, clock, [SMALL] * SLICE))


def test_a_large_image_here_and_there_changes_nothing(lock: DecodeLock, clock: Clock) -> None:
    for _ in range(20):
        assert all(read(lock, clock, [SMALL] * (SLICE - 1) + [5 * LARGE]))


def test_a_thread_that_hangs_delays_the_others_only_briefly(clock: Clock) -> None:
    lock = DecodeLock(patience_seconds=0.01, monotonic=clock, thread_time=clock)
    with lock.hold() as hanging:
        assert hanging.is_held
        assert not acquired_and_released(lock)
        assert lock.is_skipped  # the next thread does not wait either
    clock.now += 10.0
    assert acquired_and_released(lock)


def test_an_error_releases_the_lock(lock: DecodeLock) -> None:
    with pytest.raises(ValueError, match="bug"), lock.hold():
        raise ValueError("bug")
    assert acquired_and_released(lock)
