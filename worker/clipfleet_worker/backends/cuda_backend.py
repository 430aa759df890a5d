"""Forward passes on a CUDA device: two batches under way, fixed sizes, compiled where that works, as graphs.

The pixels of a batch cross to the device as uint8 while the batch before is encoded; they are normalised
there. Each batch ends with an event; its features are in page-locked memory then. The order of all this is
`PixelRing`'s and `FixedPasses`', and is tested without a device. Only `cuda_device` knows CUDA.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from clipfleet_worker.backends import Backend, PendingFeatures, Towers
from clipfleet_worker.backends.accelerator import Accelerator, Event
from clipfleet_worker.backends.compiling import Compiler
from clipfleet_worker.backends.cuda_device import CudaDevice
from clipfleet_worker.backends.fixed_passes import FixedPasses, Forward
from clipfleet_worker.backends.pixel_ring import PixelRing
from clipfleet_worker.backends.torch_backend import torch_dtype

if TYPE_CHECKING:
    import torch

    from clipfleet_worker.decode import PixelSpec

_BATCHES_IN_FLIGHT = 2
_TEXTS = (64,)  # as many prompts as the batcher gives at a time


class CudaBackend:
    """See `Backend`."""

    name = "cuda"
    batches_in_flight = _BATCHES_IN_FLIGHT

    def __init__(self, towers: Towers, device: Accelerator, batch_size: int, compiler: Compiler) -> None:
        """Bring the weights to the device.

        Args:
            towers: the model.
            device: shared with all other models of the process.
            batch_size: the largest number of images that go through it at a time.
            compiler: of forward passes.

        Raises:
            MemoryError: not enough memory on the device, or that can be page-locked.
        """
        spec = towers.pixel_spec
        self._device = device
        self._row_shape = (spec.height, spec.width, 3)
        module = device.place(towers.module.requires_grad_(False), torch_dtype(towers.precision))
        forward_images = _image_forward(module, spec, device, torch_dtype(towers.precision))
        forward_texts = _text_forward(module)
        self._images = FixedPasses(
            "images",
            device,
            forward_images,
            _black(device, self._row_shape),
            sizes_of(batch_size),
            compiled=compiler.compiled(forward_images),
        )
        self._texts = FixedPasses(
            "texts",
            device,
            forward_texts,
            device.place(towers.example_tokens[0]),
            _TEXTS,
            compiled=compiler.compiled(forward_texts),
        )
        self._ring = PixelRing(device, _BATCHES_IN_FLIGHT + 1, (batch_size, *self._row_shape))

    @property
    def largest_batch(self) -> int:
        """Images that go through the device at a time: half as many each time that there was no memory."""
        return self._images.largest

    def new_pixels(self, count: int) -> np.ndarray:
        """See the protocol; page-locked where the batch is no larger than usual."""
        if count > self._ring.capacity:
            return np.empty((count, *self._row_shape), dtype=np.uint8)
        return self._ring.lend(count)

    def begin_images(self, pixels: np.ndarray) -> PendingFeatures:
        """See the protocol."""
        step = self._ring.capacity
        return _FeaturesOfParts(
            [self._begin(pixels[start : start + step]) for start in range(0, len(pixels), step)]
        )

    def _begin(self, pixels: np.ndarray) -> _FeaturesUnderWay:
        fetched = self._ring.send(pixels)
        try:
            features = self._images.begin(fetched)
        finally:
            done = self._device.forwards.record()
            self._ring.note_read(fetched, done)
        return _FeaturesUnderWay(features, done, self)

    def encode_texts(self, tokens: torch.Tensor) -> np.ndarray:
        """See the protocol."""
        staged = self._device.page_locked(tuple(tokens.shape), tokens.dtype)
        staged.copy_(tokens)
        features = self._texts.begin(staged)
        return _FeaturesUnderWay(features, self._device.forwards.record(), staged).result()

    def warm_up(self) -> None:
        """Compile and record all passes, and run one of each kind."""
        self._images.warm_up()
        self._texts.warm_up()
        self._device.forget_freed()


@dataclass(frozen=True, slots=True)
class _FeaturesUnderWay:
    """See `PendingFeatures`."""

    features: torch.Tensor  # page-locked
    done: Event
    used: object  # what the device works with until then

    def wait_for_room(self) -> bool:
        return False

    def result(self) -> np.ndarray:
        self.done.wait()
        return np.array(self.features.numpy())  # page-locked memory is scarce: it goes back


@dataclass(frozen=True, slots=True)
class _FeaturesOfParts:
    """Of a batch that was too large for one; the parts are in order."""

    parts: Sequence[_FeaturesUnderWay]

    def wait_for_room(self) -> bool:
        return False

    def result(self) -> np.ndarray:
        if len(self.parts) == 1:
            return self.parts[0].result()
        return np.concatenate([part.result() for part in self.parts])


class CudaBackends:
    """Makes the backends of one process; a `MakeBackend`. They share the device's streams."""

    def __init__(self, batch_size: int, compiler: Compiler) -> None:
        self._batch_size = batch_size
        self._compiler = compiler
        self._devices: dict[str, CudaDevice] = {}
        self._lock = threading.Lock()

    def __call__(self, towers: Towers, device: str) -> Backend:
        """A backend on a device of torch's name."""
        return CudaBackend(towers, self.device(device), self._batch_size, self._compiler)

    def device(self, name: str) -> CudaDevice:
        """The one of this name; made when it is first asked for."""
        with self._lock:
            if name not in self._devices:
                self._devices[name] = CudaDevice(name)
            return self._devices[name]


def sizes_of(batch_size: int) -> list[int]:
    """Sizes that passes are made for, ascending: a whole batch, a quarter of it, and so on down to few.

    A batch that is not whole goes when the device has nothing else to do: to fill it up costs it no time.
    """
    return sorted({batch_size, max(1, batch_size // 4), max(1, batch_size // 16)})


def _black(device: Accelerator, shape: tuple[int, int, int]) -> torch.Tensor:
    import torch

    black: torch.Tensor = device.place(torch.zeros(shape, dtype=torch.uint8))
    return black


def _image_forward(module: Any, spec: PixelSpec, device: Accelerator, dtype: torch.dtype) -> Forward:
    import torch

    mean, std = (
        device.place(torch.tensor(values).view(1, 3, 1, 1) * 255) for values in (spec.mean, spec.std)
    )

    def forward(pixels: torch.Tensor) -> torch.Tensor:
        # (n, h, w, 3) seen as (n, 3, h, w) is torch's channels-last layout: no copy, fast convolutions.
        images = ((pixels.permute(0, 3, 1, 2).float() - mean) / std).to(dtype)
        return torch.nn.functional.normalize(module.encode_image(images).float(), dim=-1)

    return forward


def _text_forward(module: Any) -> Forward:
    import torch

    def forward(tokens: torch.Tensor) -> torch.Tensor:
        return torch.nn.functional.normalize(module.encode_text(tokens).float(), dim=-1)

    return forward
