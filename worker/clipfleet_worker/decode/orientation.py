"""EXIF orientations, 1 to 8: 1 is upright, 5 to 8 have rows where others have columns.

The meaning is that of `PIL.ImageOps.exif_transpose`. Of an AVIF, Pillow reports the container's own rotation
as an orientation; a TIFF and a HEIF come upright from Pillow and pillow-heif, whatever the job says.
"""

from __future__ import annotations

import struct
from typing import TypeVar

import numpy as np
from PIL import ExifTags, Image

UPRIGHT = 1
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_FIRST_THAT_SWAPS = 5
_MIRRORED_LEFT_RIGHT, _MIRRORED_TOP_BOTTOM = (2, 3, 7, 6), (3, 4, 7, 8)  # after rows and columns were swapped

# What Pillow raises for damaged EXIF: then there is no orientation.
_DAMAGED = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    OverflowError,
    IndexError,
    KeyError,
    TypeError,
)

Side = TypeVar("Side", int, float)


def orientation_of(image: Image.Image) -> int:
    """The orientation by EXIF or XMP; 1 if there is none, or one that does not exist."""
    try:
        orientation = image.getexif().get(ExifTags.Base.Orientation)
    except _DAMAGED:
        return UPRIGHT
    return orientation if isinstance(orientation, int) and orientation in _TURNS else UPRIGHT


def swaps_sides(orientation: int) -> bool:
    """Whether width and height change places."""
    return orientation >= _FIRST_THAT_SWAPS


def upright(width: Side, height: Side, orientation: int) -> tuple[Side, Side]:
    """(width, height) after the image was turned; applied twice, it changes nothing."""
    return (height, width) if swaps_sides(orientation) else (width, height)


def turned(image: Image.Image, orientation: int) -> Image.Image:
    """The image upright; itself if it is."""
    return image if orientation == UPRIGHT else image.transpose(_TURNS[orientation])


def turned_array(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """The same for pixels (height, width, channels): a view."""
    if swaps_sides(orientation):
        pixels = pixels.swapaxes(0, 1)
    if orientation in _MIRRORED_TOP_BOTTOM:
        pixels = pixels[::-1]
    return pixels[:, ::-1] if orientation in _MIRRORED_LEFT_RIGHT else pixels
