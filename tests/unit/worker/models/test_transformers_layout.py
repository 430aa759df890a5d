"""Folders that the library transformers writes: its own CLIPModel, with random weights, is the judge."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from clipfleet.contract.jobs import Precision
from clipfleet_worker.failures import ModelUnavailableError
from clipfleet_worker.models.files import embedding_dimension
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.models.transformers_layout import configuration_of, preprocessing_of, state_of

SIZE = 64


def clip(*, hidden_act: str = "quick_gelu", layer_norm_eps: float = 1e-5, seed: int = 0) -> CLIPModel:
    """A small CLIPModel, whose weights are large enough that every one of them shows in the features."""
    shared = {"hidden_act": hidden_act, "layer_norm_eps": layer_norm_eps}
    config = CLIPConfig(
        text_config={"hidden_size": 64, "intermediate_size": 100, "num_hidden_layers": 2,
                     "num_attention_heads": 2, **shared},
        vision_config={"hidden_size": 96, "intermediate_size": 200, "num_hidden_layers": 3,
                       "num_attention_heads": 3, "image_size": SIZE, "patch_size": 16, **shared},
        projection_dim=48,
    )  # fmt: skip
    model = CLIPModel(config).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "logit_scale":
                parameter += 0.2 * torch.randn(parameter.shape, generator=generator)
    return model


def load(folder: Path) -> LoadedModel:
    return load_model(f"local-dir:{folder}", Precision.FP32, "cpu")


def features(output: Any) -> np.ndarray:
    """Normalised features, from what transformers 4 and 5 return."""
    tensor = getattr(output, "pooler_output", output)
    return torch.nn.functional.normalize(tensor, dim=-1).detach().numpy()


@pytest.mark.parametrize("variant", [{}, {"hidden_act": "gelu"}, {"layer_norm_eps": 1e-2}], ids=str)
def test_features_are_those_of_transformers(variant: dict[str, Any], tmp_path: Path) -> None:
    theirs = clip(**variant)
    theirs.save_pretrained(tmp_path)
    pixels = np.random.default_rng(0).integers(0, 256, (8, SIZE, SIZE, 3), dtype=np.uint8)
    texts = ["a cat", "a photo of a dog on a bicycle", "x", "!" * 300]

    ours = load(tmp_path)

    spec = ours.pixel_spec
    normalised = (torch.from_numpy(pixels) / 255 - torch.tensor(spec.mean)) / torch.tensor(spec.std)
    tokens = ours._tokenizer(texts)  # the same ones for both
    assert tokens.max() == theirs.config.text_config.eos_token_id
    for found, output in (
        (ours.encode_images(pixels), theirs.get_image_features(normalised.permute(0, 3, 1, 2))),
        (ours.encode_texts(texts), theirs.get_text_features(tokens)),
    ):
        expected = features(output)
        assert (found * expected).sum(axis=1).min() >= 0.9999
        assert np.ptp(expected @ expected.T) > 0.01  # or any features would do
    assert ours.logit_scale == pytest.approx(float(theirs.logit_scale.detach().exp()))
    assert (ours.embedding_dimension, embedding_dimension(f"local-dir:{tmp_path}")) == (48, 48)


def test_several_files_and_files_of_torch_hold_the_same_model(tmp_path: Path) -> None:
    theirs = clip()
    theirs.save_pretrained(tmp_path / "one")
    theirs.save_pretrained(tmp_path / "several", max_shard_size="4MB")
    theirs.config.save_pretrained(tmp_path / "torch")
    state = {**theirs.state_dict(), "text_model.embeddings.position_ids": torch.arange(77)[None]}
    torch.save(state, tmp_path / "torch" / "pytorch_model.bin")
    assert len(list((tmp_path / "several").glob("*.safetensors"))) > 1

    assert len({load(tmp_path / name).fingerprint for name in ("one", "several", "torch")}) == 1


def test_the_processors_preprocessing_counts(tmp_path: Path) -> None:
    clip().save_pretrained(tmp_path)
    CLIPImageProcessor(
        size={"height": SIZE, "width": SIZE}, do_center_crop=False, resample=2,
        image_mean=[0.1, 0.2, 0.3], image_std=[0.4, 0.5, 0.6],
    ).save_pretrained(tmp_path)  # fmt: skip

    spec = load(tmp_path).pixel_spec

    assert (spec.width, spec.height, spec.resize_mode, spec.interpolation) == (64, 64, "squash", "bilinear")
    assert (spec.mean, spec.std) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6))


class TestPreprocessing:
    @pytest.mark.parametrize(
        ("config", "resize_mode"),
        [
            ({}, "shortest"),
            ({"size": 64, "crop_size": 64}, "shortest"),
            ({"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}}, "shortest"),
            ({"size": {"height": 64, "width": 64}, "do_center_crop": False}, "squash"),
            ({"image_processor": {"size": {"height": 64, "width": 64}}}, "squash"),
        ],
    )
    def test_what_it_means(self, config: dict[str, Any], resize_mode: str) -> None:
        assert preprocessing_of(config, 64) == {"resize_mode": resize_mode, "interpolation": "bicubic"}

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ({"size": 72, "crop_size": 64}, "64 x 64, which the model takes"),
            ({"size": 64, "crop_size": 60}, "64 x 64, which the model takes"),
            ({"size": {"height": 64, "width": 32}}, "64 x 64, which the model takes"),
            ({"resample": 1}, "resample 1"),
        ],
    )
    def test_another_size_or_resampling_is_refused(self, config: dict[str, Any], words: str) -> None:
        with pytest.raises(ValueError, match=words):
            preprocessing_of(config, 64)


class TestConfiguration:
    def test_what_is_left_out_has_the_defaults_of_transformers(self) -> None:
        found = configuration_of({"model_type": "clip"})
        full = CLIPConfig()

        assert found == configuration_of(full.to_dict())
        assert found["embed_dim"] == full.projection_dim

    def test_old_files_say_what_counts_under_a_second_name(self) -> None:
        config = {"model_type": "clip", "vision_config": None, "vision_config_dict": {"patch_size": 14}}
        assert configuration_of(config)["vision_cfg"]["patch_size"] == 14

    @pytest.mark.parametrize(
        ("config", "words"),
        [
            ({"model_type": "siglip"}, "'siglip'"),
            ({}, "None"),
            ({"model_type": "clip", "text_config": {"vocab_size": 99}}, "vocabulary of 99"),
            ({"model_type": "clip", "text_config": {"hidden_act": "relu"}}, "quick_gelu, relu"),
        ],
    )
    def test_what_open_clip_cannot_compute_is_refused(
        self, config: dict[str, Any], words: str, tmp_path: Path
    ) -> None:
        (tmp_path / "config.json").write_text(json.dumps(config))

        with pytest.raises(ModelUnavailableError, match=words) as caught:
            load(tmp_path)
        assert str(tmp_path / "config.json") in str(caught.value)

    def test_a_tensor_that_is_not_known_is_not_dropped(self) -> None:
        assert "adapter.weight" in state_of({"adapter.weight": torch.zeros(1)})
