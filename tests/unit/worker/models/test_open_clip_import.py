"""open_clip without transformers, timm and torch's compiler: where no model needs them, and only there."""

from __future__ import annotations

import subprocess
import sys
from textwrap import dedent
from typing import Any

import pytest

from clipfleet_worker.models.open_clip_models import needs_timm_or_transformers


def run(code: str) -> str:
    """What a fresh process prints: what is imported once stays for the others."""
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", dedent(code)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_a_plain_model_is_loaded_without_them_and_a_later_one_gets_them() -> None:
    out = run("""
        import sys
        import numpy as np
        from clipfleet.contract.jobs import Precision
        from clipfleet_worker.models.loader import load_model
        from clipfleet_worker.models.open_clip_models import import_open_clip

        heavy = ("transformers", "timm", "torch._dynamo")
        model = load_model("demo", Precision.FP32, "cpu")
        pixels = np.full((2, model.pixel_spec.height, model.pixel_spec.width, 3), 90, np.uint8)
        before = model.encode_images(pixels)
        print([name for name in heavy if name in sys.modules])

        plain = import_open_clip({"vision_cfg": {}, "text_cfg": {}})
        whole = import_open_clip({"vision_cfg": {"timm_model_name": "vit"}, "text_cfg": {}})
        print(plain.timm_model.timm is None, whole.timm_model.timm is None, whole is import_open_clip())
        print(np.array_equal(before, model.encode_images(pixels)))

        import torchvision
        boxes = torchvision.ops.roi_align.__globals__["is_compile_supported"]
        print(boxes("cpu"), "torch._dynamo" in sys.modules)
    """)
    assert out.splitlines() == ["[]", "True False True", "True", "True True"]


COCA = {"text_cfg": {}, "vision_cfg": {}, "multimodal_cfg": {}}


@pytest.mark.parametrize(
    ("configuration", "is_needed"),
    [
        ({"text_cfg": {"hf_model_name": "roberta-base"}, "vision_cfg": {}}, True),
        ({"text_cfg": {}, "vision_cfg": {"timm_model_name": "vit_base_patch16_224"}}, True),
        (COCA, True),
        ({"text_cfg": {"hf_model_name": None}, "vision_cfg": {"timm_model_name": None}}, False),
        ({}, False),
    ],
)
def test_which_models_need_them(configuration: dict[str, Any], is_needed: bool) -> None:
    assert needs_timm_or_transformers(configuration) == is_needed


def test_models_that_need_them_have_them_at_once() -> None:
    out = run(f"""
        from clipfleet_worker.models.open_clip_models import import_open_clip
        found = import_open_clip({COCA!r})
        print(found.hf_model.transformers is not None, found.timm_model.timm is not None)
    """)
    assert out == "True True"


def test_what_was_imported_whole_stays_so() -> None:
    out = run("""
        import open_clip
        from clipfleet_worker.models.open_clip_models import import_open_clip
        print(import_open_clip() is open_clip, open_clip.timm_model.timm is not None)
    """)
    assert out == "True True"
