"""Forward passes by torch, as open_clip would do them, one batch at a time on any device of torch's.

On the processor self-attention is not torch's own, see `attention`; `torch.compile` gave nothing there.

torch is imported when a backend is made, not before: that alone takes seconds.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clipfleet.contract import Precision
from clipfleet_worker.backends import ReadyFeatures, Towers
from clipfleet_worker.device_memory import memory_errors

if TYPE_CHECKING:
    import torch


class TorchBackend:
    """See `Backend`."""

    name = "torch"
    batches_in_flight = 1

    def __init__(self, towers: Towers, device: str) -> None:
        import torch

        if device == "cpu":
            from clipfleet_worker.backends.attention import keep_batch_first

            keep_batch_first(towers.module)
        else:
            keep_fp32()
        spec = towers.pixel_spec
        self._device = device
        self._dtype = torch_dtype(towers.precision)
        self._image_shape = (1, spec.height, spec.width, 3)
        self._example_tokens = towers.example_tokens
        with memory_errors():
            self._module = towers.module.requires_grad_(False).to(device=device, dtype=self._dtype)
            self._mean = torch.tensor(spec.mean, device=device).view(1, 3, 1, 1) * 255
            self._std = torch.tensor(spec.std, device=device).view(1, 3, 1, 1) * 255

    def new_pixels(self, count: int) -> np.ndarray:
        """See the protocol; plain memory."""
        return np.empty((count, *self._image_shape[1:]), dtype=np.uint8)

    def begin_images(self, pixels: np.ndarray) -> ReadyFeatures:
        """See the protocol; the features are there when it returns."""
        return ReadyFeatures(self.encode_images(pixels))

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """What is promised by `begin_images`; may be called by several threads."""
        import torch

        with torch.inference_mode(), memory_errors():
            # (n, h, w, 3) seen as (n, 3, h, w) is torch's channels-last layout: no copy, fast convolutions.
            images = torch.from_numpy(pixels).to(self._device, non_blocking=True).permute(0, 3, 1, 2)
            normalised = images.float().sub_(self._mean).div_(self._std).to(self._dtype)
            return _normalised(self._module.encode_image(normalised))

    def encode_texts(self, tokens: torch.Tensor) -> np.ndarray:
        """See the protocol; may be called by several threads."""
        import torch

        with torch.inference_mode(), memory_errors():
            return _normalised(self._module.encode_text(tokens.to(self._device)))

    def warm_up(self) -> None:
        """One image and one text, for torch's lazy set-up."""
        self.begin_images(np.zeros(self._image_shape, dtype=np.uint8))
        self.encode_texts(self._example_tokens)


def torch_dtype(precision: Precision) -> torch.dtype:
    """Of weights and activations; the precision is not AUTO."""
    import torch

    return {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}[
        precision
    ]


def keep_fp32() -> None:
    """fp32 means fp32: by default cuDNN rounds what goes into its convolutions to TF32."""
    import torch

    torch.backends.cudnn.allow_tf32 = False


def _normalised(features: torch.Tensor) -> np.ndarray:
    import torch

    array: np.ndarray = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
    return array
