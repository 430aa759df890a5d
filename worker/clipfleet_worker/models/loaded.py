"""A loaded model: what it wants to see, its fingerprint, and the backend that runs its forward passes.

torch is imported when a model is loaded, not before: that alone takes seconds.
"""

from __future__ import annotations

import gc
import hashlib
import logging
from collections.abc import Callable, Mapping
from typing import Any
from zlib import crc32

import numpy as np
from PIL import Image

from clipfleet import __version__
from clipfleet.contract.jobs import DecodeRoute, Precision
from clipfleet.contract.label_sets import short_hash
from clipfleet_worker.encode.backends import MakeBackend, PendingFeatures, SeveralWays, Towers
from clipfleet_worker.encode.backends.certificate import (
    LEAST_COSINE,
    PROMPTS,
    Canaries,
    Certificate,
    Unfaithful,
)
from clipfleet_worker.encode.backends.torch_backend import TorchBackend
from clipfleet_worker.encode.batcher import BatcherStopped
from clipfleet_worker.encode.bisecting import FORWARD_ERRORS
from clipfleet_worker.failures import ModelUnavailableError, first_line
from clipfleet_worker.models import open_clip_models, transformers_layout
from clipfleet_worker.models.files import Layout, ModelFiles, fetch_files, find_configuration
from clipfleet_worker.models.open_clip_models import BuiltModel, Preprocessing
from clipfleet_worker.pixel_spec import PixelSpec
from clipfleet_worker.process.device import is_lost, memory_errors, resolve_precision
from clipfleet_worker.process.shortages import shortage_behind

OnPixelSpec = Callable[[PixelSpec], None]
OnDevice = Callable[[Callable[[], None]], None]  # does something in the thread that owns the device


log = logging.getLogger(__name__)

_MAX_LOGIT_SCALE = 1e6  # training clips it at 100


class LoadedModel:
    """A model on its device, ready for batches. What encodes belongs to the batcher's thread."""

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
        self.fingerprint = short_hash([_weights_hash(module), pixel_spec.facts(), precision.value])
        self.logit_scale = float(module.logit_scale.detach().exp())
        if not self.logit_scale <= _MAX_LOGIT_SCALE:  # scores would be NaN; NaN is not below anything either
            raise ModelUnavailableError(f"model {name} cannot be used: its logit scale is {self.logit_scale}")
        self.certificate: Certificate | None = None  # until it is proven
        self._tokenizer = tokenizer
        tokens = tokenizer(list(PROMPTS))
        about = [self.fingerprint, configuration, _layers(module), crc32(tokens.numpy())]
        key = short_hash([__version__, *about])
        try:
            with memory_errors():  # before the backend changes the module
                self._canaries = Canaries(module, pixel_spec, tokens, LEAST_COSINE[precision], key)
        except _loading_errors() as error:
            why = f"it does not encode the canaries ({first_line(error)})"
            raise ModelUnavailableError(f"model {name} cannot be used: {why}") from error
        is_right, example = self._canaries.are_met_by, tokenizer(["a"])
        towers = Towers(module, pixel_spec, example, precision, key, is_right)
        self._backend = make_backend(towers, device)

    @property
    def backend_name(self) -> str:
        """What runs the forward passes: torch, openvino, cuda."""
        return self._backend.name

    @property
    def batches_in_flight(self) -> int:
        """See `Backend`."""
        return self._backend.batches_in_flight

    def fingerprint_for(self, route: DecodeRoute) -> str:
        """The fingerprint that goes into rows: model, weights, preprocessing, precision and decode route."""
        return short_hash([self.fingerprint, route.value])

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
        """Drop what an earlier start has kept, which may be damaged; whether there was any."""
        return self._canaries.forget()

    def worst_cosine(self) -> float:
        """Of its canaries now, see `Canaries`; blocks the device for some batches."""
        return self._canaries.worst_cosine(self._backend)

    def trust_only_plain(self, reason: str) -> None:
        """See `SeveralWays`; of other backends nothing changes."""
        if isinstance(self._backend, SeveralWays):
            self._backend.trust_only_plain(reason)


def load_model(
    name: str,
    precision: Precision,
    device: str,
    make_backend: MakeBackend = TorchBackend,
    on_pixel_spec: OnPixelSpec = lambda _: None,
    on_device: OnDevice = lambda work: work(),
) -> LoadedModel:
    """Load a model by its full name (see `model_names`), downloading what is not here yet.

    It has proven itself by then: its features are those of fp32 on the CPU.

    Args:
        name: of the model.
        precision: `auto` means what the device is good at, and fp32 for a model for which it is not.
        device: by torch's name.
        make_backend: what runs the forward passes.
        on_pixel_spec: told what the model wants to see, if that is known before its weights are loaded.
        on_device: has it prove itself.

    Raises:
        ModelUnavailableError: it cannot be loaded here.
        MemoryError: not enough memory for it now.
    """
    resolved = resolve_precision(precision, device)
    model = _load(name, resolved, device, make_backend, on_pixel_spec)
    reason = _why_off(model, on_device)
    if reason is None:
        return model
    is_by_kept = model.forget_canaries()
    del model  # its weights were cast, and memory is needed for others
    gc.collect()  # backends may hang in cycles
    if is_by_kept:
        return load_model(name, precision, device, make_backend, on_device=on_device)
    what = f"model {name} is off in {resolved} on this worker's device: {reason}"
    if precision is not Precision.AUTO and resolved is not Precision.FP32:
        raise ModelUnavailableError(f"{what}; use auto or fp32") from Unfaithful(reason)
    if resolved is Precision.FP32:
        raise ModelUnavailableError(f"{what}; its files or this device are damaged") from Unfaithful(reason)
    log.warning("%s; it is loaded in fp32", what, extra={"action": "precision_fell_back", "model": name})
    return load_model(name, Precision.FP32, device, make_backend, on_device=on_device)


def _why_off(model: LoadedModel, on_device: OnDevice) -> str | None:
    """Why it may not be used, if so: words, for the exception itself would keep the model in memory."""
    try:
        on_device(model.prove)
    except FORWARD_ERRORS as error:
        if isinstance(error, MemoryError | BatcherStopped) or is_lost(error) or shortage_behind(error):
            raise  # no other precision would help
        return first_line(error)
    return None


def _load(
    name: str, precision: Precision, device: str, make_backend: MakeBackend, on_pixel_spec: OnPixelSpec
) -> LoadedModel:
    files = fetch_files(name)
    try:
        with memory_errors():
            ahead = open_clip_models.preprocessing_ahead(files.configuration, files.preprocessing)
            announced = None if ahead is None else _pixel_spec(ahead)
            if announced is not None:
                on_pixel_spec(announced)
            built = _build(name, files)
            pixel_spec = _pixel_spec(built.preprocessing)
            dimension = _dimension_of(built.module)
    except ImportError as error:
        raise ModelUnavailableError(
            f"model {name} needs the package {error.name}: run `pip install {error.name}`"
        ) from error
    except _loading_errors() as error:
        raise ModelUnavailableError(
            f"model {name} cannot be loaded: the files in {files.folder} do not fit ({first_line(error)})"
        ) from error
    if announced is not None and announced.facts() != pixel_spec.facts():
        raise RuntimeError(f"{name} wants to see {pixel_spec.facts()}, announced was {announced.facts()}")
    return LoadedModel(
        name,
        built.module,
        built.tokenizer,
        pixel_spec,
        embedding_dimension=dimension,
        precision=precision,
        device=device,
        make_backend=make_backend,
        configuration=files.configuration,
    )


def _build(name: str, files: ModelFiles) -> BuiltModel:
    if files.layout is Layout.OPEN_CLIP:
        return open_clip_models.build_from_folder(files.folder, files.configuration, files.tokenizer)
    if files.layout is Layout.TRANSFORMERS:
        state: dict[str, Any] = {}
        for file in files.weights:
            state |= open_clip_models.read_weights(file)
        return open_clip_models.build_from_state(
            files.configuration, files.preprocessing, transformers_layout.state_of(state)
        )
    architecture, _, pretrained = name.partition(":")
    open_clip_models.warn_of_other_activation(architecture, pretrained)
    return open_clip_models.build_named(
        architecture, files.configuration, files.preprocessing, files.weights[0], files.tokenizer
    )


def _pixel_spec(preprocessing: Preprocessing) -> PixelSpec:
    """What a model wants to see, from open_clip's preprocess configuration and its own transform."""
    config = preprocessing.configuration
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    to_tensor = next(
        n for n, step in enumerate(preprocessing.transforms) if "ToTensor" in type(step).__name__
    )
    steps = preprocessing.transforms[:to_tensor]

    def exact(image: Image.Image) -> Image.Image:
        for step in steps:
            image = step(image)
        return image

    return PixelSpec(
        width=width,
        height=height,
        interpolation=config["interpolation"],
        resize_mode=config["resize_mode"],
        fill_colour=config["fill_color"],
        mean=_per_colour(config["mean"]),
        std=_per_colour(config["std"]),
        exact=exact,
    )


def _per_colour(values: Any) -> tuple[float, float, float]:
    red, green, blue = values
    return float(red), float(green), float(blue)


def _loading_errors() -> tuple[type[Exception], ...]:
    """What open_clip, transformers and safetensors raise for files that are damaged or do not fit."""
    from pickle import UnpicklingError

    from safetensors import SafetensorError

    return (RuntimeError, OSError, ValueError, KeyError, IndexError, TypeError, AttributeError,
            AssertionError, StopIteration, EOFError, UnpicklingError, SafetensorError)  # fmt: skip


def _dimension_of(module: Any) -> int:
    import torch

    with torch.inference_mode():
        size = module.visual.image_size
        height, width = size if isinstance(size, tuple | list) else (size, size)
        return int(module.encode_image(torch.zeros(1, 3, height, width)).shape[1])


def embedding_dimension(name: str) -> int | None:
    """Length of a model's vectors, from what is on this machine; None if that does not tell."""
    try:
        configuration = find_configuration(name)
    except ModelUnavailableError:
        return None
    return int(configuration["embed_dim"]) if configuration else None


def _layers(module: Any) -> list[Any]:
    """What passes of the same weights may differ in: layers, and their numbers and words (heads, pooling)."""
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
