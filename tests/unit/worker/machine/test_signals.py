"""Signals that are recorded for a loop."""

from __future__ import annotations

import os
import signal

from clipfleet_worker.machine.signals import SignalRecorder


def test_signals_are_noted_in_order_and_handlers_put_back() -> None:
    before = signal.getsignal(signal.SIGINT)
    with SignalRecorder() as signals:
        assert not signals.pending
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)
        assert signals.pending
        assert signals.take() == [signal.SIGINT, signal.SIGTERM]
        assert signals.take() == []
    assert signal.getsignal(signal.SIGINT) is before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    previous = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with SignalRecorder() as signals:
            os.kill(os.getpid(), signal.SIGHUP)
            assert not signals.pending
    finally:
        signal.signal(signal.SIGHUP, previous)
