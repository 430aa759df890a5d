"""The metrics of a worker, and that documents, dashboard and alerts use no others."""

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
from clipfleet.ledger.jobs import Backlog, Lease
from clipfleet.ledger.values import LaneBacklog
from clipfleet_worker.chunk.meter import StepsBusy
from clipfleet_worker.chunk.tally import CHUNK_SECONDS, ChunkEnd
from clipfleet_worker.encode.backends.certificate import Certificate, Way
from clipfleet_worker.encode.batcher import BatchTotals
from clipfleet_worker.process.counts import Busy, CacheCounts
from clipfleet_worker.process.drain import Drain, Drainable
from clipfleet_worker.status.metrics import FamiliesCollector, metrics_page
from clipfleet_worker.status.metrics.ledger import LEDGER_FAMILIES
from clipfleet_worker.status.metrics.process import WORKER_FAMILIES, WorkerReadings
from clipfleet_worker.webhooks.courier import Outcome
from tests.conftest import service_is_missing
from tests.support import metrics_page as pages
from tests.support.documents import ROOT, table
from tests.support.metrics_page import Values, selectors
from tests.unit.worker.status.test_health import Bench as HealthBench

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


class Bench(HealthBench):
    """A worker as its metrics see it."""

    def __init__(self) -> None:
        super().__init__()
        self.models, self.texts = CacheCounts(), CacheCounts()
        self.drain = Drain(cast(Drainable, None), 25, exit_process=lambda _: None, monotonic=self.clock)
        self.backlog: Backlog | None = BACKLOG
        parts: dict[str, Any] = {
            "open_items": SimpleNamespace(count=512, limit=4096),
            "waiting_bytes": SimpleNamespace(count=1000, limit=1 << 30),
            "batcher": SimpleNamespace(totals=BatchTotals(2, 40), batch_size=32),
            "models": SimpleNamespace(in_memory=lambda: [MODEL]),
            "canary_watch": SimpleNamespace(mismatches=2),
            "reconciler": SimpleNamespace(redis=self.redis, expired_leases=4),
            "memory_guard": SimpleNamespace(used_bytes=900, limit_bytes=1000),
        }
        self.readings = WorkerReadings(
            health=self.health, steps_busy=lambda: StepsBusy(Busy(6.0, 20.0), Busy(3.5, 10.0)),
            caches={"models": self.models, "text_matrices": self.texts}, drain=self.drain, drain_seconds=25.0,
            webhook_outcomes={Outcome.RETRIED: 3},
            device="cpu", device_bytes=lambda: {}, monotonic=self.clock, **parts,
        )  # fmt: skip

    def is_draining(self) -> bool:
        return self.drain.has_begun

    def values(self) -> dict[str, Values]:
        page = metrics_page(
            FamiliesCollector(WORKER_FAMILIES, lambda: self.readings),
            FamiliesCollector(LEDGER_FAMILIES, lambda: self.backlog),
        )()
        assert page.status == 200
        return pages.metric_values(page.body.decode())


@pytest.fixture
def bench() -> Bench:
    return Bench()


def by(**labels: str) -> tuple[tuple[str, str], ...]:
    return tuple(sorted(labels.items()))


def test_chunks_and_their_items_are_counted_from_the_start(bench: Bench) -> None:
    assert set(bench.values()["clipfleet_chunks_total"].values()) == {0}

    bench.tally.done(PartCounts(8, 2, {"timeout": 2}), {"fetch": 1.5}, 0.5)
    bench.tally.done(PartCounts(5, 1, {"not_found": 1}), {"fetch": 0.5, "write": 0.25}, 2.0)
    for end in ChunkEnd:
        bench.tally.ended(end, 10_000.0)
    values = bench.values()

    assert values["clipfleet_chunks_total"] == {by(end=end): 1 + 2 * (end == "done") for end in ChunkEnd}
    items = values["clipfleet_items_total"]
    assert len(items) == 1 + len(ErrorCode)
    assert {labels: count for labels, count in items.items() if count} == {
        by(outcome="ok", code=""): 13,
        by(outcome="failed", code="timeout"): 2,
        by(outcome="failed", code="not_found"): 1,
    }
    assert values["clipfleet_work_seconds_total"] == {by(step="fetch"): 2, by(step="write"): 0.25}
    buckets = values["clipfleet_chunk_seconds_bucket"]
    assert [buckets[by(le=le)] for le in ("1.0", "3.0", "1800.0", "+Inf")] == [1, 2, 2, 2 + len(ChunkEnd)]
    assert len(buckets) == len(CHUNK_SECONDS) + 1
    assert values["clipfleet_chunk_seconds_count"] == {(): 2 + len(ChunkEnd)}
    assert values["clipfleet_chunk_seconds_sum"] == {(): 2.5 + 10_000 * len(ChunkEnd)}


PLAIN_WAY, GRAPH_WAY = (by(model="m", precision="bf16", way=way) for way in ("plain", "graph"))
READ: dict[str, Values] = {
    "clipfleet_batches_total": {(): 2},
    "clipfleet_batched_items_total": {(): 40},
    "clipfleet_batch_size": {(): 32},
    "clipfleet_busy_seconds_total": {by(step="decode"): 6, by(step="encode"): 3.5},
    "clipfleet_capacity_seconds_total": {by(step="decode"): 20, by(step="encode"): 10},
    "clipfleet_cache_requests_total": {
        by(cache="models", result="hit"): 2,
        by(cache="models", result="miss"): 0,
        by(cache="text_matrices", result="hit"): 0,
        by(cache="text_matrices", result="miss"): 1,
    },
    "clipfleet_open_items": {(): 512},
    "clipfleet_open_items_limit": {(): 4096},
    "clipfleet_memory_bytes": {(): 900},
    "clipfleet_oldest_held_seconds": {(): 9},
    "clipfleet_model_worst_cosine": {PLAIN_WAY: 0.99962, GRAPH_WAY: 0.2},
    "clipfleet_model_images_per_second": {PLAIN_WAY: 27_900, GRAPH_WAY: 0},
    "clipfleet_canary_mismatches_total": {(): 2},
    "clipfleet_device_memory_bytes": {},
    "clipfleet_drain_seconds": {(): 0},
    "clipfleet_drain_limit_seconds": {(): 25},
    "clipfleet_expired_leases_total": {(): 4},
    "clipfleet_refused_hints_total": {by(reason="no JSON"): 3},
    "clipfleet_ready": {(): 1},
    "clipfleet_redis_up": {(): 1},
    "clipfleet_ledger_oldest_due_seconds": {(): 1.5},
}


def test_what_a_worker_keeps_is_read(bench: Bench) -> None:
    bench.models.note(hit=True)
    bench.models.note(hit=True)
    bench.texts.note(hit=False)

    values = bench.values()

    assert {name: values[name] for name in READ} == READ
    for of_the_system in ("process_cpu_seconds_total", "process_resident_memory_bytes"):
        assert values[of_the_system][()] > 0


def test_loops_have_their_age_and_its_share_of_the_limit(bench: Bench) -> None:
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
    batcher, decode, puller = (by(loop=loop) for loop in ("batcher", "decode", "puller"))
    assert values["clipfleet_loop_phase_seconds"] == {batcher: 5, decode: 5, puller: 0}
    assert values["clipfleet_loop_limit_ratio"] == {batcher: 0.5, decode: 0.25, puller: 0}


def test_a_drain_and_a_redis_that_is_away(bench: Bench) -> None:
    bench.drain.begin()
    bench.clock.now += 3
    bench.drain.begin()  # a second signal begins no second drain
    bench.redis.note(False)
    values = bench.values()

    assert values["clipfleet_drain_seconds"] == {(): 3}
    assert (values["clipfleet_ready"], values["clipfleet_redis_up"]) == ({(): 0}, {(): 0})


def test_the_ledgers_figures_are_there_while_redis_answers(bench: Bench) -> None:
    values = bench.values()

    assert values["clipfleet_ledger_chunks"][by(lane="high", state="queued")] == 3
    assert values["clipfleet_ledger_open_items"][by(lane="bulk")] == 70
    assert values["clipfleet_ledger_jobs"][by(state="running")] == 2
    assert len(values["clipfleet_ledger_jobs"]) == len(JobState)

    bench.backlog = None
    assert not [name for name in bench.values() if name.startswith("clipfleet_ledger_")]


def test_a_gpu_has_its_memory(bench: Bench) -> None:
    bench.readings = replace(bench.readings, device_bytes=lambda: {"allocated": 5, "total": 9})

    assert bench.values()["clipfleet_device_memory_bytes"] == {by(kind="allocated"): 5, by(kind="total"): 9}


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


@pytest.mark.parametrize(("what", "expression"), pages.all_expressions().items(), ids=lambda one: one[:40])
def test_dashboard_and_alerts_ask_for_what_there_is(bench: Bench, what: str, expression: str) -> None:
    values = bench.values()
    labels = {one.name: set(one.labels) | OF_THE_SCRAPE for one in FAMILIES}
    labels["clipfleet_chunk_seconds_bucket"] = {"le"} | OF_THE_SCRAPE

    for selector in selectors(expression):
        name = str(selector.name)
        if name in pages.OF_PROMETHEUS or name.startswith(pages.OF_THE_GATEWAY):
            continue
        assert name in values, what
        for matcher in selector.matchers.matchers:
            assert matcher.name in labels.get(name, OF_THE_SCRAPE), what
            if matcher.op == MatchOp.Equal and matcher.name not in OF_THE_SCRAPE:
                assert matcher.value in {dict(sample).get(matcher.name) for sample in values[name]}, what


def test_the_reader_of_expressions_finds_every_metric() -> None:
    expression = (
        'sum by (a) (rate(b_total{c="d"}[5m] offset 1h)) / on(e) (f > bool 1) unless -g '
        "or max_over_time((h + 1)[1h:5m]) or topk(3, i) or quantile(scalar(j), k)"
    )
    assert {str(one.name) for one in selectors(expression)} == {"b_total", "f", "g", "h", "i", "j", "k"}


def test_every_alert_has_its_section_in_the_runbook() -> None:
    sections = re.findall(r"^## (.*)$", (ROOT / "docs" / "operations.md").read_text(), flags=re.MULTILINE)
    anchors = {f"docs/operations.md#{title.lower().replace(' ', '-')}" for title in sections}
    rules = pages.alerts()
    assert len(rules) > 10
    for rule in rules:
        assert rule["annotations"]["runbook"] in anchors
        assert rule["annotations"]["summary"]
        assert rule["labels"]["severity"] in {"warning", "critical"}


def test_the_dashboard_can_be_imported_and_provisioned() -> None:
    dashboard = yaml.safe_load(pages.DASHBOARD.read_text())  # JSON is YAML
    assert dashboard["uid"] == "clipfleet"
    identities = [panel["id"] for panel in dashboard["panels"]]
    assert len(set(identities)) == len(identities)
    assert {variable["name"] for variable in dashboard["templating"]["list"]} == {"datasource", "instance"}
    for kind in ("datasources", "dashboards"):
        (file,) = (pages.DASHBOARD.parent / "provisioning" / kind).glob("*.yml")
        assert yaml.safe_load(file.read_text())["apiVersion"] == 1


@pytest.mark.parametrize(
    "arguments", ["check rules alerts.yml", "check config prometheus.yml", "test rules alerts_test.yml"]
)
def test_promtool_accepts_the_rules_and_sees_alerts_fire(arguments: str) -> None:
    promtool = shutil.which("promtool")
    if promtool is None:
        service_is_missing("promtool is not installed (Debian: prometheus)")
    command = [promtool, *arguments.split()]
    result = subprocess.run(command, cwd=pages.ALERTS.parent, capture_output=True, text=True, timeout=60)
    assert result.returncode == 0, result.stdout + result.stderr
    assert "SUCCESS" in result.stdout


def test_webhook_attempts_are_counted_by_outcome(bench: Bench) -> None:
    assert bench.values()["clipfleet_webhook_attempts_total"] == {
        by(outcome="delivered"): 0, by(outcome="retried"): 3, by(outcome="failed"): 0
    }  # fmt: skip
