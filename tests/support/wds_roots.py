"""Webdataset roots in CLIP_benchmark's layout, written by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path

from clipfleet_worker.cli.demo import samples
from tests.support.shards import tar_bytes

Image = tuple[bytes, Mapping[str, bytes]]  # a file, and the members beside it by extension


def demo_images(group: int = 0) -> tuple[list[str], list[bytes]]:
    """Names and files of twenty of the demo model's sample images, one of each name."""
    chosen = [sample for sample in samples() if sample.group == group]
    folder = files("clipfleet_worker") / "samples"
    return [one.name for one in chosen], [(folder / one.file).read_bytes() for one in chosen]


def write_root(
    folder: Path,
    shards: Sequence[Sequence[Image]],
    texts: Mapping[str, Sequence[str]],
    split: str = "test",
    ending: str = "png",
) -> Path:
    """Write a root: of each shard its images with what is beside them; `texts` are lines by file name."""
    (folder / split).mkdir(parents=True)
    for name, lines in texts.items():
        (folder / name).write_text("".join(f"{line}\n" for line in lines))
    (folder / split / "nshards.txt").write_text(str(len(shards)))
    number = 0
    for index, images in enumerate(shards):
        members = []
        for content, beside in images:
            members.append((f"s{number:07d}.{ending}", content))
            members += [(f"s{number:07d}.{end}", data) for end, data in beside.items()]
            number += 1
        (folder / split / f"{index}.tar").write_bytes(tar_bytes(members))
    return folder
