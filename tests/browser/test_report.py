"""A report in a real browser: it loads nothing, marks resume and are exported, texts stay texts."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from clipfleet.labels.marks import MarkVerdict, Purpose, read_marks
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from tests.support.browser import Browser
from tests.support.reports import (
    HOSTILE,
    SHARES,
    drawn_images,
    hostile_rows,
    place_full_output,
    place_rows,
    write_report,
)

ITEMS = 10_000


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A report of 10,000 items, with images, all sections, a certify sample of cats and fit samples."""
    folder = tmp_path_factory.mktemp("report")
    place_full_output(folder, ITEMS)
    compared = PartRows(FolderOutput(folder / "before"))
    return write_report(
        folder / "now", folder / "report.html", drawn_images(), to_mark=5, truth_column="animal",
        compared=compared,
    )  # fmt: skip


@pytest.fixture(scope="module")
def hostile_page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("hostile")
    rows, label_set = hostile_rows()
    place_rows(folder / "out", rows, label_set)
    return write_report(folder / "out", folder / "report.html", to_mark=3)


def open_mark(browser: Browser, sample: str) -> None:
    browser.click(f"[data-mark='{sample}']")
    browser.one("#marker .stage")


@pytest.mark.figures
def test_it_opens_from_a_file_and_no_request_leaves_it(browser: Browser, page: Path) -> None:
    browser.open(page)

    assert browser.all("main > section")
    assert f"{ITEMS:,}" in browser.text("#summary")
    assert "dog" in browser.text("#labels") and "not_found" in browser.text("#failures")
    for link in browser.all("nav a"):
        link.click()
    browser.click(".tile")
    browser.press("Escape")
    assert {url.partition(":")[0] for url in browser.requests()} <= {"file", "data", "blob"}
    loaded = browser.script("return performance.getEntriesByType('resource').map(one => one.name)")
    assert [name for name in loaded if not name.startswith(("data:", "blob:"))] == []
    assert browser.complaints() == []
    paint_ms = browser.script(
        "return performance.getEntriesByName('first-contentful-paint').map(one => one.startTime)[0] || 0"
    )
    filter_ms = browser.script(
        "const box = document.getElementById('search'); const began = performance.now();"
        "box.value = 'img77'; box.dispatchEvent(new Event('input')); return performance.now() - began"
    )
    print(
        f"report of {ITEMS:,} items: {page.stat().st_size / 1e6:.1f} MB, first paint "
        f"{paint_ms:.0f} ms, filter {filter_ms:.0f} ms"
    )


def test_rows_are_filtered_sorted_and_searched(browser: Browser, page: Path) -> None:
    browser.open(page)

    browser.press("/")
    browser.press(*"img4321")
    assert browser.text("#row-count") == "1\u20131 of 1 row"
    assert "img4321" in browser.text("#rows tbody")
    browser.script(
        "const box = document.getElementById('search'); box.value = ''; box.dispatchEvent(new Event('input'))"
    )
    browser.click("#rows [data-key=score] button")
    scores = [float(text) for text in re.findall(r"\b[01]\.\d{3}\b", browser.text("#rows tbody"))]
    assert scores and scores == sorted(scores, reverse=True)
    browser.script(
        "const box = document.getElementById('label-filter');"
        "box.value = [...box.options].find(one => one.text === 'fox').value;"
        "box.dispatchEvent(new Event('change'))"
    )
    lines = browser.all("#rows tbody tr")
    assert lines and all("fox" in line.text for line in lines)


def test_a_host_leads_to_its_rows(browser: Browser, page: Path) -> None:
    browser.open(page)

    browser.click("#failures tbody .plain")
    host = browser.script("return document.getElementById('search').value")
    assert host in browser.text("#failures")
    assert re.fullmatch(r"1\u201350 of 3,\d{3} rows", browser.text("#row-count"))


def test_a_row_is_shown_whole_and_arrows_step_through_the_sheet(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.click(".tile")

    first = browser.text("#detail-title")
    assert "content_hash" in browser.text("#detail") and "hash" in browser.text("#detail .fields")
    browser.press("ArrowRight")
    assert browser.text("#detail-title") != first
    browser.press("ArrowLeft")
    assert browser.text("#detail-title") == first
    browser.press("Escape")
    assert browser.focused().startswith("tile")
    browser.press("ArrowRight", "Enter")
    assert browser.text("#detail-title") != first


def test_marks_by_keyboard_and_mouse_resume_and_are_exported(browser: Browser, page: Path) -> None:
    browser.open(page)
    browser.one("#by").send_keys("ann")
    open_mark(browser, "fit dog")
    assert "5 still needed" in browser.text("#marker-count")

    browser.press("y", "n", "Space")
    browser.click("#marker [data-verdict=no]")
    assert "1 still needed" in browser.text("#marker-count")
    browser.press("ArrowLeft", "ArrowLeft", "y")  # the skip becomes a yes
    browser.press("Escape")
    browser.wait_for("#mark", "1 of 5 still needed")

    browser.open(page)  # as on another day
    assert "1 of 5 still needed" in browser.text("#mark")
    assert "Go on" in browser.text("[data-mark='fit dog']")
    open_mark(browser, "fit dog")
    assert "5 of 5" in browser.text("#marker-count")
    browser.press("n")
    assert "all marked" in browser.text("#marker-count")
    browser.press("Escape")
    browser.click("[data-export=fit]")

    marks = read_marks([browser.downloaded("fit-marks.csv")], tuple(SHARES))
    assert [mark.verdict.value for mark in marks] == ["yes", "no", "yes", "no", "no"]
    assert {(mark.label, mark.purpose, mark.by) for mark in marks} == {("dog", Purpose.FIT, "ann")}
    assert len({mark.item_index for mark in marks}) == 5
    assert all(mark.inclusion_probability and mark.content_hash and mark.at for mark in marks)


def test_space_presses_a_button_that_has_the_focus(browser: Browser, page: Path) -> None:
    """A person who reaches "No" by Tab means no, not skip."""
    browser.open(page)
    open_mark(browser, "certify cat")
    browser.script("document.querySelector('#marker [data-verdict=no]').focus()")

    browser.press("Space")
    browser.press("Escape")
    browser.click("[data-export=certify]")

    (mark,) = read_marks([browser.downloaded("certify-marks.csv")], tuple(SHARES))
    assert (mark.verdict, mark.purpose, mark.threshold) == (MarkVerdict.NO, Purpose.CERTIFY, 0.5)


def test_keys_mark_after_a_click_beside_the_buttons(browser: Browser, page: Path) -> None:
    browser.open(page)
    open_mark(browser, "fit bird")
    browser.click("#marker-title")

    browser.press("y")
    assert "2 of 5, 4 still needed" in browser.text("#marker-count")


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_axe_finds_no_serious_violation(
    browser: Browser, page: Path, violations: Callable[[], list[str]], scheme: str, width: int
) -> None:
    browser.open(page, width=width, scheme=scheme)
    assert violations() == []

    browser.click("#moved [aria-expanded]")
    browser.one(".examples-of .tile")
    browser.click(".tile")
    assert violations() == []
    browser.press("Escape")
    open_mark(browser, "fit dog")
    assert violations() == []
    browser.press("Escape")
    assert browser.script("return document.documentElement.scrollWidth") <= width
    wider = "one => one.scrollWidth > one.clientWidth"
    assert browser.script(f"return [...document.querySelectorAll('.scroller')].filter({wider}).length") == 0


def test_hostile_texts_stay_texts(browser: Browser, hostile_page: Path) -> None:
    browser.open(hostile_page)

    title = browser.script("return document.title")
    assert title == "Report: j"
    assert browser.script("return document.querySelectorAll('main script, main img[onerror]').length") == 0
    shown = browser.text("main")
    assert "<img src=x onerror=" in shown and "</script><script>" in shown
    assert "\u27e8U+202E\u27e9gpj.exe" in shown and "\u202e" not in shown
    assert "x" * 2_001 not in browser.script("return document.querySelector('main').innerHTML")
    hrefs = browser.script("return [...document.querySelectorAll('a')].map(one => one.getAttribute('href'))")
    assert all(href.startswith("#") for href in hrefs)
    browser.click("#rows tbody .plain")
    assert browser.script("return document.title") == title
    assert browser.complaints() == []
    assert {url.partition(":")[0] for url in browser.requests()} <= {"file", "data"}


def test_marks_of_hostile_items_come_back(browser: Browser, hostile_page: Path) -> None:
    browser.open(hostile_page)
    for button in range(len(browser.all("[data-mark]"))):
        browser.script("document.querySelectorAll('[data-mark]')[arguments[0]].click()", button)
        browser.press("y", "y", "y", "Escape")
        browser.wait_for("[data-export=fit]", f"Export {3 * (button + 1)}")
    browser.click("[data-export=fit]")

    marks = read_marks([browser.downloaded("fit-marks.csv")], HOSTILE)
    rows, label_set = hostile_rows()
    assert {mark.label for mark in marks} == {*label_set.labels}
    for mark in marks:
        item_id = rows[mark.item_index or 0]["item_id"]
        assert mark.item_id == item_id or (mark.item_id is None and len(item_id) > 2_000)


def test_the_theme_is_chosen_and_kept(browser: Browser, page: Path) -> None:
    browser.open(page, scheme="light")

    def ground() -> str:
        return str(browser.script("return getComputedStyle(document.body).backgroundColor"))

    light = ground()
    browser.click("#theme")
    browser.click("#theme")
    assert ground() != light
    browser.open(page, scheme="light")
    assert ground() != light


def test_it_prints_without_controls(browser: Browser, page: Path) -> None:
    browser.open(page, width=720)  # about that of A4
    browser.command("Emulation.setEmulatedMedia", media="print")

    assert not browser.all("header.bar")[0].is_displayed()
    assert browser.all("#labels table")[0].is_displayed()
    assert browser.script("return document.documentElement.scrollWidth") <= 720
    assert browser.script(
        "return [...document.querySelectorAll('.scroller')].every(one => one.scrollWidth <= one.clientWidth)"
    )
