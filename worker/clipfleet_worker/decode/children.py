"""Processes that read images for a worker and may be killed, by it or by what they read.

One file at a time, within a wall clock, a memory and a CPU limit. The death of a child names the file: it was
reading nothing else. Children are started when they are wanted and live on until they are closed.
"""

from __future__ import annotations

import logging
import os
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import numpy as np
from PIL import Image

from clipfleet.contract.jobs import DecodeRoute, ErrorCode
from clipfleet_worker.decode.decoder import Decoder, Raster, ScaledJpeg, WholeImage
from clipfleet_worker.decode.messages import (
    EXIT_OUT_OF_MEMORY,
    LENGTH_BYTES,
    Failed,
    ImageRead,
    JpegRead,
    Ready,
    Reply,
    Request,
    packed,
    read_reply,
    words_length,
)
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.pixel_spec import InputSize

log = logging.getLogger(__name__)

_PROGRAM = "clipfleet_worker.decode.child"
_START_SECONDS = 120.0
_END_SECONDS = 10.0  # between the end of its socket and the end of the process
_LOOK_SECONDS = 0.5
_LAST_WORDS_BYTES = 2000
_CPU_MARGIN_SECONDS = 2.0  # the wall clock is first, unless the worker is frozen

# All that a child learns of this machine: settings and credentials are not in it.
_ENVIRONMENT = ("PATH", "LD_LIBRARY_PATH", "LANG", "LC_ALL", "LC_CTYPE", "TMPDIR", "PYTHONHOME")
_ONE_THREAD = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}


@dataclass(frozen=True, slots=True)
class DecodeLimits:
    """What one image may cost."""

    seconds: float
    memory_bytes: int  # of the child's address space


class NoRoomError(MemoryError):
    """No process can be had on this machine now: no memory, too many of them; no image is to blame."""


class _TooSlow(Exception):  # noqa: N818 - no error of ours
    """The child has had its time."""


class _HungUp(Exception):  # noqa: N818 - likewise
    """The child has closed the socket: it is dead or dying."""


class _TakenByKernel(ItemFailure):
    """It has no memory left, and takes children before others, whoever wants it."""


class _Line:
    """A socket to a child on which nothing waits longer than it may.

    Time is counted in short looks, none of which counts for more than it was meant to last: a worker that was
    frozen for a minute must not blame the child for it.
    """

    def __init__(self, end: socket.socket) -> None:
        end.setblocking(False)
        self._socket = end
        self._poll = select.poll()
        self._seconds_left = 0.0

    def allow(self, seconds: float) -> None:
        """From now on so long, for whatever is waited for."""
        self._seconds_left = seconds

    def send(self, data: bytes) -> None:
        view = memoryview(data)
        while view:
            self._wait(select.POLLOUT)
            with _hanging_up():
                view = view[self._socket.send(view) :]

    def receive_into(self, view: memoryview) -> None:
        while view:
            self._wait(select.POLLIN)
            with _hanging_up():
                count = self._socket.recv_into(view)
            if not count:
                raise _HungUp
            view = view[count:]

    def receive(self, count: int) -> bytes:
        buffer = bytearray(count)
        self.receive_into(memoryview(buffer))
        return bytes(buffer)

    def close(self) -> None:
        self._socket.close()

    def _wait(self, event: int) -> None:
        self._poll.register(self._socket, event)
        is_ready = False
        while not is_ready:
            if self._seconds_left <= 0:
                raise _TooSlow
            look_seconds = min(_LOOK_SECONDS, self._seconds_left)
            started = time.monotonic()
            is_ready = bool(self._poll.poll(look_seconds * 1000))
            self._seconds_left -= min(time.monotonic() - started, look_seconds)


@contextmanager
def _hanging_up() -> Iterator[None]:
    try:
        yield
    except (BrokenPipeError, ConnectionResetError):
        raise _HungUp from None


class DecodeChild:
    """One process, started at once. Used by one thread at a time; any thread may kill it.

    The kernel ends it when the thread that made it ends.
    """

    def __init__(self, decoder: Decoder, limits: DecodeLimits) -> None:
        """Start it.

        Args:
            decoder: the child makes another one of its class, which must be in a module that can be imported.
            limits: see there.

        Raises:
            NoRoomError: see there; also where the program does not start, for whatever reason.
        """
        self._decoder = decoder
        self._limits = limits
        self._is_clean = False  # between two files; never again once anything went wrong
        self._last_words, ours, theirs = _means_of_talking()
        self._line = _Line(ours)
        try:
            self._process: subprocess.Popen[bytes] = subprocess.Popen(  # noqa: S603 - our own program
                self._command(),
                stdin=theirs.fileno(),
                stdout=subprocess.DEVNULL,
                stderr=self._last_words,
                env=_child_environment(os.environ),
                start_new_session=True,  # a Ctrl-C is the worker's
            )
        except OSError as error:
            self._release()
            raise NoRoomError(f"no process for decoding: {error.strerror}") from error
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
        """Whether it can be given the next file."""
        return self._is_clean and self._process.poll() is None

    def _await_ready(self) -> None:
        self._line.allow(_START_SECONDS)
        try:
            is_ready = isinstance(self._receive_reply(), Ready)
        except (_TooSlow, _HungUp, ValueError):
            is_ready = False
        if not is_ready:
            self.kill()
            last_words = self._tail()
            self._release()
            log.error("no decode child starts: %s", last_words, extra={"action": "decode_child_not_started"})
            raise NoRoomError(f"the process for decoding does not start: {last_words.splitlines()[-1]}")
        self._is_clean = True

    def read(self, data: bytes, frame: InputSize, route: DecodeRoute) -> Raster:
        """Like `Decoder.read`, and whatever the file does to the child becomes an error of the file.

        Raises:
            ItemFailure: also `decode_timeout`, `out_of_memory`, `crashed`.
            MemoryError: this process has no room for the pixels now.
        """
        self._is_clean = False
        try:
            raster = self._read(data, frame, route)
        except _TooSlow:
            self.kill()
            detail = f"not decoded within {self._limits.seconds:g} s"
            raise ItemFailure(ErrorCode.DECODE_TIMEOUT, detail) from None
        except _HungUp:
            raise self._failure_of_death() from None
        except ValueError as error:
            log.error(
                "a decode child answered nonsense: %s", error, extra={"action": "decode_child_nonsense"}
            )
            self.kill()
            raise ItemFailure(ErrorCode.CRASHED, "the decoder's answer makes no sense") from None
        self._is_clean = True
        if isinstance(raster, ItemFailure):
            raise raster
        return raster

    def _read(self, data: bytes, frame: InputSize, route: DecodeRoute) -> Raster | ItemFailure:
        self._line.allow(self._limits.seconds)
        request = Request(
            file_bytes=len(data),
            route=route,
            frame=frame,
            cpu_seconds=self._limits.seconds + _CPU_MARGIN_SECONDS,
        )
        self._line.send(packed(request))
        self._line.send(data)
        reply = self._receive_reply()
        self._line.allow(self._limits.seconds)  # the pixels are there, and only have to be passed on
        match reply:
            case Failed():
                return ItemFailure(reply.code, reply.detail)
            case JpegRead():
                self._decoder.check_size(reply.width, reply.height, frame)
                return self._receive_jpeg(reply)
            case ImageRead():
                self._decoder.check_size(reply.width, reply.height, frame)
                return self._receive_image(reply)
        raise ValueError(f"{reply.kind} is no answer")

    def _receive_reply(self) -> Reply:
        return read_reply(self._line.receive(words_length(self._line.receive(LENGTH_BYTES))))

    def _receive_jpeg(self, reply: JpegRead) -> ScaledJpeg:
        pixels = np.empty(reply.shape, dtype=np.uint8)
        self._line.receive_into(pixels.reshape(-1).data)
        return ScaledJpeg(pixels, reply.eighths, reply.width, reply.height)

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
        """What the end of the process says of the file it was reading."""
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(_END_SECONDS)
        code = self._process.poll()
        self.kill()
        ending = _in_words(code)
        log.warning("a decode child %s: %s", ending, self._tail(), extra={"action": "decode_child_died"})
        if code == -signal.SIGXCPU:
            detail = f"more than {self._limits.seconds:g} s of computing"
            return ItemFailure(ErrorCode.DECODE_TIMEOUT, detail)
        if code == -signal.SIGKILL:  # by the kernel: we have not killed it yet
            return _TakenByKernel(ErrorCode.OUT_OF_MEMORY, "more memory than the machine has")
        if code == EXIT_OUT_OF_MEMORY:
            detail = f"more than {self._limits.memory_bytes} bytes of memory, or than the machine has"
            return ItemFailure(ErrorCode.OUT_OF_MEMORY, detail)
        return ItemFailure(ErrorCode.CRASHED, f"the decoder {ending} on this image")

    def _tail(self) -> str:
        """The last of what the process said; it is for the log, since it may quote the file."""
        with suppress(OSError, ValueError):
            end = self._last_words.seek(0, os.SEEK_END)
            self._last_words.seek(max(0, end - _LAST_WORDS_BYTES))
            return self._last_words.read().decode(errors="replace").strip() or "it said nothing"
        return "nothing is known"

    def kill(self) -> None:
        """End it now; again is harmless."""
        self._is_clean = False
        self._process.kill()
        self._process.wait()

    def close(self) -> None:
        """Kill it and free what it held here; not while another thread uses it."""
        self.kill()
        self._release()

    def _release(self) -> None:
        self._line.close()
        self._last_words.close()


class DecodeChildren:
    """As many children as threads want to use at a time; called by any thread."""

    def __init__(self, decoder: Decoder, limits: DecodeLimits) -> None:
        self._decoder = decoder
        self._limits = limits
        self._idle: list[DecodeChild] = []
        self._busy: set[DecodeChild] = set()
        self._have_ended = False
        self._lock = threading.Lock()

    def read(self, data: bytes, frame: InputSize, route: DecodeRoute) -> Raster:
        """Have a child read a file, see `DecodeChild.read`; another one if the kernel takes the first."""
        try:
            return self._read(data, frame, route)
        except _TakenByKernel:
            if self._have_ended:  # it was us
                raise
        return self._read(data, frame, route)

    def _read(self, data: bytes, frame: InputSize, route: DecodeRoute) -> Raster:
        child = self._take()
        try:
            return child.read(data, frame, route)
        finally:
            self._give_back(child)

    def _take(self) -> DecodeChild:
        child = self._pop_idle()
        while child is not None and not child.is_ready:  # it died of something else, no image did it
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

    def _give_back(self, child: DecodeChild) -> None:
        with self._lock:
            self._busy.discard(child)
            if child.is_ready:
                self._idle.append(child)
                return
        child.close()

    def close_idle(self) -> None:
        """End those that nobody uses now; others are started when they are wanted."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.close()

    def kill_all(self) -> None:
        """End all of them; what they were reading fails, with no meaning. Nobody wants another one."""
        self._have_ended = True
        with self._lock:
            busy = list(self._busy)
        for child in busy:
            child.kill()
        self.close_idle()


def _means_of_talking() -> tuple[IO[bytes], socket.socket, socket.socket]:
    """Where a child leaves its last words, our end of a socket, and its own."""
    try:
        with ExitStack() as stack:
            last_words = stack.enter_context(_scratch_file())
            ours, theirs = socket.socketpair()
            stack.pop_all()
    except OSError as error:  # too many open files
        raise NoRoomError(f"no process for decoding: {error.strerror}") from error
    return last_words, ours, theirs


def _scratch_file() -> IO[bytes]:
    """In memory where that can be: a container may have no place to write."""
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
