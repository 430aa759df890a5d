"""What an answer's status and its Retry-After mean."""

from __future__ import annotations

import pytest

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import TransientFailure
from clipfleet_worker.fetch.http.failures import failure_of_status, retry_after_seconds

NOW = 1_800_000_000.0  # Fri, 15 Jan 2027 08:00:00 GMT


@pytest.mark.parametrize(
    ("headers", "expected"),
    [
        ({}, None),
        ({"Retry-After": ""}, None),
        ({"Retry-After": "0"}, 0.0),
        ({"Retry-After": " 120 "}, 120.0),
        ({"Retry-After": "999999999"}, 999_999_999.0),
        ({"Retry-After": "-5"}, None),
        ({"Retry-After": "1.5"}, None),
        ({"Retry-After": "soon"}, None),
        ({"Retry-After": "9" * 5000}, None),
        ({"Retry-After": "\u0663"}, None),  # a digit, but not one of HTTP's
        # The date forms of RFC 9110, against our clock, and against the server's own.
        ({"Retry-After": "Fri, 15 Jan 2027 08:01:30 GMT"}, 90.0),
        ({"Retry-After": "Fri, 15 Jan 2027 07:00:00 GMT"}, 0.0),
        ({"Retry-After": "Friday, 15-Jan-27 08:01:30 GMT"}, 90.0),
        ({"Retry-After": "Fri Jan 15 08:01:30 2027"}, 90.0),
        ({"Retry-After": "Sat, 01 Jan 2000 00:00:30 GMT", "Date": "Sat, 01 Jan 2000 00:00:00 GMT"}, 30.0),
        ({"Retry-After": "Fri, 15 Jan 2027 08:01:30 GMT", "Date": "never"}, 90.0),
        ({"Retry-After": "Fri, 99 Jan 2027 08:01:30 GMT"}, None),
        ({"Retry-After": "Fri, 15 Jan 99999 08:01:30 GMT"}, None),
    ],
)
def test_retry_after(headers: dict[str, str], expected: float | None) -> None:
    assert retry_after_seconds(headers, NOW) == expected


def test_our_own_clock_by_default() -> None:
    assert retry_after_seconds({"Retry-After": "Sat, 01 Jan 2000 00:00:30 GMT"}) == 0.0


@pytest.mark.parametrize("status", [429, 500, 502, 503, 504, 522])
def test_passing_troubles(status: int) -> None:
    failure = failure_of_status("h", status, {"Retry-After": "7"})
    assert isinstance(failure, TransientFailure)
    assert failure.retry_after_seconds == 7.0
    assert failure.error.code is (ErrorCode.RATE_LIMITED if status == 429 else ErrorCode.SERVER_ERROR)
    assert failure.error.detail == f"h: HTTP status {status}, Retry-After 7 s"
    assert failure_of_status("h", status, {}).error.detail == f"h: HTTP status {status}"


@pytest.mark.parametrize("status", [201, 204, 304, 400, 401, 403, 404, 410, 418, 451, 501, 505])
def test_answers_that_stay_as_they_are(status: int) -> None:
    assert not isinstance(failure_of_status("h", status, {"Retry-After": "7"}), TransientFailure)
