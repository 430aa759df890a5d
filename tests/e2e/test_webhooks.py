"""Webhooks with the real command line and real workers: the end of a job arrives, signed."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from clipfleet.client import Client, JobOptions
from clipfleet.contract.webhooks import EventType
from clipfleet.ledger.events.outbox import Outbox
from tests.support.cluster import Cluster
from tests.support.images import write_images
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import WebhookReceiver


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as running:
        yield running


@pytest.fixture
def outbox(cluster: Cluster) -> Iterator[Outbox]:
    """Without endpoints before and after."""
    outbox = Outbox(cluster.server.url)
    yield outbox
    for endpoint in outbox.endpoints():
        outbox.remove_endpoint(endpoint.endpoint_id)
    outbox.close()


def test_the_end_of_a_job_arrives(
    cluster: Cluster, client: Client, folder: Path, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    added = cluster.run("webhooks", "add", receiver.url("/ok"), "--event", "job.completed")
    secret = added.stdout.strip()
    assert "CLIPFLEET_ALLOW_PRIVATE" in added.stderr, "a note: the worker decides"
    write_images(folder / "images", 3)
    handle = client.embed(
        folder / "images", options=JobOptions(output=folder / "out", model="demo", job_id="hooked")
    )
    handle.wait(60)

    wait_until(lambda: receiver.ids("/ok"), "the event has arrived")
    (request,) = receiver.requests
    event = request.verified(secret)
    assert (event["type"], event["object"]) == ("job.completed", "event")
    assert event["data"] == {
        "job_id": "hooked", "generation": 0, "state": "completed", "total": 3, "ok": 3, "failed": 0,
        "output": str(folder / "out"), "reason": "",
    }  # fmt: skip
    wait_until(lambda: not any(outbox.backlog().values()), "the delivery is recorded")


def test_a_failed_attempt_is_repeated_with_the_same_id(
    cluster: Cluster, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    cluster.run_json("webhooks", "add", receiver.url("/once/500"))
    outbox.publish("evt-once", EventType.DECISION_FLAG, '{"decision_id": "once"}')

    wait_until(lambda: receiver.ids("/once/500"), "the second attempt has arrived")
    first, second = receiver.requests
    assert (first.event_id, first.status) == ("evt-once", 500)
    assert (second.event_id, second.body) == ("evt-once", first.body)


def test_what_is_gone_is_disabled_enabled_and_replayed(
    cluster: Cluster, receiver: WebhookReceiver, outbox: Outbox
) -> None:
    name = cluster.run_json("webhooks", "add", receiver.url("/once/410"))["endpoint_id"]
    outbox.publish("evt-gone", EventType.DECISION_FLAG, "{}")
    wait_until(lambda: outbox.endpoints()[0].disabled, "it is disabled")
    outbox.publish("evt-later", EventType.DECISION_FLAG, "{}")
    (listed,) = cluster.run_json("webhooks", "list")["endpoints"]
    assert "HTTP status 410" in listed["disabled"]
    assert (listed["pending"], listed["failed"]) == (0, 2), "what comes later fails at once"

    cluster.run_json("webhooks", "enable", name)
    assert cluster.run_json("webhooks", "replay", name, "--event-id", "evt-gone")["replayed"] == 1
    wait_until(lambda: receiver.ids("/once/410") == ["evt-gone"], "what was replayed has arrived")


def test_addresses_that_the_worker_may_not_reach(cluster: Cluster, outbox: Outbox) -> None:
    name = cluster.run_json("webhooks", "add", "http://10.1.2.3/hooks?token=hidden")["endpoint_id"]
    outbox.publish("evt-inside", EventType.DECISION_FLAG, "{}")

    wait_until(lambda: outbox.last_errors().get(name), "it was tried")
    assert outbox.last_errors()[name].startswith("10.1.2.3: not a public address (private)")
    assert "hidden" not in cluster.logs()
