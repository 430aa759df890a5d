"""What an answer's status and its Retry-After mean."""

from __future__ import annotations

import pytest

from clipfleet.contract.jobs import ErrorCode
from clipfleet_worker.failures import TransientFailure
from clipfleet_worker.fetch.http.failures import failure_of_status, retry_after_seconds

NOW = 1_800_000_000.0  # Fri, 15 Jan 2027 08:00:00 GMT


@pytest.mark.parametrize(
    ("value", "expected"),
    {
        "": None,
        "0": 0.0,
        " 120 ": 120.0,
        "999999999": 999_999_999.0,
        "-5": None,
        "1.5": None,
        "soon": None,
        "9" * 5000: None,
        "\u0663": None,  # a digit, but not one of HTTP's
        # The date forms of RFC 9110.
        "Fri, 15 Jan 2027 08:01:30 GMT": 90.0,
        "Fri, 15 Jan 2027 07:00:00 GMT": 0.0,
        "Friday, 15-Jan-27 08:01:30 GMT": 90.0,
        "Fri Jan 15 08:01:30 2027": 90.0,
        "Fri, 99 Jan 2027 08:01:30 GMT": None,
        "Fri, 15 Jan 99999 08:01:30 GMT": None,
    }.items(),
)
def test_retry_after(value: str, expected: float | None) -> None:
    assert retry_after_seconds({"Retry-After": value}, NOW) == expected


def test_a_date_counts_from_the_server_s_clock_if_it_names_it_and_else_from_ours() -> None:
    then = {"Retry-After": "Sat, 01 Jan 2000 00:00:30 GMT"}
    assert retry_after_seconds(then | {"Date": "Sat, 01 Jan 2000 00:00:00 GMT"}, NOW) == 30.0
    assert retry_after_seconds(then | {"Date": "never"}, 946_684_800.0) == 30.0
    assert retry_after_seconds(then) == 0.0
    assert retry_after_seconds({}, NOW) is None


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
