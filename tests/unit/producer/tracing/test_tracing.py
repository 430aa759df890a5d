"""Spans of a job: off by default, else one trace through producer and worker."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import pytest
from opentelemetry.sdk.trace import ReadableSpan
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

from clipfleet.errors import UsageError
from clipfleet.ledger.jobs import Lease, Ledger
from clipfleet.tracing import NO_TRACING, tracing_of
from clipfleet.tracing.otel import OtelTracing
from clipfleet_worker.chunk.leases import LeaseKeeper
from clipfleet_worker.hints.tasks import chunk_spans
from tests.support.jobs import make_claim

ENDPOINT, EXPORTER = "OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_TRACES_EXPORTER"


class Bench:
    def __init__(self) -> None:
        self.exporter = InMemorySpanExporter()
        self.tracing = OtelTracing(SimpleSpanProcessor(self.exporter), "test")

    def spans(self) -> list[ReadableSpan]:
        """Those that have ended, by their beginning."""
        return sorted(self.exporter.get_finished_spans(), key=lambda span: span.start_time or 0)

    def parents(self) -> list[tuple[str, str | None]]:
        """Names of spans with those of the ones they are part of."""
        names = {span.context.span_id: span.name for span in self.spans()}
        return [(span.name, names[span.parent.span_id] if span.parent else None) for span in self.spans()]


@pytest.fixture
def bench() -> Iterator[Bench]:
    bench = Bench()
    yield bench
    bench.tracing.close()


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SERVICE_NAME": "mine"},
        {ENDPOINT: ""},
        {ENDPOINT: "http://collector:4318", "OTEL_SDK_DISABLED": "TRUE"},
        {ENDPOINT: "http://collector:4318", EXPORTER: "none"},
    ],
    ids=str,
)
def test_it_is_off_unless_somebody_says_where_spans_go(environment: dict[str, str]) -> None:
    tracing = tracing_of("test", environment)

    assert tracing is NO_TRACING
    with tracing.span("submit", attributes={"job_id": "j"}) as traceparent:
        assert traceparent == ""


@pytest.mark.parametrize(
    "environment", [{ENDPOINT: "http://127.0.0.1:9"}, {EXPORTER: "console"}, {EXPORTER: "otlp"}], ids=str
)
def test_it_is_on_where_they_go_somewhere(environment: dict[str, str]) -> None:
    tracing = tracing_of("test", environment)
    assert isinstance(tracing, OtelTracing)
    tracing.close()


@pytest.mark.parametrize(
    "environment",
    [{EXPORTER: "zipkin"}, {ENDPOINT: "http://a:1", "OTEL_EXPORTER_OTLP_PROTOCOL": "grpc"}],
    ids=str,
)
def test_an_exporter_that_is_not_installed_is_told_in_one_line(environment: dict[str, str]) -> None:
    with pytest.raises(UsageError, match="is not installed: the extra `otel` has otlp over http/protobuf"):
        tracing_of("test", environment)


def test_where_it_is_off_no_spans_code_is_loaded() -> None:
    """redis-py loads a part of OpenTelemetry by itself, where it is installed."""
    code = (
        "import sys, clipfleet.client, clipfleet_worker.hints.tasks, clipfleet.tracing as t\n"
        "t.tracing_of('x', {}).close()\n"
        "ours = ('clipfleet.tracing.otel', 'opentelemetry.sdk.trace', 'opentelemetry.exporter')\n"
        "print([name for name in sys.modules if name.startswith(ours)])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert loaded.strip() == "[]"


def test_stages_are_part_of_the_chunk_and_the_chunk_of_the_submit(bench: Bench) -> None:
    with bench.tracing.span("submit", attributes={"job_id": "j"}) as submit:
        pass
    claim = make_claim(traceparent=submit, chunk_id=7)
    leased, keeper = Lease(claim.job_id, "7", claim.token), LeaseKeeper(cast(Ledger, None), 30)
    with chunk_spans(bench.tracing, claim) as on_stage, keeper.hold(leased, on_stage) as lease:
        for step in ("read", "encode labels", "encode labels", "encode labels", "write"):
            lease.enter(step, 10)
        lease.enter_complete()

    stages = [(name, "chunk") for name in ("read", "encode labels", "write", "complete")]
    assert bench.parents() == [("submit", None), ("chunk", "submit"), *stages]
    spans = bench.spans()
    assert len({span.context.trace_id for span in spans}) == 1
    facts = {"job_id": claim.job_id, "chunk_id": 7, "generation": 0}
    assert spans[1].attributes == {f"clipfleet.{name}": value for name, value in facts.items()}
    for earlier, later in pairwise(spans[2:]):
        assert (earlier.end_time or 0) <= (later.start_time or 0)


def test_what_ends_a_chunk_marks_it_and_its_stage(bench: Bench) -> None:
    with pytest.raises(ValueError, match="bug"), chunk_spans(bench.tracing, make_claim()) as on_stage:
        on_stage("write")
        raise ValueError("bug")

    assert [(span.name, span.status.is_ok) for span in bench.spans()] == [("chunk", False), ("write", False)]
    assert [event.name for event in bench.spans()[0].events] == ["exception"]


@pytest.mark.parametrize("text", ["", "garbage", "00-0-0-0", "\xff", f"00-{'0' * 32}-{'0' * 16}-01"])
def test_a_chunk_without_a_traced_submit_is_a_trace_of_its_own(bench: Bench, text: str) -> None:
    with chunk_spans(bench.tracing, make_claim(traceparent=text)):
        pass

    assert bench.parents() == [("chunk", None)]


def test_a_submit_is_part_of_what_the_users_program_does(bench: Bench) -> None:
    with bench.tracing.span("request"), bench.tracing.span("submit"):
        pass

    assert bench.parents() == [("request", None), ("submit", "request")]


def test_the_service_has_our_name_or_a_given_one(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def name_of(bench: Bench) -> object:
        with bench.tracing.span("submit"):
            pass
        return bench.spans()[0].resource.attributes["service.name"]

    assert name_of(bench) == "test"
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "service.name=mine")
    assert name_of(Bench()) == "mine"
    monkeypatch.setenv("OTEL_SERVICE_NAME", "ours")
    assert name_of(Bench()) == "ours"
