"""The sizes of an image on its way to the model's input: arithmetic only, no pixels.

They equal those of torchvision and Pillow, to the last rounding: otherwise images would shift.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from clipfleet_worker.decode.orientation import swaps_sides, upright
from clipfleet_worker.pixel_spec import InputSize

# A JPEG is decoded at n/8 of its size if that leaves this many times the model's size. At 3.3 photographs
# differ from the reference by at most 2 levels, print and saturated drawings by more; smaller margins break
# the bars of tests/integration/test_fidelity.py. Small models see every grey level and need more. Except for
# n of 1, 2 and 4 libjpeg-turbo has no SIMD code: those are slower than decoding at full size.
_SCALED_MARGIN = 3.3
_SCALED_MARGIN_SMALL = 16.0
_SMALL_TARGET = 128
_SCALED_EIGHTHS = (1, 2, 4)
_FULL_SIZE = 8

_REMEMBERED_SIZES = 4096  # images of a data set often share theirs

_FAST_INTERPOLATIONS = ("bicubic", "bilinear")


def is_covered(input_size: InputSize) -> bool:
    """Whether the fast route resizes like open_clip for this model."""
    if input_size.interpolation not in _FAST_INTERPOLATIONS:
        return False
    # open_clip has a resize of its own for `shortest` with other than square targets.
    is_square = input_size.width == input_size.height
    return input_size.resize_mode == "squash" or (input_size.resize_mode == "shortest" and is_square)


def resized_pixels(width: int, height: int, input_size: InputSize) -> float:
    """Pixels of an image after the resize, before the crop."""
    if input_size.resize_mode == "shortest":
        growth = max(input_size.width / width, input_size.height / height)
        return width * growth * height * growth
    # Pillow squashes the rows first.
    return input_size.width * height if input_size.resize_mode == "squash" else 0


def pixels_of_passes(width: int, height: int, held: tuple[float, float], input_size: InputSize) -> int:
    """Pixels of both passes of a resize: what the first makes of `held` (width, height), and the result."""
    factors = input_size.width / width, input_size.height / height
    if input_size.resize_mode != "squash":
        factors = (max(factors) if input_size.resize_mode == "shortest" else min(factors),) * 2
    across, down = round(width * factors[0]), round(height * factors[1])
    is_vertical_first = resizes_vertically_first(width, height, (across, down))
    first = held[0] * down if is_vertical_first else across * held[1]
    return int(first) + across * down


def resized_size(width: int, height: int, input_size: InputSize) -> tuple[int, int]:
    """(width, height) after the resize and before the crop, by torchvision's own formula."""
    if input_size.resize_mode == "squash":
        return input_size.width, input_size.height
    longer = int(input_size.width * max(width, height) / min(width, height))
    return (input_size.width, longer) if width <= height else (longer, input_size.width)


def resizes_vertically_first(width: int, height: int, target: tuple[int, int]) -> bool:
    """Whether Pillow resizes this image vertically first: each pass rounds and clips, so the order matters.

    Since 13.0 (src/libImaging/Resample.c, ImagingResampleInner); torch always begins horizontally.
    """
    fewer_rows, fewer_columns = height - target[1], width - target[0]
    return fewer_rows > max(0, 2 * fewer_columns)


@dataclass(frozen=True, slots=True)
class JpegSizes:
    """The sizes of a JPEG on the fast route."""

    eighths: int  # n of the scale n/8 at which it is decoded: the smallest that keeps enough for the resize
    rectangle: tuple[float, float]  # (width, height) of the image in what is decoded
    target: tuple[int, int]  # (width, height) after the resize
    is_vertical_first: bool
    resize_pixels: int  # see `pixels_of_passes`


@lru_cache(maxsize=_REMEMBERED_SIZES)
def jpeg_sizes(width: int, height: int, input_size: InputSize, orientation: int = 1) -> JpegSizes:
    """The sizes for a JPEG of this width and height; `input_size` must be covered.

    They are of the pixels as in the file, which are turned after the resize; turning first gives the same.
    """
    width, height = upright(width, height, orientation)
    target = resized_size(width, height, input_size)
    is_small = min(input_size.width, input_size.height) < _SMALL_TARGET
    margin = _SCALED_MARGIN_SMALL if is_small else _SCALED_MARGIN
    times = min(width / target[0], height / target[1])
    eighths = next((n for n in _SCALED_EIGHTHS if times * n / 8 >= margin), _FULL_SIZE)
    rectangle = width * eighths / 8, height * eighths / 8
    return JpegSizes(
        eighths,
        upright(*rectangle, orientation),
        upright(*target, orientation),
        resizes_vertically_first(width, height, target) is not swaps_sides(orientation),
        pixels_of_passes(width, height, rectangle, input_size),
    )
