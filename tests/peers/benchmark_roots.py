"""Data sets of drawings in the layouts that `clip_benchmark_export_wds` reads, and roots by hand."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Iterable, Sequence
from importlib.resources import files
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image

from tests.support.images import encoded
from tests.support.shards import tar_bytes

Encode = Callable[[Image.Image], bytes]

_SAMPLES = files("clipfleet_worker") / "samples"
SAMPLES: list[dict[str, str]] = json.loads((_SAMPLES / "samples.json").read_text())
NAMES = [sample["name"] for sample in SAMPLES]
# Those that its `voc2007_multilabel` knows, in its order.
VOC = [
    "aeroplane", "bicycle", "bird", "boat", "bottle", "bus", "car", "cat", "chair", "cow", "diningtable",
    "dog", "horse", "motorbike", "person", "pottedplant", "sheep", "sofa", "train", "tvmonitor",
]  # fmt: skip


def png(image: Image.Image) -> bytes:
    return encoded(image, "PNG")


def jpg(image: Image.Image) -> bytes:
    return encoded(image, "JPEG", quality=90)


def webp(image: Image.Image) -> bytes:
    return encoded(image, "WEBP", lossless=True)


def turned_jpg(image: Image.Image) -> bytes:
    """Lies on its side, and says so; neither program turns it."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = 6
    return encoded(image, "JPEG", exif=exif)


def _in(mode: str, image_format: str) -> Encode:
    return lambda image: encoded(image.convert(mode), image_format)


# Without palettes, one bit, 16 bits, four inks: they convert these before the resizing, open_clip after it.
MIXED: tuple[tuple[str, Encode], ...] = (
    ("png", png), ("jpg", jpg), ("webp", webp), ("jpeg", turned_jpg), ("jpg", _in("L", "JPEG")),
    ("png", _in("RGBA", "PNG")),
)  # fmt: skip


def drawing(number: int, seed: int, least: int = 40, most: int = 600) -> Image.Image:
    """Sample `number` on a coloured ground with some noise; the sides have `least` to `most` pixels."""
    random = np.random.default_rng(seed)
    width, height = (int(side) for side in random.integers(least, most + 1, 2))
    ground = random.integers(150, 245, 3, np.uint8) + random.integers(0, 11, (height, width, 1), np.uint8)
    canvas = Image.fromarray(ground)
    sample = Image.open(io.BytesIO((_SAMPLES / SAMPLES[number]["file"]).read_bytes())).convert("RGBA")
    side = max(16, int(min(width, height) * random.uniform(0.55, 1.0)))
    turned = sample.rotate(random.uniform(-25, 25), Image.Resampling.BICUBIC).resize((side, side))
    canvas.paste(turned, ((width - side) // 2, (height - side) // 2), turned)
    return canvas


def write_root(
    root: Path,
    samples: Iterable[tuple[str, bytes, str, bytes]],
    *,
    classes: Sequence[str] = (),
    templates: Sequence[str] = (),
    kind: str | None = None,
    shard_size: int = 64,
) -> Path:
    """A root in clip-benchmark's layout; a sample is an image's ending and file, and the truth's."""
    (root / "test").mkdir(parents=True)
    if classes:
        (root / "classnames.txt").write_text("".join(f"{name}\n" for name in classes))
    if templates:
        lines = "".join(f"{template}\n" for template in templates)
        (root / "zeroshot_classification_templates.txt").write_text(lines)
    if kind:
        (root / "dataset_type.txt").write_text(f"{kind}\n")
    listed = list(samples)
    shards = [listed[start : start + shard_size] for start in range(0, len(listed), shard_size)]
    for number, shard in enumerate(shards):
        members = []
        for index, (ending, image, truth_ending, truth) in enumerate(shard, number * shard_size):
            members += [(f"s{index:07d}.{ending}", image), (f"s{index:07d}.{truth_ending}", truth)]
        (root / "test" / f"{number}.tar").write_bytes(tar_bytes(members))
    (root / "test" / "nshards.txt").write_text(f"{len(shards)}\n")
    return root


def npy(vector: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vector)
    return buffer.getvalue()


def write_fer2013(folder: Path) -> None:
    """Its `fer2013`: a folder of images for each of seven classes, unequally many; it has six templates."""
    for label in range(7):
        of_class = folder / "test" / str(label)
        of_class.mkdir(parents=True)
        for copy in range(4 + label):
            seed = 100 * label + copy
            (of_class / f"{copy}.png").write_bytes(png(drawing(8 * label + copy, seed, most=200)))


def write_voc2007(folder: Path) -> None:
    """Its `voc2007_multilabel`; the last class has no example, some images have none of the classes."""
    voc = folder / "VOCdevkit" / "VOC2007"
    for inner in ("ImageSets/Main", "JPEGImages", "Annotations"):
        (voc / inner).mkdir(parents=True)
    random, listed = np.random.default_rng(7), []
    for number in range(1, 61):
        name = f"{number:06d}"
        (voc / "JPEGImages" / f"{name}.jpg").write_bytes(jpg(drawing(number - 1, number, 80, 250)))
        shown = [VOC[label] for label in range(19) if random.random() < 0.15]
        boxes = "<bndbox><a>1</a><b>1</b><c>9</c><d>9</d></bndbox>"
        objects = "".join(f"<object><name>{label}</name>{boxes}</object>" for label in shown)
        (voc / "Annotations" / f"{name}.xml").write_text(f"<annotation>{objects}</annotation>")
        listed.append(f"{name} {1 if VOC[0] in shown else -1}\n")
    (voc / "ImageSets" / "Main" / f"{VOC[0]}_test.txt").write_text("".join(listed))


def write_captions(folder: Path) -> None:
    """What `export_captions.py` reads: numbered images beside `captions.json`."""
    folder.mkdir(parents=True)
    for number in range(50):
        (folder / f"{number}.png").write_bytes(png(drawing(number, 1000 + number, 80, 250)))
    (folder / "captions.json").write_text(json.dumps([captions(number) for number in range(50)]))


def captions(number: int) -> list[str]:
    """One to four, all different; some with a newline."""
    name = NAMES[number]
    other = NAMES[(number * 7 + 3) % len(NAMES)]
    said = [
        f"a drawing of {name}",
        f"{name}, not {other}, no. {number}",
        f"emoji {number}: {other}",
        f"the {name}\nicon",
    ]
    return said[: 1 + number % 4]


def labelled(
    numbers: Sequence[int], count: int, encoders: Sequence[tuple[str, Encode]], seed: int, **sides: int
) -> list[tuple[str, bytes, str, bytes]]:
    """Samples of these drawings in turn, class i being the i-th of `numbers`."""
    made = []
    for index in range(count):
        label = index % len(numbers)
        ending, encode = encoders[index // len(numbers) % len(encoders)]
        image = encode(drawing(numbers[label], seed + index, **sides))
        made.append((ending, image, "cls", str(label).encode()))
    return made


def write_by_hand(folder: Path) -> None:
    """The roots `drawings`, `few`, `several`, `captions` and `photos`."""
    templates = ("a photo of a {c}.", "a drawing of a {c}", "{c}")
    names = [f"{name} " for name in NAMES[:20]]
    # Without the images of two classes, which do not count then; and unequally many of the others.
    samples = [
        one for index, one in enumerate(labelled(range(20), 240, MIXED, 0)) if index % 20 not in (4, 9)
    ]
    write_root(folder / "drawings", samples[:-7], classes=names, templates=templates)
    few = labelled((23, 29, 41), 45, MIXED, 5000)
    write_root(
        folder / "few", few, classes=[NAMES[number] for number in (23, 29, 41)], templates=templates[:1]
    )
    write_root(folder / "several", _several(), classes=NAMES[20:28], templates=templates, kind="multilabel")
    texts = ["\n".join(caption.replace("\n", r"\n") for caption in captions(number)) for number in range(60)]
    pairs = [
        (
            "png" if number % 3 else "jpg",
            (png if number % 3 else jpg)(drawing(number, 3000 + number)),
            "txt",
            text.encode(),
        )
        for number, text in enumerate(texts)
    ]
    write_root(folder / "captions", pairs, kind="retrieval", shard_size=25)
    photos = labelled(range(40, 60), 600, (("jpg", jpg),), 9000, least=300, most=600)
    write_root(folder / "photos", photos, classes=NAMES[40:], templates=templates)


def _several() -> list[tuple[str, bytes, str, bytes]]:
    """Two drawings beside each other; no image shows the last of eight classes, some show none at all."""
    random, made = np.random.default_rng(3), []
    for index in range(90):
        left, right = (int(number) for number in random.choice(12, 2, replace=False))
        truth = np.zeros(8, np.int64)
        truth[[shown for shown in (left, right) if shown < 7]] = 1
        numbers = [20 + shown if shown != 7 else 40 for shown in (left, right)]
        both = Image.new("RGB", (300, 150))
        for place, number in enumerate(numbers):
            half = drawing(number, 2000 + 2 * index + place, 100, 250)
            both.paste(half.resize((150, 150), Image.Resampling.BICUBIC), (150 * place, 0))
        # In the middle, where the model looks.
        made.append(("png", png(both.resize((150, 150), Image.Resampling.BICUBIC)), "npy", npy(truth)))
    return made
