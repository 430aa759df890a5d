"""Receivers that fail, hang, are gone, overloaded, redirect and restart, while workers and Redis are killed.

Each event arrives or is listed as failed, duplicates carry the same id and body, and all signatures verify.
"""

from __future__ import annotations

import json
import threading
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from clipfleet.contract.webhooks import EventType
from clipfleet.errors import RedisUnavailableError
from clipfleet.ledger.events.outbox import Outbox
from tests.support.cluster import Cluster
from tests.support.endpoints import add_endpoint
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import WebhookReceiver

EVENTS = 400
HASTY = ("tests.support.altered_worker", "hasty")
# What each receiver does, and whether an event may arrive there.
STEADY = {
    "/ok": True,
    "/sometimes/30": True,
    "/once/429": True,
    "/hang": False,
    "/status/301": False,
    "/status/410": False,
}
RESTARTING = "/ok/after-all"
# Of receivers at which every event takes many attempts, or a pause: more would take long.
SELDOM, RARE = 80, EventType.DECISION_REVIEW
FEW = ("/hang", "/status/301", "/once/429")

pytestmark = [pytest.mark.figures, pytest.mark.timeout(600)]


class Publisher:
    """Publishes events, again and again while Redis is away, as the scripts of the ledger do once."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.published = 0
        self.error: BaseException | None = None

    @contextmanager
    def running(self) -> Iterator[None]:
        ends = threading.Event()
        thread = threading.Thread(target=self._run, args=(ends,), daemon=True)
        thread.start()
        try:
            yield
        finally:
            ends.set()
            thread.join()

    def until(self, count: int) -> None:
        def is_so() -> bool:
            if self.error is not None:
                raise self.error
            return self.published >= count

        wait_until(is_so, f"{count} events are published", 240)

    def _run(self, ends: threading.Event) -> None:
        outbox = Outbox(self._url)
        try:
            while self.published < EVENTS and not ends.wait(0.02):
                number = self.published
                event_type = EventType.DECISION_FLAG if number % SELDOM else RARE
                data = json.dumps({"decision_id": event_id(number)[4:]})
                try:
                    outbox.publish(event_id(number), event_type, data)
                except RedisUnavailableError:
                    continue
                self.published += 1
        except BaseException as error:  # raised by the test
            self.error = error
        finally:
            outbox.close()


def event_id(number: int) -> str:
    return f"evt-dec-20261203-0123456789ab-0-{number}"


def kill_all_in_turn(cluster: Cluster, restarting: WebhookReceiver, publisher: Publisher) -> None:
    """Kill workers, Redis and a receiver while events come."""
    publisher.until(EVENTS // 8)
    cluster.workers[0].kill()
    cluster.start_worker(program=HASTY)
    publisher.until(EVENTS // 4)
    restarting.stop()
    publisher.until(EVENTS // 3)
    cluster.server.child.kill()
    time.sleep(1)  # of an outage
    cluster.server.start_again()
    cluster.server.child.wait_ready()
    publisher.until(EVENTS // 2)
    restarting.start()
    cluster.workers[1].kill()
    publisher.until(3 * EVENTS // 4)
    assert cluster.workers[2].terminate() == 0, "a worker that drains"
    cluster.start_worker(program=HASTY)
    publisher.until(EVENTS)


def test_each_event_arrives_or_is_listed_as_failed(tmp_path: Path) -> None:
    began = time.monotonic()
    with (
        WebhookReceiver(seed=20) as steady,
        WebhookReceiver() as restarting,
        Cluster(tmp_path / "work") as cluster,
    ):
        outbox = Outbox(cluster.server.url)
        added = {path: add_endpoint(outbox, steady.url(path)) for path in STEADY if path not in FEW}
        added |= {path: add_endpoint(outbox, steady.url(path), events=(RARE,)) for path in FEW}
        added[RESTARTING] = add_endpoint(outbox, restarting.url(RESTARTING))
        for _ in range(2):
            cluster.start_worker(program=HASTY)
        publisher = Publisher(cluster.server.url)
        with publisher.running():
            kill_all_in_turn(cluster, restarting, publisher)
        wait_until(lambda: not any(outbox.backlog().values()), "nothing waits", 240)
        failed = {
            path: {one.event_id for one in outbox.failures(endpoint.endpoint_id, 10 * EVENTS)}
            for path, (endpoint, _) in added.items()
        }
        stored = {one.endpoint_id: one for one in outbox.endpoints()}
        outbox.close()
        cluster.stop_workers()

    ids = {event_id(number) for number in range(EVENTS)}
    for path, (_, secret) in added.items():
        receiver = restarting if path == RESTARTING else steady
        arrived = set(receiver.ids(path))
        wanted = {event_id(number) for number in range(0, EVENTS, SELDOM)} if path in FEW else ids
        assert arrived | failed[path] == wanted, (path, len(arrived), len(failed[path]))
        assert bool(arrived) == STEADY.get(path, True), path
        bodies = {(one.event_id, one.body) for one in receiver.at(path)}
        assert len(bodies) == len({one.event_id for one in receiver.at(path)}), "the same body each time"
        for one in receiver.at(path):
            assert one.verified(secret)["id"] == one.event_id
    assert set(steady.ids("/ok")) == ids
    assert not failed["/ok"] and not failed["/once/429"]
    assert not steady.at("/ok/led-astray"), "no redirect is followed"
    assert stored[added["/status/410"][0].endpoint_id].disabled is not None
    assert len(steady.at("/status/410")) < EVENTS / 4, "no more is sent to what is gone"
    repeats = Counter(Counter(steady.ids("/ok")).values())
    print(f"{EVENTS} events to {len(added)} receivers in {time.monotonic() - began:.0f} s")
    print(f"arrived so often at /ok: {dict(repeats)}; failed: { {p: len(f) for p, f in failed.items()} }")
