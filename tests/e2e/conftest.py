"""Servers and one worker with the demo model for all end-to-end tests that do not break them."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from clipfleet_worker.machine.embedded.s3 import EmbeddedS3
from tests.support.cluster import Cluster
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
