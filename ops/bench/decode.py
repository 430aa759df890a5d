"""How much faster the worker's fast decode route is than Pillow, from a JPEG's bytes to the model's pixels.

Both routes take turns on the same pictures, in one thread, so that a busy machine slows both. Prints
images/s of both and the median of the ratios of neighbouring runs. A `soft` picture has no detail finer than
four pixels, as from a telephone, a `sharp` one has some in each pixel. Of large pictures the entropy decoder,
which no route can do without, takes most of the time: the more bytes, the smaller the ratio.

    python -m ops.bench.decode
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from PIL import Image
from torchvision import transforms

from clipfleet.contract import DecodeRoute
from clipfleet_worker.decode import Decoder, PixelSpec
from ops.bench.report import Report, bench_parser
from tests.support.pictures import encoded, photo

SIZES = ((640, 480), (1024, 768), (1920, 1080), (2999, 2001), (4000, 3000))
PIXELS_PER_ROUND = 12_000_000  # of each route: a few large pictures, or many small ones


@dataclass(frozen=True)
class Figures:
    """Of one size of picture: medians over the rounds."""

    pillow_per_second: float
    fast_per_second: float
    ratio: float


def main() -> int:
    parser = bench_parser(__doc__)
    parser.add_argument("--rounds", type=int, default=15, help="runs of each route per size of picture")
    parser.add_argument(
        "--model-size", type=int, nargs="+", default=[224], help="pixels of the model's input"
    )
    options = parser.parse_args()
    torch.set_num_threads(1)
    with Report("decode", options.json) as report:
        table = report.table(
            {
                "picture": ">17",
                "KB": "6.0f",
                "model": "6",
                "Pillow/s": "9.1f",
                "fast/s": "9.1f",
                "ratio": "6.2f",
            }
        )
        for width, height in SIZES:
            for kind, detail in (("soft", 4), ("sharp", 1)):
                files = jpegs(width, height, detail)
                for model_size in options.model_size:
                    found = measure(files, spec_of(model_size), options.rounds, width * height)
                    table.row(
                        f"{width}x{height} {kind}",
                        statistics.mean(map(len, files)) / 1000,
                        model_size,
                        found.pillow_per_second,
                        found.fast_per_second,
                        found.ratio,
                    )
    return report.exit_code


def jpegs(width: int, height: int, detail: int) -> list[bytes]:
    """Photographs without detail finer than so many pixels."""
    small = [photo(seed, width // detail, height // detail) for seed in range(2)]
    return [encoded(one.resize((width, height), Image.Resampling.BICUBIC), quality=85) for one in small]


def spec_of(size: int) -> PixelSpec:
    """What open_clip's models of this size want: shortest side, bicubic, centre crop."""
    resize = transforms.Resize(size, transforms.InterpolationMode.BICUBIC)
    crop = transforms.CenterCrop(size)

    def exact(image: Image.Image) -> Image.Image:
        cropped: Image.Image = crop(resize(image))
        return cropped.convert("RGB")

    return PixelSpec(size, size, "bicubic", "shortest", 0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), exact)


def measure(files: Sequence[bytes], spec: PixelSpec, rounds: int, pixels: int) -> Figures:
    """Decode the files by both routes in turns; the first round only warms up."""
    decoder = Decoder(max_pixels=100_000_000)
    repeats = max(1, PIXELS_PER_ROUND // pixels // len(files))

    def seconds_per_image(route: DecodeRoute) -> float:
        began = time.perf_counter()
        for _ in range(repeats):
            for data in files:
                decoder.decode(data, spec, route)
        return (time.perf_counter() - began) / repeats / len(files)

    routes = (DecodeRoute.EXACT, DecodeRoute.FAST)
    runs = np.array([[seconds_per_image(route) for route in routes] for _ in range(rounds + 1)])[1:]
    pillow, fast = np.median(runs, axis=0)
    return Figures(1 / pillow, 1 / fast, float(np.median(runs[:, 0] / runs[:, 1])))


if __name__ == "__main__":
    sys.exit(main())
