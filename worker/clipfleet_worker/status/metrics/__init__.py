"""Metrics as Prometheus reads them: tables of families, each with the function that reads it.

Everything is read when somebody asks, from counts that the parts of a worker keep anyway. Nothing is
registered globally, and nothing here waits for anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from itertools import accumulate
from typing import Generic, TypeVar

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4, generate_latest
from prometheus_client.registry import Collector

from clipfleet_worker.status.server import Page

S = TypeVar("S")

# By what a family's values mean.
_FAMILIES: Mapping[str, type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]] = {
    "counter": CounterMetricFamily,  # grows from 0 with the process; ask for its rate
    "gauge": GaugeMetricFamily,  # as it is now
    "histogram": HistogramMetricFamily,
}


@dataclass(frozen=True, slots=True)
class Buckets:
    """Values of a histogram."""

    bounds: Sequence[float]  # upper ones, ascending
    counts: Sequence[int]  # up to each bound but above the one before it; the last one is beyond all bounds
    total: float  # of all values


Sample = tuple[Sequence[str], float | Buckets]  # label values, and the value


@dataclass(frozen=True, slots=True)
class Family(Generic[S]):
    """A metric: what it is called, what it means, and how it is read."""

    name: str  # with its unit; of a counter it ends with `_total`
    meaning: str
    read: Callable[[S], float | Iterable[Sample]]  # a number of a family without labels
    labels: tuple[str, ...] = ()  # their values are few, whatever users submit
    is_histogram: bool = False

    @property
    def kind(self) -> str:
        """What the values mean, one of `_FAMILIES`."""
        if self.is_histogram:
            return "histogram"
        return "counter" if self.name.endswith("_total") else "gauge"

    def metric(self, source: S) -> Metric:
        """What it is now."""
        family = _FAMILIES[self.kind](self.name, self.meaning, labels=self.labels)
        found = self.read(source)
        for values, value in [((), found)] if isinstance(found, int | float) else found:
            arguments = (_cumulative(value), value.total) if isinstance(value, Buckets) else (value,)
            family.add_metric(values, *arguments)
        return family


class FamiliesCollector(Collector, Generic[S]):
    """Reads a table of families from one source, which may have nothing to say at times."""

    def __init__(self, families: Sequence[Family[S]], source: Callable[[], S | None]) -> None:
        self._families = families
        self._source = source

    def collect(self) -> Iterator[Metric]:
        source = self._source()
        if source is not None:
            for family in self._families:
                yield family.metric(source)


def metrics_page(*collectors: Collector) -> Callable[[], Page]:
    """`/metrics`: what the collectors find, and what the system tells of the process (`process_*`)."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    return lambda: Page(HTTPStatus.OK, generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4)


def _cumulative(buckets: Buckets) -> list[tuple[str, float]]:
    bounds = [*map(str, buckets.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(buckets.counts)), strict=True))
