"""Servers and one worker with the demo model for all end-to-end tests that do not break them."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clipfleet.client import Client
from clipfleet_worker.machine.embedded.s3 import EmbeddedS3
from tests.support.cluster import Cluster
from tests.support.http_site import HttpSite
from tests.support.images import write_images
from tests.support.services import stop_shared


@pytest.fixture(scope="session", autouse=True)
def _shared_services() -> Iterator[None]:
    yield
    stop_shared()


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory, s3_server: EmbeddedS3 | None) -> Iterator[Cluster]:
    """Its worker and command line also know the S3 store of the fixture `s3`."""
    settings = s3_server.environment() if s3_server is not None else {}
    with Cluster(tmp_path_factory.mktemp("cluster"), settings) as running:
        running.start_worker()
        yield running


@pytest.fixture
def client(cluster: Cluster) -> Client:
    return cluster.client


@pytest.fixture
def folder(cluster: Cluster, tmp_path: Path) -> Path:
    """A folder of the test's own that the worker may read and write."""
    folder = cluster.folder / tmp_path.name
    folder.mkdir()
    return folder


@pytest.fixture
def site(tmp_path: Path) -> Iterator[HttpSite]:
    """A website with seven images, the first of which is `000000.jpg`."""
    write_images(tmp_path / "site", 7)
    with HttpSite(tmp_path / "site") as running:
        yield running
