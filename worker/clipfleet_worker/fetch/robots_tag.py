"""Whether an answer's `X-Robots-Tag` refuses its use, as img2dataset reads it: for everybody, or for us."""

from __future__ import annotations

from collections.abc import Iterable

USER_AGENT = "clipfleet"  # how sites call us in their rules

# `none` is short for noindex and nofollow.
_REFUSALS = frozenset({"noai", "noimageai", "noindex", "noimageindex", "none"})
_WITH_VALUE = frozenset({"unavailable_after", "max-snippet", "max-image-preview", "max-video-preview"})


def refusal_of(values: Iterable[str]) -> str | None:
    """The first directive that refuses us; None if there is none.

    Args:
        values: of each `X-Robots-Tag` header: `noai, noindex`, or `clipfleet: noai` for one program only.
    """
    for value in values:
        agent = "*"
        for part in value.lower().split(","):
            name, colon, rest = part.partition(":")
            directive = name.strip()
            if colon and directive not in _WITH_VALUE:
                agent, directive = directive, rest.strip()
            if agent in ("*", USER_AGENT) and directive in _REFUSALS:
                return directive
    return None
