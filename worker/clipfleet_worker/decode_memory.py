"""How many bytes a decoder will have in memory at a time, told from the header.

The factors are those of Pillow 13; `tests/unit/test_hostile_images.py` holds bombs against them. The file
itself is not counted.
"""

from __future__ import annotations

from PIL import BmpImagePlugin, Image, TiffImagePlugin, WebPImagePlugin

_SMALL_MODES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_PILLOW_PIXEL_BYTES = 4  # of all other modes
_WITH_ALPHA = ("RGBA", "LA")

# Per pixel: libwebp's two canvases, a copy of one, and the picture.
WEBP_PIXEL_BYTES = 16
TIFF_TILE_PIXEL_BYTES = 4

_TIFF_STRIP_BYTES = 4  # per pixel: one strip may hold the whole picture
_RUN_LENGTH_BYTES = 2  # per pixel: Pillow's own decoder, twice
_TIFF_ORIENTATION = 274


def pillow_bytes(image: Image.Image) -> int:
    """What `load` and a resize of a picture take that was opened by Pillow."""
    held = _SMALL_MODES.get(image.mode, _PILLOW_PIXEL_BYTES)
    per_pixel = held
    if image.mode in _WITH_ALPHA:
        per_pixel += _PILLOW_PIXEL_BYTES  # a resize multiplies by it first
    if isinstance(image, WebPImagePlugin.WebPImageFile):
        per_pixel += WEBP_PIXEL_BYTES - _PILLOW_PIXEL_BYTES
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        is_turned = image.tag_v2.get(_TIFF_ORIENTATION, 1) != 1
        per_pixel += _TIFF_STRIP_BYTES + (held if is_turned else 0)
    elif is_run_length_bmp(image):
        per_pixel += _RUN_LENGTH_BYTES
    return image.width * image.height * per_pixel


def is_run_length_bmp(image: Image.Image) -> bool:
    """Whether Pillow decodes this in Python, pixel by pixel."""
    return isinstance(image, BmpImagePlugin.BmpImageFile) and any(tile[0] == "bmp_rle" for tile in image.tile)
