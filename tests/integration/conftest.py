"""The store of `s3` behind a front that breaks requests."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.s3 import S3Bucket
from tests.support.s3_front import S3Front


@pytest.fixture
def front(s3: S3Bucket, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Front]:
    """Before all clients that are made from now on; they do not wait between their attempts."""
    monkeypatch.setattr("botocore.retries.standard.ExponentialBackoff.delay_amount", lambda *_: 0)
    monkeypatch.setattr("clipfleet.outputs.s3._CONFLICT_SECONDS", 0)
    with S3Front(s3.endpoint, seed=1) as front:
        for name, value in front.environment({}).items():
            monkeypatch.setenv(name, value)
        yield front
