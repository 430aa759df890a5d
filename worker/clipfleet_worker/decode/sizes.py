"""The sizes that an image has on its way to the model's: arithmetic alone, no pixels.

They are those of torchvision and Pillow, to the last rounding: else images would shift.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from clipfleet_worker.pixel_spec import InputSize

# A JPEG is decoded at n/8 of its size where that leaves this many times the model's size. At 3.3 photographs
# differ from the reference by at most 2 levels, print and saturated drawings by more; smaller margins break
# the bars of tests/integration/test_fidelity.py. Small models see every grey level and need more. For other n
# than 1, 2 and 4 libjpeg-turbo has no SIMD code: they are slower than decoding at full size.
_SCALED_MARGIN = 3.3
_SCALED_MARGIN_SMALL = 16.0
_SMALL_TARGET = 128
_SCALED_EIGHTHS = (1, 2, 4)
_FULL_SIZE = 8

_REMEMBERED_SIZES = 4096  # images of a data set often share theirs

_FAST_INTERPOLATIONS = ("bicubic", "bilinear")


def is_covered(frame: InputSize) -> bool:
    """Whether the fast route knows how open_clip resizes for this model."""
    if frame.interpolation not in _FAST_INTERPOLATIONS:
        return False
    # open_clip has a resize of its own for `shortest` with other than square targets.
    return frame.resize_mode == "squash" or (frame.resize_mode == "shortest" and frame.width == frame.height)


def resized_pixels(width: int, height: int, frame: InputSize) -> float:
    """How large an image becomes on the way to the model's size."""
    if frame.resize_mode == "shortest":
        growth = max(frame.width / width, frame.height / height)
        return width * growth * height * growth
    return frame.width * height if frame.resize_mode == "squash" else 0  # Pillow squashes the rows first


def pixels_of_passes(width: int, height: int, held: tuple[float, float], frame: InputSize) -> int:
    """Pixels of both passes of a resize: what the first makes of `held` (width, height), and the result."""
    factors = frame.width / width, frame.height / height
    if frame.resize_mode != "squash":
        factors = (max(factors) if frame.resize_mode == "shortest" else min(factors),) * 2
    across, down = round(width * factors[0]), round(height * factors[1])
    is_vertical_first = resizes_vertically_first(width, height, (across, down))
    first = held[0] * down if is_vertical_first else across * held[1]
    return int(first) + across * down


def resized_size(width: int, height: int, frame: InputSize) -> tuple[int, int]:
    """(width, height) after the resize and before the crop, by torchvision's own formula."""
    if frame.resize_mode == "squash":
        return frame.width, frame.height
    longer = int(frame.width * max(width, height) / min(width, height))
    return (frame.width, longer) if width <= height else (longer, frame.width)


def resizes_vertically_first(width: int, height: int, target: tuple[int, int]) -> bool:
    """Whether Pillow would resize this image vertically first: each pass rounds and clips, so it shows.

    Since 13.0 (src/libImaging/Resample.c, ImagingResampleInner); torch always begins horizontally.
    """
    fewer_rows, fewer_columns = height - target[1], width - target[0]
    return fewer_rows > max(0, 2 * fewer_columns)


@dataclass(frozen=True, slots=True)
class JpegSizes:
    """All of the above for a JPEG on the fast route."""

    eighths: int  # n of the scale n/8 at which it is decoded: the smallest that keeps enough for the resize
    rectangle: tuple[float, float]  # (width, height) of the image in what is decoded
    target: tuple[int, int]  # (width, height) after the resize
    is_vertical_first: bool
    resize_pixels: int  # see `pixels_of_passes`


@lru_cache(maxsize=_REMEMBERED_SIZES)
def jpeg_sizes(width: int, height: int, frame: InputSize) -> JpegSizes:
    """Of a JPEG of this size; `frame` must be covered."""
    target = resized_size(width, height, frame)
    margin = _SCALED_MARGIN_SMALL if min(frame.width, frame.height) < _SMALL_TARGET else _SCALED_MARGIN
    times = min(width / target[0], height / target[1])
    eighths = next((n for n in _SCALED_EIGHTHS if times * n / 8 >= margin), _FULL_SIZE)
    rectangle = width * eighths / 8, height * eighths / 8
    return JpegSizes(
        eighths,
        rectangle,
        target,
        resizes_vertically_first(width, height, target),
        pixels_of_passes(width, height, rectangle, frame),
    )
