"""The program of a decode child: reads files that a worker sends, and answers with plain pixels.

`python -m clipfleet_worker.decode.child WORKER_PID DECODER MAX_PIXELS MAX_DECODE_BYTES MEMORY_BYTES`; its
standard input is a socket to the worker. It exists to be killed, by the worker, by the kernel, or by the file
it reads. It has no secrets, writes no files and ends with its worker.
"""

from __future__ import annotations

import ctypes
import importlib
import math
import os
import resource
import signal
import socket
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.messages import (
    EXIT_OUT_OF_MEMORY,
    LENGTH_BYTES,
    Failed,
    ImageRead,
    JpegRead,
    Ready,
    Request,
    json_length,
    packed,
)
from clipfleet_worker.decode.rasters import Raster, ScaledJpeg, WholeImage
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.process.exec_child import die_with, reset_signals

_PR_SET_NO_NEW_PRIVS = 38


def main() -> None:
    """Serve until the worker hangs up."""
    worker_pid, decoder_name, max_pixels, max_decode_bytes, memory_bytes = sys.argv[1:]
    die_with(int(worker_pid), signal.SIGKILL)
    reset_signals()
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # too much output is cut off and does not kill the child
    worker = _take_standard_input()
    decoder = _decoder_class(decoder_name)(int(max_pixels), int(max_decode_bytes))
    _limit(int(memory_bytes))
    worker.sendall(packed(Ready()))
    while True:
        _serve(worker, decoder)


def _take_standard_input() -> socket.socket:
    """The socket, moved away from where a decoder might print."""
    worker = socket.socket(fileno=os.dup(0))
    worker.setblocking(True)  # kombu sets a default timeout in the worker while it connects
    nowhere = os.open(os.devnull, os.O_RDWR)
    for descriptor in (0, 1):
        os.dup2(nowhere, descriptor)
    return worker


def _decoder_class(name: str) -> type[Decoder]:
    module, _, attribute = name.partition(":")
    found: Any = importlib.import_module(module)
    for part in attribute.split("."):
        found = getattr(found, part)
    decoder_class: type[Decoder] = found
    return decoder_class


def _limit(memory_bytes: int) -> None:
    """Limit what this process may take, and make it the kernel's first choice when memory runs out."""
    for kind, limit in (
        (resource.RLIMIT_AS, memory_bytes),
        (resource.RLIMIT_CORE, 0),
        (resource.RLIMIT_FSIZE, 65536),  # of its standard error
    ):
        hard = resource.getrlimit(kind)[1]  # the machine's own limit may be lower, and cannot be raised
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
        with suppress(OSError):  # a container may forbid it
            Path("/proc/self/oom_score_adj").write_text("1000")


def _serve(worker: socket.socket, decoder: Decoder) -> None:
    length = json_length(bytes(_received(worker, LENGTH_BYTES)))
    _empty_standard_error()
    request = Request.model_validate_json(_received(worker, length))
    spent = math.ceil(time.process_time() + request.cpu_seconds)
    resource.setrlimit(resource.RLIMIT_CPU, (spent, resource.getrlimit(resource.RLIMIT_CPU)[1]))
    try:
        _answer(worker, decoder, request)
    except MemoryError:
        os._exit(EXIT_OUT_OF_MEMORY)  # frees whatever the decoder left behind


def _empty_standard_error() -> None:
    """Empty it before each file, so that the log quotes this file's output only."""
    with suppress(OSError):
        os.lseek(2, 0, os.SEEK_SET)
        os.ftruncate(2, 0)


def _answer(worker: socket.socket, decoder: Decoder, request: Request) -> None:
    data = bytes(_received(worker, request.file_bytes))
    try:
        raster = decoder.read(data, request.input_size, request.route, request.exif)
    except ItemFailure as failure:
        worker.sendall(packed(Failed(code=failure.error.code, detail=failure.error.detail)))
    else:
        del data
        _send(worker, raster)


def _send(worker: socket.socket, raster: Raster) -> None:
    if isinstance(raster, ScaledJpeg):
        pixels = np.ascontiguousarray(raster.pixels)
        channels: Any = pixels.shape[2]
        eighths: Any = raster.eighths
        orientation: Any = raster.orientation
        reply = JpegRead(
            width=raster.width,
            height=raster.height,
            eighths=eighths,
            channels=channels,
            orientation=orientation,
        )
        worker.sendall(packed(reply))
        worker.sendall(pixels.data)
        return
    read = _described(raster)
    worker.sendall(packed(read))
    for top in range(0, read.height, read.rows_per_strip):
        bottom = min(top + read.rows_per_strip, read.height)
        worker.sendall(raster.image.crop((0, top, read.width, bottom)).tobytes())


def _described(whole: WholeImage) -> ImageRead:
    image = whole.image
    mode: Any = image.mode
    palette_mode: Any = image.im.getpalettemode() if mode in ("P", "PA") else None
    palette = image.im.getpalette(palette_mode, palette_mode) if palette_mode else b""
    return ImageRead(
        width=image.width,
        height=image.height,
        mode=mode,
        image_format=whole.image_format,
        palette_mode=palette_mode,
        palette_hex=palette.hex(),
    )


def _received(worker: socket.socket, count: int) -> bytearray:
    buffer = bytearray(count)
    view = memoryview(buffer)
    while view:
        got = worker.recv_into(view)
        if not got:  # the worker has hung up
            sys.exit()
        view = view[got:]
    return buffer


if __name__ == "__main__":
    main()
