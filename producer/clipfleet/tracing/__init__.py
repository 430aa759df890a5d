"""Where the time of a job goes, as spans for OpenTelemetry: submit, its chunks, their steps.

Off unless `OTEL_*` variables say where spans go and the extra `otel` is installed: else no SDK is
loaded, and a span costs a call that does nothing. A trace crosses processes as a
`traceparent` (W3C) that the ledger keeps with the job.
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
    """Makes spans; called by many threads. This one makes none."""

    def span(
        self, name: str, *, parent: str = "", attributes: Attributes = NO_ATTRIBUTES
    ) -> AbstractContextManager[str]:
        """A span for the time of the context, whose value is its `traceparent`; an exception marks it.

        Args:
            name: what is done; few names altogether.
            parent: `traceparent` of the span that this one is part of; empty or no such thing: the current
                span of this thread, if there is one.
            attributes: what it is about.
        """
        return nullcontext("")

    def close(self) -> None:
        """Send what is left, but not for long."""


NO_TRACING = Tracing()


def tracing_of(service: str, environment: Mapping[str, str] = os.environ) -> Tracing:
    """What OpenTelemetry's own variables ask for; `OTEL_SERVICE_NAME` goes before the name of the service.

    Raises:
        UsageError: they ask for an exporter that is not installed.
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
