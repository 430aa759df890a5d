"""A loaded model at its edges, with torch modules of a few numbers: devices, memory, precision, names."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from clipfleet.contract.jobs import DecodeRoute, Exif, Precision
from clipfleet.errors import UsageError
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from clipfleet_worker.failures import ModelUnavailableError
from clipfleet_worker.models.files import embedding_dimension
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from clipfleet_worker.process import device as device_module
from clipfleet_worker.process.device import is_lost, pick_device, resolve_precision
from tests.support.demo_model import WEIGHTS, altered_demo
from tests.support.failing import failing

SIZE = 8
NO_TENSORS = b"\x02\0\0\0\0\0\0\0{}"  # a .safetensors


class TinyModule(torch.nn.Module):
    """Encodes an image as its first four pixels' red, a text as its length; may be told to fail."""

    def __init__(self) -> None:
        super().__init__()
        self.logit_scale = torch.nn.Parameter(torch.tensor(np.log(100.0), dtype=torch.float32))
        self.error: BaseException | None = None

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return self._or_fail(images[:, 0, 0, :4])

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return self._or_fail(tokens.float())

    def _or_fail(self, features: torch.Tensor) -> torch.Tensor:
        if self.error is not None:
            raise self.error
        return features


def tokenizer(prompts: list[str]) -> torch.Tensor:
    return torch.tensor([[len(prompt), 1, 0, 0] for prompt in prompts])


def loaded(module: TinyModule, size: int = SIZE, **values: Any) -> LoadedModel:
    facts = {"embedding_dimension": 4, "precision": Precision.FP32, "device": "cpu", **values}
    return LoadedModel("tiny", module, tokenizer, FakeEncoder(size=size).pixel_spec, **facts)


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
        assert model.logit_scale == pytest.approx(100)

    @pytest.mark.parametrize("value", [100.0, np.nan])
    def test_a_scale_that_would_make_each_score_nan_is_refused(self, value: float) -> None:
        module = TinyModule()
        module.logit_scale.data.fill_(value)  # exp(100) is no float32

        with pytest.raises(ModelUnavailableError, match="its logit scale is"):
            loaded(module)

    @pytest.mark.parametrize("what", ENCODE)
    @pytest.mark.parametrize(
        ("error", "kind"),
        [
            (torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB"), MemoryError),
            (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried 1 bytes"), MemoryError),
            # What would otherwise count as a GPU that is lost, and end the process.
            (RuntimeError("CUDA error: out of memory\nCUDA kernel errors might be reported"), MemoryError),
            (RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED at `cublasCreate(handle)`"), MemoryError),
            (RuntimeError("CUDA driver error: out of memory"), MemoryError),
            (RuntimeError("Triton Error [CUDA]: out of memory"), MemoryError),
            (RuntimeError("cuDNN error"), RuntimeError),
        ],
    )
    def test_too_little_memory_is_a_memory_error_and_all_else_what_it_is(
        self, error: Exception, kind: type[Exception], what: str
    ) -> None:
        module = TinyModule()
        model = loaded(module)
        module.error = error

        with pytest.raises(Exception) as caught:
            ENCODE[what](model)
        assert type(caught.value) is kind
        assert not is_lost(error)

    def test_a_model_that_does_not_fit_is_no_bug_either(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(TinyModule, "to", failing(torch.OutOfMemoryError("CUDA out of memory")))

        with pytest.raises(MemoryError):
            loaded(TinyModule())


def test_weights_preprocessing_precision_decode_route_and_exif_count_in_a_fingerprint() -> None:
    other_weights = TinyModule()
    other_weights.logit_scale.data += 1
    models = [
        loaded(TinyModule()),
        loaded(other_weights),
        loaded(TinyModule(), precision=Precision.BF16),
        loaded(TinyModule(), SIZE + 1),
    ]

    ways = [(route, exif) for route in DecodeRoute for exif in Exif]
    prints = {model.fingerprint_for(*way) for model in models for way in ways}

    assert len(prints) == len(models) * len(ways)
    assert loaded(TinyModule()).fingerprint == models[0].fingerprint


class TestDevice:
    @pytest.mark.parametrize(
        ("count", "setting", "device"),
        [
            (0, "auto", "cpu"),
            (0, "cpu", "cpu"),
            (2, "auto", "cuda"),
            (2, "cuda", "cuda"),
            (2, "cuda:1", "cuda:1"),
        ],
    )
    def test_auto_is_the_gpu_where_there_is_one(
        self, gpus: Callable[[int], None], count: int, setting: str, device: str
    ) -> None:
        gpus(count)
        assert pick_device(setting) == device

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

    def test_a_gpu_that_torch_cannot_use_is_not_replaced_by_the_cpu(
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
            ("auto", "cpu", False, "fp32"),
            ("auto", "cpu", True, "bf16"),
            ("auto", "cuda:1", True, "bf16"),
            ("auto", "cuda", False, "fp16"),
            ("fp16", "cuda", False, "fp16"),
            ("bf16", "cpu", False, "bf16"),
            ("fp32", "cuda", True, "fp32"),
        ],
    )
    def test_auto_asks_the_hardware(
        self, monkeypatch: pytest.MonkeyPatch, requested: str, device: str, has_bf16: bool, resolved: str
    ) -> None:
        monkeypatch.setattr(device_module, "_cpu_has_bf16", lambda: has_bf16)
        capability = (9, 0) if has_bf16 else (7, 5)
        monkeypatch.setattr(torch.cuda, "get_device_capability", lambda name: capability)
        assert resolve_precision(Precision(requested), device) == resolved

    def test_a_precision_that_the_cpu_lacks_is_left_to_other_workers(self) -> None:
        with pytest.raises(ModelUnavailableError, match="fp16 needs a GPU"):
            resolve_precision(Precision.FP16, "cpu")


def test_the_length_of_vectors_is_known_without_loading() -> None:
    assert embedding_dimension("demo") == 128
    assert embedding_dimension("ViT-B-32:openai") == 512
    for name in ("hf-hub:org/name", "local-dir:/nowhere", "no-such-architecture:x"):
        assert embedding_dimension(name) is None


class TestFilesThatDoNotFit:
    def refused(self, name: str) -> str:
        with pytest.raises(ModelUnavailableError, match=r"files in .* do not fit") as caught:
            load_model(name, Precision.FP32, "cpu")
        return str(caught.value)

    def test_weights_that_are_no_weights(self, tmp_path: Path) -> None:
        name = altered_demo(tmp_path, lambda *_: None)
        weights = (tmp_path / WEIGHTS).read_bytes()
        for data in (b"", b"not weights", weights[:-1000], NO_TENSORS):
            (tmp_path / WEIGHTS).write_bytes(data)
            said = self.refused(name)
            assert str(tmp_path) in said and "\n" not in said

    @pytest.mark.parametrize("mean", ["abc", 5, [0.5], [0.5, 0.5, "x"]])
    def test_a_preprocessing_that_is_none(self, tmp_path: Path, mean: object) -> None:
        def alter(configuration: Any, _: object) -> None:
            configuration["preprocess_cfg"]["mean"] = mean

        self.refused(altered_demo(tmp_path, alter))
