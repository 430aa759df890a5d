"""From bytes to uint8 RGB at the model's size, by one of two routes.

`exact` is open_clip's own transform on Pillow. `fast` decodes JPEGs with libjpeg-turbo, large ones scaled
down on the way, and resizes with torch; files that it does not cover take the exact route. Images are turned
by their EXIF orientation only for jobs that ask for it. This module does not import open_clip.

Each route has two halves. `Decoder.read` parses the untrusted file, perhaps in another process, see
`decode.step`. `fit` resizes the plain pixels that were read.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import simplejpeg
from PIL import (
    AvifImagePlugin,
    BmpImagePlugin,
    GifImagePlugin,
    Image,
    JpegImagePlugin,
    PngImagePlugin,
    TiffImagePlugin,
    UnidentifiedImageError,
    WebPImagePlugin,
)

from clipfleet.contract.jobs import DecodeRoute, ErrorCode, Exif
from clipfleet_worker.decode.codecs import load_codec
from clipfleet_worker.decode.fit import described, fit
from clipfleet_worker.decode.formats import allowed_format
from clipfleet_worker.decode.memory import (
    TIFF_TILE_PIXEL_BYTES,
    WEBP_PIXEL_BYTES,
    is_run_length_bmp,
    jpeg_bytes,
    pillow_bytes,
    turning_bytes,
)
from clipfleet_worker.decode.orientation import orientation_of, turned, upright
from clipfleet_worker.decode.outline import (
    DEFAULT_MAX_DECODE_BYTES,
    check_outline,
    jpeg_coefficient_bytes,
    webp_size,
)
from clipfleet_worker.decode.rasters import DecodedImage, Raster, ScaledJpeg, WholeImage
from clipfleet_worker.decode.sizes import is_covered, jpeg_sizes, pixels_of_passes, resized_pixels
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.pixel_spec import InputSize, PixelSpec

# Importing these registers them; otherwise Pillow would load all its plugins at the first image.
_PLUGINS = (
    AvifImagePlugin, BmpImagePlugin, GifImagePlugin, JpegImagePlugin, PngImagePlugin, TiffImagePlugin,
    WebPImagePlugin,
)  # fmt: skip

# A strip of 1 x 65000 has few pixels, but takes gigabytes once its short side has the model's size.
_MAX_RESIZED_PIXELS = 1 << 25

_FAST_COLOURS = {"Gray": "gray", "YCbCr": "rgb", "RGB": "rgb"}  # of the file -> of the pixels, for simplejpeg

# Pillow decodes run lengths in Python: so many pixels take a second.
_MAX_RUN_LENGTH_PIXELS = 1 << 22
_MAX_RUN_LENGTH_BYTES_PER_PIXEL = 2  # an honest file has fewer: run lengths save bytes
_RUN_LENGTH_SPARE_BYTES = 65_536

_TIFF_TILE_WIDTH = 322
_TIFF_TILE_HEIGHT = 323

_NO_MEMORY = "out of memory"  # in the message of Pillow's OSError (ImageFile.ERRORS)

# What Pillow and pillow-heif raise for damaged files, each seen in fuzzing or in its source; RuntimeError for
# what a codec reports, NotImplementedError for a variant of a format that is not read.
_DAMAGED = (
    OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, OverflowError, IndexError, KeyError,
    TypeError, AttributeError, ZeroDivisionError, AssertionError, NotImplementedError, RuntimeError,
)  # fmt: skip


class Decoder:
    """Thread-safe: it holds nothing but its limits.

    Making one changes three things for the whole process: Pillow's own pixel limit is lifted, since the
    decoder's check comes first, Pillow's warnings about odd files are silenced, since rows report errors, and
    an AVIF is decoded by one thread, since there are as many as cores already.
    """

    def __init__(self, max_pixels: int, max_decode_bytes: int = DEFAULT_MAX_DECODE_BYTES) -> None:
        self.max_pixels = max_pixels
        self.max_decode_bytes = max_decode_bytes
        Image.MAX_IMAGE_PIXELS = None
        AvifImagePlugin.DEFAULT_MAX_THREADS = 1
        warnings.filterwarnings("ignore", module=r"PIL\.")

    def decode(
        self, data: bytes, spec: PixelSpec, route: DecodeRoute, exif: Exif = Exif.IGNORE
    ) -> DecodedImage:
        """Decode the image in a file's bytes; of an animation or a multi-page file the first frame.

        Raises:
            ItemFailure: `empty`, `not_an_image`, `format_refused`, `too_many_pixels`, `broken_image` or
                `out_of_memory`.
        """
        try:
            return fit(self.read(data, spec.input_size, route, exif), spec)
        except MemoryError:
            detail = f"not enough memory to decode this {allowed_format(data)}"
            raise ItemFailure(ErrorCode.OUT_OF_MEMORY, detail) from None

    def read(
        self, data: bytes, input_size: InputSize, route: DecodeRoute, exif: Exif = Exif.IGNORE
    ) -> Raster:
        """Parse the file: the first half of `decode`.

        Raises:
            ItemFailure: see `decode`.
            MemoryError: too little memory, for this image or just now.
        """
        image_format = allowed_format(data)
        load_codec(image_format)
        check_outline(data, image_format)
        if image_format == "WEBP":  # libwebp allocates the whole canvas before Pillow knows the size
            self._check_canvas(data, input_size)
        kept_bytes = jpeg_coefficient_bytes(data) if image_format == "JPEG" else 0
        if route is DecodeRoute.FAST and image_format == "JPEG":
            scaled = self._fast(data, input_size, kept_bytes, exif)
            if scaled is not None:
                return scaled
        image = self._exact(data, input_size, image_format, kept_bytes)
        return WholeImage(self._turned(image, input_size, exif), image_format)

    def _exact(self, data: bytes, input_size: InputSize, image_format: str, kept_bytes: int) -> Image.Image:
        with _damage_reported(image_format):
            image = Image.open(io.BytesIO(data), formats=(image_format,))
            tile_pixels = _tile_pixels(image)
        self.check_size(*image.size, input_size)
        if tile_pixels > self.max_pixels:
            detail = f"a tile of this {image_format} has more than {self.max_pixels} pixels"
            raise ItemFailure(ErrorCode.TOO_MANY_PIXELS, detail)
        resize_pixels = pixels_of_passes(*image.size, image.size, input_size)
        self._check_memory(pillow_bytes(image, kept_bytes, resize_pixels), *image.size)
        self._check_memory(tile_pixels * TIFF_TILE_PIXEL_BYTES, *image.size)
        if is_run_length_bmp(image):
            _check_run_lengths(len(data), *image.size)
        with _damage_reported(image_format):
            image.load()
        return image

    def _turned(self, image: Image.Image, input_size: InputSize, exif: Exif) -> Image.Image:
        """The loaded image in the orientation that the job wants; decoding HEIF may change a size."""
        orientation = orientation_of(image) if exif is Exif.APPLY else 1
        size = upright(*image.size, orientation)
        self.check_size(*size, input_size)
        if orientation != 1:
            self._check_memory(turning_bytes(image), *size)
        return turned(image, orientation)

    def _fast(self, data: bytes, input_size: InputSize, kept_bytes: int, exif: Exif) -> ScaledJpeg | None:
        """The image in a JPEG, or None if this route does not cover it."""
        if not is_covered(input_size):
            return None
        try:
            height, width, colours, _ = simplejpeg.decode_jpeg_header(data)
        except ValueError:
            return None  # damaged or unusual: Pillow judges
        if colours not in _FAST_COLOURS:
            return None
        orientation = _jpeg_orientation(data) if exif is Exif.APPLY else 1
        self.check_size(*upright(width, height, orientation), input_size)
        sizes = jpeg_sizes(width, height, input_size, orientation)
        columns, rows = sizes.rectangle
        channels = 1 if colours == "Gray" else 3
        needed = jpeg_bytes(kept_bytes, int(columns * rows) * channels, sizes.resize_pixels * channels)
        self._check_memory(needed, width, height)
        pixels = _scaled_jpeg(data, _FAST_COLOURS[colours], sizes.rectangle)
        return None if pixels is None else ScaledJpeg(pixels, sizes.eighths, width, height, orientation)

    def check_size(self, width: int, height: int, input_size: InputSize) -> None:
        """Refuse images that are too large, before or after they are resized to the model's input.

        Raises:
            ItemFailure: `too_many_pixels`, or `broken_image` for an image without pixels.
        """
        if not width or not height:
            raise ItemFailure(ErrorCode.BROKEN_IMAGE, f"{width} x {height} has no pixels")
        if width * height > self.max_pixels:
            raise ItemFailure(
                ErrorCode.TOO_MANY_PIXELS, f"{width} x {height} is more than {self.max_pixels} pixels"
            )
        if resized_pixels(width, height, input_size) > max(_MAX_RESIZED_PIXELS, width * height):
            raise ItemFailure(
                ErrorCode.TOO_MANY_PIXELS,
                f"{width} x {height} is too long a strip: resized to the model's {input_size.width} x "
                f"{input_size.height} it would have more than {_MAX_RESIZED_PIXELS} pixels",
            )

    def _check_canvas(self, data: bytes, input_size: InputSize) -> None:
        size = webp_size(data)
        if size is not None:
            self.check_size(*size, input_size)
            self._check_memory(size[0] * size[1] * WEBP_PIXEL_BYTES, *size)

    def _check_memory(self, needed: int, width: int, height: int) -> None:
        if needed > self.max_decode_bytes:
            raise ItemFailure(
                ErrorCode.TOO_MANY_PIXELS,
                f"{width} x {height} would take {needed >> 20} MiB to decode, "
                f"more than {self.max_decode_bytes >> 20} MiB",
            )


@contextmanager
def _damage_reported(image_format: str) -> Iterator[None]:
    """Around calls of Pillow only: a bug of ours must not be reported as a damaged file."""
    try:
        yield
    except UnidentifiedImageError:
        raise ItemFailure(
            ErrorCode.BROKEN_IMAGE, f"the header of this {image_format} cannot be read"
        ) from None
    except _DAMAGED as error:
        if _NO_MEMORY in str(error):
            raise MemoryError(str(error)) from None
        raise ItemFailure(ErrorCode.BROKEN_IMAGE, f"{image_format}: {described(error)}") from None


def _jpeg_orientation(data: bytes) -> int:
    try:
        with _damage_reported("JPEG"):
            return orientation_of(Image.open(io.BytesIO(data), formats=("JPEG",)))
    except ItemFailure:  # libjpeg-turbo reads what Pillow refuses
        return 1


def _tile_pixels(image: Image.Image) -> int:
    """Pixels in a TIFF's tile: it may be far larger than the image, and is decoded as a whole."""
    if not isinstance(image, TiffImagePlugin.TiffImageFile):
        return 0
    width, height = (image.tag_v2.get(tag, 0) for tag in (_TIFF_TILE_WIDTH, _TIFF_TILE_HEIGHT))
    return int(width) * int(height)


def _check_run_lengths(file_bytes: int, width: int, height: int) -> None:
    if width * height > _MAX_RUN_LENGTH_PIXELS:
        detail = f"{width} x {height} is more than {_MAX_RUN_LENGTH_PIXELS} pixels of a BMP in run lengths"
        raise ItemFailure(ErrorCode.TOO_MANY_PIXELS, detail)
    if file_bytes > width * height * _MAX_RUN_LENGTH_BYTES_PER_PIXEL + _RUN_LENGTH_SPARE_BYTES:
        raise ItemFailure(ErrorCode.BROKEN_IMAGE, f"BMP: too many run lengths for {width} x {height}")


def _scaled_jpeg(data: bytes, colours: str, rectangle: tuple[float, float]) -> np.ndarray | None:
    """A JPEG scaled to a rectangle (width, height), rounded up; None if the exact route has to decide."""
    columns, rows = math.ceil(rectangle[0]), math.ceil(rectangle[1])
    try:
        pixels: np.ndarray = simplejpeg.decode_jpeg(
            data, colours, min_height=rows, min_width=columns, min_factor=1
        )
    except ValueError:
        return None
    return pixels if pixels.shape[:2] == (rows, columns) else None
