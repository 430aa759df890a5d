"""Forward passes on the CPU by OpenVINO: both towers, converted from open_clip's module at loading.

Pixels go in as uint8; mean and deviation are part of the converted image tower. The L2 norm is not: it is
computed in float32 in every precision. The converted towers have to pass the model's canaries, otherwise this
backend refuses the model (`Unconvertible`). The compiled towers are kept on disk for the next start. OpenVINO
(2026.4) holds the weights twice, as loaded and as packed for the CPU; torch's module is dropped after
loading.

On two cores of an EPYC that others kept busy too (ViT-B-32, bf16), images/s of two streams to those of one
that has both cores, with batches of 64: 0.98 to 1.15; with 128: 0.86 to 1.21, so that 64 stays.

openvino and torch are imported when a backend is made, not before.
"""

from __future__ import annotations

import logging
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import numpy as np

from clipfleet.contract.jobs import Precision
from clipfleet_worker.encode.backends import ReadyFeatures, Towers
from clipfleet_worker.encode.kept_arrays import keep, recall
from clipfleet_worker.failures import first_line
from clipfleet_worker.pixel_spec import PixelSpec
from clipfleet_worker.process.device import memory_errors

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_NAMES = "images", "texts"  # of the towers that are kept
_KIND, _KEPT_MODELS = "openvino", 4  # on disk; one of ViT-B-32 in bf16 has 0.6 GB
_TRACED_ITEMS = 2

_TAKEN = np.float32(-2.5e38)  # overwrites features that were taken; no feature is as large

_converting = threading.Lock()  # tracing changes state of the whole process: torch's, and warnings


class Unconvertible(Exception):  # noqa: N818 - no error: torch runs the model then
    """OpenVINO cannot run this model; the message says why, in one line."""


class OpenVinoBackend:
    """See `Backend`. As many threads may encode at a time as there are streams."""

    name = "openvino"
    batches_in_flight = 1

    def __init__(self, towers: Towers, device: str, streams: int = 1) -> None:
        """Convert and compile, or read what an earlier start has kept; then check the canaries.

        Args:
            towers: of the model.
            device: by torch's name.
            streams: passes at a time, which share the threads.

        Raises:
            Unconvertible: OpenVINO cannot run this model within the bars. Torch may still run it.
            MemoryError: not enough memory for it now.
        """
        if device != "cpu":
            raise ValueError(f"OpenVINO is for the CPU here, not {device}")
        spec = towers.pixel_spec
        self._image_shape = (spec.height, spec.width, 3)
        with _converting, _conversion_errors(), memory_errors():
            core = openvino_module().Core()
            options = _compile_options(towers.precision, streams)
            about = openvino_module().__version__, core.get_property("CPU", "FULL_DEVICE_NAME")
            key = [towers.key, *about, *map(str, options.items())]
            if self._read_back(core, options, recall(_KIND, key), towers):
                return
            made = [core.compile_model(one, "CPU", options) for one in _convert(towers)]
            self._images, self._texts = map(CompiledTower, made)
            if not towers.is_right(self):
                raise Unconvertible("its features are off")
            blobs = [np.frombuffer(one.export_model().getbuffer(), dtype=np.uint8) for one in made]
            keep(_KIND, key, dict(zip(_NAMES, blobs, strict=True)), most=_KEPT_MODELS)

    def _read_back(
        self, core: Any, options: Mapping[str, Any], found: Mapping[str, np.ndarray], towers: Towers
    ) -> bool:
        try:
            blobs = [openvino_module().Tensor(found[name]) for name in _NAMES]
            self._images, self._texts = (
                CompiledTower(core.import_model(blob, "CPU", options)) for blob in blobs
            )
            return towers.is_right(self)
        except (RuntimeError, ValueError, KeyError):
            return False

    def new_pixels(self, count: int) -> np.ndarray:
        """An array in plain memory."""
        return np.empty((count, *self._image_shape), dtype=np.uint8)

    def begin_images(self, pixels: np.ndarray) -> ReadyFeatures:
        """Encode synchronously: the features are ready when it returns."""
        return ReadyFeatures(self.encode_images(pixels))

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """A batch of pixels -> features, in the calling thread."""
        with memory_errors():
            return self._images.encode(pixels)

    def encode_texts(self, tokens: torch.Tensor) -> np.ndarray:
        with memory_errors():
            return self._texts.encode(tokens.numpy())


class CompiledTower:
    """A tower that detects passes that did not run.

    Short of memory, `infer` of 2026.4 may return without an error and leave the features of the previous
    batch in the output: those of other images. So features that were taken are overwritten.
    """

    def __init__(self, compiled: Any) -> None:
        """Use a compiled model of OpenVINO with one input and one output."""
        self._compiled = compiled
        self._free: deque[Any] = deque()  # requests that no thread uses now

    def encode(self, batch: np.ndarray) -> np.ndarray:
        """A batch -> features float32 (n, d), L2-normalised. Thread-safe.

        Raises:
            MemoryError: the pass did not run.
        """
        try:
            request = self._free.pop()
        except IndexError:
            request = self._compiled.create_infer_request()
        request.infer([batch], share_inputs=True)
        output = request.get_output_tensor(0).data
        if len(output) != len(batch) or np.any(output == _TAKEN):  # the request may be broken: it is dropped
            raise MemoryError("OpenVINO gave no features for a batch, as it does when memory is short")
        features = _normalised(output)
        output[...] = _TAKEN
        self._free.append(request)
        return features


def openvino_module() -> Any:
    """The package, without its telemetry, see `openvino.tools.ovc`."""
    if "openvino" not in sys.modules:
        sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]  # as if not installed
    import openvino

    return openvino


def _compile_options(precision: Precision, streams: int) -> dict[str, Any]:
    import torch

    return {
        "INFERENCE_PRECISION_HINT": {Precision.FP32: "f32", Precision.BF16: "bf16"}[precision],
        "NUM_STREAMS": streams,
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),  # set by the worker, see `process.cores`
        "ENABLE_CPU_PINNING": False,  # decode threads and other workers use these cores, too
    }


def _convert(towers: Towers) -> tuple[Any, Any]:
    """OpenVINO's models of both towers: uint8 (n, h, w, 3) and int64 (n, context) -> (n, d)."""
    import torch

    from clipfleet_worker.encode.backends.attention import keep_batch_first

    openvino = openvino_module()
    spec, module = towers.pixel_spec, towers.module
    keep_batch_first(module)  # torch's own attention has a fast path that OpenVINO does not support
    shape = spec.height, spec.width, 3
    pixels = torch.zeros((_TRACED_ITEMS, *shape), dtype=torch.uint8)
    tokens = towers.example_tokens.repeat(_TRACED_ITEMS, 1)
    converted = []
    for encode, example in ((_image_tower(module, spec), pixels), (module.encode_text, tokens)):
        tower = _as_module(module, encode)
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of tracing: the canaries decide
            traced = torch.jit.trace(  # type: ignore[no-untyped-call]  # torch has no types here
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
    """A module for `torch.jit.trace` whose forward is `encode`, and which holds the weights."""
    import torch

    class Tower(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.module = module

        def forward(self, batch: torch.Tensor) -> torch.Tensor:
            return encode(batch)

    return Tower().eval()


@contextmanager
def _conversion_errors() -> Iterator[None]:
    """Turn what torch's tracer and OpenVINO raise for an unsupported model into `Unconvertible`."""
    failures = openvino_module().frontend
    try:
        yield
    except (RuntimeError, ValueError, TypeError, KeyError, IndexError, AttributeError, AssertionError,
            failures.GeneralFailure, failures.NotImplementedFailure,
            failures.OpConversionFailure) as error:  # fmt: skip
        raise Unconvertible(first_line(error)) from error


def _normalised(features: np.ndarray) -> np.ndarray:
    """A copy: OpenVINO writes the next batch into the same output."""
    values = features.astype(np.float32)
    values /= np.maximum(np.linalg.norm(values, axis=1, keepdims=True), 1e-12)
    return values
