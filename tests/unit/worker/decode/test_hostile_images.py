"""Every kind of broken or hostile image through the decoder: an image or a code, in bounded memory.

The files are made by `tests/support/hostile_files.py`. The whole way, with a worker, is
`tests/e2e/test_hostile_images.py`.
"""

from __future__ import annotations

import multiprocessing
import re
import resource
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clipfleet.contract.jobs import DecodeRoute, ErrorCode, Exif
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.memory import WEBP_PIXEL_BYTES
from clipfleet_worker.decode.outline import (
    DEFAULT_MAX_DECODE_BYTES,
    MAX_PIECES,
    MAX_SCANS,
    jpeg_coefficient_bytes,
    webp_size,
)
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.pixel_spec import PixelSpec
from tests.fuzz.images import image_seeds
from tests.fuzz.mutations import mutated
from tests.support import hostile_files as hostile
from tests.support.hostile_files import HOSTILE, is_core
from tests.support.images import encoded, gradient, photo

SIZE = 64
FAST = DecodeRoute.FAST
MUTATED_FILES = 2000
DECODE_CODES = {"empty", "not_an_image", "format_refused", "too_many_pixels", "broken_image"}
BOMB_BYTES = 200_000_000
MANY_PIXELS = 10_000_000
RESIZE_BYTES = 200_000  # of the images here
# Threads and allocators reserve more than they use; what counts is that a bomb has no room for its pixels.
_SPARE_BYTES = 24 << 20


def _squeezed(image: Image.Image) -> Image.Image:
    """A stand-in for open_clip's transform, with its two steps: resize, then RGB."""
    return image.resize((SIZE, SIZE), Image.Resampling.BICUBIC).convert("RGB")


SPEC = PixelSpec(SIZE, SIZE, "bicubic", "squash", 0, (0.5,) * 3, (0.5,) * 3, _squeezed)


@dataclass(frozen=True)
class Outcome:
    """What a decoder in a process of its own made of a file."""

    code: ErrorCode | None
    detail: str
    is_core: bool
    peak_bytes: int  # beyond what the process had before


def _resident_bytes(field: str) -> int:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024


@cache
def _warm_decoder() -> Decoder:
    """Once in a process, before its memory is limited."""
    decoder = Decoder(max_pixels=100_000_000)
    for image_format in ("JPEG", "PNG", "WEBP", "AVIF", "HEIF"):
        for route in DecodeRoute:
            decoder.decode(encoded(photo(1, 300, 200), image_format), SPEC, route)
    return decoder


def _decode_here(name: str, route: DecodeRoute, exif: Exif) -> Outcome:
    """Runs in a child whose data may grow by what a bomb may cost, and no further."""
    decoder = _warm_decoder()
    data = HOSTILE[name].build()
    Path("/proc/self/clear_refs").write_text("5")
    before = _resident_bytes("VmHWM")
    limit = _resident_bytes("VmData") + BOMB_BYTES + _SPARE_BYTES
    resource.setrlimit(resource.RLIMIT_DATA, (limit, resource.RLIM_INFINITY))
    try:
        found = None, "", is_core(decoder.decode(data, SPEC, route, exif).pixels)
    except ItemFailure as failure:
        found = failure.error.code, failure.error.detail, False
    finally:
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    return Outcome(*found, _resident_bytes("VmHWM") - before)


@pytest.fixture(scope="module")
def child() -> Iterator[ProcessPoolExecutor]:
    """One process for all files: if one of them killed it, the pool would be broken."""
    with ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        yield pool


# The routes differ for JPEGs only, and an orientation is looked for in EXIF and in a TIFF's tags.
ROUTES = [(name, route) for name in HOSTILE for route in DecodeRoute if route is FAST or "jpeg" in name]
WITH_EXIF = [(name, route) for name, route in ROUTES if re.search("EXIF|orientation|tags", name)]


OUTCOMES: dict[tuple[str, DecodeRoute, Exif], Outcome] = {}


def _outcome(child: ProcessPoolExecutor, name: str, route: DecodeRoute, exif: Exif = Exif.IGNORE) -> Outcome:
    """Measured before, or now."""
    how = name, route, exif
    if how not in OUTCOMES:
        OUTCOMES[how] = child.submit(_decode_here, *how).result(timeout=60)
    return OUTCOMES[how]


@pytest.mark.parametrize(
    ("name", "route", "exif"),
    [(*pair, Exif.IGNORE) for pair in ROUTES] + [(*pair, Exif.APPLY) for pair in WITH_EXIF],
)
def test_each_kind_is_an_image_or_a_code(
    child: ProcessPoolExecutor, name: str, route: DecodeRoute, exif: Exif
) -> None:
    kind, outcome = HOSTILE[name], _outcome(child, name, route, exif)

    assert outcome.code == kind.code, outcome.detail
    assert outcome.is_core == (kind.code is None and kind.shows_core)
    assert outcome.peak_bytes < BOMB_BYTES


@pytest.mark.figures
def test_what_the_worst_bombs_cost(child: ProcessPoolExecutor) -> None:
    bombs = [pair for pair in ROUTES if "below the limit of memory" in pair[0]]
    costs = {(name, route): _outcome(child, name, route).peak_bytes for name, route in bombs}

    worst = max(costs.values()) / 1e6
    print(f"{len(HOSTILE)} kinds; the largest bombs that are decoded cost {worst:.0f} MB")
    for (name, route), cost in costs.items():
        print(f"{cost / 1e6:4.0f} MB  {name} ({route.value})")
    assert len(HOSTILE) >= 30


def _decode_mutated(seeds: range) -> Counter[str]:
    """Runs in a child: how many of these are an image, and which codes the others have."""
    decoder = _warm_decoder()
    found: Counter[str] = Counter()
    for seed in seeds:
        data = mutated(image_seeds(), seed)
        try:
            pixels = decoder.decode(data, SPEC, DecodeRoute.FAST).pixels
            assert pixels.shape == (SIZE, SIZE, 3)
            found["image"] += 1
        except ItemFailure as failure:
            assert failure.error.detail
            found[failure.error.code] += 1
    return found


@pytest.mark.figures
def test_mutated_files_are_images_or_codes(child: ProcessPoolExecutor) -> None:
    """`python -m tests.fuzz --runs 20000 image` takes as many as one likes, and both routes."""
    found: Counter[str] = Counter()
    for start in range(0, MUTATED_FILES, 500):
        found += child.submit(_decode_mutated, range(start, start + 500)).result(timeout=120)

    print(f"{found.total()} mutated files: {', '.join(f'{code} {n}' for code, n in found.most_common())}")
    assert found.total() == MUTATED_FILES
    assert found["image"] > 0
    assert set(found) <= {"image"} | DECODE_CODES


def require_limit(data: bytes, needed: int, route: DecodeRoute) -> None:
    """Such an image is decoded within so many bytes, and with one byte fewer refused."""
    assert Decoder(MANY_PIXELS, needed + RESIZE_BYTES).decode(data, SPEC, route)
    with pytest.raises(ItemFailure, match=r"^too_many_pixels: \d+ x \d+ would take"):
        Decoder(MANY_PIXELS, needed - 1).decode(data, SPEC, route)


class TestMemory:
    """Images just below the limit of memory are decoded, and the estimate holds for them."""

    @pytest.mark.parametrize(
        ("image_format", "mode", "pixel_bytes"),
        [
            ("PNG", "RGB", 4),
            ("PNG", "L", 1),
            ("PNG", "RGBA", 8),
            ("PNG", "I;16", 2),
            ("BMP", "RGB", 4),
            ("GIF", "L", 1),
            ("TIFF", "RGB", 8),
            ("WEBP", "RGB", 16),
            ("JPEG", "CMYK", 4),
            ("AVIF", "RGB", 12),
            ("AVIF", "RGBA", 16),
            ("AVIF", "L", 6),
            ("HEIF", "RGB", 8),
            ("HEIF", "RGBA", 14),
            ("HEIF", "I;16", 10),
        ],
    )
    def test_the_limit_is_met(self, image_format: str, mode: str, pixel_bytes: int) -> None:
        data = encoded(Image.new(mode, (1000, 500)), image_format)
        require_limit(data, 1000 * 500 * pixel_bytes, DecodeRoute.EXACT)

    @pytest.mark.parametrize(("subsampling", "pixel_bytes"), [(None, 3), ("4:4:4", 3 + 6), ("4:2:0", 3 + 3)])
    def test_of_a_jpeg_in_several_scans_the_coefficients_count(
        self, subsampling: str | None, pixel_bytes: int
    ) -> None:
        options = {"progressive": True, "subsampling": subsampling} if subsampling else {}
        require_limit(encoded(gradient(1, 1600, 800), **options), 1600 * 800 * pixel_bytes, FAST)

    @pytest.mark.parametrize("route", DecodeRoute, ids=lambda route: route.value)
    @pytest.mark.parametrize("size", [(60_000, 90), (90, 60_000)], ids=["wide", "tall"])
    def test_what_a_resize_makes_of_a_strip_counts(self, route: DecodeRoute, size: tuple[int, int]) -> None:
        spec = replace(SPEC, resize_mode="shortest")
        held = 4 if route is DecodeRoute.EXACT else 3
        needed = held * (size[0] * size[1] + SIZE * SIZE * 60_000 // 90)

        with pytest.raises(ItemFailure, match=r"^too_many_pixels: \d+ x \d+ would take"):
            Decoder(MANY_PIXELS, needed).decode(encoded(Image.new("RGB", size), "JPEG"), spec, route)

    def test_a_photograph_of_twelve_megapixels_passes_in_every_format(self) -> None:
        assert 4032 * 3024 * max(8, WEBP_PIXEL_BYTES) <= DEFAULT_MAX_DECODE_BYTES


class TestOutlines:
    @pytest.mark.parametrize("progressive", [False, True])
    def test_a_jpegs_coefficients_are_kept_if_it_is_progressive(self, progressive: bool) -> None:
        data = encoded(photo(1, 161, 83), progressive=progressive, subsampling="4:4:4")

        assert jpeg_coefficient_bytes(data) == (168 * 88 * 3 * 2 if progressive else 0)

    def test_few_scans_more_than_usual_are_read(self) -> None:
        many, usual = (hostile.jpeg_of_many_scans(64, 48, scans) for scans in (MAX_SCANS // 2, 0))
        pixels = [Decoder(10_000).decode(data, SPEC, FAST).pixels for data in (many, usual)]
        assert np.array_equal(*pixels)

    def test_scans_are_not_counted_behind_the_end_nor_within_a_segment(self) -> None:
        """What a telephone puts behind the end: a video, or more images."""
        whole = hostile.jpeg_of_many_scans(64, 48, 0)
        comment = hostile.segment(0xFE, b"\xff\xda" * 5000)
        assert jpeg_coefficient_bytes(whole + b"\xff\xda\0\2" * 10_000)
        assert jpeg_coefficient_bytes(whole[:-2] + comment + whole[-2:])

    @pytest.mark.parametrize(
        "data",
        [
            hostile.core_jpeg(before=hostile.segment(0xEF) * (MAX_PIECES - 100)),
            hostile.core_png(before=hostile.chunk(b"abCd") * (MAX_PIECES - 10)),
            hostile.core_gif(before=b"!\x01\x01x\0" * (MAX_PIECES // 2 - 10)),
        ],
        ids=["jpeg", "png", "gif"],
    )
    def test_as_many_pieces_as_are_allowed(self, data: bytes) -> None:
        assert is_core(Decoder(10_000).decode(data, SPEC, DecodeRoute.EXACT).pixels)

    @pytest.mark.parametrize("options", [{"lossless": True}, {"quality": 80}, {"save_all": True}])
    def test_the_size_of_a_webp(self, options: dict[str, object]) -> None:
        more = {"append_images": [photo(2, 401, 299)]} if "save_all" in options else {}

        assert webp_size(encoded(photo(1, 401, 299), "WEBP", **options, **more)) == (401, 299)
