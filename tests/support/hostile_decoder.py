"""A decoder that images can harm, by a mark at their end: as through a hole in a real one.

It is given to workers and their decode children by their constructors; production knows nothing of it.
"""

from __future__ import annotations

import ctypes
import os
from contextlib import suppress
from enum import Enum

from clipfleet.contract.jobs import DecodeRoute, Exif
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.rasters import Raster
from clipfleet_worker.pixel_spec import InputSize

_HOARD_BYTES = 10_000_000_000
_STEP_BYTES = 1 << 26
_PAGE_BYTES = 4096


class Deed(Enum):
    """What an image does to its decoder, and the mark behind its last byte."""

    EXIT = b"~exit"
    NO_MEMORY = b"~no memory"
    LOOP = b"~loop"
    HOARD = b"~hoard"
    SEGFAULT = b"~segfault"
    RAISE = b"~raise"
    SAY = b"~say"
    COMPLAIN = b"~complain"

    def mark(self, image: bytes) -> bytes:
        """The same image, which does this; decoders stop before what stands behind its end."""
        return image + self.value

    def do(self) -> None:
        match self:
            case Deed.EXIT:
                os._exit(3)
            case Deed.NO_MEMORY:
                raise MemoryError
            case Deed.LOOP:
                while True:
                    pass
            case Deed.HOARD:
                _hoard()
            case Deed.SEGFAULT:
                ctypes.string_at(0)
            case Deed.RAISE:
                raise RuntimeError("the image says: /etc/passwd")
            case Deed.SAY:
                os.write(1, b"words of a decoder on standard output\n" * 10_000)
            case Deed.COMPLAIN:
                with suppress(OSError):  # the pipe may be closed
                    for _ in range(1000):
                        os.write(2, b"words of a library that warns of this image\n")


def _hoard() -> None:
    hoard = []
    for _ in range(_HOARD_BYTES // _STEP_BYTES):
        block = bytearray(_STEP_BYTES)
        block[::_PAGE_BYTES] = b"\1" * (_STEP_BYTES // _PAGE_BYTES)  # otherwise the kernel allocates nothing
        hoard.append(block)


class HostileDecoder(Decoder):
    """Reads like its parent whatever has no mark."""

    def read(
        self, data: bytes, input_size: InputSize, route: DecodeRoute, exif: Exif = Exif.IGNORE
    ) -> Raster:
        """Do what the image says first."""
        for deed in Deed:
            if data.endswith(deed.value):
                deed.do()
        return super().read(data, input_size, route, exif)
