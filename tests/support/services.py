"""Which servers the end-to-end tests run on: those that come as wheels, or Debian's, by two variables.

    E2E_REDIS=redis      the ledger is Debian's redis-server, not the embedded Valkey
    E2E_BROKER=rabbitmq  hints go through RabbitMQ, not through the ledger's server

`make test-brokers` sets them. What is started lives in folders of the test, at free ports of this machine.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kombu.connection import Connection

from clipfleet.ledger import keys
from clipfleet_worker.machine.child import Child
from clipfleet_worker.machine.embedded.server import HOST, free_port
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from tests.conftest import service_is_missing

HAS_RABBITMQ = os.environ.get("E2E_BROKER", "redis") == "rabbitmq"
HAS_DEBIANS_REDIS = os.environ.get("E2E_REDIS", "valkey") == "redis"

# Where Debian has the program itself: the one in the path changes its user.
_RABBITMQ = Path("/usr/lib/rabbitmq/bin/rabbitmq-server")
_START_SECONDS = 120.0

# Of the server that clusters share: more than are alive at a time. Each receives its own hints only.
_VIRTUAL_HOSTS = [f"cluster-{number}" for number in range(6)]
_USER = "guest"


class DebiansRedis(EmbeddedValkey):
    """`redis-server` in the place of Valkey, with the very same configuration."""

    def _binary(self) -> Path:
        found = shutil.which("redis-server")
        if found is None:
            service_is_missing("redis-server is not installed")
        return Path(found)


def ledger_server(folder: Path) -> EmbeddedValkey:
    """The ledger's server of a cluster; not started yet."""
    return DebiansRedis(folder) if HAS_DEBIANS_REDIS else EmbeddedValkey(folder)


class RabbitMQ:
    """One server for all clusters of a test run, each on a virtual host of its own."""

    def __init__(self, folder: Path) -> None:
        if not _RABBITMQ.exists():
            service_is_missing("rabbitmq-server is not installed")
        self._folder = folder
        self._port, distribution, self._mapper = free_port(), free_port(), free_port()
        (folder / "home").mkdir()  # its cookie
        (folder / "enabled_plugins").write_text("[].\n")
        (folder / "definitions.json").write_text(json.dumps(_definitions()))
        (folder / "rabbitmq.conf").write_text(
            f"listeners.tcp.1 = {HOST}:{self._port}\nload_definitions = {folder / 'definitions.json'}\n"
        )
        self._free = list(_VIRTUAL_HOSTS)
        self._environment = {
            "PATH": os.environ["PATH"],
            "HOME": str(folder / "home"),
            "LANG": "C.UTF-8",
            "RABBITMQ_NODENAME": f"test{self._port}@localhost",
            "RABBITMQ_MNESIA_BASE": str(folder / "mnesia"),
            "RABBITMQ_LOGS": "-",
            "RABBITMQ_ENABLED_PLUGINS_FILE": str(folder / "enabled_plugins"),
            "RABBITMQ_CONFIG_FILE": str(folder / "rabbitmq.conf"),
            "RABBITMQ_DIST_PORT": str(distribution),
            "RABBITMQ_SERVER_ADDITIONAL_ERL_ARGS": "-kernel inet_dist_use_interface {127,0,0,1} +S 1:1",
            "ERL_EPMD_PORT": str(self._mapper),
            "ERL_EPMD_ADDRESS": HOST,
        }
        self.child = Child(
            "RabbitMQ",
            [str(_RABBITMQ)],
            log=folder / "rabbitmq.log",
            env=self._environment,
            cwd=folder,
            is_ready=self._answers,
            ready_seconds=_START_SECONDS,
        )

    @property
    def url(self) -> str:
        """URL of the default virtual host."""
        return self._url("/")

    def start(self) -> None:
        self.child.start()
        self.child.wait_ready()

    @contextmanager
    def lent(self) -> Iterator[str]:
        """URL of a virtual host for one user at a time, without hints of earlier ones."""
        name = self._free.pop(0)
        self.forget_hints(self._url(name))
        yield self._url(name)
        self._free.append(name)

    def forget_hints(self, url: str | None = None) -> None:
        """What earlier clusters left on the queue."""
        with Connection(url or self.url) as connection:  # type: ignore[no-untyped-call]  # kombu has no types
            channel = connection.channel()
            channel.queue_declare(keys.QUEUE, durable=True, auto_delete=False)
            channel.queue_purge(keys.QUEUE)

    def stop(self) -> None:
        self.child.stop()
        # The mapper of ports is a process of its own, and outlives the server.
        epmd = ["epmd", "-port", str(self._mapper), "-kill"]
        subprocess.run(epmd, env=self._environment, capture_output=True, check=False)

    def remove(self) -> None:
        self.stop()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _url(self, virtual_host: str) -> str:
        return f"amqp://{_USER}:{_USER}@{HOST}:{self._port}/{virtual_host}"

    def _answers(self) -> bool:
        with socket.create_connection((HOST, self._port), timeout=1) as connection:
            connection.sendall(b"AMQP\x00\x00\x09\x01")
            return bool(connection.recv(1))


def _definitions() -> dict[str, object]:
    """What a server knows when it starts."""
    hosts = ["/", *_VIRTUAL_HOSTS]
    everything = {name: ".*" for name in ("configure", "write", "read")}
    return {
        "vhosts": [{"name": name} for name in hosts],
        "users": [{"name": _USER, "password": _USER, "tags": ["administrator"]}],
        "permissions": [{"user": _USER, "vhost": name, **everything} for name in hosts],
    }


_shared: list[RabbitMQ] = []


def _shared_rabbitmq() -> RabbitMQ:
    if not _shared:
        server = RabbitMQ(Path(tempfile.mkdtemp(prefix="rabbitmq-")))
        server.start()
        _shared.append(server)
    return _shared[0]


def stop_shared() -> None:
    """For the end of a test run."""
    while _shared:
        _shared.pop().remove()


@contextmanager
def broker_settings() -> Iterator[dict[str, str]]:
    """Settings of a cluster that say where hints go, as long as it lives."""
    if not HAS_RABBITMQ:
        yield {}
        return
    with _shared_rabbitmq().lent() as url:
        yield {"CLIPFLEET_BROKER_URL": url}
