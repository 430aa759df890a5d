"""Webhook requests: which answers count, what is bounded, what is neither followed nor shown."""

from __future__ import annotations

import ssl
import time
from collections.abc import Iterator

import pytest

from clipfleet_worker.fetch.http.address_guard import AddressGuard
from clipfleet_worker.machine.embedded.server import free_port
from clipfleet_worker.webhooks.poster import Poster
from tests.support.fetching import LOOPBACK, opened
from tests.support.http_site import CERTIFICATE
from tests.support.raw_server import RawServer
from tests.support.scenarios import in_loop
from tests.support.webhook_receiver import WebhookReceiver

BODY, HEADERS = b'{"a":1}', {"webhook-id": "evt-1"}


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as running:
        yield running


def poster(**options: object) -> Poster:
    return Poster(LOOPBACK, **{"timeout_seconds": 20.0, **options})


@in_loop
async def test_what_is_sent(receiver: WebhookReceiver) -> None:
    async with opened(poster(contact="ops@example.com")) as sender:
        answer = await sender.post(receiver.url("/ok?token=1"), HEADERS, BODY)

    assert (answer.is_delivered, answer.status) == (True, 200)
    (request,) = receiver.requests
    assert request.body == BODY
    assert request.headers["webhook-id"] == "evt-1"
    assert request.headers["Content-Type"] == "application/json"
    assert request.headers["User-Agent"].startswith("clipfleet/")
    assert request.headers["User-Agent"].endswith("(+ops@example.com)")
    assert not {"Cookie", "Authorization"} & set(request.headers)


@pytest.mark.parametrize("status", [200, 201, 202, 204, 299])
@in_loop
async def test_any_success_counts(receiver: WebhookReceiver, status: int) -> None:
    async with opened(poster()) as sender:
        assert (await sender.post(receiver.url(f"/status/{status}"), HEADERS, BODY)).is_delivered


@pytest.mark.parametrize("status", [300, 301, 302, 303, 307, 308, 400, 401, 404, 410, 429, 500, 503])
@in_loop
async def test_anything_else_does_not_and_no_redirect_is_followed(
    receiver: WebhookReceiver, status: int
) -> None:
    async with opened(poster()) as sender:
        answer = await sender.post(receiver.url(f"/status/{status}?token=hidden"), HEADERS, BODY)

    assert answer.status == status
    assert answer.error.startswith(f"127.0.0.1: HTTP status {status}")
    assert "hidden" not in answer.error
    assert [request.path for request in receiver.requests] == [f"/status/{status}"]


@in_loop
async def test_retry_after_is_read(receiver: WebhookReceiver) -> None:
    async with opened(poster()) as sender:
        answer = await sender.post(receiver.url("/status/429?after=77"), HEADERS, BODY)

    assert answer.retry_after_seconds == 77


@in_loop
async def test_a_receiver_that_hangs_is_given_up_in_time(receiver: WebhookReceiver) -> None:
    async with opened(poster(timeout_seconds=0.2)) as sender:
        answer = await sender.post(receiver.url("/hang"), HEADERS, BODY)

    assert (answer.error, answer.status) == ("127.0.0.1: no answer within 0.2 s", None)


@in_loop
async def test_a_long_body_holds_nothing_up(receiver: WebhookReceiver) -> None:
    began = time.monotonic()
    async with opened(poster()) as sender:
        for path in ("/slow-body", "/large-body"):
            assert (await sender.post(receiver.url(path), HEADERS, BODY)).is_delivered

    assert time.monotonic() - began < 15, "neither was read to its end"


@in_loop
async def test_a_connection_is_used_again(receiver: WebhookReceiver) -> None:
    async with opened(poster()) as sender:
        for _ in range(5):
            assert (await sender.post(receiver.url("/ok"), HEADERS, BODY)).is_delivered

    assert len(receiver.connections) == 1


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("http://127.0.0.1/", "not a public address (loopback)"),
        ("http://169.254.169.254/latest", "not a public address (link-local)"),
        ("http://[::1]/", "not a public address"),
        ("http://2130706433/", "not a canonical numeric address"),
        ("http://localhost/", "not a public address (loopback)"),
        ("http://8.8.8.8:6379/", "port 6379 is neither"),
        ("ftp://example.com/", "neither http nor https"),
        ("http://user:secret@example.com/", "credentials are refused"),
        ("http://", "without a host"),
    ],
)
@in_loop
async def test_the_guard_holds(url: str, complaint: str) -> None:
    async with opened(Poster(AddressGuard(), timeout_seconds=20)) as sender:
        answer = await sender.post(url, HEADERS, BODY)

    assert complaint in answer.error
    assert "secret" not in answer.error


@in_loop
async def test_no_proxy_of_the_environment_is_used(
    receiver: WebhookReceiver, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, f"http://127.0.0.1:{free_port()}")
    async with opened(poster()) as sender:
        assert (await sender.post(receiver.url("/ok"), HEADERS, BODY)).is_delivered


@in_loop
async def test_a_certificate_that_is_not_trusted_is_refused() -> None:
    with WebhookReceiver(tls=True) as receiver:
        async with opened(poster()) as sender:
            refused = await sender.post(receiver.url("/ok"), HEADERS, BODY)
        trusting = ssl.create_default_context(cafile=str(CERTIFICATE))
        async with opened(poster(tls=trusting)) as sender:
            taken = await sender.post(receiver.url("/ok").replace("127.0.0.1", "localhost"), HEADERS, BODY)

    assert "certificate" in refused.error
    assert taken.is_delivered


@pytest.mark.parametrize(
    "sent",
    [b"", b"220 smtp ready\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"x" * 100_000 + b"\r\n\r\n"],
    ids=["nothing", "no HTTP", "a long header"],
)
@in_loop
async def test_what_is_no_answer_is_a_failure(sent: bytes) -> None:
    with RawServer([sent]) as server:
        async with opened(poster()) as sender:
            answer = await sender.post(f"http://127.0.0.1:{server.port}/", HEADERS, BODY)

    assert answer.error.startswith("127.0.0.1: ")
    assert answer.status is None


@in_loop
async def test_a_dead_host_is_a_failure() -> None:
    async with opened(poster()) as sender:
        answer = await sender.post(f"http://127.0.0.1:{free_port()}/", HEADERS, BODY)

    assert (answer.error, answer.status) == ("127.0.0.1: Connection refused", None)
