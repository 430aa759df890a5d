"""Deciding again by another policy: a real server, a real worker, the demo model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from clipfleet.client import JobOptions
from clipfleet.contract.columns import VectorType
from clipfleet.contract.jobs import Precision
from clipfleet.contract.webhooks import EventType
from clipfleet.errors import UsageError
from clipfleet.ledger import keys
from clipfleet.ledger.events.outbox import Outbox
from clipfleet.redis.connection import connect
from clipfleet.replay.replaying import MOST_SHOWN
from clipfleet_worker.cli.demo import samples
from tests.support.cluster import Cluster
from tests.support.demo_model import DEMO
from tests.support.images import write_images
from tests.support.replays import (
    changes_between,
    listed_changes,
    mixed_vectors,
    place_output,
    place_store,
    require_judged_changes,
    write_policies,
)
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import WebhookReceiver

WAIT = 300
ITEMS = 61  # the shipped images, and one that is broken
SAMPLES = DEMO.parent / "samples"
VECTORS, FAILED = 3000, (7, 1234)


@pytest.fixture
def policies(folder: Path) -> tuple[Path, Path, Path]:
    return write_policies(folder)


def moderated(cluster: Cluster, folder: Path, policy: Path, name: str, **options: Any) -> Path:
    """The output of a moderation job over some images, one of which is broken."""
    images = folder / "images"
    if not images.exists():
        images.mkdir()
        for sample in samples():
            shutil.copy(SAMPLES / sample.file, images)
        (images / "broken.png").write_bytes(b"<html>")
    asked = JobOptions(output=folder / name, precision=Precision.FP32, **options)
    cluster.client.moderate(images, policy, options=asked).wait(WAIT)
    return folder / name


def decisions(cluster: Cluster, place: Path) -> list[str]:
    return [row["decision"] for row in cluster.rows(place)]


@pytest.fixture
def receiver() -> Iterator[WebhookReceiver]:
    with WebhookReceiver() as running:
        yield running


@pytest.fixture
def outbox(cluster: Cluster) -> Iterator[Outbox]:
    """Without endpoints afterwards."""
    outbox = Outbox(cluster.server.url)
    yield outbox
    for endpoint in outbox.endpoints():
        outbox.remove_endpoint(endpoint.endpoint_id)
    outbox.close()


@pytest.fixture(scope="module")
def fingerprint(cluster: Cluster) -> str:
    """Of the demo model in single precision."""
    options = JobOptions(model="demo", precision=Precision.FP32)
    job = cluster.client.embed_text(["a dog"], options=options)
    job.wait(WAIT)
    return str(next(job.results())["model_fingerprint"])


class TestStoredVectors:
    """Exactly those items are listed that an independent computation finds."""

    def test_of_an_output(
        self, cluster: Cluster, folder: Path, policies: tuple[Path, Path, Path], fingerprint: str
    ) -> None:
        old, _, new = policies
        vectors = mixed_vectors(VECTORS)
        place_output(folder / "vectors", vectors, fingerprint, FAILED)

        found = cluster.client.replay(
            folder / "vectors", new, against=old, changes=folder / "changes.parquet"
        )

        expected = require_judged_changes(folder / "changes.parquet", vectors, old, new, FAILED)
        assert len({(before, after) for _, before, after in expected}) >= 5
        assert (found.items, found.changed, found.failed) == (VECTORS, len(expected), {"not_found": 2})
        assert not found.from_scores
        assert len(found.shown) == min(len(expected), MOST_SHOWN)

    def test_of_a_store(
        self, cluster: Cluster, folder: Path, policies: tuple[Path, Path, Path], fingerprint: str
    ) -> None:
        pytest.importorskip("lance")
        old, new, _ = policies
        vectors, present = mixed_vectors(VECTORS), [item for item in range(VECTORS) if item not in FAILED]
        place_store(folder / "store", vectors, fingerprint, gone=FAILED)

        found = cluster.client.replay(folder / "store", new, against=old, changes=folder / "changes.parquet")

        assert require_judged_changes(folder / "changes.parquet", vectors[present], old, new)
        assert (found.items, found.failed) == (len(present), {})


class TestAnOutputOfAModerationJob:
    def test_other_thresholds_are_decided_from_its_scores(
        self, cluster: Cluster, folder: Path, policies: tuple[Path, Path, Path]
    ) -> None:
        old, new, _ = policies
        before, after = (moderated(cluster, folder, one, one.stem) for one in (old, new))

        found = cluster.client.replay(before, new, changes=folder / "changes.parquet")

        assert found.from_scores
        expected = changes_between(decisions(cluster, before), decisions(cluster, after))
        assert expected
        assert listed_changes(folder / "changes.parquet") == expected
        ids = {row["item_index"]: row["decision_id"] for row in cluster.rows(before)}
        for row in found.shown:
            assert row["decision_id"] == ids[row["item_index"]]
        assert cluster.client.replay(before, old).changed == 0

    def test_other_prompts_are_decided_from_its_vectors(
        self, cluster: Cluster, folder: Path, policies: tuple[Path, Path, Path]
    ) -> None:
        old, _, new = policies
        kept = {"store_embeddings": True, "vector_type": VectorType.FLOAT32}
        before, after = (moderated(cluster, folder, one, one.stem, **kept) for one in (old, new))

        found = cluster.client.replay(before, new, changes=folder / "changes.parquet")

        assert (found.from_scores, found.decided_otherwise) == (False, 0)
        expected = changes_between(decisions(cluster, before), decisions(cluster, after))
        assert expected
        assert listed_changes(folder / "changes.parquet") == expected
        assert found.failed == {"not_an_image": 1}
        assert found.counts["undecided", "undecided"] == 1

    def test_other_prompts_need_vectors(
        self, cluster: Cluster, folder: Path, policies: tuple[Path, Path, Path]
    ) -> None:
        old, _, new = policies
        before = moderated(cluster, folder, old, "before")

        with pytest.raises(UsageError, match=r"label set 'things' had no label 'kitten'.*store_embeddings"):
            cluster.client.replay(before, new)

    def test_its_rows_in_redis(
        self, cluster: Cluster, folder: Path, policies: tuple[Path, Path, Path]
    ) -> None:
        old, other, reworded = policies
        write_images(folder / "images", 3)
        job = cluster.client.moderate(folder / "images", old, options=JobOptions(store_embeddings=True))
        job.wait(WAIT)

        assert cluster.client.replay(job, other).from_scores
        assert not cluster.client.replay(job, reworded).from_scores


def test_the_command(cluster: Cluster, folder: Path, policies: tuple[Path, Path, Path]) -> None:
    old, _, new = policies
    before = moderated(cluster, folder, old, "before", store_embeddings=True)
    asked = ("moderate", "--replay", before, "--policy", new)

    answer = cluster.run_json(*asked, "--changes", folder / "changes.jsonl")

    lines = [json.loads(line) for line in (folder / "changes.jsonl").read_text().splitlines()]
    assert lines == sorted(answer["changes"], key=lambda row: row["item_index"])
    assert (answer["items"], answer["changed"]) == (ITEMS, len(lines))
    assert answer["without_vector"] == {"not_an_image": 1}
    said = cluster.run(*asked, "--against", new)
    assert (said.returncode, f"0 items of {ITEMS} change side" in said.stdout) == (0, True)
    for mistake, words in (
        (("--changes", "changes.txt"), "changes.txt: changes are written as .jsonl, .csv or .parquet"),
        (("--on-finished", "a.b"), "--on-finished is not for a replay"),
        (("--no-wait",), "--no-wait is for one job"),
    ):
        refused = cluster.run(*asked, *mistake)
        assert (refused.returncode, refused.stderr.startswith(f"error: {words}")) == (2, True), refused.stderr


class TestNothingIsLeft:
    def test_no_decision_is_recorded_or_announced(
        self,
        cluster: Cluster,
        folder: Path,
        policies: tuple[Path, Path, Path],
        receiver: WebhookReceiver,
        outbox: Outbox,
    ) -> None:
        # Given a receiver of all events, which has those of a moderation job
        old, _, new = policies
        cluster.run_json("webhooks", "add", receiver.url("/ok"))
        before = moderated(cluster, folder, old, "before", store_embeddings=True)
        records = sorted((before / "_decisions").rglob("*.json*"))
        wait_until(lambda: len(receiver.ids("/ok")) == ITEMS + 1, "decisions and the end have arrived")
        with connect(cluster.server.url) as client:
            streamed = client.xinfo_stream(keys.DECISIONS)["last-generated-id"]

            # When it is replayed
            found = cluster.client.replay(before, new, options=JobOptions(output=folder / "again"))

            # Then nothing follows, in the stream, at the receiver, or in a log
            assert client.xinfo_stream(keys.DECISIONS)["last-generated-id"] == streamed
        outbox.publish("evt-last", EventType.DECISION_FLAG, "{}")
        wait_until(lambda: "evt-last" in receiver.ids("/ok"), "a later event has arrived")
        wait_until(lambda: not any(outbox.backlog().values()), "nothing is left to deliver")
        assert len(receiver.ids("/ok")) == ITEMS + 2
        assert sorted((before / "_decisions").rglob("*.json*")) == records
        assert found.outputs is not None
        for output in map(Path, found.outputs):
            assert not (output / "_decisions").exists()
            row = cluster.rows(output)[0]
            assert row["decision"] and row["head_spam_scores"] and row["labels_things"]

    def test_rows_in_redis_expire_soon(
        self, cluster: Cluster, folder: Path, policies: tuple[Path, Path, Path]
    ) -> None:
        old, _, new = policies
        before = moderated(cluster, folder, old, "before", store_embeddings=True)
        jobs = []

        def wait(job: Any) -> Any:
            jobs.append(job)
            return job.wait(WAIT)

        cluster.client.replay(before, new, wait=wait)

        with connect(cluster.server.url) as client:
            for job in jobs:
                assert 0 < client.ttl(keys.job(job.job_id, keys.ROWS)) <= 3600
        assert cluster.client.last().job_id not in {job.job_id for job in jobs}

    def test_an_interrupted_replay_cancels_its_jobs(
        self, cluster: Cluster, folder: Path, policies: tuple[Path, Path, Path]
    ) -> None:
        old, _, new = policies
        before = moderated(cluster, folder, old, "before", store_embeddings=True)
        jobs = []

        def interrupted(job: Any) -> Any:
            job.pause()
            jobs.append(job)
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            cluster.client.replay(before, new, wait=interrupted)

        assert all(job.status().state.is_final for job in jobs)
