"""Whether the fast decode route gives the same pixels as open_clip's own transform, on this very machine."""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.resources import files

import numpy as np
from PIL import Image

from clipfleet.contract import DEMO_MODEL, DecodeRoute, Precision
from clipfleet_worker.decode import Decoder, PixelSpec
from clipfleet_worker.doctor import Finding, fine, problem
from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.model import load_model

_SIZES = ((640, 480), (2999, 2001))
_MOST_GREY_LEVELS = 4.0  # that one pixel in a thousand may be off by, see tests/integration/test_fidelity.py
_REMEDY = "reinstall simplejpeg, torch and pillow (`pip install --force-reinstall`), or use --decode exact"


@dataclass(frozen=True, slots=True)
class DecodeCheck:
    """See `Check`, and the module."""

    max_pixels: int
    name: str = "decode"
    limit_seconds: float = 60.0

    def findings(self) -> Iterator[Finding]:
        spec = load_model(DEMO_MODEL, Precision.FP32, "cpu").pixel_spec
        decoder = Decoder(self.max_pixels)
        worst = 0.0
        try:
            for data in _jpegs():
                worst = max(worst, _difference(decoder, data, spec))
        except ItemFailure as failure:
            yield problem(f"a good JPEG is refused: {failure.error.detail}", _REMEDY)
            return
        if worst > _MOST_GREY_LEVELS:
            yield problem(
                f"the fast route is {worst:.0f} grey levels off the exact one: labels would differ", _REMEDY
            )
        else:
            yield fine(f"the fast route is at most {worst:.0f} grey levels off the exact one (p99.9)")


def _jpegs() -> Iterator[bytes]:
    """Samples of the package, as photographs of other sizes."""
    folder = files("clipfleet_worker") / "samples"
    names = sorted(path.name for path in folder.iterdir() if path.name.endswith(".png"))
    for name, size in zip(names, _SIZES, strict=False):
        with (folder / name).open("rb") as file, Image.open(file) as image:
            picture = image.convert("RGB").resize(size, Image.Resampling.BICUBIC)
        data = io.BytesIO()
        picture.save(data, "JPEG", quality=90)
        yield data.getvalue()


def _difference(decoder: Decoder, data: bytes, spec: PixelSpec) -> float:
    fast, exact = (
        decoder.decode(data, spec, route).pixels.astype(int)
        for route in (DecodeRoute.FAST, DecodeRoute.EXACT)
    )
    return float(np.quantile(np.abs(fast - exact), 0.999))
