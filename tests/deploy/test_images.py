"""The images of ops/docker, built and run without Docker: every RUN, every CMD, as their user, read-only."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPConnection
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import pytest
import yaml

from clipfleet_worker.machine.embedded.server import free_port
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from tests.conftest import service_is_missing
from tests.support.documents import ROOT
from tests.support.images import write_images
from tests.support.waiting import wait_until

SERVICES: dict[str, dict[str, Any]] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())["services"]
STAGE = Path(__file__).with_name("image_stage.py")
SLOW = pytest.mark.timeout(900)


class Image:
    """A built image; see `image_stage.py`."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def do(self, what: str, **order: Any) -> dict[str, Any]:
        assert self._process.stdin
        self._process.stdin.write(json.dumps({"do": what, "environment": {}, **order}) + "\n")
        self._process.stdin.flush()
        return self.answer()

    def answer(self) -> dict[str, Any]:
        assert self._process.stdout
        line = self._process.stdout.readline()
        assert line, "the build failed, see above"
        answer: dict[str, Any] = json.loads(line)
        return answer


@contextmanager
def built(name: str, volumes: Sequence[Path] = (), **arguments: str) -> Iterator[Image]:
    if os.geteuid() != 0 or subprocess.run(["unshare", "--mount", "true"], check=False).returncode:
        service_is_missing("images are built as root, in a mount namespace")
    dockerfile = ROOT / "ops" / "docker" / name
    process = subprocess.Popen(
        ["unshare", "--mount", "--propagation", "private", sys.executable, STAGE, dockerfile, ROOT,
         json.dumps(arguments), json.dumps([str(volume) for volume in volumes])],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, start_new_session=True,
        env={name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")},
    )  # fmt: skip
    with process:
        try:
            image = Image(process)
            assert image.answer() == {}
            yield image
        finally:
            os.killpg(process.pid, signal.SIGKILL)  # what it has started, too


@pytest.fixture
def server(tmp_path: Path) -> Iterator[EmbeddedValkey]:
    with EmbeddedValkey(tmp_path / "valkey") as server:
        yield server


@SLOW
def test_the_worker_labels_drains_and_writes_nowhere_else(server: EmbeddedValkey, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_images(data / "images", 4)
    (data / "results").mkdir()
    os.chown(data / "results", 1000, 1000)
    # An index that is not there: pip takes the pinned version of torch from where it always does.
    index = "file:///there/is/none"
    with built("worker.Dockerfile", [data], PIP_EXTRA_INDEX_URL=index, MODELS="demo") as image:
        image.do("start", environment={
            "CLIPFLEET_REDIS_URL": server.url, "CLIPFLEET_MODELS": "demo",
            "CLIPFLEET_FILE_ROOTS": str(data), "CLIPFLEET_OUTPUT_ROOTS": str(data),
        })  # fmt: skip
        wait_until(lambda: image.do("health")["code"] == 0, "the container is healthy", 120)
        ended = image.do("run", environment={"CLIPFLEET_REDIS_URL": server.url}, argv=[
            "clipfleet", "embed", str(data / "images"), "--model", "demo", "--json",
            "--output", str(data / "results" / "first"),
        ])  # fmt: skip
        assert json.loads(ended["out"])["ok"] == 4, ended["err"]

        assert {path.stat().st_uid for path in (data / "results" / "first").glob("data/part-*")} == {1000}
        nowhere = image.do("run", argv=["sh", "-c", "id -u; touch /data/x /opt/venv/x /home/clipfleet/x"])
        assert nowhere["out"] == "1000\n"
        assert nowhere["err"].count("Read-only file system") == 3
        assert image.do("stop")["code"] == 0


@SLOW
def test_the_producers_image_has_no_torch_submits_and_exports(server: EmbeddedValkey, tmp_path: Path) -> None:
    data = tmp_path / "data"
    write_images(data / "images", 4)
    (data / "results").mkdir()
    os.chown(data / "results", 1000, 1000)
    environment = {"CLIPFLEET_REDIS_URL": server.url}
    with built("producer.Dockerfile", [data]) as image:
        none = image.do("run", argv=["python3", "-c", "import torch"])
        assert "ModuleNotFoundError" in none["err"]
        helped = image.do("run", argv=["clipfleet", "--help"])
        assert helped["code"] == 0 and "classify" in helped["out"]
        refused = image.do("run", argv=["clipfleet-worker", "run"])
        assert refused["code"] == 2 and "'.[worker" in refused["err"]

        submitted = image.do("run", environment=environment, argv=[
            "clipfleet", "embed", str(data / "images"), "--output", str(data / "results" / "first"),
            "--no-wait", "--json",
        ])  # fmt: skip
        assert json.loads(submitted["out"])["total"] == 4, submitted["err"]

        image.do("start", argv=["clipfleet-worker", "exporter"], environment=environment)
        wait_until(lambda: "clipfleet_ledger_chunks" in metrics(), "the exporter answers")
        assert 'clipfleet_ledger_chunks{lane="normal",state="queued"} 1.0' in metrics()
        assert image.do("stop")["code"] == 0


def metrics() -> str:
    try:
        with urlopen("http://127.0.0.1:8081/metrics", timeout=60) as answer:
            return str(answer.read().decode())
    except OSError:
        return ""


@SLOW
def test_the_producers_image_serves_http(server: EmbeddedValkey, tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir()
    os.chown(data, 1000, 1000)
    environment = {"CLIPFLEET_REDIS_URL": server.url, "CLIPFLEET_GATEWAY_OUTPUT": str(data / "gateway")}
    service = SERVICES["gateway"]
    port = str(free_port())  # Compose's is another program's here
    command = [port if word == "8080" else word for word in service["command"]]
    with built("producer.Dockerfile", [data]) as image:
        image.do("start", argv=command, environment=environment)
        healthy = [
            *service["healthcheck"]["test"][1:-1],
            service["healthcheck"]["test"][-1].replace("8080", port),
        ]
        wait_until(lambda: image.do("run", argv=healthy)["code"] == 0, "the container is healthy")

        added = image.do("run", argv=["clipfleet-gateway", "keys", "add", "mine"], environment=environment)
        connection = HTTPConnection("127.0.0.1", int(port), timeout=60)
        connection.request("GET", "/v1/models", headers={"Authorization": f"Bearer {added['out'].strip()}"})
        assert json.load(connection.getresponse()) == {"object": "list", "data": []}
        connection.close()
        assert {path.stat().st_uid for path in (data / "gateway").rglob("*")} == {1000}
        assert image.do("stop")["code"] == 0
