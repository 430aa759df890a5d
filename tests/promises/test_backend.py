"""What every backend promises, the one on a CUDA device and the double that ships included."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Any

import numpy as np
import pytest
import torch

from clipfleet.contract.jobs import Precision
from clipfleet_worker.encode.backends import Towers
from clipfleet_worker.encode.backends.cuda_backend import CudaBackend
from clipfleet_worker.encode.backends.openvino_backend import OpenVinoBackend
from clipfleet_worker.encode.backends.side_by_side import Passes, SideBySideBackend
from clipfleet_worker.encode.backends.torch_backend import TorchBackend
from clipfleet_worker.encode.bisecting import FORWARD_ERRORS
from clipfleet_worker.encode.fake_encoder import FakeEncoder
from tests.conftest import service_is_missing
from tests.support.fake_device import FakeDevice, Schedule

SIZE, BATCH, TOKENS = 4, 8, 5
KINDS = ("torch", "side by side", "openvino", "cuda")


class Module(torch.nn.Module):
    """Its features of an image or text depend on every number in it, and on nothing else."""

    def __init__(self) -> None:
        super().__init__()
        random = torch.Generator().manual_seed(0)
        self.image = torch.nn.Parameter(torch.randn(3 * SIZE * SIZE, 6, generator=random))
        self.text = torch.nn.Parameter(torch.randn(TOKENS, 6, generator=random))

    def encode_image(self, images: torch.Tensor) -> torch.Tensor:
        return images.reshape(len(images), -1) @ self.image

    def encode_text(self, tokens: torch.Tensor) -> torch.Tensor:
        return tokens.float() @ self.text


def towers() -> Towers:
    spec = FakeEncoder(size=SIZE).pixel_spec
    tokens = torch.ones((1, TOKENS), dtype=torch.int64)
    return Towers(Module().eval(), spec, tokens, Precision.FP32, "key", lambda _: True)


def by_torch() -> TorchBackend:
    return TorchBackend(towers(), "cpu")


MAKE: dict[str, Callable[[], Any]] = {
    "torch": by_torch,
    "side by side": lambda: SideBySideBackend(by_torch(), Passes(2)),
    "openvino": lambda: OpenVinoBackend(towers(), "cpu"),
    "cuda": lambda: CudaBackend(towers(), FakeDevice(Schedule.COPIES_FIRST), BATCH),
    "double": lambda: FakeEncoder(size=SIZE),
}


def right_images(pixels: np.ndarray) -> np.ndarray:
    levels = torch.from_numpy(pixels.copy()).permute(0, 3, 1, 2).float() / 255
    return torch.nn.functional.normalize(Module().encode_image(levels), dim=-1).detach().numpy()


def right_texts(tokens: torch.Tensor) -> np.ndarray:
    return torch.nn.functional.normalize(Module().encode_text(tokens), dim=-1).detach().numpy()


@dataclass(frozen=True)
class Case:
    kind: str
    backend: Any  # `Backend`; the double takes prompts where the others take tokens

    def images(self, pixels: np.ndarray) -> np.ndarray:
        return self.begin(pixels).result()

    def begin(self, pixels: np.ndarray) -> Any:
        """As the batcher does: the array is the backend's own."""
        array = self.backend.new_pixels(len(pixels))
        array[...] = pixels
        return self.backend.begin_images(array)

    def texts(self, tokens: torch.Tensor) -> np.ndarray:
        texts = [str(row) for row in tokens.tolist()] if self.kind == "double" else tokens
        return self.backend.encode_texts(texts)


@pytest.fixture(params=[*KINDS, "double"])
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    if request.param == "openvino" and find_spec("openvino") is None:
        service_is_missing("openvino is not installed")
    threads = torch.get_num_threads()
    yield Case(request.param, MAKE[request.param]())
    torch.set_num_threads(threads)


def pixels(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)


def tokens(count: int) -> torch.Tensor:
    return torch.arange(count * TOKENS).reshape(count, TOKENS) % 11 + 1


@pytest.mark.parametrize("count", [1, 2, 5, BATCH])
def test_images_and_texts_become_unit_vectors(case: Case, count: int) -> None:
    for features in (case.images(pixels(count)), case.texts(tokens(count))):
        assert (features.dtype, len(features)) == (np.float32, count)
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


@pytest.mark.parametrize("encode", ["images", "texts"])
def test_an_item_has_the_same_features_in_any_batch_and_at_any_row(case: Case, encode: str) -> None:
    run, items = (case.images, pixels(BATCH)) if encode == "images" else (case.texts, tokens(BATCH))
    whole = run(items).copy()

    alone = np.concatenate([run(items[row : row + 1]) for row in range(BATCH)])
    order = [5, 0, 7, 2]

    np.testing.assert_allclose(alone, whole, atol=1e-5)
    np.testing.assert_allclose(run(items[order]), whole[order], atol=1e-5)
    assert np.abs(whole[:, None] - whole[None]).max(axis=2)[~np.eye(BATCH, dtype=bool)].min() > 1e-3


@pytest.mark.parametrize("case", KINDS, indirect=True)
def test_all_backends_of_a_model_give_its_own_features(case: Case) -> None:
    images, texts = pixels(BATCH), tokens(BATCH)

    np.testing.assert_allclose(case.images(images), right_images(images), atol=1e-5)
    np.testing.assert_allclose(case.texts(texts), right_texts(texts), atol=1e-5)


def test_batches_under_way_keep_their_own_features(case: Case) -> None:
    batches = [pixels(BATCH, seed) for seed in range(case.backend.batches_in_flight)]
    expected = [case.images(batch).copy() for batch in batches]

    begun = [case.begin(batch) for batch in batches]

    for pending, features in zip(begun, expected, strict=True):
        assert pending.wait_for_room() in (True, False)
        np.testing.assert_allclose(pending.result(), features, atol=1e-5)


def test_pixels_may_lie_in_an_array_of_the_backend_or_elsewhere(case: Case) -> None:
    lent, images = case.backend.new_pixels(3), pixels(3)

    assert (lent.shape, lent.dtype) == (images.shape, np.uint8)
    np.testing.assert_allclose(case.backend.begin_images(images).result(), case.images(images), atol=1e-5)


@pytest.mark.parametrize("case", KINDS, indirect=True)
def test_a_pass_that_fails_raises_a_forward_error(case: Case) -> None:
    with pytest.raises(FORWARD_ERRORS):
        case.texts(torch.ones((2, TOKENS + 1), dtype=torch.int64))
