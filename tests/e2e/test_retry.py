"""Failed rows become good ones in place, whatever dies meanwhile; a ledger that was lost is put back."""

from __future__ import annotations

import json
import random
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipfleet.contract.jobs import PartFormat
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.redis.connection import connect
from clipfleet.results import rows as results
from clipfleet.results.part_rows import PartRows
from tests.support.cluster import Cluster, ends
from tests.support.http_site import HttpSite
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

CHUNK = 8


@dataclass(frozen=True)
class Source:
    """A CSV of URLs below a folder of its own, where the output is, too."""

    folder: Path

    @property
    def output(self) -> Path:
        return self.folder / "out"

    @property
    def command(self) -> tuple[str | Path, ...]:
        output = ("--output", self.output, "--chunk-size", str(CHUNK))
        return ("embed", self.folder / "list.csv", "--model", "demo", *output)

    def write(self, site: HttpSite, *, chunks: int, sick_chunks: Collection[int]) -> None:
        """In each of the sick chunks every third URL fails until the site is healed."""
        lines = ["id,url,note"]
        for item in range(chunks * CHUNK):
            is_sick = item // CHUNK in sick_chunks and item % 3 == 0
            path = f"/{'sick' if is_sick else 'files'}/{item % 7:06d}.jpg"
            lines.append(f"n{item},{site.url(path)},note {item}")
        self.folder.mkdir(exist_ok=True)
        (self.folder / "list.csv").write_text("\n".join(lines) + "\n")

    def rows(self) -> list[dict[str, Any]]:
        return list(results.rows(PartRows(FolderOutput(self.output))))

    def parts(self) -> list[Path]:
        return sorted(self.output.glob("data/part-*"))

    def generations(self) -> list[int]:
        return [int(pq.read_schema(part).metadata[b"generation"]) for part in self.parts()]

    def inodes(self) -> dict[str, int]:
        return {str(part.relative_to(self.output)): part.stat().st_ino for part in self.parts()}

    def is_success(self) -> bool:
        return (self.output / objects.SUCCESS).exists()


@pytest.fixture
def source(fragile: Cluster, tmp_path: Path) -> Source:
    return Source(fragile.folder / tmp_path.name)


def test_a_retry_turns_the_failed_rows_into_good_ones(cluster: Cluster, folder: Path, site: HttpSite) -> None:
    source = Source(folder)
    source.write(site, chunks=4, sick_chunks={1, 3})
    answer = cluster.run_json(*source.command, expect=3)
    job_id, failed = answer["job_id"], answer["failed"]
    assert (answer["state"], failed) == ("completed_with_errors", 6)
    before, inodes = source.rows(), source.inodes()
    site.heal()
    asked = site.requests.total()

    answer = cluster.run_json("retry", job_id)

    assert (answer["state"], answer["total"], answer["ok"], answer["failed"]) == ("completed", 32, 32, 0)
    after = source.rows()
    assert [(row["item_id"], row["note"]) for row in after] == [
        (f"n{item}", f"note {item}") for item in range(32)
    ]
    for old, new in zip(before, after, strict=True):
        assert new["status"] == "ok"
        assert new == old or old["status"] == "failed"
    assert site.requests.total() - asked == failed
    assert source.generations() == [0, 1, 0, 1]
    assert [source.inodes()[name] == inode for name, inode in inodes.items()] == [True, False, True, False]
    assert source.is_success()
    assert (source.output / objects.LAYOUT.errors).read_text() == ""
    manifest = json.loads((source.output / objects.MANIFEST).read_text())
    assert (manifest["generation"], manifest["ok"], manifest["failed"]) == (1, 32, 0)
    assert ends(cluster, job_id) == [("0", "completed_with_errors"), ("1", "completed")]
    assert "retries  1" in cluster.run("status", job_id).stdout
    again = cluster.run("retry", job_id)
    assert (again.returncode, "no failed rows" in again.stderr, source.is_success()) == (0, True, True)


@pytest.fixture(scope="module")
def fragile(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """A cluster whose workers are killed and whose server forgets everything."""
    settings = {
        "CLIPFLEET_LEASE_SECONDS": "2",
        "CLIPFLEET_RECONCILE_SECONDS": "0.5",
        "CLIPFLEET_ITEMS_IN_FLIGHT": str(6 * CHUNK),
        "CLIPFLEET_FETCH_ATTEMPTS": "1",  # what fails is left to `clipfleet retry`
        "CLIPFLEET_FETCH_TIMEOUT_SECONDS": "120",  # while the site is healed bit by bit they are to wait
    }
    with Cluster(tmp_path_factory.mktemp("fragile"), settings) as running:
        running.start_worker()
        yield running


def forget_everything(cluster: Cluster) -> None:
    with connect(cluster.server.url) as client:
        client.flushall()


def submit_sick_job(fragile: Cluster, source: Source, site: HttpSite, *, chunks: int) -> str:
    """A job that has ended with failed rows in two of three chunks; returns its id."""
    source.write(site, chunks=chunks, sick_chunks={chunk for chunk in range(chunks) if chunk % 3})
    return str(fragile.run_json(*source.command, expect=3)["job_id"])


def check_retried(source: Source, before: list[dict[str, Any]], inodes: dict[str, int]) -> None:
    """Every row is there once and good; what was good is what it was, and so are parts without failures."""
    after = source.rows()
    assert [row["item_index"] for row in after] == list(range(len(before)))
    for old, new in zip(before, after, strict=True):
        assert new["status"] == "ok"
        assert new == old or old["status"] == "failed"
    assert source.generations() == [min(1, number % 3) for number in range(len(inodes))]
    is_untouched = [source.inodes()[name] == inode for name, inode in inodes.items()]
    assert is_untouched == [generation == 0 for generation in source.generations()]
    assert source.is_success()
    assert list((source.output / objects.TMP).iterdir()) == []


def test_workers_are_killed_during_a_retry(fragile: Cluster, source: Source, site: HttpSite) -> None:
    job_id = submit_sick_job(fragile, source, site, chunks=36)
    before, inodes = source.rows(), source.inodes()
    chance = random.Random(20261125)
    alive = [fragile.workers[0], fragile.launch_worker()]
    site.heal(0)
    with fragile.start("retry", job_id, "--json") as retry:
        wait_until(lambda: not source.is_success(), "the retry has begun")
        for _ in range(4):
            site.heal(chance.randint(3, 12))
            wait_until(lambda: site.has_answered_all, "some rows more are healed")
            alive.pop(chance.randrange(2)).kill()
            alive.append(fragile.launch_worker())
            assert not source.is_success()
        site.heal()
        out, err = retry.communicate(timeout=120)
    assert retry.returncode == 0, (err, fragile.logs())
    assert json.loads(out)["ok"] == len(before)
    check_retried(source, before, inodes)
    assert ends(fragile, job_id) == [("0", "completed_with_errors"), ("1", "completed")]
    alive[1].terminate()


@pytest.mark.parametrize("part_format", list(PartFormat))
def test_a_rebuild_finishes_a_job_that_redis_forgot_on_its_way(
    fragile: Cluster, source: Source, site: HttpSite, part_format: PartFormat
) -> None:
    # Given a job of which some chunks are done and others are under way
    source.write(site, chunks=12, sick_chunks=range(5, 12))
    site.heal(4)
    job_id = fragile.run_json(*source.command, "--format", part_format, "--no-wait")["job_id"]
    wait_until(lambda: len(source.parts()) >= 5 and site.has_answered_all, "half of it is done")

    forget_everything(fragile)
    assert fragile.run("status", job_id).returncode == 2
    done = source.inodes()
    site.heal()
    answer = fragile.run_json("rebuild", source.output)

    assert (answer["job_id"], answer["state"], answer["ok"]) == (job_id, "completed", 12 * CHUNK)
    assert [row["item_id"] for row in source.rows()] == [f"n{item}" for item in range(12 * CHUNK)]
    assert done.items() <= source.inodes().items()
    assert {*source.inodes()} == {objects.LAYOUT.part(chunk, part_format) for chunk in range(12)}
    # A job that is known stays as it is
    assert fragile.run_json("rebuild", source.output)["state"] == "completed"
    assert ends(fragile, job_id) == [("0", "completed")]


def test_a_retry_resumes_after_redis_lost_it(fragile: Cluster, source: Source, site: HttpSite) -> None:
    job_id = submit_sick_job(fragile, source, site, chunks=12)
    before, inodes = source.rows(), source.inodes()
    # An output is enough: the job that has ended is put back first
    forget_everything(fragile)
    site.heal(10)
    assert fragile.run_json("retry", source.output, "--no-wait")["state"] == "running"
    wait_until(lambda: site.has_answered_all and 1 in source.generations(), "half of it is healed")

    forget_everything(fragile)
    site.heal()
    answer = fragile.run_json("rebuild", source.output)

    assert (answer["state"], answer["ok"]) == ("completed", 12 * CHUNK)
    check_retried(source, before, inodes)
    assert fragile.status(job_id).generation == 1
    assert ends(fragile, job_id) == [("1", "completed")]


def exported_state(cluster: Cluster, job_id: str, to: Path) -> str:
    assert cluster.run("export", job_id, "--layout", "openai-batch", "--to", to).returncode == 0
    return str(json.loads((to / "batch.json").read_text())["status"])


def test_a_cancelled_job_resumes_where_it_was(fragile: Cluster, source: Source, site: HttpSite) -> None:
    source.write(site, chunks=12, sick_chunks=range(4, 12))
    site.heal(0)
    job_id = fragile.run_json(*source.command, "--no-wait")["job_id"]
    wait_until(lambda: len(source.parts()) == 4, "four chunks are done")
    assert fragile.run("cancel", job_id).returncode == 0
    assert exported_state(fragile, job_id, source.folder / "cancelled") == "cancelled"
    done = source.inodes()
    site.heal()

    answer = fragile.run_json("retry", job_id)

    assert (answer["state"], answer["ok"]) == ("completed", 12 * CHUNK)
    assert exported_state(fragile, job_id, source.folder / "completed") == "completed"
    assert [row["item_index"] for row in source.rows()] == list(range(12 * CHUNK))
    assert done.items() <= source.inodes().items()
    assert ends(fragile, job_id) == [("0", "cancelled"), ("1", "completed")]


def test_a_paused_job_hands_out_nothing(fragile: Cluster, source: Source, site: HttpSite) -> None:
    source.write(site, chunks=20, sick_chunks=range(20))
    site.heal(0)
    job_id = fragile.run_json(*source.command, "--no-wait")["job_id"]
    wait_until(lambda: fragile.status(job_id).leased_chunks > 0, "some chunks are under way")

    assert fragile.run("pause", job_id).returncode == 0
    site.heal()
    wait_until(lambda: fragile.status(job_id).leased_chunks == 0, "what was under way is done")

    paused = fragile.status(job_id)
    assert (paused.state, paused.reason) == ("paused", "paused by request")
    assert 0 < paused.done_chunks == len(source.parts()) < 20
    assert fragile.run("resume", job_id).returncode == 0
    assert fragile.run_json("watch", job_id)["ok"] == 20 * CHUNK


def test_only_what_was_asked_for_is_run_again(fragile: Cluster, source: Source, site: HttpSite) -> None:
    source.write(site, chunks=1, sick_chunks={0})
    with (source.folder / "list.csv").open("a") as file:
        file.write(f"gone,{site.url('/status/404')},x\n")
    job_id = fragile.run_json(*source.command, expect=3)["job_id"]
    site.heal()
    nothing = fragile.run("retry", job_id, "--codes", "timeout")
    assert (nothing.returncode, "no failed rows with timeout" in nothing.stderr) == (3, True)
    assert (
        "unknown error code 'tiemout': did you mean timeout?"
        in fragile.run("retry", job_id, "--codes", "tiemout").stderr
    )

    answer = fragile.run_json("retry", job_id, "--codes", "server_error, timeout", expect=3)

    assert (answer["state"], answer["failed"]) == ("completed_with_errors", 1)
    assert [row["error_code"] for row in source.rows()] == [None] * CHUNK + ["not_found"]
    assert site.requests["/status/404"] == 1
