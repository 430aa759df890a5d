"""Threads that score: one core each, while all other threads keep torch's own number."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from functools import partial

import pytest
import torch

from clipfleet.contract.jobs import Lane
from clipfleet_worker.score.scoring_threads import ScoringThreads
from tests.support.doubles import PATIENCE_SECONDS, InThread
from tests.support.waiting import wait_until


@pytest.fixture(autouse=True)
def three_threads() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    yield
    torch.set_num_threads(before)


def test_work_has_one_core_and_other_threads_have_theirs() -> None:
    found = ScoringThreads().call(torch.get_num_threads, Lane.NORMAL)

    assert found == 1
    assert torch.get_num_threads() == 3
    assert InThread(torch.get_num_threads).result() == 3


def test_several_calls_are_in_progress_at_a_time() -> None:
    threads, meeting = ScoringThreads(), threading.Barrier(3)

    calls = [InThread(lambda: threads.call(lambda: meeting.wait(PATIENCE_SECONDS), Lane.HIGH)) for _ in "abc"]

    assert sorted(call.result() for call in calls) == [0, 1, 2]


def test_the_best_lane_goes_first() -> None:
    torch.set_num_threads(1)
    threads, began, go, order = ScoringThreads(), threading.Event(), threading.Event(), list[Lane]()
    busy = InThread(lambda: threads.call(lambda: began.set() or go.wait(PATIENCE_SECONDS), Lane.NORMAL))
    assert began.wait(PATIENCE_SECONDS)
    lanes = [Lane.BULK, Lane.NORMAL, Lane.HIGH]
    calls = [InThread(partial(threads.call, partial(order.append, lane), lane)) for lane in lanes]
    wait_until(lambda: len(threads._waiting) == 3, "calls wait")

    go.set()

    for call in (busy, *calls):
        call.result()
    assert order == [Lane.HIGH, Lane.NORMAL, Lane.BULK]


def test_an_error_is_raised_where_it_was_called() -> None:
    def fail() -> None:
        raise MemoryError("no room")

    with pytest.raises(MemoryError, match="no room"):
        ScoringThreads().call(fail, Lane.NORMAL)


def test_a_machine_that_refuses_threads_fails_the_call_and_the_next_one_tries_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    threads = ScoringThreads()

    def refuse(self: threading.Thread) -> None:
        raise RuntimeError("can't start new thread")

    with monkeypatch.context() as patch, pytest.raises(RuntimeError, match="can't start"):
        patch.setattr(threading.Thread, "start", refuse)
        threads.call(int, Lane.NORMAL)

    assert torch.get_num_threads() == 3
    assert threads.call(int, Lane.NORMAL) == 0
