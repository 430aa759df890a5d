"""Bytes to pixels: which route an image takes, at which scale, what it must equal, and every way to fail.

The reference is open_clip's own transform on Pillow. Hundreds of images and their embeddings are
judged by `tests/integration/test_fidelity.py`.
"""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any
from unittest.mock import MagicMock

import numpy as np
import pytest
import simplejpeg
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image, ImageOps

from clipfleet.contract.jobs import DecodeRoute, Exif
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.rasters import DecodedImage
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.pixel_spec import PixelSpec
from tests.support.hostile_files import deflated_tiff
from tests.support.image_files import AVIFS, HEIFS
from tests.support.images import encoded, gradient, make_image, photo, shapes

FAST, EXACT = DecodeRoute.FAST, DecodeRoute.EXACT
ROUTES = pytest.mark.parametrize("route", [FAST, EXACT], ids=lambda route: route.value)
ORIENTATION = 0x0112
COLOUR = (200, 30, 90)


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
    kept = config.fill_color, config.mean, config.std
    return PixelSpec(width, height, interpolation, resize_mode, *kept, exact)


MODEL, SMALL = spec_of(224), spec_of(64)


def decode(
    data: bytes,
    spec: PixelSpec = MODEL,
    route: DecodeRoute = FAST,
    max_pixels: int = 100_000_000,
    exif: Exif = Exif.IGNORE,
) -> DecodedImage:
    return Decoder(max_pixels).decode(data, spec, route, exif)


def reference(data: bytes, spec: PixelSpec) -> np.ndarray:
    """Open_clip on Pillow, from the same bytes."""
    return np.asarray(spec.exact(Image.open(io.BytesIO(data))))


def difference(data: bytes, spec: PixelSpec = MODEL, route: DecodeRoute = FAST) -> np.ndarray:
    return np.abs(decode(data, spec, route).pixels.astype(int) - reference(data, spec))


def is_the_reference(data: bytes, spec: PixelSpec = MODEL, route: DecodeRoute = FAST) -> bool:
    return np.array_equal(decode(data, spec, route).pixels, reference(data, spec))


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


def flat(width: int, height: int) -> bytes:
    return encoded(Image.new("RGB", (width, height), COLOUR), quality=95, subsampling=0)


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
    def test_what_is_decoded(self, spy: JpegSpy, size: tuple[int, int], model: int, eighths: int) -> None:
        decoded = decode(flat(*size), spec_of(model))

        width, height = (math.ceil(side * eighths / 8) for side in size)
        assert spy.shapes == [(height, width, 3)]
        assert (decoded.width, decoded.height) == size

    def test_both_sides_count_where_the_model_squashes(self, spy: JpegSpy) -> None:
        for height in (1000, 1480):
            decode(flat(4000, height), spec_of(resize_mode="squash"))

        assert spy.shapes == [(1000, 4000, 3), (740, 2000, 3)]

    @pytest.mark.parametrize(
        "size", [(848, 848), (849, 850), (851, 1277), (1021, 853), (847, 1699), (1691, 1702), (3381, 3390)]
    )
    def test_the_image_does_not_shift(self, spy: JpegSpy, size: tuple[int, int]) -> None:
        found = difference(encoded(gradient(7, *size), quality=95, subsampling=0), spec_of(128))

        assert spy.shapes[0][0] < size[1]
        assert found.max() <= 2
        assert found.mean() < 0.5

    def test_no_last_row_or_column_is_lost(self) -> None:
        """Sizes of which a factor, multiplied again, could come out one pixel short."""
        spec = spec_of(130)
        for size in range(858, 1118, 2):
            pixels = decode(flat(size, size + 1), spec).pixels

            assert pixels.shape == (130, 130, 3), size
            assert np.abs(pixels.astype(int) - COLOUR).max() <= 2, size


class TestFastPixels:
    @pytest.mark.parametrize("kind", [photo, gradient, shapes])
    @pytest.mark.parametrize(
        "size",
        [(640, 480), (481, 641), (224, 224), (225, 224), (300, 1201), (1201, 300), (224, 700), (100, 60)],
        ids=str,
    )
    def test_at_full_size_they_are_the_references(
        self, kind: Callable[..., Image.Image], size: tuple[int, int]
    ) -> None:
        found = difference(encoded(kind(3, *size), quality=90))

        assert found.max() <= 3
        assert np.quantile(found, 0.999) <= 1

    @pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
    @pytest.mark.parametrize(("mode", "size"), [("shortest", 96), ("squash", 96), ("squash", (90, 160))])
    def test_whatever_the_model_takes(self, spy: JpegSpy, interpolation: str, mode: str, size: Any) -> None:
        spec = spec_of(size, interpolation=interpolation, resize_mode=mode)

        found = difference(encoded(photo(5, 500, 333)), spec)

        assert len(spy.shapes) == 1
        assert found.shape == (spec.height, spec.width, 3)
        assert found.max() <= 3

    def test_an_image_of_the_models_size_is_left_as_it_is(self) -> None:
        data = encoded(photo(8, 224, 224))

        assert np.array_equal(decode(data).pixels, simplejpeg.decode_jpeg(data))

    @pytest.mark.parametrize("subsampling", ["4:4:4", "4:2:2", "4:2:0"])
    @pytest.mark.parametrize("progressive", [False, True])
    def test_every_sort_of_jpeg(self, subsampling: str, progressive: bool) -> None:
        data = encoded(photo(9, 333, 257), subsampling=subsampling, progressive=progressive)

        assert difference(data).max() <= 3

    def test_grey(self, spy: JpegSpy) -> None:
        found = difference(encoded(photo(9, 333, 257).convert("L")))

        assert spy.shapes == [(257, 333, 1)]
        assert found.shape == (224, 224, 3)
        assert found.max() <= 3


@ROUTES
class TestAnyShape:
    @pytest.mark.parametrize(
        "size",
        [(1, 1), (1, 2), (2, 1), (3, 2), (7, 7), (1, 64), (64, 1), (2, 300), (300, 2), (33, 1000)],
        ids=str,
    )
    def test_tiny_and_long_images_fill_the_model(self, route: DecodeRoute, size: tuple[int, int]) -> None:
        data = encoded(make_image(1, *size), quality=95)

        decoded = decode(data, SMALL, route)

        assert (decoded.pixels.shape, decoded.pixels.dtype) == ((64, 64, 3), np.uint8)
        assert decoded.pixels.flags.c_contiguous
        assert (decoded.width, decoded.height) == size
        assert difference(data, SMALL, route).max() <= 3

    def test_the_longest_side_fits_and_the_rest_is_filled_up(self, route: DecodeRoute) -> None:
        assert is_the_reference(encoded(make_image(1, 300, 100)), spec_of(64, resize_mode="longest"), route)

    def test_exif_rotation_is_ignored(self, route: DecodeRoute) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        image = make_image(2, 300, 200)
        turned = encoded(image, exif=exif)
        assert Image.open(io.BytesIO(turned)).getexif()[ORIENTATION] == 6

        decoded = decode(turned, SMALL, route)

        assert np.array_equal(decoded.pixels, decode(encoded(image), SMALL, route).pixels)
        assert (decoded.width, decoded.height) == (300, 200)


@ROUTES
class TestExifApplied:
    """What is seen is what `ImageOps.exif_transpose` makes of the file."""

    IMAGE = make_image(2, 301, 200)

    def turned(self, orientation: int, image_format: str, **options: object) -> tuple[bytes, Image.Image]:
        """A file, and the image that a viewer shows."""
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        image = self.IMAGE.copy()
        if image_format == "HEIF":
            image.info["exif"] = exif.tobytes()  # where pillow-heif looks for it
        else:
            options |= {"exif": exif}
        data = encoded(image, image_format, **options)
        return data, ImageOps.exif_transpose(Image.open(io.BytesIO(data)))

    @pytest.mark.parametrize("orientation", range(1, 9))
    @pytest.mark.parametrize(
        ("image_format", "options"),
        [
            ("JPEG", {}),
            ("PNG", {}),
            ("WEBP", {"lossless": True}),
            ("TIFF", {}),
            ("AVIF", {"speed": 10}),
            ("HEIF", {}),
        ],
    )
    def test_every_orientation(
        self, route: DecodeRoute, image_format: str, options: dict[str, object], orientation: int
    ) -> None:
        data, seen = self.turned(orientation, image_format, **options)

        decoded = decode(data, SMALL, route, exif=Exif.APPLY)

        is_scaled = image_format == "JPEG" and route is FAST
        assert np.abs(decoded.pixels - np.asarray(SMALL.exact(seen)).astype(int)).max() <= 3 * is_scaled
        assert (decoded.width, decoded.height) == seen.size
        assert seen.size == ((200, 301) if orientation >= 5 else (301, 200))
        is_same = np.array_equal(decoded.pixels, decode(data, SMALL, route).pixels)
        assert is_same is (orientation == 1 or image_format in ("TIFF", "HEIF"))  # upright in any case

    @pytest.mark.parametrize("orientation", range(2, 9))
    @pytest.mark.parametrize(
        "spec",
        [
            spec_of(130),
            spec_of((140, 160), resize_mode="squash"),
            spec_of((160, 140), resize_mode="squash"),
        ],
        ids=["shortest", "wide", "tall"],
    )
    def test_a_jpeg_at_a_fraction_of_its_size(
        self, route: DecodeRoute, spy: JpegSpy, spec: PixelSpec, orientation: int
    ) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = orientation
        data = encoded(gradient(7, 1701, 1093), quality=95, subsampling=0, exif=exif)

        decoded = decode(data, spec, route, exif=Exif.APPLY)

        seen = ImageOps.exif_transpose(Image.open(io.BytesIO(data)))
        found = np.abs(decoded.pixels - np.asarray(spec.exact(seen)).astype(int))
        assert found.max() <= (2 if route is FAST else 0)
        assert (decoded.width, decoded.height) == seen.size
        assert spy.shapes == ([(547, 851, 3)] if route is FAST else [])

    @pytest.mark.parametrize(
        "extra",
        [
            {"exif": b"Exif\0\0nothing"},
            {"exif": b"Exif\0\0MM\0*\xff\xff\xff\xff"},
            {"exif": b"Exif\0\0II*\0\x08\0\0\0\1\0\x12\1\3\0\1\0\0\0\x09\0\0\0"},
            {"xmp": b'<x tiff:Orientation="0">'},
        ],
        ids=["no tiff", "no directory", "orientation of 9", "xmp"],
    )
    def test_an_orientation_that_does_not_exist_is_none(
        self, route: DecodeRoute, extra: dict[str, bytes]
    ) -> None:
        data = encoded(self.IMAGE, **extra)

        decoded = decode(data, SMALL, route, exif=Exif.APPLY)

        assert np.array_equal(decoded.pixels, decode(encoded(self.IMAGE), SMALL, route).pixels)

    def test_the_limits_are_those_of_the_turned_image(self, route: DecodeRoute) -> None:
        exif = Image.Exif()
        exif[ORIENTATION] = 6
        data = encoded(Image.new("L", (60_000, 9)), exif=exif)
        spec = spec_of(2240, resize_mode="squash")

        assert decode(data, spec, route)
        assert failure(data, route, spec, exif=Exif.APPLY).startswith(
            "too_many_pixels: 9 x 60000 is too long"
        )


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
    **{name: encode(IMAGE) for name, encode in (AVIFS | HEIFS).items()},
}


@ROUTES
@pytest.mark.parametrize("name", OTHERS)
def test_other_images_are_the_references_to_the_last_bit(spy: JpegSpy, route: DecodeRoute, name: str) -> None:
    decoded = decode(OTHERS[name], SMALL, route)

    assert np.array_equal(decoded.pixels, reference(OTHERS[name], SMALL))
    assert (decoded.width, decoded.height) == IMAGE.size
    assert spy.shapes == []


def test_a_cmyk_jpeg_shows_its_colours() -> None:
    data = encoded(Image.new("RGB", (80, 80), (250, 10, 10)).convert("CMYK"), quality=95)

    red, green, blue = decode(data, SMALL).pixels[32, 32]

    assert red > 200 > 60 > max(green, blue)


@pytest.mark.parametrize("image_format", ["GIF", "PNG", "WEBP", "TIFF", "AVIF", "HEIF"])
def test_of_several_frames_the_first_counts(image_format: str) -> None:
    frames = [Image.new("RGB", (80, 70), colour) for colour in ((255, 0, 0), (0, 255, 0), (0, 0, 255))]
    lossless = {
        "WEBP": {"lossless": True}, "AVIF": {"quality": 100, "subsampling": "4:4:4"},
        "HEIF": {"quality": -1, "chroma": 444},
    }  # fmt: skip
    options: dict[str, Any] = lossless.get(image_format, {})
    data = encoded(frames[0], image_format, save_all=True, append_images=frames[1:], **options)
    assert Image.open(io.BytesIO(data)).n_frames == 3

    off = np.abs(decode(data, SMALL).pixels - np.full((64, 64, 3), (255, 0, 0)))
    assert off.max() <= (3 if image_format in ("AVIF", "HEIF") else 0)


class TestRoutes:
    DATA = encoded(photo(1, 300, 200))

    def test_exact_asks_only_pillow(self, spy: JpegSpy) -> None:
        assert is_the_reference(self.DATA, MODEL, EXACT)
        assert spy.shapes == []

    @pytest.mark.parametrize(
        "spec",
        [
            spec_of((96, 64)),
            spec_of(64, resize_mode="longest"),
            spec_of((64, 96), resize_mode="longest"),
            replace(SMALL, interpolation="lanczos"),
        ],
        ids=["oblong", "longest", "oblong longest", "lanczos"],
    )
    def test_what_the_fast_route_does_not_know_is_left_to_pillow(self, spy: JpegSpy, spec: PixelSpec) -> None:
        assert is_the_reference(self.DATA, spec)
        assert spy.shapes == []

    @pytest.mark.parametrize("name", ["decode_jpeg", "decode_jpeg_header"])
    def test_a_jpeg_that_only_pillow_reads(self, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
        monkeypatch.setattr(simplejpeg, name, MagicMock(side_effect=ValueError("Unsupported marker")))

        assert is_the_reference(self.DATA)

    def test_an_array_of_another_size_is_not_used(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(simplejpeg, "decode_jpeg", lambda *_, **__: np.zeros((99, 100, 3), np.uint8))

        assert is_the_reference(self.DATA)

    def test_many_threads_share_one_decoder(self) -> None:
        files = [encoded(photo(seed, 200 + seed, 150)) for seed in range(8)] * 4
        decoder = Decoder(max_pixels=1_000_000)

        with ThreadPoolExecutor(8) as pool:
            together = list(pool.map(lambda data: decoder.decode(data, SMALL, FAST).pixels, files))

        alone = [decoder.decode(data, SMALL, FAST).pixels for data in files]
        assert np.array_equal(together, alone)


def failure(data: bytes, route: DecodeRoute, spec: PixelSpec = SMALL, **options: Any) -> str:
    with pytest.raises(ItemFailure) as caught:
        decode(data, spec, route, **options)
    assert "\n" not in caught.value.error.detail
    return str(caught.value)


@ROUTES
class TestLimits:
    @pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
    def test_the_limit_itself_is_allowed(self, route: DecodeRoute, image_format: str) -> None:
        data = encoded(make_image(1, 40, 25), image_format)

        assert decode(data, SMALL, route, max_pixels=1000)
        refusal = failure(data, route, max_pixels=999)
        assert refusal == "too_many_pixels: 40 x 25 is more than 999 pixels"

    def test_the_tile_of_a_tiff_counts(self, route: DecodeRoute) -> None:
        data = deflated_tiff(10, 10, tile=64)

        assert decode(data, SMALL, route, max_pixels=64 * 64)
        refusal = failure(data, route, max_pixels=64 * 64 - 1)
        assert refusal.startswith("too_many_pixels: ") and "a tile of this TIFF" in refusal

    def test_a_strip_that_would_grow_into_gigabytes(self, route: DecodeRoute) -> None:
        refusal = failure(encoded(Image.new("L", (65_000, 1))), route, MODEL)

        assert refusal.startswith("too_many_pixels: ") and "strip" in refusal

    def test_a_strip_that_is_squashed_does_not_grow(self, route: DecodeRoute) -> None:
        data = encoded(Image.new("L", (65_000, 1), 77))

        pixels = decode(data, spec_of(64, resize_mode="squash"), route).pixels

        assert np.abs(pixels.astype(int) - 77).max() <= 1


def with_garbage(data: bytes) -> bytes:
    """The middle third is noise."""
    noise = np.random.default_rng(0).integers(0, 255, len(data) // 3, dtype=np.uint8).tobytes()
    return data[: len(noise)] + noise + data[2 * len(noise) :]


@ROUTES
class TestFailures:
    """More kinds are in test_hostile_images.py."""

    @pytest.mark.parametrize("name", [*OTHERS, "progressive jpeg"])
    def test_a_truncated_image(self, route: DecodeRoute, name: str) -> None:
        whole = OTHERS.get(name) or encoded(IMAGE, progressive=True)

        assert failure(whole[: len(whole) // 2], route).startswith("broken_image: ")

    @pytest.mark.parametrize(
        "data",
        [
            b"\xff\xd8\xff\xd9",
            b"II*\0\x08\0\0\0",
            encoded(IMAGE, "BMP")[:30],
            with_garbage(OTHERS["png"]),
            with_garbage(OTHERS["tiff"]),
        ],
        ids=lambda data: repr(data[:4]),
    )
    def test_a_damaged_image(self, route: DecodeRoute, data: bytes) -> None:
        refusal = failure(data, route)

        assert refusal.startswith("broken_image: ") and len(refusal) < 300

    @pytest.mark.parametrize("image_format", ["JPEG", "PNG"])
    def test_too_little_memory(
        self, route: DecodeRoute, image_format: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        for name in ("simplejpeg.decode_jpeg", "PIL.ImageFile.ImageFile.load"):
            monkeypatch.setattr(name, MagicMock(side_effect=MemoryError))

        refusal = failure(encoded(IMAGE, image_format), route)

        assert refusal.startswith("out_of_memory: ") and image_format in refusal

    def test_a_mode_that_cannot_be_resized(self, route: DecodeRoute) -> None:
        spec = replace(SMALL, exact=MagicMock(side_effect=ValueError("image has wrong mode")))

        refusal = failure(OTHERS["png"], route, spec)

        assert refusal.startswith("broken_image: ") and "mode RGB" in refusal


@pytest.mark.parametrize(
    ("message", "expected", "found"),
    [
        ("DefaultCPUAllocator: can't allocate memory: 9 bytes", ItemFailure, "not enough memory"),
        ("Expected 4D input", RuntimeError, "Expected 4D input"),
    ],
    ids=["memory", "bug"],
)
def test_a_failure_of_torch_is_the_images_only_for_lack_of_memory(
    monkeypatch: pytest.MonkeyPatch, message: str, expected: type[Exception], found: str
) -> None:
    monkeypatch.setattr(torch.nn.functional, "interpolate", MagicMock(side_effect=RuntimeError(message)))

    with pytest.raises(expected, match=found):
        decode(encoded(IMAGE), SMALL)


def test_what_a_fingerprint_covers_tells_preprocessings_apart() -> None:
    specs = [
        SMALL,
        spec_of((64, 32)),
        spec_of((32, 64)),
        spec_of(64, interpolation="bilinear"),
        spec_of(64, resize_mode="squash"),
        replace(SMALL, mean=(0.5, 0.5, 0.5)),
        replace(SMALL, std=(0.5, 0.5, 0.5)),
    ]
    assert len({repr(spec.facts()) for spec in specs}) == len(specs)
