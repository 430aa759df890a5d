"""Decides where each image is read: in this process, which is fast, or in a child that may be killed.

An image that kills the process that reads it takes down all chunks of that process. So chunks that have cost
a worker before, AVIF and HEIF, and formats that the operator isolates, are read by `DecodeChildren`.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from clipfleet.contract.jobs import DecodeRoute, ErrorCode, Exif
from clipfleet_worker.decode.child_process import NoRoomError
from clipfleet_worker.decode.children import DecodeChildren
from clipfleet_worker.decode.codecs import require_codec
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.fit import fit
from clipfleet_worker.decode.formats import allowed_format, is_baseline_jpeg, is_boxed, is_png
from clipfleet_worker.decode.rasters import DecodedImage, Raster
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.pixel_spec import PixelSpec

_UNWATCHED = nullcontext()


class DecodeStep:
    """Decodes images; thread-safe."""

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
            children: read outside; AVIF and HEIF always.
            watched: a context entered while this process reads an image: a guard that ends the process if it
                takes too much memory.
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
        """Have children read everything while a chunk that has cost a worker is processed.

        This includes the images of other chunks: one that kills the process would add to the losses of the
        suspect, which may be innocent, until it is given up.
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
        self,
        data: bytes,
        spec: PixelSpec,
        route: DecodeRoute,
        exif: Exif = Exif.IGNORE,
        *,
        is_suspect: bool = False,
    ) -> DecodedImage:
        """Decode like `Decoder.decode`; pixels do not depend on where the file is read.

        Args:
            data: the file.
            spec: the pixels that the model takes.
            route: see `decode.decoder`.
            exif: whether the image is turned by its EXIF orientation.
            is_suspect: the item's chunk has cost a worker.

        Raises:
            ItemFailure: also `decode_timeout`, `crashed` and `out_of_memory`.
            NoRoomError: the machine cannot start a child now.
        """
        try:
            return fit(self._read(data, spec, route, exif, is_suspect=is_suspect), spec)
        except NoRoomError:
            raise
        except MemoryError:
            detail = "not enough memory for this image"
            raise ItemFailure(ErrorCode.OUT_OF_MEMORY, detail) from None

    def _read(
        self, data: bytes, spec: PixelSpec, route: DecodeRoute, exif: Exif, *, is_suspect: bool
    ) -> Raster:
        if is_boxed(data):
            require_codec(allowed_format(data))  # before a child is started for it
            return self._children.read(data, spec.input_size, route, exif)
        if is_suspect or self._suspects or (self._isolate and not _is_simple(data)):
            return self._children.read(data, spec.input_size, route, exif)
        try:
            with self._watched:
                return self._decoder.read(data, spec.input_size, route, exif)
        except MemoryError:
            pass  # leaving the handler frees what had been read, which the error's traceback holds
        # Other images may hold all memory now: a child decides by this one alone.
        return self._children.read(data, spec.input_size, route, exif)

    def close(self) -> None:
        """End the children; nothing may be decoded afterwards."""
        self._children.kill_all()


def _is_simple(data: bytes) -> bool:
    return is_png(data) or is_baseline_jpeg(data)
