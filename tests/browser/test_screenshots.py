"""The script that makes the screenshots of the docs."""

from __future__ import annotations

from pathlib import Path

from PIL import Image

from ops.screenshots.__main__ import REPORT, make_screenshots
from tests.support.browser import Browser
from tests.support.cluster import Cluster
from tests.support.documents import ROOT

MOST_BYTES = 200_000


def test_the_screenshots_are_made_anew(cluster: Cluster, browser: Browser, tmp_path: Path) -> None:
    made = make_screenshots(cluster, browser, tmp_path)

    assert [path.name for path in made] == [REPORT]
    for path in made:
        kept = ROOT / "docs" / path.name
        with Image.open(path) as new, Image.open(kept) as old:
            assert new.size == old.size
        assert 0 < path.stat().st_size < MOST_BYTES
        assert kept.stat().st_size < MOST_BYTES
    assert browser.complaints() == []
