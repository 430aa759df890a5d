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

from clipfleet.contract import DEMO_MODEL, Precision
from clipfleet_worker.backends import openvino_backend
from clipfleet_worker.backends.cpu_backends import cpu_backends
from clipfleet_worker.backends.openvino_cache import CompiledModels
from clipfleet_worker.backends.side_by_side import SideBySideBackend
from clipfleet_worker.model import LoadedModel, load_model
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


@pytest.fixture
def kept(tmp_path: Path) -> CompiledModels:
    return CompiledModels(tmp_path / "cache" / "openvino")


def started(kept: CompiledModels) -> LoadedModel:
    return load_model(DEMO_MODEL, Precision.FP32, "cpu", cpu_backends("openvino", kept=kept))


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


def test_parts_of_a_batch_go_through_streams_of_their_own(kept: CompiledModels) -> None:
    model = started(kept)

    assert type(model._backend) is SideBySideBackend
    assert (model.backend_name, model.batches_in_flight) == ("openvino", 2)
    require_close(features(model))


def test_the_second_start_converts_nothing(kept: CompiledModels, monkeypatch: pytest.MonkeyPatch) -> None:
    first = features(started(kept))
    convert_nothing(monkeypatch)

    second = started(kept)

    assert second.backend_name == "openvino"
    np.testing.assert_array_equal(features(second), first)


def test_what_is_damaged_or_of_another_model_is_converted_again(
    kept: CompiledModels, monkeypatch: pytest.MonkeyPatch
) -> None:
    started(kept)
    (file,) = kept.folder.iterdir()
    whole, arrays = file.read_bytes(), dict(kept.find(file.stem))

    file.write_bytes(whole[: len(whole) // 2])
    require_close(features(started(kept)))
    for name in ("images", "right_images"):
        kept.keep(file.stem, arrays | {name: arrays[name][::-1].copy()})
        require_close(features(started(kept)))

    convert_nothing(monkeypatch)
    require_close(features(started(kept)))  # it was written anew


def test_a_folder_that_others_may_write_to_is_not_used(kept: CompiledModels) -> None:
    kept.folder.mkdir(parents=True)
    kept.folder.chmod(0o777)

    require_close(features(started(kept)))

    assert list(kept.folder.iterdir()) == []


def test_no_place_to_keep_it_costs_nothing_but_time(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")

    require_close(features(started(CompiledModels(tmp_path / "file" / "cache"))))


def test_the_models_that_were_used_last_are_kept(kept: CompiledModels) -> None:
    for number in range(4):
        kept.keep(str(number), {"x": np.arange(number)})
    assert list(kept.find("0")["x"]) == []

    kept.keep("4", {"x": np.arange(4)})

    assert sorted(path.stem for path in kept.folder.iterdir()) == ["0", "2", "3", "4"]
    assert list(kept.find("3")["x"]) == [0, 1, 2]
    assert kept.find("1") == {}
