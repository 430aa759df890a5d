"""Validators of answers: those that another image could have as well do not count."""

from __future__ import annotations

import pytest

from clipfleet_worker.fetch.conditions import validators_of
from clipfleet_worker.outcomes import Validators

MODIFIED = "Mon, 02 Nov 2026 10:00:00 GMT"


@pytest.mark.parametrize(
    ("date", "is_kept"),
    [
        ("Mon, 02 Nov 2026 10:01:00 GMT", True),
        ("Monday, 02-Nov-26 10:01:00 GMT", True),
        ("Mon Nov  2 10:01:00 2026", True),
        ("Mon, 02 Nov 2026 10:00:59 GMT", False),  # the clocks of site and file system differ
        ("Mon, 02 Nov 2026 10:00:00 GMT", False),
        ("Mon, 02 Nov 2026 09:00:00 GMT", False),
        ("Mon Nov  2 10:00:59 2026", False),
        ("", False),
        ("yesterday", False),
        ("Mon, 99 Nov 2026 10:00:00 GMT", False),
    ],
)
def test_a_time_of_change_counts_if_the_answer_is_a_minute_younger(date: str, is_kept: bool) -> None:
    """Whole seconds cannot tell an image from one that replaces it in the same second."""
    headers = {"last-modified": MODIFIED, "date": date, "etag": '"1"'}

    assert validators_of(headers) == Validators('"1"', MODIFIED if is_kept else "")


@pytest.mark.parametrize("modified", ["", "never", "0", "Mon, 02 Nov 2026 99:00:00 GMT", "-1", "\x00"])
def test_what_is_no_time_does_not_count(modified: str) -> None:
    assert validators_of({"last-modified": modified, "date": MODIFIED}) == Validators()


def test_an_etag_needs_no_date() -> None:
    assert validators_of({"etag": 'W/"1"'}) == Validators('W/"1"')
    assert validators_of({}) == Validators()
