"""The file of a report: one that loads nothing, and whose texts cannot leave the data."""

from __future__ import annotations

import json
import re
from base64 import b64decode, b64encode
from collections.abc import Iterator, Sequence
from hashlib import sha256
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from clipfleet.errors import UsageError
from clipfleet.report import page as pages
from clipfleet.report.page import require_replaceable, write_page
from tests.support.reports import (
    HOSTILE,
    drawn_images,
    hostile_rows,
    place_rows,
    read_report,
    rows_by_formula,
    write_report,
)


class Elements(HTMLParser):
    """Tags with attributes, and the texts of scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, str] = {}
        self._name: str | None = None  # of the script or style that is open
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag in ("script", "style"):
            self._name = dict(attrs).get("id") or tag

    def handle_endtag(self, tag: str) -> None:
        self._name = None

    def handle_data(self, data: str) -> None:
        if self._name is not None:
            self.texts[self._name] = self.texts.get(self._name, "") + data


def data_in(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(Elements(path.read_text()).texts["data"])
    return found


def test_it_loads_nothing_and_runs_only_its_own_script(tmp_path: Path) -> None:
    place_rows(tmp_path / "out", rows_by_formula(20)[0])
    path = write_report(tmp_path / "out", tmp_path / "report.html")
    found = Elements(path.read_text())

    assert not [
        tag for tag, attributes in found.tags if "src" in attributes or "//" in (attributes.get("href") or "")
    ]
    (policy,) = (
        attributes["content"] or ""
        for tag, attributes in found.tags
        if tag == "meta" and attributes.get("http-equiv") == "Content-Security-Policy"
    )
    assert "default-src 'none'" in policy and "unsafe" not in policy
    for name in ("script", "style"):
        digest = b64encode(sha256(found.texts[name].encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in policy


def test_hostile_texts_stay_in_the_data(tmp_path: Path) -> None:
    rows, label_set = hostile_rows()
    place_rows(tmp_path / "out", rows, label_set, job_id="a.b-c")
    path = write_report(tmp_path / "out", tmp_path / "report.html")

    found = Elements(path.read_text())
    assert [tag for tag, _ in found.tags].count("script") == 3
    assert not [tag for tag, _ in found.tags if tag == "img"]
    raw = path.read_text().partition('id="data">')[2].partition("</script>")[0]
    assert not re.search("[<>&\u2028\u2029]", raw)
    columns = data_in(path)["rows"]["columns"]
    assert {text for text in columns["item_id"]["values"] if len(text) < 2000} == {*HOSTILE[:-1]}


def test_images_are_those_of_the_thumbnails_and_the_most_needed_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    place_rows(tmp_path / "out", rows_by_formula(50)[0])
    report = read_report(tmp_path / "out", labels=["cat"], to_mark=3)
    asked: list[int] = []

    def thumbnails(indexes: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        asked.extend(indexes)
        return ((index, b"\xff\xd8%d" % index) for index in indexes if index != 7)

    assert write_page(tmp_path / "report.html", report, thumbnails) == 49
    images = json.loads(Elements((tmp_path / "report.html").read_text()).texts["images"])
    assert {int(index): b64decode(text) for index, text in images.items()} == {
        index: b"\xff\xd8%d" % index for index in range(50) if index != 7
    }
    assert len(asked) == len({*asked}) == 50

    monkeypatch.setattr(pages, "MOST_IMAGE_BYTES", 40)
    monkeypatch.setattr(pages, "_AT_A_TIME", 3)
    write_page(tmp_path / "report.html", report, thumbnails)
    images = json.loads(Elements((tmp_path / "report.html").read_text()).texts["images"])
    assert 0 < len(images) <= 10
    assert {*map(int, images)} >= report.drawing.indexes - {7}


def test_without_thumbnails_there_are_no_images(tmp_path: Path) -> None:
    place_rows(tmp_path / "out", rows_by_formula(5)[0])
    path = write_report(tmp_path / "out", tmp_path / "report.html", None)
    assert json.loads(Elements(path.read_text()).texts["images"]) == {}


def test_a_report_is_replaced_and_nothing_else(tmp_path: Path) -> None:
    place_rows(tmp_path / "out", rows_by_formula(5)[0])
    path = write_report(tmp_path / "out", tmp_path / "report.html", drawn_images())
    require_replaceable(path)
    require_replaceable(tmp_path / "new.html")

    (tmp_path / "mine.html").write_text("<!doctype html><p>mine")
    with pytest.raises(UsageError, match="is no report of clipfleet"):
        require_replaceable(tmp_path / "mine.html")
    with pytest.raises(UsageError, match="cannot be written"):
        write_report(tmp_path / "out", tmp_path / "missing" / "report.html")
    assert [one.name for one in tmp_path.iterdir() if one.name.startswith(".")] == []
