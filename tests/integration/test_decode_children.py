"""Decode children as they are: real processes that read what a worker sends, and what their deaths mean."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
from PIL import Image

from clipfleet.contract.jobs import DEMO_MODEL, DecodeRoute, ErrorCode, Precision
from clipfleet_worker.decode import child_process
from clipfleet_worker.decode.child_process import DecodeChild, DecodeLimits, NoRoomError
from clipfleet_worker.decode.children import DecodeChildren
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.fit import fit
from clipfleet_worker.decode.line import Line
from clipfleet_worker.decode.rasters import Raster, ScaledJpeg, WholeImage
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.pixel_spec import InputSize
from clipfleet_worker.settings import WorkerSettings
from tests.fuzz.images import image_seeds
from tests.fuzz.mutations import mutated
from tests.support.doubles import InThread
from tests.support.hostile_decoder import Deed, HostileDecoder
from tests.support.hostile_files import HOSTILE
from tests.support.image_files import FILES
from tests.support.images import encoded, make_image, photo
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

FAST, EXACT = DecodeRoute.FAST, DecodeRoute.EXACT
INPUT_SIZE = InputSize(64, 64, "bicubic", "shortest")
MEMORY_BYTES = 1 << 30
PATIENT = DecodeLimits(60, MEMORY_BYTES)
HASTY = DecodeLimits(1, MEMORY_BYTES)
JPEG = encoded(make_image(1))
SIZES = ((97, 83), (640, 480))


@pytest.fixture
def children() -> Iterator[DecodeChildren]:
    children = DecodeChildren(HostileDecoder(100_000_000), PATIENT)
    yield children
    children.kill_all()


@pytest.fixture
def child() -> Iterator[DecodeChild]:
    child = DecodeChild(HostileDecoder(100_000_000), PATIENT)
    yield child
    child.close()


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model(DEMO_MODEL, Precision.FP32, "cpu")


def failure(reader: DecodeChild | DecodeChildren, data: bytes) -> Any:
    with pytest.raises(ItemFailure) as caught:
        reader.read(data, INPUT_SIZE, FAST)
    return caught.value.error


def end(reader: Decoder | DecodeChildren, data: bytes) -> tuple[object, ...]:
    """An image's pixels, or why there are none."""
    try:
        raster = reader.read(data, INPUT_SIZE, FAST)
    except ItemFailure as failed:
        return failed.error.code, failed.error.detail
    if isinstance(raster, ScaledJpeg):
        return raster.width, raster.height, raster.pixels.tobytes()
    return *raster.image.size, raster.image.resize((64, 64)).convert("RGB").tobytes()


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


class TestPixels:
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # workers silence them, pytest brings them back
    def test_every_sort_of_file_gives_the_same_pixels_as_in_the_process(
        self, children: DecodeChildren, demo: LoadedModel
    ) -> None:
        decoder, spec = Decoder(100_000_000), demo.pixel_spec
        differing = []
        for name, encode in FILES.items():
            for seed, size in enumerate(SIZES):
                data = encode(photo(seed, *size))
                for route in DecodeRoute:
                    outside = fit(children.read(data, spec.input_size, route), spec)
                    inside = decoder.decode(data, spec, route)
                    assert (outside.width, outside.height) == size
                    if not np.array_equal(inside.pixels, outside.pixels):
                        differing.append((name, size, route))

        assert differing == []

    @pytest.mark.parametrize("size", [(1, 1), (7, 3), (1, 300), (300, 1), (1500, 1500)])
    @pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
    def test_every_size_comes_whole(self, children: DecodeChildren, size: tuple[int, int], mode: str) -> None:
        bits = np.random.default_rng(0).integers(0, 256, (size[1], size[0]), dtype=np.uint8)
        image = Image.fromarray(bits)
        image = image.convert("RGB").convert(mode) if mode != "I;16" else image.convert(mode)

        raster = children.read(encoded(image, "PNG", compress_level=0), INPUT_SIZE, EXACT)

        assert isinstance(raster, WholeImage)
        assert raster.image.mode == image.mode
        assert raster.image.tobytes() == image.tobytes()

    @pytest.mark.parametrize("size", [(2101, 2201), (4203, 4099)])
    def test_a_jpeg_at_a_fraction_of_its_size_too(
        self, children: DecodeChildren, demo: LoadedModel, size: tuple[int, int]
    ) -> None:
        data, spec = encoded(make_image(3, *size)), demo.pixel_spec

        outside, inside = (
            reader.read(data, spec.input_size, FAST) for reader in (children, Decoder(100_000_000))
        )

        assert isinstance(outside, ScaledJpeg)
        assert outside.eighths < 8
        assert np.array_equal(fit(outside, spec).pixels, fit(inside, spec).pixels)

    def test_errors_of_files_are_those_of_the_decoder(self, child: DecodeChild) -> None:
        pid = child.pid
        for data in (b"", b"<html>", JPEG[:200], b"GIF89a", b"%PDF-1.7", encoded(make_image(2), "ICO")):
            with pytest.raises(ItemFailure) as caught:
                Decoder(100_000_000).decode(data, _spec(), FAST)
            assert failure(child, data) == caught.value.error
        assert child.read(JPEG, INPUT_SIZE, FAST)
        assert child.pid == pid

    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    def test_hostile_and_mutated_files_come_to_the_same_end(self, children: DecodeChildren) -> None:
        built = {name: hostile.build() for name, hostile in HOSTILE.items()}
        files = {name: data for name, data in built.items() if len(data) < 100_000}
        seeds = image_seeds()
        files |= {f"mutated {number}": mutated(seeds, number) for number in range(300)}
        decoder = Decoder(100_000_000)

        differing = [name for name, data in files.items() if end(children, data) != end(decoder, data)]

        assert differing == []

    def test_what_is_too_large_is_refused_there(self) -> None:
        child = DecodeChild(Decoder(1000), PATIENT)
        assert failure(child, JPEG).code is ErrorCode.TOO_MANY_PIXELS
        child.close()


def _spec() -> Any:
    class Spec:
        input_size = INPUT_SIZE

    return Spec()


class TestDeaths:
    @pytest.mark.parametrize(
        ("deed", "code", "detail"),
        [
            (Deed.EXIT, ErrorCode.CRASHED, "the decoder ended with exit code 3 on this image"),
            (Deed.SEGFAULT, ErrorCode.CRASHED, "the decoder was killed by SIGSEGV on this image"),
            (Deed.NO_MEMORY, ErrorCode.OUT_OF_MEMORY, f"more than {MEMORY_BYTES} bytes"),
            (Deed.HOARD, ErrorCode.OUT_OF_MEMORY, "than the machine has"),
        ],
    )
    def test_the_death_of_the_child_is_an_error_of_the_file(
        self, child: DecodeChild, deed: Deed, code: ErrorCode, detail: str
    ) -> None:
        failed = failure(child, deed.mark(JPEG))

        assert failed.code is code
        assert detail in failed.detail
        assert not child.is_ready
        assert is_gone(child.pid)

    def test_a_bug_names_the_image_but_quotes_nothing(
        self, child: DecodeChild, caplog: pytest.LogCaptureFixture
    ) -> None:
        failed = failure(child, Deed.RAISE.mark(JPEG))

        assert failed.code is ErrorCode.CRASHED
        assert "passwd" not in failed.detail
        assert "RuntimeError: the image says: /etc/passwd" in caplog.text

    def test_killed_by_the_kernel_for_want_of_memory(self, child: DecodeChild) -> None:
        reading = InThread(lambda: failure(child, Deed.LOOP.mark(JPEG)))
        os.kill(child.pid, signal.SIGKILL)

        assert reading.result().code is ErrorCode.OUT_OF_MEMORY

    def test_no_end(self) -> None:
        child = DecodeChild(HostileDecoder(100_000_000), HASTY)
        failed = failure(child, Deed.LOOP.mark(JPEG))

        assert failed.code is ErrorCode.DECODE_TIMEOUT
        assert failed.detail == "not decoded within 1 s"
        assert is_gone(child.pid)
        child.close()

    def test_more_computing_than_it_may_do(self, child: DecodeChild, monkeypatch: pytest.MonkeyPatch) -> None:
        # Given a worker that does not look at the clock: it is frozen, say
        monkeypatch.setattr(child_process, "_CPU_MARGIN_SECONDS", 1 - PATIENT.seconds)

        failed = failure(child, Deed.LOOP.mark(JPEG))

        assert failed.code is ErrorCode.DECODE_TIMEOUT
        assert "CPU time" in failed.detail


def _message(text: bytes) -> bytes:
    return struct.pack(">I", len(text)) + text


def _image(**words: object) -> bytes:
    honest = {"kind": "image", "width": 2, "height": 2, "mode": "L", "image_format": "PNG"}
    return _message(json.dumps(honest | words).encode()) + bytes(1000)


LIES = {
    "no message": bytes(100),
    "endless words": b"\xff\xff\xff\xff" + bytes(100),
    "no JSON": _message(b"Segmentation fault"),
    "no object": _message(b"[1]"),
    "a kind that is none": _message(b'{"kind": "pickle"}'),
    "ready again": _message(b'{"kind": "ready"}'),
    "a code that is none": _message(b'{"kind": "failed", "code": "owned", "detail": ""}'),
    "a scale that is none": _message(b'{"kind":"jpeg","width":8,"height":8,"eighths":800,"channels":3}'),
    "channels that are none": _message(b'{"kind":"jpeg","width":8,"height":8,"eighths":8,"channels":4096}'),
    "a mode that is none": _image(mode="F;64"),
    "no size": _image(width=-1),
    "a size that is no number": _image(width="2"),
    "more words than there are": _image(path="/etc/passwd"),
    "a palette of nonsense": _image(mode="P", palette_mode="RGB", palette_hex="zz"),
    "an endless palette": _image(mode="P", palette_mode="RGB", palette_hex="00" * 2000),
    "a palette for no colours": _image(palette_mode="RGB", palette_hex="00" * 2000),
    "a format with a long name": _image(image_format="x" * 5000),
}


class TestLies:
    """A child that an image has taken over says what it likes; the worker believes none of it."""

    def answer(self, child: DecodeChild, answer: bytes) -> Any:
        ours, theirs = socket.socketpair()
        theirs.sendall(answer)
        child._line.close()
        child._line = Line(ours)
        try:
            return failure(child, JPEG)
        finally:
            theirs.close()

    @pytest.mark.parametrize("lie", LIES)
    def test_an_answer_that_makes_no_sense_is_the_end_of_the_child(
        self, child: DecodeChild, lie: str
    ) -> None:
        failed = self.answer(child, LIES[lie])

        assert failed.code is ErrorCode.CRASHED
        assert failed.detail == "the decoder sent an invalid answer"
        assert is_gone(child.pid)

    @pytest.mark.parametrize(
        "answer",
        [
            _image(width=1 << 20, height=1 << 20),
            _image(width=1 << 60, height=1 << 60, mode="RGBA"),
            _message(b'{"kind":"jpeg","width":1000000,"height":1000000,"eighths":8,"channels":3}'),
            _image(width=1, height=99_999_999),  # a strip that would have gigabytes once it is resized
        ],
    )
    def test_a_size_beyond_the_limits_is_refused_before_anything_is_made_of_it(
        self, child: DecodeChild, answer: bytes
    ) -> None:
        assert self.answer(child, answer).code is ErrorCode.TOO_MANY_PIXELS
        assert not child.is_ready

    def test_an_answer_by_drops_has_an_end(self) -> None:
        child = DecodeChild(Decoder(1000), HASTY)
        ours, theirs = socket.socketpair()
        child._line.close()
        child._line = Line(ours)
        reading = InThread(lambda: failure(child, JPEG))
        theirs.send(struct.pack(">I", 4096))
        while not reading.is_done:
            theirs.send(b" ")
            reading._thread.join(0.2)

        assert reading.result().code is ErrorCode.DECODE_TIMEOUT
        child.close()
        theirs.close()


def test_a_worker_that_was_frozen_does_not_blame_the_child(monkeypatch: pytest.MonkeyPatch) -> None:
    # Given a clock by which a minute passes at every look
    minutes = itertools.count(0, 60)
    monkeypatch.setattr(time, "monotonic", lambda: next(minutes))
    ours, theirs = socket.socketpair()
    line = Line(ours)
    line.allow(1.0)
    answers = iter([[], [1]])  # it has an answer at the second look
    monkeypatch.setattr(line, "_poll", MagicMock(poll=lambda _: next(answers)))
    theirs.sendall(b"word")

    assert line.receive(4) == b"word"
    line.close()
    theirs.close()


class TestLife:
    def test_a_child_serves_many_images_and_the_next_one_follows_a_death(
        self, children: DecodeChildren
    ) -> None:
        pids = []
        for data in (JPEG, JPEG, Deed.EXIT.mark(JPEG), JPEG, JPEG):
            try:
                children.read(data, INPUT_SIZE, FAST)
            except ItemFailure as failed:
                assert failed.error.code is ErrorCode.CRASHED
            pids.append([child.pid for child in children._idle])

        assert pids[0] == pids[1] != []
        assert pids[2] == []
        assert pids[3] == pids[4] != pids[0]

    def test_a_time_out_that_is_set_for_all_new_sockets_does_not_count_for_its_own(self) -> None:
        """kombu sets one for a moment whenever it connects."""
        socket.setdefaulttimeout(5)
        try:
            child = DecodeChild(HostileDecoder(100_000_000), PATIENT)
        finally:
            socket.setdefaulttimeout(None)
        try:
            wait_until(lambda: _state(child.pid)[0] in "SZ", "it waits for an image, or has ended")
            assert child.read(JPEG, INPUT_SIZE, FAST)
        finally:
            child.close()

    def test_one_that_died_while_idle_is_no_images_fault(self, children: DecodeChildren) -> None:
        children.read(JPEG, INPUT_SIZE, FAST)
        pid = children._idle[0].pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "Z" in _state(pid), "it is dead")

        assert children.read(JPEG, INPUT_SIZE, FAST)

    @pytest.mark.parametrize("times", [1, 2])
    def test_one_that_the_kernel_takes_is_followed_by_another_once(
        self, children: DecodeChildren, monkeypatch: pytest.MonkeyPatch, times: int
    ) -> None:
        """Children are the first that it takes, whoever wants its memory: the image may be innocent."""
        read, taken = DecodeChild.read, []

        def unlucky(child: DecodeChild, data: bytes, input_size: InputSize, route: DecodeRoute) -> Raster:
            if len(taken) < times:
                taken.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)
            return read(child, data, input_size, route)

        monkeypatch.setattr(DecodeChild, "read", unlucky)

        if times == 1:
            assert children.read(JPEG, INPUT_SIZE, FAST)
        else:
            assert failure(children, JPEG).code is ErrorCode.OUT_OF_MEMORY
        assert len(set(taken)) == times

    def test_several_threads_have_a_child_each(self, children: DecodeChildren) -> None:
        barrier = threading.Barrier(3)

        def read() -> Raster:
            barrier.wait()
            return children.read(JPEG, INPUT_SIZE, FAST)

        rasters = [call.result() for call in [InThread(read) for _ in range(3)]]

        assert len(rasters) == 3
        assert 1 <= len(children._idle) <= 3
        assert children._busy == set()

    def test_closing_ends_the_processes(self, children: DecodeChildren) -> None:
        children.read(JPEG, INPUT_SIZE, FAST)
        pid = children._idle[0].pid

        children.close_idle()

        assert is_gone(pid)
        assert children.read(JPEG, INPUT_SIZE, FAST)

    def test_killing_all_ends_who_reads(self, children: DecodeChildren) -> None:
        reading = InThread(lambda: failure(children, Deed.LOOP.mark(JPEG)))
        wait_until(lambda: children._busy, "the child is busy")

        children.kill_all()

        assert reading.result()
        assert children._busy == set()

    def test_what_the_decoder_prints_does_not_get_between(self, child: DecodeChild) -> None:
        assert child.read(Deed.SAY.mark(JPEG), INPUT_SIZE, FAST)
        assert child.read(JPEG, INPUT_SIZE, FAST)

    def test_who_complains_at_length_is_cut_off_not_killed(
        self, child: DecodeChild, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(3):
            assert child.read(Deed.COMPLAIN.mark(JPEG), INPUT_SIZE, FAST)

        assert failure(child, Deed.RAISE.mark(JPEG)).code is ErrorCode.CRASHED
        assert "RuntimeError: the image says" in caplog.text
        assert "warns of this image" not in caplog.text

    def test_it_knows_no_secrets_and_holds_no_files_of_the_worker(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("AWS_SECRET_ACCESS_KEY", "CLIPFLEET_REDIS_URL", "HF_TOKEN", "DATABASE_PASSWORD"):
            monkeypatch.setenv(name, "s3cret")
        secret = (tmp_path / "secret").open("w")
        os.set_inheritable(secret.fileno(), True)
        child = DecodeChild(Decoder(1000), PATIENT)
        process = Path(f"/proc/{child.pid}")

        assert b"s3cret" not in (process / "environ").read_bytes()
        assert str(tmp_path) not in {str(link.readlink()) for link in (process / "fd").iterdir()}
        assert (process / "oom_score_adj").read_text().strip() == "1000"
        limits = (process / "limits").read_text()
        assert f"Max address space         {MEMORY_BYTES}" in limits
        assert "Max core file size        0 " in limits
        child.close()
        secret.close()

    def test_it_dies_with_its_worker(self, tmp_path: Path) -> None:
        program = (
            "import sys, time\n"
            "from clipfleet_worker.decode.child_process import DecodeChild, DecodeLimits\n"
            "from tests.support.hostile_decoder import HostileDecoder\n"
            f"child = DecodeChild(HostileDecoder(1000), DecodeLimits(60, {MEMORY_BYTES}))\n"
            "print(child.pid, flush=True)\n"
            "sys.stdin.read()\n"
        )
        worker = subprocess.Popen(
            [sys.executable, "-c", program],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)},
        )
        assert worker.stdin is not None
        assert worker.stdout is not None
        pid = int(worker.stdout.readline())
        worker.kill()
        worker.wait()

        wait_until(lambda: is_gone(pid) or "Z" in _state(pid), "the child is gone")
        worker.stdin.close()
        worker.stdout.close()


def _state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except FileNotFoundError:
        return "gone"


class TestStart:
    def test_a_program_that_does_not_start_says_why(self) -> None:
        class OutOfReach(Decoder):
            """No module has it."""

        with pytest.raises(NoRoomError, match=r"does not start: AttributeError"):
            DecodeChild(OutOfReach(1000), PATIENT)

    def test_a_program_that_the_machine_ends_at_its_start_is_nobodys_fault(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        killed = tmp_path / "python"
        killed.write_text("#!/bin/sh\nkill -9 $$\n")
        killed.chmod(0o755)
        monkeypatch.setattr(sys, "executable", str(killed))

        with pytest.raises(NoRoomError, match="does not start: no output"):
            DecodeChild(Decoder(1000), PATIENT)

    @pytest.mark.parametrize(
        ("module", "name", "error"),
        [
            (socket, "socketpair", OSError(24, "Too many open files")),
            (subprocess, "Popen", BlockingIOError(11, "Resource temporarily unavailable")),
        ],
    )
    def test_a_machine_without_room_for_it_is_no_images_fault(
        self, monkeypatch: pytest.MonkeyPatch, module: Any, name: str, error: OSError
    ) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise error

        monkeypatch.setattr(module, name, refuse)

        with pytest.raises(NoRoomError, match=str(error.strerror)):
            DecodeChild(Decoder(1000), PATIENT)


@pytest.mark.parametrize(
    ("image_format", "mode", "megapixels", "options"),
    [
        ("JPEG", "CMYK", 14, {"progressive": True, "subsampling": 0}),
        ("WEBP", "RGBA", 9, {"lossless": True, "method": 0}),
        ("TIFF", "RGB", 23, {"compression": "tiff_lzw", "strip_size": 1 << 30}),
        ("PNG", "RGBA", 23, {"compress_level": 1}),
    ],
)
def test_the_memory_of_a_child_is_enough_for_the_largest_images(
    image_format: str, mode: str, megapixels: int, options: dict[str, Any]
) -> None:
    """Those that CLIPFLEET_MAX_DECODE_BYTES lets through."""
    settings = WorkerSettings()
    decoder = Decoder(settings.max_pixels, settings.max_decode_bytes)
    image = Image.linear_gradient("L").resize((megapixels * 1000, 1000)).convert(mode)
    if mode == "RGBA":
        image.putalpha(90)
    child = DecodeChild(decoder, DecodeLimits(60, settings.decode_memory))

    assert child.read(encoded(image, image_format, **options), INPUT_SIZE, EXACT)
    child.close()
