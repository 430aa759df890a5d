"""Hostile images in a child process: the same code as in the worker's own, and the child lives on."""

from __future__ import annotations

import re
from collections.abc import Iterator

import pytest
from PIL import Image

from clipfleet.contract.jobs import DecodeRoute, ErrorCode
from clipfleet_worker.decode.child_process import DecodeLimits
from clipfleet_worker.decode.children import DecodeChildren
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.step import DecodeStep
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.pixel_spec import PixelSpec
from clipfleet_worker.settings import WorkerSettings
from tests.support.hostile_files import HOSTILE, is_core

_LARGE = re.compile("million|MB|50,000|bomb|limit|scans|thousands|claim|10,000")  # nothing else in a child


def _squeezed(image: Image.Image) -> Image.Image:
    return image.resize((64, 64), Image.Resampling.BICUBIC).convert("RGB")


SPEC = PixelSpec(64, 64, "bicubic", "squash", 0, (0.5,) * 3, (0.5,) * 3, _squeezed)


@pytest.fixture
def stage(monkeypatch: pytest.MonkeyPatch) -> Iterator[DecodeStep]:
    """With the defaults of a worker, all in children."""
    for name in WorkerSettings.model_fields:
        monkeypatch.delenv(f"CLIPFLEET_{name.upper()}", raising=False)
    settings = WorkerSettings()
    decoder = Decoder(settings.max_pixels, settings.max_decode_bytes)
    limits = DecodeLimits(settings.decode_seconds, settings.decode_memory)
    stage = DecodeStep(decoder, DecodeChildren(decoder, limits), isolate=True)
    yield stage
    stage.close()


def test_a_child_says_of_each_kind_what_the_worker_says(stage: DecodeStep) -> None:
    kinds = {name: kind.build() for name, kind in HOSTILE.items() if not _LARGE.search(name)}
    found: dict[str, ErrorCode | None] = {}

    with stage.with_suspect():
        for name, data in kinds.items():
            try:
                image = stage.decode(data, SPEC, DecodeRoute.FAST, is_suspect=True)
                assert is_core(image.pixels) == HOSTILE[name].shows_core, name
                found[name] = None
            except ItemFailure as failure:
                found[name] = failure.error.code

    assert found == {name: HOSTILE[name].code for name in found}
    assert len(found) > 90
