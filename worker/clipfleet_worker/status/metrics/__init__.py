"""Prometheus metrics: tables of families, each with the function that reads its values.

Each scrape reads the counts that a worker keeps. Nothing is registered globally, and nothing here blocks.
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

# By kind.
_FAMILIES: Mapping[str, type[CounterMetricFamily | GaugeMetricFamily | HistogramMetricFamily]] = {
    "counter": CounterMetricFamily,  # grows from 0 with the process; query its rate
    "gauge": GaugeMetricFamily,  # the present value
    "histogram": HistogramMetricFamily,
}


@dataclass(frozen=True, slots=True)
class Buckets:
    """Values of a histogram."""

    bounds: Sequence[float]  # upper ones, ascending
    counts: Sequence[int]  # above the bound before and up to each; the last one is above all bounds
    total: float  # of all values


Sample = tuple[Sequence[str], float | Buckets]  # label values, and the value


@dataclass(frozen=True, slots=True)
class Family(Generic[S]):
    """A metric: its name, its meaning, and how to read it."""

    name: str  # with its unit; a counter's ends with `_total`
    meaning: str
    read: Callable[[S], float | Iterable[Sample]]  # a number if the family has no labels
    labels: tuple[str, ...] = ()  # with few values, whatever users submit
    is_histogram: bool = False

    @property
    def kind(self) -> str:
        """One of `_FAMILIES`."""
        if self.is_histogram:
            return "histogram"
        return "counter" if self.name.endswith("_total") else "gauge"

    def metric(self, source: S) -> Metric:
        """Read the present values."""
        family = _FAMILIES[self.kind](self.name, self.meaning, labels=self.labels)
        found = self.read(source)
        for values, value in [((), found)] if isinstance(found, int | float) else found:
            arguments = (_cumulative(value), value.total) if isinstance(value, Buckets) else (value,)
            family.add_metric(values, *arguments)
        return family


class FamiliesCollector(Collector, Generic[S]):
    """Reads a table of families from one source, unless that is None at the time."""

    def __init__(self, families: Sequence[Family[S]], source: Callable[[], S | None]) -> None:
        self._families = families
        self._source = source

    def collect(self) -> Iterator[Metric]:
        source = self._source()
        if source is not None:
            for family in self._families:
                yield family.metric(source)


def metrics_page(*collectors: Collector) -> Callable[[], Page]:
    """Make the page `/metrics`: the collectors' metrics, and those of the process (`process_*`)."""
    registry = CollectorRegistry(auto_describe=False)
    for collector in collectors:
        registry.register(collector)
    ProcessCollector(registry=registry)
    return lambda: Page(HTTPStatus.OK, generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4)


def _cumulative(buckets: Buckets) -> list[tuple[str, float]]:
    bounds = [*map(str, buckets.bounds), "+Inf"]
    return list(zip(bounds, map(float, accumulate(buckets.counts)), strict=True))
