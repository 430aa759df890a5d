"""Images for tests, made by seed."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
from PIL import Image, ImageChops, ImageDraw, ImageFont

from clipfleet_worker.decode.codecs import load_codec


def make_image(seed: int, width: int = 96, height: int = 80) -> Image.Image:
    """A smooth coloured image with some texture, different for every seed."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, (4, 5, 3), dtype=np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    noise = random.integers(-12, 13, (height, width, 3))
    return Image.fromarray((np.asarray(image).astype(int) + noise).clip(0, 255).astype(np.uint8))


def encoded(image: Image.Image, image_format: str = "JPEG", **options: object) -> bytes:
    """The image as a file's bytes."""
    if image_format == "HEIF":
        load_codec(image_format)
    buffer = io.BytesIO()
    image.save(buffer, image_format, **options)
    return buffer.getvalue()


def write_images(folder: Path, count: int, *, width: int = 96, height: int = 80) -> list[Path]:
    """`count` JPEGs named by number."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = []
    for number in range(count):
        path = folder / f"{number:06d}.jpg"
        path.write_bytes(encoded(make_image(number, width, height), quality=85))
        paths.append(path)
    return paths


def photo(seed: int, width: int, height: int) -> Image.Image:
    """Like a photograph: texture in every octave down to single pixels, the finest weaker and grey."""
    random = np.random.default_rng(seed)
    image = Image.fromarray(random.integers(40, 216, (3, 4, 3), dtype=np.uint8))
    for octave in reversed(range(max(1, max(width, height).bit_length() - 2))):
        size = -(-width >> octave), -(-height >> octave)
        if octave > 3:
            texture = Image.merge("RGB", [_noise(random, size, 16) for _ in range(3)])
        else:
            texture = _noise(random, size, 5 * (octave + 1)).convert("RGB")
        larger = image.resize(size, Image.Resampling.BICUBIC)
        image = ImageChops.add(larger, texture, scale=1, offset=-128)
    return image


def _noise(random: np.random.Generator, size: tuple[int, int], amplitude: int) -> Image.Image:
    width, height = size
    return Image.fromarray(random.integers(128 - amplitude, 129 + amplitude, (height, width), dtype=np.uint8))


def gradient(seed: int, width: int, height: int) -> Image.Image:
    """Smooth waves of colour in all directions."""
    random = np.random.default_rng(seed)
    rows, columns = np.mgrid[0:1:40j, 0:1:40j]
    waves = []
    for _ in range(3):
        across, down, phase = random.uniform(-2, 2, 3)
        waves.append(127.5 + 127 * np.cos(2 * np.pi * (columns * across + rows * down + phase)))
    small = Image.fromarray(np.stack(waves, axis=-1).astype(np.uint8))
    return small.resize((width, height), Image.Resampling.BICUBIC)


def shapes(seed: int, width: int, height: int) -> Image.Image:
    """Triangles and thin lines with sharp edges, in pure colours."""
    random = np.random.default_rng(seed)
    image = Image.new("RGB", (width, height), _colour(random))
    draw = ImageDraw.Draw(image)
    for _ in range(30):
        corners = [(int(random.integers(width)), int(random.integers(height))) for _ in range(3)]
        draw.polygon(corners, fill=_colour(random))
    for _ in range(20):
        ends = [(int(random.integers(width)), int(random.integers(height))) for _ in range(2)]
        draw.line(ends, fill=_colour(random), width=int(random.integers(1, 6)))
    return image


def text(seed: int, width: int, height: int) -> Image.Image:
    """A page of print, dark on light or light on dark, 12 to 50 lines."""
    random = np.random.default_rng(seed)
    dark, light = (int(random.integers(0, 60)),) * 3, (int(random.integers(200, 256)),) * 3
    paper, ink = (dark, light) if random.random() < 0.3 else (light, dark)
    image = Image.new("RGB", (width, height), paper)
    draw = ImageDraw.Draw(image)
    line_height = max(8, int(height / random.integers(12, 51)))
    font = ImageFont.load_default(line_height * 0.8)
    letters = list("etaoin shrdlu cmfwyp vbgkqjxz ETAOIN 0123456789.,")
    for top in range(0, height, line_height):
        line = "".join(random.choice(letters, 3 * width // line_height + 1))
        draw.text((line_height, top), line, font=font, fill=ink)
    return image


def _colour(random: np.random.Generator) -> tuple[int, int, int]:
    red, green, blue = (int(value) for value in random.integers(0, 256, 3))
    return red, green, blue
