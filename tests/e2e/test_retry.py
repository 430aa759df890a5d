"""Failed rows become good ones in place, whatever dies meanwhile; a ledger that was lost is put back."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from clipfleet.contract.jobs import PartFormat
from clipfleet.ledger import keys
from clipfleet.ledger.jobs import JobStatus, Ledger
from clipfleet.outputs.folder import FolderOutput
from clipfleet.redis.connection import connect
from clipfleet.results import rows as results
from clipfleet.results.part_rows import PartRows
from tests.support.cluster import Cluster, job_events
from tests.support.http_site import HttpSite
from tests.support.images import encoded, make_image
from tests.support.waiting import wait_until

pytestmark = pytest.mark.long

LABELS = "red apple,dog,car,house"
CHUNK = 8


@pytest.fixture
def site(tmp_path: Path) -> Iterator[HttpSite]:
    (tmp_path / "site").mkdir()
    with HttpSite(tmp_path / "site") as running:
        yield running


def write_list(
    folder: Path, site: HttpSite, site_folder: Path, *, chunks: int, sick_chunks: set[int]
) -> Path:
    """A CSV of URLs; in each of the sick chunks every third one fails until the site is healed."""
    for number in range(7):
        (site_folder / f"{number}.jpg").write_bytes(encoded(make_image(number)))
    lines = ["id,url,note"]
    for item in range(chunks * CHUNK):
        is_sick = item // CHUNK in sick_chunks and item % 3 == 0
        path = f"/{'sick' if is_sick else 'files'}/{item % 7}.jpg"
        lines.append(f"n{item},{site.url(path)},note {item}")
    folder.mkdir(parents=True, exist_ok=True)
    source = folder / "list.csv"
    source.write_text("\n".join(lines) + "\n")
    return source


def rows(output: Path) -> list[dict[str, Any]]:
    return list(results.rows(PartRows(FolderOutput(output))))


def generations(output: Path) -> list[int]:
    parts = sorted(output.glob("part-*.parquet"))
    return [int(pq.read_schema(part).metadata[b"generation"]) for part in parts]


def test_a_retry_turns_exactly_the_failed_rows_into_good_ones_in_place(
    cluster: Cluster, tmp_path: Path, site: HttpSite
) -> None:
    folder = cluster.folder / tmp_path.name
    source = write_list(folder, site, tmp_path / "site", chunks=4, sick_chunks={1, 3})
    output = folder / "out"
    answer = cluster.run_json(
        "classify", source, "--labels", LABELS, "--model", "demo", "--output", output, "--chunk-size", CHUNK,
        expect=3,
    )  # fmt: skip
    job_id, failed = answer["job_id"], answer["failed"]
    assert (answer["state"], failed) == ("completed_with_errors", 6)
    before, inodes = rows(output), [part.stat().st_ino for part in sorted(output.glob("part-*"))]
    site.heal()
    asked = dict(site.requests)

    answer = cluster.run_json("retry", job_id)

    assert (answer["state"], answer["total"], answer["ok"], answer["failed"]) == ("completed", 32, 32, 0)
    after = rows(output)
    assert [row["item_id"] for row in after] == [f"n{item}" for item in range(32)]
    assert [row["note"] for row in after] == [f"note {item}" for item in range(32)]
    for old, new in zip(before, after, strict=True):
        assert new["status"] == "ok"
        assert new == old or old["status"] == "failed"
    assert sum(site.requests.values()) - sum(asked.values()) == failed
    assert generations(output) == [0, 1, 0, 1]
    new_inodes = [part.stat().st_ino for part in sorted(output.glob("part-*"))]
    assert [old == new for old, new in zip(inodes, new_inodes, strict=True)] == [True, False, True, False]
    assert (output / keys.SUCCESS).exists()
    assert (output / keys.ERRORS).read_text() == ""
    manifest = json.loads((output / keys.MANIFEST).read_text())
    assert (manifest["generation"], manifest["ok"], manifest["failed"]) == (1, 32, 0)
    events = [(event["generation"], event["state"]) for event in job_events(cluster, job_id)]
    assert events == [("0", "completed_with_errors"), ("1", "completed")]
    assert "retries  1" in cluster.run("status", job_id).stdout
    again = cluster.run("retry", job_id)
    assert again.returncode == 0
    assert "no failed rows" in again.stderr
    assert (output / keys.SUCCESS).exists()


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


def status(cluster: Cluster, job_id: str) -> JobStatus:
    with closing(Ledger(cluster.server.url)) as ledger:
        return ledger.status(job_id)


def submit_sick_job(fragile: Cluster, tmp_path: Path, site: HttpSite, *, chunks: int) -> tuple[str, Path]:
    """A job that has ended with failed rows in two of three chunks."""
    folder = fragile.folder / tmp_path.name
    sick = {chunk for chunk in range(chunks) if chunk % 3}
    source = write_list(folder, site, tmp_path / "site", chunks=chunks, sick_chunks=sick)
    answer = fragile.run_json(
        "embed", source, "--model", "demo", "--output", folder / "out", "--chunk-size", CHUNK, expect=3
    )
    return answer["job_id"], folder / "out"


def check_retried(output: Path, before: list[dict[str, Any]], inodes: dict[str, int]) -> None:
    """Every row is there once and good; what was good is what it was, and so are parts without failures."""
    after = rows(output)
    assert [row["item_index"] for row in after] == list(range(len(before)))
    for old, new in zip(before, after, strict=True):
        assert new["status"] == "ok"
        assert new == old or old["status"] == "failed"
    for part in output.glob("part-*"):
        is_untouched = inodes[part.name] == part.stat().st_ino
        assert is_untouched == (int(pq.read_schema(part).metadata[b"generation"]) == 0)
    assert generations(output) == [min(1, number % 3) for number in range(len(inodes))]
    assert (output / keys.SUCCESS).exists()
    assert list((output / keys.TMP).iterdir()) == []


def inodes_of(output: Path) -> dict[str, int]:
    return {part.name: part.stat().st_ino for part in output.glob("part-*")}


@pytest.mark.timeout(300)
def test_workers_killed_during_a_retry_leave_the_parts_exact(
    fragile: Cluster, tmp_path: Path, site: HttpSite
) -> None:
    job_id, output = submit_sick_job(fragile, tmp_path, site, chunks=36)
    before, inodes = rows(output), inodes_of(output)
    chance = random.Random(20261125)
    alive = [fragile.workers[0], fragile.launch_worker()]
    site.heal(0)
    with fragile.start("retry", job_id, "--json") as retry:
        wait_until(lambda: not (output / keys.SUCCESS).exists(), "the retry has begun")
        for _ in range(4):
            site.heal(chance.randint(3, 12))
            wait_until(lambda: site.has_answered_all, "some rows more are healed")
            victim = alive.pop(chance.randrange(2))
            victim.kill()
            alive.append(fragile.launch_worker())
            assert not (output / keys.SUCCESS).exists()
        site.heal()
        out, err = retry.communicate(timeout=120)
    assert retry.returncode == 0, (err, fragile.logs())
    assert json.loads(out)["ok"] == len(before)
    check_retried(output, before, inodes)
    events = [(event["generation"], event["state"]) for event in job_events(fragile, job_id)]
    assert events == [("0", "completed_with_errors"), ("1", "completed")]
    for worker in fragile.workers:
        if worker is not alive[0] and worker.process.poll() is None:
            worker.terminate()


@pytest.mark.parametrize("part_format", list(PartFormat))
def test_a_rebuild_finishes_a_job_that_redis_forgot_on_its_way(
    fragile: Cluster, tmp_path: Path, site: HttpSite, part_format: PartFormat
) -> None:
    # Given a job of which some chunks are done and others are under way
    folder = fragile.folder / tmp_path.name
    source = write_list(folder, site, tmp_path / "site", chunks=12, sick_chunks=set(range(5, 12)))
    output = folder / "out"
    site.heal(4)
    arguments = ("embed", source, "--model", "demo", "--output", output, "--chunk-size", CHUNK)
    job_id = fragile.run_json(*arguments, "--format", part_format, "--no-wait")["job_id"]
    wait_until(lambda: len(inodes_of(output)) >= 5 and site.has_answered_all, "half of it is done")

    forget_everything(fragile)
    assert fragile.run("status", job_id).returncode == 2
    done = inodes_of(output)
    site.heal()
    answer = fragile.run_json("rebuild", output)

    assert (answer["job_id"], answer["state"], answer["ok"]) == (job_id, "completed", 12 * CHUNK)
    assert [row["item_id"] for row in rows(output)] == [f"n{item}" for item in range(12 * CHUNK)]
    assert done.items() <= inodes_of(output).items()
    assert {*inodes_of(output)} == {keys.part(chunk, part_format) for chunk in range(12)}
    assert len(job_events(fragile, job_id)) == 1
    # A job that is known stays as it is
    assert fragile.run_json("rebuild", output)["state"] == "completed"
    assert len(job_events(fragile, job_id)) == 1


def test_a_retry_resumes_after_redis_lost_it(fragile: Cluster, tmp_path: Path, site: HttpSite) -> None:
    job_id, output = submit_sick_job(fragile, tmp_path, site, chunks=12)
    before, inodes = rows(output), inodes_of(output)
    # An output is enough: the job that has ended is put back first
    forget_everything(fragile)
    site.heal(10)
    assert fragile.run_json("retry", output, "--no-wait")["state"] == "running"
    wait_until(lambda: site.has_answered_all and 1 in generations(output), "half of it is healed")

    forget_everything(fragile)
    site.heal()
    answer = fragile.run_json("rebuild", output)

    assert (answer["state"], answer["ok"]) == ("completed", 12 * CHUNK)
    check_retried(output, before, inodes)
    assert status(fragile, job_id).generation == 1
    assert [event["generation"] for event in job_events(fragile, job_id)] == ["1"]


def exported_batch(cluster: Cluster, job_id: str, to: Path) -> dict[str, Any]:
    assert cluster.run("export", job_id, "--layout", "openai-batch", "--to", to).returncode == 0
    batch: dict[str, Any] = json.loads((to / "batch.json").read_text())
    return batch


def test_a_cancelled_job_resumes_where_it_was(fragile: Cluster, tmp_path: Path, site: HttpSite) -> None:
    folder = fragile.folder / tmp_path.name
    source = write_list(folder, site, tmp_path / "site", chunks=12, sick_chunks=set(range(4, 12)))
    output = folder / "out"
    site.heal(0)
    arguments = ("embed", source, "--model", "demo", "--output", output, "--chunk-size", CHUNK)
    job_id = fragile.run_json(*arguments, "--no-wait")["job_id"]
    wait_until(lambda: len(inodes_of(output)) == 4, "four chunks are done")
    assert fragile.run("cancel", job_id).returncode == 0
    assert exported_batch(fragile, job_id, folder / "cancelled")["status"] == "cancelled"
    done = inodes_of(output)
    site.heal()

    answer = fragile.run_json("retry", job_id)

    assert (answer["state"], answer["ok"]) == ("completed", 12 * CHUNK)
    assert exported_batch(fragile, job_id, folder / "completed")["status"] == "completed"
    assert [row["item_index"] for row in rows(output)] == list(range(12 * CHUNK))
    assert done.items() <= inodes_of(output).items()
    events = [(event["generation"], event["state"]) for event in job_events(fragile, job_id)]
    assert events == [("0", "cancelled"), ("1", "completed")]


def test_a_paused_job_hands_out_nothing_until_it_is_resumed(
    fragile: Cluster, tmp_path: Path, site: HttpSite
) -> None:
    folder = fragile.folder / tmp_path.name
    source = write_list(folder, site, tmp_path / "site", chunks=20, sick_chunks=set(range(20)))
    output = folder / "out"
    site.heal(0)
    arguments = ("embed", source, "--model", "demo", "--output", output, "--chunk-size", CHUNK)
    job_id = fragile.run_json(*arguments, "--no-wait")["job_id"]
    wait_until(lambda: status(fragile, job_id).leased_chunks > 0, "some chunks are under way")

    assert fragile.run("pause", job_id).returncode == 0
    site.heal()
    wait_until(lambda: status(fragile, job_id).leased_chunks == 0, "what was under way is done")

    paused = status(fragile, job_id)
    assert (paused.state, paused.reason) == ("paused", "paused by request")
    assert 0 < paused.done_chunks == len(inodes_of(output)) < 20
    assert fragile.run("resume", job_id).returncode == 0
    assert fragile.run_json("watch", job_id)["ok"] == 20 * CHUNK


def test_only_what_was_asked_for_is_run_again(fragile: Cluster, tmp_path: Path, site: HttpSite) -> None:
    folder = fragile.folder / tmp_path.name
    source = write_list(folder, site, tmp_path / "site", chunks=1, sick_chunks={0})
    source.write_text(source.read_text() + f"gone,{site.url('/status/404')},x\n")
    output = folder / "out"
    arguments = ("embed", source, "--model", "demo", "--output", output)
    job_id = fragile.run_json(*arguments, expect=3)["job_id"]
    site.heal()
    nothing = fragile.run("retry", job_id, "--codes", "timeout")
    assert nothing.returncode == 3
    assert "no failed rows with timeout" in nothing.stderr
    assert "unknown error code 'tiemout'" in fragile.run("retry", job_id, "--codes", "tiemout").stderr

    answer = fragile.run_json("retry", job_id, "--codes", "server_error, timeout", expect=3)

    assert (answer["state"], answer["failed"]) == ("completed_with_errors", 1)
    assert [row["error_code"] for row in rows(output)] == [None] * CHUNK + ["not_found"]
    assert site.requests["/status/404"] == 1
