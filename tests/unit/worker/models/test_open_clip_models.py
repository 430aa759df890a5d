"""What we ask of open_clip's own registry: names, places of weights, and what they were trained with."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import open_clip
import pytest
import torch
from open_clip.transform import PreprocessCfg, image_transform_v2

from clipfleet.contract.jobs import DEFAULT_MODEL
from clipfleet_worker.models.open_clip_models import (
    configuration_of,
    known_models,
    known_weights,
    preprocessing_ahead,
    warn_of_other_activation,
    weights_in,
)


def test_all_names_have_a_place_on_the_hub() -> None:
    """Weights that open_clip knows by an address alone could not be pulled."""
    names = known_models()

    assert DEFAULT_MODEL in names
    assert len(names) > 100
    for name in names:
        found = known_weights(*name.split(":"))
        assert found.repository.count("/") == 1
        assert found.file_names[0].endswith(".safetensors")


@pytest.mark.parametrize(
    ("name", "repository", "file_names"),
    [
        (DEFAULT_MODEL, "laion/CLIP-ViT-B-32-DataComp.XL-s13B-b90K",
         ("open_clip_model.safetensors", "open_clip_pytorch_model.bin")),
        ("ViTamin-S:datacomp1b", "jienengchen/ViTamin-S", ("pytorch_model.safetensors", "pytorch_model.bin")),
    ],
)  # fmt: skip
def test_where_weights_are(name: str, repository: str, file_names: tuple[str, ...]) -> None:
    found = known_weights(*name.split(":"))

    assert (found.repository, found.file_names) == (repository, file_names)
    assert found.preprocessing["interpolation"] == "bicubic"


def test_a_configuration_may_be_changed_without_harm() -> None:
    configuration_of("ViT-B-32")["embed_dim"] = 1
    assert configuration_of("ViT-B-32")["embed_dim"] == 512
    assert open_clip.get_model_config("ViT-B-32")["embed_dim"] == 512


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["model.safetensors", "open_clip_model.safetensors"], "open_clip_model.safetensors"),
        (["model.safetensors", "open_clip_pytorch_model.bin"], "open_clip_pytorch_model.bin"),
        (["b.safetensors", "a.bin", "model.pth"], "model.pth"),
        (["b.safetensors", "a.bin"], "b.safetensors"),
        (["a.pth", "b.bin"], "b.bin"),
        (["a.txt"], None),
    ],
)  # fmt: skip
def test_the_weights_of_a_folder(names: list[str], chosen: str | None, tmp_path: Path) -> None:
    for name in names:
        (tmp_path / name).touch()
    assert weights_in(tmp_path) == (tmp_path / chosen if chosen else None)


@pytest.mark.parametrize(
    ("name", "warns"),
    [
        ("ViT-B-32:openai", True),
        ("ViT-B-32-quickgelu:openai", False),
        ("ViT-B-32:datacomp_xl_s13b_b90k", False),
        ("ViT-B-32:/a/file.pt", False),
    ],
)
def test_weights_trained_with_another_activation_are_warned_of(
    name: str, warns: bool, caplog: pytest.LogCaptureFixture
) -> None:
    warn_of_other_activation(*name.split(":"))

    advice = [record.getMessage().rpartition("; ")[2] for record in caplog.records]
    assert advice == ["use the model ViT-B-32-quickgelu:openai"] * warns


def test_what_a_model_wants_to_see_is_known_before_it_is_built() -> None:
    """Compared with the model itself, without weights; timm's alone know."""
    small = [name for name in open_clip.list_models() if name.startswith(("RN", "ViT-S", "ViT-B"))]
    told = {}
    for name in small:
        said = {"mean": [0.1, 0.2, 0.3], "interpolation": "bilinear"}
        ahead = preprocessing_ahead(configuration_of(name), said)
        if ahead is None:
            assert "timm_model_name" in configuration_of(name)["vision_cfg"]
            continue
        options = {"device": "meta", "force_preprocess_cfg": said, "pretrained_text": False}
        with torch.device("meta"):
            module = open_clip.create_model(name, **options)
        built = PreprocessCfg(**open_clip.get_model_preprocess_cfg(module))
        told[name] = ahead.configuration.pop("size")
        sizes = asdict(built).pop("size")
        assert sizes in (told[name], (told[name], told[name]))
        assert {**ahead.configuration, "size": sizes} == asdict(built)
        assert repr(image_transform_v2(built, is_train=False).transforms) == repr(ahead.transforms)
    assert len(told) > 20
    assert told["RN50x4"] == 288
