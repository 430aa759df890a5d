"""The resize that a GPU does: the same torch code on the processor, against open_clip's own transform."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import transforms

from clipfleet_worker.picture_sizes import Frame
from clipfleet_worker.plane_resize import fit_planes
from tests.support.pictures import photo, shapes
from tests.support.reference import difference_of, p999

SIZES = (
    (640, 480), (481, 643), (225, 224), (224, 224), (223, 301), (50, 61), (1200, 317), (300, 1999), (17, 16),
    (2303, 2244),
)  # fmt: skip
BICUBIC, BILINEAR = transforms.InterpolationMode.BICUBIC, transforms.InterpolationMode.BILINEAR


def planes_of(image: Image.Image) -> torch.Tensor:
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


@pytest.mark.parametrize("size", SIZES, ids=str)
@pytest.mark.parametrize("interpolation", [BICUBIC, BILINEAR])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_it_is_pillows_to_a_level(
    size: tuple[int, int], interpolation: transforms.InterpolationMode, mode: str
) -> None:
    model_size = 224
    resize = transforms.Resize(
        model_size if mode == "shortest" else (model_size, model_size), interpolation, antialias=True
    )
    crop = transforms.CenterCrop(model_size)
    frame = Frame(model_size, model_size, interpolation.value, mode)
    for kind in (photo, shapes):
        image = kind(sum(size), *size)
        ours = fit_planes(planes_of(image), frame).numpy()

        difference = difference_of(ours, np.array(crop(resize(image))))
        assert ours.shape == (model_size, model_size, 3)
        assert int(difference.max()) <= 3  # the bars of the fast route at full size
        assert p999([difference]) <= 1
