"""A primary, a replica and three Sentinels on loopback, of the embedded server's binary."""

from __future__ import annotations

import secrets
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import redis

from clipfleet.redis_connection import connect
from clipfleet_worker.embedded import valkey_binary
from clipfleet_worker.loopback import HOST, free_port
from clipfleet_worker.supervise import Child

MASTER_NAME = "clipfleet-test"

_SERVER = """\
bind {host}
port {port}
requirepass {password}
masterauth {password}
dir {folder}
appendonly yes
save ""
repl-diskless-sync-delay 0
repl-ping-replica-period 1
"""
_SENTINEL = """\
bind {host}
port {port}
requirepass {sentinel_password}
sentinel sentinel-pass {sentinel_password}
dir {folder}
sentinel monitor {name} {host} {primary} 2
sentinel auth-pass {name} {password}
sentinel down-after-milliseconds {name} 1000
sentinel failover-timeout {name} 6000
"""


class SentinelGroup:
    """Servers 0 (the primary at first) and 1, and three that watch them; usable as a context manager."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._password, self._sentinel_password = secrets.token_urlsafe(12), secrets.token_urlsafe(12)
        self._ports = [free_port() for _ in range(2)]
        self._sentinel_ports = [free_port() for _ in range(3)]
        self.servers = [self._child(f"server-{number}", self._server_config(number)) for number in range(2)]
        self._sentinels = [
            self._child(f"sentinel-{number}", self._sentinel_config(port), "--sentinel")
            for number, port in enumerate(self._sentinel_ports)
        ]

    def __enter__(self) -> Self:
        for child in (*self.servers, *self._sentinels):
            child.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for child in (*self._sentinels, *self.servers):
            child.kill()

    @property
    def secrets(self) -> tuple[str, str]:
        """What must show nowhere."""
        return self._password, self._sentinel_password

    @property
    def url(self) -> str:
        """For `CLIPFLEET_REDIS_URL`."""
        hosts = ",".join(f"{HOST}:{port}" for port in self._sentinel_ports)
        return f"sentinel://:{self._password}@{hosts}/{MASTER_NAME}/0?sentinel_password={self._sentinel_password}"

    def server(self, number: int) -> redis.Redis:
        """A client of one of the two servers."""
        return connect(f"redis://:{self._password}@{HOST}:{self._ports[number]}/0", retries=0)

    def is_complete(self) -> bool:
        """Whether the replica has all, and the Sentinels know it and one another."""
        try:
            with self.server(0) as primary:
                if primary.info("replication").get("slave0", {}).get("state") != "online":
                    return False
            return all(self._knows_all(port) for port in self._sentinel_ports)
        except redis.RedisError:
            return False

    def primary_port(self) -> int:
        """Whom the Sentinels name."""
        with self._sentinel(self._sentinel_ports[0]) as sentinel:
            return int(sentinel.sentinel_get_master_addr_by_name(MASTER_NAME)[1])

    def port(self, number: int) -> int:
        return self._ports[number]

    def _knows_all(self, port: int) -> bool:
        with self._sentinel(port) as sentinel:
            facts: Any = sentinel.sentinel_master(MASTER_NAME)
        return (int(facts["num-slaves"]), int(facts["num-other-sentinels"])) == (1, 2)

    def _sentinel(self, port: int) -> redis.Redis:
        return connect(f"redis://:{self._sentinel_password}@{HOST}:{port}", retries=0)

    def _server_config(self, number: int) -> str:
        config = _SERVER.format(
            host=HOST,
            port=self._ports[number],
            password=self._password,
            folder=self._home(f"server-{number}"),
        )
        return config + (f"replicaof {HOST} {self._ports[0]}\n" if number else "")

    def _sentinel_config(self, port: int) -> str:
        return _SENTINEL.format(
            host=HOST, port=port, primary=self._ports[0], name=MASTER_NAME, password=self._password,
            sentinel_password=self._sentinel_password, folder=self._home(f"sentinel-{port}"),
        )  # fmt: skip

    def _home(self, name: str) -> Path:
        home = self._folder / name
        home.mkdir(parents=True, exist_ok=True)
        return home

    def _child(self, name: str, config: str, *options: str) -> Child:
        path = self._folder / f"{name}.conf"
        path.write_text(config)
        return Child(name, [str(valkey_binary()), str(path), *options], log=self._folder / f"{name}.log")
