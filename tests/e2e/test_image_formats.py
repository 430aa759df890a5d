"""Images of all formats in one job, upright: real command line, real worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from PIL import ExifTags, Image

from clipfleet.contract.jobs import REDIS_OUTPUT
from clipfleet_worker.decode.formats import ALLOWED_FORMATS
from tests.support.cluster import Cluster
from tests.support.images import encoded, photo

SIZE = (120, 80)
ORIENTATION = 6  # a quarter turn


@pytest.fixture
def images(folder: Path) -> Path:
    """One of each format, and phone photos that lie on their side."""
    exif = Image.Exif()
    exif[ExifTags.Base.Orientation] = ORIENTATION
    files = {f"plain.{name.lower()}": encoded(photo(1, *SIZE), name) for name in ALLOWED_FORMATS}
    files |= {
        f"turned.{name.lower()}": encoded(photo(1, *SIZE), name, exif=exif) for name in ("JPEG", "AVIF")
    }
    path = folder / "images"
    path.mkdir(parents=True)
    for name, data in files.items():
        (path / name).write_bytes(data)
    return path


@pytest.mark.parametrize("place", ["folder", "redis"])
def test_every_format_is_labelled_and_turned_on_demand(
    cluster: Cluster, folder: Path, images: Path, place: str
) -> None:
    found: dict[str, dict[str, Any]] = {}
    for exif in ("ignore", "apply"):
        output = REDIS_OUTPUT if place == "redis" else str(folder / exif)
        answer = cluster.run_json(
            "classify", images, "--labels", "pie,stadium", "--model", "demo", "--output", output,
            "--exif", exif,
        )  # fmt: skip
        assert (answer["ok"], answer["failed"]) == (len(ALLOWED_FORMATS) + 2, 0)
        found[exif] = {row["item_id"]: row for row in cluster.rows(answer["job_id"])}

    for name in found["apply"]:
        sizes = [(rows[name]["width"], rows[name]["height"]) for rows in found.values()]
        assert sizes == [SIZE, SIZE[::-1] if name.startswith("turned") else SIZE], name
        assert all(rows[name]["label"] in ("pie", "stadium") for rows in found.values())
    prints = [{row["model_fingerprint"] for row in rows.values()} for rows in found.values()]
    assert [len(one) for one in prints] == [1, 1]
    assert prints[0] != prints[1]
