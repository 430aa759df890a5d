"""Moderation with the real command line, real workers and the demo model, from a policy to its proof."""

from __future__ import annotations

import csv
import json
import shutil
from collections import Counter
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
import redis

from clipfleet.client import Client
from clipfleet.contract.webhooks import EventType
from clipfleet.ledger.events.outbox import Outbox
from clipfleet.moderation.verdicts import Outcome, ReviewerVerdict, add_verdict
from clipfleet.outputs import open_output
from tests.support.cluster import Cluster
from tests.support.waiting import wait_until
from tests.support.webhook_receiver import WebhookReceiver

POLICY = {
    "name": "uploads",
    "version": "1",
    "model": "demo",
    "label_sets": {"things": {"kind": "multi", "labels": ["cigarette", "beer mug", "cherries"]}},
    "rules": [
        {"name": "smoking", "when": {"label": "cigarette"}, "action": "flag"},
        {"name": "drinking", "when": {"label": "beer mug", "at_least": 0.6}, "action": "review"},
    ],
}
SHOWN = ("cigarette.png", "beer-mug.png", "cherries.png")
DECISIONS = {"cigarette.png": "flag", "beer-mug.png": "review", "cherries.png": "allow"}


@pytest.fixture
def uploads(folder: Path) -> Path:
    """Three images, and what fails in several ways, as a list."""
    images = folder / "images"
    images.mkdir()
    for name in SHOWN:
        shutil.copy(str(files("clipfleet_worker") / "samples" / name), images / name)
    (images / "broken.png").write_bytes((images / "cherries.png").read_bytes()[:300])
    (images / "text.png").write_text("no image")
    bad = ["http://127.0.0.1:1/closed.png", "ftp://example.org/a.png", str(images / "missing.png")]
    listed = [*(str(path) for path in sorted(images.iterdir())), *bad]
    (folder / "uploads.txt").write_text("\n".join(listed) + "\n")
    return folder / "uploads.txt"


@pytest.fixture
def policy(folder: Path) -> Path:
    path = folder / "policy.json"
    path.write_text(json.dumps(POLICY))
    return path


def by_name(rows: list[dict[str, Any]]) -> dict[str, dict[str, Any]]:
    return {Path(row["uri"]).name: row for row in rows}


def records(place: Path) -> list[dict[str, Any]]:
    paths = sorted(place.glob("_decisions/records/*/*.jsonl"))
    return [json.loads(line) for path in paths for line in path.read_text().splitlines()]


def test_what_cannot_be_judged_is_undecided_everywhere(
    cluster: Cluster, client: Client, folder: Path, uploads: Path, policy: Path
) -> None:
    with_webhooks = Outbox(cluster.server.url)
    for endpoint in with_webhooks.endpoints():
        with_webhooks.remove_endpoint(endpoint.endpoint_id)
    cluster.run("tail", "--no-follow", "--group", "judge", "--json")  # the group begins here
    done = cluster.run_json("moderate", uploads, "--policy", policy, "--output", folder / "out", expect=3)

    expected = {
        **DECISIONS,
        **dict.fromkeys(("broken.png", "text.png", "closed.png", "a.png", "missing.png"), "undecided"),
    }
    assert done["decisions"] == {"flag": 1, "review": 1, "allow": 1, "undecided": 5}
    rows = by_name([row for row in client.job(done["job_id"]).results()])
    assert {name: row["decision"] for name, row in rows.items()} == expected
    recorded = {one["decision_id"]: one for one in records(folder / "out")}
    streamed = [
        json.loads(line)
        for line in cluster.run("tail", "--no-follow", "--group", "judge", "--json").stdout.splitlines()
    ]
    assert len(recorded) == len(rows) == len(streamed)
    for one in (*recorded.values(), *streamed):
        name = Path(one["uri"]).name
        assert (one["status"], one["decision_id"]) == (expected[name], rows[name]["decision_id"])
        assert (one["error"] is None) == (one["status"] != "undecided")
    with_webhooks.close()


@pytest.mark.parametrize("part_format", ["parquet", "jsonl"])
def test_a_retry_decides_what_was_undecided(
    cluster: Cluster, client: Client, folder: Path, policy: Path, part_format: str
) -> None:
    images = folder / "images"
    images.mkdir()
    for name in SHOWN:
        shutil.copy(str(files("clipfleet_worker") / "samples" / name), images / name)
    (images / SHOWN[0]).write_text("no image")
    done = cluster.run_json(
        "moderate", images, "--policy", policy, "-o", folder / "out", "--format", part_format, expect=3
    )
    before = by_name(list(client.job(done["job_id"]).results()))
    shutil.copy(str(files("clipfleet_worker") / "samples" / SHOWN[0]), images / SHOWN[0])

    cluster.run_json("retry", folder / "out")

    after = by_name(list(client.job(done["job_id"]).results()))
    assert {name: row["decision"] for name, row in after.items()} == DECISIONS
    assert before[SHOWN[0]]["decision"] == "undecided"
    assert after[SHOWN[0]]["decision_id"] == before[SHOWN[0]]["decision_id"].replace("-0-", "-1-", 1)
    assert {name: after[name]["decision_id"] for name in SHOWN[1:]} == {
        name: before[name]["decision_id"] for name in SHOWN[1:]
    }
    explained = cluster.run("explain", before[SHOWN[0]]["decision_id"], folder / "out").stdout
    assert "it could not be judged: not_an_image" in explained, "the first decision stays explained"


def test_a_decision_is_explained_after_redis_has_forgotten_the_job(
    cluster: Cluster, client: Client, folder: Path, uploads: Path, policy: Path
) -> None:
    done = cluster.run_json(
        "moderate",
        uploads,
        "--policy",
        policy,
        "--decisions",
        folder / "log",
        "--keep-decisions",
        "30",
        expect=3,
    )
    rows = by_name(list(client.job(done["job_id"]).results()))
    with redis.Redis.from_url(cluster.server.url) as server:
        server.delete(*server.scan_iter(f"clipfleet:{{{done['job_id']}}}*"))
    (flagged,) = (one for one in records(folder / "log") if one["status"] == "flag")

    found = json.loads(cluster.run("explain", flagged["decision_id"], folder / "log", "--json").stdout)

    assert found["decision_id"] == rows["cigarette.png"]["decision_id"]
    assert found["content_hash"] == rows["cigarette.png"]["content_hash"]
    assert found["reasons"] == rows["cigarette.png"]["decision_reasons"]
    (things,) = found["policy"]["label_sets"]
    assert things["templates"] == ["a photo of a {}"]
    assert things["background"][0] == "a photo"
    assert found["scores"]["things"]["cigarette"] == rows["cigarette.png"]["scores"][0]
    text = cluster.run("explain", flagged["decision_id"], folder / "log").stdout
    assert "smoking: flag, because things/cigarette is 0.9" in text
    assert "drinking did not count: review if things/beer mug >= 0.6" in text
    assert cluster.run_json("prune", folder / "log") == {"record_files": 0, "verdicts": 0}


def test_flags_arrive_signed(
    cluster: Cluster, client: Client, folder: Path, uploads: Path, policy: Path
) -> None:
    outbox = Outbox(cluster.server.url)
    with WebhookReceiver() as receiver:
        added = cluster.run(
            "webhooks", "add", receiver.url("/ok"), "--event", "decision.flag",
            "--event", "decision.undecided", "--policy", "uploads",
        )  # fmt: skip
        cluster.run_json("moderate", uploads, "--policy", policy, expect=3)
        wait_until(lambda: len(receiver.ids("/ok")) == 6, "all events have arrived")
        events = [one.verified(added.stdout.strip()) for one in receiver.requests]
    for endpoint in outbox.endpoints():
        outbox.remove_endpoint(endpoint.endpoint_id)
    outbox.close()
    assert Counter(one["type"] for one in events) == {
        EventType.DECISION_FLAG: 1, EventType.DECISION_UNDECIDED: 5,
    }  # fmt: skip
    (flag,) = (one for one in events if one["type"] == "decision.flag")
    assert flag["id"] == f"evt-{flag['data']['decision_id']}"
    assert flag["data"]["reasons"][0]["rule"] == "smoking"


def test_verdicts_on_real_traffic_certify_a_threshold(cluster: Cluster, folder: Path, policy: Path) -> None:
    """Many small jobs, a sample of their decisions that reviewers judge, its certificate, the next policy."""
    images = folder / "images"
    images.mkdir()
    for number in range(20):
        shutil.copy(str(files("clipfleet_worker") / "samples" / "cigarette.png"), images / f"{number}.png")
    log, labels = folder / "log", folder / "labels.yaml"
    for _ in range(2):
        cluster.run_json("moderate", images, "--policy", policy, "--decisions", log)
    rows = f"{log}@{datetime.now(UTC):%Y-%m-%dT%H:%M:%S.%fZ}"
    promised = {"name": "cigarette", "promise": {"claim": "precision", "value": 0.8}}
    labels.write_text(json.dumps({"kind": "multi", "labels": [promised, "beer mug", "cherries"]}))
    sample, marked = folder / "sample.csv", folder / "marked.csv"
    asked = ("--purpose", "certify", "--label", "cigarette", "--labels", labels, "-n", "30")
    cluster.run("sample", rows, *asked, "-o", sample)
    todo = cluster.run("verdicts", rows, "--place", log, "--sample", sample, "-o", marked)
    assert "0 marks, 30 decisions still to be judged" in todo.stderr
    first, *others = records(log)
    cluster.run("verdict", first["decision_id"], "upheld", "--place", log, "--by", "anna")
    for one in others:
        add_verdict(open_output(str(log)), one, ReviewerVerdict(verdict=Outcome.UPHELD, by="anna"))

    done = cluster.run("verdicts", rows, "--place", log, "--sample", sample, "-o", marked)

    assert "30 marks, 0 decisions still to be judged" in done.stderr
    drawn, judged = (list(csv.DictReader(path.read_text().splitlines())) for path in (sample, marked))
    assert [row["item_index"] for row in judged] == [row["item_index"] for row in drawn]
    assert {(row["verdict"], row["by"], row["purpose"]) for row in judged} == {("yes", "anna", "certify")}
    tested = cluster.run("certify", rows, "--labels", labels, "--marks", marked, "--label", "cigarette")
    assert tested.returncode == 0, tested.stderr + tested.stdout + labels.read_text()
    following = folder / "next.json"
    following.write_text(json.dumps({**POLICY, "label_sets": {"things": {"file": "labels.yaml"}}}))
    assert cluster.run_json("policy", "check", following)["not_certified"] == ["drinking"]
    again = cluster.run_json("moderate", images, "--policy", following, "-o", folder / "out")
    assert again["decisions"]["flag"] == 20
    sources = {one["reasons"][0]["threshold_source"] for one in records(folder / "out")}
    assert sources == {"certified precision >= 0.8 (n=30, k=0, 95 %)"}
