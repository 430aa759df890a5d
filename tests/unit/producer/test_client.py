"""What a program may hand to the client, and what it reads back."""

from __future__ import annotations

from typing import Any

import pytest

from clipfleet.client import Client
from clipfleet.errors import RedisUnavailableError, UsageError
from clipfleet.wording import counted
from tests.support.heads import head_file


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
    for url in ("http://:s3cret@localhost", "localhost:6379", ""):
        with pytest.raises(
            UsageError, match=r"^the URL given to Client cannot be used: .*redis://"
        ) as caught:
            Client(url)
        assert "s3cret" not in str(caught.value)


def test_anything_but_a_url_and_settings_is_refused() -> None:
    with pytest.raises(UsageError, match=r"^Client\(settings=int\): give the URL"):
        Client(5)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("number", "words"), [(0, "0 rows"), (1, "1 row"), (2, "2 rows"), (2000, "2,000 rows")]
)
def test_a_number_has_its_noun(number: int, words: str) -> None:
    assert counted(number, "row") == words


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "^no labels: give labels, or `heads=`$"),
        ({"heads": head_file(4, 2), "templates": ["{}"]}, "^`templates=` is for labels: give labels, too$"),
        ({"heads": head_file(4, 2), "multi": True}, "^`multi=` is for labels: give labels, too$"),
        ({"heads": "none.head.safetensors"}, "none.head.safetensors: No such file"),
    ],
)
def test_a_job_has_labels_or_heads(given: dict[str, Any], words: str) -> None:
    with Client("redis://127.0.0.1:1/5") as client, pytest.raises(UsageError, match=words):
        client.classify(["/a.jpg"], **given)
