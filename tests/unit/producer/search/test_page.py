"""The page of hits: images where they are reachable, and nothing of a row becomes markup."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from clipfleet.errors import UsageError
from clipfleet.search.page import write_page


def hit(uri: str, **columns: Any) -> dict[str, Any]:
    return {"similarity": 0.25, "item_id": "id", "uri": uri, **columns}


def page_of(tmp_path: Path, *hits: dict[str, Any]) -> str:
    write_page(tmp_path / "page.html", "<a> & b", "3 hits", hits)
    return (tmp_path / "page.html").read_text()


def test_images_that_a_browser_reaches(tmp_path: Path) -> None:
    (tmp_path / "a b.jpg").write_bytes(b"image")

    page = page_of(tmp_path, hit("https://images.example/1.jpg?a=1&b=2"), hit(f"{tmp_path}/a b.jpg"))

    assert 'src="https://images.example/1.jpg?a=1&amp;b=2"' in page
    assert f'src="file://{tmp_path}/a%20b.jpg"' in page
    assert "0.2500" in page


@pytest.mark.parametrize("uri", ["s3://bucket/1.jpg", "/nothing/here.jpg", "javascript:alert(1)", "#3", ""])
def test_others_are_named_only(tmp_path: Path, uri: str) -> None:
    page = page_of(tmp_path, hit(uri))

    assert "<img" not in page
    assert "<a " not in page
    assert "not shown" in page


def test_what_rows_hold_is_escaped(tmp_path: Path) -> None:
    evil = '"><script>alert(1)</script>'

    page = page_of(tmp_path, hit(f"https://a.example/{evil}", item_id=evil, note=evil, none=None))

    assert "<script" not in page
    assert "&lt;a&gt; &amp; b" in page
    assert "note: &quot;&gt;&lt;script&gt;" in page


def test_a_place_that_cannot_be_written(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot be written: No such file"):
        write_page(tmp_path / "none" / "page.html", "a", "b", [])
