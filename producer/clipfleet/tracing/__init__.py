"""OpenTelemetry spans of a job: the submit, its chunks, their steps.

Off unless `OTEL_*` variables configure an exporter and the extra `otel` is installed: otherwise no SDK is
loaded, and a span is a no-op call. The ledger stores the `traceparent` (W3C) of a trace with the job.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from importlib.util import find_spec

log = logging.getLogger(__name__)

Attributes = Mapping[str, str | int | float | bool]
NO_ATTRIBUTES: Attributes = {}
_ENDPOINTS = ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT")
_EXPORTER = "OTEL_TRACES_EXPORTER"


class Tracing:
    """Creates spans, from any thread. The base class creates none."""

    def span(
        self, name: str, *, parent: str = "", attributes: Attributes = NO_ATTRIBUTES
    ) -> AbstractContextManager[str]:
        """Open a span for the duration of the context, which yields its `traceparent`. Records exceptions.

        Args:
            name: name of the operation, from a small set.
            parent: `traceparent` of the parent span; empty or invalid: the current span of this thread, if
                any.
            attributes: attributes of the span.
        """
        return nullcontext("")

    def close(self) -> None:
        """Flush pending spans, with a short timeout."""


NO_TRACING = Tracing()


def tracing_of(service: str, environment: Mapping[str, str] = os.environ) -> Tracing:
    """Configure tracing from OpenTelemetry's variables; `OTEL_SERVICE_NAME` overrides the service name.

    Raises:
        UsageError: the configured exporter is not installed.
    """
    if not _is_wanted(environment):
        return NO_TRACING
    if find_spec("opentelemetry") is None or find_spec("opentelemetry.sdk") is None:
        log.info("no spans: the extra `otel` is not installed", extra={"action": "tracing_missing"})
        return NO_TRACING
    from clipfleet.tracing.otel import exporting

    return exporting(service, environment)


def _is_wanted(environment: Mapping[str, str]) -> bool:
    if environment.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return False
    exporter = environment.get(_EXPORTER, "").strip()
    if exporter:
        return exporter != "none"
    return any(environment.get(name) for name in _ENDPOINTS)
