"""Every kind of broken or hostile image among good ones, as one job: real command line, real worker."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.support.cluster import Cluster
from tests.support.hostile_files import HOSTILE
from tests.support.images import encoded, photo

GOOD = {f"good-{number:02d}.jpg": (number, "JPEG" if number % 2 else "PNG") for number in range(24)}
MAX_WORKER_BYTES = 1_000_000_000  # of the peak, beyond what it had before; one bomb alone would be more


def write_good(folder: Path) -> None:
    folder.mkdir(parents=True)
    for name, (seed, image_format) in GOOD.items():
        (folder / name).write_bytes(encoded(photo(seed, 200 + seed, 160), image_format))


def embedded(cluster: Cluster, folder: Path, output: Path) -> list[dict[str, Any]]:
    job = cluster.embed(folder, output, chunk_size=64)
    assert job.wait(240).total == len(list(folder.iterdir()))
    return list(job.results())


def peak_bytes(pid: int) -> int:
    status = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmHWM"))


@pytest.mark.figures
def test_good_images_among_hostile_ones(cluster: Cluster, folder: Path) -> None:
    worker = cluster.living_worker()
    write_good(folder / "good")
    alone = embedded(cluster, folder / "good", folder / "alone")
    write_good(folder / "mixed")
    # Their names are wrong: only the content shows what a file is.
    kinds = {f"hostile-{number:03d}.jpg": kind for number, kind in enumerate(HOSTILE.values())}
    for name, kind in kinds.items():
        (folder / "mixed" / name).write_bytes(kind.build())
    before = peak_bytes(worker.pid)

    rows = embedded(cluster, folder / "mixed", folder / "out")

    found = {row["item_id"]: row for row in rows}
    assert len(rows) == len(found) == len(GOOD) + len(HOSTILE)
    for name, kind in kinds.items():
        assert found[name]["error_code"] == (kind.code and kind.code.value), name
    for row in alone:
        same = found[row["item_id"]]
        assert same["content_hash"] == row["content_hash"]
        assert np.dot(np.float32(same["embedding"]), np.float32(row["embedding"])) > 0.999
    assert worker.process.poll() is None
    grown = peak_bytes(worker.pid) - before
    print(f"{len(HOSTILE)} hostile files, {len(GOOD)} good ones: the peak grew by {grown / 1e6:.0f} MB")
    assert grown < MAX_WORKER_BYTES
    for path in (folder / "mixed").iterdir():
        path.unlink()
