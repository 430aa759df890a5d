"""JPEGs that the GPU decodes, some at a time; whatever it does not cover is left to the processor's routes.

Covered is what the device gives within the bars of `tests/integration/test_fidelity.py`. nvJPEG repeats the
colours of subsampled pictures where libjpeg interpolates them: drawings show it until the picture is made
five times smaller (measured with libjpeg doing the same: p99.9 of the differences is 19 levels at twice the
model's size, 6 at 3.3 times, 3 at 5 times; without subsampling 1). Files are checked as on the processor
before the device sees them. What it refuses or fails at, the processor judges.

It relies on `torchvision.io.decode_jpeg` (read in 0.28): it writes in a stream of its own, without waiting
for ours, into memory that was freed in ours. So nothing of ours is under way when it is called.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

import numpy as np
import simplejpeg

from clipfleet.contract import DecodeRoute
from clipfleet_worker.backends.accelerator import Stream
from clipfleet_worker.decode import DecodedImage, Decoder, PixelSpec
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.image_format import is_baseline_jpeg
from clipfleet_worker.image_outline import jpeg_coefficient_bytes
from clipfleet_worker.picture_sizes import Frame, is_covered, resized_size
from clipfleet_worker.plane_resize import MOST_TIMES_SMALLER, fit_planes

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_END_OF_IMAGE = b"\xff\xd9"  # a file that breaks off earlier: Pillow says so, nvJPEG makes grey of the rest
_FEWEST_PIXELS_A_SIDE = 16
_MOST_PIXELS = 1 << 25  # of one picture, which takes 15 bytes for each on the device
_MOST_PIXELS_AT_A_TIME = 1 << 26

_COLOURS = ("YCbCr", "Gray")
_WHOLE = ("444", "Gray")
_SUBSAMPLED = ("420", "422")
_SUBSAMPLED_MARGIN = 5.0  # times larger than the model's size, at least
_SUBSAMPLED_MARGIN_SMALL = 16.0  # small models see every grey level, see `picture_sizes`
_SMALL_TARGET = 128


class JpegDevice(Protocol):
    """What is asked of the device."""

    pictures: Stream  # used for nothing else

    def alone(self) -> AbstractContextManager[None]:
        """While nobody else does what bears no company; blocks until then."""

    def decode_jpegs(self, files: list[torch.Tensor]) -> list[torch.Tensor]:
        """Pictures of baseline JPEGs, each uint8 (3, height, width) on the device, in the current stream."""

    def page_locked(self, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        """See `Accelerator`."""


@dataclass(frozen=True, slots=True)
class _Covered:
    place: int  # among the files
    data: bytes
    width: int
    height: int

    @property
    def pixels(self) -> int:
        return self.width * self.height


class DeviceJpegs:
    """Called by many threads; the device serves one at a time."""

    def __init__(self, device: JpegDevice, decoder: Decoder) -> None:
        """Nothing happens yet.

        Args:
            device: which decodes.
            decoder: whose limits hold here, too.
        """
        self._device = device
        self._decoder = decoder

    def decode(
        self, files: Sequence[bytes], spec: PixelSpec, route: DecodeRoute
    ) -> list[DecodedImage | None]:
        """The pictures in files, in their order; None is for the processor to decode, or to judge."""
        images: list[DecodedImage | None] = [None] * len(files)
        if route is not DecodeRoute.FAST or not is_covered(spec.frame):
            return images
        covered = [one for n, data in enumerate(files) if (one := self._covered(n, data, spec.frame))]
        for group in _groups(covered):
            for one, pixels in zip(group, self._decode_group(group, spec.frame), strict=False):
                images[one.place] = DecodedImage(pixels, one.width, one.height)
        return images

    def _covered(self, place: int, data: bytes, frame: Frame) -> _Covered | None:
        if not (is_baseline_jpeg(data) and data.endswith(_END_OF_IMAGE)):
            return None
        try:
            is_in_scans = jpeg_coefficient_bytes(data) > 0
            height, width, colours, subsampling = simplejpeg.decode_jpeg_header(data)
            self._decoder.check_size(width, height, frame)
        except (ItemFailure, ValueError):
            return None
        if is_in_scans or colours not in _COLOURS or not _suits(width, height, subsampling, frame):
            return None
        return _Covered(place, data, width, height)

    def _decode_group(self, group: Sequence[_Covered], frame: Frame) -> Sequence[np.ndarray]:
        """Pixels of each, uint8 (height, width, 3) of the model; of none where the device fails."""
        import torch

        fitted: list[torch.Tensor] = []  # until the device is done with them

        def work() -> None:
            for place, planes in enumerate(self._device.decode_jpegs(files)):
                fitted.append(fit_planes(planes, frame))
                pixels[place].copy_(fitted[-1], non_blocking=True)

        try:
            files = [torch.frombuffer(bytearray(one.data), dtype=torch.uint8) for one in group]
            pixels = self._device.page_locked((len(group), frame.height, frame.width, 3), torch.uint8)
            with self._device.alone():
                try:
                    self._device.pictures.run(work)
                finally:
                    self._device.pictures.record().wait()
        except (RuntimeError, MemoryError) as error:
            # If the device is lost, the batcher meets it next, and ends the process.
            log.warning(
                "%d JPEGs go to the processor: %s",
                len(group),
                error,
                extra={"action": "device_decode_failed"},
            )
            return []
        return list(np.array(pixels.numpy()))  # page-locked memory is scarce: it goes back


def _suits(width: int, height: int, subsampling: str, frame: Frame) -> bool:
    target = resized_size(width, height, frame)
    smaller = width / target[0], height / target[1]
    if subsampling in _WHOLE:
        margin = 0.0
    elif subsampling in _SUBSAMPLED:
        is_small = min(frame.width, frame.height) < _SMALL_TARGET
        margin = _SUBSAMPLED_MARGIN_SMALL if is_small else _SUBSAMPLED_MARGIN
    else:
        return False
    is_usual = min(width, height) >= _FEWEST_PIXELS_A_SIDE and width * height <= _MOST_PIXELS
    return is_usual and min(smaller) >= margin and max(smaller) <= MOST_TIMES_SMALLER


def _groups(covered: Sequence[_Covered]) -> Iterator[list[_Covered]]:
    """As many as the device may have memory for at a time."""
    group: list[_Covered] = []
    for one in covered:
        if group and sum(other.pixels for other in group) + one.pixels > _MOST_PIXELS_AT_A_TIME:
            yield group
            group = []
        group.append(one)
    if group:
        yield group
