"""`clipfleet-gateway serve` as a new user meets it: the first key, mistakes, services that are away."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from http.client import HTTPConnection
from pathlib import Path
from typing import Any

import pytest

from tests.support.cluster import Cluster
from tests.support.gateway_process import GatewayProcess, gateway_command, made_key
from tests.support.waiting import wait_until


@pytest.fixture
def environment(cluster: Cluster, folder: Path) -> dict[str, str]:
    """Of a gateway whose place is not there yet."""
    return cluster.environment() | {"CLIPFLEET_GATEWAY_OUTPUT": str(folder / "gateway")}


@pytest.fixture
def taken_port() -> Iterator[str]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield str(server.getsockname()[1])


def get(gateway: GatewayProcess, path: str, token: str = "", host: str = "") -> tuple[int, dict[str, Any]]:
    address = gateway.url.removeprefix("http://")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    connection = HTTPConnection(address, timeout=60)
    try:
        connection.request("GET", path, headers=headers | ({"Host": host} if host else {}))
        answer = connection.getresponse()
        return answer.status, json.loads(answer.read())
    finally:
        connection.close()


def test_the_first_start_prints_a_key_that_opens_and_no_other_start_does(
    environment: dict[str, str], tmp_path: Path
) -> None:
    with GatewayProcess(environment, tmp_path) as gateway:
        assert gateway.url.startswith("http://127.0.0.1:")
        (token,) = gateway.printed().splitlines()
        status, models = get(gateway, "/v1/models", token)
        assert (status, [model["id"] for model in models["data"]]) == (200, ["demo"])
        assert get(gateway, "/v1/models")[0] == 401
        assert get(gateway, "/readyz") == (200, {"status": "ok", "redis": "ok", "place": "ok"})
        assert gateway.terminate() == 0
        assert token not in gateway.log()
        assert (
            f"clipfleet-gateway keeps keys, files and results in {environment['CLIPFLEET_GATEWAY_OUTPUT']}\n"
            in (gateway.log())
        )

    with GatewayProcess(environment, tmp_path, name="again") as gateway:
        assert get(gateway, "/v1/models", token)[0] == 200
        assert gateway.printed() == ""


def test_of_replicas_that_start_together_one_prints_a_key(
    environment: dict[str, str], tmp_path: Path
) -> None:
    replicas = [GatewayProcess(environment, tmp_path, name=f"replica-{number}") for number in range(3)]
    try:
        assert all(get(replica, "/healthz")[0] == 200 for replica in replicas)
        (token,) = [line for replica in replicas for line in replica.printed().splitlines()]
        assert all(get(replica, "/v1/models", token)[0] == 200 for replica in replicas)
    finally:
        for replica in replicas:
            replica.kill()


def test_where_stdout_is_a_log_no_key_is_printed(environment: dict[str, str], tmp_path: Path) -> None:
    with GatewayProcess(environment, tmp_path, "--no-first-key") as gateway:
        assert get(gateway, "/readyz")[0] == 200
        assert gateway.printed() == ""
        assert gateway_command(environment, "keys", "list", "--json").stdout == ""

        token = made_key(environment, "mine")
        assert get(gateway, "/v1/models", token)[0] == 200
        assert token not in gateway.log() + gateway.printed()


def test_a_port_in_use_is_a_mistake_and_costs_no_first_key(
    environment: dict[str, str], tmp_path: Path, taken_port: str
) -> None:
    refused = gateway_command(environment, "serve", "--port", taken_port)

    said = f"error: 127.0.0.1:{taken_port} is in use: give another --port\n"
    assert (refused.returncode, refused.stdout, refused.stderr) == (2, "", said)
    with GatewayProcess(environment, tmp_path) as gateway:
        assert gateway.url and len(gateway.printed().splitlines()) == 1


@pytest.mark.parametrize(
    ("change", "code", "said"),
    [
        ({"REDIS_URL": ""}, 2, "CLIPFLEET_REDIS_URL is not set"),
        ({"GATEWAY_OUTPUT": "", "OUTPUT_ROOTS": ""}, 2, "CLIPFLEET_GATEWAY_OUTPUT is not set"),
        ({"GATEWAY_OUTPUT": "/proc/nowhere"}, 1, "CLIPFLEET_GATEWAY_OUTPUT: /proc/nowhere"),
        ({"GATEWAY_OUTPUT": "/etc/passwd"}, 1, "CLIPFLEET_GATEWAY_OUTPUT: /etc/passwd/keys: Not a directory"),
        ({"GATEWAY_FILE_BYTES": "many"}, 2, "invalid settings: CLIPFLEET_GATEWAY_FILE_BYTES"),
    ],
    ids=["no Redis", "no place", "a place that cannot be written", "a file", "a setting that is no number"],
)
def test_a_setting_that_is_missing_or_wrong_is_named_in_one_line(
    environment: dict[str, str], change: dict[str, str], code: int, said: str
) -> None:
    changed = {f"CLIPFLEET_{name}": value for name, value in change.items()}
    refused = gateway_command(environment | changed, "serve", "--port", "0")

    assert (refused.returncode, refused.stdout) == (code, "")
    assert refused.stderr.startswith(f"error: {said}") and refused.stderr.count("\n") == 1, refused.stderr


@pytest.mark.parametrize("host", ["192.0.2.1", "no-such-host.invalid"])
def test_an_address_of_another_machine_is_a_mistake(environment: dict[str, str], host: str) -> None:
    refused = gateway_command(environment, "serve", "--host", host, "--port", "0")

    assert (refused.returncode, refused.stdout) == (2, "")
    assert refused.stderr.startswith(f"error: {host}:0: ") and refused.stderr.count("\n") == 1
    assert refused.stderr.endswith("; give another --host or --port\n")


def test_it_starts_without_redis_and_says_that_it_is_not_ready(
    environment: dict[str, str], tmp_path: Path, taken_port: str
) -> None:
    away = {**environment, "CLIPFLEET_REDIS_URL": f"redis://127.0.0.1:{int(taken_port)}/0?socket_timeout=1"}
    with GatewayProcess(away, tmp_path) as gateway:
        assert get(gateway, "/healthz") == (200, {"status": "ok"})
        status, found = get(gateway, "/readyz")
        assert (status, found["status"], found["place"]) == (503, "unavailable", "ok")
        assert found["redis"] != "ok"
        wait_until(lambda: "Redis does not answer" in gateway.log(), "the log says it")
        status, refusal = get(gateway, "/v1/models", gateway.printed().strip())
        assert (status, refusal["error"]["code"]) == (503, "unavailable")
        assert gateway.terminate() == 0
