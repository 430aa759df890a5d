"""`up --gateway`: one command, and clients of OpenAI find a gateway with a worker behind it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pytest

from tests.support.waiting import wait_until

ASK = """
import os, sys, urllib.request
headers = {"Authorization": "Bearer " + os.environ["OPENAI_API_KEY"]}
request = urllib.request.Request(os.environ["OPENAI_BASE_URL"] + "/models", headers=headers)
opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
print(os.environ["OPENAI_BASE_URL"], os.environ["OPENAI_API_KEY"])
print(opener.open(request, timeout=60).read().decode())
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    ours = ("CLIPFLEET_", "AWS_", "OPENAI_")
    clean = {name: value for name, value in os.environ.items() if not name.startswith(ours)}
    return clean | {"OMP_NUM_THREADS": "1", "CLIPFLEET_GATEWAY_OUTPUT": str(tmp_path / "place")}


@pytest.fixture
def port() -> int:
    """One that was free a moment ago."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


def up(environment: Mapping[str, str], folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "clipfleet_worker", "up", *arguments], env=dict(environment), cwd=folder,
        stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip


def listens(port: int) -> bool:
    with socket.socket() as client:
        return client.connect_ex(("127.0.0.1", port)) == 0


def test_a_command_finds_the_gateway_and_the_key_stays(
    environment: dict[str, str], tmp_path: Path, port: int
) -> None:
    arguments = ("--gateway-port", str(port), "--models", "demo", "--", sys.executable, "-c", ASK)

    first = up(environment, tmp_path, *arguments)
    again = up(environment, tmp_path, *arguments)

    assert (first.returncode, again.returncode) == (0, 0), (first.stderr, again.stderr)
    (place, models) = first.stdout.splitlines()
    url, key = place.split()
    assert url == f"http://127.0.0.1:{port}/v1"
    assert '"id":"demo"' in models
    assert again.stdout == first.stdout
    assert f"the gateway listens at {url}, its first key is {key}" in first.stderr
    assert key not in again.stderr
    assert "warning" not in first.stderr, "the worker leaves CLIPFLEET_GATEWAY_* to the gateway"
    assert not listens(port)
    folder = tmp_path / ".clipfleet"
    place = environment["CLIPFLEET_GATEWAY_OUTPUT"]
    assert f"export CLIPFLEET_GATEWAY_OUTPUT={place}\n" in (folder / "env").read_text(), "for `keys add`"
    assert (folder / "gateway.key").stat().st_mode & 0o777 == 0o600
    assert key not in (folder / "gateway.log").read_text() + (folder / "worker.log").read_text()


def test_a_port_in_use_is_one_line_and_the_way_out(environment: dict[str, str], tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        taken = server.getsockname()[1]
        refused = up(environment, tmp_path, "--no-worker", "--gateway-port", str(taken), "--", "true")

    assert refused.returncode == 2
    assert f"error: 127.0.0.1:{taken} is in use: give another --gateway-port" in refused.stderr


def test_a_gateway_that_dies_comes_back_on_its_port(
    environment: dict[str, str], tmp_path: Path, port: int
) -> None:
    log = tmp_path / "up.log"
    with log.open("w") as output:
        running = subprocess.Popen(
            [sys.executable, "-m", "clipfleet_worker", "up", "--no-worker", "--gateway-port", str(port)],
            env=environment, cwd=tmp_path, stdin=subprocess.DEVNULL, stdout=output, stderr=output,
        )  # fmt: skip
    try:
        wait_until(lambda: "Press Ctrl-C" in log.read_text() or running.poll() is not None, "`up` is up")
        place = environment["CLIPFLEET_GATEWAY_OUTPUT"]
        assert f"\n  place   {place}: keys, files and results of the gateway\n" in log.read_text()
        (line,) = [one for one in log.read_text().splitlines() if one.startswith("  gateway pid")]
        os.kill(int(line.split()[2].rstrip(",")), 9)
        wait_until(lambda: "gateway is back" in log.read_text(), "the gateway is back")
        assert listens(port)
    finally:
        running.terminate()
        assert running.wait(60) == 0, log.read_text()
    assert not listens(port)
