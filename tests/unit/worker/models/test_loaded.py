"""A loaded model at its edges, with torch modules of a few numbers: devices, memory, precision, names."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from importlib.resources import as_file, files
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipfleet.contract.jobs import DecodeRoute, Precision
from clipfleet.errors import UsageError
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.failures import ModelUnavailableError
from clipfleet_worker.models.files import embedding_dimension
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.process import device as device_module
from clipfleet_worker.process.device import is_lost, pick_device, resolve_precision

SIZE = 8
NO_TENSORS = b"\x02\0\0\0\0\0\0\0{}"  # a .safetensors


class TinyModule(torch.nn.Module):
    """Encodes an image as its first four pixels' red, a text as its length; may be told to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(np.log(100.0), dtype=torch.float32))
        self.error: BaseException | None = None

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        if self.error is not None:
            raise self.error
        return images[:, 0, 0, :4]

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        if self.error is not None:
            raise self.error
        return tokens.float()


def tokenizer(prompts: list[str]) -> torch.Tensor:
    return torch.tensor([[len(prompt), 1, 0, 0] for prompt in prompts])


def loaded(module: TinyModule, **values: Any) -> LoadedModel:
    spec = FakeEncoder(size=SIZE).pixel_spec
    facts = {"embedding_dimension": 4, "precision": Precision.FP32, "device": "cpu", **values}
    return LoadedModel("tiny", module, tokenizer, spec, **facts)


ENCODE: dict[str, Callable[[LoadedModel], object]] = {
    "images": lambda model: model.encode_images(np.zeros((2, SIZE, SIZE, 3), np.uint8)),
    "texts": lambda model: model.encode_texts(["a", "b"]),
}


class TestEncoding:
    def test_pixels_become_values_from_0_to_1_in_the_order_of_the_image(self) -> None:
        model = loaded(TinyModule())
        pixels = np.zeros((1, SIZE, SIZE, 3), np.uint8)
        pixels[0, 0, :4, 0] = [255, 0, 255, 0]

        np.testing.assert_allclose(model.encode_images(pixels), [[0.5**0.5, 0, 0.5**0.5, 0]], atol=1e-6)

    def test_the_scale_is_the_models(self) -> None:
        assert loaded(TinyModule()).logit_scale == pytest.approx(100)

    @pytest.mark.parametrize("value", [100.0, np.nan])
    def test_a_scale_that_would_make_each_score_nan_is_refused(self, value: float) -> None:
        module = TinyModule()
        module.logit_scale.data.fill_(value)  # exp(100) is no float32

        with pytest.raises(ModelUnavailableError, match="its logit scale is"):
            loaded(module)

    @pytest.mark.parametrize("what", ENCODE)
    @pytest.mark.parametrize(
        "error",
        [
            torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"),
            RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes"),
            # What would otherwise count as a GPU that is lost, and end the process.
            RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported"),
            RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
            RuntimeError("CUDA driver error: out of memory"),
            RuntimeError("Triton Error [CUDA]: out of memory"),
        ],
    )
    def test_too_little_memory_is_a_memory_error(self, error: Exception, what: str) -> None:
        module = TinyModule()
        model = loaded(module)
        module.error = error

        with pytest.raises(MemoryError):
            ENCODE[what](model)
        assert not is_lost(error)

    def test_a_model_that_does_not_fit_is_no_bug_either(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def full(*_: object, **__: object) -> None:
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(TinyModule, "to", full)

        with pytest.raises(MemoryError):
            loaded(TinyModule())

    @pytest.mark.parametrize("what", ENCODE)
    def test_other_errors_stay_what_they_are(self, what: str) -> None:
        module = TinyModule()
        model = loaded(module)
        module.error = RuntimeError("cuDNN error")

        with pytest.raises(RuntimeError, match="cuDNN"):
            ENCODE[what](model)


class TestFingerprint:
    def test_weights_preprocessing_precision_and_decode_route_count(self) -> None:
        other_weights = TinyModule()
        other_weights.logit_scale.data += 1
        spec = FakeEncoder(size=SIZE + 1).pixel_spec
        facts: dict[str, Any] = {"embedding_dimension": 4, "precision": Precision.FP32, "device": "cpu"}
        models = [
            loaded(TinyModule()),
            loaded(other_weights),
            loaded(TinyModule(), precision=Precision.BF16),
            LoadedModel("tiny", TinyModule(), tokenizer, spec, **facts),
        ]

        prints = {model.fingerprint_for(route) for model in models for route in DecodeRoute}

        assert len(prints) == len(models) * len(DecodeRoute)

    def test_the_same_model_has_the_same_one_whatever_it_is_called(self) -> None:
        assert loaded(TinyModule()).fingerprint == loaded(TinyModule()).fingerprint


class TestDevice:
    def test_auto_is_the_processor_where_there_is_no_gpu(self, gpus: Callable[[int], None]) -> None:
        gpus(0)
        assert (pick_device("auto"), pick_device("cpu")) == ("cpu", "cpu")

    def test_auto_is_the_gpu_where_there_is_one(self, gpus: Callable[[int], None]) -> None:
        gpus(2)
        assert (pick_device("auto"), pick_device("cuda"), pick_device("cuda:1")) == ("cuda", "cuda", "cuda:1")

    @pytest.mark.parametrize(
        ("count", "setting", "words"),
        [(0, "cuda", "sees no GPU"), (0, "cuda:0", "sees no GPU"), (2, "cuda:2", "sees 2")],
    )
    def test_a_device_that_is_not_there_is_told_at_start(
        self, gpus: Callable[[int], None], count: int, setting: str, words: str
    ) -> None:
        # Else every loading of a model would end the process, which would be started again for ever.
        gpus(count)
        with pytest.raises(UsageError, match=f"CLIPFLEET_DEVICE is {setting}, .*{words}"):
            pick_device(setting)

    def test_a_gpu_that_torch_cannot_use_is_not_replaced_by_the_processor(
        self, gpus: Callable[[int], None], monkeypatch: pytest.MonkeyPatch
    ) -> None:
        gpus(0)
        there = Path(os.devnull)
        monkeypatch.setattr("clipfleet_worker.process.device._NVIDIA_DRIVER", there)
        monkeypatch.setattr("clipfleet_worker.process.device._GPU_DRIVERS", (there,))
        with pytest.raises(UsageError, match=r"an NVIDIA GPU, .*cannot use it; .*set CLIPFLEET_DEVICE=cpu"):
            pick_device("auto")
        assert pick_device("cpu") == "cpu"

        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # the user hides it
        assert pick_device("auto") == "cpu"

    @pytest.fixture
    def gpus(self, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)

        def set_count(count: int) -> None:
            monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
            monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
            driver = Path(os.devnull) if count else Path("/dev/there-is-none")
            monkeypatch.setattr("clipfleet_worker.process.device._GPU_DRIVERS", (driver,))

        return set_count


@pytest.mark.parametrize(
    ("words", "lost"),
    [
        ("CUDA error: an illegal memory access was encountered", True),
        ("CUDA driver error: device-side assert triggered", True),
        ("Triton Error [CUDA]: an illegal memory access was encountered", True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", True),
        ("CUDA error: CUBLAS_STATUS_EXECUTION_FAILED when calling `cublasGemmEx`", True),
        ("The size of tensor a (16) must match the size of tensor b (77)", False),
        ("cuDNN error: CUDNN_STATUS_NOT_SUPPORTED", False),
    ],
)
def test_a_device_that_is_lost_says_so_in_many_words(words: str, lost: bool) -> None:
    assert is_lost(RuntimeError(words)) is lost


def test_fp32_is_no_tf32_on_another_device_whoever_runs_the_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", True)

    loaded(TinyModule(), device="meta")

    assert not torch.backends.cudnn.allow_tf32


class TestPrecision:
    @pytest.mark.parametrize(
        ("requested", "device", "has_bf16", "resolved"),
        [
            (Precision.AUTO, "cpu", False, Precision.FP32),
            (Precision.AUTO, "cpu", True, Precision.BF16),
            (Precision.AUTO, "cuda:1", True, Precision.BF16),
            (Precision.AUTO, "cuda", False, Precision.FP16),
            (Precision.FP16, "cuda", False, Precision.FP16),
            (Precision.BF16, "cpu", False, Precision.BF16),
            (Precision.FP32, "cuda", True, Precision.FP32),
        ],
    )
    def test_auto_asks_the_hardware(
        self, monkeypatch: pytest.MonkeyPatch, requested: Precision, device: str, has_bf16: bool,
        resolved: Precision,
    ) -> None:  # fmt: skip
        monkeypatch.setattr(device_module, "_cpu_has_bf16", lambda: has_bf16)
        capability = (9, 0) if has_bf16 else (7, 5)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: capability)
        assert resolve_precision(requested, device) is resolved

    def test_a_precision_that_the_processor_lacks_is_left_to_other_workers(self) -> None:
        with pytest.raises(ModelUnavailableError, match="fp16 needs a GPU"):
            resolve_precision(Precision.FP16, "cpu")


class TestNames:
    def test_the_length_of_vectors_is_known_without_loading(self) -> None:
        assert embedding_dimension("demo") == 128
        assert embedding_dimension("ViT-B-32:openai") == 512
        assert embedding_dimension("hf-hub:org/name") is None
        assert embedding_dimension("local-dir:/nowhere") is None
        assert embedding_dimension("no-such-architecture:x") is None

    def test_weights_that_are_no_weights_are_unavailable(self, tmp_path: Path) -> None:
        with as_file(files("clipfleet_worker") / "demo_model") as demo:
            shutil.copy(demo / "open_clip_config.json", tmp_path)
            weights = (demo / "open_clip_model.safetensors").read_bytes()
        for data in (b"", b"not weights", weights[:-1000], NO_TENSORS):
            (tmp_path / "open_clip_model.safetensors").write_bytes(data)
            with pytest.raises(ModelUnavailableError, match=f"files in {tmp_path} do not fit") as caught:
                load_model(f"local-dir:{tmp_path}", Precision.FP32, "cpu")
            assert "\n" not in str(caught.value)

    @pytest.mark.parametrize("mean", ["abc", 5, [0.5], [0.5, 0.5, "x"]])
    def test_a_preprocessing_that_is_none_is_unavailable(self, tmp_path: Path, mean: object) -> None:
        with as_file(files("clipfleet_worker") / "demo_model") as demo:
            shutil.copy(demo / "open_clip_model.safetensors", tmp_path)
            configuration = json.loads((demo / "open_clip_config.json").read_text())
        configuration["preprocess_cfg"]["mean"] = mean
        (tmp_path / "open_clip_config.json").write_text(json.dumps(configuration))
        with pytest.raises(ModelUnavailableError, match=f"files in {tmp_path} do not fit"):
            load_model(f"local-dir:{tmp_path}", Precision.FP32, "cpu")
