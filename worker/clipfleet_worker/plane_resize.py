"""From a whole picture to the model's size by torch, on whatever device the picture is; no files, no numpy.

It follows Pillow as the processor's routes do: the same sizes, the same order of the two passes, each pass
rounded and clipped to 0..255. The passes compute in float32, for CUDA resizes no integers.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from clipfleet_worker.picture_sizes import Frame, resized_size, resizes_vertically_first

if TYPE_CHECKING:
    import torch

# CUDA's kernel has a picture's weights in the shared memory of a block, 48 KB: at 90 times it refuses.
MOST_TIMES_SMALLER = 64

_ROWS, _COLUMNS = 2, 3


def fit_planes(planes: torch.Tensor, frame: Frame) -> torch.Tensor:
    """Resize and crop, see `picture_sizes.is_covered`; nothing waits for the device.

    Args:
        planes: uint8 (3, height, width).
        frame: what the model wants.

    Returns:
        uint8 (frame.height, frame.width, 3), contiguous.
    """
    import torch

    height, width = int(planes.shape[1]), int(planes.shape[2])
    target = resized_size(width, height, frame)
    passes = [(_COLUMNS, target[0], frame.width), (_ROWS, target[1], frame.height)]
    if resizes_vertically_first(width, height, target):
        passes.reverse()
    values = planes.unsqueeze(0).float()
    for axis, size, kept in passes:
        values = _resized(values, axis, size, frame.interpolation)
        values = values.narrow(axis, round((size - kept) / 2.0), kept)  # torchvision's centre crop
    return values[0].permute(1, 2, 0).to(torch.uint8).contiguous()


def _resized(values: torch.Tensor, axis: int, size: int, interpolation: str) -> torch.Tensor:
    import torch

    if values.shape[axis] == size:
        return values
    shape = (size, values.shape[_COLUMNS]) if axis == _ROWS else (values.shape[_ROWS], size)
    resized = torch.nn.functional.interpolate(
        values, size=shape, mode=interpolation, align_corners=False, antialias=True
    )
    return resized.round_().clamp_(0, 255)
