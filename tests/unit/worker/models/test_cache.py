"""Models in memory: loaded once, unloaded when too many, tried again after a failure."""

from __future__ import annotations

import errno
import gc
import threading
import weakref
from collections.abc import Iterator
from typing import cast

import pytest

from clipfleet.contract.jobs import Precision
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.failures import ModelUnavailableError, WorkerShortageError
from clipfleet_worker.models.cache import Models
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.models.loading import Loading
from tests.support.doubles import PATIENCE_SECONDS, Clock, InThread

FP32, BF16 = Precision.FP32, Precision.BF16


class Loader:
    """Makes fake models; notes the calls, may be held up or told to fail."""

    def __init__(self) -> None:
        self.calls: list[tuple[str, Precision]] = []
        self.errors: dict[str, BaseException] = {}
        self.entered, self.go = threading.Event(), threading.Event()
        self.go.set()

    @property
    def names(self) -> str:
        return " ".join(name for name, _ in self.calls)

    def __call__(self, name: str, precision: Precision, loading: Loading) -> LoadedModel:
        self.calls.append((name, precision))
        self.entered.set()
        assert self.go.wait(PATIENCE_SECONDS)
        if name in self.errors:
            raise self.errors[name]
        return cast(LoadedModel, FakeEncoder(name))


@pytest.fixture(autouse=True)
def _only_what_a_test_makes_is_looked_at() -> Iterator[None]:
    """Each loading collects garbage; among all that torch and the other tests hold, that takes seconds."""
    gc.freeze()
    yield
    gc.unfreeze()


@pytest.fixture
def loader() -> Loader:
    return Loader()


def models(loader: Loader, *, kept: int = 2, clock: Clock | None = None) -> Models:
    return Models(("a", "b"), loader, kept=kept, default_precision=FP32, monotonic=clock or Clock())


def get(served: Models, name: str, precision: Precision = FP32) -> LoadedModel:
    return served.prefetch(name, precision).result(PATIENCE_SECONDS)


class TestLoading:
    def test_many_threads_share_one_loading(self, loader: Loader) -> None:
        loader.go.clear()
        served = models(loader)
        calls = [InThread(lambda: get(served, "a")) for _ in range(8)]
        assert loader.entered.wait(PATIENCE_SECONDS)
        loader.go.set()

        assert len({id(call.result()) for call in calls}) == 1
        assert loader.calls == [("a", FP32)]

    def test_prefetching_returns_at_once(self, loader: Loader) -> None:
        loader.go.clear()
        future = models(loader).prefetch("a", FP32)
        assert not future.done()

        loader.go.set()
        assert future.result(PATIENCE_SECONDS).name == "a"

    def test_an_open_precision_is_the_workers(self, loader: Loader) -> None:
        served = models(loader)
        assert get(served, "a", Precision.AUTO) is get(served, "a", FP32)
        get(served, "a", BF16)

        assert loader.calls == [("a", FP32), ("a", BF16)]

    def test_the_least_recently_used_model_goes(self, loader: Loader) -> None:
        served = models(loader, kept=2)
        for name in ("a", "b", "a", "c", "a", "b"):
            get(served, name)

        assert loader.names == "a b c b"


class TestUnloading:
    @pytest.mark.parametrize("has_cycle", [False, True])
    def test_an_unloaded_model_is_freed_before_the_next_one_is_loaded(self, has_cycle: bool) -> None:
        made: list[weakref.ref[LoadedModel]] = []
        alive_at_load: list[int] = []

        def load(name: str, precision: Precision, _loading: Loading) -> LoadedModel:
            alive_at_load.append(sum(model() is not None for model in made))
            model = load_model("demo", precision, "cpu")
            if has_cycle:  # as imports leave behind: the frames of an exception hold what they loaded
                vars(model)["itself"] = model
            made.append(weakref.ref(model))
            return model

        served = Models(("a", "b"), load, kept=1, default_precision=FP32)
        gc.disable()
        try:
            for name in ("a", "b", "a", "b"):
                get(served, name)
        finally:
            gc.enable()

        assert alive_at_load == [0, 0, 0, 0]

    def test_what_chunks_under_way_still_hold_is_not_loaded_a_second_time(self, loader: Loader) -> None:
        served = models(loader, kept=1)
        in_use = [get(served, name) for name in "ab"]

        for _ in range(3):
            assert [get(served, name) for name in "ab"] == in_use
        assert loader.names == "a b"

        in_use.clear()
        get(served, "c")
        get(served, "a")
        assert loader.names == "a b c a"

    def test_what_is_still_loading_is_not_loaded_a_second_time(self, loader: Loader) -> None:
        served = models(loader, kept=1)
        loader.go.clear()
        futures = [served.prefetch(name, FP32) for name in ("a", "b", "a", "b")]
        loader.go.set()
        for future in futures:
            future.result(PATIENCE_SECONDS)
        _join_loaders()

        assert sorted(loader.names.split()) == ["a", "b"]
        del futures, future
        get(served, "b")
        assert get(served, "b").name == "b"
        assert len(served._kept_models) == 1


class TestFailures:
    def test_one_takes_no_place_and_the_next_call_tries_again(self, loader: Loader) -> None:
        served = models(loader, kept=2)
        get(served, "a")
        loader.errors["broken"] = ModelUnavailableError("hub away")
        with pytest.raises(ModelUnavailableError, match="hub away"):
            get(served, "broken")
        get(served, "b")
        get(served, "a")
        assert loader.names == "a broken b"

        del loader.errors["broken"]
        assert get(served, "broken").name == "broken"

    @pytest.mark.parametrize(
        ("error", "cause", "expected"),
        [
            (MemoryError("no room on the device"), None, MemoryError),
            (
                ModelUnavailableError("they do not fit"),
                OSError(errno.EMFILE, "Too many"),
                WorkerShortageError,
            ),
            (ZeroDivisionError("bug"), None, ZeroDivisionError),
        ],
        ids=["memory", "shortage", "bug"],
    )
    def test_chunks_that_wait_get_the_error_and_only_a_bug_ends_the_thread_with_it(
        self,
        loader: Loader,
        monkeypatch: pytest.MonkeyPatch,
        error: Exception,
        cause: Exception | None,
        expected: type[Exception],
    ) -> None:
        died: list[str] = []
        monkeypatch.setattr(threading, "excepthook", lambda said: died.append(said.thread.name))
        error.__cause__ = cause
        loader.errors["a"] = error
        future = models(loader).prefetch("a", FP32)

        with pytest.raises(expected):
            future.result(PATIENCE_SECONDS)
        _join_loaders()
        assert died == (["load a"] if expected is ZeroDivisionError else [])


def test_a_shunned_model_is_left_to_others_for_a_while(loader: Loader) -> None:
    clock = Clock()
    served = models(loader, clock=clock)
    assert served.served() == ("a", "b")

    served.shun("a")

    assert served.served() == ("b",)
    clock.now += 299
    assert served.served() == ("b",)
    clock.now += 1
    assert served.served() == ("a", "b")


def _join_loaders() -> None:
    for thread in threading.enumerate():
        if thread.name.startswith("load "):
            thread.join(PATIENCE_SECONDS)
