"""Forward passes by torch, as open_clip does them, one batch at a time on any device of torch's.

On the CPU self-attention is not torch's own, see `attention`; `torch.compile` gained nothing there.

torch is imported when a backend is made, not before: the import alone takes seconds.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

from clipfleet.contract.jobs import Precision
from clipfleet_worker.encode.backends import ReadyFeatures, Towers
from clipfleet_worker.pixel_spec import PixelSpec
from clipfleet_worker.process.device import memory_errors

if TYPE_CHECKING:
    import torch

Forward = Callable[["torch.Tensor"], "torch.Tensor"]  # rows (n, ...) -> features float32 (n, d), normalised


class TorchBackend:
    """See `Backend`."""

    name = "torch"
    batches_in_flight = 1

    def __init__(self, towers: Towers, device: str) -> None:
        if device == "cpu":
            from clipfleet_worker.encode.backends.attention import keep_batch_first

            keep_batch_first(towers.module)
        else:
            keep_fp32()
        spec, dtype = towers.pixel_spec, torch_dtype(towers.precision)
        self._device = device
        self._row_shape = (spec.height, spec.width, 3)
        with memory_errors():
            module = towers.module.requires_grad_(False).to(device=device, dtype=dtype)
            mean, deviation = (one.to(device) for one in mean_and_deviation(spec))
            self._images, self._texts = forwards(module, mean, deviation, dtype)

    def new_pixels(self, count: int) -> np.ndarray:
        """An array in plain memory."""
        return np.empty((count, *self._row_shape), dtype=np.uint8)

    def begin_images(self, pixels: np.ndarray) -> ReadyFeatures:
        """Encode synchronously: the features are ready when it returns."""
        return ReadyFeatures(self.encode_images(pixels))

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels -> features, in the calling thread. Thread-safe."""
        import torch

        return self._encode(self._images, torch.from_numpy(pixels))

    def encode_texts(self, tokens: torch.Tensor) -> np.ndarray:
        """Token ids -> features, in the calling thread. Thread-safe."""
        return self._encode(self._texts, tokens)

    def _encode(self, forward: Forward, rows: torch.Tensor) -> np.ndarray:
        import torch

        with torch.inference_mode(), memory_errors():
            features: np.ndarray = forward(rows.to(self._device, non_blocking=True)).cpu().numpy()
        return features


def mean_and_deviation(spec: PixelSpec) -> tuple[torch.Tensor, torch.Tensor]:
    """Mean and deviation of levels from 0 to 255, each (1, 3, 1, 1)."""
    import torch

    mean, deviation = (torch.tensor(one).view(1, 3, 1, 1) * 255 for one in (spec.mean, spec.std))
    return mean, deviation


def forwards(
    module: Any, mean: torch.Tensor, deviation: torch.Tensor, dtype: torch.dtype
) -> tuple[Forward, Forward]:
    """The forward passes of images and of texts, all on one device."""
    from torch.nn.functional import normalize

    def images(pixels: torch.Tensor) -> torch.Tensor:
        # (n, h, w, 3) seen as (n, 3, h, w) is torch's channels-last layout: no copy, fast convolutions.
        levels = pixels.permute(0, 3, 1, 2).float().sub_(mean).div_(deviation).to(dtype)
        return normalize(module.encode_image(levels).float(), dim=-1)

    return images, lambda tokens: normalize(module.encode_text(tokens).float(), dim=-1)


def torch_dtype(precision: Precision) -> torch.dtype:
    """The type of weights and activations; the precision is not AUTO."""
    import torch

    return {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}[
        precision
    ]


def keep_fp32() -> None:
    """Compute fp32 convolutions in fp32: by default cuDNN rounds their inputs to TF32."""
    import torch

    torch.backends.cudnn.allow_tf32 = False
