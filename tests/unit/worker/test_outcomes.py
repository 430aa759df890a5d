"""The slots of a chunk's items: each ends once; the chunk waits for all of them."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from clipfleet.contract.jobs import ErrorCode, ItemError
from clipfleet_worker.failures import ChunkInterrupted
from clipfleet_worker.outcomes import Outcomes
from tests.support.doubles import PATIENCE_SECONDS, InThread, WatchedCondition

NOT_FOUND = ItemError(ErrorCode.NOT_FOUND, "gone")


def features(*values: float) -> np.ndarray:
    return np.array([[value, 0.0] for value in values], dtype=np.float32)


class TestWaiting:
    def test_it_ends_with_the_last_item(self) -> None:
        outcomes = Outcomes(3)
        outcomes._changed = changed = WatchedCondition()
        outcomes.deliver([0], features(1))
        call = InThread(outcomes.wait)
        assert changed.somebody_waits.wait(PATIENCE_SECONDS)
        outcomes.fail(2, NOT_FOUND)
        assert not call.is_done

        outcomes.deliver([1], features(2))

        call.result()
        Outcomes(0).wait()  # without items it returns at once
        assert outcomes.errors == [None, None, NOT_FOUND]
        assert [feature is not None for feature in outcomes.features] == [True, True, False]

    def test_all_that_have_no_error_may_fail_together(self) -> None:
        outcomes, crashed = Outcomes(3), ItemError(ErrorCode.CRASHED, "no labels")
        outcomes.deliver([0], features(1))
        outcomes.fail(2, NOT_FOUND)

        outcomes.fail_all(crashed)
        outcomes.deliver([1], features(2))  # was under way

        outcomes.wait()
        assert outcomes.errors == [crashed, crashed, NOT_FOUND]
        assert outcomes.features == [None] * 3

    def test_an_interruption_wakes_and_is_raised(self) -> None:
        outcomes = Outcomes(1)
        outcomes._changed = changed = WatchedCondition()
        call = InThread(outcomes.wait)
        assert changed.somebody_waits.wait(PATIENCE_SECONDS)

        outcomes.interrupt(ChunkInterrupted("lost"))

        with pytest.raises(ChunkInterrupted, match="lost"):
            call.result()

    def test_the_first_interruption_counts_even_after_the_last_item(self) -> None:
        outcomes = Outcomes(1)
        outcomes.fail(0, NOT_FOUND)
        assert not outcomes.is_interrupted
        outcomes.interrupt(MemoryError("first"))
        outcomes.interrupt(ChunkInterrupted("second"))

        assert outcomes.is_interrupted
        with pytest.raises(MemoryError, match="first"):
            outcomes.wait()


class TestItems:
    def test_the_first_end_of_an_item_counts(self) -> None:
        outcomes = Outcomes(3)
        outcomes.fail(0, NOT_FOUND)
        outcomes.deliver([1], features(5))

        outcomes.deliver([0, 1], features(7, 8))
        too_slow = ItemError(ErrorCode.TIMEOUT, "too slow")
        for position in range(3):
            outcomes.fail(position, too_slow)

        outcomes.wait()
        assert outcomes.errors == [NOT_FOUND, None, too_slow]
        assert [feature is not None and feature[0] for feature in outcomes.features] == [False, 5, False]

    def test_many_threads_end_every_item_once(self) -> None:
        outcomes = Outcomes(400)
        barrier = threading.Barrier(8)

        def report(thread: int) -> None:
            barrier.wait(PATIENCE_SECONDS)
            for position in range(400):
                if (position + thread) % 2:
                    outcomes.fail(position, NOT_FOUND)
                else:
                    outcomes.deliver([position], features(position))
                outcomes.add_seconds("encode", 0.5)

        with ThreadPoolExecutor(8) as pool:
            list(pool.map(report, range(8)))

        outcomes.wait()
        ended = zip(outcomes.errors, outcomes.features, strict=True)
        assert all((error is None) != (feature is None) for error, feature in ended)
        assert outcomes.seconds == {"encode": 0.5 * 8 * 400}
