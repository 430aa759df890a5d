"""The pool of decode children: started on demand, reused until they are closed."""

from __future__ import annotations

import logging
import threading
import time

from clipfleet.contract.jobs import DecodeRoute, Exif
from clipfleet_worker.decode.child_process import DecodeChild, DecodeLimits, TakenByKernel
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.rasters import Raster
from clipfleet_worker.pixel_spec import InputSize

log = logging.getLogger(__name__)


class DecodeChildren:
    """As many children as threads that read at a time. Thread-safe."""

    def __init__(self, decoder: Decoder, limits: DecodeLimits) -> None:
        self._decoder = decoder
        self._limits = limits
        self._idle: list[DecodeChild] = []
        self._busy: set[DecodeChild] = set()
        self._have_ended = False
        self._lock = threading.Lock()

    def read(
        self, data: bytes, input_size: InputSize, route: DecodeRoute, exif: Exif = Exif.IGNORE
    ) -> Raster:
        """Have a child read a file, see `DecodeChild.read`; retried once if the kernel takes the child."""
        try:
            return self._read(data, input_size, route, exif)
        except TakenByKernel:
            if self._have_ended:  # `kill_all` killed it, not the kernel
                raise
        return self._read(data, input_size, route, exif)

    def _read(self, data: bytes, input_size: InputSize, route: DecodeRoute, exif: Exif) -> Raster:
        child = self._take()
        try:
            return child.read(data, input_size, route, exif)
        finally:
            self._release(child)

    def _take(self) -> DecodeChild:
        child = self._pop_idle()
        while child is not None and not child.is_ready:  # it died while idle: no image is to blame
            child.close()
            child = self._pop_idle()
        child = child or self._start()
        with self._lock:
            self._busy.add(child)
        return child

    def _pop_idle(self) -> DecodeChild | None:
        with self._lock:
            return self._idle.pop() if self._idle else None

    def _start(self) -> DecodeChild:
        started = time.monotonic()
        child = DecodeChild(self._decoder, self._limits)
        seconds = time.monotonic() - started
        context = {"action": "decode_child_started"}
        log.info("decode child %d started in %.2f s", child.pid, seconds, extra=context)
        return child

    def _release(self, child: DecodeChild) -> None:
        with self._lock:
            self._busy.discard(child)
            if child.is_ready:
                self._idle.append(child)
                return
        child.close()

    def close_idle(self) -> None:
        """End the idle ones; the next reads start others."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.close()

    def kill_all(self) -> None:
        """Shutdown: kill all children; pending reads fail and no child is replaced."""
        self._have_ended = True
        with self._lock:
            busy = list(self._busy)
        for child in busy:
            child.kill()
        self.close_idle()
