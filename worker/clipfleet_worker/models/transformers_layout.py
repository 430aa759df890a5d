"""Translate CLIP models as the library transformers saves them to open_clip's words. Pure functions, no I/O.

`config.json` describes a CLIPModel, `model.safetensors` holds its tensors by transformers' names, and
`preprocessor_config.json` says how images are prepared. The two libraries compute the same thing.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

# Defaults of CLIPTextConfig and CLIPVisionConfig, which files leave out.
_TEXT_DEFAULTS = {
    "vocab_size": 49408, "hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12,
    "num_attention_heads": 8, "max_position_embeddings": 77, "hidden_act": "quick_gelu",
    "layer_norm_eps": 1e-5,
}  # fmt: skip
_VISION_DEFAULTS = {
    "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12,
    "image_size": 224, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
    "num_channels": 3,
}  # fmt: skip
_PROJECTION_DEFAULT = 512
_CLIP_VOCABULARY = 49408
_QUICK_GELU = {"quick_gelu": True, "gelu": False}
_INTERPOLATIONS = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers

# Prefixes of names, theirs -> open_clip's.
_BEGINNINGS = {
    "text_model.embeddings.token_embedding.": "token_embedding.",
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.encoder.layers.": "transformer.resblocks.",
    "text_model.final_layer_norm.": "ln_final.",
    "vision_model.embeddings.class_embedding": "visual.class_embedding",
    "vision_model.embeddings.patch_embedding.": "visual.conv1.",
    "vision_model.embeddings.position_embedding.weight": "visual.positional_embedding",
    "vision_model.pre_layrnorm.": "visual.ln_pre.",  # misspelt there
    "vision_model.encoder.layers.": "visual.transformer.resblocks.",
    "vision_model.post_layernorm.": "visual.ln_post.",
}
_IN_LAYERS = {
    ".self_attn.out_proj.": ".attn.out_proj.", ".layer_norm1.": ".ln_1.", ".layer_norm2.": ".ln_2.",
    ".mlp.fc1.": ".mlp.c_fc.", ".mlp.fc2.": ".mlp.c_proj.",
}  # fmt: skip
_TRANSPOSED = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
_NOT_LEARNT = "embeddings.position_ids"  # in files of old versions


def configuration_of(config: dict[str, Any]) -> dict[str, Any]:
    """The content of `config.json` as open_clip's model_cfg: embed_dim, vision_cfg, text_cfg, quick_gelu.

    Raises:
        ValueError: it is no CLIPModel, or one that open_clip cannot compute; the message continues the file's
            name.
    """
    if config.get("model_type") != "clip":
        raise ValueError(
            f"describes a model of type {config.get('model_type')!r}; of transformers' only clip is read"
        )
    text = _tower(config, "text_config", _TEXT_DEFAULTS)
    vision = _tower(config, "vision_config", _VISION_DEFAULTS)
    activations = {text["hidden_act"], vision["hidden_act"]}
    if len(activations) > 1 or not activations <= _QUICK_GELU.keys():
        raise ValueError(
            f"has the activations {', '.join(sorted(activations))}; read is one of {', '.join(_QUICK_GELU)}"
        )
    if text["vocab_size"] != _CLIP_VOCABULARY:
        raise ValueError(
            f"has a vocabulary of {text['vocab_size']}, which is not CLIP's ({_CLIP_VOCABULARY})"
        )
    return {
        "embed_dim": int(config.get("projection_dim", _PROJECTION_DEFAULT)),
        "quick_gelu": _QUICK_GELU[activations.pop()],
        "vision_cfg": {
            **_layers(vision),
            "head_width": vision["hidden_size"] // vision["num_attention_heads"],
            "image_size": vision["image_size"],
            "patch_size": vision["patch_size"],
        },
        "text_cfg": {
            **_layers(text),
            "heads": text["num_attention_heads"],
            "context_length": text["max_position_embeddings"],
            "vocab_size": text["vocab_size"],
        },
    }


def preprocessing_of(config: dict[str, Any], image_size: int) -> dict[str, Any]:
    """The content of `preprocessor_config.json` as open_clip's preprocess_cfg.

    Raises:
        ValueError: open_clip cannot prepare images like this; the message continues the file's name.
    """
    config = config.get("image_processor", config)
    resized = config.get("size", {"shortest_edge": image_size})
    resized = {"shortest_edge": resized} if isinstance(resized, int) else dict(resized)
    cropped = config.get("crop_size", image_size) if config.get("do_center_crop", True) else image_size
    cropped = {cropped} if isinstance(cropped, int) else set(cropped.values())
    resize_mode = "shortest" if resized.keys() == {"shortest_edge"} else "squash"
    if set(resized.values()) != {image_size} or cropped != {image_size}:
        raise ValueError(f"does not make images of {image_size} x {image_size}, which the model takes")
    if config.get("resample", 3) not in _INTERPOLATIONS:
        raise ValueError(f"has resample {config['resample']}; read are 2 (bilinear) and 3 (bicubic)")
    found: dict[str, Any] = {
        "resize_mode": resize_mode,
        "interpolation": _INTERPOLATIONS[config.get("resample", 3)],
    }
    for ours, theirs in (("mean", "image_mean"), ("std", "image_std")):
        if theirs in config:
            found[ours] = tuple(config[theirs])
    return found


def state_of(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """A CLIPModel's tensors by open_clip's names; unknown ones keep their names, so that loading fails."""
    renamed: dict[str, torch.Tensor] = {}
    for name, tensor in state.items():
        if name.endswith(_NOT_LEARNT) or ".q_proj." in name or ".k_proj." in name:
            continue  # queries and keys go with the values
        if name in _TRANSPOSED:
            renamed[_TRANSPOSED[name]] = tensor.T.contiguous()
        elif ".v_proj." in name:
            layer, _, kind = name.partition(".self_attn.v_proj.")
            renamed[f"{_renamed(layer + '.')}attn.in_proj_{kind}"] = _joined(state, name)
        else:
            renamed[_renamed(name)] = tensor
    return renamed


def _joined(state: dict[str, torch.Tensor], name_of_values: str) -> torch.Tensor:
    """Queries, keys and values of a layer in one tensor, as torch's attention takes them."""
    import torch

    return torch.cat([state[name_of_values.replace(".v_proj.", f".{which}_proj.")] for which in "qkv"])


def _renamed(name: str) -> str:
    for theirs, ours in _BEGINNINGS.items():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    for theirs, ours in _IN_LAYERS.items():
        name = name.replace(theirs, ours)
    return name


def _tower(config: dict[str, Any], key: str, defaults: dict[str, Any]) -> dict[str, Any]:
    """A tower's configuration; in old files a second key takes precedence."""
    return {**defaults, **(config.get(key) or {}), **(config.get(f"{key}_dict") or {})}


def _layers(tower: dict[str, Any]) -> dict[str, Any]:
    width, inner = tower["hidden_size"], tower["intermediate_size"]
    return {
        "layers": tower["num_hidden_layers"],
        "width": width,
        "mlp_ratio": math.nextafter(inner / width, math.inf),  # open_clip multiplies again and rounds down
        "norm_kwargs": {"eps": tower["layer_norm_eps"]},
    }
