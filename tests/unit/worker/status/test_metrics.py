"""What a worker tells Prometheus, and that documents, dashboard and alerts speak of nothing else."""

from __future__ import annotations

import re
import shutil
import subprocess
from dataclasses import replace
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from promql_parser import MatchOp

from clipfleet.contract.jobs import ErrorCode, JobState, Lane, Precision
from clipfleet.contract.parts import PartCounts
from clipfleet.ledger.jobs import Backlog, Lease, Ledger
from clipfleet.ledger.values import LaneBacklog
from clipfleet_worker.chunk.claims import Claims
from clipfleet_worker.chunk.endings import Endings
from clipfleet_worker.chunk.leases import LeaseKeeper
from clipfleet_worker.chunk.meter import StepsBusy
from clipfleet_worker.chunk.tally import CHUNK_SECONDS, ChunkEnd, ChunkTally
from clipfleet_worker.encode.backends.certificate import Certificate, Way
from clipfleet_worker.encode.batcher import BatchTotals
from clipfleet_worker.process.counts import Busy, CacheCounts
from clipfleet_worker.process.drain import Drain, Drainable
from clipfleet_worker.process.reconciler import Reachability
from clipfleet_worker.process.watchdog import Watchdog
from clipfleet_worker.status.health import Health
from clipfleet_worker.status.metrics import FamiliesCollector, metrics_page
from clipfleet_worker.status.metrics.ledger import LEDGER_FAMILIES
from clipfleet_worker.status.metrics.process import WORKER_FAMILIES, WorkerReadings
from tests.conftest import service_is_missing
from tests.support.documents import ROOT, table
from tests.support.doubles import Clock
from tests.support.metrics_page import (
    ALERTS,
    DASHBOARD,
    OF_PROMETHEUS,
    Values,
    alerts,
    all_expressions,
    metric_values,
    selectors,
)

FAMILIES = (*WORKER_FAMILIES, *LEDGER_FAMILIES)
OF_THE_SCRAPE = {"instance", "job"}  # labels that Prometheus adds
BACKLOG = Backlog(
    lanes={lane: LaneBacklog(queued_chunks=3, open_items=70) for lane in Lane},
    jobs=dict.fromkeys(JobState, 0) | {JobState.RUNNING: 2},
    oldest_due_seconds=1.5,
    outage_seconds=0.0,
    jobs_left_out=0,
)


PLAIN = Way("plain", 0.99962, 27_900.0)
GRAPH = Way("graph", 0.2, 40_000.0, refused="worst cosine 0.20000, not 0.997")
MODEL = SimpleNamespace(name="m", precision=Precision.BF16, certificate=Certificate(256, (PLAIN, GRAPH)))


class Bench:
    """A worker as its metrics see it."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.watchdog = Watchdog(monotonic=self.clock, exit_process=lambda _: None)
        self.keeper = LeaseKeeper(cast(Ledger, None), 30)
        self.tally = ChunkTally()
        self.redis = Reachability(20, self.clock)
        self.redis.note(True)
        self.batcher = SimpleNamespace(totals=BatchTotals(2, 40), batch_size=32)
        self.models, self.texts = CacheCounts(), CacheCounts()
        self.drain = Drain(cast(Drainable, None), 25, exit_process=lambda _: None, monotonic=self.clock)
        self.backlog: Backlog | None = BACKLOG
        claims = SimpleNamespace(held=lambda: ["a chunk"], oldest_held_seconds=9.0)
        health = Health(
            worker_id="me",
            watchdog=self.watchdog,
            keeper=self.keeper,
            claims=cast(Claims, claims),
            endings=cast(Endings, SimpleNamespace(completed=7, tally=self.tally)),
            redis=self.redis,
            has_started=lambda: True,
            is_draining=lambda: self.drain.has_begun,
            hints_refused=lambda: {"no JSON": 3},
            monotonic=self.clock,
        )
        self.readings = WorkerReadings(
            health=health,
            open_items=cast(Any, SimpleNamespace(count=512, limit=4096)),
            waiting_bytes=cast(Any, SimpleNamespace(count=1000, limit=1 << 30)),
            batcher=cast(Any, self.batcher),
            steps_busy=lambda: StepsBusy(Busy(6.0, 20.0), Busy(3.5, 10.0)),
            models=cast(Any, SimpleNamespace(in_memory=lambda: [MODEL])),
            canary_watch=cast(Any, SimpleNamespace(mismatches=2)),
            caches={"models": self.models, "text_matrices": self.texts},
            reconciler=cast(Any, SimpleNamespace(redis=self.redis, expired_leases=4)),
            drain=self.drain,
            drain_seconds=25.0,
            memory_guard=cast(Any, SimpleNamespace(used_bytes=900, limit_bytes=1000)),
            device="cpu",
            device_bytes=lambda: {},
            monotonic=self.clock,
        )

    def values(self) -> dict[str, Values]:
        page = metrics_page(
            FamiliesCollector(WORKER_FAMILIES, lambda: self.readings),
            FamiliesCollector(LEDGER_FAMILIES, lambda: self.backlog),
        )()
        assert page.status == 200
        return metric_values(page.body.decode())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def test_items_are_counted_by_outcome_and_code(bench: Bench) -> None:
    bench.tally.done(PartCounts(8, 2, {"timeout": 2}), {"fetch": 1.5}, 4.0)
    bench.tally.done(PartCounts(5, 1, {"not_found": 1}), {"fetch": 0.5, "write": 0.25}, 4000.0)

    values = bench.values()

    items = values["clipfleet_items_total"]
    assert items[("code", ""), ("outcome", "ok")] == 13
    assert items[("code", "timeout"), ("outcome", "failed")] == 2
    assert items[("code", "not_found"), ("outcome", "failed")] == 1
    assert len(items) == 1 + len(ErrorCode)
    assert sum(items.values()) == 16
    assert values["clipfleet_work_seconds_total"] == {(("step", "fetch"),): 2, (("step", "write"),): 0.25}


def test_chunks_are_counted_by_their_end_from_the_start(bench: Bench) -> None:
    assert set(bench.values()["clipfleet_chunks_total"].values()) == {0}

    for end in ChunkEnd:
        if end is not ChunkEnd.DONE:
            bench.tally.ended(end, 1.0)
    bench.tally.done(PartCounts(1, 0, {}), {}, 2.0)

    assert bench.values()["clipfleet_chunks_total"] == {(("end", end),): 1 for end in ChunkEnd}


def test_the_lives_of_chunks_are_a_histogram(bench: Bench) -> None:
    for seconds in (0.5, 1.0, 2.0, 10_000.0):
        bench.tally.ended(ChunkEnd.WAITED, seconds)

    values = bench.values()

    buckets = {
        dict(labels)["le"]: count for labels, count in values["clipfleet_chunk_seconds_bucket"].items()
    }
    assert (buckets["1.0"], buckets["3.0"], buckets["1800.0"], buckets["+Inf"]) == (2, 3, 3, 4)
    assert len(buckets) == len(CHUNK_SECONDS) + 1
    assert values["clipfleet_chunk_seconds_count"] == {(): 4}
    assert values["clipfleet_chunk_seconds_sum"] == {(): 10_003.5}


def test_batches_caches_room_and_memory(bench: Bench) -> None:
    bench.models.note(hit=True)
    bench.models.note(hit=True)
    bench.texts.note(hit=False)

    values = bench.values()

    assert values["clipfleet_batches_total"] == {(): 2}
    assert values["clipfleet_batched_items_total"] == {(): 40}
    assert values["clipfleet_batch_size"] == {(): 32}
    assert values["clipfleet_busy_seconds_total"] == {(("step", "decode"),): 6, (("step", "encode"),): 3.5}
    assert values["clipfleet_capacity_seconds_total"] == {
        (("step", "decode"),): 20,
        (("step", "encode"),): 10,
    }
    requests = values["clipfleet_cache_requests_total"]
    assert requests[("cache", "models"), ("result", "hit")] == 2
    assert requests[("cache", "text_matrices"), ("result", "miss")] == 1
    assert (values["clipfleet_open_items"], values["clipfleet_open_items_limit"]) == ({(): 512}, {(): 4096})
    assert values["clipfleet_memory_bytes"] == {(): 900}
    assert values["clipfleet_oldest_held_seconds"] == {(): 9}


def test_loops_tell_how_long_they_have_been_at_it_and_how_long_they_may(bench: Bench) -> None:
    bench.watchdog.pulse("batcher").enter("encode", 10)
    bench.watchdog.pulse("puller").rest("pull")
    with (
        bench.watchdog.activity("decode", "read an image", 20),
        bench.keeper.hold(Lease("job", "4", "token")) as lease,
    ):
        bench.watchdog.watch(bench.keeper.phases)
        bench.clock.now += 4
        with bench.watchdog.activity("decode", "read an image", 20):
            bench.clock.now += 1
            values = bench.values()
            lease.enter("write", 0)
            assert bench.values()["clipfleet_hanging_chunks"] == {(): 1}

    # Chunks are no loops: their names are as many as there are chunks.
    assert values["clipfleet_loop_phase_seconds"] == {
        (("loop", "batcher"),): 5,
        (("loop", "decode"),): 5,
        (("loop", "puller"),): 0,
    }
    assert values["clipfleet_loop_limit_ratio"][(("loop", "batcher"),)] == 0.5
    assert values["clipfleet_loop_limit_ratio"][(("loop", "decode"),)] == 0.25
    assert values["clipfleet_loop_limit_ratio"][(("loop", "puller"),)] == 0


def test_drain_redis_and_what_was_refused(bench: Bench) -> None:
    assert bench.values()["clipfleet_drain_seconds"] == {(): 0}

    bench.drain.begin()
    bench.clock.now += 3
    bench.drain.begin()  # a second signal begins no second drain
    bench.redis.note(False)
    values = bench.values()

    assert values["clipfleet_drain_seconds"] == {(): 3}
    assert values["clipfleet_drain_limit_seconds"] == {(): 25}
    assert (values["clipfleet_ready"], values["clipfleet_redis_up"]) == ({(): 0}, {(): 0})
    assert values["clipfleet_expired_leases_total"] == {(): 4}
    assert values["clipfleet_refused_hints_total"] == {(("reason", "no JSON"),): 3}


def test_the_ledgers_figures_are_there_while_redis_answers(bench: Bench) -> None:
    values = bench.values()

    assert values["clipfleet_ledger_chunks"][("lane", "high"), ("state", "queued")] == 3
    assert values["clipfleet_ledger_open_items"][(("lane", "bulk"),)] == 70
    assert values["clipfleet_ledger_jobs"][(("state", "running"),)] == 2
    assert len(values["clipfleet_ledger_jobs"]) == len(JobState)
    assert values["clipfleet_ledger_oldest_due_seconds"] == {(): 1.5}

    bench.backlog = None
    assert not [name for name in bench.values() if name.startswith("clipfleet_ledger_")]


def test_the_device_tells_its_memory_where_it_is_a_gpu(bench: Bench) -> None:
    assert bench.values()["clipfleet_device_memory_bytes"] == {}

    bench.readings = replace(bench.readings, device_bytes=lambda: {"allocated": 5, "total": 9})
    assert bench.values()["clipfleet_device_memory_bytes"] == {
        (("kind", "allocated"),): 5,
        (("kind", "total"),): 9,
    }


def test_each_way_of_running_a_model_tells_what_it_has_proven(bench: Bench) -> None:
    labels = {way: (("model", "m"), ("precision", "bf16"), ("way", way)) for way in ("plain", "graph")}
    values = bench.values()

    assert values["clipfleet_model_worst_cosine"] == {labels["plain"]: 0.99962, labels["graph"]: 0.2}
    assert values["clipfleet_model_images_per_second"] == {labels["plain"]: 27_900, labels["graph"]: 0}
    assert values["clipfleet_canary_mismatches_total"] == {(): 2}


def test_what_the_system_tells_of_the_process_is_there(bench: Bench) -> None:
    values = bench.values()

    assert values["process_cpu_seconds_total"][()] > 0
    assert values["process_resident_memory_bytes"][()] > 0


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_names_keep_to_prometheus_conventions(family: Any) -> None:
    assert re.fullmatch(r"clipfleet(_[a-z]+)+", family.name)
    assert family.name.endswith("_total") == (family.kind == "counter")
    assert not re.search(r"_(ms|milliseconds|minutes|kb|mb|percent)(_|$)", family.name)
    assert [one.name for one in FAMILIES].count(family.name) == 1


def test_the_documented_table_is_that_of_the_code() -> None:
    rows = table(ROOT / "docs" / "metrics.md", "metric", "kind", "labels", "meaning")
    assert rows == [
        [f"`{one.name}`", one.kind, ", ".join(f"`{label}`" for label in one.labels), one.meaning]
        for one in FAMILIES
    ]


@pytest.mark.parametrize(("what", "expression"), all_expressions().items(), ids=lambda value: value[:40])
def test_dashboard_and_alerts_ask_for_what_there_is(bench: Bench, what: str, expression: str) -> None:
    values = bench.values()
    labels = {one.name: set(one.labels) | OF_THE_SCRAPE for one in FAMILIES}
    labels["clipfleet_chunk_seconds_bucket"] = {"le"} | OF_THE_SCRAPE

    for selector in selectors(expression):
        if selector.name in OF_PROMETHEUS:
            continue
        name = str(selector.name)
        assert name in values, what
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels.get(name, OF_THE_SCRAPE), what
            found = {dict(sample).get(matcher.name) for sample in values[name]}
            if matcher.op == MatchOp.Equal and matcher.name not in OF_THE_SCRAPE:
                assert matcher.value in found, what


def test_the_reader_of_expressions_finds_every_metric() -> None:
    expression = (
        'sum by (a) (rate(b_total{c="d"}[5m] offset 1h)) / on(e) (f > bool 1) unless -g '
        "or max_over_time((h + 1)[1h:5m]) or topk(3, i) or quantile(scalar(j), k)"
    )
    assert {str(one.name) for one in selectors(expression)} == {"b_total", "f", "g", "h", "i", "j", "k"}


def test_every_alert_has_its_section_in_the_runbook() -> None:
    sections = re.findall(r"^## (.*)$", (ROOT / "docs" / "operations.md").read_text(), flags=re.MULTILINE)
    anchors = {f"docs/operations.md#{title.lower().replace(' ', '-')}" for title in sections}
    rules = alerts()
    assert len(rules) > 10
    for rule in rules:
        assert rule["annotations"]["runbook"] in anchors
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_the_dashboard_can_be_imported_and_provisioned() -> None:
    dashboard = yaml.safe_load(DASHBOARD.read_text())  # JSON is YAML
    assert dashboard["uid"] == "clipfleet"
    identities = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(identities)) == len(identities)
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "instance"}
    for kind in ("datasources", "dashboards"):
        (file,) = (DASHBOARD.parent / "provisioning" / kind).glob("*.yml")
        assert yaml.safe_load(file.read_text())["apiVersion"] == 1


@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "rules", "alerts.yml"),
        ("check", "config", "prometheus.yml"),
        ("test", "rules", "alerts_test.yml"),
    ],
    ids=" ".join,
)
def test_promtool_accepts_the_rules_and_sees_alerts_fire(arguments: tuple[str, ...]) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        service_is_missing("promtool is not installed (Debian: prometheus)")
    result = subprocess.run(
        [promtool, *arguments], cwd=ALERTS.parent, capture_output=True, text=True, timeout=60, check=False
    )
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SUCCESS" in result.stdout
