"""Shortages of a worker are distinguished from failures of items, also inside other exceptions."""

from __future__ import annotations

import errno
import os
import socket
import threading
from types import SimpleNamespace
from typing import Any, cast
from unittest.mock import Mock

import aiohttp
import pyarrow as pa
import pytest

from clipfleet.contract.jobs import ErrorCode, Lane, Precision
from clipfleet.errors import OutputUnavailableError
from clipfleet_worker.chunk.lane_pool import LanePool
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.failures import ItemFailure, ModelUnavailableError, WorkerShortageError
from clipfleet_worker.hints.consumer import HintThreads
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.process import shortages
from clipfleet_worker.process.drain import Drain, Drainable
from clipfleet_worker.process.shortages import LenientThreadPool, shortage_behind
from tests.support.doubles import PATIENCE_SECONDS
from tests.support.waiting import wait_until

NO_THREAD = RuntimeError("can't start new thread")


def os_error(number: int) -> OSError:
    return OSError(number, os.strerror(number))


def raised(error: Exception, *, cause: Exception | None = None) -> Exception:
    """The error as it is once it was raised while another one was handled."""
    try:
        try:
            if cause is not None:
                raise cause
        finally:
            raise error
    except Exception as caught:
        return caught


class TestRecognising:
    @pytest.mark.parametrize(
        ("error", "words"),
        [
            (os_error(errno.EMFILE), "too few file descriptors (ulimit -n"),
            (os_error(errno.ENFILE), "fs.file-max"),
            (os_error(errno.ENOMEM), "too little memory"),
            (os_error(errno.ENOBUFS), "too little memory"),
            (NO_THREAD, "another thread"),
            (pa.ArrowException("Unknown error: Failed to launch worker thread: Resource"), "another thread"),
            (ImportError("/x.so: failed to map segment from shared object"), "too little memory"),
            (ImportError("libx.so: cannot open shared object file: Too many open files"), "file descriptors"),
        ],
        ids=repr,
    )
    def test_what_the_operating_system_says(self, error: Exception, words: str) -> None:
        shortage = shortage_behind(error)

        assert shortage is not None
        assert words in str(shortage)

    @pytest.mark.parametrize(
        "outer",
        [
            ItemFailure(ErrorCode.INCOMPLETE_BODY, "Too many open files"),
            ModelUnavailableError("the files do not fit"),
            OutputUnavailableError("/out: Too many open files"),
        ],
        ids=repr,
    )
    def test_whatever_it_was_taken_for(self, outer: Exception) -> None:
        assert shortage_behind(raised(outer, cause=os_error(errno.EMFILE))) is not None
        assert shortage_behind(raised(outer, cause=raised(ValueError("x"), cause=NO_THREAD))) is not None
        assert shortage_behind(raised(outer, cause=WorkerShortageError("short"))) is not None
        assert shortage_behind(raised(outer, cause=os_error(errno.EIO))) is None

    def test_aiohttps_own_errors(self) -> None:
        key = aiohttp.client_reqrep.ConnectionKey("h", 80, False, True, None, None, None)

        assert shortage_behind(aiohttp.ClientConnectorError(key, os_error(errno.EMFILE))) is not None
        assert shortage_behind(aiohttp.ClientConnectorError(key, os_error(errno.ECONNREFUSED))) is None

    @pytest.mark.parametrize(
        "error",
        [
            os_error(errno.ENOENT),
            os_error(errno.ENOSPC),
            os_error(errno.EAGAIN),  # of a socket that has nothing to read
            OSError("no number"),
            MemoryError("an image's, perhaps"),
            RuntimeError("boom"),
            ImportError("libx.so: cannot open shared object file: No such file or directory"),
            pa.ArrowInvalid("Parquet magic bytes not found in footer"),
            # Numbers of their own, among which are those of errno.
            socket.gaierror(errno.EMFILE, "some answer of a name server"),
            socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution"),
        ],
        ids=repr,
    )
    def test_other_errors_are_not_shortages(self, error: Exception) -> None:
        assert shortage_behind(error) is None

    def test_a_silent_name_server_may_be_a_resolver_without_a_socket(self, monkeypatch: Any) -> None:
        error = socket.gaierror(socket.EAI_AGAIN, "Temporary failure in name resolution")
        with monkeypatch.context() as patch:
            patch.setattr(shortages.os, "open", Mock(side_effect=os_error(errno.EMFILE)))
            assert shortage_behind(error) is not None


class Threads:
    """Threads of this process: beyond those that are allowed none starts."""

    allowed = 0


@pytest.fixture
def threads(monkeypatch: pytest.MonkeyPatch) -> Threads:
    threads, start = Threads(), threading.Thread.start

    def start_or_not(thread: threading.Thread) -> None:
        if not threads.allowed:
            raise RuntimeError("can't start new thread")
        threads.allowed -= 1
        start(thread)

    monkeypatch.setattr(threading.Thread, "start", start_or_not)
    return threads


class TestThreads:
    def test_work_waits_for_the_threads_that_are_there(self, threads: Threads) -> None:
        threads.allowed, go_on = 1, threading.Event()
        with LenientThreadPool(8) as pool:
            pool.submit(go_on.wait, PATIENCE_SECONDS)
            later = [pool.submit(int, text) for text in ("1", "2")]
            assert threads.allowed == 0
            go_on.set()
            assert [future.result(PATIENCE_SECONDS) for future in later] == [1, 2]

    def test_without_a_thread_it_says_so(self, threads: Threads) -> None:
        with LenientThreadPool(8) as pool, pytest.raises(RuntimeError, match="new thread"):
            pool.submit(int)

    def test_a_lane_without_a_thread_reports_it_and_works_again_later(self, threads: Threads) -> None:
        pool, errors, done = LanePool(2, name="test"), list[BaseException](), threading.Event()
        pool.submit(Lane.HIGH, done.set, errors.append)
        assert [type(error) for error in errors] == [WorkerShortageError]

        threads.allowed = 1
        pool.submit(Lane.HIGH, lambda: None, errors.append)

        assert done.wait(PATIENCE_SECONDS)
        pool.stop()
        assert len(errors) == 1

    def test_a_hint_without_a_thread_does_not_end_celery(self, threads: Threads, caplog: Any) -> None:
        pool, done = HintThreads(8), list[str]()
        pool.on_start()
        assert pool.apply_async(done.append, ("first",), callback=str) is None
        assert "hint waits for a thread: this worker cannot start another thread" in caplog.text

        threads.allowed = 1
        pool.apply_async(done.append, ("second",), callback=str).get(PATIENCE_SECONDS)
        pool.on_stop()

        assert done == ["first", "second"]

    def test_a_model_without_a_thread_fails_and_may_be_loaded_later(self, threads: Threads) -> None:
        models = Models(
            ("fake",), lambda name, *_: cast(LoadedModel, FakeEncoder(name)), kept=1,
            default_precision=Precision.FP32,
        )  # fmt: skip
        with pytest.raises(WorkerShortageError, match="another thread"):
            models.prefetch("fake", Precision.FP32).result(PATIENCE_SECONDS)

        threads.allowed = 1

        assert models.prefetch("fake", Precision.FP32).result(PATIENCE_SECONDS).name == "fake"

    def test_a_worker_that_drains_releases_without_another_thread(self, threads: Threads) -> None:
        steps, exits = list[str](), list[int]()
        worker = SimpleNamespace(
            stop_claiming=lambda: None,
            interrupt=lambda _: None,
            release_all=lambda reason: steps.append(reason) or True,
        )
        drain = Drain(cast(Drainable, worker), 0, exit_process=exits.append)
        threads.allowed = 1
        drain.start()

        drain.begin()

        wait_until(lambda: exits == [0], "the process ends")
        assert steps == ["the worker drains"]
