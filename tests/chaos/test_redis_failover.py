"""Failover by Sentinel under load, and one to a replica that had fallen behind."""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from clipfleet.client import Client, JobOptions
from clipfleet.ledger import keys
from clipfleet.redis.connection import connect
from clipfleet.settings import Settings
from clipfleet_worker.machine.embedded.server import free_port
from clipfleet_worker.machine.embedded.valkey import EmbeddedValkey
from ops.chaos.sentinel import SentinelPair
from tests.support.cluster import Cluster
from tests.support.faulty_redis import BLAME, CHUNK_SIZE, ITEMS, SETTINGS, FaultyRedis
from tests.support.http_site import HttpSite
from tests.support.waiting import wait_until

pytestmark = [pytest.mark.figures, pytest.mark.timeout(300)]


@pytest.fixture
def pair(tmp_path: Path) -> Iterator[SentinelPair]:
    with SentinelPair(tmp_path / "pair") as pair:
        yield pair


def test_the_primary_is_killed_under_load(tmp_path: Path, pair: SentinelPair, site: HttpSite) -> None:
    (tmp_path / "work").mkdir()
    urls = [site.url(f"/held/{number % 20:06d}.jpg?{number}") for number in range(ITEMS)]
    # The cluster's own server is not used: everything goes by the one variable.
    with (
        Cluster(tmp_path / "work", SETTINGS | {"CLIPFLEET_REDIS_URL": pair.url}) as cluster,
        Client(Settings(redis_url=pair.url)) as client,  # type: ignore[arg-type]
    ):
        worker = cluster.start_worker()
        handles = [
            client.embed(urls, options=JobOptions(output=output, model="demo", chunk_size=CHUNK_SIZE))
            for output in (tmp_path / "work" / "out", None)
        ]
        site.heal(3 * CHUNK_SIZE)
        wait_until(lambda: any(handle.status().ok for handle in handles), "a chunk is done")
        with connect(pair.primary_url) as primary:
            assert primary.wait(1, 60_000) == 1  # the replica has caught up
        old_port = pair.primary_port
        pair.kill_primary()
        killed = time.monotonic()
        site.heal(64)
        wait_until(lambda: pair.primary_port != old_port, "the replica was promoted")
        promoted_seconds = time.monotonic() - killed
        site.heal()
        statuses = [handle.wait(120) for handle in handles]
        done_seconds = time.monotonic() - killed

        with connect(pair.primary_url) as promoted:
            events = [fields["job_id"] for _, fields in promoted.xrange(keys.EVENTS)]
        for handle, status in zip(handles, statuses, strict=True):
            assert (status.state, status.ok, status.failed) == ("completed", ITEMS, 0)
            assert Counter(row["item_index"] for row in handle.results()) == Counter(range(ITEMS))
            assert events.count(handle.job_id) == 1
        assert worker.terminate() == 0
        log = worker.log()
        assert "leases had expired" not in log
        assert not [secret for secret in pair.passwords if secret in log]
    print(f"promoted {promoted_seconds:.1f} s after the kill, {2 * ITEMS} rows after {done_seconds:.1f} s")


def test_a_replica_that_had_fallen_behind_takes_over(tmp_path: Path) -> None:
    """Acknowledged writes are lost: the chunks are found in the output, or run again."""
    short = {"CLIPFLEET_LEASE_SECONDS": "5"}  # until then nobody takes the chunks whose end was forgotten
    with FaultyRedis(tmp_path, short) as bed, _twin(tmp_path / "replica", bed.cluster.server) as replica:
        with bed.running_jobs() as jobs:
            with connect(replica.url) as behind, bed.admin() as primary:
                primary.config_set("repl-diskless-sync-delay", 0)
                behind.config_set("masterauth", _password(replica))
                behind.replicaof("127.0.0.1", bed.server_port)
                wait_until(lambda: jobs.are_known_by(behind), "the replica has all")
                assert primary.wait(1, 60_000) == 1
                behind.replicaof("NO", "ONE")  # from here on it gets nothing
            behind_by = jobs.done_chunks()
            jobs.go_on()
            wait_until(lambda: jobs.done_chunks() >= behind_by + 6, "chunks are acknowledged")
            at_kill = jobs.done_chunks()
            bed.take_over(replica)
            lost = at_kill - jobs.done_chunks()
            jobs.blame = tuple(word for word in BLAME if word != "leases had expired")
            jobs.fault_is_over()
        assert lost >= 6
        print(f"{lost} acknowledged chunks were lost by the failover")


def _twin(folder: Path, server: EmbeddedValkey) -> EmbeddedValkey:
    """A second server with the same password."""
    folder.mkdir(mode=0o700)
    state = {"port": free_port(), "password": _password(server)}
    (folder / "state.json").write_text(json.dumps(state))
    return EmbeddedValkey(folder)


def _password(server: EmbeddedValkey) -> str:
    return str(urlsplit(server.url).password)


def test_a_submit_continues_at_the_new_primary(tmp_path: Path, pair: SentinelPair) -> None:
    said: list[str] = []

    def urls() -> Iterator[str]:
        for number in range(ITEMS):
            if number == ITEMS // 2:
                with connect(pair.primary_url) as primary:
                    wait_until(lambda: primary.exists(keys.job("submit", keys.STAGED)), "a half is staged")
                    assert primary.wait(1, 60_000) == 1  # the replica has caught up
                pair.kill_primary()
            yield f"https://example.org/{number}.jpg"

    settings = Settings(redis_url=pair.url)  # type: ignore[arg-type]
    with Client(settings, on_trouble=said.append) as client:
        options = JobOptions(output=tmp_path / "out", model="demo", chunk_size=ITEMS // 4, job_id="submit")
        status = client.embed(urls(), options=options).status()

    assert (status.sealed, status.total, status.chunks) == (True, ITEMS, 4)
    assert said[0].startswith("Redis is away")
    assert said[-1] == "Redis is back"
