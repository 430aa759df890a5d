"""Messages on the queue that are no hints: dropped and counted, none costs a slot, a credit or the worker."""

from __future__ import annotations

import json
import pickle
import re
import uuid
import zlib
from base64 import b64encode
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipfleet.hints import make_app
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from tests.support.cluster import Cluster
from tests.support.health_pages import ask
from tests.support.images import write_images
from tests.support.services import HAS_RABBITMQ
from tests.support.waiting import wait_until

pytestmark = pytest.mark.skipif(HAS_RABBITMQ, reason="lists of Redis; tests/brokers has RabbitMQ's")

PICKLE = "application/x-python-serialize"
FAR = "2999-01-01T00:00:00+00:00"
PAST = "2001-01-01T00:00:00+00:00"
EMPTY: dict[str, Any] = {"callbacks": None, "errbacks": None, "chain": None, "chord": None}
EMPTY_BODY: list[Any] = [[], {}, EMPTY]
PROTOCOL_1 = {"task": keys.WORK_TASK, "id": "1", "args": [], "kwargs": {}}
FOREIGN = {"task": "os.system", "args": ["true"], "kwargs": {}, "options": {}, "subtask_type": None}


def envelope(
    body: Any = EMPTY_BODY,
    *,
    raw_body: bytes | None = None,
    headers: dict[str, Any] | None = None,
    properties: dict[str, Any] | None = None,
    without: tuple[str, ...] = (),
    **fields: Any,
) -> str:
    """A hint as kombu writes it, with some things otherwise."""
    identity = uuid.uuid4().hex
    data = json.dumps(body).encode() if raw_body is None else raw_body
    message: dict[str, Any] = {
        "body": b64encode(data).decode(),
        "content-encoding": "utf-8",
        "content-type": "application/json",
        "headers": {
            "lang": "py", "task": keys.WORK_TASK, "id": identity, "shadow": None, "eta": None,
            "expires": None, "group": None, "retries": 0, "timelimit": [None, None],
            "root_id": identity, "parent_id": None, "argsrepr": "-", "kwargsrepr": "-",
            "origin": "test", "ignore_result": True, **(headers or {}),
        },
        "properties": {
            "correlation_id": identity, "reply_to": "", "delivery_mode": 2, "priority": 0,
            "delivery_info": {"exchange": "", "routing_key": keys.QUEUE}, "body_encoding": "base64",
            "delivery_tag": uuid.uuid4().hex, **(properties or {}),
        },
        **fields,
    }  # fmt: skip
    for path in without:
        place, _, name = path.rpartition(".")
        del (message[place] if place else message)[name]
    return json.dumps(message)


MALFORMED: dict[str, str | bytes] = {
    "no JSON": "there is work",
    "empty": "",
    "binary": bytes(range(256)),
    "NUL bytes": b"\0" * 100,
    "truncated JSON": envelope()[:-20],
    "a number": "42",
    "null": "null",
    "a list": "[1, 2, 3]",
    "an empty object": "{}",
    "deep JSON": "[" * 100_000 + "]" * 100_000,
    "deep JSON as the body": envelope(raw_body=b"[" * 3000 + b"]" * 3000),
    "kombu's markers with nonsense": '{"__type__": "decimal", "__value__": "x"}',
    "an unknown marker": '{"__type__": "os.system", "__value__": "true"}',
    "another task's name": envelope(headers={"task": "celery.backend_cleanup"}),
    "a task of a module": envelope(headers={"task": "os.system"}, body=[["true"], {}, {}]),
    "a name that is a list": envelope(headers={"task": ["clipfleet.work"]}),
    "no headers": envelope(without=("headers",)),
    "headers that are text": envelope(headers={}) .replace('"headers": {', '"headers": "x", "other": {'),
    "no properties": envelope(without=("properties",)),
    "no delivery tag": envelope(without=("properties.delivery_tag",)),
    "a tag that is a list": envelope(properties={"delivery_tag": [1]}),
    "no delivery info": envelope(without=("properties.delivery_info",)),
    "no exchange": envelope(properties={"delivery_info": {"routing_key": keys.QUEUE}}),
    "an unknown body encoding": envelope(properties={"body_encoding": "rot13"}),
    "a body that is not base64": envelope(body="").replace(b64encode(b'""').decode(), "%%%%%"),
    "no body": envelope(without=("body",)),
    "5 MB of arguments": envelope(body=[["x" * 5_000_000], {}, {}]),
    "5 MB of nothing": "x" * 5_000_000,
    "5 MB in a header": envelope(headers={"argsrepr": "x" * 5_000_000}),
    "pickle": envelope(raw_body=pickle.dumps(EMPTY_BODY), **{"content-type": PICKLE}),
    "yaml": envelope(raw_body=b"- []\n- {}\n- {}\n", **{"content-type": "application/x-yaml"}),
    "an unknown content type": envelope(**{"content-type": "text/x-nothing"}),
    "a wrong charset": envelope(**{"content-encoding": "utf-7"}),
    "an unknown charset": envelope(**{"content-encoding": "klingon"}),
    "UTF-16": envelope(raw_body=json.dumps(EMPTY_BODY).encode("utf-16")),
    "compressed": envelope(raw_body=zlib.compress(b"[[], {}, {}]"), headers={"compression": "zlib"}),
    "a bomb": envelope(raw_body=zlib.compress(b"[" * 2_500_000), headers={"compression": "zlib"}),
    "a time far away": envelope(headers={"eta": FAR}),
    "a time that is none": envelope(headers={"eta": "tomorrow"}),
    "a time beyond the calendar": envelope(headers={"eta": "9999-12-31T23:59:59.999999+00:00"}),
    "expired": envelope(headers={"expires": PAST}),
    "an expiry that is none": envelope(headers={"expires": {"$date": 1}}),
    "a chord": envelope(body=[[], {}, EMPTY | {"chord": FOREIGN}]),
    "a callback": envelope(body=[[], {}, EMPTY | {"callbacks": [FOREIGN]}]),
    "an errback": envelope(body=[[], {}, EMPTY | {"errbacks": [FOREIGN]}]),
    "a chain": envelope(body=[[], {}, EMPTY | {"chain": [FOREIGN]}]),
    "a group of stamps": envelope(headers={"stamps": {"x": "y"}, "stamped_headers": ["x"]}),
    "time limits": envelope(headers={"timelimit": [1, 1]}),
    "retries that are no number": envelope(headers={"retries": {"a": 1}}),
    "arguments": envelope(body=[["job"], {}, {}]),
    "keywords": envelope(body=[[], {"job": 1}, {}]),
    "two values": envelope(body=[[], {}]),
    "protocol 1": envelope(PROTOCOL_1, without=("headers.task",)),
    "no id": envelope(headers={"id": None}),
    "an id that is a number": envelope(headers={"id": 7}),
    "an id of control characters": envelope(headers={"id": "\u202e\ufeff\x00" * 20}),
    "a surrogate": envelope(headers={"id": "x"}).replace('"id": "x"', '"id": "\\ud800"'),
    "a priority that is text": envelope(properties={"priority": "high"}),
}  # fmt: skip


@pytest.fixture
def cluster(tmp_path: Path) -> Iterator[Cluster]:
    with Cluster(tmp_path, {"CLIPFLEET_SLOTS": "1", "CLIPFLEET_HEALTH_PORT": "0"}) as cluster:
        write_images(tmp_path / "images", 60)
        yield cluster


def test_they_change_nothing(cluster: Cluster) -> None:
    """One slot and one credit; every kind arrives twice among the hints of a job, which completes."""
    assert len(MALFORMED) > 50
    worker = cluster.start_worker()
    with connect(cluster.server.url) as server:

        def wait_for_the_broker() -> None:
            wait_until(lambda: not server.exists(keys.QUEUE, "unacked"), "no message is left, none is held")

        job = cluster.embed(cluster.folder / "images", cluster.folder / "out", chunk_size=10)
        for message in (*MALFORMED.values(), *MALFORMED.values()):
            server.lpush(keys.QUEUE, message)
        status = job.wait(120)
        assert (status.state, status.ok) == ("completed", 60), worker.log()[-5000:]
        wait_for_the_broker()

        refused = ask(worker, "healthz")[1]["hints_refused"]
        assert sum(refused.values()) == 2 * len(MALFORMED), refused

        # A hint that follows still meets its slot: the puller is not needed.
        make_app(cluster.server.url).send_task(keys.WORK_TASK, argsrepr="-", kwargsrepr="-")
        wait_for_the_broker()
        again = cluster.embed(cluster.folder / "images").wait(120)
        assert (again.state, again.ok) == ("completed", 60), worker.log()[-5000:]
    log = worker.log()
    assert worker.process.poll() is None, log[-5000:]
    assert "Traceback" not in log
    assert len(log) < 20_000
    assert len(set(re.findall(r"that are not hints: (.*?) \[", log))) >= 5  # kinds of problem
    assert worker.terminate() == 0
