"""Reports of made-up outputs: many rows by formula, hostile texts, and images that are drawn."""

from __future__ import annotations

import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from PIL import Image, ImageDraw

from clipfleet.contract.jobs import Job, SourceDescription
from clipfleet.contract.label_sets import LabelSet
from clipfleet.outputs.folder import FolderOutput
from clipfleet.report.building import Report, Thumbnails, Wanted, make_report
from clipfleet.report.page import write_page
from clipfleet.results.part_rows import PartRows
from tests.support.marked_outputs import multi_set, place_scored_output, scored
from tests.support.policies import make_policy, of_label, rule
from tests.support.rows import failed

SHARES = {"cat": 0.3, "dog": 0.24, "bird": 0.1, "red car": 0.2, "fox": 0.05, "unicorn": 0.0}
HOSTS = ("img.example.com", "cdn.example.org", "photos.example.net")
CODES = ("not_found", "timeout", "broken_image")
HOSTILE = (
    "</script><script>document.title='owned'</script>",
    "<img src=x onerror=\"document.title='owned'\">",
    "--><!-- ]]> {{policy}} /* script */",
    "\u202egpj.exe\u202c",
    "zero\u200bwidth\ufeff\u2066",
    "line\u2028ends\u2029\r\n\u0000",
    "=cmd|' /C calc'!A0",
    "javascript:alert(1)",
    "x" * 10_000,
)


def rows_by_formula(count: int, seed: int = 1) -> tuple[list[dict[str, Any]], list[set[str]]]:
    """Rows of a multi set, and what each item shows; three of a hundred have failed."""
    chance, rows, shown = random.Random(seed), [], []
    for index in range(count):
        truth = {label for label, share in SHARES.items() if chance.random() < share}
        scores = {label: _score(chance.gauss(2.2 if label in truth else -3.2, 1.0)) for label in SHARES}
        uri = f"https://{HOSTS[index % 3]}/{index}.jpg"
        if chance.random() < 0.03:
            code = CODES[index % len(CODES)]
            rows.append(
                {**failed(index), "uri": uri, "error_code": code, "error_detail": f"{code} of {index}"}
            )
        else:
            rows.append(accepting_row(index, scores, uri=uri, width=640, height=480))
        shown.append(truth)
    return rows, shown


def accepting_row(
    index: int, scores: dict[str, float], threshold: float = 0.5, **values: Any
) -> dict[str, Any]:
    """A row with the score of every label, and the labels that reach a threshold."""
    found = scored(index, scores, len(scores))
    accepted = [
        label for label, score in zip(found["labels"], found["scores"], strict=True) if score >= threshold
    ]
    return {
        **found,
        "accepted": accepted,
        "label": next(iter(accepted), None),
        "score": found["scores"][0],
        **values,
    }


def place_full_output(folder: Path, count: int) -> None:
    """A moderation job `now` and an earlier output `before`: what each section of a report shows is there."""
    promises = {"cat": {"claim": "precision", "value": 0.9}}
    things = multi_set(tuple(SHARES), name="things", promises=promises)
    policy = make_policy(rule("flag", of_label("fox")), label_sets=(things,))
    rows, shown = rows_by_formula(count)
    for one, truth in zip(rows, shown, strict=True):
        is_fox = one["status"] == "ok" and "fox" in one["accepted"]
        reason = {"rule": "foxes", "action": "flag", "label_set": "things", "label": "fox", "score": 0.9}
        one["decision"] = "undecided" if one["status"] == "failed" else "flag" if is_fox else "allow"
        one["decision_reasons"] = [reason] if is_fox else []
        one["animal"] = "|".join(sorted(truth))
    place_rows(
        folder / "now", rows, policy.label_sets[0], policy=policy.of_a_job(), schema_version=6,
        source=with_columns("animal"), job_id="now",
    )  # fmt: skip
    before, _ = rows_by_formula(count)
    for number, one in enumerate(before):
        if number % 20 == 0 and one["status"] == "ok":
            one["label"] = "unicorn"
    place_rows(folder / "before", before, job_id="before")


def hostile_rows() -> tuple[list[dict[str, Any]], LabelSet]:
    """Rows and a label set whose names, ids, URIs and details are hostile."""
    labels = tuple(text for text in HOSTILE if "\u0000" not in text)
    rows = []
    for index, text in enumerate(HOSTILE * 4):
        if index % 4 == 3:
            rows.append({**failed(index), "item_id": text, "uri": text, "error_detail": text})
        else:
            scores = {
                label: 0.9 if place == index % len(labels) else 0.1 for place, label in enumerate(labels)
            }
            rows.append(accepting_row(index, scores, item_id=text, uri=text))
    return rows, multi_set(labels)


def place_rows(
    folder: Path, rows: Sequence[dict[str, Any]], label_set: LabelSet | None = None, **values: Any
) -> Job:
    """Write a finished output with these rows, each with all scores."""
    folder.mkdir(parents=True, exist_ok=True)
    label_set = label_set or multi_set(tuple(SHARES))
    return place_scored_output(
        FolderOutput(folder), rows, label_set=label_set, **{"top_k": len(label_set.labels), **values}
    )


def with_columns(*names: str) -> SourceDescription:
    """A source with columns of its own."""
    return SourceDescription(kind="csv", uri="/items.csv", extra_columns=names)


def read_report(folder: Path, **wanted: Any) -> Report:
    """The report of an output."""
    return make_report(PartRows(FolderOutput(folder)), Wanted(**wanted))


def drawn_images(size: int = 96) -> Thumbnails:
    """A JPEG for each item: a coloured shape."""

    def drawn(indexes: Sequence[int]) -> Iterator[tuple[int, bytes]]:
        for index in indexes:
            hue = random.Random(index).randrange(360)
            image = Image.new("RGB", (size, size * 3 // 4), f"hsl({hue}, 35%, 82%)")
            shape = ImageDraw.Draw(image)
            box = (size * 0.25, size * 0.12, size * 0.75, size * 0.62)
            (shape.ellipse if index % 2 else shape.rectangle)(box, fill=f"hsl({(hue + 180) % 360}, 45%, 45%)")
            data = io.BytesIO()
            image.save(data, "JPEG", quality=80)
            yield index, data.getvalue()

    return drawn


def write_report(folder: Path, page: Path, thumbnails: Thumbnails | None = None, **wanted: Any) -> Path:
    """Write the page of an output."""
    write_page(page, read_report(folder, **wanted), thumbnails)
    return page


def _score(z: float) -> float:
    return 1 / (1 + 2.718281828459045**-z)
