"""Clients that were written for others use a gateway as they are, each in its own environment."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster
from tests.support.gateway_process import GatewayProcess, gateway_command, made_key
from tests.support.images import encoded, make_image

pytestmark = pytest.mark.peers
HERE = Path(__file__).parent
URL = "http://127.0.0.1:1/a.jpg"  # which workers do not fetch
POLICY = """
name: uploads
model: demo
label_sets:
  colours: {kind: multi, labels: [red, blue]}
rules:
  - when: {label: red, at_least: 0.0}
    action: flag
"""


@dataclass(frozen=True)
class Door:
    """A gateway with a worker behind it."""

    folder: Path
    url: str
    key: str
    image: Path

    def run(
        self, python: Path, script: str, *arguments: str | Path, variables: Mapping[str, str]
    ) -> dict[str, Any]:
        """What a client has printed."""
        shown = subprocess.run(
            [python, HERE / script, *arguments],
            env={"PATH": "/usr/bin:/bin", "HOME": str(self.folder), **variables},
            cwd=self.folder, capture_output=True, text=True, check=False, timeout=280,
        )  # fmt: skip
        assert shown.returncode == 0, shown.stderr
        found: dict[str, Any] = json.loads(shown.stdout.splitlines()[-1])
        return found


@pytest.fixture(scope="module")
def door(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Door]:
    folder = tmp_path_factory.mktemp("door")
    with Cluster(folder) as cluster:
        cluster.start_worker()
        environment = cluster.environment() | {"CLIPFLEET_GATEWAY_OUTPUT": str(folder / "gateway")}
        key = made_key(environment, "peers")
        (folder / "policy.yaml").write_text(POLICY)
        added = gateway_command(environment, "policies", "add", str(folder / "policy.yaml"))
        assert added.returncode == 0, added.stderr
        image = folder / "image.jpg"
        image.write_bytes(encoded(make_image(5)))
        with GatewayProcess(environment, folder) as gateway:
            yield Door(folder, f"{gateway.url}/v1", key, image)
            assert gateway.terminate() == 0
            assert "Traceback" not in gateway.log(), gateway.log()


def test_the_client_of_openai(python_of: Callable[[str], Path], door: Door) -> None:
    variables = {"OPENAI_BASE_URL": door.url, "OPENAI_API_KEY": door.key}
    found = door.run(
        python_of("CLIENTS_PYTHON"), "openai_client.py", door.folder, door.image, URL, variables=variables
    )

    assert (found["models"], found["model"]) == (["demo", "uploads"], "clipfleet")
    decided = {
        "model": "uploads", "id": "modr-", "flagged": True, "categories": {"red": True, "blue": False},
        "scores": ["blue", "red"], "types": {"red": ["image"], "blue": ["image"]}, "decision": "flag",
    }  # fmt: skip
    undecided = {"categories": {"red": False, "blue": False}, "decision": "undecided"}
    assert found["moderations"] == {"data": decided, "url": decided | undecided}
    vectors = found["embeddings"]
    assert vectors["apart"] < 1e-6, "base64, which the client asks for by itself, is float32"
    assert (vectors["indices"], vectors["inputs"]) == ([0, 1], 2)
    (length,) = set(vectors["lengths"])
    batches = found["batches"]
    assert (batches["posts"], batches["is_same"]) == (2, True), "retries and new uploads find the same batch"
    assert (batches["status"], batches["metadata"]) == ("completed", {"of": "a test"})
    assert batches["counts"] == {"total": 8, "completed": 7, "failed": 1}
    assert batches["answered"] == [f"image-{number}" for number in range(8) if number != 3]
    assert set(batches["lengths"]) == {length}
    assert batches["errors"] == ["image-3"]
    assert (batches["wrong"], batches["cancelled"]) == (["failed", 2], "cancelled")
    assert (batches["listed"], batches["files"]) == (True, 4)
    assert found["refused"] == {
        "empty": ["BadRequestError", "input", "req_"],
        "text": ["BadRequestError", "input", "req_"],
        "policy": ["NotFoundError", "model", "req_"],
        "second": ["BadRequestError", "input[1]", "req_"],
        "model": ["NotFoundError", "model", "req_"],
        "file": ["NotFoundError", None, "req_"],
        "batch": ["NotFoundError", None, "req_"],
        "input_file": ["NotFoundError", "input_file_id", "req_"],
        "key": ["AuthenticationError", None, "req_"],
        "denied": ["PermissionDeniedError", "input", "req_"],
    }


def test_the_client_of_hugging_face(python_of: Callable[[str], Path], door: Door) -> None:
    found = door.run(
        python_of("CLIENTS_PYTHON"), "hugging_face_client.py", door.url, door.key, door.image,
        variables={"HF_HOME": str(door.folder)},
    )  # fmt: skip

    for scored in found:
        assert {label for label, _ in scored} == {"red", "green", "blue"}
        scores = [score for _, score in scored]
        assert scores == sorted(scores, reverse=True)
        assert sum(scores) == pytest.approx(1, abs=1e-3)


def test_the_hook_of_airflow(python_of: Callable[[str], Path], door: Door) -> None:
    few, many = door.folder / "few.jsonl", door.folder / "airflow.jsonl"
    for path, count in ((few, 6), (many, 2000)):
        body = {"model": "demo", "input": "a cat of Airflow"}
        lines = [
            {"custom_id": str(number), "method": "POST", "url": "/v1/embeddings", "body": body}
            for number in range(count)
        ]
        path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    connection = {"conn_type": "openai", "host": door.url, "password": door.key}
    variables = {
        "AIRFLOW_HOME": str(door.folder / "airflow"),
        "AIRFLOW_CONN_OPENAI_DEFAULT": json.dumps(connection),
    }

    found = door.run(python_of("AIRFLOW_PYTHON"), "airflow_hook.py", few, many, variables=variables)

    assert (found["is_connected"], found["words"]) == (True, "Connection established!")
    assert found["is_same"], "a retry of the task uploads the file anew, and finds its batch"
    assert (found["status"], found["ending"]) == ("completed", "cancelled")
    assert found["answered"] == [str(number) for number in range(6)]
