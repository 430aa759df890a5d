"""Faults of Redis and of the connections to it: the worker continues, nothing is lost or doubled."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import redis

from tests.support.faulty_redis import FaultyRedis, hold, until_told
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.figures, pytest.mark.timeout(300)]


@pytest.fixture(scope="module")
def bed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FaultyRedis]:
    with FaultyRedis(tmp_path_factory.mktemp("bed")) as bed:
        yield bed


class TestConnections:
    def test_reset_under_running_chunks(self, bed: FaultyRedis) -> None:
        with bed.running_jobs() as jobs:
            for _ in range(5):
                bed.proxy.reset()
                jobs.go_on(16)
            jobs.fault_is_over()

    @pytest.mark.parametrize("towards", ["server", "client"])
    def test_reset_in_the_middle_of_commands_and_answers(self, bed: FaultyRedis, towards: str) -> None:
        with bed.running_jobs() as jobs:
            for count in (1, 20, 300, 1000, 5000):
                bed.proxy.cut_after(count, towards="server" if towards == "server" else "client")
                jobs.go_on(16)
                wait_until(lambda: bed.proxy.is_cut, "the connection was cut")
            jobs.fault_is_over()

    def test_half_open_connections_are_abandoned(self, bed: FaultyRedis) -> None:
        """They stay silent: their reads must time out."""
        with bed.running_jobs() as jobs:
            bed.proxy.freeze()
            jobs.fault_is_over()

    def test_silence_of_twenty_seconds(self, bed: FaultyRedis) -> None:
        with bed.running_jobs() as jobs:
            bed.proxy.freeze(new=True)
            jobs.go_on()
            hold(20)
            jobs.worker_says("Timeout", "no reply")
            bed.proxy.thaw()
            jobs.fault_is_over()

    def test_connections_are_refused_for_a_while(self, bed: FaultyRedis) -> None:
        with bed.running_jobs() as jobs:
            bed.proxy.refuse()
            bed.proxy.reset()
            jobs.go_on()
            hold(3)
            jobs.worker_says("refused")
            bed.proxy.admit()
            jobs.fault_is_over()


class TestServer:
    @pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGKILL])
    def test_restart(self, bed: FaultyRedis, kind: signal.Signals) -> None:
        with bed.running_jobs() as jobs:
            server = bed.cluster.server
            server.child.kill() if kind is signal.SIGKILL else server.stop()
            jobs.go_on()
            hold(2)
            jobs.worker_says("refused", "reset", "closed")
            server.start()
            bed.proxy.retarget(bed.server_port)
            jobs.fault_is_over()

    def test_it_hangs_in_a_script(self, bed: FaultyRedis) -> None:
        with bed.running_jobs() as jobs, bed.config(busy_reply_threshold=100), bed.admin() as admin:
            spinner = threading.Thread(target=_spin, args=(bed,), daemon=True)
            spinner.start()
            wait_until(lambda: _answers(admin, "BUSY"), "other clients get BUSY")
            jobs.go_on()
            hold(5)
            jobs.worker_says("BUSY")
            until_told(lambda: admin.script_kill())
            spinner.join()
            jobs.fault_is_over()

    def test_it_forgets_all_scripts(self, bed: FaultyRedis) -> None:
        with bed.running_jobs() as jobs, bed.admin() as admin:
            for _ in range(5):
                admin.script_flush()
                jobs.go_on(16)
            jobs.fault_is_over()

    def test_it_is_demoted_to_a_replica(self, bed: FaultyRedis) -> None:
        with bed.running_jobs() as jobs, bed.admin() as admin:
            admin.replicaof("127.0.0.1", 1)  # no server is there: it keeps its data
            jobs.go_on()
            hold(3)
            jobs.worker_says("is a replica")
            admin.replicaof("NO", "ONE")
            jobs.fault_is_over()

    @pytest.mark.parametrize(
        ("settings", "reason"),
        [
            ({"min_replicas_to_write": 1}, "NOREPLICAS"),
            ({"maxclients": 1}, "max number of clients"),
            ({"requirepass": "another"}, "login refused"),
            ({"maxmemory": 1}, "memory is full"),
        ],
    )
    def test_it_refuses_everything(self, bed: FaultyRedis, settings: dict[str, Any], reason: str) -> None:
        with bed.running_jobs() as jobs:
            with bed.config(**settings):
                if reason in ("max number of clients", "login refused"):  # of new connections
                    bed.proxy.reset()
                jobs.go_on()
                hold(5)
                jobs.worker_says(reason)
            jobs.fault_is_over()


def _spin(bed: FaultyRedis) -> None:
    with bed.admin() as admin:
        try:
            admin.eval("while true do end", 0)
        except redis.ResponseError as error:
            assert "killed" in str(error).lower() or "BUSY" in str(error)


def _answers(admin: redis.Redis, word: str) -> bool:
    try:
        admin.ping()
    except redis.ResponseError as error:
        return word in str(error)
    return False
