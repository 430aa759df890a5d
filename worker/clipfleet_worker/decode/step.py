"""Where each image is read: in this process, which is fast, or in a child that may be killed.

An image that kills the process that reads it takes all chunks of that process along. So what has cost a
worker before, and what its operator wants to be careful with, is read by `DecodeChildren`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from clipfleet.contract.jobs import DecodeRoute, ErrorCode
from clipfleet_worker.decode.children import DecodeChildren, NoRoomError
from clipfleet_worker.decode.decoder import DecodedImage, Decoder, Raster, fit
from clipfleet_worker.decode.formats import is_baseline_jpeg, is_png
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.pixel_spec import PixelSpec

_UNWATCHED = nullcontext()


class DecodeStep:
    """Called by many threads at once."""

    def __init__(
        self,
        decoder: Decoder,
        children: DecodeChildren,
        *,
        watched: AbstractContextManager[object] = _UNWATCHED,
        isolate: bool = False,
    ) -> None:
        """Nothing is started yet.

        Args:
            decoder: reads in this process.
            children: read outside.
            watched: entered while this process reads an image, by who ends it if that takes too much.
            isolate: have children read all but baseline JPEG and PNG, whose decoders are simple and old.
        """
        self._decoder = decoder
        self._children = children
        self._watched = watched
        self._isolate = isolate
        self._suspects = 0
        self._lock = threading.Lock()

    @contextmanager
    def with_suspect(self) -> Iterator[None]:
        """While a chunk that has cost a worker is under way, children read everything.

        The images of other chunks too: one that kills the process would add to the losses of this chunk,
        which may be innocent, until it is given up.
        """
        with self._lock:
            self._suspects += 1
        try:
            yield
        finally:
            with self._lock:
                self._suspects -= 1
                is_over = self._suspects == 0 and not self._isolate
            if is_over:
                self._children.close_idle()

    def decode(
        self, data: bytes, spec: PixelSpec, route: DecodeRoute, *, is_suspect: bool = False
    ) -> DecodedImage:
        """The image in a file's bytes, the same ones wherever it is read; see `Decoder.decode`.

        Args:
            data: the file.
            spec: what the model wants.
            route: see `Decoder.read`.
            is_suspect: the item's chunk has cost a worker.

        Raises:
            ItemFailure: also `decode_timeout`, `crashed` and `out_of_memory`.
            NoRoomError: the machine has no room for a child now.
        """
        try:
            return fit(self._read(data, spec, route, is_suspect=is_suspect), spec)
        except NoRoomError:
            raise
        except MemoryError:
            detail = "not enough memory for this image"
            raise ItemFailure(ErrorCode.OUT_OF_MEMORY, detail) from None

    def _read(self, data: bytes, spec: PixelSpec, route: DecodeRoute, *, is_suspect: bool) -> Raster:
        if is_suspect or self._suspects or (self._isolate and not _is_simple(data)):
            return self._children.read(data, spec.frame, route)
        try:
            with self._watched:
                return self._decoder.read(data, spec.frame, route)
        except MemoryError:
            pass  # and free with it what had been read, whose frames hang on the error
        # Others may have all memory just now: alone the image is judged.
        return self._children.read(data, spec.frame, route)

    def close(self) -> None:
        """End the children; nobody decodes any more."""
        self._children.kill_all()


def _is_simple(data: bytes) -> bool:
    return is_png(data) or is_baseline_jpeg(data)
