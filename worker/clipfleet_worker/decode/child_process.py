"""One process that reads images for a worker: its start, its limits, and what its death means for the file.

One file at a time, within limits of wall clock, memory and CPU. The death of a child names the file: it was
reading nothing else.
"""

from __future__ import annotations

import logging
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from clipfleet.contract.jobs import DecodeRoute, ErrorCode, Exif
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.line import HungUp, Line, TooSlow
from clipfleet_worker.decode.messages import (
    EXIT_OUT_OF_MEMORY,
    LENGTH_BYTES,
    Failed,
    ImageRead,
    JpegRead,
    Ready,
    Reply,
    Request,
    json_length,
    packed,
    read_reply,
)
from clipfleet_worker.decode.orientation import upright
from clipfleet_worker.decode.rasters import Raster, ScaledJpeg, WholeImage
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.pixel_spec import InputSize

log = logging.getLogger(__name__)

_PROGRAM = "clipfleet_worker.decode.child"
_START_SECONDS = 120.0
_END_SECONDS = 10.0  # from the end of its socket to the end of the process
_TAIL_BYTES = 2000
_CPU_MARGIN_SECONDS = 2.0  # so that the wall clock ends it first, unless the worker is frozen
# The child's whole environment: without settings and credentials.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "PYTHONHOME")
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one image may cost."""

    seconds: float
    memory_bytes: int  # of the child's address space


class NoRoomError(MemoryError):
    """The machine cannot start another process now, for lack of memory or room; no image is to blame."""


class TakenByKernel(ItemFailure):
    """The kernel killed the child for lack of memory, which any process may have used up."""


class DecodeChild:
    """One process, started at once. Used by one thread at a time; any thread may kill it.

    The kernel ends it when the thread that made it ends.
    """

    def __init__(self, decoder: Decoder, limits: DecodeLimits) -> None:
        """Start it and wait until it is ready.

        Args:
            decoder: the child makes another one of its class, which must be importable.
            limits: of one file.

        Raises:
            NoRoomError: also if the program does not start, for whatever reason.
        """
        self._decoder = decoder
        self._limits = limits
        self._is_clean = False  # True between two files, until anything goes wrong
        self._stderr, ours, theirs = _stderr_and_sockets()
        self._line = Line(ours)
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - our own program
                self._command(),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._stderr,
                env=_child_environment(os.environ),
                start_new_session=True,  # Ctrl-C goes to the worker only
            )
        except OSError as error:
            self._release()
            raise NoRoomError(f"cannot start a process for decoding: {error.strerror}") from error
        finally:
            theirs.close()
        self.pid: int = self._process.pid
        self._await_ready()

    def _command(self) -> list[str]:
        made_by = type(self._decoder)
        arguments = (
            os.getpid(),
            f"{made_by.__module__}:{made_by.__qualname__}",
            self._decoder.max_pixels,
            self._decoder.max_decode_bytes,
            self._limits.memory_bytes,
        )
        return [sys.executable, "-P", "-m", _PROGRAM, *map(str, arguments)]

    @property
    def is_ready(self) -> bool:
        """Whether it can read the next file."""
        return self._is_clean and self._process.poll() is None

    def _await_ready(self) -> None:
        self._line.allow(_START_SECONDS)
        try:
            is_ready = isinstance(self._receive_reply(), Ready)
        except (TooSlow, HungUp, ValueError):
            is_ready = False
        if not is_ready:
            self.kill()
            output = self._tail()
            self._release()
            context = {"action": "decode_child_not_started"}
            log.error("a decode child does not start: %s", output, extra=context)
            raise NoRoomError(f"the process for decoding does not start: {output.splitlines()[-1]}")
        self._is_clean = True

    def read(
        self, data: bytes, input_size: InputSize, route: DecodeRoute, exif: Exif = Exif.IGNORE
    ) -> Raster:
        """Read a file like `Decoder.read`; whatever it does to the child becomes an error of the file.

        Raises:
            ItemFailure: also `decode_timeout`, `out_of_memory`, `crashed`.
            MemoryError: the worker has no memory for the pixels now.
        """
        self._is_clean = False
        try:
            raster = self._read(data, input_size, route, exif)
        except TooSlow:
            self.kill()
            detail = f"not decoded within {self._limits.seconds:g} s"
            raise ItemFailure(ErrorCode.DECODE_TIMEOUT, detail) from None
        except HungUp:
            raise self._failure_of_death() from None
        except ValueError as error:
            context = {"action": "decode_child_nonsense"}
            log.error("a decode child sent an invalid answer: %s", error, extra=context)
            self.kill()
            raise ItemFailure(ErrorCode.CRASHED, "the decoder sent an invalid answer") from None
        self._is_clean = True
        if isinstance(raster, ItemFailure):
            raise raster
        return raster

    def _read(
        self, data: bytes, input_size: InputSize, route: DecodeRoute, exif: Exif
    ) -> Raster | ItemFailure:
        self._line.allow(self._limits.seconds)
        request = Request(
            file_bytes=len(data),
            route=route,
            exif=exif,
            input_size=input_size,
            cpu_seconds=self._limits.seconds + _CPU_MARGIN_SECONDS,
        )
        self._line.send(packed(request))
        self._line.send(data)
        reply = self._receive_reply()
        self._line.allow(self._limits.seconds)  # decoding is over; a limit for the transfer
        match reply:
            case Failed():
                return ItemFailure(reply.code, reply.detail)
            case JpegRead():
                self._decoder.check_size(*upright(reply.width, reply.height, reply.orientation), input_size)
                return self._receive_jpeg(reply)
            case ImageRead():
                self._decoder.check_size(reply.width, reply.height, input_size)
                return self._receive_image(reply)
        raise ValueError(f"{reply.kind} is no answer")

    def _receive_reply(self) -> Reply:
        return read_reply(self._line.receive(json_length(self._line.receive(LENGTH_BYTES))))

    def _receive_jpeg(self, reply: JpegRead) -> ScaledJpeg:
        pixels = np.empty(reply.shape, dtype=np.uint8)
        self._line.receive_into(pixels.reshape(-1).data)
        return ScaledJpeg(pixels, reply.eighths, reply.width, reply.height, reply.orientation)

    def _receive_image(self, reply: ImageRead) -> WholeImage:
        image = Image.new(reply.mode, (reply.width, reply.height))
        for top in range(0, reply.height, reply.rows_per_strip):
            rows = min(reply.rows_per_strip, reply.height - top)
            strip = self._line.receive(rows * reply.row_bytes)
            image.paste(Image.frombytes(reply.mode, (reply.width, rows), strip), (0, top))
        if reply.palette_mode is not None:
            image.putpalette(bytes.fromhex(reply.palette_hex), reply.palette_mode)
        return WholeImage(image, reply.image_format)

    def _failure_of_death(self) -> ItemFailure:
        """The error of the file that the process was reading when it ended."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        code = self._process.poll()
        self.kill()
        ending = _in_words(code)
        log.warning("a decode child %s: %s", ending, self._tail(), extra={"action": "decode_child_died"})
        if code == -signal.SIGXCPU:
            detail = f"decoding took more than {self._limits.seconds:g} s of CPU time"
            return ItemFailure(ErrorCode.DECODE_TIMEOUT, detail)
        if code == -signal.SIGKILL:  # by the kernel: the worker has not killed it yet
            return TakenByKernel(ErrorCode.OUT_OF_MEMORY, "decoding takes more memory than the machine has")
        if code == EXIT_OUT_OF_MEMORY:
            detail = f"decoding takes more than {self._limits.memory_bytes} bytes, or than the machine has"
            return ItemFailure(ErrorCode.OUT_OF_MEMORY, detail)
        return ItemFailure(ErrorCode.CRASHED, f"the decoder {ending} on this image")

    def _tail(self) -> str:
        """The end of its standard error; for the log only, since it may quote the file."""
        with suppress(OSError, ValueError):
            end = self._stderr.seek(0, os.SEEK_END)
            self._stderr.seek(max(0, end - _TAIL_BYTES))
            return self._stderr.read().decode(errors="replace").strip() or "no output"
        return "output unknown"

    def kill(self) -> None:
        """End it now; idempotent."""
        self._is_clean = False
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill it and close its files; not while another thread uses it."""
        self.kill()
        self._release()

    def _release(self) -> None:
        self._line.close()
        self._stderr.close()


def _stderr_and_sockets() -> tuple[IO[bytes], socket.socket, socket.socket]:
    """A file for the child's standard error, the worker's end of a socket, and the child's."""
    try:
        with ExitStack() as stack:
            stderr = stack.enter_context(_scratch_file())
            ours, theirs = socket.socketpair()
            stack.pop_all()
    except OSError as error:  # too many open files
        raise NoRoomError(f"cannot start a process for decoding: {error.strerror}") from error
    return stderr, ours, theirs


def _scratch_file() -> IO[bytes]:
    """In memory on Linux: a container may have no place to write."""
    if sys.platform == "linux":
        return os.fdopen(os.memfd_create("decode-child"), "r+b")
    return tempfile.TemporaryFile()


def _child_environment(ours: Mapping[str, str]) -> dict[str, str]:
    path = os.pathsep.join(folder or str(Path.cwd()) for folder in sys.path)
    return {name: ours[name] for name in _ENVIRONMENT if name in ours} | _ONE_THREAD | {"PYTHONPATH": path}


def _in_words(code: int | None) -> str:
    if code is None:
        return "closed its socket"
    return f"ended with exit code {code}" if code >= 0 else f"was killed by {signal.Signals(-code).name}"
