"""What the page "HTTP API" says of limits and paths is what the code has."""

from __future__ import annotations

import re
from pathlib import Path

from clipfleet_gateway.asking.asker import ANSWER_SECONDS, MOST_WAITING_INPUTS
from clipfleet_gateway.asking.room import MOST_REQUEST_BYTES
from clipfleet_gateway.inputs.images import MOST_IMAGE_BYTES
from clipfleet_gateway.inputs.own_files import MOST_BATCH_BYTES, MOST_ITEMS_BYTES
from clipfleet_gateway.looks import KEPT_SECONDS
from clipfleet_gateway.policies.shelf import MOST_POLICY_BYTES
from clipfleet_gateway.server import LAST_ANSWERS_SECONDS
from clipfleet_gateway.settings import GatewaySettings
from clipfleet_gateway.shapes.bodies import MOST_VALUES
from clipfleet_gateway.shapes.embeddings import MOST_INPUTS
from clipfleet_gateway.shapes.zero_shot import MOST_LABELS
from clipfleet_gateway.web.about.health import PROBE_SECONDS
from clipfleet_gateway.web.app import MOST_BODY_BYTES, make_app
from clipfleet_gateway.web.connections import MOST_CONNECTIONS
from clipfleet_gateway.web.jobs import MOST_DESCRIPTION_BYTES
from clipfleet_gateway.web.received.body_guard import DEFAULT_PACE
from tests.support.documents import ROOT, table
from tests.support.gateway_app import gateway_services

PAGE = ROOT / "docs" / "http-api.md"


def test_the_limits_are_those_of_the_code() -> None:
    shown = {what: (limit, setting) for what, limit, setting in table(PAGE, "what", "limit", "setting")}
    by_setting = {setting.strip("`"): limit for limit, setting in shown.values() if setting}
    defaults = {
        f"CLIPFLEET_{name.upper()}": one.default for name, one in GatewaySettings.model_fields.items()
    }

    assert by_setting.pop("keys add --quota") == "none"
    assert {name: _number(limit) for name, limit in by_setting.items()} == {
        name: defaults[name] for name in by_setting
    }
    assert {what: _number(limit) for what, (limit, setting) in shown.items() if not setting} == {
        "inputs of one request": MOST_INPUTS,
        "bytes of a JSON body, and of a line of a batch": MOST_BODY_BYTES,
        "values of a JSON body, and of a line of a batch": MOST_VALUES,
        "bytes of an image in a body or a file": MOST_IMAGE_BYTES,
        "bytes of own files that a batch names, each as often as it does": MOST_BATCH_BYTES,
        "bytes of own files that `items` of a job name, each as often as they do": MOST_ITEMS_BYTES,
        "bytes of all images of one request; a file counts each time it is named": MOST_REQUEST_BYTES,
        "inputs that wait at a time, per gateway": MOST_WAITING_INPUTS,
        "labels of `/v1/zero-shot`": MOST_LABELS,
        "bytes of a policy, labels and certificates before all": MOST_POLICY_BYTES,
        "bytes of a job of `/v1/jobs` but its `items`, labels before all": MOST_DESCRIPTION_BYTES,
        "time of a request": ANSWER_SECONDS,
        "connections of a gateway": MOST_CONNECTIONS,
    }
    pause, spare = f"{DEFAULT_PACE.idle_seconds:g} s", f"{DEFAULT_PACE.spare_seconds:g} s"
    rate = f"{DEFAULT_PACE.bytes_per_second >> 10} KiB"
    page = " ".join(PAGE.read_text().split())
    assert f"may pause for {pause}, and take {spare} and a second for each {rate}" in page
    assert (
        f"cannot be read within {PROBE_SECONDS:g} seconds. What it says may be {KEPT_SECONDS:g} seconds old"
        in page
    )
    assert f"for up to {LAST_ANSWERS_SECONDS:g} seconds" in PAGE.read_text()


def test_the_table_of_endpoints_has_all_operations(tmp_path: Path) -> None:
    shown = {
        (method, path)
        for requests, _ in table(PAGE, "request", "what it does")
        for methods, path in re.findall(r"`([A-Z]+(?:` or `[A-Z]+)*) (/[^`]*)`", requests)
        for method in methods.split("` or `")
    }

    with gateway_services(str(tmp_path)) as services:
        served = {
            (route.method, route.resource.canonical)
            for route in make_app(services).router.routes()
            if route.resource is not None and route.method != "HEAD"
        }
    assert {(method, re.sub(r":[^}]*}", "}", path)) for method, path in served} == shown


def _number(text: str) -> float:
    digits, _, unit = text.replace(",", "").partition(" ")
    return int(digits) << 20 if unit == "MiB" else int(digits)
