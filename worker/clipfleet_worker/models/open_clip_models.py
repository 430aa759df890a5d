"""The only module that imports open_clip: which models it has, and building one from files.

Nothing here uses the network. open_clip and torch are imported in functions, when a model is needed, and
without the parts that most models do not use, which take two thirds of the time: a plain `import open_clip`
loads transformers and timm, which only models with their towers need, and through torchvision torch's
compiler, for one check in object detectors: 3.2 s of a core, torch included. Without them it takes 1.4 s, and
every start of a worker waits for it. open_clip itself runs without transformers and timm installed; nothing
else is left out, and nothing in it is changed.
"""

from __future__ import annotations

import difflib
import importlib
import logging
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from clipfleet.contract.label_sets import Preset
from clipfleet_worker.failures import ModelUnavailableError
from clipfleet_worker.models.shortcuts import replaced_modules, without_compiler, without_random_weights

log = logging.getLogger(__name__)

# In the order in which open_clip looks for them.
WEIGHTS_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")
_OTHER_WEIGHTS_FILES = (
    "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.pth",
    "model.safetensors", "pytorch_model.bin", "pytorch_model.pth", "model.pth",
)  # fmt: skip

_PREPROCESSING_WORDS = ("mean", "std", "interpolation", "resize_mode", "fill_color")

_OF_SOME_TOWERS = ("timm", "transformers")

_lock = threading.Lock()
_is_partial = False  # open_clip is imported, and believes that timm and transformers are not installed


@dataclass(frozen=True, slots=True)
class KnownWeights:
    """Weights that open_clip knows by name, and where they are on the hub."""

    repository: str
    file_names: tuple[str, ...]  # alternatives, best first
    preprocessing: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Preprocessing:
    """What open_clip does to an image before the forward pass."""

    configuration: dict[str, Any]  # size, mean, std, interpolation, resize_mode, fill_color
    transforms: Sequence[Callable[[Any], Any]]  # open_clip's own, from image to normalised tensor


@dataclass(frozen=True, slots=True)
class BuiltModel:
    """A model as open_clip makes it: on the CPU, in fp32, in evaluation mode."""

    module: Any
    tokenizer: Callable[[list[str]], Any]  # texts -> int64 (n, context length)
    preprocessing: Preprocessing


def import_open_clip(configuration: Mapping[str, Any] | None = None) -> Any:
    """The package; whole if a model of this configuration needs that, or if it was imported whole before.

    Importing it again does not affect loaded models.
    """
    global _is_partial
    needs_all = configuration is not None and needs_timm_or_transformers(configuration)
    with _lock:
        if _is_partial and needs_all:
            for name in [name for name in sys.modules if name.partition(".")[0] == "open_clip"]:
                del sys.modules[name]
            _is_partial = False
        if needs_all or "open_clip" in sys.modules:
            return importlib.import_module("open_clip")
        with without_compiler():
            importlib.import_module("torchvision")
        hidden = [name for name in _OF_SOME_TOWERS if name not in sys.modules]
        with replaced_modules({name: None for name in hidden}):
            found = importlib.import_module("open_clip")
        _is_partial = bool(hidden)
        return found


def needs_timm_or_transformers(configuration: Mapping[str, Any]) -> bool:
    """Whether a tower of this configuration comes from timm or transformers."""
    return (
        "multimodal_cfg" in configuration  # CoCa
        or bool(configuration.get("text_cfg", {}).get("hf_model_name"))
        or bool(configuration.get("vision_cfg", {}).get("timm_model_name"))
    )


def known_models() -> list[str]:
    """All names `NAME:PRETRAINED`."""
    open_clip = import_open_clip()
    names: list[str] = open_clip.list_pretrained(as_str=True)
    return names


def configuration_of(architecture: str) -> dict[str, Any]:
    """An architecture's configuration: embed_dim, vision_cfg, text_cfg.

    Raises:
        ModelUnavailableError: open_clip knows no such architecture.
    """
    open_clip = import_open_clip()
    configuration: dict[str, Any] | None = open_clip.get_model_config(architecture)
    if configuration is None:
        meant = _meant(architecture, open_clip.list_models())
        raise ModelUnavailableError(
            f"open_clip knows no architecture {architecture!r}{meant}; "
            "`clipfleet-worker models list --all` lists those it knows"
        )
    return configuration


def known_weights(architecture: str, pretrained: str) -> KnownWeights:
    """Where the weights of an architecture are.

    Raises:
        ModelUnavailableError: open_clip knows no weights of this name.
    """
    open_clip = import_open_clip()
    config = open_clip.get_pretrained_cfg(architecture, pretrained)
    if not config:
        names = open_clip.list_pretrained_tags_by_model(architecture)
        raise ModelUnavailableError(
            f"open_clip knows no weights {pretrained!r} of {architecture}{_meant(pretrained, names)}; "
            "`clipfleet-worker models list --all` lists those it knows"
        )
    repository, _, file_name = config["hf_hub"].rpartition("/")
    names = [f"{file_name.rpartition('.')[0]}.safetensors", file_name] if file_name else WEIGHTS_FILES
    preprocessing = {word: config[word] for word in _PREPROCESSING_WORDS if word in config}
    return KnownWeights(repository, tuple(names), preprocessing)


def warn_of_other_activation(architecture: str, pretrained: str) -> None:
    """Log a warning if the weights were trained with another activation than the architecture's."""
    open_clip = import_open_clip()
    trained = open_clip.get_pretrained_cfg(architecture, pretrained).get("quick_gelu", False)
    if trained and not configuration_of(architecture).get("quick_gelu", False):
        log.warning(
            "the weights %s were trained with the activation QuickGELU, which %s does not have: "
            "features differ a little, as in open_clip itself; use the model %s-quickgelu:%s",
            pretrained, architecture, architecture, pretrained, extra={"action": "other_activation"},
        )  # fmt: skip


def weights_in(folder: Path) -> Path | None:
    """The file of a folder that open_clip takes the weights from."""
    found = [path for suffix in ("safetensors", "bin", "pth") for path in sorted(folder.glob(f"*.{suffix}"))]
    by_name = {path.name: path for path in found}
    preferred = [by_name[name] for name in (*WEIGHTS_FILES, *_OTHER_WEIGHTS_FILES) if name in by_name]
    return next(iter(preferred + found), None)


def preset_label_set(preset: Preset) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Labels and prompt templates of open_clip; a label may appear twice, as it does there."""
    open_clip = import_open_clip()
    match preset:
        case Preset.IMAGENET1K:
            templates = open_clip.OPENAI_IMAGENET_TEMPLATES
        case Preset.IMAGENET1K_SIMPLE:
            templates = open_clip.SIMPLE_IMAGENET_TEMPLATES
    return tuple(open_clip.IMAGENET_CLASSNAMES), tuple(template("{}") for template in templates)


def build_named(
    architecture: str,
    configuration: dict[str, Any],
    preprocessing: dict[str, Any],
    weights: Path,
    tokenizer: Path | None,
) -> BuiltModel:
    """A model whose architecture open_clip knows by name, with weights from a file."""
    return _create(
        architecture, configuration, tokenizer, pretrained=str(weights), force_preprocess_cfg=preprocessing
    )


def build_from_folder(folder: Path, configuration: dict[str, Any], tokenizer: Path | None) -> BuiltModel:
    """A model whose folder holds open_clip's configuration and weights."""
    return _create(f"local-dir:{folder}", configuration, tokenizer)


def build_from_state(
    configuration: dict[str, Any], preprocessing: dict[str, Any], state: dict[str, Any]
) -> BuiltModel:
    """A plain CLIP from weights in memory, by open_clip's names."""
    open_clip = import_open_clip(configuration)
    from open_clip.transform import PreprocessCfg

    with without_random_weights():
        module = open_clip.CLIP(**configuration)
    module.load_state_dict(state)
    size = {"size": module.visual.image_size}
    return _built(module, PreprocessCfg(**(size | preprocessing)), configuration, None)


def preprocessing_ahead(configuration: dict[str, Any], preprocessing: dict[str, Any]) -> Preprocessing | None:
    """The preprocessing of a model before it is built; None if only the built model defines it.

    Args:
        configuration: of the architecture.
        preprocessing: from its files, in open_clip's words; missing values are its defaults.
    """
    vision = configuration["vision_cfg"]
    if vision.get("timm_model_name"):
        return None  # timm may change the size
    import_open_clip(configuration)
    from open_clip.model import CLIPVisionCfg
    from open_clip.transform import PreprocessCfg, merge_preprocess_dict

    size = {"size": vision.get("image_size", CLIPVisionCfg.image_size)}
    said = merge_preprocess_dict(PreprocessCfg(), preprocessing) | size
    return _preprocessing(PreprocessCfg(**said))


def read_weights(file: Path) -> dict[str, Any]:
    """Tensors by name, from a .safetensors or a file of torch's; a pickle may hold nothing but tensors."""
    state: dict[str, Any] = import_open_clip().factory.load_state_dict(str(file), weights_only=True)
    return state


def _create(name: str, configuration: dict[str, Any], tokenizer: Path | None, **options: Any) -> BuiltModel:
    open_clip = import_open_clip(configuration)
    from open_clip.transform import PreprocessCfg

    text_cfg = configuration["text_cfg"]
    if text_cfg.get("hf_model_name"):  # a text tower of transformers: its configuration is with its tokenizer
        options["text_cfg"] = {**text_cfg, "hf_model_name": str(tokenizer), "hf_model_pretrained": False}
    with without_random_weights():
        module = open_clip.create_model(name, require_pretrained=True, device="cpu", **options)
    preprocessing = PreprocessCfg(**open_clip.get_model_preprocess_cfg(module))
    return _built(module, preprocessing, configuration, tokenizer)


def _built(
    module: Any, preprocessing: Any, configuration: dict[str, Any], tokenizer: Path | None
) -> BuiltModel:
    module.eval()  # before any forward: in training mode batch norm would shift its statistics
    return BuiltModel(
        module,
        _tokenizer(configuration["text_cfg"], tokenizer),
        _preprocessing(preprocessing),
    )


def _preprocessing(config: Any) -> Preprocessing:
    from open_clip.transform import image_transform_v2

    return Preprocessing(asdict(config), image_transform_v2(config, is_train=False).transforms)


def _tokenizer(text_cfg: dict[str, Any], folder: Path | None) -> Any:
    """What `open_clip.get_tokenizer` makes, from files that are here."""
    from open_clip.tokenizer import DEFAULT_CONTEXT_LENGTH, HFTokenizer, SimpleTokenizer

    context_length = text_cfg.get("context_length", DEFAULT_CONTEXT_LENGTH)
    options = dict(text_cfg.get("tokenizer_kwargs") or {})
    if folder is None:
        return SimpleTokenizer(context_length=context_length, **options)
    mode = text_cfg.get("tokenizer_mode")
    return HFTokenizer(str(folder), context_length=context_length, tokenizer_mode=mode, **options)


def _meant(word: str, known: Sequence[str]) -> str:
    close = difflib.get_close_matches(word, known, n=3)
    return f" (do you mean {' or '.join(close)}?)" if close else ""
