"""The OpenAPI document in the docs is the one that is served, and the page of the HTTP API has all of it."""

from __future__ import annotations

import re

from tests.support.documented import WRITTEN, served_document, written
from tests.support.documents import ROOT, table


def test_the_written_document_is_the_served_one() -> None:
    assert WRITTEN.read_text() == written(served_document()), "run `python -m tests.support.documented`"


def test_the_page_lists_every_operation() -> None:
    served = {
        (method.upper(), path)
        for path, operations in served_document()["paths"].items()
        for method in operations
    }
    rows = table(ROOT / "docs" / "http-api.md", "request", "what it does")
    found = [
        (method, path)
        for row in rows
        for methods, path in re.findall(r"`([A-Z]+(?:` or `[A-Z]+)*) (/[^`]*)`", row[0])
        for method in re.findall("[A-Z]+", methods)
    ]

    assert sorted(found) == sorted(served)
