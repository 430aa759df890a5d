"""JPEGs that the device decodes, against open_clip's own transform of the same bytes."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from clipfleet.contract import DecodeRoute, Precision
from clipfleet_worker.decode import Decoder
from clipfleet_worker.device_jpegs import DeviceJpegs
from tests.gpu.conftest import Models
from tests.support.pictures import encoded, gradient, photo, shapes, text
from tests.support.reference import difference_of, p999
from tests.unit.test_device_jpegs import exact_of, spec_of

KINDS = (photo, gradient, shapes, text)


@pytest.fixture(scope="module")
def jpegs(models: Models) -> DeviceJpegs:
    return DeviceJpegs(models.device, Decoder(100_000_000))


def files_of(side: int, subsampling: str) -> list[bytes]:
    images = [KINDS[n % 4](n, side + 30 * n, side) for n in range(8)]
    return [
        encoded(image, quality=(75, 85, 95)[n % 3], subsampling=subsampling) for n, image in enumerate(images)
    ]


@pytest.mark.figures
@pytest.mark.parametrize("size", [64, 224])
@pytest.mark.parametrize(
    ("subsampling", "times", "bar"),
    [("4:4:4", 1.0, 1), ("4:4:4", 3.0, 1), ("4:2:2", None, 4), ("4:2:0", None, 4), ("4:2:0", 20.0, 4)],
)
def test_pictures_stay_within_the_bars(
    jpegs: DeviceJpegs, size: int, subsampling: str, times: float | None, bar: int
) -> None:
    smallest = {64: 16.1, 224: 5.02}[size]
    files = files_of(int(size * (times or smallest)), subsampling)

    images = jpegs.decode(files, spec_of(size), DecodeRoute.FAST)

    differences = [
        difference_of(image.pixels, exact_of(data, size))
        for image, data in zip(images, files, strict=True)
        if image is not None
    ]
    assert len(differences) == len(files)
    print(f"\n{size} px, {subsampling}: p99.9 {p999(differences):g}, max {max(map(np.max, differences))}")
    assert p999(differences) <= bar


def test_grey_ones_have_three_equal_colours(jpegs: DeviceJpegs) -> None:
    data = encoded(photo(0, 301, 260).convert("L"), quality=85)

    (image,) = jpegs.decode([data], spec_of(224), DecodeRoute.FAST)

    assert image is not None
    assert int(difference_of(image.pixels, exact_of(data, 224)).max()) <= 3


def test_decoding_while_batches_are_under_way_disturbs_neither(
    models: Models, jpegs: DeviceJpegs, pixels: np.ndarray
) -> None:
    # torchvision's decoder writes into freed memory without waiting for other streams.
    model, files = models.demo(Precision.BF16), files_of(1300, "4:2:0")
    expected = model.encode_images(pixels)
    alone = jpegs.decode(files, spec_of(224), DecodeRoute.FAST)

    for _ in range(20):
        pending = model.begin_images(pixels)
        images = jpegs.decode(files, spec_of(224), DecodeRoute.FAST)
        np.testing.assert_array_equal(pending.result(), expected)
        for image, same in zip(images, alone, strict=True):
            assert image is not None and same is not None
            np.testing.assert_array_equal(image.pixels, same.pixels)


def test_damage_costs_at_most_the_picture(models: Models, jpegs: DeviceJpegs, pixels: np.ndarray) -> None:
    model = models.demo(Precision.BF16)
    expected = model.encode_images(pixels)
    random = np.random.default_rng(0)
    whole = files_of(300, "4:4:4")
    for number in range(200):
        damaged = bytearray(whole[number % len(whole)])
        for place in random.integers(200, len(damaged) - 2, 1 + number % 20):
            damaged[place] = random.integers(0, 256)
        jpegs.decode([bytes(damaged), whole[0]], spec_of(224), DecodeRoute.FAST)

    torch.cuda.synchronize()
    np.testing.assert_array_equal(model.encode_images(pixels), expected)
