"""An OpenTelemetry collector that keeps what it is sent: OTLP over http/protobuf, on loopback."""

from __future__ import annotations

from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from tests.support.loopback_site import LoopbackSite


@dataclass(frozen=True)
class Span:
    """What was sent of a span."""

    service: str
    name: str
    trace_id: str
    span_id: str
    parent_id: str  # empty: it has none
    attributes: dict[str, object]


class SpanCollector(LoopbackSite):
    """Use it as a context manager; `environment` leads programs to it."""

    def __init__(self) -> None:
        self._spans: list[Span] = []
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector._take(ExportTraceServiceRequest.FromString(body))
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: object) -> None:
                pass

        super().__init__(ThreadingHTTPServer(("127.0.0.1", 0), Handler))

    @property
    def environment(self) -> dict[str, str]:
        return {"OTEL_EXPORTER_OTLP_ENDPOINT": self.url}

    def spans(self) -> list[Span]:
        return list(self._spans)

    def _take(self, request: ExportTraceServiceRequest) -> None:
        for resource in request.resource_spans:
            about = {entry.key: entry.value.string_value for entry in resource.resource.attributes}
            for scope in resource.scope_spans:
                for span in scope.spans:
                    attributes = {
                        entry.key: getattr(entry.value, entry.value.WhichOneof("value"))
                        for entry in span.attributes
                    }
                    self._spans.append(
                        Span(
                            about["service.name"], span.name, span.trace_id.hex(), span.span_id.hex(),
                            span.parent_span_id.hex(), attributes,
                        )
                    )  # fmt: skip
