"""Which `X-Robots-Tag` headers refuse us."""

from __future__ import annotations

import pytest

from clipfleet_worker.fetch.http.robots import refusal_of


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([], None),
        ([""], None),
        (["all"], None),
        (["nofollow"], None),
        (["noarchive, nosnippet, notranslate"], None),
        (["noai"], "noai"),
        (["noimageai"], "noimageai"),
        (["noindex"], "noindex"),
        (["noimageindex"], "noimageindex"),
        (["none"], "none"),
        (["NoAI"], "noai"),
        (["nofollow,  noimageai ,noarchive"], "noimageai"),
        (["nofollow", "noai"], "noai"),
        (["noai-training"], None),
        # For one program: for us, for somebody else, for everybody.
        (["clipfleet: noai"], "noai"),
        (["ClipFleet:noai"], "noai"),
        (["clipfleet: nofollow, noindex"], "noindex"),
        (["googlebot: noindex"], None),
        (["googlebot: nofollow, noindex"], None),
        (["googlebot: noindex", "clipfleet: noai"], "noai"),
        (["googlebot: noindex, clipfleet: noai"], "noai"),
        (["*: noai"], "noai"),
        (["not-clipfleet: noai"], None),
        # Directives that have a value are no names of programs.
        (["max-snippet: 20, noai"], "noai"),
        (["max-image-preview: large"], None),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST"], None),
        (["unavailable_after: 25 Jun 2010 15:00:00 PST, noindex"], "noindex"),
        (["googlebot: max-snippet: 20, noindex"], None),
        ([":", "::", ",:,", ": noai"], None),
    ],
)
def test_what_refuses(values: list[str], expected: str | None) -> None:
    assert refusal_of(values) == expected
