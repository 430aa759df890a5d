"""What a worker says at `/metrics`, and which metrics PromQL names."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import promql_parser
import yaml
from prometheus_client.parser import text_string_to_metric_families

from clipfleet_gateway.meters import Meters
from tests.support.documents import ROOT

ALERTS = ROOT / "ops" / "prometheus" / "alerts.yml"
DASHBOARD = ROOT / "ops" / "grafana" / "clipfleet.json"
OF_PROMETHEUS = {"up"}  # it makes these itself
OF_THE_GATEWAY = "clipfleet_gateway_"  # no worker has them

Values = Mapping[tuple[tuple[str, str], ...], float]  # by labels, sorted


def metric_values(text: str) -> dict[str, Values]:
    """Samples by name, as PromQL names them; families without a sample are there, too."""
    found: dict[str, dict[tuple[tuple[str, str], ...], float]] = {}
    for family in text_string_to_metric_families(text):
        endings = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}.get(family.type, ("",))
        for ending in endings:
            found.setdefault(family.name + ending, {})
        for sample in family.samples:
            found.setdefault(sample.name, {})[tuple(sorted(sample.labels.items()))] = sample.value
    return found


def gateway_names() -> set[str]:
    """Metrics of a gateway, as it declares them."""
    return {
        family.name + ("_total" if family.type == "counter" else "")
        for family in Meters().registry.collect()
        if family.name.startswith("clipfleet_")
    }


def named_in(expression: str) -> set[str]:
    """Metrics that a PromQL expression reads."""
    return {str(selector.name) for selector in selectors(expression)}


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """What an expression reads, with the labels that it asks for."""
    return list(_selected(promql_parser.parse(expression)))


def _selected(node: Any) -> Iterator[promql_parser.VectorSelector]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for name in ("lhs", "rhs", "expr", "param", "vs", "vector_selector"):
        if (inner := getattr(node, name, None)) is not None:
            yield from _selected(inner)
    for argument in getattr(node, "args", ()):
        yield from _selected(argument)


def alerts() -> list[dict[str, Any]]:
    """The rules that may fire."""
    return [rule for group in yaml.safe_load(ALERTS.read_text())["groups"] for rule in group["rules"]]


def dashboard_expressions(path: Path = DASHBOARD) -> dict[str, str]:
    """PromQL of every panel by title and letter, with the variables as Grafana fills them in."""
    panels = json.loads(path.read_text())["panels"]
    return {
        f"{panel['title']} {target['refId']}": target["expr"].replace("$instance", ".*")
        for panel in panels
        for target in panel.get("targets", ())
    }


def all_expressions() -> dict[str, str]:
    """Those of dashboard and alerts, by what they are for."""
    return dashboard_expressions() | {rule["alert"]: rule["expr"] for rule in alerts()}
