"""OpenVINO in streams, and what it has compiled, kept for the next start."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

from clipfleet.contract.jobs import DEMO_MODEL, Precision
from clipfleet_worker.encode import kept_arrays
from clipfleet_worker.encode.backends import openvino_backend
from clipfleet_worker.encode.backends.certificate import Canaries
from clipfleet_worker.encode.backends.cpu_backends import cpu_backends
from clipfleet_worker.encode.backends.openvino_backend import OpenVinoBackend
from clipfleet_worker.encode.backends.side_by_side import SideBySideBackend
from clipfleet_worker.encode.kept_arrays import cache_folder, keep
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from tests.conftest import service_is_missing

TEXTS = ["a cherry", "a kite", "three rabbits in the snow"]


@pytest.fixture(autouse=True)
def _two_cores() -> Iterator[None]:
    if find_spec("openvino") is None:
        service_is_missing("openvino is not installed")
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def started() -> LoadedModel:
    return load_model(DEMO_MODEL, Precision.FP32, "cpu", cpu_backends("openvino"))


def features(model: LoadedModel) -> np.ndarray:
    spec = model.pixel_spec
    pixels = np.random.default_rng(1).integers(0, 256, (5, spec.height, spec.width, 3), dtype=np.uint8)
    return np.concatenate([model.encode_images(pixels), model.encode_texts(TEXTS)])


@cache
def expected() -> np.ndarray:
    return features(load_model(DEMO_MODEL, Precision.FP32, "cpu"))


def require_close(found: np.ndarray) -> None:
    assert (found * expected()).sum(axis=1).min() >= 0.9999


def convert_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    def convert(_: object) -> Any:
        raise AssertionError("it was converted again")

    monkeypatch.setattr(openvino_backend, "_convert", convert)


def test_parts_of_a_batch_go_through_streams_of_their_own() -> None:
    model = started()

    assert type(model._backend) is SideBySideBackend
    assert (model.backend_name, model.batches_in_flight) == ("openvino", 2)
    require_close(features(model))


def test_the_second_start_converts_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    first = features(started())
    convert_nothing(monkeypatch)

    second = started()

    assert second.backend_name == "openvino"
    np.testing.assert_array_equal(features(second), first)


def test_what_is_damaged_or_of_another_model_is_converted_again(monkeypatch: pytest.MonkeyPatch) -> None:
    started()
    (file,) = cache_folder().glob("openvino-*")
    whole, arrays = file.read_bytes(), load_file(file)

    def put(**towers: np.ndarray) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(kept_arrays, "kept_file", lambda *_: file)
            keep("openvino", [], towers)

    file.write_bytes(whole[: len(whole) // 2])
    require_close(features(started()))
    put(images=arrays["images"][::-1].copy(), texts=arrays["texts"])
    require_close(features(started()))
    put(images=arrays["texts"], texts=arrays["images"])
    require_close(features(started()))

    convert_nothing(monkeypatch)
    require_close(features(started()))  # it was written anew


def test_what_is_read_back_is_asked_once(monkeypatch: pytest.MonkeyPatch) -> None:
    started()
    batches: list[int] = []
    encode = OpenVinoBackend.encode_images

    def count(backend: OpenVinoBackend, pixels: np.ndarray) -> np.ndarray:
        batches.append(len(pixels))
        return encode(backend, pixels)

    monkeypatch.setattr(OpenVinoBackend, "encode_images", count)

    started()

    assert sum(batches) == 8 + 8  # by the thread that loads, then through all streams


def test_torch_takes_a_model_whose_canaries_are_off(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([False])
    monkeypatch.setattr(Canaries, "are_met_by", lambda *_: next(answers))

    model = started()

    assert model.backend_name == "torch"
    require_close(features(model))
    assert list(cache_folder().glob("openvino-*")) == []


def test_what_is_read_back_is_converted_again_where_its_canaries_are_off(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    started()
    answers = iter([False, True])
    monkeypatch.setattr(Canaries, "are_met_by", lambda *_: next(answers))

    assert started().backend_name == "openvino"
    assert list(answers) == []
