"""The second half of decoding: plain pixels are resized to the model's input. Parses no file."""

from __future__ import annotations

import math

import numpy as np

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.decode.orientation import turned_array, upright
from clipfleet_worker.decode.rasters import DecodedImage, Raster, ScaledJpeg
from clipfleet_worker.decode.sizes import JpegSizes, jpeg_sizes
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.pixel_spec import PixelSpec
from clipfleet_worker.process.device import memory_errors


def fit(raster: Raster, spec: PixelSpec) -> DecodedImage:
    """Resize what was read to the model's input.

    Raises:
        ItemFailure: `broken_image` for a mode that Pillow cannot resize or convert.
        MemoryError: too little memory.
    """
    if isinstance(raster, ScaledJpeg):
        return _fit_scaled(raster, spec)
    image = raster.image
    try:
        pixels = np.array(spec.exact(image), dtype=np.uint8)
    except ValueError as error:
        detail = f"{raster.image_format} of mode {image.mode}: {described(error)}"
        raise ItemFailure(ErrorCode.BROKEN_IMAGE, detail) from None
    return DecodedImage(pixels, *image.size)


def _fit_scaled(jpeg: ScaledJpeg, spec: PixelSpec) -> DecodedImage:
    sizes = jpeg_sizes(jpeg.width, jpeg.height, spec.input_size, jpeg.orientation)
    resized = turned_array(_resize(jpeg.pixels, sizes, spec.interpolation), jpeg.orientation)
    pixels = _centre_crop(resized, spec.width, spec.height)
    if pixels.shape[2] == 1:
        pixels = np.repeat(pixels, 3, axis=2)
    size = upright(jpeg.width, jpeg.height, jpeg.orientation)
    return DecodedImage(np.ascontiguousarray(pixels), *size)


def described(error: Exception) -> str:
    """The message of an error; its repr where the message alone may be a bare value."""
    return str(error) if isinstance(error, OSError | SyntaxError | ValueError | RuntimeError) else repr(error)


def _resize(pixels: np.ndarray, sizes: JpegSizes, interpolation: str) -> np.ndarray:
    """Resize the rectangle at the top left to the target, antialiased.

    The array of a scaled JPEG is up to one pixel larger than the image in it. Resizing the whole array would
    shift the image, so factors keep its scale, and surplus rows and columns are cut off.
    """
    import torch

    rectangle, target = sizes.rectangle, sizes.target
    if (pixels.shape[1], pixels.shape[0]) == rectangle == target:
        return pixels
    # unsqueeze, no axis of numpy's: from its strides torch sees that channels come last, and does not copy.
    planes = torch.from_numpy(pixels).unsqueeze(0).permute(0, 3, 1, 2)
    # torch multiplies by them and rounds down: one bit too small, and the last row or column is missing.
    across, down = (math.nextafter(target[n] / rectangle[n], math.inf) for n in (0, 1))
    with memory_errors():
        for factors in ((down, 1.0), (1.0, across)) if sizes.is_vertical_first else ((down, across),):
            planes = torch.nn.functional.interpolate(
                planes, scale_factor=factors, mode=interpolation, align_corners=False, antialias=True
            )
    array: np.ndarray = planes[0, :, : target[1], : target[0]].permute(1, 2, 0).numpy()
    return array


def _centre_crop(pixels: np.ndarray, width: int, height: int) -> np.ndarray:
    """Torchvision's centre crop, with its rounding (half to even)."""
    top, left = round((pixels.shape[0] - height) / 2.0), round((pixels.shape[1] - width) / 2.0)
    return pixels[top : top + height, left : left + width]
