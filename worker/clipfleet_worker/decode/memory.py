"""How much memory an image takes to decode and to resize, computed from its header."""

from __future__ import annotations

from PIL import BmpImagePlugin, Image, TiffImagePlugin, WebPImagePlugin

# The factors are those of Pillow 13; tests/unit/worker/decode/test_hostile_images.py checks them with bombs.
# The file itself is not counted.
_SMALL_MODES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2, "I;16N": 2}
_PILLOW_PIXEL_BYTES = 4  # of all other modes
_WITH_ALPHA = ("RGBA", "LA")
# Per pixel: libwebp's two canvases, a copy of one, and the image.
WEBP_PIXEL_BYTES = 16
TIFF_TILE_PIXEL_BYTES = 4
_WEBP_CANVASES_BYTES = 8  # per pixel: they live as long as the image
_TIFF_STRIP_BYTES = 4  # per pixel: one strip may hold the whole image
_RUN_LENGTH_BYTES = 2  # per pixel: Pillow's own decoder, twice
_TIFF_ORIENTATION = 274
# Per pixel, beside the image: planes of video codecs, then the same as RGB(A); a HEIF has 24 megapixels.
_AVIF_BYTES = {"L": 5, "RGB": 8, "RGBA": 12}
_HEIF_BYTES = {"L": 3, "I;16": 4, "RGB": 4, "RGBA": 10}
_DEEP_HEIF_BYTES = 4  # more, of 10 or 12 bits


def pillow_bytes(image: Image.Image, kept_bytes: int, resize_pixels: int) -> int:
    """Peak memory of loading and then resizing an image that Pillow has opened.

    Args:
        image: opened, not loaded.
        kept_bytes: what its decoder keeps beside the pixels until the image is loaded.
        resize_pixels: of both passes of the resize.
    """
    pixels = image.width * image.height
    held = _SMALL_MODES.get(image.mode, _PILLOW_PIXEL_BYTES)
    multiplied = _PILLOW_PIXEL_BYTES if image.mode in _WITH_ALPHA else 0  # by alpha, before a resize
    loading, resizing = held, held + multiplied
    if isinstance(image, WebPImagePlugin.WebPImageFile):
        loading, resizing = WEBP_PIXEL_BYTES, resizing + _WEBP_CANVASES_BYTES
    elif isinstance(image, TiffImagePlugin.TiffImageFile):
        is_turned = image.tag_v2.get(_TIFF_ORIENTATION, 1) != 1
        loading += _TIFF_STRIP_BYTES + (held if is_turned else 0)
    elif is_run_length_bmp(image):
        loading += _RUN_LENGTH_BYTES
    elif image.format == "AVIF":
        loading += _AVIF_BYTES.get(image.mode, max(_AVIF_BYTES.values()))
    elif image.format == "HEIF":
        loading += _HEIF_BYTES.get(image.mode, max(_HEIF_BYTES.values()))
        loading += _DEEP_HEIF_BYTES if image.info.get("bit_depth", 8) > 8 else 0
    return max(pixels * loading + kept_bytes, pixels * resizing + resize_pixels * held)


def turning_bytes(image: Image.Image) -> int:
    """Peak memory of turning a loaded image: there are two of it for a moment."""
    held = _SMALL_MODES.get(image.mode, _PILLOW_PIXEL_BYTES)
    canvases = _WEBP_CANVASES_BYTES if isinstance(image, WebPImagePlugin.WebPImageFile) else 0
    return image.width * image.height * (2 * held + canvases)


def jpeg_bytes(kept_bytes: int, scaled_bytes: int, resize_bytes: int) -> int:
    """The same for libjpeg-turbo: coefficients and pixels, then pixels and both passes of the resize."""
    return scaled_bytes + max(kept_bytes, resize_bytes)


def is_run_length_bmp(image: Image.Image) -> bool:
    """Whether Pillow decodes this in Python, pixel by pixel."""
    return isinstance(image, BmpImagePlugin.BmpImageFile) and any(tile[0] == "bmp_rle" for tile in image.tile)
