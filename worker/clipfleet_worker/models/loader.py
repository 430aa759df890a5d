"""Load a model by its name and prove its features. Which files it has is in `files`."""

from __future__ import annotations

import gc
import logging
from collections.abc import Callable
from typing import Any

from PIL import Image

from clipfleet.contract.jobs import Precision
from clipfleet_worker.encode.backends import MakeBackend
from clipfleet_worker.encode.backends.certificate import Unfaithful
from clipfleet_worker.encode.backends.torch_backend import TorchBackend
from clipfleet_worker.encode.batcher import BatcherStopped
from clipfleet_worker.encode.bisecting import FORWARD_ERRORS
from clipfleet_worker.failures import ModelUnavailableError, first_line
from clipfleet_worker.models import open_clip_models, transformers_layout
from clipfleet_worker.models.files import Layout, ModelFiles, fetch_files
from clipfleet_worker.models.loaded import LoadedModel, loading_errors
from clipfleet_worker.models.open_clip_models import BuiltModel, Preprocessing
from clipfleet_worker.pixel_spec import PixelSpec
from clipfleet_worker.process.device import is_lost, memory_errors, resolve_precision
from clipfleet_worker.process.shortages import shortage_behind

log = logging.getLogger(__name__)

OnPixelSpec = Callable[[PixelSpec], None]


OnDevice = Callable[[Callable[[], None]], None]  # runs a function in the thread that owns the device


def load_model(
    name: str,
    precision: Precision,
    device: str,
    make_backend: MakeBackend = TorchBackend,
    on_pixel_spec: OnPixelSpec = lambda _: None,
    on_device: OnDevice = lambda work: work(),
) -> LoadedModel:
    """Load a model by its full name (see `model_names`), downloading missing files.

    Before it returns, the model's features are compared with those of fp32 on the CPU.

    Args:
        name: of the model.
        precision: `auto` means the device's fast precision, or fp32 for a model whose features it spoils.
        device: by torch's name.
        make_backend: makes the backend that runs the forward passes.
        on_pixel_spec: called with the pixel spec, if it is known before the weights are loaded.
        on_device: runs the comparison.

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
    del model  # its weights were cast; the next attempt needs the memory
    gc.collect()  # backends may be in cycles
    if is_by_kept:
        return load_model(name, precision, device, make_backend, on_device=on_device)
    what = f"model {name} gives wrong features in {resolved} on this worker's device: {reason}"
    if precision is not Precision.AUTO and resolved is not Precision.FP32:
        raise ModelUnavailableError(f"{what}; use auto or fp32") from Unfaithful(reason)
    if resolved is Precision.FP32:
        raise ModelUnavailableError(f"{what}; its files or this device are damaged") from Unfaithful(reason)
    log.warning("%s; it is loaded in fp32", what, extra={"action": "precision_fell_back", "model": name})
    return load_model(name, Precision.FP32, device, make_backend, on_device=on_device)


def _why_off(model: LoadedModel, on_device: OnDevice) -> str | None:
    """Why the model may not be used, or None. Text, since an exception would keep the model in memory."""
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
    except loading_errors() as error:
        raise ModelUnavailableError(
            f"model {name} cannot be loaded: the files in {files.folder} do not fit ({first_line(error)})"
        ) from error
    if announced is not None and announced.facts() != pixel_spec.facts():
        raise RuntimeError(f"{name} takes {pixel_spec.facts()}, but {announced.facts()} was announced")
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
    """The pixel spec of a model, from open_clip's preprocess configuration and its own transform."""
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


def _dimension_of(module: Any) -> int:
    import torch

    with torch.inference_mode():
        size = module.visual.image_size
        height, width = size if isinstance(size, tuple | list) else (size, size)
        return int(module.encode_image(torch.zeros(1, 3, height, width)).shape[1])
