"""Write the screenshots of the docs: `make screenshots`.

    python -m ops.screenshots FOLDER

Starts servers and a worker with the demo model, labels turned copies of its samples, and shows the report in
Chromium. Needs chromium and chromium-driver.
"""

from __future__ import annotations

import argparse
import csv
import io
import shutil
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from PIL import Image

from clipfleet.outputs.folder import FolderOutput
from clipfleet.report.building import Wanted, make_report
from clipfleet.report.page import write_page
from clipfleet.results.part_rows import PartRows
from tests.support.browser import Browser
from tests.support.cluster import Cluster
from tests.support.turned_samples import write_turned_samples

LABELS = ("cherries", "headphone", "fire engine", "beer mug", "shamrock")
REPORT = "report.png"
_WIDTH, _TALL = 1280, 1640
_THUMBNAIL = 96
_COLOURS = 256  # of the palette, which keeps a file small


def label_collection(cluster: Cluster, folder: Path) -> Path:
    """Label turned samples by a table that says what each shows; returns the output."""
    write_turned_samples(folder / "drawings", LABELS)
    with (folder / "drawings.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["url", "id", "shows"])
        for path in sorted((folder / "drawings").iterdir()):
            name = path.name.partition(".")[0]
            table.writerow([path, path.name, name if name in LABELS else ""])
        table.writerow([folder / "drawings" / "lost.png", "lost.png", ""])
    output = folder / "drawings-labelled"
    cluster.run_json(
        "classify", folder / "drawings.csv", "--model", "demo", "--labels", ",".join(LABELS), "--multi",
        "--id-column", "id", "--top-k", str(len(LABELS)), "--job-id", "drawings", "--output", output,
        expect=3,
    )  # fmt: skip
    return output


def write_report(output: Path, page: Path) -> None:
    """Write the report with images of the files."""
    reader = PartRows(FolderOutput(output))
    drawings = output.parent / "drawings"
    names = {
        row["item_index"]: row["item_id"]
        for batch in reader.read(["item_index", "item_id"]).batches
        for row in batch.to_pylist()
    }

    def thumbnails(indexes: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        for index in indexes:
            if (drawings / names[index]).exists():
                yield index, _thumbnail(drawings / names[index])

    write_page(page, make_report(reader, Wanted(truth_column="shows", per_label=20)), thumbnails)


def _thumbnail(path: Path) -> bytes:
    data = io.BytesIO()
    with Image.open(path) as image:
        image.thumbnail((_THUMBNAIL, _THUMBNAIL))
        image.convert("RGB").save(data, "JPEG", quality=85)
    return data.getvalue()


def make_screenshots(cluster: Cluster, browser: Browser, folder: Path) -> list[Path]:
    """Write all screenshots to a folder; returns their paths."""
    work = cluster.folder / "screenshots"
    work.mkdir()
    output = label_collection(cluster, work)
    write_report(output, work / "report.html")
    browser.open(work / "report.html", width=_WIDTH)
    browser.script("for (const one of document.querySelectorAll('img')) one.loading = 'eager'")
    return [_small(browser.screenshot(work / REPORT, height=_TALL), folder / REPORT)]


def _small(path: Path, to: Path) -> Path:
    with Image.open(path) as image:
        image.convert("RGB").quantize(_COLOURS, dither=Image.Dither.NONE).save(to, optimize=True)
    return to


def main() -> int:
    """Print the paths."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    chromium, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or driver is None:
        parser.error("chromium and chromedriver are not installed: apt-get install chromium chromium-driver")
    with tempfile.TemporaryDirectory(prefix="clipfleet-screenshots-") as work, Cluster(Path(work)) as cluster:
        cluster.start_worker()
        with Browser(chromium, driver, Path(work) / "downloads") as browser:
            for path in make_screenshots(cluster, browser, folder):
                print(f"{path}: {path.stat().st_size:,} bytes")
    return 0


if __name__ == "__main__":
    sys.exit(main())
