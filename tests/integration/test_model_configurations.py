"""Models of other shapes and habits than the demo model follow their own configuration, as in open_clip.

All have random weights: folders in open_clip's layout at 336 pixels, like SigLIP, with padding, not square;
and the default model, by its name, from a hub's cache that the test makes. The reference is open_clip's own
loading, transform, tokenizer and forward.
"""

from __future__ import annotations

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import safetensors.torch
import torch
from PIL import Image
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast, RobertaConfig

from clipfleet.contract.jobs import DEFAULT_MODEL, DecodeRoute, Precision
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.encode.backends.cpu_backends import cpu_backends
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from tests.conftest import service_is_missing
from tests.support.hub_cache import HubCache
from tests.support.images import encoded, photo, shapes
from tests.support.reference import ReferenceModel, cosines, difference_of, p999

pytestmark = [pytest.mark.figures, pytest.mark.long]

_TEXT = {"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1}
_VISION = {"layers": 1, "width": 64, "head_width": 32}
_HALF = {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}

# As in open_clip's own configurations, but for the number and width of the layers.
CONFIGURATIONS: dict[str, dict[str, Any]] = {
    "336 px": {
        "model_cfg": {
            "embed_dim": 48, "vision_cfg": {**_VISION, "image_size": 336, "patch_size": 14},
            "text_cfg": _TEXT,
        },
    },
    "siglip": {
        "model_cfg": {
            "embed_dim": 96, "init_logit_bias": -10, "custom_text": True,
            "vision_cfg": {
                "image_size": 160, "timm_model_name": "test_vit3", "timm_model_pretrained": False,
                "timm_pool": "map", "timm_proj": "none",
            },
            "text_cfg": {
                "context_length": 64, "vocab_size": 32000, "hf_tokenizer_name": "timm/ViT-B-16-SigLIP",
                "tokenizer_kwargs": {"clean": "canonicalize"}, "width": 96, "heads": 2, "layers": 1,
                "no_causal_mask": True, "proj_bias": True, "pool_type": "last", "norm_kwargs": {"eps": 1e-6},
            },
        },
        "preprocess_cfg": {**_HALF, "interpolation": "bicubic", "resize_mode": "squash"},
    },
    "padded": {
        "model_cfg": {
            "embed_dim": 48, "vision_cfg": {**_VISION, "image_size": 96, "patch_size": 16}, "text_cfg": _TEXT,
        },
        "preprocess_cfg": {**_HALF, "interpolation": "bilinear", "resize_mode": "longest", "fill_color": 127},
    },
    "not square": {
        "model_cfg": {
            "embed_dim": 48, "vision_cfg": {**_VISION, "image_size": [96, 160], "patch_size": 16},
            "text_cfg": _TEXT,
        },
        "preprocess_cfg": {"interpolation": "bilinear", "resize_mode": "shortest"},
    },
}  # fmt: skip
_SPECS = {  # (width, height, interpolation, resize mode, fill colour)
    "336 px": (336, 336, "bicubic", "shortest", 0),
    "siglip": (160, 160, "bicubic", "squash", 0),
    "padded": (96, 96, "bilinear", "longest", 127),
    "not square": (160, 96, "bilinear", "shortest", 0),
}
_IMAGES = tuple(
    encoded(make(seed, width, height), image_format)
    for seed, (make, width, height, image_format) in enumerate(
        (
            (photo, 500, 333, "JPEG"), (photo, 333, 501, "JPEG"), (shapes, 400, 300, "PNG"),
            (photo, 336, 336, "JPEG"), (photo, 97, 83, "WEBP"), (shapes, 1023, 771, "JPEG"),
            (photo, 2048, 1500, "JPEG"), (photo, 120, 900, "JPEG"), (photo, 3001, 2003, "JPEG"),
        )
    )
)  # fmt: skip
_TEXTS = ["a photo of a cat", "A_Dog, on the MOON!", "x", "many words " * 60]


@dataclass(frozen=True)
class Pair:
    """A model as we load it, and as open_clip does."""

    configuration: str
    ours: LoadedModel
    reference: ReferenceModel


def write_tokenizer(folder: Path) -> None:
    """A tokenizer of words, padded like SigLIP's, from no download."""
    words = ("<pad> </s> <unk> " + "a photo of cat dog on the moon x many words").split()
    tokenizer = Tokenizer(models.WordLevel({word: n for n, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="</s>", unk_token="<unk>"
    ).save_pretrained(folder)


@pytest.fixture(scope="module", params=CONFIGURATIONS)
def pair(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Pair:
    folder = tmp_path_factory.mktemp("model")
    configuration = CONFIGURATIONS[request.param]
    values = dict(configuration["model_cfg"])
    kind = open_clip.CustomTextCLIP if values.pop("custom_text", False) else open_clip.CLIP
    torch.manual_seed(0)
    module = kind(**values)
    with torch.no_grad():
        for parameter in module.parameters():
            if parameter.ndim > 1:  # as large as trained ones, so that images differ in their features
                parameter.mul_(3)
    safetensors.torch.save_file(module.state_dict(), folder / "open_clip_model.safetensors")
    (folder / "open_clip_config.json").write_text(json.dumps(configuration))
    write_tokenizer(folder)
    return Pair(
        request.param, load_model(f"local-dir:{folder}", Precision.FP32, "cpu"), ReferenceModel(folder)
    )


def test_the_preprocessing_is_the_models_own(pair: Pair) -> None:
    spec = pair.ours.pixel_spec
    expected = pair.reference.module.visual.preprocess_cfg

    found = (spec.width, spec.height, spec.interpolation, spec.resize_mode, spec.fill_colour)
    assert found == _SPECS[pair.configuration]
    assert (list(spec.mean), list(spec.std)) == (list(expected["mean"]), list(expected["std"]))


def test_pixels_and_features_of_images(pair: Pair) -> None:
    decoder = Decoder(max_pixels=100_000_000)
    tensors = [pair.reference.tensor(Image.open(io.BytesIO(data))) for data in _IMAGES]
    expected = [pair.reference.pixels(tensor) for tensor in tensors]
    exact, fast = (
        [decoder.decode(data, pair.ours.pixel_spec, route).pixels for data in _IMAGES]
        for route in (DecodeRoute.EXACT, DecodeRoute.FAST)
    )

    differences = [difference_of(ours, theirs) for ours, theirs in zip(fast, expected, strict=True)]
    features = pair.reference.features(tensors)
    found = cosines(pair.ours.encode_images(np.stack(exact)), features)
    found_fast = cosines(pair.ours.encode_images(np.stack(fast)), features)

    print(f"\n{pair.configuration}: fast p99.9 {p999(differences):g}, cosines {found_fast.min():.6f}")
    assert all(np.array_equal(ours, theirs) for ours, theirs in zip(exact, expected, strict=True))
    assert p999(differences) <= 4
    assert found.min() >= 0.9999
    assert found_fast.min() >= 0.9995
    assert (features @ features.T).min() < 0.999  # or any pixels would do


def test_features_of_texts(pair: Pair) -> None:
    tokens = pair.reference.tokenizer(_TEXTS)
    with torch.no_grad():
        expected = pair.reference.module.encode_text(tokens, normalize=True).numpy()

    found = cosines(pair.ours.encode_texts(_TEXTS), expected)

    assert tokens.shape == (len(_TEXTS), pair.reference.module.context_length)
    assert found.min() >= 0.9999
    assert (expected @ expected.T).min() < 0.999


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16])
def test_features_by_openvino(pair: Pair, precision: Precision) -> None:
    if find_spec("openvino") is None:
        service_is_missing("openvino is not installed")
    model = load_model(pair.ours.name, precision, "cpu", cpu_backends("auto"))
    spec = model.pixel_spec
    pixels = np.random.default_rng(1).integers(0, 256, (5, spec.height, spec.width, 3), dtype=np.uint8)

    images = cosines(model.encode_images(pixels), pair.ours.encode_images(pixels))
    texts = cosines(model.encode_texts(_TEXTS), pair.ours.encode_texts(_TEXTS))

    assert model.backend_name == "openvino"
    assert min(images.min(), texts.min()) >= (0.9999 if precision is Precision.FP32 else 0.997)


def test_a_text_tower_of_transformers(tmp_path: Path) -> None:
    """Its configuration is read from the model's folder, not from the hub that open_clip would ask."""
    RobertaConfig(
        vocab_size=100, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=64,
        max_position_embeddings=90, pad_token_id=0,
    ).save_pretrained(tmp_path)  # fmt: skip
    write_tokenizer(tmp_path)
    text_cfg = {"hf_model_name": "roberta-base", "hf_tokenizer_name": "roberta-base",
                "hf_pooler_type": "mean_pooler"}  # fmt: skip
    model_cfg = {**CONFIGURATIONS["padded"]["model_cfg"], "text_cfg": text_cfg}
    here = {**text_cfg, "hf_model_name": str(tmp_path), "hf_model_pretrained": False}
    torch.manual_seed(0)
    module = open_clip.CustomTextCLIP(**(model_cfg | {"text_cfg": here})).eval()
    safetensors.torch.save_file(module.state_dict(), tmp_path / "open_clip_model.safetensors")
    (tmp_path / "open_clip_config.json").write_text(json.dumps({"model_cfg": model_cfg}))

    found = load_model(f"local-dir:{tmp_path}", Precision.FP32, "cpu").encode_texts(_TEXTS)

    tokens = open_clip.tokenizer.HFTokenizer(str(tmp_path), context_length=77)(_TEXTS)
    with torch.no_grad():
        expected = module.encode_text(tokens, normalize=True).numpy()
    assert cosines(found, expected).min() >= 0.9999


@pytest.fixture(scope="module")
def default_model(tmp_path_factory: pytest.TempPathFactory) -> Iterator[open_clip.CLIP]:
    """The default architecture at its full size, whose random weights lie where the hub's client looks."""
    folder = tmp_path_factory.mktemp("hub")
    torch.manual_seed(0)
    module = open_clip.CLIP(**open_clip.get_model_config("ViT-B-32"))
    weights = folder / "open_clip_model.safetensors"
    safetensors.torch.save_file(module.state_dict(), weights)
    cache = HubCache(folder)
    cache.add("laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K", {weights.name: weights})
    with pytest.MonkeyPatch.context() as monkeypatch:
        cache.use(monkeypatch)
        yield module.eval()
    weights.unlink()  # 605 MB, which pytest would keep for three runs


def test_the_default_model_is_found_by_name(default_model: open_clip.CLIP) -> None:
    default = open_clip.get_pretrained_cfg("ViT-B-32", "datacomp_xl_s13b_b90k")

    model = load_model(DEFAULT_MODEL, Precision.FP32, "cpu")

    spec = model.pixel_spec
    assert model.embedding_dimension == 512
    assert (spec.width, spec.height, spec.resize_mode) == (224, 224, default["resize_mode"])
    assert (spec.mean, spec.std) == (default["mean"], default["std"])
    pixels = np.random.default_rng(0).integers(0, 256, (2, 224, 224, 3), dtype=np.uint8)
    normalised = (torch.from_numpy(pixels) / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    with torch.no_grad():
        images = default_model.encode_image(normalised.permute(0, 3, 1, 2), normalize=True).numpy()
        tokens = open_clip.get_tokenizer("ViT-B-32")(_TEXTS)
        texts = default_model.encode_text(tokens, normalize=True).numpy()
    assert cosines(model.encode_images(pixels), images).min() >= 0.9999
    assert cosines(model.encode_texts(_TEXTS), texts).min() >= 0.9999
    assert images.shape == (2, 512)
