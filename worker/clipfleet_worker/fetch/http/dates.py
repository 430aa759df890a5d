"""Reads the dates of HTTP headers."""

from __future__ import annotations

from datetime import UTC
from email.utils import parsedate_to_datetime


def seconds_of(date: str) -> float | None:
    """Seconds since 1970; None if the text is empty or no date."""
    try:
        found = parsedate_to_datetime(date) if date else None
        if found is None:
            return None
        return (found if found.tzinfo else found.replace(tzinfo=UTC)).timestamp()  # asctime's names no zone
    except (ValueError, OverflowError):  # not a date, or none of this calendar
        return None
