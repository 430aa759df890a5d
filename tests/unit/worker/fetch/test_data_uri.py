"""Images that are written out in their URI."""

from __future__ import annotations

import base64
from functools import partial

import pytest
from hypothesis import given
from hypothesis import strategies as st

from clipfleet_worker.failures import ItemFailure
from clipfleet_worker.fetch.routes import read_data_uri

read = partial(read_data_uri, max_image_bytes=1000)


@given(st.binary(max_size=200))
def test_base64_in_every_spelling(content: bytes) -> None:
    text = base64.b64encode(content).decode()
    for body in (
        text,
        text.rstrip("="),
        base64.urlsafe_b64encode(content).decode(),
        text.replace("+", "%2B").replace("/", "%2F").replace("=", "%3D"),
        "\n".join(text[start : start + 7] for start in range(0, len(text), 7)),
    ):
        assert read(f"data:image/png;base64,{body}") == content


@pytest.mark.parametrize(
    ("uri", "content"),
    {
        "data:,abc": b"abc",
        "DATA:image/png;BASE64,YWJj": b"abc",
        "data:image/svg+xml,%3Csvg%3E,x": b"<svg>,x",
        "data:;base64,": b"",
    }.items(),
)
def test_what_it_says(uri: str, content: bytes) -> None:
    assert read(uri) == content


@pytest.mark.parametrize(
    ("rest", "code"),
    {
        "": "bad_uri",
        "image/png;base64": "bad_uri",
        "image/png;base64,a": "bad_uri",
        "image/png;base64,abc!": "bad_uri",
        "image/png;base64,äöü": "bad_uri",
        "," + "x" * 1001: "too_many_bytes",
        ";base64," + base64.b64encode(b"x" * 1001).decode(): "too_many_bytes",
    }.items(),
)
def test_what_it_cannot_say(rest: str, code: str) -> None:
    with pytest.raises(ItemFailure, match=f"^{code}: "):
        read(f"data:{rest}")
