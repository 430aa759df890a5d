"""Decode children as they are: real processes that read what a worker sends, and what their deaths mean."""

from __future__ import annotations

import itertools
import json
import os
import re
import signal
import socket
import struct
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from subprocess import PIPE
from typing import Any
from unittest.mock import MagicMock, patch

import numpy as np
import pytest
from PIL import ExifTags, Image

from clipfleet.contract.jobs import DEMO_MODEL, DecodeRoute, ErrorCode, Exif, ItemError, Precision
from clipfleet_worker.decode import child_process
from clipfleet_worker.decode.child_process import DecodeChild, DecodeLimits, NoRoomError
from clipfleet_worker.decode.children import DecodeChildren
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.fit import fit
from clipfleet_worker.decode.line import Line
from clipfleet_worker.decode.rasters import Raster, ScaledJpeg, WholeImage
from clipfleet_worker.decode.step import DecodeStep
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.pixel_spec import InputSize, PixelSpec
from clipfleet_worker.settings import WorkerSettings
from tests.fuzz.images import avif_seeds, heif_seeds, image_seeds
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
MUTATED_FILES = 1000  # of each format that only children read
CODES_OF_DAMAGE = ("empty", "not_an_image", "format_refused", "too_many_pixels", "broken_image")
CODES_OF_A_CHILD = ("crashed", "decode_timeout", "out_of_memory")
LARGE = re.compile("million|MB|50,000|bomb|limit|scans|thousands|claim|10,000")  # names of hostile files


@pytest.fixture
def children() -> Iterator[DecodeChildren]:
    children = DecodeChildren(HostileDecoder(100_000_000), PATIENT)
    yield children
    children.kill_all()


@contextmanager
def running(decoder: Decoder, limits: DecodeLimits = PATIENT) -> Iterator[DecodeChild]:
    child = DecodeChild(decoder, limits)
    yield child
    child.close()


@pytest.fixture
def child() -> Iterator[DecodeChild]:
    with running(HostileDecoder(100_000_000)) as child:
        yield child


@pytest.fixture(scope="module")
def spec() -> PixelSpec:
    return load_model(DEMO_MODEL, Precision.FP32, "cpu").pixel_spec


Reader = Decoder | DecodeChild | DecodeChildren


def read(reader: Reader, data: bytes, route: DecodeRoute = FAST) -> Raster:
    return reader.read(data, INPUT_SIZE, route)


def failure(reader: Reader, data: bytes) -> ItemError:
    with pytest.raises(ItemFailure) as caught:
        read(reader, data)
    return caught.value.error


def end(reader: Reader, data: bytes) -> tuple[object, ...]:
    """An image's pixels, or why there are none."""
    try:
        raster = read(reader, data)
    except ItemFailure as failed:
        return failed.error.code, failed.error.detail
    if isinstance(raster, ScaledJpeg):
        return raster.width, raster.height, raster.pixels.tobytes()
    return *raster.image.size, raster.image.resize((64, 64)).convert("RGB").tobytes()


def is_gone(pid: int) -> bool:
    return not Path(f"/proc/{pid}").exists()


class TestPixels:
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # workers silence them, pytest brings them back
    def test_every_sort_of_file_has_the_same_pixels(self, children: DecodeChildren, spec: PixelSpec) -> None:
        """As in the process of the worker."""
        decoder, differing = Decoder(100_000_000), []
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

        raster = read(children, encoded(image, "PNG", compress_level=0), EXACT)

        assert isinstance(raster, WholeImage)
        assert raster.image.mode == image.mode
        assert raster.image.tobytes() == image.tobytes()

    @pytest.mark.parametrize("size", [(2101, 2201), (4203, 4099)])
    def test_a_jpeg_at_a_fraction_of_its_size_too(
        self, children: DecodeChildren, spec: PixelSpec, size: tuple[int, int]
    ) -> None:
        data, decoder = encoded(make_image(3, *size)), Decoder(100_000_000)

        outside, inside = (reader.read(data, spec.input_size, FAST) for reader in (children, decoder))

        assert isinstance(outside, ScaledJpeg)
        assert outside.eighths < 8
        assert np.array_equal(fit(outside, spec).pixels, fit(inside, spec).pixels)

    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    def test_hostile_and_mutated_files_come_to_the_same_end(self, children: DecodeChildren) -> None:
        """No child dies of those that are no bombs."""
        built = {name: hostile.build() for name, hostile in HOSTILE.items() if not LARGE.search(name)}
        files = {name: data for name, data in built.items() if len(data) < 100_000}
        assert len(files) > 80
        seeds, decoder = image_seeds(), Decoder(100_000_000)
        files |= {f"mutated {number}": mutated(seeds, number) for number in range(300)}
        read(children, JPEG)
        pids = [child.pid for child in children._idle]

        differing = [name for name, data in files.items() if end(children, data) != end(decoder, data)]

        assert differing == []
        assert [child.pid for child in children._idle] == pids

    @pytest.mark.figures
    @pytest.mark.filterwarnings("ignore::UserWarning:PIL")
    @pytest.mark.parametrize("seeds", [avif_seeds, heif_seeds], ids=["avif", "heif"])
    def test_damaged_files_of_video_codecs_are_images_or_codes(
        self, spec: PixelSpec, seeds: Callable[[], list[bytes]]
    ) -> None:
        """The process that has them decoded never reads one; `make fuzz` does the same with more."""
        settings, decoder = WorkerSettings(), Decoder(100_000_000)
        children = DecodeChildren(decoder, DecodeLimits(settings.decode_seconds, settings.decode_memory))
        step, found = DecodeStep(decoder, children), Counter[str]()
        for seed in range(MUTATED_FILES):
            try:
                found["image"] += step.decode(mutated(seeds(), seed), spec, FAST, Exif.APPLY).pixels.size > 0
            except ItemFailure as failed:
                found[failed.error.code] += 1
        step.close()

        print(f"\n{found.total()} files: {', '.join(f'{code} {n}' for code, n in found.most_common())}")
        assert found.total() == MUTATED_FILES
        assert found["image"] > MUTATED_FILES // 10
        assert set(found) <= {"image", *CODES_OF_DAMAGE, *CODES_OF_A_CHILD}

    @pytest.mark.parametrize("orientation", [1, 3, 6])
    def test_an_image_is_turned_as_in_the_process_of_the_worker(
        self, children: DecodeChildren, spec: PixelSpec, orientation: int
    ) -> None:
        exif = Image.Exif()
        exif[ExifTags.Base.Orientation] = orientation
        data, decoder = encoded(make_image(3, 2103, 2201), exif=exif), Decoder(100_000_000)

        for route in DecodeRoute:
            outside, inside = (
                fit(one.read(data, spec.input_size, route, Exif.APPLY), spec) for one in (children, decoder)
            )
            assert (outside.width, outside.height) == (inside.width, inside.height)
            assert np.array_equal(outside.pixels, inside.pixels)

    def test_what_is_too_large_is_refused_there(self) -> None:
        with running(Decoder(1000)) as child:
            assert failure(child, JPEG).code is ErrorCode.TOO_MANY_PIXELS


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
        with running(HostileDecoder(100_000_000), HASTY) as child:
            failed = failure(child, Deed.LOOP.mark(JPEG))

            assert failed == ItemError(ErrorCode.DECODE_TIMEOUT, "not decoded within 1 s")
            assert is_gone(child.pid)

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

    @contextmanager
    def liar(self, child: DecodeChild) -> Iterator[socket.socket]:
        """Where a test says what this child answers."""
        ours, theirs = socket.socketpair()
        child._line.close()
        child._line = Line(ours)
        with theirs:
            yield theirs

    @pytest.mark.parametrize("lie", LIES)
    def test_an_answer_without_sense_is_the_end_of_the_child(self, child: DecodeChild, lie: str) -> None:
        with self.liar(child) as theirs:
            theirs.sendall(LIES[lie])
            failed = failure(child, JPEG)

        assert failed == ItemError(ErrorCode.CRASHED, "the decoder sent an invalid answer")
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
    def test_a_size_beyond_the_limits_is_refused_at_once(self, child: DecodeChild, answer: bytes) -> None:
        with self.liar(child) as theirs:
            theirs.sendall(answer)
            assert failure(child, JPEG).code is ErrorCode.TOO_MANY_PIXELS
        assert not child.is_ready

    def test_an_answer_by_drops_has_an_end(self) -> None:
        with running(Decoder(1000), HASTY) as child, self.liar(child) as theirs:
            reading = InThread(lambda: failure(child, JPEG))
            theirs.send(struct.pack(">I", 4096))
            while not reading.is_done:
                theirs.send(b" ")
                reading._thread.join(0.2)

            assert reading.result().code is ErrorCode.DECODE_TIMEOUT


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
    def test_a_child_serves_many_images_and_the_next_follows_a_death(self, children: DecodeChildren) -> None:
        pids = []
        for data in (JPEG, JPEG, Deed.EXIT.mark(JPEG), JPEG, JPEG):
            with suppress(ItemFailure):
                read(children, data)
            pids.append([child.pid for child in children._idle])

        assert pids[0] == pids[1] != []
        assert pids[2] == []
        assert pids[3] == pids[4] != pids[0]

    def test_a_time_out_for_all_new_sockets_does_not_count_for_its_own(self) -> None:
        """kombu sets one for a moment whenever it connects."""
        socket.setdefaulttimeout(5)
        try:
            child = DecodeChild(HostileDecoder(100_000_000), PATIENT)
        finally:
            socket.setdefaulttimeout(None)
        with closing(child):
            wait_until(lambda: _state(child.pid)[0] in "SZ", "it waits for an image, or has ended")
            assert read(child, JPEG)

    def test_one_that_died_while_idle_is_no_images_fault(self, children: DecodeChildren) -> None:
        read(children, JPEG)
        pid = children._idle[0].pid
        os.kill(pid, signal.SIGKILL)
        wait_until(lambda: "Z" in _state(pid), "it is dead")

        assert read(children, JPEG)

    @pytest.mark.parametrize("times", [1, 2])
    def test_one_that_the_kernel_takes_is_followed_by_another_once(
        self, children: DecodeChildren, monkeypatch: pytest.MonkeyPatch, times: int
    ) -> None:
        """Children are the first that it takes, whoever wants its memory: the image may be innocent."""
        read_in_child, taken = DecodeChild.read, []

        def unlucky(child: DecodeChild, *request: Any) -> Raster:
            if len(taken) < times:
                taken.append(child.pid)
                os.kill(child.pid, signal.SIGKILL)
            return read_in_child(child, *request)

        monkeypatch.setattr(DecodeChild, "read", unlucky)

        if times == 1:
            assert read(children, JPEG)
        else:
            assert failure(children, JPEG).code is ErrorCode.OUT_OF_MEMORY
        assert len(set(taken)) == times

    def test_several_threads_have_a_child_each(self, children: DecodeChildren) -> None:
        barrier = threading.Barrier(3)
        calls = [InThread(lambda: (barrier.wait(), read(children, JPEG))) for _ in range(3)]

        assert all(call.result() for call in calls)
        assert 1 <= len(children._idle) <= 3
        assert children._busy == set()

    def test_closing_ends_the_processes(self, children: DecodeChildren) -> None:
        read(children, JPEG)
        pid = children._idle[0].pid

        children.close_idle()

        assert is_gone(pid)
        assert read(children, JPEG)

    def test_killing_all_ends_who_reads(self, children: DecodeChildren) -> None:
        reading = InThread(lambda: failure(children, Deed.LOOP.mark(JPEG)))
        wait_until(lambda: children._busy, "the child is busy")

        children.kill_all()

        assert reading.result()
        assert children._busy == set()

    def test_what_the_decoder_prints_does_not_get_between(self, child: DecodeChild) -> None:
        assert read(child, Deed.SAY.mark(JPEG))
        assert read(child, JPEG)

    def test_who_complains_at_length_is_cut_off_not_killed(
        self, child: DecodeChild, caplog: pytest.LogCaptureFixture
    ) -> None:
        for _ in range(3):
            assert read(child, Deed.COMPLAIN.mark(JPEG))

        assert failure(child, Deed.RAISE.mark(JPEG)).code is ErrorCode.CRASHED
        assert "RuntimeError: the image says" in caplog.text
        assert "warns of this image" not in caplog.text

    def test_it_knows_no_secrets_and_holds_no_files_of_the_worker(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
    ) -> None:
        for name in ("AWS_SECRET_ACCESS_KEY", "CLIPFLEET_REDIS_URL", "HF_TOKEN", "DATABASE_PASSWORD"):
            monkeypatch.setenv(name, "s3cret")
        with (tmp_path / "secret").open("w") as secret:
            os.set_inheritable(secret.fileno(), True)
            with running(Decoder(1000)) as child:
                process = Path(f"/proc/{child.pid}")

                assert b"s3cret" not in (process / "environ").read_bytes()
                assert str(tmp_path) not in {str(link.readlink()) for link in (process / "fd").iterdir()}
                assert (process / "oom_score_adj").read_text().strip() == "1000"
                limits = (process / "limits").read_text()
                assert f"Max address space         {MEMORY_BYTES}" in limits
                assert "Max core file size        0 " in limits

    def test_it_dies_with_its_worker(self, tmp_path: Path) -> None:
        program = (
            "import sys, time\n"
            "from clipfleet_worker.decode.child_process import DecodeChild, DecodeLimits\n"
            "from tests.support.hostile_decoder import HostileDecoder\n"
            f"child = DecodeChild(HostileDecoder(1000), DecodeLimits(60, {MEMORY_BYTES}))\n"
            "print(child.pid, flush=True)\n"
            "sys.stdin.read()\n"
        )
        paths = {"PYTHONPATH": os.pathsep.join(sys.path)}
        command = [sys.executable, "-c", program]
        with subprocess.Popen(command, stdin=PIPE, stdout=PIPE, env=os.environ | paths) as worker:
            assert worker.stdout is not None
            pid = int(worker.stdout.readline())
            worker.kill()

            wait_until(lambda: is_gone(pid) or "Z" in _state(pid), "the child is gone")


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

    def test_a_program_that_the_machine_ends_at_its_start_is_nobodys_fault(self, tmp_path: Path) -> None:
        killed = tmp_path / "python"
        killed.write_text("#!/bin/sh\nkill -9 $$\n")
        killed.chmod(0o755)

        with patch("sys.executable", str(killed)), pytest.raises(NoRoomError, match="start: no output"):
            DecodeChild(Decoder(1000), PATIENT)

    @pytest.mark.parametrize(
        ("name", "error"),
        {
            "socket.socketpair": OSError(24, "Too many open files"),
            "subprocess.Popen": BlockingIOError(11, "Resource temporarily unavailable"),
        }.items(),
    )
    def test_a_machine_without_room_for_it_is_no_images_fault(self, name: str, error: OSError) -> None:
        with patch(name, side_effect=error), pytest.raises(NoRoomError, match=str(error.strerror)):
            DecodeChild(Decoder(1000), PATIENT)


@pytest.mark.parametrize(
    ("image_format", "mode", "megapixels", "options"),
    [
        ("JPEG", "CMYK", 14, {"progressive": True, "subsampling": 0}),
        ("WEBP", "RGBA", 9, {"lossless": True, "method": 0}),
        ("TIFF", "RGB", 23, {"compression": "tiff_lzw", "strip_size": 1 << 30}),
        ("PNG", "RGBA", 23, {"compress_level": 1}),
        ("AVIF", "RGBA", 12, {"speed": 10, "subsampling": "4:4:4"}),
        ("HEIF", "RGB", 24, {"enc_params": {"preset": "ultrafast"}}),
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

    with running(decoder, DecodeLimits(60, settings.decode_memory)) as child:
        assert read(child, encoded(image, image_format, **options), EXACT)
