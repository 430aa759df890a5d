"""The only module that imports open_clip: loading, precision, preprocessing, warm-up, fingerprint.

open_clip and torch are imported when a model is loaded, not before: that alone takes seconds.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from importlib.resources import as_file, files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image

from clipfleet.contract import DEMO_MODEL, DecodeRoute, Precision, Preset, short_hash
from clipfleet.errors import UsageError
from clipfleet_worker.decode import PixelSpec
from clipfleet_worker.device_memory import memory_errors

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

_CPU_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16"})
_LOCAL_DIR = "local-dir:"
_HUB = "hf-hub:"
_CONFIG_FILE = "open_clip_config.json"


class ModelUnavailableError(Exception):
    """The model cannot be loaded on this machine; the message says what to do."""


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
        self._tokenizer = tokenizer
        self._mean = torch.tensor(pixel_spec.mean, device=device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(pixel_spec.std, device=device).view(1, 3, 1, 1) * 255

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
    """Load a model by name: `demo`, `NAME:PRETRAINED`, `hf-hub:ORG/REPOSITORY` or `local-dir:PATH`.

    Raises:
        ModelUnavailableError: it cannot be loaded here.
    """
    precision = resolve_precision(precision, device)
    if name == DEMO_MODEL:
        with as_file(files("clipfleet_worker") / "demo_model") as folder:
            return _load(name, f"{_LOCAL_DIR}{folder}", None, precision, device)
    if name.startswith((_LOCAL_DIR, _HUB)):
        return _load(name, name, None, precision, device)
    architecture, _, pretrained = name.partition(":")
    return _load(name, architecture, pretrained, precision, device)


def _load(
    name: str, identifier: str, pretrained: str | None, precision: Precision, device: str
) -> LoadedModel:
    import open_clip

    if pretrained is not None and not open_clip.get_model_config(identifier):
        raise ModelUnavailableError(f"model {name}: open_clip knows no architecture {identifier!r}")
    try:
        module, _, preprocess = open_clip.create_model_and_transforms(
            identifier, pretrained=pretrained, require_pretrained=True, device="cpu"
        )
        tokenizer = open_clip.get_tokenizer(identifier, context_length=_context_length(module))
    except _loading_errors() as error:
        raise ModelUnavailableError(
            f"model {name} cannot be loaded: copy its weights to this machine's hub cache, or give "
            f"local-dir:PATH ({_first_line(error)})"
        ) from error
    module.eval()  # before any forward: in training mode batch norm would shift its statistics
    spec = _pixel_spec(open_clip.get_model_preprocess_cfg(module), preprocess.transforms)
    return LoadedModel(
        name,
        module,
        tokenizer,
        spec,
        embedding_dimension=_dimension_of(module),
        precision=precision,
        device=device,
    )


def _pixel_spec(config: dict[str, Any], transforms: Sequence[Callable[[Any], Any]]) -> PixelSpec:
    """What a model wants to see, from open_clip's preprocess configuration and its own transform."""
    size = config["size"]
    height, width = (size, size) if isinstance(size, int) else size[-2:]
    steps = transforms[: next(n for n, step in enumerate(transforms) if "ToTensor" in type(step).__name__)]

    def exact(image: Image.Image) -> Image.Image:
        for step in steps:
            image = step(image)
        return image

    return PixelSpec(
        width=width,
        height=height,
        interpolation=config["interpolation"],
        resize_mode=config["resize_mode"],
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
        exact=exact,
    )


def preset_label_set(preset: Preset) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels and prompt templates that open_clip brings; a label may appear twice, as it does there."""
    import open_clip

    match preset:
        case Preset.IMAGENET1K:
            templates = (template("{}") for template in open_clip.OPENAI_IMAGENET_TEMPLATES)
            return tuple(open_clip.IMAGENET_CLASSNAMES), tuple(templates)


def _loading_errors() -> tuple[type[Exception], ...]:
    """What open_clip, the hub client and safetensors raise for a model that is not there or does not fit."""
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError
    from safetensors import SafetensorError

    return (RuntimeError, OSError, ValueError, KeyError, TypeError, AssertionError, ImportError,
            SafetensorError, HfHubHTTPError, HFValidationError)  # fmt: skip


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0][:200]


def _context_length(module: Any) -> int | None:
    length = getattr(module, "context_length", None)
    return int(length) if isinstance(length, int) else None


def _dimension_of(module: Any) -> int:
    import torch

    with torch.inference_mode():
        size = module.visual.image_size
        height, width = size if isinstance(size, tuple | list) else (size, size)
        return int(module.encode_image(torch.zeros(1, 3, height, width)).shape[1])


def resolve_precision(requested: Precision, device: str) -> Precision:
    """`auto` becomes bf16 where the device computes it in hardware, else fp32.

    Raises:
        ModelUnavailableError: the device cannot compute in this precision.
    """
    is_cpu = device == "cpu"
    if requested is Precision.AUTO:
        return Precision.BF16 if not is_cpu or _cpu_has_bf16() else Precision.FP32
    if requested is Precision.FP16 and is_cpu:
        raise ModelUnavailableError("precision fp16 needs a GPU: use auto, bf16 or fp32 on this worker")
    return requested


def pick_device(setting: str) -> str:
    """`auto` becomes `cuda` if torch sees a GPU, else `cpu`.

    Raises:
        UsageError: the setting names a GPU that torch does not see.
    """
    import torch

    if setting == "auto":
        return "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, number = setting.partition(":")
    count = torch.cuda.device_count() if kind == "cuda" else 0
    if kind == "cuda" and int(number or 0) >= count:
        raise UsageError(
            f"CLIPFLEET_DEVICE is {setting}, but torch {torch.__version__} sees {count or 'no'} "
            f"GPU{'s' if count > 1 else ''} here"
        )
    return setting


def embedding_dimension(name: str) -> int | None:
    """Length of a model's vectors, from its configuration alone; None if that is not at hand."""
    if name == DEMO_MODEL:
        with as_file(files("clipfleet_worker") / "demo_model") as folder:
            return _configured_dimension(folder)
    if name.startswith(_LOCAL_DIR):
        return _configured_dimension(Path(name.removeprefix(_LOCAL_DIR)))
    if name.startswith(_HUB):
        return None
    import open_clip

    config = open_clip.get_model_config(name.partition(":")[0])
    return int(config["embed_dim"]) if config else None


def _configured_dimension(folder: Path) -> int | None:
    try:
        return int(json.loads((folder / _CONFIG_FILE).read_text())["model_cfg"]["embed_dim"])
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _cpu_has_bf16() -> bool:
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:  # not Linux
        return False
    flags = next((line for line in text.splitlines() if line.startswith("flags")), "")
    return not _CPU_BF16_FLAGS.isdisjoint(flags.split())


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
