"""A real Chromium, driven by selenium: pages are opened from files, and nothing may leave them."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conftest import service_is_missing
from tests.support.browser import Browser
from tests.support.cluster import Cluster
from tests.support.services import stop_shared

AXE = "axe-core@4.14.1"


@pytest.fixture(scope="session")
def axe(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The script of axe-core."""
    if shutil.which("npm") is None:
        service_is_missing("npm is not installed")
    folder = tmp_path_factory.mktemp("axe")
    subprocess.run(["npm", "install", "--silent", "--no-save", "--prefix", folder, AXE], check=True)
    return (folder / "node_modules" / "axe-core" / "axe.min.js").read_text()


@pytest.fixture
def browser(tmp_path: Path) -> Iterator[Browser]:
    """A browser with an empty profile, whose downloads go to `downloads`."""
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        service_is_missing("chromium and chromium-driver are not installed")
    chromium, driver = map(str, programs)
    with Browser(chromium, driver, tmp_path / "downloads") as opened:
        yield opened


@pytest.fixture
def violations(browser: Browser, axe: str) -> Callable[[], list[str]]:
    """What axe-core finds on the page as it is, of serious and critical impact."""

    def find() -> list[str]:
        browser.script(axe)
        found = browser.script_async("axe.run().then(arguments[0])")["violations"]
        return [
            f"{one['id']}: {json.dumps([node['target'] for node in one['nodes'][:3]])}"
            for one in found
            if one["impact"] in ("serious", "critical")
        ]

    return find


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Servers and one worker with the demo model."""
    with Cluster(tmp_path_factory.mktemp("cluster")) as running:
        running.start_worker()
        yield running
    stop_shared()
