"""Every format that is read, in every sort that Pillow or we can write: pixels and embeddings of open_clip.

More than 500 files, made by seed, go through both decode routes and the demo model; the reference is
open_clip's own transform and forward on the same bytes. Then the same sorts of files, cut off. The
figures are shown at the end of a run.
"""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pytest
from PIL import Image

from clipfleet.contract.jobs import DEMO_MODEL, DecodeRoute, ErrorCode, Precision
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.decode.formats import ALLOWED_FORMATS, allowed_format
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.models.loaded import LoadedModel
from clipfleet_worker.models.loader import load_model
from tests.support.demo_model import DEMO
from tests.support.image_files import FILES
from tests.support.images import photo, shapes
from tests.support.reference import ReferenceModel, cosines, difference_of, p999

pytestmark = pytest.mark.figures

# Too small for JPEGs to be decoded at a fraction of their size: test_fidelity.py judges those.
_SIZES = ((64, 64), (97, 83), (83, 131), (300, 200), (199, 301), (30, 41), (1, 1), (5, 200), (640, 480))


@dataclass(frozen=True)
class Compared:
    """One file: ours by both routes, and the reference's; pixels are uint8 (64, 64, 3)."""

    name: str
    fast: np.ndarray
    exact: np.ndarray
    reference_pixels: np.ndarray
    reference: np.ndarray  # float32 (3, 64, 64), normalised


@pytest.fixture(scope="module")
def reference() -> ReferenceModel:
    return ReferenceModel(DEMO)


@pytest.fixture(scope="module")
def demo() -> LoadedModel:
    return load_model(DEMO_MODEL, Precision.FP32, "cpu")


@pytest.fixture(scope="module")
def decoder() -> Decoder:
    return Decoder(max_pixels=100_000_000)


@pytest.fixture(scope="module")
def comparisons(decoder: Decoder, demo: LoadedModel, reference: ReferenceModel) -> list[Compared]:
    def compare(name: str, number: int) -> Compared:
        make = photo if number % 2 else shapes
        data = FILES[name](make(number, *_SIZES[number]))
        tensor = reference.tensor(Image.open(io.BytesIO(data)))
        fast, exact = (
            decoder.decode(data, demo.pixel_spec, route) for route in (DecodeRoute.FAST, DecodeRoute.EXACT)
        )
        assert (fast.width, fast.height) == (exact.width, exact.height) == _SIZES[number]
        return Compared(name, fast.pixels, exact.pixels, reference.pixels(tensor), tensor)

    with ThreadPoolExecutor(2) as pool:
        pairs = [(name, number) for name in FILES for number in range(len(_SIZES))]
        return list(pool.map(lambda pair: compare(*pair), pairs))


def test_there_are_enough_files_of_every_format(comparisons: list[Compared]) -> None:
    assert len(comparisons) >= 500
    assert {allowed_format(FILES[name](photo(1, 9, 9))) for name in FILES} == set(ALLOWED_FORMATS)


def test_the_exact_route_is_exact(comparisons: list[Compared]) -> None:
    differing = {found.name for found in comparisons if (found.exact != found.reference_pixels).any()}
    assert differing == set()


def test_the_fast_route(comparisons: list[Compared]) -> None:
    differences = [difference_of(found.fast, found.reference_pixels) for found in comparisons]

    print(f"\n{len(differences)} files, p99.9 {p999(differences):g}, max {max(map(np.max, differences))}")
    assert max(int(values.max()) for values in differences) <= 3
    assert max(p999([values]) for values in differences) <= 1


@pytest.mark.parametrize(
    ("route", "precision", "mean", "least"),
    [("exact", "fp32", 0.9999, 0.9999), ("fast", "fp32", 0.9999, 0.9999), ("fast", "bf16", 0.9995, 0.997)],
)
def test_embeddings(
    comparisons: list[Compared],
    reference: ReferenceModel,
    route: str,
    precision: str,
    mean: float,
    least: float,
) -> None:
    expected = reference.features([found.reference for found in comparisons])
    model = load_model(DEMO_MODEL, Precision(precision), "cpu")

    found = cosines(model.encode_images(np.stack([getattr(one, route) for one in comparisons])), expected)

    print(f"\n{route}, {precision}: mean cosine {found.mean():.6f}, min {found.min():.6f}")
    assert found.mean() >= mean
    assert found.min() >= least


@pytest.mark.filterwarnings("ignore::UserWarning:PIL")  # workers silence them, pytest brings them back
@pytest.mark.parametrize("name", FILES)
def test_a_file_that_breaks_off_is_broken_or_had_all_it_needs(
    decoder: Decoder, demo: LoadedModel, name: str
) -> None:
    whole = FILES[name](photo(1, 97, 83))
    for route in DecodeRoute:
        pixels = decoder.decode(whole, demo.pixel_spec, route).pixels
        for tenths in range(10):
            cut = whole[: len(whole) * tenths // 10]
            try:
                found = decoder.decode(cut, demo.pixel_spec, route)
            except ItemFailure as failure:
                expected = ErrorCode.BROKEN_IMAGE if cut else ErrorCode.EMPTY
                assert failure.error.code is expected, (tenths, failure)
            else:  # later frames, or nothing but garbage, were cut off
                assert np.array_equal(found.pixels, pixels), tenths
