"""What the page "HTTP API" says of limits and paths is what the code has."""

from __future__ import annotations

from clipfleet_gateway.asking.asker import ANSWER_SECONDS, MOST_WAITING_INPUTS
from clipfleet_gateway.inputs.images import MOST_IMAGE_BYTES
from clipfleet_gateway.server import LAST_ANSWERS_SECONDS
from clipfleet_gateway.settings import GatewaySettings
from clipfleet_gateway.shapes.embeddings import MOST_INPUTS
from clipfleet_gateway.shapes.zero_shot import MOST_LABELS
from clipfleet_gateway.web.app import MOST_BODY_BYTES
from tests.support.documents import ROOT, table

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
        "bytes of an image in a body or a file": MOST_IMAGE_BYTES,
        "inputs that wait at a time, per gateway": MOST_WAITING_INPUTS,
        "labels of `/v1/zero-shot`": MOST_LABELS,
        "time of a request": ANSWER_SECONDS,
    }
    assert f"for up to {LAST_ANSWERS_SECONDS:g} seconds" in PAGE.read_text()


def _number(text: str) -> float:
    digits, _, unit = text.replace(",", "").partition(" ")
    return int(digits) << 20 if unit == "MiB" else int(digits)
