"""Spans through OpenTelemetry's SDK. Imported only if the extra `otel` is installed and configured.

Sets nothing global: a program with its own OpenTelemetry keeps it, and our spans join its current span.
"""

from __future__ import annotations

import sys
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import entry_points

from opentelemetry.context import Context
from opentelemetry.sdk.resources import SERVICE_NAME, SERVICE_VERSION, OTELResourceDetector, Resource
from opentelemetry.sdk.trace import SpanProcessor, TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor, ConsoleSpanExporter
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from clipfleet import __version__
from clipfleet.errors import UsageError
from clipfleet.tracing import NO_ATTRIBUTES, Attributes, Tracing

_CLOSE_SECONDS = 2.0
_FIELD = "traceparent"
_PREFIX = "clipfleet."


class OtelTracing(Tracing):
    """Creates spans with the OpenTelemetry SDK."""

    def __init__(self, processor: SpanProcessor, service: str) -> None:
        """Send spans to a processor, under a service name.

        OpenTelemetry's variables for sampling, limits and resources apply.
        """
        resource = Resource.create({SERVICE_VERSION: __version__})
        if SERVICE_NAME not in OTELResourceDetector().detect().attributes:
            resource = resource.merge(Resource({SERVICE_NAME: service}))
        self._provider = TracerProvider(resource=resource, shutdown_on_exit=False)
        self._provider.add_span_processor(processor)
        self._tracer = self._provider.get_tracer("clipfleet", __version__)
        self._propagator = TraceContextTextMapPropagator()

    @contextmanager
    def span(self, name: str, *, parent: str = "", attributes: Attributes = NO_ATTRIBUTES) -> Iterator[str]:
        within = self._propagator.extract({_FIELD: parent}, context=Context()) if parent else None
        named = {_PREFIX + key: value for key, value in attributes.items()}
        with self._tracer.start_as_current_span(name, context=within, attributes=named):
            carrier: dict[str, str] = {}
            self._propagator.inject(carrier)
            yield carrier.get(_FIELD, "")

    def close(self) -> None:
        """Flush pending spans, without waiting for an unreachable collector."""
        closing = threading.Thread(target=self._provider.shutdown, name="otel-close", daemon=True)
        closing.start()
        closing.join(_CLOSE_SECONDS)


def exporting(service: str, environment: Mapping[str, str]) -> OtelTracing:
    """Create tracing with the exporter that OpenTelemetry's variables name.

    Raises:
        UsageError: that exporter is not installed.
    """
    name = environment.get("OTEL_TRACES_EXPORTER", "").strip() or "otlp"
    if name == "console":  # stdout belongs to the command
        return OtelTracing(BatchSpanProcessor(ConsoleSpanExporter(out=sys.stderr)), service)
    if name == "otlp":
        protocol = (
            environment.get("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL")
            or environment.get("OTEL_EXPORTER_OTLP_PROTOCOL")
            or "http/protobuf"
        )
        name = "otlp_proto_grpc" if protocol == "grpc" else "otlp_proto_http"
    found = next(iter(entry_points(group="opentelemetry_traces_exporter", name=name)), None)
    if found is None:
        raise UsageError(
            f"the exporter {name} of the OTEL_* variables is not installed: the extra `otel` has otlp over "
            "http/protobuf; OTEL_TRACES_EXPORTER=none disables spans"
        )
    return OtelTracing(BatchSpanProcessor(found.load()()), service)
