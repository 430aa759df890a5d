"""Two Valkeys, one the copy of the other, and three Sentinels that watch them: what fails over when one dies.

All on loopback with passwords, each in a folder of its own. The copy follows with a delay, so a primary
that dies may take the last writes it acknowledged with it: `fail_over` waits until the copy has them all.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable
from pathlib import Path
from typing import Self

import redis
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.retry import Retry

from clipfleet_worker.machine.child import Child
from clipfleet_worker.machine.embedded.private_files import write_private
from clipfleet_worker.machine.embedded.server import HOST, free_port
from clipfleet_worker.machine.embedded.valkey import valkey_binary

MASTER_NAME = "clipfleet"
_SENTINELS = 3
_QUORUM = 2
_DOWN_AFTER_MS = 1000
_FAILOVER_TIMEOUT_MS = 5000
_PAUSE_MS = 10_000
_READY_SECONDS = 60.0
_POLL_SECONDS = 0.02

_NODE = """\
bind {host}
port {port}
protected-mode yes
requirepass {password}
masterauth {password}
dir .
appendonly yes
appendfsync always
save ""
maxmemory-policy noeviction
repl-diskless-sync-delay 0
daemonize no
"""
_WATCHER = """\
bind {host}
port {port}
protected-mode yes
requirepass {sentinel_password}
sentinel sentinel-pass {sentinel_password}
dir .
sentinel monitor {name} {host} {primary} {quorum}
sentinel auth-pass {name} {password}
sentinel down-after-milliseconds {name} {down_after_ms}
sentinel failover-timeout {name} {failover_timeout_ms}
sentinel parallel-syncs {name} 1
"""


class SentinelPair:
    """Usable as a context manager. Start it from a thread that lives as long (see `Child`)."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._password, self._sentinel_password = secrets.token_urlsafe(24), secrets.token_urlsafe(24)
        self._ports = [free_port() for _ in range(2)]
        self.sentinel_ports: list[int] = []
        self._nodes: dict[int, Child] = {}
        self._sentinels: list[Child] = []

    def __enter__(self) -> Self:
        try:
            self.start()
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        """Start all five; returns when the copy follows and each Sentinel knows the others."""
        first, second = self._ports
        self._nodes[first] = self._start_node(first, follows=None)
        self._nodes[second] = self._start_node(second, follows=first)
        for number in range(_SENTINELS):
            port = free_port()
            self.sentinel_ports.append(port)
            self._sentinels.append(self._start_sentinel(number, port))
        _wait_until(self._is_whole, "the pair is whole")

    def stop(self) -> None:
        """Stop all. Idempotent."""
        for child in (*self._sentinels, *self._nodes.values()):
            child.stop()

    @property
    def url(self) -> str:
        """For `CLIPFLEET_REDIS_URL`."""
        hosts = ",".join(f"{HOST}:{port}" for port in self.sentinel_ports)
        return f"sentinel://:{self._password}@{hosts}/{MASTER_NAME}/0?sentinel_password={self._sentinel_password}"

    @property
    def passwords(self) -> tuple[str, str]:
        """What must show nowhere."""
        return self._password, self._sentinel_password

    @property
    def primary_port(self) -> int:
        """Where the primary is, as the first Sentinel has it."""
        answer = self._ask_sentinel(0, "SENTINEL", "GET-MASTER-ADDR-BY-NAME", MASTER_NAME)
        return int(answer[1])

    @property
    def primary_url(self) -> str:
        """The primary without asking a Sentinel again."""
        return f"redis://:{self._password}@{HOST}:{self.primary_port}/0"

    def kill_primary(self) -> None:
        """Kill it for good."""
        self._nodes[self.primary_port].kill()

    def fail_over(self) -> float:
        """Kill the primary once the copy has all it acknowledged; it is restarted as the copy.

        Returns:
            Seconds from the kill until the Sentinels name the other one.
        """
        old = self.primary_port
        (new,) = (port for port in self._ports if port != old)
        with self._node(old) as primary, self._node(new) as copy:
            primary.client_pause(_PAUSE_MS, all=False)
            _wait_until(lambda: _offset(primary) <= _offset(copy), "the copy has everything")
        self.kill_primary()
        killed_at = time.monotonic()
        _wait_until(lambda: self.primary_port == new, "the Sentinels name the other one")
        seconds = time.monotonic() - killed_at
        self._nodes[old] = self._start_node(old, follows=new)
        _wait_until(self._is_whole, "the pair is whole again")
        return seconds

    def _start_node(self, port: int, follows: int | None) -> Child:
        config = _NODE.format(host=HOST, port=port, password=self._password)
        if follows is not None:
            config += f"replicaof {HOST} {follows}\n"
        return self._start(f"node-{port}", config, port, self._password)

    def _start_sentinel(self, number: int, port: int) -> Child:
        config = _WATCHER.format(
            host=HOST, port=port, password=self._password, sentinel_password=self._sentinel_password,
            primary=self._ports[0], name=MASTER_NAME, quorum=_QUORUM, down_after_ms=_DOWN_AFTER_MS,
            failover_timeout_ms=_FAILOVER_TIMEOUT_MS,
        )  # fmt: skip
        return self._start(f"sentinel-{number}", config, port, self._sentinel_password, "--sentinel")

    def _start(self, name: str, config: str, port: int, password: str, *flags: str) -> Child:
        folder = self._folder / name
        folder.mkdir(parents=True, exist_ok=True)
        write_private(folder / "valkey.conf", config)
        child = Child(
            name,
            [str(valkey_binary()), str(folder / "valkey.conf"), *flags],
            log=folder / "valkey.log",
            cwd=folder,
            is_ready=lambda: self._answers(port, password),
            ready_seconds=_READY_SECONDS,
        )
        child.start()
        child.wait_ready()
        return child

    def _answers(self, port: int, password: str) -> bool:
        try:
            with _client(port, password) as client:
                return bool(client.ping())
        except RedisError:
            return False

    def _node(self, port: int) -> redis.Redis:
        return _client(port, self._password)

    def _sentinel(self, number: int) -> redis.Redis:
        return _client(self.sentinel_ports[number], self._sentinel_password)

    def _ask_sentinel(self, number: int, *words: str) -> list[str]:
        with self._sentinel(number) as client:
            answer: list[str] = client.execute_command(*words)
        return answer

    def _is_whole(self) -> bool:
        """Whether the copy follows the primary, and every Sentinel sees both and the other Sentinels."""
        try:
            primary = self.primary_port
            (other,) = (port for port in self._ports if port != primary)
            with self._node(other) as client:
                replication = client.info("replication")
            follows = replication["role"] == "slave" and replication["master_link_status"] == "up"
            return follows and all(self._sees_all(number, primary) for number in range(_SENTINELS))
        except (RedisError, KeyError):
            return False

    def _sees_all(self, number: int, primary: int) -> bool:
        with self._sentinel(number) as client:
            master = client.sentinel_master(MASTER_NAME)
        return (int(master["port"]), int(master["num-other-sentinels"]), int(master["num-slaves"])) == (
            primary,
            _SENTINELS - 1,
            1,
        ) and not master["is_odown"]


def _client(port: int, password: str) -> redis.Redis:
    """One that does not try again."""
    return redis.Redis(
        host=HOST,
        port=port,
        password=password,
        decode_responses=True,
        socket_timeout=2,
        retry=Retry(NoBackoff(), 0),
    )


def _offset(client: redis.Redis) -> int:
    replication = client.info("replication")
    key = "master_repl_offset" if replication["role"] == "master" else "slave_repl_offset"
    return int(replication[key])


def _wait_until(condition: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + _READY_SECONDS
    while not condition():
        if time.monotonic() > deadline:
            raise TimeoutError(f"still not after {_READY_SECONDS:g} s: {what}")
        time.sleep(_POLL_SECONDS)
