"""Backends on the CPU: which one is chosen, and that attention is what it was."""

from __future__ import annotations

import logging
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import open_clip
import pytest
import torch

from clipfleet.contract.jobs import Precision
from clipfleet.errors import UsageError
from clipfleet_worker.encode.backends import Towers, cpu_backends
from clipfleet_worker.encode.backends.attention import DirectAttention, keep_batch_first
from clipfleet_worker.encode.backends.openvino_backend import CompiledTower, Unconvertible
from clipfleet_worker.encode.backends.side_by_side import SideBySideBackend
from clipfleet_worker.encode.backends.torch_backend import TorchBackend
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from tests.support.failing import failing
from tests.unit.worker.models.test_loaded import TinyModule, tokenizer


def towers_of(module: torch.nn.Module) -> Towers:
    spec = FakeEncoder(size=8).pixel_spec
    return Towers(module, spec, tokenizer(["a"]), Precision.FP32, "0" * 16, lambda _: True)


KNOWN = torch.nn.Linear(2, 2)
UNKNOWN = torch.nn.Sequential(torch.nn.Linear(2, 2), TinyModule())


class TestChoice:
    @pytest.fixture
    def installed(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu_backends, "find_spec", lambda name: object())
        monkeypatch.setattr(cpu_backends, "OpenVinoBackend", NamedOpenVino)

    @pytest.fixture
    def missing(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(cpu_backends, "find_spec", lambda name: None)

    @pytest.mark.usefixtures("installed")
    @pytest.mark.parametrize(
        ("setting", "module", "chosen"),
        [
            ("auto", KNOWN, "openvino"),
            ("torch", KNOWN, "torch"),
            ("openvino", KNOWN, "openvino"),
            # It ends the process for some models, when it compiles them: a worker would start for ever.
            ("auto", UNKNOWN, "torch"),
            ("openvino", UNKNOWN, "openvino"),
        ],
    )
    def test_openvino_where_it_was_tried_or_is_named(
        self, setting: str, module: torch.nn.Module, chosen: str
    ) -> None:
        assert cpu_backends.cpu_backends(setting)(towers_of(module), "cpu").name == chosen

    @pytest.mark.usefixtures("missing")
    @pytest.mark.parametrize("setting", ["auto", "torch"])
    def test_torch_where_openvino_is_missing(self, setting: str) -> None:
        assert cpu_backends.cpu_backends(setting)(towers_of(KNOWN), "cpu").name == "torch"

    @pytest.mark.parametrize(("module", "chosen"), [(KNOWN, SideBySideBackend), (UNKNOWN, TorchBackend)])
    def test_a_model_whose_parts_are_not_known_has_one_pass_at_a_time(
        self, monkeypatch: pytest.MonkeyPatch, module: torch.nn.Module, chosen: type
    ) -> None:
        # They might keep something between two calls.
        monkeypatch.setattr(torch, "get_num_threads", lambda: 2)
        assert type(cpu_backends.cpu_backends("torch")(towers_of(module), "cpu")) is chosen

    @pytest.mark.usefixtures("installed")
    def test_another_device_is_torchs(self) -> None:
        assert cpu_backends.cpu_backends("auto", "cuda") is TorchBackend
        with pytest.raises(UsageError, match="the device is cuda:1"):
            cpu_backends.cpu_backends("openvino", "cuda:1")

    @pytest.mark.usefixtures("missing")
    def test_a_missing_extra_is_named_with_the_line_that_mends_it(self) -> None:
        with pytest.raises(UsageError, match=r"pip install -e '\.\[openvino\]'"):
            cpu_backends.cpu_backends("openvino")

    @pytest.mark.usefixtures("installed")
    def test_a_model_that_does_not_convert_goes_to_torch_with_the_reason(
        self, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        monkeypatch.setattr(cpu_backends, "OpenVinoBackend", failing(Unconvertible("no such operation")))

        assert cpu_backends.cpu_backends("openvino")(towers_of(KNOWN), "cpu").name == "torch"

        (said,) = [record.getMessage() for record in caplog.records if record.levelno == logging.WARNING]
        assert said == "torch runs this model, OpenVINO cannot: no such operation"


class NamedOpenVino(TorchBackend):
    """Stands in for OpenVINO's."""

    name = "openvino"

    def __init__(self, towers: Towers, device: str, streams: int) -> None:
        super().__init__(towers, device)


@pytest.mark.skipif(find_spec("openvino") is None, reason="openvino is not installed")
def test_openvino_reports_to_nobody(tmp_path: Path) -> None:
    """By itself it would send its makers a message for each import, and leave an id in the home folder."""
    code = """
import sys
from clipfleet_worker.encode.backends.openvino_backend import openvino_module
openvino_module().convert_model
assert sys.modules["openvino_telemetry"] is None
"""
    result = subprocess.run(
        [sys.executable, "-c", code], env={"HOME": str(tmp_path), "PYTHONPATH": ":".join(sys.path)},
        capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip

    assert result.returncode == 0, result.stderr
    assert list(tmp_path.iterdir()) == []


class SilentRequest:
    """Stands in for OpenVINO's, which now and then returns and has computed nothing."""

    def __init__(self) -> None:
        self.output = np.zeros((0, 4), dtype=np.float32)
        self.runs = True

    def infer(self, inputs: list[np.ndarray], share_inputs: bool) -> None:
        if self.runs:
            self.output = np.repeat(inputs[0].astype(np.float32), 2, axis=1)

    def get_output_tensor(self, index: int) -> Any:
        return SimpleNamespace(data=self.output)


@pytest.mark.parametrize("later", [2, 3])
def test_what_the_batch_before_gave_is_never_taken_for_this_one(later: int) -> None:
    requests = [SilentRequest(), SilentRequest()]
    waiting = iter(requests)

    tower = CompiledTower(SimpleNamespace(create_infer_request=lambda: next(waiting)))
    assert tower.encode(np.array([[3, 4], [1, 1]])) == pytest.approx(np.array([[3, 3, 4, 4], [1] * 4]) / [
        [50**0.5], [2]])  # fmt: skip
    requests[0].runs = False
    with pytest.raises(MemoryError):
        tower.encode(np.ones((later, 2)))
    assert tower.encode(np.ones((later, 2))) == pytest.approx(np.full((later, 4), 0.5))  # by a new request


class Counted(torch.nn.MultiheadAttention):
    """Counts how often it is asked itself."""

    calls = 0

    def forward(self, *arguments: Any, **options: Any) -> Any:
        self.calls += 1
        return super().forward(*arguments, **options)


class TestAttention:
    @pytest.mark.parametrize("masked", [False, True])
    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
    def test_self_attention_is_the_same_without_asking_the_original(
        self, masked: bool, dtype: torch.dtype
    ) -> None:
        torch.manual_seed(0)
        original = Counted(32, 4, batch_first=True).eval().to(dtype)
        torch.nn.init.normal_(original.in_proj_bias)
        x = torch.randn(5, 7, 32, dtype=dtype)
        mask = torch.full((7, 7), float("-inf"), dtype=dtype).triu(1) if masked else None
        with torch.inference_mode():
            expected, _ = original(x, x, x, need_weights=False, attn_mask=mask)
            original.calls = 0
            found, weights = DirectAttention(original)(x, x, x, need_weights=False, attn_mask=mask)

        assert weights is None
        assert original.calls == 0
        tolerance = 1e-5 if dtype is torch.float32 else 0.02
        torch.testing.assert_close(found, expected, atol=tolerance, rtol=tolerance)

    def test_all_else_is_left_to_the_original(self) -> None:
        torch.manual_seed(0)
        original = Counted(32, 4, batch_first=True).eval()
        x, y = torch.randn(2, 5, 7, 32).unbind(0)
        hidden = torch.zeros(5, 7, dtype=torch.bool)
        hidden[:, -1] = True
        calls: list[dict[str, Any]] = [
            {"key": y, "value": y, "need_weights": False},
            {"key": x, "value": x},
            {"key": x, "value": x, "need_weights": False, "key_padding_mask": hidden},
            {"key": x, "value": x, "need_weights": False, "attn_mask": torch.ones(7, 7).triu(1).bool()},
            {"key": x, "value": x, "need_weights": False, "attn_mask": torch.zeros(20, 7, 7)},
        ]
        with torch.inference_mode():
            for call in calls:
                expected, expected_weights = original(x, **call)
                original.calls = 0
                found, weights = DirectAttention(original)(x, **call)

                assert original.calls == 1
                torch.testing.assert_close((found, weights), (expected, expected_weights))

    def test_open_clips_towers_are_the_same_and_ask_torchs_module_no_more(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        torch.manual_seed(0)
        tower = {"width": 64, "layers": 2}
        vision, text = {**tower, "head_width": 32, "image_size": 32, "patch_size": 16}, {**tower, "heads": 2}
        module = open_clip.CLIP(embed_dim=24, vision_cfg=vision, text_cfg=text).eval()
        images, tokens = torch.randn(3, 3, 32, 32), open_clip.tokenize(["a", "two words", "and three more"])
        with torch.inference_mode():
            expected = module.encode_image(images), module.encode_text(tokens)
            keep_batch_first(module)
            keep_batch_first(module)  # as where OpenVINO has tried the model before torch
            monkeypatch.setattr(torch.nn.MultiheadAttention, "forward", None)
            found = module.encode_image(images), module.encode_text(tokens)

        torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)

    @pytest.mark.parametrize(
        "options",
        [{"batch_first": False}, {"kdim": 16, "vdim": 16}, {"add_bias_kv": True}, {"add_zero_attn": True}],
    )
    def test_what_is_not_plain_stays(self, options: dict[str, Any]) -> None:
        attention = torch.nn.MultiheadAttention(32, 4, **{"batch_first": True, **options})
        parent = torch.nn.ModuleDict({"attention": attention})
        keep_batch_first(parent)

        assert parent["attention"] is attention
