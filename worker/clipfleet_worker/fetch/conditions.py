"""Conditional requests: what is known of an image goes with its request, what the answer says comes back.

An inquiry belongs to one task of the event loop, like its lane. Requests for anything but the image, such as
robots.txt, must not look at it.
"""

from __future__ import annotations

from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass

from clipfleet_worker.fetch.http.dates import seconds_of
from clipfleet_worker.outcomes import Validators

NOTHING = Validators()
_OLD_SECONDS = 60
_MOST_CHARACTERS = 256  # longer values, or such as no header can have, count as missing


@dataclass(frozen=True, slots=True)
class KnownImage:
    """An image that a store has of an item."""

    content_hash: str
    validators: Validators = NOTHING  # those of the answer that it came with


class UnchangedError(Exception):
    """The image is the one whose validators were sent; nothing was read."""


@dataclass(slots=True)
class Inquiry:
    """One image that is asked for."""

    known: Validators  # without any, the request has no condition
    answer: Validators = NOTHING  # of the last answer that the address of the item gave itself

    @property
    def is_conditional(self) -> bool:
        """Whether the answer may be that nothing has changed."""
        return self.known != NOTHING

    @property
    def headers(self) -> dict[str, str]:
        """Of an HTTP request."""
        found = {"If-None-Match": self.known.etag, "If-Modified-Since": self.known.last_modified}
        return {name: value for name, value in found.items() if value}

    @property
    def confirmed(self) -> Validators:
        """Those of an unchanged image: an answer need not repeat them."""
        return Validators(
            self.answer.etag or self.known.etag, self.answer.last_modified or self.known.last_modified
        )


_inquiry: ContextVar[Inquiry | None] = ContextVar("inquiry", default=None)


def inquire(known: Validators) -> Inquiry:
    """Begin an inquiry, for the image that this task fetches next."""
    inquiry = Inquiry(Validators(_usable(known.etag), _usable(known.last_modified)))
    _inquiry.set(inquiry)
    return inquiry


def present_inquiry() -> Inquiry | None:
    """The inquiry of this task."""
    return _inquiry.get()


def validators_of(headers: Mapping[str, str]) -> Validators:
    """Those of an answer that tell its image from every later one.

    Args:
        headers: by names in lower case, or of any case if the mapping ignores it.
    """
    etag, modified = headers.get("etag", ""), headers.get("last-modified", "")
    return Validators(_usable(etag), _usable(modified) if _is_old(modified, headers.get("date", "")) else "")


def _is_old(modified: str, date: str) -> bool:
    """Whether a time of change is over: in its second, or by another clock, the image may change again.

    RFC 7232, 2.2.2.
    """
    at, answered_at = seconds_of(modified), seconds_of(date)
    return at is not None and answered_at is not None and answered_at - at >= _OLD_SECONDS


def _usable(value: str) -> str:
    is_usable = len(value) <= _MOST_CHARACTERS and value.isascii() and value.isprintable()
    return value if is_usable else ""
