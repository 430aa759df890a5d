"""What a gateway counts of its requests, in label values that clients cannot choose."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Iterable, Mapping

import pytest
from aiohttp import ClientTimeout, web
from aiohttp.test_utils import TestClient, TestServer
from prometheus_client.parser import text_string_to_metric_families
from promql_parser import MatchOp

from clipfleet_gateway.errors import limited
from clipfleet_gateway.meters import Meters
from clipfleet_gateway.web import guards
from clipfleet_gateway.web.about.metrics import MetricsRoutes
from tests.support.documents import ROOT, table
from tests.support.metrics_page import (
    OF_THE_GATEWAY,
    Values,
    all_expressions,
    gateway_names,
    metric_values,
    selectors,
)

REQUESTS = "clipfleet_gateway_requests_total"
OPEN = "clipfleet_gateway_open_requests"


class Door:
    """A gateway with three paths: one answers, one refuses, one waits until the test ends it."""

    def __init__(self) -> None:
        self.entered = asyncio.Event()
        self.left = asyncio.Event()
        metrics = MetricsRoutes(Meters())
        self.app = web.Application(middlewares=[metrics.counting(), guards.answering()])
        self.app.router.add_get("/v1/models/{model:.+}", self._answer)
        self.app.router.add_get("/v1/refused", self._refuse)
        self.app.router.add_get("/v1/slow", self._wait)
        for operation, handler in metrics.operations():
            self.app.router.add_route(operation.method, operation.path, handler)

    async def _answer(self, _: web.Request) -> web.Response:
        return web.Response(text="{}")

    async def _refuse(self, _: web.Request) -> web.Response:
        raise limited("too much", 1)

    async def _wait(self, _: web.Request) -> web.Response:
        self.entered.set()
        try:
            await asyncio.Event().wait()
        finally:
            self.left.set()
        raise AssertionError


def after(*asked: tuple[str, str]) -> str:
    """The page after some requests."""

    async def ask() -> str:
        async with TestClient(TestServer(Door().app)) as client:
            for method, path in asked:
                async with client.request(method, path):
                    pass
            async with client.get("/metrics") as response:
                assert response.headers["Content-Type"].startswith("text/plain; version=0.0.4")
                return await response.text()

    return asyncio.run(ask())


def by_labels(values: Values) -> Mapping[tuple[str, ...], float]:
    return {tuple(value for _, value in sorted(labels)): found for labels, found in values.items()}


def test_requests_are_counted_by_route_method_and_status() -> None:
    page = metric_values(
        after(
            ("GET", "/v1/models/a"),
            ("GET", "/v1/models/b/c"),
            ("POST", "/v1/models/a"),
            ("GET", "/v1/refused"),
        )
    )

    counts = by_labels(page[REQUESTS])  # method, route, status
    assert counts["GET", "/v1/models/{model}", "200"] == 2
    assert counts["GET", "/v1/refused", "429"] == 1
    seconds = by_labels(page["clipfleet_gateway_request_seconds_count"])
    assert seconds["GET", "/v1/models/{model}"] == 2
    assert page[OPEN] == {(): 1}, "the one that reads this page"


@pytest.mark.parametrize(
    "asked", [[("GET", f"/{word}") for word in "abcdef"], [("BREW", "/"), ("PUT", "/x")]]
)
def test_clients_make_no_new_series(asked: Iterable[tuple[str, str]]) -> None:
    counts = by_labels(metric_values(after(*asked))[REQUESTS])

    assert set(counts) == {("other", "other", "404")}


def test_a_client_that_hangs_up_is_counted_and_leaves_nothing_open() -> None:
    async def hang_up() -> str:
        door = Door()
        async with TestClient(TestServer(door.app, handler_cancellation=True)) as client:
            asked = asyncio.ensure_future(client.get("/v1/slow", timeout=ClientTimeout(60)))
            await door.entered.wait()
            asked.cancel()
            await door.left.wait()
            async with client.get("/metrics") as response:
                return await response.text()

    page = metric_values(asyncio.run(hang_up()))

    assert by_labels(page[REQUESTS]) == {("GET", "/v1/slow", "499"): 1}
    assert page[OPEN] == {(): 1}


def test_the_documented_table_is_that_of_the_code() -> None:
    families = {
        family.name + ("_total" if family.type == "counter" else ""): family
        for family in text_string_to_metric_families(after(("GET", "/v1/models/a")))
        if family.name.startswith("clipfleet_")
    }
    rows = table(ROOT / "docs" / "metrics.md", "metric of the gateway", "kind", "labels", "meaning")

    assert set(families) == gateway_names()
    for name, kind, labels, meaning in rows:
        family = families.pop(name.strip("`"))
        assert (family.type, family.documentation) == (kind, meaning)
        named = set(re.findall(r"`(\w+)`", labels))
        assert all(set(sample.labels) - {"le"} == named for sample in family.samples)
    assert not families


def test_dashboard_and_alerts_ask_for_what_there_is() -> None:
    values = metric_values(after(("GET", "/v1/models/a"), ("GET", "/v1/refused")))
    asked = [
        (what, selector)
        for what, expression in all_expressions().items()
        for selector in selectors(expression)
        if str(selector.name).startswith(OF_THE_GATEWAY)
    ]
    assert {str(selector.name) for _, selector in asked} >= {REQUESTS, OPEN}
    for what, selector in asked:
        samples = [dict(labels) for labels in values[str(selector.name)]]
        for matcher in selector.matchers.matchers:
            assert all(matcher.name in sample for sample in samples), what
            if matcher.op == MatchOp.Equal:
                assert matcher.value in {sample[matcher.name] for sample in samples}, what
