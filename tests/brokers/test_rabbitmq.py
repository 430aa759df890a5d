"""RabbitMQ carries the hints, Redis keeps the ledger: what the broker does costs seconds, never a row."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from kombu.connection import Connection

from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from tests.support.cluster import Cluster, job_events
from tests.support.health_pages import ask
from tests.support.images import write_images
from tests.support.services import RabbitMQ
from tests.support.waiting import wait_until

CHUNKS, CHUNK_ITEMS = 40, 10


@pytest.fixture(scope="module")
def rabbitmq(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RabbitMQ]:
    server = RabbitMQ(tmp_path_factory.mktemp("rabbitmq"))
    server.start()
    yield server
    server.stop()


@pytest.fixture
def cluster(rabbitmq: RabbitMQ, tmp_path: Path) -> Iterator[Cluster]:
    rabbitmq.forget_hints()
    settings = {"CLIPFLEET_BROKER_URL": rabbitmq.url, "CLIPFLEET_HEALTH_PORT": "0"}
    with Cluster(tmp_path, settings) as running:
        running.start_worker()
        yield running


def parts(cluster: Cluster) -> int:
    return len(list(cluster.folder.glob("results/b/data/part-*")))


def hints(rabbitmq: RabbitMQ) -> int:
    with Connection(rabbitmq.url) as connection:
        queue = connection.channel().queue_declare(keys.QUEUE, passive=True)
        return int(queue.message_count)


def test_the_ledgers_redis_carries_nothing(cluster: Cluster) -> None:
    write_images(cluster.folder / "images", 20)
    assert cluster.embed(cluster.folder / "images", chunk_size=5).wait(120).ok == 20

    with connect(cluster.server.url) as client:
        assert not [key for key in client.keys("*") if str(key).startswith(("_kombu", "unacked"))]


def test_a_broker_that_is_killed_and_restarted_costs_nothing(cluster: Cluster, rabbitmq: RabbitMQ) -> None:
    write_images(cluster.folder / "images", CHUNKS * CHUNK_ITEMS)
    running = cluster.start(
        "embed", "images", "--model", "demo", "--chunk-size", str(CHUNK_ITEMS), "--output", "results/b",
        "--job-id", "killed", "--json",
    )  # fmt: skip
    wait_until(lambda: parts(cluster), "the first part is there")
    rabbitmq.child.kill()
    # Hints are lost or cannot be received: the worker polls the ledger.
    before = parts(cluster)
    wait_until(
        lambda: parts(cluster) > before or running.poll() is not None, "work goes on without the broker"
    )
    rabbitmq.start()
    out, err = running.communicate(timeout=240)

    assert running.returncode == 0, (out, err, cluster.logs())
    assert parts(cluster) == CHUNKS
    assert len(job_events(cluster, "killed")) == 1
    after = cluster.run_json("embed", "images", "--model", "demo", "--output", "results/c")
    assert after["ok"] == CHUNKS * CHUNK_ITEMS
    wait_until(lambda: hints(rabbitmq) == 0, "the worker receives hints again")


def test_messages_that_are_no_hints_are_dropped_and_counted(cluster: Cluster, rabbitmq: RabbitMQ) -> None:
    messages = [
        (b"no JSON", "application/json", {}),
        (b"\x80\x04N.", "application/x-python-serialize", {"task": keys.WORK_TASK, "id": "1"}),
        (b"[[1], {}, {}]", "application/json", {"task": keys.WORK_TASK, "id": "2"}),
        (b"[[], {}, {}]", "application/json", {"task": "os.system", "id": "3"}),
        (b"", "text/plain", {"task": keys.WORK_TASK}),
    ]
    with Connection(rabbitmq.url) as connection:
        channel = connection.channel()
        for body, kind, headers in messages:
            message = channel.prepare_message(
                body, content_type=kind, content_encoding="utf-8", headers=headers, properties={}
            )
            channel.basic_publish(message, exchange="", routing_key=keys.QUEUE)

    (worker,) = cluster.workers
    wait_until(lambda: sum(ask(worker, "healthz")[1]["hints_refused"].values()) == len(messages),
               "all are refused")  # fmt: skip
    assert hints(rabbitmq) == 0
    write_images(cluster.folder / "images", 4)
    assert cluster.run_json("embed", "images", "--model", "demo", "--output", "results/d")["ok"] == 4
