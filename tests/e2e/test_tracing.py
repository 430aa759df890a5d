"""A job as one trace: the command line's submit, the worker's chunks and their stages."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

from tests.support.cluster import Cluster
from tests.support.images import write_images
from tests.support.span_collector import SpanCollector


def test_one_job_is_one_trace_across_processes(tmp_path: Path) -> None:
    with SpanCollector() as collector, Cluster(tmp_path, collector.environment) as cluster:
        write_images(tmp_path / "images", 6)
        worker = cluster.start_worker()

        status = cluster.run_json(
            "classify", tmp_path / "images", "--labels", "red,blue", "--model", "demo",
            "--chunk-size", "2", "--output", tmp_path / "out", "--job-id", "traced",
        )  # fmt: skip
        assert status["ok"] == 6
        assert worker.terminate() == 0

    spans = collector.spans()
    assert len({span.trace_id for span in spans}) == 1
    (submit,) = [span for span in spans if span.name == "submit"]
    assert (submit.service, submit.parent_id) == ("clipfleet", "")
    assert submit.attributes["clipfleet.job_id"] == "traced"
    chunks = [span for span in spans if span.name == "chunk"]
    assert {(span.service, span.parent_id) for span in chunks} == {("clipfleet-worker", submit.span_id)}
    assert sorted(span.attributes["clipfleet.chunk_id"] for span in chunks) == [0, 1, 2]
    stages = [span for span in spans if span.name not in ("submit", "chunk")]
    assert Counter(span.parent_id for span in stages).keys() == {span.span_id for span in chunks}
    for chunk in chunks:
        names = {span.name for span in stages if span.parent_id == chunk.span_id}
        assert names >= {"read", "load model", "fetch, decode, encode", "score", "write", "complete"}
