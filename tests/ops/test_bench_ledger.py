"""What the bench of the ledger sends in the place of a worker."""

from __future__ import annotations

from ops.bench.ledger import call_shapes


def test_the_blanks_of_recorded_calls_are_filled_in() -> None:
    claim, complete = call_shapes()

    assert b"$5\r\ntoken\r\n" in claim.filled(b"token")
    sent = complete.filled(b"a-job", b"7", b"token")
    assert sent.index(b"\r\na-job\r\n") < sent.index(b"\r\n7\r\n") < sent.index(b"\r\ntoken\r\n")
