"""docker-compose.yml fits its schema, names settings that exist, and gives each service little."""

from __future__ import annotations

import json
import os
import re
import subprocess
from collections.abc import Iterator
from importlib.resources import files
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import yaml
from redis.exceptions import NoPermissionError

from clipfleet.redis.connection import connect
from clipfleet_gateway.server import LAST_ANSWERS_SECONDS
from clipfleet_gateway.settings import GatewaySettings
from clipfleet_worker.machine.embedded.server import free_port, port_is_free
from clipfleet_worker.machine.embedded.valkey import valkey_binary
from clipfleet_worker.settings import WorkerSettings
from tests.support.documents import ROOT
from tests.support.waiting import wait_until

COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
SERVICES: dict[str, dict[str, Any]] = COMPOSE["services"]
FIELDS = {**WorkerSettings.model_fields, **GatewaySettings.model_fields}
SETTINGS = {f"CLIPFLEET_{name.upper()}" for name in FIELDS}
VARIABLE = re.compile(r"\$\{(\w+)")


def test_it_fits_the_schema_of_compose() -> None:
    schema = files("check_jsonschema") / "builtin_schemas" / "vendor" / "compose-spec.json"
    jsonschema.validate(COMPOSE, json.loads(schema.read_text()))


def test_profiles_are_those_that_are_documented() -> None:
    profiles = {profile for service in SERVICES.values() for profile in service.get("profiles", ())}
    assert profiles == {"gpu", "gateway", "s3", "observe", "cli"}
    assert {name for name, service in SERVICES.items() if "profiles" not in service} == {"redis", "worker"}


def test_every_variable_of_ours_is_a_setting_and_every_secret_is_made() -> None:
    variables = {name for service in SERVICES.values() for name in service.get("environment", {})}
    assert {name for name in variables if name.startswith("CLIPFLEET_")} <= SETTINGS
    made = subprocess.run(
        ["sh", ROOT / "ops" / "docker" / "make-env.sh"], capture_output=True, text=True, check=True
    ).stdout
    secrets = dict(line.split("=") for line in made.splitlines())
    assert len(set(secrets.values())) == len(secrets)
    assert all(len(value) >= 32 for value in secrets.values())
    used = set(VARIABLE.findall((ROOT / "docker-compose.yml").read_text()))
    assert {name for name in used if not name.startswith("CLIPFLEET_")} == set(secrets)
    assert ".env" in (ROOT / ".gitignore").read_text().splitlines()


@pytest.mark.parametrize("name", SERVICES)
def test_a_service_has_least_rights_and_is_started_again(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert service["mem_limit"] and service["pids_limit"]
    assert all(port.startswith("127.0.0.1:") for port in service.get("ports", ()))
    if name != "clipfleet":  # one command of a user
        from_image = "dockerfile" in service.get("build", {})  # its HEALTHCHECK
        assert service["restart"] == "unless-stopped"
        assert from_image or service["healthcheck"]["test"]


def test_workers_have_time_to_drain() -> None:
    for name in ("worker", "worker-gpu"):
        grace = int(SERVICES[name]["stop_grace_period"].removesuffix("s"))
        assert grace >= int(SERVICES[name]["environment"]["CLIPFLEET_DRAIN_SECONDS"]) + 10


def test_the_gateway_has_time_for_its_last_answers_and_keeps_no_key_in_its_log() -> None:
    gateway = SERVICES["gateway"]
    assert int(gateway["stop_grace_period"].removesuffix("s")) > LAST_ANSWERS_SECONDS
    assert "--no-first-key" in gateway["command"]
    assert gateway["ports"] == ["127.0.0.1:8080:8080"]
    assert "/readyz" in gateway["healthcheck"]["test"][-1]


def test_workers_may_write_where_the_gateway_keeps_what_it_has() -> None:
    environment = SERVICES["gateway"]["environment"]
    (default,) = re.findall(r":-(.*)}", environment["CLIPFLEET_GATEWAY_OUTPUT"])
    roots = SERVICES["worker"]["environment"]["CLIPFLEET_OUTPUT_ROOTS"]
    assert Path(default).is_relative_to(roots)
    assert "clipfleet-producer:" in environment["CLIPFLEET_REDIS_URL"]


def test_redis_is_full_before_the_kernel_kills_it() -> None:
    command = SERVICES["redis"]["command"]
    most_mebibytes = int(command[command.index("--maxmemory") + 1].removesuffix("mb"))
    assert SERVICES["redis"]["mem_limit"] == "2g"
    assert most_mebibytes <= 0.75 * 2048


def test_what_is_mounted_from_here_exists() -> None:
    sources = [volume.split(":")[0] for service in SERVICES.values() for volume in service.get("volumes", ())]
    ours = [source for source in sources if source.startswith("./ops/")]
    assert ours
    assert all((ROOT / source).exists() for source in ours)
    named = {source for source in sources if not source.startswith("./")}
    assert named == set(COMPOSE["volumes"])


def test_what_workers_keep_belongs_to_their_user() -> None:
    # A new volume gets owner and mode of the folder that the image has in its place.
    image = (ROOT / "ops" / "docker" / "worker.Dockerfile").read_text()
    made = re.findall(r"--owner 1000 --group 1000 (.+)|--chown=1000:1000 \S+ (\S+)", image)
    folders = {folder for found in made for folder in " ".join(found).split()}
    for name in ("worker", "worker-gpu"):
        volumes = (volume.split(":") for volume in SERVICES[name]["volumes"])
        kept = {target for source, target, *_ in volumes if not source.startswith("./")}
        assert kept and kept <= folders


PASSWORDS = {
    "PRODUCER_PASSWORD": "pro", "WORKER_PASSWORD": "wor", "READER_PASSWORD": "rea", "FLOWER_PASSWORD": "flo"
}  # fmt: skip


class TestRedis:
    """`ops/redis/start.sh`, with the embedded Valkey in the place of the image's."""

    START = ("sh", ROOT / "ops" / "redis" / "start.sh")

    @pytest.fixture
    def address(self, tmp_path: Path) -> Iterator[str]:
        """HOST:PORT of a server that answers."""
        (tmp_path / "bin").mkdir()
        (tmp_path / "bin" / "valkey-server").symlink_to(valkey_binary())
        port = free_port()
        process = subprocess.Popen(
            [*self.START, "--dir", str(tmp_path), "--port", str(port), "--bind", "127.0.0.1"],
            env={"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", **PASSWORDS},
        )
        wait_until(lambda: not port_is_free(port), "the server listens")
        yield f"127.0.0.1:{port}"
        process.terminate()
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()

    def call(self, address: str, user: str, *command: str) -> object:
        with connect(f"redis://clipfleet-{user}:{user[:3]}@{address}/0") as client:
            return client.execute_command(*command)

    def test_it_keeps_evicts_nothing_and_knows_its_users(self, address: str, tmp_path: Path) -> None:
        for user in ("producer", "worker", "reader", "flower"):
            assert self.call(address, user, "PING")
        assert (tmp_path / "appendonlydir").exists()
        for login in ("", "clipfleet-worker:pro@", ":wor@"):
            with (
                pytest.raises(Exception, match=r"(?i)auth|password"),
                connect(f"redis://{login}{address}/0") as client,
            ):
                client.ping()

    def test_flower_receives_events_of_workers_and_reads_no_job(self, address: str) -> None:
        assert self.call(address, "worker", "PUBLISH", "/0.celeryev/worker.heartbeat", "x") == 0
        assert self.call(address, "flower", "LLEN", "clipfleet") == 0
        for command in (("LPUSH", "clipfleet", "x"), ("HGETALL", "clipfleet:{job}"), ("FLUSHALL",)):
            with pytest.raises(NoPermissionError):
                self.call(address, "flower", *command)

    def test_without_a_password_it_does_not_start(self) -> None:
        settings = {"PATH": os.environ["PATH"], **PASSWORDS, "WORKER_PASSWORD": ""}
        ended = subprocess.run(self.START, env=settings, capture_output=True, text=True, check=False)
        assert ended.returncode != 0 and "WORKER_PASSWORD" in ended.stderr
