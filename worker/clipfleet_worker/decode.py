"""From bytes to uint8 RGB at the model's size, by one of two routes.

`exact` is open_clip's own transform. `fast` decodes JPEGs already scaled down and resizes the rest of the way; all
other formats take the exact route there too. No EXIF rotation: open_clip does none.
"""

from __future__ import annotations

import io
import math
import struct
import warnings
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import simplejpeg
from PIL import Image, UnidentifiedImageError

from clipfleet.contract import DecodeRoute, ErrorCode
from clipfleet_worker.failures import ItemFailure

ALLOWED_FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF")
_JPEG_MAGIC = b"\xff\xd8\xff"
# What Pillow raises for damaged files beside OSError; each was seen.
_BROKEN = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, OverflowError, IndexError,
           KeyError, TypeError, AttributeError, NotImplementedError, Image.DecompressionBombError)  # fmt: skip


@dataclass(frozen=True, slots=True)
class PixelSpec:
    """What a model wants to see."""

    width: int
    height: int
    interpolation: str  # bicubic, bilinear
    resize_mode: str  # shortest, longest, squash
    mean: tuple[float, ...]
    std: tuple[float, ...]
    exact: Callable[[Image.Image], Image.Image]  # open_clip's own transform, up to the tensor; gives RGB

    @classmethod
    def from_open_clip(cls, config: dict[str, Any], transforms: Sequence[Callable[[Any], Any]]) -> PixelSpec:
        """The spec of a model from open_clip's preprocess configuration and transform."""
        size = config["size"]
        height, width = (size, size) if isinstance(size, int) else size[-2:]
        steps = transforms[: next(n for n, step in enumerate(transforms) if "ToTensor" in type(step).__name__)]

        def exact(image: Image.Image) -> Image.Image:
            for step in steps:
                image = step(image)
            return image

        return cls(
            width=width,
            height=height,
            interpolation=config["interpolation"],
            resize_mode=config["resize_mode"],
            mean=tuple(config["mean"]),
            std=tuple(config["std"]),
            exact=exact,
        )

    def facts(self) -> list[object]:
        """What a fingerprint covers."""
        return [self.width, self.height, self.interpolation, self.resize_mode, list(self.mean), list(self.std)]


@dataclass(frozen=True, slots=True)
class DecodedImage:
    """A picture at the model's size."""

    pixels: np.ndarray  # uint8 (height, width, 3), C-contiguous
    width: int  # of the original
    height: int


class Decoder:
    """Stateless but for its limit; called by many threads."""

    def __init__(self, max_pixels: int) -> None:
        self._max_pixels = max_pixels

    def decode(self, data: bytes, spec: PixelSpec, route: DecodeRoute) -> DecodedImage:
        """The picture in some bytes.

        Raises:
            ItemFailure: `empty`, `not_an_image`, `format_refused`, `too_many_pixels`, `broken_image` or
                `out_of_memory`.
        """
        if not data:
            raise ItemFailure(ErrorCode.EMPTY, "no bytes")
        try:
            if route is DecodeRoute.FAST and data.startswith(_JPEG_MAGIC):
                image = self._fast(data, spec)
                if image is not None:
                    return image
            return self._exact(data, spec)
        except MemoryError:
            raise ItemFailure(ErrorCode.OUT_OF_MEMORY, "not enough memory to decode") from None

    def _exact(self, data: bytes, spec: PixelSpec) -> DecodedImage:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            try:
                image = Image.open(io.BytesIO(data), formats=ALLOWED_FORMATS)
            except UnidentifiedImageError:
                raise ItemFailure(ErrorCode.NOT_AN_IMAGE, "no picture in these bytes") from None
            except _BROKEN as error:
                raise ItemFailure(ErrorCode.BROKEN_IMAGE, f"{type(error).__name__}: {error}") from None
            width, height = image.size
            self._check_pixels(width, height)
            try:
                pixels = np.array(spec.exact(image), dtype=np.uint8)
            except _BROKEN as error:
                raise ItemFailure(ErrorCode.BROKEN_IMAGE, f"{type(error).__name__}: {error}") from None
        return DecodedImage(pixels, width, height)

    def _fast(self, data: bytes, spec: PixelSpec) -> DecodedImage | None:
        return None

    def _check_pixels(self, width: int, height: int) -> None:
        if width * height > self._max_pixels:
            raise ItemFailure(
                ErrorCode.TOO_MANY_PIXELS, f"{width} x {height} is more than {self._max_pixels} pixels"
            )


_ = (math, simplejpeg)
