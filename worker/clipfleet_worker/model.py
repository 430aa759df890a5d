"""A loaded model: its weights on the device, what it wants to see, and its fingerprint.

torch is imported when a model is loaded, not before: that alone takes seconds.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from clipfleet.contract import DecodeRoute, Precision, short_hash
from clipfleet_worker import open_clip_models, transformers_layout
from clipfleet_worker.decode import PixelSpec
from clipfleet_worker.device import resolve_precision
from clipfleet_worker.device_memory import memory_errors
from clipfleet_worker.failures import ModelUnavailableError, first_line
from clipfleet_worker.model_files import Layout, ModelFiles, fetch_files, find_configuration
from clipfleet_worker.open_clip_models import BuiltModel

if TYPE_CHECKING:
    import torch


class LoadedModel:
    """A model on its device, ready for batches. `encode_*` belong to the batcher's thread."""

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
    ) -> None:
        import torch

        self.name = name
        self.embedding_dimension = embedding_dimension
        self.pixel_spec = pixel_spec
        self.precision = precision
        self.device = device
        weights_hash = _weights_hash(module)
        self.fingerprint = short_hash([weights_hash, pixel_spec.facts(), precision.value])
        self.logit_scale = float(module.logit_scale.detach().exp())
        self._dtype = _torch_dtype(precision)
        with memory_errors():
            self._module = module.requires_grad_(False).to(device=device, dtype=self._dtype)
            self._mean = torch.tensor(pixel_spec.mean, device=device).view(1, 3, 1, 1) * 255
            self._std = torch.tensor(pixel_spec.std, device=device).view(1, 3, 1, 1) * 255
        self._tokenizer = tokenizer

    def fingerprint_for(self, route: DecodeRoute) -> str:
        """The fingerprint that goes into rows: model, weights, preprocessing, precision and decode route."""
        return short_hash([self.fingerprint, route.value])

    def encode_images(self, pixels: np.ndarray) -> np.ndarray:
        """Pixels uint8 (n, height, width, 3) -> features float32 (n, d), L2-normalised."""
        import torch

        with torch.inference_mode(), memory_errors():
            # (n, h, w, 3) seen as (n, 3, h, w) is torch's channels-last layout: no copy, fast convolutions.
            images = torch.from_numpy(pixels).to(self.device, non_blocking=True).permute(0, 3, 1, 2)
            normalised = images.float().sub_(self._mean).div_(self._std).to(self._dtype)
            return _normalised(self._module.encode_image(normalised))

    def encode_texts(self, prompts: list[str]) -> np.ndarray:
        """Prompts -> features float32 (n, d), L2-normalised each."""
        import torch

        with torch.inference_mode(), memory_errors():
            tokens = self._tokenizer(prompts).to(self.device)
            return _normalised(self._module.encode_text(tokens))

    def warm_up(self) -> None:
        """One image and one text, so that the first chunk does not pay for lazy set-up."""
        spec = self.pixel_spec
        self.encode_images(np.zeros((1, spec.height, spec.width, 3), dtype=np.uint8))
        self.encode_texts(["a"])


def load_model(name: str, precision: Precision, device: str) -> LoadedModel:
    """Load a model by its full name, see `clipfleet.model_names`; what is not here yet is downloaded.

    Raises:
        ModelUnavailableError: it cannot be loaded here.
        MemoryError: not enough memory for it now.
    """
    precision = resolve_precision(precision, device)
    files = fetch_files(name)
    try:
        with memory_errors():
            built = _build(name, files)
            pixel_spec = _pixel_spec(built)
            dimension = _dimension_of(built.module)
    except ImportError as error:
        raise ModelUnavailableError(
            f"model {name} needs the package {error.name}: run `pip install {error.name}`"
        ) from error
    except _loading_errors() as error:
        raise ModelUnavailableError(
            f"model {name} cannot be loaded: the files in {files.folder} do not fit ({first_line(error)})"
        ) from error
    return LoadedModel(
        name,
        built.module,
        built.tokenizer,
        pixel_spec,
        embedding_dimension=dimension,
        precision=precision,
        device=device,
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


def _pixel_spec(built: BuiltModel) -> PixelSpec:
    """What a model wants to see, from open_clip's preprocess configuration and its own transform."""
    config = built.preprocessing
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    to_tensor = next(n for n, step in enumerate(built.transforms) if "ToTensor" in type(step).__name__)
    steps = built.transforms[:to_tensor]

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


def _torch_dtype(precision: Precision) -> torch.dtype:
    import torch

    return {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}[
        precision
    ]


def _normalised(features: torch.Tensor) -> np.ndarray:
    import torch

    array: np.ndarray = torch.nn.functional.normalize(features.float(), dim=-1).cpu().numpy()
    return array


def _weights_hash(module: Any) -> str:
    """sha256 over names and bytes of all weights as loaded, before they are cast."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode())
        digest.update(str(tensor.dtype).encode())
        digest.update(np.ascontiguousarray(tensor.float().numpy()).view(np.uint8).data)
    return digest.hexdigest()
