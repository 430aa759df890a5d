"""The back-off of deliveries."""

from __future__ import annotations

from clipfleet.webhooks.schedule import MAX_ATTEMPTS, next_delay_seconds

DAY_SECONDS = 86_400


def longest(low: float, high: float) -> float:
    return high


def shortest(low: float, high: float) -> float:
    return low


def test_it_begins_within_a_second_grows_to_a_day_and_ends() -> None:
    delays = [next_delay_seconds(attempts, uniform=longest) or 0 for attempts in range(1, MAX_ATTEMPTS)]

    assert delays[0] <= 1
    assert delays == sorted(delays)
    assert delays[-1] == DAY_SECONDS
    assert 2 * DAY_SECONDS < sum(delays) < 4 * DAY_SECONDS
    assert next_delay_seconds(MAX_ATTEMPTS) is None


def test_jitter_shortens_a_delay_by_a_fifth_at_most() -> None:
    assert next_delay_seconds(5, uniform=shortest) == 0.8 * (next_delay_seconds(5, uniform=longest) or 0)


def test_retry_after_is_honoured_up_to_a_day() -> None:
    assert next_delay_seconds(1, 77) == 77
    assert next_delay_seconds(1, 10 * DAY_SECONDS) == DAY_SECONDS
    assert next_delay_seconds(6, 5, uniform=longest) == next_delay_seconds(6, uniform=longest), "never sooner"
    assert next_delay_seconds(MAX_ATTEMPTS, 5) is None
