"""Tar shards for tests: in img2dataset's layout, and by webdataset's own writer."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tests.support.images import encoded, make_image


def tar_bytes(members: Iterable[tuple[str, bytes]]) -> bytes:
    """An archive of these files, in this order."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, content in members:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def img2dataset_shard(keys: Iterable[int]) -> bytes:
    """A shard as img2dataset writes it: `{key}.jpg`, `{key}.txt`, `{key}.json` for each image."""
    members = []
    for key in keys:
        facts = {
            "caption": f"image {key}", "url": f"https://example.org/{key}.jpg", "key": f"{key:09d}",
            "status": "success", "error_message": None, "width": 96, "height": 80, "original_width": 960,
            "original_height": 800, "exif": "{}", "sha256": "0" * 64,
        }  # fmt: skip
        members += [
            (f"{key:09d}.jpg", encoded(make_image(key))),
            (f"{key:09d}.txt", f"image {key}".encode()),
            (f"{key:09d}.json", json.dumps(facts, indent=4).encode()),
        ]
    return tar_bytes(members)


def webdataset_shard(path: Path, samples: Iterable[Mapping[str, Any]]) -> None:
    """A shard by webdataset's own writer; it encodes by the names' endings."""
    import webdataset

    with webdataset.TarWriter(str(path)) as writer:
        for sample in samples:
            writer.write(sample)
