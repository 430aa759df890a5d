"""Plain pixels, before and after they are resized to the model's input."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from PIL import Image


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """An image at the model's size."""

    pixels: np.ndarray  # uint8 (height, width, 3) of the model, C-contiguous
    width: int  # of the original, after it was turned
    height: int


@dataclass(frozen=True, slots=True)
class ScaledJpeg:
    """What the fast route reads: a JPEG at a fraction of its size."""

    pixels: np.ndarray  # uint8 (height * eighths / 8, width * eighths / 8, 1 or 3), both rounded up
    eighths: int
    width: int  # of the original, as it is in the file
    height: int
    orientation: int = 1  # by which the pixels are still to be turned, see `decode.orientation`


@dataclass(frozen=True, slots=True)
class WholeImage:
    """What the exact route reads: all pixels, in their final orientation."""

    image: Image.Image  # loaded, in the mode that Pillow gives it
    image_format: str


Raster = ScaledJpeg | WholeImage
