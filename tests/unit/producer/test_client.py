"""What a program may hand to the client, and what it reads back."""

from __future__ import annotations

import pytest

from clipfleet.client import Client
from clipfleet.errors import RedisUnavailableError, UsageError


def test_a_url_stands_for_the_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIPFLEET_REDIS_URL", "redis://elsewhere.invalid/0")

    with (
        Client("redis://:s3cret@127.0.0.1:1/5") as client,
        pytest.raises(
            RedisUnavailableError,
            match=r"^cannot connect to Redis at redis://\*\*\*@127\.0\.0\.1:1/5: connection refused; is it",
        ),
    ):
        client.jobs()


def test_a_url_of_another_kind_is_refused() -> None:
    with pytest.raises(UsageError, match=r"CLIPFLEET_REDIS_URL cannot be used: .*redis://") as caught:
        Client("http://:s3cret@localhost")
    assert "s3cret" not in str(caught.value)
