"""The speed of the worker's fast decode route relative to Pillow, from a file's bytes to the model's pixels.

Both routes alternate on the same images, in one thread, so that a busy machine slows both: images/s of CPU
time, and the median of the ratios of neighbouring runs. For large JPEGs the entropy decoder, which every
route needs, takes most of the time: the more bits per pixel, the smaller the ratio. So images differ in their
finest detail: four pixels (`soft`), two (`photo`) or one (`sharp`). The goals are for the median of the
qualities 75 to 95 of the second kind in 4:2:0, the default of libjpeg. Also printed are the median of 4:4:4,
and up to how many bits per pixel the goals hold. JPEGs in several scans and other formats, which both routes
decode alike, are listed for comparison.

    python -m ops.bench.decode [--rounds 9] [--model-size 224] [--sizes 4000x3000]
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile

import torch
from PIL import Image
from torchvision import transforms

from clipfleet.contract.jobs import DecodeRoute
from clipfleet_worker.decode.decoder import Decoder
from clipfleet_worker.pixel_spec import PixelSpec
from ops.bench.report import Report, bench_parser, positive
from ops.bench.rounds import in_turns, median_ratio
from tests.support.images import encoded, photo

SMALL, LARGE = (640, 480), (4000, 3000)
SIZES = (SMALL, (1024, 768), (1920, 1080), (2999, 2001), (4256, 2832), LARGE)
DETAILS = {"soft": 4, "photo": 2, "sharp": 1}  # pixels of the finest
GOALS = {SMALL: 2.4, LARGE: 4.5}
GOAL_KIND, GOAL_SAMPLING = "photo", "4:2:0"
PIXELS_PER_ROUND = 12_000_000  # of each route: a large image, or many small ones


@dataclass(frozen=True, slots=True)
class Case:
    """One kind of file."""

    size: tuple[int, int]
    kind: str
    encoding: str
    files: Sequence[bytes]

    @property
    def bits_per_pixel(self) -> float:
        """Of the files on average."""
        return 8 * statistics.mean(map(len, self.files)) / (self.size[0] * self.size[1])

    @property
    def is_plain_jpeg(self) -> bool:
        """In one scan."""
        return self.encoding.startswith("JPEG") and "scans" not in self.encoding


@dataclass(frozen=True, slots=True)
class Figures:
    """The figures of one case: medians over the rounds."""

    pillow_per_second: float
    fast_per_second: float
    ratio: float


def main() -> int:
    """Measure; return 1 if a goal is missed."""
    parser = bench_parser(__doc__)
    parser.add_argument("--rounds", type=positive, default=9, help="runs of each route per case")
    parser.add_argument("--model-size", type=positive, default=224, help="pixels of the model's input")
    names = [f"{width}x{height}" for width, height in SIZES]
    parser.add_argument("--sizes", nargs="+", choices=names, default=names, help="of the images")
    options = parser.parse_args()
    torch.set_num_threads(1)
    spec = spec_of(options.model_size)
    formats = {
        "image": "<15", "file": "<17", "KB": ">5.0f", "bits/pixel": ">5.2f", "Pillow/s": ">8.1f",
        "fast/s": ">8.1f", "ratio": ">5.2f",
    }  # fmt: skip
    with Report("decode", options.json) as report:
        table = report.table(formats, f"one thread, to {options.model_size} pixels")
        for size in (size for name, size in zip(names, SIZES, strict=True) if name in options.sizes):
            found: list[tuple[Case, Figures]] = []
            for case in cases(size):
                figures = measure(case, spec, options.rounds)
                found.append((case, figures))
                kilobytes = statistics.mean(map(len, case.files)) / 1000
                rates = figures.pillow_per_second, figures.fast_per_second, figures.ratio
                table.row(
                    f"{size[0]}x{size[1]} {case.kind}", case.encoding, kilobytes, case.bits_per_pixel, *rates
                )
            if size in GOALS:
                judge(report, size, [one for one in found if one[0].is_plain_jpeg])
    return report.exit_code


def judge(report: Report, size: tuple[int, int], found: Sequence[tuple[Case, Figures]]) -> None:
    """Compare with the goal, and print up to where it holds."""
    goal, name = GOALS[size], f"{size[0]}x{size[1]}"
    median, other = (
        statistics.median(
            one.ratio for case, one in found if case.kind == GOAL_KIND and sampling in case.encoding
        )
        for sampling in (GOAL_SAMPLING, "4:4:4")
    )
    report.goal(f"{name} {GOAL_KIND} in {GOAL_SAMPLING}, median of qualities", median, at_least=goal)
    print(f"{name} {GOAL_KIND} in 4:4:4, median of qualities: {other:.2f}")
    by_bits = sorted((case.bits_per_pixel, figures.ratio) for case, figures in found)
    most = max((bits for bits, _ in takewhile(lambda one: one[1] >= goal, by_bits)), default=0.0)
    print(f"{name}: {goal} times Pillow's speed up to {most:.2f} bits a pixel")
    report.fact(f"{name}: bits a pixel up to which the goal holds", most)


def cases(size: tuple[int, int]) -> Iterator[Case]:
    """The cases, each made lazily."""
    for kind, detail in DETAILS.items():
        images = photos(*size, detail)
        for name, image_format, how in encodings(size):
            yield Case(size, kind, name, [encoded(one, image_format, **how) for one in images])


def encodings(size: tuple[int, int]) -> Iterator[tuple[str, str, dict[str, object]]]:
    """(name, format, options of Pillow): all for the sizes with a goal, one for those between."""
    full, half = {"subsampling": "4:4:4"}, {"subsampling": "4:2:0"}
    yield "JPEG 85 4:2:0", "JPEG", {"quality": 85, **half}
    if size not in GOALS:
        return
    yield "JPEG 75 4:2:0", "JPEG", {"quality": 75, **half}
    yield "JPEG 95 4:2:0", "JPEG", {"quality": 95, **half}
    yield "JPEG 75 4:4:4", "JPEG", {"quality": 75, **full}
    yield "JPEG 95 4:4:4", "JPEG", {"quality": 95, **full}
    yield "JPEG 85 in scans", "JPEG", {"quality": 85, "progressive": True, **half}
    if size == SMALL:
        yield "PNG", "PNG", {}
        yield "WebP 85", "WEBP", {"quality": 85}


def photos(width: int, height: int, detail: int) -> list[Image.Image]:
    """Images without detail finer than a number of pixels."""
    small = [photo(seed, width // detail, height // detail) for seed in range(2)]
    return [one.resize((width, height), Image.Resampling.BICUBIC) for one in small]


def spec_of(size: int) -> PixelSpec:
    """The preprocessing of open_clip's models of this size: shortest side, bicubic, centre crop."""
    resize = transforms.Resize(size, transforms.InterpolationMode.BICUBIC)
    crop = transforms.CenterCrop(size)

    def exact(image: Image.Image) -> Image.Image:
        cropped: Image.Image = crop(resize(image))
        return cropped.convert("RGB")

    return PixelSpec(size, size, "bicubic", "shortest", 0, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), exact)


def measure(case: Case, spec: PixelSpec, rounds: int) -> Figures:
    """Decode the files by both routes alternately."""
    decoder = Decoder(max_pixels=100_000_000)
    repeats = max(1, PIXELS_PER_ROUND // (case.size[0] * case.size[1]) // len(case.files))

    def seconds_per_image(route: DecodeRoute) -> float:
        began = time.thread_time()
        for _ in range(repeats):
            for data in case.files:
                decoder.decode(data, spec, route)
        return (time.thread_time() - began) / repeats / len(case.files)

    routes: dict[str, Callable[[], float]] = {
        "Pillow": partial(seconds_per_image, DecodeRoute.EXACT),
        "fast": partial(seconds_per_image, DecodeRoute.FAST),
    }
    seconds = in_turns(routes, rounds)
    pillow, fast = (statistics.median(seconds[name]) for name in routes)
    return Figures(1 / pillow, 1 / fast, median_ratio(seconds["Pillow"], seconds["fast"]))


if __name__ == "__main__":
    sys.exit(main())
