"""The HTML file of a report: template, style, script, data and images in one. It loads nothing."""

from __future__ import annotations

import json
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from hashlib import sha256
from html import escape
from importlib.resources import files
from pathlib import Path
from typing import TextIO

from clipfleet.errors import UsageError
from clipfleet.report.building import Report, Thumbnails
from clipfleet.report.summary import PageData

BEGINNING = "<!doctype html>\n<!-- clipfleet report -->\n"
MOST_IMAGE_BYTES = 24_000_000  # in base64
_AT_A_TIME = 512  # images that are read together
# Inside a script element: what would end it, and what some parsers take for the end of a line.
_ESCAPED = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}
_TABLE = str.maketrans(_ESCAPED)


def require_replaceable(path: Path) -> None:
    """Refuse to replace a file that is no report.

    Raises:
        UsageError: it is something else.
    """
    with suppress(FileNotFoundError):
        try:
            with path.open(encoding="utf-8", errors="replace") as file:
                if file.read(len(BEGINNING)) == BEGINNING:
                    return
        except OSError as error:
            if isinstance(error, FileNotFoundError):
                raise
            raise UsageError(f"{path}: {error.strerror or error}") from None
        raise UsageError(f"{path} exists and is no report of clipfleet: name another file, or remove it")


def write_page(path: Path, report: Report, thumbnails: Thumbnails | None) -> int:
    """Write the page; it replaces an earlier one as a whole. Returns how many images it has.

    Args:
        path: of the file.
        report: what it shows.
        thumbnails: images of items, see `Thumbnails`; None: the job kept none.

    Raises:
        UsageError: the file cannot be written.
    """
    data = PageData(report)
    scratch = path.with_name(f".{path.name[:200]}.part")
    try:
        with scratch.open("w", encoding="utf-8", errors="backslashreplace", newline="\n") as file:
            images = _write(file, report, data, thumbnails)
        scratch.replace(path)
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None
    finally:
        with suppress(OSError):
            scratch.unlink(missing_ok=True)
    return images


def _write(file: TextIO, report: Report, data: PageData, thumbnails: Thumbnails | None) -> int:
    style, script = _asset("page.css"), _asset("page.js")
    # No request can leave the page, and no other script runs in it.
    policy = (
        f"default-src 'none'; img-src data:; style-src '{_hash(style)}'; script-src '{_hash(script)}'; "
        "base-uri 'none'; form-action 'none'"
    )
    name = report.job.job_id if report.job is not None else report.reader.uri
    before, after = _asset("page.html").split("<!-- data -->")
    for part in (BEGINNING, before):
        filled = part.replace("{{policy}}", escape(policy)).replace("{{title}}", escape(name))
        file.write(filled.replace("/* style */", style))
    file.write('<script type="application/json" id="data">')
    for piece in json.JSONEncoder(ensure_ascii=False, separators=(",", ":")).iterencode(data.value()):
        file.write(piece.translate(_TABLE))
    file.write('</script>\n<script type="application/json" id="images">{')
    count = 0
    for index, text in _images(data, thumbnails):
        file.write(f'{"," if count else ""}"{index}":"{text}"')
        count += 1
    file.write("}</script>\n")
    file.write(after.replace("/* script */", script))
    return count


def _images(data: PageData, thumbnails: Thumbnails | None) -> Iterator[tuple[int, str]]:
    """Images in base64, those most needed first, within the budget."""
    left = MOST_IMAGE_BYTES
    order = data.image_order if thumbnails is not None else []
    for start in range(0, len(order), _AT_A_TIME):
        assert thumbnails is not None  # noqa: S101 - else the order is empty
        for index, jpeg in thumbnails(sorted(order[start : start + _AT_A_TIME])):
            text = b64encode(jpeg).decode()
            left -= len(text)
            if left < 0:
                return
            yield index, text


def _asset(name: str) -> str:
    return (files("clipfleet.report") / name).read_text(encoding="utf-8")


def _hash(text: str) -> str:
    return f"sha256-{b64encode(sha256(text.encode()).digest()).decode()}"
