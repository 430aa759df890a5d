"""What a body may cost before it is refused: values are bounded, and the first wrong one ends the look."""

from __future__ import annotations

import json
from datetime import UTC, datetime
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from clipfleet_gateway.batches.lines import LineError, Reading, request_of
from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.keys.key import made_key
from clipfleet_gateway.shapes.batches import Endpoint
from clipfleet_gateway.shapes.bodies import MOST_VALUES, parsed
from clipfleet_gateway.shapes.embeddings import EmbeddingsRequest
from clipfleet_gateway.shapes.jobs import JobRequest
from clipfleet_gateway.shapes.zero_shot import ZeroShotRequest

MANY = 1000
NUMBERS = [1] * MANY
JOB = {"task": "classify", "model": "demo", "source": "file-x"}
WRONG: dict[str, tuple[type[BaseModel], dict[str, Any], str]] = {
    "inputs": (EmbeddingsRequest, {"model": "demo", "input": NUMBERS}, "input[0]"),
    "messages": (EmbeddingsRequest, {"model": "demo", "messages": NUMBERS[:100]}, "messages[0]"),
    "parts": (
        EmbeddingsRequest,
        {"model": "demo", "messages": [{"content": NUMBERS[:100]}]},
        "messages[0].content[0]",
    ),
    "candidate labels": (
        ZeroShotRequest,
        {"model": "demo", "inputs": "file-x", "parameters": {"candidate_labels": NUMBERS}},
        "parameters.candidate_labels[0]",
    ),
    "items": (JobRequest, {"task": "embed", "items": [[]] * MANY}, "items[0]"),
    "labels": (JobRequest, {**JOB, "labels": NUMBERS}, "labels[0]"),
    "templates": (JobRequest, {**JOB, "labels": ["a"], "templates": NUMBERS}, "templates[0]"),
    "labels of a set": (
        JobRequest,
        {**JOB, "label_sets": {"a": {"labels": NUMBERS}}},
        "label_sets.a.labels[0]",
    ),
    "certificates": (
        JobRequest,
        {**JOB, "label_sets": {"a": {"labels": ["a"], "certificates": NUMBERS}}},
        "label_sets.a.certificates[0]",
    ),
}


def refused(shape: type[BaseModel], body: bytes) -> ApiError:
    with pytest.raises(ApiError) as caught:
        parsed(shape, body)
    return caught.value


@pytest.mark.parametrize("name", WRONG)
def test_the_first_wrong_value_is_enough(name: str) -> None:
    shape, body, param = WRONG[name]
    text = json.dumps(body).encode()

    with pytest.raises(ValidationError) as caught:
        shape.model_validate_json(text)

    assert caught.value.error_count() <= 10
    assert (refused(shape, text).param or "").startswith(param)


def test_many_unknown_fields_are_counted_only() -> None:
    fields = {f"x{number}": 1 for number in range(10 * MANY)}

    error = refused(JobRequest, json.dumps({**JOB, **fields}).encode())

    assert (error.status, error.param) == (400, None)
    assert error.message == "The body is wrong in 10,000 places"


@pytest.mark.parametrize("value", [b"1", b"[]", b'{"":1}', b'""', rb'"\"["'])
def test_values_are_bounded_before_they_are_read(value: bytes) -> None:
    body = b'{"model": "demo", "input": "a", "x": [' + b",".join([value] * (MOST_VALUES + 1)) + b"]}"

    error = refused(EmbeddingsRequest, body)

    assert (error.status, error.code) == (413, "too_many_values")
    with pytest.raises(LineError) as caught:
        line = b'{"custom_id": "a", "method": "POST", "url": "/v1/embeddings", "body": ' + body + b"}"
        request_of(line, Reading(Endpoint.EMBEDDINGS, key(), None, pytest.fail))
    assert caught.value.code == "too_many_values"


@pytest.mark.parametrize("text", [",", "[{,", r"\",", "\\\\", '",'])
def test_texts_may_have_any_characters(text: str) -> None:
    given = [text * 20_000 for _ in range(MOST_VALUES // 20_000 + 1)]

    body = json.dumps({"model": "demo", "input": given}).encode()

    assert parsed(EmbeddingsRequest, body).input == tuple(given)


def key() -> Any:
    return made_key("mine", "0" * 64, datetime.now(UTC), lane="normal", quota=None, sources=())  # type: ignore[arg-type]  # pydantic converts it


def test_a_large_value_of_a_wrong_kind_is_shown_in_part() -> None:
    error = refused(EmbeddingsRequest, json.dumps({"model": [["a b "] * 100] * 1000, "input": "a"}).encode())

    assert error.param == "model" and len(error.message) < 200
