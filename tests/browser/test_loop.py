"""From labels to a certificate by looking: marks are made in the page of a report."""

from __future__ import annotations

from pathlib import Path

from tests.support.browser import Browser
from tests.support.cluster import Cluster
from tests.support.turned_samples import write_turned_samples

LABELS = ("cherries", "headphone", "pie")
TARGET = 0.8
MOST_ROUNDS = 4


def run(cluster: Cluster, *words: str | Path, expect: tuple[int, ...] = (0,)) -> str:
    result = cluster.run(*words)
    assert result.returncode in expect, (words, result.stdout, result.stderr)
    return result.stdout


def mark_all(browser: Browser, page: Path, purpose: str) -> Path | None:
    """Mark each item of the samples for a purpose by what its name says, and export; None: no samples."""
    browser.open(page)
    samples = [one.get_attribute("data-mark") for one in browser.all(f"[data-mark^='{purpose}']")]
    for sample in samples:
        label = str(sample).removeprefix(f"{purpose} ")
        browser.click(f"[data-mark='{sample}']")
        count = int(browser.text("#marker-count").split()[2].strip(","))  # `1 of 40, 40 still needed`
        for _ in range(count):
            shown = browser.text("#marker .stage p bdi")
            browser.press("y" if shown.startswith(f"{label}.") else "n")
        browser.wait_for("#marker-count", "all marked")
        browser.press("Escape")
        browser.wait_for("#mark", f"all {count} marked")
    if not samples:
        return None
    name = f"{purpose}-marks.csv"
    (browser.downloads / name).unlink(missing_ok=True)
    browser.click(f"[data-export={purpose}]")
    return browser.downloaded(name)


def test_marks_made_in_the_page_end_in_a_certificate(
    cluster: Cluster, browser: Browser, tmp_path: Path
) -> None:
    folder = cluster.folder / "loop"
    folder.mkdir()
    write_turned_samples(folder / "drawings", LABELS)
    first, second, page, labels = (
        folder / name for name in ("first", "second", "report.html", "labels.yaml")
    )
    run(
        cluster, "classify", folder / "drawings", "--model", "demo", "--top-k", "3", "--labels",
        ",".join(LABELS), "--multi", "--store-embeddings", "--output", first,
    )  # fmt: skip

    run(cluster, "report", first, "-o", page, "-n", "40")
    fit = mark_all(browser, page, "fit")
    assert fit is not None
    run(cluster, "calibrate", first, "--marks", fit, "-o", labels, "--target-precision", str(TARGET))

    given: list[str | Path] = []
    for number in range(MOST_ROUNDS):
        run(cluster, "report", first, "-o", page, "--labels", labels, *given)
        exported = mark_all(browser, page, "certify")
        if exported is None:
            break
        marks = exported.rename(tmp_path / f"certify-{number}.csv")
        given = ["--marks", marks]  # the page exports those of earlier rounds, too
        run(cluster, "certify", first, "--labels", labels, *given, expect=(0, 3))

    run(cluster, "report", first, "-o", page, "--labels", labels, *given)
    browser.open(page)
    assert "precision \u2265 0.8 certified" in browser.text("#labels")
    assert "certify marks, n=" in browser.script("return document.querySelector('#labels tbody').textContent")

    run(cluster, "relabel", first, "--label-set", labels, "--top-k", "3", "--output", second)
    run(cluster, "report", second, "-o", page, "--compare", first)
    browser.open(page)
    assert "precision \u2265 0.8 certified on first" in browser.text("#labels")
    assert "rows moved" in browser.text("#moved")
