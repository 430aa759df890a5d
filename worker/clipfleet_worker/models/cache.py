"""The models in memory: loaded on demand, each in its own thread; the least recently used is unloaded."""

from __future__ import annotations

import gc
import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence
from weakref import WeakValueDictionary

from clipfleet.contract.jobs import Precision
from clipfleet_worker.failures import ModelUnavailableError, WorkerShortageError
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loading import Loading
from clipfleet_worker.process.counts import CacheCounts
from clipfleet_worker.process.shortages import shortage_behind

log = logging.getLogger(__name__)

_SHUN_SECONDS = 300.0  # for which other workers get the chunks of a model that cannot be loaded here

Key = tuple[str, Precision]
LoadModel = Callable[[str, Precision, Loading], LoadedModel]  # reports to the last one while it loads


class Models:
    """Which models this worker serves, and the loaded ones."""

    def __init__(
        self,
        served: Sequence[str],
        load: LoadModel,
        *,
        kept: int,
        default_precision: Precision,
        on_change: Callable[[], None] = lambda: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._served = tuple(served)
        self._load = load
        self._kept = kept
        self._default_precision = default_precision
        self._on_change = on_change  # called after a model was loaded, and others unloaded for it
        self._monotonic = monotonic
        self._kept_models: OrderedDict[Key, Loading] = OrderedDict()  # least recently used first
        # Unloaded models that chunks under way still hold: a second copy would need as much memory again.
        self._in_use: WeakValueDictionary[Key, LoadedModel] = WeakValueDictionary()
        self._shunned: dict[str, float] = {}  # model -> when it may be tried again
        self._lock = threading.Lock()
        self.requests = CacheCounts()

    def served(self) -> tuple[str, ...]:
        """Models to claim chunks for, without those that recently could not be loaded here."""
        now = self._monotonic()
        with self._lock:
            return tuple(name for name in self._served if self._shunned.get(name, 0.0) <= now)

    def shun(self, name: str) -> None:
        """Claim no chunks of a model that cannot be loaded here for a while."""
        with self._lock:
            self._shunned[name] = self._monotonic() + _SHUN_SECONDS

    def prefetch(self, name: str, precision: Precision) -> Loading:
        """Start loading a model, unless it is loaded; returns at once.

        The result raises ModelUnavailableError, or MemoryError or WorkerShortageError for a shortage now. The
        next call tries again.
        """
        if precision is Precision.AUTO:
            precision = self._default_precision
        key = (name, precision)
        with self._lock:
            loading = self._kept_models.get(key)
            self.requests.note(hit=loading is not None)
            if loading is not None:
                self._kept_models.move_to_end(key)
                return loading
            loading = self._kept_models[key] = Loading(name)
            model = self._in_use.get(key)
            if model is not None:
                loading.finish(model)
            self._unload_surplus()
        if model is None:
            self._start_loading(key, loading)
        return loading

    def in_memory(self) -> list[LoadedModel]:
        """The loaded models, and the unloaded ones that chunks under way still hold."""
        with self._lock:
            return list(self._in_use.values())

    def _unload_surplus(self) -> None:
        """Drop the least recently used models, but none that is loading: it would be loaded twice."""
        surplus = len(self._kept_models) - self._kept
        ready = [key for key, loading in self._kept_models.items() if loading.done()]
        for key in ready[: max(surplus, 0)]:
            del self._kept_models[key]

    def _start_loading(self, key: Key, loading: Loading) -> None:
        thread = threading.Thread(target=self._fill, args=(key, loading), name=f"load {key[0]}", daemon=True)
        try:
            thread.start()
        except RuntimeError as error:  # otherwise chunks of this model would wait forever
            self._fail(key, loading, shortage_behind(error) or error)

    def _fill(self, key: Key, loading: Loading) -> None:
        started = self._monotonic()
        gc.collect()  # unloaded models may be in cycles, which Python alone would free too late
        try:
            model = self._loaded(key, loading)
        except (ModelUnavailableError, MemoryError, WorkerShortageError) as error:
            log.error("model not loaded: %r", error, extra={"action": "model_unavailable", "model": key[0]})
            self._fail(key, loading, error)
        except BaseException as error:
            self._fail(key, loading, error)  # chunks that wait raise it at their own task boundary
            raise
        else:
            log.info(
                "model %s loaded in %.1f s (%s on %s by %s): %s",
                key[0],
                self._monotonic() - started,
                model.precision,
                model.device,
                model.backend_name,
                model.certificate,
                extra={"action": "model_loaded", "model": key[0]},
            )
            with self._lock:
                self._in_use[key] = model
            loading.finish(model)
            with self._lock:
                self._unload_surplus()
            self._on_change()

    def _loaded(self, key: Key, loading: Loading) -> LoadedModel:
        try:
            return self._load(*key, loading)
        except Exception as error:
            shortage = shortage_behind(error)
            if shortage is not None:  # though reported as damaged files or an unreachable hub
                raise shortage from error
            raise

    def _fail(self, key: Key, loading: Loading, error: BaseException) -> None:
        with self._lock:
            if self._kept_models.get(key) is loading:
                del self._kept_models[key]  # frees its place, so that the next call tries again
        loading.fail(error)
