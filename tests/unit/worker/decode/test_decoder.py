"""Bytes to pixels: which route an image takes, at which scale, what it must equal, and every way to fail.

The reference is open_clip's own transform on Pillow. Hundreds of images and their embeddings are
judged by `tests/integration/test_fidelity.py`.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import simplejpeg
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image

from clipfleet.contract.jobs import DecodeRoute, ErrorCode, ItemError
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.rasters import DecodedImage
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.pixel_spec import PixelSpec
from tests.support.images import encoded, gradient, make_image, photo, shapes

FAST, EXACT = DecodeRoute.FAST, DecodeRoute.EXACT
ROUTES = pytest.mark.parametrize("route", [FAST, EXACT], ids=lambda route: route.value)
ORIENTATION = 0x0112


def spec_of(
    size: int | tuple[int, int] = 224, *, interpolation: str = "bicubic", resize_mode: str = "shortest"
) -> PixelSpec:
    """What a model of open_clip with this preprocessing wants; `size` is (height, width)."""
    config = PreprocessCfg(size=size, interpolation=interpolation, resize_mode=resize_mode)
    transform = image_transform_v2(config, is_train=False)
    names = [type(step).__name__ for step in transform.transforms]
    steps = transform.transforms[: next(n for n, name in enumerate(names) if "ToTensor" in name)]

    def exact(image: Image.Image) -> Image.Image:
        for step in steps:
            image = step(image)
        return image

    height, width = (size, size) if isinstance(size, int) else size
    return PixelSpec(
        width, height, interpolation, resize_mode, config.fill_color, config.mean, config.std, exact
    )


def reference(data: bytes, spec: PixelSpec) -> np.ndarray:
    """Open_clip on Pillow, from the same bytes."""
    return np.asarray(spec.exact(Image.open(io.BytesIO(data))))


def difference(found: DecodedImage, data: bytes, spec: PixelSpec) -> np.ndarray:
    return np.abs(found.pixels.astype(int) - reference(data, spec))


@pytest.fixture
def decoder() -> Decoder:
    return Decoder(max_pixels=100_000_000)


class JpegSpy:
    """Wraps simplejpeg's decoder; knows the shapes of what it gave."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self._decode = simplejpeg.decode_jpeg
        self.shapes: list[tuple[int, ...]] = []
        monkeypatch.setattr(simplejpeg, "decode_jpeg", self)

    def __call__(self, *arguments: Any, **options: Any) -> np.ndarray:
        pixels: np.ndarray = self._decode(*arguments, **options)
        self.shapes.append(pixels.shape)
        return pixels


@pytest.fixture
def spy(monkeypatch: pytest.MonkeyPatch) -> JpegSpy:
    return JpegSpy(monkeypatch)


def flat(width: int, height: int, colour: tuple[int, int, int] = (200, 30, 90)) -> bytes:
    return encoded(Image.new("RGB", (width, height), colour), quality=95, subsampling=0)


class TestScale:
    """A large JPEG is decoded at 1/8, 1/4 or 1/2: the smallest that leaves enough for the resize."""

    @pytest.mark.parametrize(
        ("size", "model", "eighths"),
        [
            ((640, 480), 224, 8),
            ((1478, 1478), 224, 8),  # 3.3 times the model at half size is 1479
            ((1479, 1479), 224, 4),
            ((1479, 4000), 224, 4),  # the shorter side counts
            ((2956, 3500), 224, 4),
            ((2957, 3500), 224, 2),
            ((4000, 3000), 224, 2),
            ((3380, 3380), 128, 1),
            ((2047, 2047), 64, 8),  # small models need 16 times their size
            ((2048, 2049), 64, 4),
        ],
    )
    def test_what_is_decoded(
        self, decoder: Decoder, spy: JpegSpy, size: tuple[int, int], model: int, eighths: int
    ) -> None:
        width, height = size

        decoded = decoder.decode(flat(width, height), spec_of(model), FAST)

        assert spy.shapes == [(math.ceil(height * eighths / 8), math.ceil(width * eighths / 8), 3)]
        assert (decoded.width, decoded.height) == size

    def test_both_sides_count_where_the_model_squashes(self, decoder: Decoder, spy: JpegSpy) -> None:
        decoder.decode(flat(4000, 1000), spec_of(resize_mode="squash"), FAST)
        decoder.decode(flat(4000, 1480), spec_of(resize_mode="squash"), FAST)

        assert spy.shapes == [(1000, 4000, 3), (740, 2000, 3)]

    @pytest.mark.parametrize(
        "size", [(848, 848), (849, 850), (851, 1277), (1021, 853), (847, 1699), (1691, 1702), (3381, 3390)]
    )
    def test_the_image_does_not_shift(self, decoder: Decoder, spy: JpegSpy, size: tuple[int, int]) -> None:
        spec = spec_of(128)
        data = encoded(gradient(7, *size), quality=95, subsampling=0)

        decoded = decoder.decode(data, spec, FAST)

        assert spy.shapes[0][0] < size[1]
        assert difference(decoded, data, spec).max() <= 2
        assert difference(decoded, data, spec).mean() < 0.5

    def test_no_last_row_or_column_is_lost(self, decoder: Decoder) -> None:
        """Sizes of which a factor, multiplied again, could come out one pixel short."""
        spec = spec_of(130)
        for size in range(858, 1118, 2):
            decoded = decoder.decode(flat(size, size + 1), spec, FAST)

            assert decoded.pixels.shape == (130, 130, 3), size
            assert np.abs(decoded.pixels.astype(int) - (200, 30, 90)).max() <= 2, size


class TestFastPixels:
    @pytest.mark.parametrize("kind", [photo, gradient, shapes])
    @pytest.mark.parametrize(
        "size",
        [(640, 480), (481, 641), (224, 224), (225, 224), (300, 1201), (1201, 300), (224, 700), (100, 60)],
        ids=str,
    )
    def test_at_full_size_they_are_the_references(
        self, decoder: Decoder, kind: Callable[..., Image.Image], size: tuple[int, int]
    ) -> None:
        data = encoded(kind(3, *size), quality=90)

        found = difference(decoder.decode(data, spec_of(), FAST), data, spec_of())

        assert found.max() <= 3
        assert np.quantile(found, 0.999) <= 1

    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
    @pytest.mark.parametrize(
        ("resize_mode", "size"), [("shortest", 96), ("squash", 96), ("squash", (90, 160))]
    )
    def test_whatever_the_model_takes(
        self,
        decoder: Decoder,
        spy: JpegSpy,
        interpolation: str,
        resize_mode: str,
        size: int | tuple[int, int],
    ) -> None:
        spec = spec_of(size, interpolation=interpolation, resize_mode=resize_mode)
        data = encoded(photo(5, 500, 333))

        decoded = decoder.decode(data, spec, FAST)

        assert len(spy.shapes) == 1
        assert decoded.pixels.shape == (spec.height, spec.width, 3)
        assert difference(decoded, data, spec).max() <= 3

    def test_an_image_of_the_models_size_is_left_as_it_is(self, decoder: Decoder) -> None:
        data = encoded(photo(8, 224, 224))

        decoded = decoder.decode(data, spec_of(), FAST)

        assert np.array_equal(decoded.pixels, simplejpeg.decode_jpeg(data))

    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    @pytest.mark.parametrize("progressive", [False, True])
    def test_every_sort_of_jpeg(self, decoder: Decoder, subsampling: str, progressive: bool) -> None:
        data = encoded(photo(9, 333, 257), subsampling=subsampling, progressive=progressive)

        assert difference(decoder.decode(data, spec_of(), FAST), data, spec_of()).max() <= 3

    def test_grey(self, decoder: Decoder, spy: JpegSpy) -> None:
        data = encoded(photo(9, 333, 257).convert("L"))

        decoded = decoder.decode(data, spec_of(), FAST)

        assert spy.shapes == [(257, 333, 1)]
        assert decoded.pixels.shape == (224, 224, 3)
        assert difference(decoded, data, spec_of()).max() <= 3


@ROUTES
class TestAnyShape:
    @pytest.mark.parametrize(
        "size",
        [(1, 1), (1, 2), (2, 1), (3, 2), (7, 7), (1, 64), (64, 1), (2, 300), (300, 2), (33, 1000)],
        ids=str,
    )
    def test_tiny_and_long_images_fill_the_model(
        self, decoder: Decoder, route: DecodeRoute, size: tuple[int, int]
    ) -> None:
        spec = spec_of(64)
        data = encoded(make_image(1, *size), quality=95)

        decoded = decoder.decode(data, spec, route)

        assert decoded.pixels.shape == (64, 64, 3)
        assert decoded.pixels.dtype == np.uint8
        assert decoded.pixels.flags.c_contiguous
        assert (decoded.width, decoded.height) == size
        assert difference(decoded, data, spec).max() <= 3

    def test_the_longest_side_fits_and_the_rest_is_filled_up(
        self, decoder: Decoder, route: DecodeRoute
    ) -> None:
        spec = spec_of(64, resize_mode="longest")
        data = encoded(make_image(1, 300, 100))

        assert np.array_equal(decoder.decode(data, spec, route).pixels, reference(data, spec))

    def test_exif_rotation_is_ignored(self, decoder: Decoder, route: DecodeRoute) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        image = make_image(2, 300, 200)
        turned, straight = encoded(image, exif=exif), encoded(image)
        assert Image.open(io.BytesIO(turned)).getexif()[ORIENTATION] == 6

        decoded = decoder.decode(turned, spec_of(64), route)

        assert np.array_equal(decoded.pixels, decoder.decode(straight, spec_of(64), route).pixels)
        assert (decoded.width, decoded.height) == (300, 200)


def palette(image: Image.Image, **options: Any) -> bytes:
    return encoded(image.convert("P", palette=Image.Palette.ADAPTIVE, colors=16), "PNG", **options)


def with_alpha(image: Image.Image) -> Image.Image:
    alpha = Image.linear_gradient("L").resize(image.size)
    image = image.copy()
    image.putalpha(alpha)
    return image


def sixteen_bits(image: Image.Image) -> bytes:
    grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
    return encoded(Image.fromarray(grey), "PNG")


IMAGE = photo(11, 150, 117)
OTHERS: dict[str, bytes] = {
    "grey png": encoded(IMAGE.convert("L"), "PNG"),
    "black and white png": encoded(IMAGE.convert("1"), "PNG"),
    "grey png with alpha": encoded(with_alpha(IMAGE).convert("LA"), "PNG"),
    "png": encoded(IMAGE, "PNG"),
    "png with alpha": encoded(with_alpha(IMAGE), "PNG"),
    "palette png": palette(IMAGE),
    "palette png, one colour transparent": palette(IMAGE, transparency=3),
    "palette png, degrees of transparency": palette(IMAGE, transparency=bytes(range(0, 256, 16))),
    "16 bit png": sixteen_bits(IMAGE),
    "lossy webp": encoded(IMAGE, "WEBP"),
    "lossless webp with alpha": encoded(with_alpha(IMAGE), "WEBP", lossless=True),
    "gif": encoded(IMAGE, "GIF"),
    "bmp": encoded(IMAGE, "BMP"),
    "tiff": encoded(IMAGE, "TIFF", compression="tiff_lzw"),
    "cmyk tiff": encoded(IMAGE.convert("CMYK"), "TIFF"),
    "cmyk jpeg": encoded(IMAGE.convert("CMYK"), "JPEG"),
}


@ROUTES
@pytest.mark.parametrize("name", OTHERS)
def test_other_images_are_the_references_to_the_last_bit(
    decoder: Decoder, spy: JpegSpy, route: DecodeRoute, name: str
) -> None:
    decoded = decoder.decode(OTHERS[name], spec_of(64), route)

    assert np.array_equal(decoded.pixels, reference(OTHERS[name], spec_of(64)))
    assert (decoded.width, decoded.height) == IMAGE.size
    assert spy.shapes == []


def test_a_cmyk_jpeg_shows_its_colours(decoder: Decoder) -> None:
    data = encoded(Image.new("RGB", (80, 80), (250, 10, 10)).convert("CMYK"), quality=95)

    red, green, blue = decoder.decode(data, spec_of(64), FAST).pixels[32, 32]

    assert red > 200 > 60 > max(green, blue)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF"])
def test_of_several_frames_the_first_counts(decoder: Decoder, image_format: str) -> None:
    frames = [Image.new("RGB", (80, 70), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    options = {"lossless": True} if image_format == "WEBP" else {}
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3

    decoded = decoder.decode(data, spec_of(64), FAST)

    assert np.array_equal(decoded.pixels, np.full((64, 64, 3), (255, 0, 0)))


class TestRoutes:
    def test_exact_asks_only_pillow(self, decoder: Decoder, spy: JpegSpy) -> None:
        data = encoded(photo(1, 300, 200))

        decoded = decoder.decode(data, spec_of(), EXACT)

        assert spy.shapes == []
        assert np.array_equal(decoded.pixels, reference(data, spec_of()))

    @pytest.mark.parametrize(
        "spec",
        [
            spec_of((96, 64)),
            spec_of(64, resize_mode="longest"),
            spec_of((64, 96), resize_mode="longest"),
            replace(spec_of(64), interpolation="lanczos"),
        ],
        ids=["oblong", "longest", "oblong longest", "lanczos"],
    )
    def test_what_the_fast_route_does_not_know_is_left_to_pillow(
        self, decoder: Decoder, spy: JpegSpy, spec: PixelSpec
    ) -> None:
        data = encoded(photo(1, 300, 200))

        decoded = decoder.decode(data, spec, FAST)

        assert spy.shapes == []
        assert np.array_equal(decoded.pixels, reference(data, spec))

    def test_a_jpeg_that_only_pillow_reads(self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch) -> None:
        def refuse(*_: object, **__: object) -> None:
            raise ValueError("Unsupported marker")

        data = encoded(photo(1, 300, 200))
        for name in ("decode_jpeg", "decode_jpeg_header"):
            monkeypatch.setattr(simplejpeg, name, refuse)

            assert np.array_equal(decoder.decode(data, spec_of(), FAST).pixels, reference(data, spec_of()))
            monkeypatch.undo()

    def test_an_array_of_another_size_than_asked_for_is_not_used(
        self, decoder: Decoder, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: np.zeros((99, 100, 3), np.uint8))
        data = encoded(photo(1, 300, 200))

        assert np.array_equal(decoder.decode(data, spec_of(), FAST).pixels, reference(data, spec_of()))

    def test_many_threads_share_one_decoder(self, decoder: Decoder) -> None:
        files = [encoded(photo(seed, 200 + seed, 150)) for seed in range(8)] * 4
        alone = [decoder.decode(data, spec_of(64), FAST).pixels for data in files]

        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda data: decoder.decode(data, spec_of(64), FAST).pixels, files))

        assert all(np.array_equal(one, other) for one, other in zip(alone, together, strict=True))


def failure(decoder: Decoder, data: bytes, route: DecodeRoute, spec: PixelSpec | None = None) -> ItemError:
    with pytest.raises(ItemFailure) as caught:
        decoder.decode(data, spec or spec_of(64), route)
    assert "\n" not in caught.value.error.detail
    return caught.value.error


def png_chunk(kind: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))


def png_of_a_header(width: int, height: int) -> bytes:
    """A PNG that says how large it is, and has next to nothing in it."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + png_chunk(b"IHDR", header) + png_chunk(b"IDAT", zlib.compress(b"\0" * 64))


def jpeg_that_says(width: int, height: int) -> bytes:
    """A JPEG of 16 x 16 pixels whose header says something else."""
    data = bytearray(flat(16, 16))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def tiff_in_one_tile(size: int, tile: int) -> bytes:
    """A grey square that lies in a larger tile, uncompressed."""
    tags = {256: size, 257: size, 258: 8, 259: 1, 262: 1, 277: 1, 322: tile, 323: tile, 325: tile * tile}
    tags[324] = 8 + 2 + 12 * (len(tags) + 1) + 4  # where the tile begins
    entries = b"".join(struct.pack("<HHII", tag, 4, 1, tags[tag]) for tag in sorted(tags))
    directory = struct.pack("<H", len(tags)) + entries + struct.pack("<I", 0)
    return b"II*\0" + struct.pack("<I", 8) + directory + bytes(tile * tile)


@ROUTES
class TestLimits:
    @pytest.fixture
    def _nothing_may_be_decoded(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def decode(*_: object, **__: object) -> None:
            raise AssertionError("decoded an image that is too large")

        monkeypatch.setattr(simplejpeg, "decode_jpeg", decode)
        monkeypatch.setattr(Image.Image, "load", decode)
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", decode)

    @pytest.mark.usefixtures("_nothing_may_be_decoded")
    @pytest.mark.parametrize(
        "data", [png_of_a_header(50_000, 50_000), jpeg_that_says(65_000, 65_000)], ids=["png", "jpeg"]
    )
    def test_pixels_are_counted_before_anything_is_decoded(
        self, decoder: Decoder, route: DecodeRoute, data: bytes
    ) -> None:
        failed = failure(decoder, data, route)

        assert failed.code is ErrorCode.TOO_MANY_PIXELS
        assert "100000000 pixels" in failed.detail

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
    def test_the_limit_itself_is_allowed(self, route: DecodeRoute, image_format: str) -> None:
        data = encoded(make_image(1, 40, 25), image_format)

        assert Decoder(max_pixels=1000).decode(data, spec_of(64), route)
        assert failure(Decoder(max_pixels=999), data, route).detail == "40 x 25 is more than 999 pixels"

    def test_the_tile_of_a_tiff_counts(self, route: DecodeRoute) -> None:
        data = tiff_in_one_tile(10, 64)

        assert Decoder(max_pixels=64 * 64).decode(data, spec_of(64), route)
        failed = failure(Decoder(max_pixels=64 * 64 - 1), data, route)
        assert failed.code is ErrorCode.TOO_MANY_PIXELS
        assert "a tile of this TIFF" in failed.detail

    def test_a_strip_that_would_grow_into_gigabytes(self, decoder: Decoder, route: DecodeRoute) -> None:
        failed = failure(decoder, encoded(Image.new("L", (65_000, 1))), route, spec_of(224))

        assert failed.code is ErrorCode.TOO_MANY_PIXELS
        assert "strip" in failed.detail

    def test_a_strip_that_is_squashed_does_not_grow(self, decoder: Decoder, route: DecodeRoute) -> None:
        data = encoded(Image.new("L", (65_000, 1), 77))

        decoded = decoder.decode(data, spec_of(64, resize_mode="squash"), route)

        assert np.abs(decoded.pixels.astype(int) - 77).max() <= 1

    @pytest.mark.parametrize(("width", "height"), [(0, 7), (7, 0)])
    def test_no_pixels_at_all(self, decoder: Decoder, route: DecodeRoute, width: int, height: int) -> None:
        assert failure(decoder, png_of_a_header(width, height), route).code is ErrorCode.BROKEN_IMAGE


def cut(data: bytes, share: float = 0.5) -> bytes:
    return data[: int(len(data) * share)]


def with_garbage(data: bytes) -> bytes:
    """The middle third is noise."""
    noise = np.random.default_rng(0).integers(0, 255, len(data) // 3, dtype=np.uint8).tobytes()
    return data[: len(noise)] + noise + data[2 * len(noise) :]


@ROUTES
class TestFailures:
    @pytest.mark.parametrize(
        ("data", "code"),
        [
            (b"", ErrorCode.EMPTY),
            (b"<!DOCTYPE html><html><body>404</body></html>", ErrorCode.NOT_AN_IMAGE),
            (b"\0" * 500, ErrorCode.NOT_AN_IMAGE),
            (encoded(IMAGE, "ICO"), ErrorCode.FORMAT_REFUSED),
        ],
        ids=["empty", "html", "zeros", "ico"],
    )
    def test_what_is_no_image_that_is_read(
        self, decoder: Decoder, route: DecodeRoute, data: bytes, code: ErrorCode
    ) -> None:
        assert failure(decoder, data, route).code is code

    @pytest.mark.parametrize("name", [*OTHERS, "jpeg", "progressive jpeg"])
    def test_a_truncated_image(self, decoder: Decoder, route: DecodeRoute, name: str) -> None:
        jpegs = {"jpeg": encoded(IMAGE), "progressive jpeg": encoded(IMAGE, progressive=True)}
        whole = (OTHERS | jpegs)[name]
        decoder.decode(whole, spec_of(64), route)

        assert failure(decoder, cut(whole), route).code is ErrorCode.BROKEN_IMAGE

    @pytest.mark.parametrize(
        "data",
        [
            b"\xff\xd8",
            b"\xff\xd8\xff\xe0",
            b"\xff\xd8\xff\xd9",
            b"\x89PNG\r\n\x1a\n",
            b"GIF89a",
            b"RIFF\x10\0\0\0WEBP",
            b"II*\0\x08\0\0\0",
            encoded(IMAGE, "BMP")[:30],
            with_garbage(encoded(IMAGE, "PNG")),
            with_garbage(encoded(IMAGE, "TIFF", compression="tiff_lzw")),
        ],
        ids=lambda data: repr(data[:4]),
    )
    def test_a_damaged_image(self, decoder: Decoder, route: DecodeRoute, data: bytes) -> None:
        failed = failure(decoder, data, route)

        assert failed.code is ErrorCode.BROKEN_IMAGE
        assert len(failed.detail) < 300

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
    def test_too_little_memory_in_the_decoder(
        self, decoder: Decoder, route: DecodeRoute, image_format: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def exhausted(*_: object, **__: object) -> None:
            raise MemoryError

        monkeypatch.setattr(simplejpeg, "decode_jpeg", exhausted)
        monkeypatch.setattr("PIL.ImageFile.ImageFile.load", exhausted)

        failed = failure(decoder, encoded(IMAGE, image_format), route)

        assert failed.code is ErrorCode.OUT_OF_MEMORY
        assert image_format in failed.detail

    def test_a_mode_that_cannot_be_resized(self, decoder: Decoder, route: DecodeRoute) -> None:
        def refuse(_: Image.Image) -> Image.Image:
            raise ValueError("image has wrong mode")

        failed = failure(decoder, OTHERS["png"], route, replace(spec_of(64), exact=refuse))

        assert failed.code is ErrorCode.BROKEN_IMAGE
        assert "mode RGB" in failed.detail


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes", ItemFailure),
        ("Expected 4D input", RuntimeError),
    ],
    ids=["memory", "bug"],
)
def test_a_failure_of_torch_is_the_images_only_for_lack_of_memory(
    decoder: Decoder, monkeypatch: pytest.MonkeyPatch, message: str, expected: type[Exception]
) -> None:
    def interpolate(*_: object, **__: object) -> None:
        raise RuntimeError(message)

    monkeypatch.setattr(torch.nn.functional, "interpolate", interpolate)

    with pytest.raises(expected, match="not enough memory" if expected is ItemFailure else message):
        decoder.decode(encoded(IMAGE), spec_of(64), FAST)


def test_what_a_fingerprint_covers_tells_preprocessings_apart() -> None:
    specs = [
        spec_of(64),
        spec_of((64, 32)),
        spec_of((32, 64)),
        spec_of(64, interpolation="bilinear"),
        spec_of(64, resize_mode="squash"),
        replace(spec_of(64), mean=(0.5, 0.5, 0.5)),
        replace(spec_of(64), std=(0.5, 0.5, 0.5)),
    ]
    assert len({repr(spec.facts()) for spec in specs}) == len(specs)
