"""Users with least rights in Redis: every command of the product works with its user, nothing else does."""

from __future__ import annotations

import base64
import json
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import redis
from redis.exceptions import NoPermissionError

from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from tests.support.acl_users import USERS, make_users, refusals, url_of
from tests.support.cluster import Cluster, WorkerProcess
from tests.support.gateway_client import GatewayClient
from tests.support.gateway_process import GatewayProcess, made_key
from tests.support.health_pages import scrape
from tests.support.images import write_images
from tests.support.services import HAS_RABBITMQ
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.skipif(HAS_RABBITMQ, reason="rights for a broker that is Redis"), pytest.mark.long]

# None of them may do any of these.
FORBIDDEN: list[tuple[str, ...]] = [
    ("FLUSHALL",), ("FLUSHDB",), ("KEYS", "*"), ("SCAN", "0"), ("CONFIG", "GET", "*"),
    ("CONFIG", "SET", "requirepass", ""), ("ACL", "LIST"), ("ACL", "SETUSER", "me", "on", "+@all"),
    ("SHUTDOWN",), ("ROLE",), ("REPLICAOF", "127.0.0.1", "1"), ("MONITOR",), ("SAVE",),
    ("BGREWRITEAOF",),
    ("CLIENT", "LIST"), ("CLIENT", "KILL", "TYPE", "normal"), ("SCRIPT", "FLUSH"), ("FUNCTION", "LIST"),
    ("GET", "somebody-elses"), ("HGET", "somebody-elses", "x"),
    ("EVAL", "return redis.call('GET', 'other')", "0"), ("EVAL", "return redis.call('FLUSHALL')", "0"),
    ("MIGRATE", "127.0.0.1", "1", "clipfleet:jobs", "0", "1"),
    ("DUMP", "clipfleet:jobs"), ("RESTORE", "clipfleet:x", "0", "x"), ("PUBLISH", "channel", "x"),
    ("SUBSCRIBE", "channel"), ("MODULE", "LIST"), ("INFO",), ("SWAPDB", "0", "1"),
]  # fmt: skip
# Beyond these, a producer takes no hints and sees nothing that is under way on the broker; a reader changes
# nothing.
FORBIDDEN_TO: dict[str, list[tuple[str, ...]]] = {
    "producer": [
        ("BRPOP", keys.QUEUE, "1"), ("RPOP", keys.QUEUE), ("DEL", keys.QUEUE), ("HGETALL", "unacked"),
        ("LPUSH", "celery", "a task of somebody's"), ("LPUSH", "another-queue", "x"),
    ],
    "worker": [
        ("LPUSH", "another-queue", "x"), ("SET", "somebody-elses", "x"),
        ("RENAME", "clipfleet:jobs", "clipfleet:x"),
    ],
    "reader": [
        ("SET", "clipfleet:x", "1"), ("HSET", "clipfleet:{job}", "state", "x"), ("UNLINK", "clipfleet:jobs"),
        ("LPUSH", keys.QUEUE, "x"), ("ZADD", "clipfleet:jobs", "1", "x"),
        ("XADD", keys.EVENTS, "*", "a", "b"),
        ("EVAL", "return redis.call('HSET', 'clipfleet:{job}', 'state', 'x')", "0"),
        ("LLEN", keys.QUEUE),
    ],
}  # fmt: skip


@dataclass
class Site:
    """A server with the users, a worker that is one of them, and programs as any of them."""

    cluster: Cluster
    urls: dict[str, str]
    worker: WorkerProcess
    secrets: list[str]

    def program(self, user: str, *arguments: str | Path) -> subprocess.CompletedProcess[str]:
        self.cluster.settings["CLIPFLEET_REDIS_URL"] = self.urls[user]
        return self.cluster.run(*arguments)

    def text(self, user: str, *arguments: str | Path) -> str:
        answer = self.program(user, *arguments)
        assert answer.returncode == 0, answer.stderr
        return answer.stdout

    def run(self, user: str, *arguments: str | Path) -> dict[str, Any]:
        answer = self.program(user, *arguments, "--json")
        assert answer.returncode in (0, 3), answer.stderr
        found: dict[str, Any] = json.loads(answer.stdout)
        return found


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with Cluster(tmp_path_factory.mktemp("users")) as cluster, connect(cluster.server.url) as admin:
        passwords = make_users(admin)
        urls = {user: url_of(user, passwords, cluster.server.url) for user in USERS}
        write_images(cluster.folder / "images", 4)
        cluster.settings["CLIPFLEET_REDIS_URL"] = urls["worker"]
        worker = cluster.start_worker({"CLIPFLEET_HEALTH_PORT": "0"})
        yield Site(cluster, urls, worker, list(passwords.values()))


def test_a_gateway_is_a_producer(site: Site, tmp_path: Path) -> None:
    environment = site.cluster.environment() | {
        "CLIPFLEET_REDIS_URL": site.urls["producer"],
        "CLIPFLEET_GATEWAY_OUTPUT": str(site.cluster.folder / "gateway"),
    }
    image = (site.cluster.folder / "images" / "000000.jpg").read_bytes()
    inputs = base64.b64encode(image).decode()
    token = made_key(environment, "mine", "--quota", "100")
    with GatewayProcess(environment, tmp_path, "--no-first-key") as gateway:
        door = GatewayClient([gateway.url], token)
        assert [model["id"] for model in door.json("GET", "/v1/models")["data"]] == ["demo"]
        embedding = {"model": "demo", "input": [{"image": inputs}, "a cat"]}
        assert len(door.json("POST", "/v1/embeddings", json=embedding)["data"]) == 2
        labels = {"inputs": inputs, "parameters": {"candidate_labels": ["cat", "dog"]}}
        assert len(json.loads(door.ask("POST", "/v1/zero-shot", json=labels))) == 2
        line = {
            "custom_id": "a",
            "method": "POST",
            "url": "/v1/embeddings",
            "body": embedding | {"input": "a"},
        }
        batch = door.ended(door.begin(door.upload(json.dumps(line).encode()))["id"])
        assert (batch["status"], batch["request_counts"]["completed"]) == ("completed", 1)
        assert gateway.terminate() == 0
        assert not [secret for secret in site.secrets if secret in gateway.log()]

    with connect(site.cluster.server.url) as admin:
        assert refusals(admin) == []


def test_each_command_works_with_its_user(site: Site) -> None:
    images, out = site.cluster.folder / "images", site.cluster.folder / "out"
    labels = ("--labels", "cat,dog", "--model", "demo")
    done = site.run("producer", "classify", images, *labels, "--output", out)
    in_redis = site.run("producer", "embed", images, "--model", "demo")
    texts = site.cluster.folder / "texts.txt"
    texts.write_text("a cat\na dog\n")
    assert site.run("producer", "embed-text", texts, "--model", "demo")["state"] == "completed"
    described = site.cluster.folder / "job.yaml"
    described.write_text("{source: images, model: demo, label_sets: {a: [cat, dog]}, output: b}")
    assert site.run("producer", "run", described)["state"] == "completed"
    broken = site.cluster.folder / "list.txt"
    broken.write_text("images/000000.jpg\nimages/none.jpg\n")
    failed = site.run("producer", "classify", broken, *labels, "--on-finished", "their.task")
    assert [one["state"] for one in (done, in_redis)] == ["completed"] * 2
    assert failed["state"] == "completed_with_errors"

    (images / "none.jpg").write_bytes((images / "000000.jpg").read_bytes())
    assert site.run("producer", "retry", failed["job_id"])["state"] == "completed"
    waiting = site.run("producer", "embed", images, "--model", "ViT-B-32:openai", "--no-wait")
    for command in ("pause", "resume", "cancel"):
        assert site.run("producer", command, waiting["job_id"])["changed"]
    assert site.run("producer", "rebuild", out)["state"] == "completed"

    for user in ("producer", "reader"):
        assert done["job_id"] in site.text(user, "jobs")
        assert site.text(user, "watch", "--all") == ""
        assert site.run(user, "status", in_redis["job_id"])["ok"] == 4
        assert site.run(user, "watch", done["job_id"])["state"] == "completed"
        for where in (in_redis["job_id"], done["job_id"], str(out)):
            assert len(site.text(user, "results", where, "--format", "jsonl").splitlines()) == 4
        exported = site.cluster.folder / f"export-{user}"
        site.text(user, "export", in_redis["job_id"], "--layout", "csv", "--to", exported)
    wait_until(lambda: "clipfleet_ledger_jobs" in scrape(site.worker), "the worker may count jobs")

    assert site.worker.terminate() == 0
    with connect(site.cluster.server.url) as admin:
        assert refusals(admin) == []
        assert admin.llen("celery") == 2  # the user's own task was told of both ends
    said = site.cluster.logs() + site.worker.log()
    assert not [secret for secret in site.secrets if secret in said]


@pytest.mark.parametrize("user", USERS)
def test_nothing_else_does(site: Site, user: str) -> None:
    allowed = []
    with connect(site.cluster.server.url) as admin:
        admin.set("somebody-elses", "secret")
    for command in [*FORBIDDEN, *FORBIDDEN_TO[user]]:
        with connect(site.urls[user], retries=0) as client:
            try:
                client.execute_command(*command)
            except NoPermissionError:
                continue
            except redis.ResponseError as error:
                if "NOPERM" in str(error) or "permission" in str(error).lower():
                    continue
            allowed.append(command)

    assert allowed == []
    with connect(site.cluster.server.url) as admin:
        assert admin.get("somebody-elses") == "secret"


def test_a_refused_command_is_reported_in_one_line(site: Site) -> None:
    answer = site.program("reader", "embed", site.cluster.folder / "images", "--model", "demo")

    assert (answer.returncode, answer.stdout, answer.stderr.count("\n")) == (1, "", 1)
    assert "clipfleet-reader" in answer.stderr and "ops/redis/users.acl" in answer.stderr
    assert not [secret for secret in site.secrets if secret in answer.stderr]


def test_a_refused_worker_continues_once_it_has_the_right(site: Site) -> None:
    with connect(site.cluster.server.url) as admin:
        admin.execute_command("ACL", "SETUSER", "clipfleet-worker", "-hset")
        site.cluster.settings["CLIPFLEET_REDIS_URL"] = site.urls["worker"]
        worker = site.cluster.launch_worker()
        job = site.run("producer", "embed", site.cluster.folder / "images", "--model", "demo", "--no-wait")
        wait_until(lambda: "ops/redis/users.acl" in worker.log(), "the worker says what it lacks")
        admin.execute_command("ACL", "SETUSER", "clipfleet-worker", "+hset")

    assert site.run("producer", "watch", job["job_id"])["state"] == "completed"
    assert worker.process.poll() is None
