"""Which JPEGs a GPU decodes, and that its pictures are those of the processor's routes.

The device is a double that works late. It repeats the colours of subsampled pictures, as nvJPEG does.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import pytest
import simplejpeg
import torch
from PIL import Image

from clipfleet.contract import DecodeRoute
from clipfleet_worker import device_jpegs
from clipfleet_worker.decode import Decoder, PixelSpec
from clipfleet_worker.device_jpegs import DeviceJpegs
from tests.support.fake_device import FakeDevice, FakeStream
from tests.support.pictures import encoded, gradient, photo, shapes, text
from tests.support.reference import difference_of, p999

MAX_PIXELS = 30_000_000


class Device:
    """See `JpegDevice`."""

    def __init__(self) -> None:
        fake = FakeDevice()
        self.pictures = FakeStream(fake)
        self.page_locked = fake.page_locked
        self.fails: Callable[[list[bytes]], Exception | None] = lambda files: None
        self.decoded: list[list[bytes]] = []
        self._alone = threading.Lock()

    @contextmanager
    def alone(self) -> Iterator[None]:
        with self._alone:
            yield
            assert not self.pictures._steps, "work is still under way"

    def decode_jpegs(self, files: list[torch.Tensor]) -> list[torch.Tensor]:
        assert self._alone.locked()
        data = [bytes(file.numpy()) for file in files]
        self.decoded.append(data)
        error = self.fails(data)
        if error is not None:
            raise error
        planes = [simplejpeg.decode_jpeg(one, "rgb", fastupsample=True) for one in data]
        return [torch.from_numpy(one).permute(2, 0, 1) for one in planes]


def spec_of(size: int, mode: str = "shortest") -> PixelSpec:
    return PixelSpec(size, size, "bicubic", mode, 0, (0.5,) * 3, (0.5,) * 3, lambda image: image)


def exact_of(data: bytes, size: int) -> np.ndarray:
    """By Pillow: open_clip's own transform."""
    from torchvision import transforms

    resize = transforms.Resize(size, transforms.InterpolationMode.BICUBIC)
    crop = transforms.CenterCrop(size)
    spec = PixelSpec(
        size, size, "bicubic", "shortest", 0, (0.5,) * 3, (0.5,) * 3,
        lambda image: crop(resize(image)).convert("RGB"),
    )  # fmt: skip
    return Decoder(MAX_PIXELS).decode(data, spec, DecodeRoute.EXACT).pixels


def make(device: Device) -> DeviceJpegs:
    return DeviceJpegs(device, Decoder(MAX_PIXELS))  # type: ignore[arg-type]  # a double


def jpeg(image: Image.Image, subsampling: str = "4:4:4", **options: object) -> bytes:
    return encoded(image, quality=85, subsampling=subsampling, **options)


class TestPictures:
    @pytest.mark.parametrize("size", [64, 224])
    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    def test_they_stay_within_the_bars_where_they_are_covered(self, size: int, subsampling: str) -> None:
        # Given pictures just large enough, the worst case
        times = {64: 16.1, 224: 5.02}[size] if subsampling != "4:4:4" else 1.3
        side = int(size * times)
        kinds = (photo, gradient, shapes, text)
        files = [jpeg(kind(n, side + 40 * n, side), subsampling) for n, kind in enumerate(kinds)]

        images = make(Device()).decode(files, spec_of(size), DecodeRoute.FAST)

        found = [image for image in images if image is not None]
        assert [(image.width, image.height) for image in found] == [(side + 40 * n, side) for n in range(4)]
        differences = [
            difference_of(image.pixels, exact_of(data, size))
            for image, data in zip(found, files, strict=True)
        ]
        # Bars of the fast route: at full size, and where the JPEG is decoded at a fraction.
        assert p999(differences) <= (1 if subsampling == "4:4:4" else 4)

    def test_grey_ones_too(self) -> None:
        data = jpeg(photo(0, 301, 260).convert("L"))

        (image,) = make(Device()).decode([data], spec_of(224), DecodeRoute.FAST)

        assert image is not None
        assert int(difference_of(image.pixels, exact_of(data, 224)).max()) <= 3

    def test_each_stands_at_the_place_of_its_file(self) -> None:
        files = [jpeg(photo(n, 300, 240 + n)) if n % 2 else b"GIF89a" for n in range(6)]

        images = make(Device()).decode(files, spec_of(224), DecodeRoute.FAST)

        assert [image and image.height for image in images] == [None, 241, None, 243, None, 245]


LARGE, SMALL = photo(1, 1200, 1150), photo(1, 300, 260)
NOT_COVERED = {
    "a progressive one": jpeg(LARGE, progressive=True),
    "one that breaks off": jpeg(LARGE)[:-2],
    "one with something behind it": jpeg(LARGE) + b"\0",
    "colours that would show": jpeg(SMALL, "4:2:0"),
    "inks": jpeg(LARGE.convert("CMYK")),
    "another format": encoded(LARGE, "PNG"),
    "few pixels": jpeg(photo(1, 15, 15)),
    "no header": b"\xff\xd8\xff\xc0\xff\xd9",
    "nothing": b"",
}


class TestWhatIsNotCovered:
    @pytest.mark.parametrize("what", NOT_COVERED)
    def test_it_never_meets_the_device(self, what: str) -> None:
        device = Device()

        images = make(device).decode([NOT_COVERED[what], jpeg(SMALL)], spec_of(224), DecodeRoute.FAST)

        assert [image is None for image in images] == [True, False]
        assert device.decoded == [[jpeg(SMALL)]]

    def test_nor_does_what_is_too_large(self) -> None:
        device = Device()
        strict = DeviceJpegs(device, Decoder(max_pixels=1000))  # type: ignore[arg-type]  # a double

        assert strict.decode([jpeg(SMALL)], spec_of(224), DecodeRoute.FAST) == [None]
        assert device.decoded == []

    def test_nor_does_what_would_be_made_too_much_smaller_for_its_kernel(self) -> None:
        strips = [jpeg(SMALL.resize((width, 40))) for width in (64 * 224, 64 * 224 + 8)]

        images = make(Device()).decode(strips, spec_of(224, "squash"), DecodeRoute.FAST)

        assert [image is None for image in images] == [False, True]

    def test_nor_anything_where_the_exact_route_is_asked_for(self) -> None:
        assert make(Device()).decode([jpeg(SMALL)], spec_of(224), DecodeRoute.EXACT) == [None]

    def test_nor_where_the_model_resizes_in_another_way(self) -> None:
        assert make(Device()).decode([jpeg(SMALL)], spec_of(224, "longest"), DecodeRoute.FAST) == [None]


class TestTheDevice:
    def test_what_it_fails_at_is_left_to_the_processor(self, caplog: pytest.LogCaptureFixture) -> None:
        device = Device()
        device.fails = lambda files: RuntimeError("Error while decoding JPEG images: nvJPEG 7")

        assert make(device).decode([jpeg(SMALL)] * 3, spec_of(224), DecodeRoute.FAST) == [None] * 3
        assert "3 JPEGs go to the processor" in caplog.text

    def test_no_more_pixels_are_there_at_a_time_than_it_has_memory_for(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(device_jpegs, "_MOST_PIXELS_AT_A_TIME", 2 * SMALL.width * SMALL.height)
        device = Device()

        images = make(device).decode([jpeg(SMALL)] * 5, spec_of(224), DecodeRoute.FAST)

        assert None not in images
        assert [len(files) for files in device.decoded] == [2, 2, 1]

    def test_many_threads_take_turns(self) -> None:
        device = Device()
        jpegs = make(device)
        files = [jpeg(photo(n, 260, 240)) for n in range(4)]
        results: list[list[object]] = [[] for _ in range(4)]

        def run(place: int) -> None:
            results[place] = list(jpegs.decode(files, spec_of(224), DecodeRoute.FAST))

        threads = [threading.Thread(target=run, args=(place,)) for place in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()

        assert [[image is None for image in images] for images in results] == [[False] * 4] * 4
