"""Images to be damaged: of every format, small, the good ones and the hostile ones."""

from __future__ import annotations

from functools import cache

from PIL import Image

from clipfleet_worker.pixel_spec import PixelSpec
from tests.support.hostile_files import HOSTILE
from tests.support.image_files import AVIFS, FILES, HEIFS, Encode
from tests.support.images import photo

_MAX_SEED_BYTES = 60_000
_SIZE = 32


def _fitted(image: Image.Image) -> Image.Image:
    """Like open_clip's transform: resize, crop, then RGB."""
    factor = _SIZE / min(image.size)
    size = max(_SIZE, round(image.width * factor)), max(_SIZE, round(image.height * factor))
    return image.resize(size, Image.Resampling.BICUBIC).crop((0, 0, _SIZE, _SIZE)).convert("RGB")


SPEC = PixelSpec(_SIZE, _SIZE, "bicubic", "shortest", 0, (0.5,) * 3, (0.5,) * 3, _fitted)


def _encoded(files: dict[str, Encode]) -> list[bytes]:
    return [encode(photo(number, 61, 47)) for number, encode in enumerate(files.values())]


@cache
def avif_seeds() -> list[bytes]:
    """Read by children only."""
    return _encoded(AVIFS)


@cache
def heif_seeds() -> list[bytes]:
    """The same with HEVC inside."""
    return _encoded(HEIFS)


@cache
def image_seeds() -> list[bytes]:
    """Of formats that a worker reads itself; in a fixed order: a seed means the same file everywhere."""
    good = _encoded({name: encode for name, encode in FILES.items() if name not in AVIFS | HEIFS})
    hostile = [kind.build() for name, kind in HOSTILE.items() if not name.startswith(("avif", "heif"))]
    return good + [data for data in hostile if 0 < len(data) <= _MAX_SEED_BYTES]
