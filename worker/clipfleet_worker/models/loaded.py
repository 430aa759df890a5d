"""A loaded model: its pixel spec, its fingerprint, and the backend that runs its forward passes.

torch is imported when a model is loaded, not before: the import alone takes seconds.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from typing import Any
from zlib import crc32

import numpy as np

from clipfleet import __version__
from clipfleet.contract.jobs import DecodeRoute, Exif, Precision
from clipfleet.contract.label_sets import short_hash
from clipfleet_worker.encode.backends import MakeBackend, PendingFeatures, SeveralWays, Towers
from clipfleet_worker.encode.backends.certificate import LEAST_COSINE, PROMPTS, Canaries, Certificate
from clipfleet_worker.encode.backends.torch_backend import TorchBackend
from clipfleet_worker.failures import ModelUnavailableError, first_line
from clipfleet_worker.pixel_spec import PixelSpec
from clipfleet_worker.process.device import memory_errors

_MAX_LOGIT_SCALE = 1e6  # training clips it at 100


class LoadedModel:
    """A model on its device, ready for batches. Only the batcher's thread may encode."""

    def __init__(
        self,
        name: str,
        module: Any,
        tokenizer: Any,
        pixel_spec: PixelSpec,
        *,
        embedding_dimension: int,
        precision: Precision,
        device: str,
        make_backend: MakeBackend = TorchBackend,
        configuration: Mapping[str, Any] | None = None,
    ) -> None:
        self.name = name
        self.embedding_dimension = embedding_dimension
        self.pixel_spec = pixel_spec
        self.precision = precision
        self.device = device
        self._content = [_weights_hash(module), pixel_spec.facts()]
        self.fingerprint = self._fingerprint_in(precision)
        self.logit_scale = float(module.logit_scale.detach().exp())
        if not self.logit_scale <= _MAX_LOGIT_SCALE:  # also True for NaN; scores would be NaN
            raise ModelUnavailableError(f"model {name} cannot be used: its logit scale is {self.logit_scale}")
        self.certificate: Certificate | None = None  # until it is proven
        self._tokenizer = tokenizer
        tokens = tokenizer(list(PROMPTS))
        about = [self.fingerprint, configuration, _layers(module), crc32(tokens.numpy())]
        key = short_hash([__version__, *about])
        try:
            with memory_errors():  # before the backend changes the module
                self._canaries = Canaries(module, pixel_spec, tokens, LEAST_COSINE[precision], key)
        except loading_errors() as error:
            why = f"it does not encode the canaries ({first_line(error)})"
            raise ModelUnavailableError(f"model {name} cannot be used: {why}") from error
        is_right, example = self._canaries.are_met_by, tokenizer(["a"])
        towers = Towers(module, pixel_spec, example, precision, key, is_right)
        self._backend = make_backend(towers, device)

    @property
    def backend_name(self) -> str:
        """Name of the backend that runs the forward passes: torch, openvino, cuda."""
        return self._backend.name

    @property
    def batches_in_flight(self) -> int:
        """How many batches may be begun before the first one is finished."""
        return self._backend.batches_in_flight

    def fingerprint_for(self, route: DecodeRoute, exif: Exif = Exif.IGNORE) -> str:
        """The fingerprint in rows: model, weights, preprocessing, precision, decode route and EXIF."""
        return _fingerprint_of_rows(self.fingerprint, route, exif)

    def has_made(self, fingerprint: str, route: DecodeRoute, exif: Exif) -> bool:
        """Whether rows with this fingerprint are of this model, in any precision: their vectors agree."""
        return any(
            fingerprint == _fingerprint_of_rows(self._fingerprint_in(precision), route, exif)
            for precision in Precision
        )

    def _fingerprint_in(self, precision: Precision) -> str:
        return short_hash([*self._content, precision.value])

    def new_pixels(self, count: int) -> np.ndarray:
        """An array to be filled for `begin_images`, see `Backend`."""
        return self._backend.new_pixels(count)

    def begin_images(self, pixels: np.ndarray) -> PendingFeatures:
        """Start on a batch of pixels, uint8 (n, height, width, 3), see `Backend`."""
        return self._backend.begin_images(pixels)

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 (n, height, width, 3) -> features float32 (n, d), L2-normalised."""
        return self.begin_images(pixels).result()

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        """Prompts -> features float32 (n, d), L2-normalised each."""
        return self._backend.encode_texts(self._tokenizer(prompts))

    def prove(self) -> None:
        """Have the backend use the fastest way that gives this model's features, see `Canaries.certify`."""
        self.certificate = self._canaries.certify(self._backend, self.device)

    def forget_canaries(self) -> bool:
        """Drop kept canaries of an earlier start, which may be damaged; returns whether there were any."""
        return self._canaries.forget()

    def worst_cosine(self) -> float:
        """Worst cosine of its canaries now, see `Canaries`; blocks the device for some batches."""
        return self._canaries.worst_cosine(self._backend)

    def trust_only_plain(self, reason: str) -> None:
        """Run all batches plainly from now on, see `SeveralWays`; no effect on other backends."""
        if isinstance(self._backend, SeveralWays):
            self._backend.trust_only_plain(reason)


def _fingerprint_of_rows(fingerprint: str, route: DecodeRoute, exif: Exif) -> str:
    return short_hash([fingerprint, route.value, *([] if exif is Exif.IGNORE else [f"exif {exif}"])])


def loading_errors() -> tuple[type[Exception], ...]:
    """The errors that open_clip, transformers and safetensors raise for damaged or mismatching files."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    return (RuntimeError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError,
            AssertionError, StopIteration, EOFError, UnpicklingError, SafetensorError)  # fmt: skip


def _layers(module: Any) -> list[Any]:
    """What may differ between models of the same weights: layers, and their options (heads, pooling)."""
    return [
        [name, type(part).__qualname__]
        + [[word, value] for word, value in vars(part).items() if isinstance(value, int | float | str)]
        for name, part in module.named_modules()
    ]


def _weights_hash(module: Any) -> str:
    """sha256 over names and bytes of all weights as loaded, before they are cast."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(str(tensor.dtype).encode())
        digest.update(np.ascontiguousarray(tensor.float().numpy()).view(np.uint8).data)
    return digest.hexdigest()
