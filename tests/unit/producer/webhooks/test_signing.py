"""Signatures of webhook requests: the standard's own vector, rotation, and what a receiver must refuse."""

from __future__ import annotations

import pytest

from clipfleet.contract.webhooks import new_secret
from clipfleet.errors import SignatureError, UsageError
from clipfleet.webhooks.signing import signed_headers, verify

# Of the test suite of Standard Webhooks.
SECRET, EVENT_ID, ATTEMPTED_AT = (
    "whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330
)  # fmt: skip
BODY = b'{"test": 2432232314}'
SIGNATURE = "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def signed(*secrets: str, body: bytes = BODY) -> dict[str, str]:
    return signed_headers(secrets or (SECRET,), EVENT_ID, ATTEMPTED_AT, body)


def test_the_vector_of_the_standard() -> None:
    assert signed() == {
        "webhook-id": EVENT_ID, "webhook-timestamp": str(ATTEMPTED_AT), "webhook-signature": SIGNATURE
    }  # fmt: skip


@pytest.mark.parametrize("away", [-300, 0, 300])
def test_an_own_signature_is_verified(away: int) -> None:
    headers = {name.title(): value for name, value in signed().items()}

    assert verify(BODY, headers, SECRET, now=ATTEMPTED_AT + away) == {"test": 2432232314}
    assert verify(BODY.decode(), headers, SECRET, now=ATTEMPTED_AT + away) == {"test": 2432232314}


def test_during_a_rotation_both_secrets_verify() -> None:
    new, old = new_secret(), new_secret()
    headers = signed(new, old)

    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (new, old):
        assert verify(BODY, headers, secret, now=ATTEMPTED_AT)
    with pytest.raises(SignatureError):
        verify(BODY, headers, new_secret(), now=ATTEMPTED_AT)


@pytest.mark.parametrize(
    ("changed", "complaint"),
    [
        ({"webhook-id": "another"}, "another signature"),
        ({"webhook-id": "\udc80"}, "another signature"),
        ({"webhook-timestamp": str(ATTEMPTED_AT + 1)}, "another signature"),
        ({"webhook-timestamp": "1e9"}, "not a number"),
        ({"webhook-timestamp": "9" * 16}, "not a number"),
        ({"webhook-timestamp": str(ATTEMPTED_AT - 301)}, "of another time"),
        ({"webhook-timestamp": str(ATTEMPTED_AT + 301)}, "of another time"),
        ({"webhook-signature": ""}, "another signature"),
        ({"webhook-signature": SIGNATURE.removeprefix("v1,")}, "another signature"),
        ({"webhook-signature": SIGNATURE.replace("v1,", "v1a,")}, "another signature"),
        ({"webhook-signature": "v1,\udc80"}, "another signature"),
    ],
)
def test_what_was_changed_is_refused(changed: dict[str, str], complaint: str) -> None:
    with pytest.raises(SignatureError, match=complaint):
        verify(BODY, signed() | changed, SECRET, now=ATTEMPTED_AT)


def test_a_changed_body_is_refused() -> None:
    with pytest.raises(SignatureError, match="another signature"):
        verify(BODY + b" ", signed(), SECRET, now=ATTEMPTED_AT)


@pytest.mark.parametrize("missing", ["webhook-id", "webhook-timestamp", "webhook-signature"])
def test_a_missing_header_is_named(missing: str) -> None:
    headers = {name: value for name, value in signed().items() if name != missing}

    with pytest.raises(SignatureError, match=f"without {missing}"):
        verify(BODY, headers, SECRET, now=ATTEMPTED_AT)


@pytest.mark.parametrize("body", [b"[]", b"no JSON", b"\xff"])
def test_a_signed_body_that_is_no_event_is_refused(body: bytes) -> None:
    with pytest.raises(SignatureError, match="not a JSON object"):
        verify(body, signed(body=body), SECRET, now=ATTEMPTED_AT)


@pytest.mark.parametrize(
    "secret",
    [
        "",
        "whsec_",
        SECRET.removeprefix("whsec_"),
        "whsec_c2hvcnQ=",
        "whsec_" + "A" * 88,
        "whsec_ä",
        "whpk_" + "A" * 32,
    ],
)
def test_what_is_no_secret_is_refused_without_showing_it(secret: str) -> None:
    with pytest.raises(UsageError, match="webhook secret: not") as raised:
        signed(secret)

    assert "AAAA" not in str(raised.value)
