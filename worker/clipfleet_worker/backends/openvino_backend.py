"""Forward passes on the processor by OpenVINO: both towers, converted from open_clip's module at loading.

Pixels go in as uint8; mean and deviation are part of the converted image tower. The L2 norm is not: it is
taken in float32 whatever the precision. What was converted is compared with torch's fp32 before it is used,
on a batch of another size than it was traced with: where the features are not the same, this backend does
not serve the model (`Unconvertible`).

Nothing is cached on disk: converting ViT-B-32 takes 1.1 s, tracing 0.3 s, compiling 0.3 to 0.7 s; what
would be kept is as large as the weights, and these are read all the same, for the fingerprint. OpenVINO
(2026.4) holds the weights twice, as they came and as packed for the processor; torch's module is given up
after loading.

openvino and torch are imported when a backend is made, not before.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from clipfleet.contract import Precision
from clipfleet_worker.backends import ReadyFeatures, Towers
from clipfleet_worker.backends.certificate import LEAST_COSINE
from clipfleet_worker.decode import PixelSpec
from clipfleet_worker.device_memory import memory_errors
from clipfleet_worker.failures import first_line

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_TRACED_ITEMS, _COMPARED_ITEMS = 2, 3

_TAKEN = np.float32(-2.5e38)  # in place of features that were taken; none is as large

_converting = threading.Lock()  # tracing changes what belongs to the whole process: torch's state, warnings


class Unconvertible(Exception):  # noqa: N818 - no error: torch takes the model then
    """This model is none for OpenVINO; the text says why, in one line."""


class OpenVinoBackend:
    """See `Backend`."""

    name = "openvino"
    batches_in_flight = 1

    def __init__(self, towers: Towers, device: str) -> None:
        """Convert, compile and compare.

        Raises:
            Unconvertible: OpenVINO cannot run this model, or not within the bars. Torch may still run it.
            MemoryError: not enough memory for it now.
        """
        if device != "cpu":
            raise ValueError(f"OpenVINO is for the CPU here, not {device}")
        spec = towers.pixel_spec
        self._image_shape = (spec.height, spec.width, 3)
        with _converting, _conversion_errors(), memory_errors():
            images, texts = _convert(towers)
            core = openvino_module().Core()
            options = _compile_options(towers.precision)
            self._images = CompiledTower(core.compile_model(images, "CPU", options))
            self._texts = CompiledTower(core.compile_model(texts, "CPU", options))
            del images, texts
            _require_same(towers, self._images.encode, self._texts.encode)

    def new_pixels(self, count: int) -> np.ndarray:
        """See the protocol; plain memory."""
        return np.empty((count, *self._image_shape), dtype=np.uint8)

    def begin_images(self, pixels: np.ndarray) -> ReadyFeatures:
        """See the protocol; the features are there when it returns."""
        with memory_errors():
            return ReadyFeatures(self._images.encode(pixels))

    def encode_texts(self, tokens: torch.Tensor) -> np.ndarray:
        """See the protocol."""
        with memory_errors():
            return self._texts.encode(tokens.numpy())


class CompiledTower:
    """A tower that is known to have run.

    Where memory is short, `infer` of 2026.4 may return as if all were well and leave in place what the batch
    before gave, for good: other pictures' features. So what was taken is overwritten.
    """

    def __init__(self, compiled: Any) -> None:
        """Take OpenVINO's compiled model, of one input and one output."""
        self._compiled = compiled
        self._request = compiled.create_infer_request()

    def encode(self, batch: np.ndarray) -> np.ndarray:
        """A batch -> features float32 (n, d), L2-normalised.

        Raises:
            MemoryError: it has not run.
        """
        self._request.infer([batch], share_inputs=True)
        output = self._request.get_output_tensor(0).data
        if len(output) != len(batch) or np.any(output == _TAKEN):
            self._request = self._compiled.create_infer_request()  # the old one may be of no use any more
            raise MemoryError("OpenVINO gave nothing for a batch, as where it finds no memory")
        features = _normalised(output)
        output[...] = _TAKEN
        return features


def openvino_module() -> Any:
    """The package, without the part that reports its use to its makers: see `openvino.tools.ovc`."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if not installed
    import openvino

    return openvino


def _compile_options(precision: Precision) -> dict[str, Any]:
    import torch

    return {
        "INFERENCE_PRECISION_HINT": {Precision.FP32: "f32", Precision.BF16: "bf16"}[precision],
        "PERFORMANCE_HINT": "LATENCY",  # one batch at a time, on all threads
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),  # set with regard to decoding, for both backends
        "ENABLE_CPU_PINNING": False,  # decode threads and other workers want these cores too
    }


def _convert(towers: Towers) -> tuple[Any, Any]:
    """OpenVINO's models of both towers: uint8 (n, h, w, 3) and int64 (n, context) -> (n, d)."""
    import torch

    from clipfleet_worker.backends.attention import keep_batch_first

    openvino = openvino_module()
    spec, module = towers.pixel_spec, towers.module
    keep_batch_first(module)  # also: torch's own has a fast path that has no counterpart in OpenVINO
    shape = spec.height, spec.width, 3
    pixels = torch.zeros((_TRACED_ITEMS, *shape), dtype=torch.uint8)
    tokens = towers.example_tokens.repeat(_TRACED_ITEMS, 1)
    converted = []
    for encode, example in ((_image_tower(module, spec), pixels), (module.encode_text, tokens)):
        tower = _as_module(module, encode)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing: the comparison tells what matters
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]  # torch says nothing of its types
                tower, (example,), check_trace=False
            )
            model = openvino.convert_model(traced, example_input=(example,), input=[[-1, *example.shape[1:]]])
        converted.append(model)
    return converted[0], converted[1]


def _image_tower(module: Any, spec: PixelSpec) -> Callable[[torch.Tensor], torch.Tensor]:
    import torch

    mean = torch.tensor(spec.mean).view(1, 3, 1, 1) * 255
    std = torch.tensor(spec.std).view(1, 3, 1, 1) * 255

    def encode(pixels: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = module.encode_image((pixels.permute(0, 3, 1, 2).float() - mean) / std)
        return features

    return encode


def _as_module(module: Any, encode: Callable[[torch.Tensor], torch.Tensor]) -> torch.nn.Module:
    """What `torch.jit.trace` wants: a module whose forward is `encode`, and which holds the weights."""
    import torch

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return encode(batch)

    return Tower().eval()


def _require_same(
    towers: Towers,
    encode_pixels: Callable[[np.ndarray], np.ndarray],
    encode_tokens: Callable[[np.ndarray], np.ndarray],
) -> None:
    """Compare with torch's fp32, on noise: rows that differ, in a batch of a size that nobody traced."""
    import torch

    spec, example = towers.pixel_spec, towers.example_tokens
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, (_COMPARED_ITEMS, spec.height, spec.width, 3), dtype=np.uint8)
    tokens = example.repeat(_COMPARED_ITEMS, 1)
    for row in range(1, _COMPARED_ITEMS):
        tokens[row, 1] += row  # another token of the vocabulary, whichever it is
    with torch.inference_mode():
        expected = (
            _image_tower(towers.module, spec)(torch.from_numpy(pixels)).numpy(),
            towers.module.encode_text(tokens).numpy(),
        )
    for found, right in zip((encode_pixels(pixels), encode_tokens(tokens.numpy())), expected, strict=True):
        cosine = float((found * _normalised(right)).sum(axis=1).min())
        if not cosine >= LEAST_COSINE[towers.precision]:
            raise Unconvertible(f"its features are off: cosine {cosine:.6f} to those of torch")


@contextmanager
def _conversion_errors() -> Iterator[None]:
    """Raise `Unconvertible` for what torch's tracer and OpenVINO raise for a model that they cannot take."""
    failures = openvino_module().frontend
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError,
            failures.GeneralFailure, failures.NotImplementedFailure,
            failures.OpConversionFailure) as error:  # fmt: skip
        raise Unconvertible(first_line(error)) from error


def _normalised(features: np.ndarray) -> np.ndarray:
    """A copy: OpenVINO writes the next batch into what it gave."""
    values = features.astype(np.float32)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return values
