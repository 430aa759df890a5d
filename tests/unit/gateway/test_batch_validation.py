"""Every line of an input file is right, or nothing of it runs; what is wrong is named by its line."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from clipfleet.contract.jobs import Task
from clipfleet.outputs.folder import FolderOutput
from clipfleet_gateway.batches.lines import lines_of
from clipfleet_gateway.batches.validation import MOST_ERRORS
from clipfleet_gateway.files.record import Purpose
from clipfleet_gateway.shapes.batches import BatchStatus, Endpoint
from tests.support.batches import Desk, jsonl, line, saved

IMAGE = f"data:image/png;base64,{base64.b64encode(b'an image').decode()}"
GOOD = line("good")


@pytest.fixture
def desk(place: FolderOutput) -> Desk:
    return Desk(place)


def errors_of(desk: Desk, data: bytes, endpoint: Endpoint = Endpoint.EMBEDDINGS) -> list[tuple[Any, ...]]:
    batch = desk.advance(desk.begin(data, endpoint))
    assert (batch.status is BatchStatus.FAILED) == bool(batch.errors)
    if batch.errors:
        assert batch.failed_at is not None
        assert (desk.jobs.submits, desk.spent) == (0, {}), "nothing was run"
        assert not [*desk.store.open()]
    return [(one.line, one.code, one.param) for one in batch.errors]


def zero_shot(custom_id: str, labels: list[str], image: str = IMAGE, **other: Any) -> dict[str, Any]:
    body = {"model": "demo", "inputs": image, "parameters": {"candidate_labels": labels}, **other}
    return line(custom_id, body, url="/v1/zero-shot")


def test_a_right_file_is_run(desk: Desk) -> None:
    batch = desk.advance(desk.begin(jsonl(GOOD, line("two", {"model": "demo", "input": ["a", "b"]}))))

    assert (batch.status, batch.errors) == (BatchStatus.IN_PROGRESS, ())
    assert batch.checked is not None
    assert (batch.checked.task, batch.checked.requests, batch.checked.inputs) == (Task.EMBED_TEXT, 2, 3)
    assert desk.spent == {batch.id: 3}
    assert desk.jobs.items[batch.id] == [
        {"custom_id": "good", "text": "good"},
        {"custom_id": "two", "text": "a"},
        {"custom_id": "two", "text": "b"},
    ]


def test_a_byte_order_mark_is_no_part_of_the_first_line(desk: Desk) -> None:
    batch = desk.advance(desk.begin(b"\xef\xbb\xbf" + jsonl(GOOD, line("two"))))

    assert (batch.status, batch.errors) == (BatchStatus.IN_PROGRESS, ())
    assert [one["custom_id"] for one in desk.jobs.items[batch.id]] == ["good", "two"]


def test_a_line_that_is_not_json_has_one_number_of_a_line(desk: Desk) -> None:
    batch = desk.advance(desk.begin(jsonl(GOOD) + b'{"custom_id": cat}\n'))

    (error,) = batch.errors
    assert (error.line, error.message) == (2, "The line is not JSON: expected value at column 15")


@pytest.mark.parametrize(
    ("second", "found"),
    [
        (b"{", ("invalid_json_line", None)),
        (b"[]", ("invalid_json_line", None)),
        (b"1", ("invalid_json_line", None)),
        (b'{"custom_id": NaN}', ("invalid_json_line", None)),
        (b"[" * 100_000, ("invalid_json_line", None)),
        (b'{"a":' * 100_000, ("invalid_json_line", None)),
        (b"", ("blank_line", None)),
        (b" \t\r", ("blank_line", None)),
        (b'{"custom_id": "\xff"}', ("invalid_utf8", None)),
        (b'{"custom_id": "\\ud800"}', ("invalid_json_line", None)),
        ({"custom_id": None}, ("missing_custom_id", "custom_id")),
        ({"custom_id": ""}, ("missing_custom_id", "custom_id")),
        ({"custom_id": 7}, ("missing_custom_id", "custom_id")),
        ({"custom_id": "x" * 513}, ("invalid_custom_id", "custom_id")),
        ({"custom_id": "good"}, ("duplicate_custom_id", "custom_id")),
        ({"method": "GET"}, ("invalid_method", "method")),
        ({"method": None}, ("invalid_method", "method")),
        ({"url": "/v1/zero-shot"}, ("invalid_url", "url")),
        ({"url": "/embeddings"}, ("invalid_url", "url")),
        ({"body": None}, ("invalid_body", "body")),
        ({"body": "x"}, ("invalid_body", "body")),
        ({"body": {"input": "x"}}, ("invalid_request", "model")),
        ({"body": {"model": "demo"}}, ("invalid_request", None)),
        ({"body": {"model": "demo", "input": ["a", " "]}}, ("empty_input", "input[1]")),
        ({"body": {"model": "demo", "input": [1, 2]}}, ("invalid_request", "input[0]")),
        (
            {"body": {"model": "demo", "input": [{"image": IMAGE}, {"image": "."}]}},
            ("not_allowed", "input[1]"),
        ),
        ({"body": {"model": "demo", "input": ["a", {"image": IMAGE}]}}, ("mixed_inputs", "input[1]")),
        ({"body": {"model": "demo", "input": {"image": "s3://b/x"}}}, ("not_allowed", "input")),
        ({"body": {"model": "demo", "input": {"image": IMAGE}}}, ("mismatched_modality", "input")),
        ({"body": {"model": "ViT-B-32", "input": "x"}}, ("mismatched_model", "model")),
        ({"body": {"model": "demo", "input": "x", "dimensions": 0}}, ("invalid_request", "dimensions")),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(desk: Desk, second: Any, found: tuple[str, str | None]) -> None:
    data = second if isinstance(second, bytes) else json.dumps(line("other") | second).encode()

    assert errors_of(desk, jsonl(GOOD) + data + b"\n" + jsonl(line("third"))) == [(2, *found)]


def test_an_unknown_model_is_named(desk: Desk) -> None:
    assert errors_of(desk, jsonl(line("a", {"model": "RN50", "input": "x"}))) == [
        (1, "invalid_model", "model")
    ]


@pytest.mark.parametrize("data", [b"\n", b"\n\n", jsonl(GOOD) + b"\n"])
def test_blank_lines(desk: Desk, data: bytes) -> None:
    found = errors_of(desk, data)

    assert [code for _, code, _ in found] == ["blank_line"] * data.count(
        b"\n\n" if data != b"\n" else b"\n"
    ) or found


def test_the_last_line_needs_no_end(desk: Desk) -> None:
    assert errors_of(desk, jsonl(GOOD)[:-1]) == []


def test_windows_line_ends(desk: Desk) -> None:
    assert errors_of(desk, jsonl(GOOD, line("b")).replace(b"\n", b"\r\n")) == []


def test_all_wrong_lines_are_listed_up_to_a_bound(desk: Desk) -> None:
    few = errors_of(desk, jsonl(GOOD, *[line(f"{n}", method="GET") for n in range(3)], GOOD))
    many = errors_of(desk, jsonl(*[line(f"{n}", method="GET") for n in range(MOST_ERRORS + 50)]))

    assert [number for number, *_ in few] == [2, 3, 4, 5]
    assert [number for number, *_ in many] == [*range(1, MOST_ERRORS + 1)]


def test_bounds_of_lines_and_inputs(desk: Desk) -> None:
    lines = [line(f"{n}") for n in range(desk.most + 5)]

    two = line("two", {"model": "demo", "input": ["x"] * desk.most})
    assert errors_of(desk, jsonl(GOOD, two)) == [(2, "too_many_inputs", "input")]
    assert errors_of(desk, jsonl(*lines)) == [(desk.most + 1, "too_many_requests", None)]
    assert errors_of(desk, jsonl(*lines[: desk.most])) == []


def test_a_line_that_is_too_long_ends_the_reading(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("clipfleet_gateway.batches.lines.MOST_LINE_BYTES", 1000)
    monkeypatch.setattr("clipfleet_gateway.batches.lines._READ_BYTES", 64)
    long = line("long", {"model": "demo", "input": "x" * 2000})

    assert errors_of(desk, jsonl(GOOD, long, line("c"))) == [(2, "line_too_long", None)]


@pytest.mark.parametrize("read_bytes", [1, 2, 3, 7, 1000])
def test_lines_are_those_of_the_file(desk: Desk, monkeypatch: pytest.MonkeyPatch, read_bytes: int) -> None:
    monkeypatch.setattr("clipfleet_gateway.batches.lines._READ_BYTES", read_bytes)
    for data in (b"a", b"a\n", b"a\n\n", b"a\nbc\n\nd", "ä\n€".encode()):
        file = saved(desk.files, "mine", data)
        with desk.files.content("mine", file.id) as content:
            assert [*lines_of(content)] == data.removesuffix(b"\n").split(b"\n")


class TestImages:
    def test_own_files_must_be_there(self, desk: Desk) -> None:
        mine = saved(desk.files, "mine", b"an image", Purpose.VISION)
        others = saved(desk.files, "other", b"an image", Purpose.VISION)
        lines = [
            line(f"{number}", {"model": "demo", "input": [{"image": IMAGE}, {"image": file_id}]})
            for number, file_id in enumerate((mine.id, others.id, f"file-{'0' * 32}", "file-x"))
        ]

        assert errors_of(desk, jsonl(*lines)) == [(n, "not_found", "input[1]") for n in (2, 3, 4)]

    def test_own_files_and_data_uris_are_read(self, desk: Desk) -> None:
        mine = saved(desk.files, "mine", b"my image", Purpose.USER_DATA)
        bodies = [{"image": IMAGE}, {"image": mine.id}, {"image": "https://site/a.jpg"}]

        batch = desk.advance(desk.begin(jsonl(line("a", {"model": "demo", "input": bodies}))))

        assert desk.jobs.items[batch.id] == [
            {"custom_id": "a", "bytes": b"an image"},
            {"custom_id": "a", "bytes": b"my image"},
            {"custom_id": "a", "url": "https://site/a.jpg"},
        ]

    def test_a_file_that_is_no_image_by_its_size(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("clipfleet_gateway.inputs.own_files.MOST_IMAGE_BYTES", 3)
        mine = saved(desk.files, "mine", b"large", Purpose.USER_DATA)

        found = errors_of(desk, jsonl(line("a", {"model": "demo", "input": {"image": mine.id}})))

        assert found == [(1, "image_too_large", "input")]

    def test_each_mention_of_an_own_file_counts(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        """A batch copies its images: a small upload must not fill the disk."""
        monkeypatch.setattr("clipfleet_gateway.batches.validation.MOST_BATCH_BYTES", 30)
        mine = saved(desk.files, "mine", b"0123456789", Purpose.USER_DATA)

        def lines(*mentions: int) -> bytes:
            return jsonl(
                *[
                    line(f"{n}", {"model": "demo", "input": [{"image": mine.id}] * count})
                    for n, count in enumerate(mentions)
                ]
            )

        assert errors_of(desk, lines(2, 2, 1)) == [(2, "too_many_bytes", "input[1]")]
        assert errors_of(desk, lines(2, 1)) == []


class TestZeroShot:
    def test_label_sets_per_line(self, desk: Desk) -> None:
        lines = [
            zero_shot("a", ["cat", "dog"]),
            zero_shot("b", ["x", "y", "z"]),
            zero_shot("c", ["cat", "dog"]),
        ]

        batch = desk.advance(desk.begin(jsonl(*lines), Endpoint.ZERO_SHOT))

        assert batch.checked is not None
        assert (batch.checked.task, batch.checked.top_k) == (Task.CLASSIFY, 3)
        assert [one.labels for one in desk.jobs.label_sets] == [("cat", "dog"), ("x", "y", "z")]
        assert [item["label_set"] for item in desk.jobs.items[batch.id]] == ["set_0", "set_1", "set_0"]

    def test_the_sole_model_is_the_default(self, desk: Desk) -> None:
        one = zero_shot("a", ["cat", "dog"])
        del one["body"]["model"]

        assert errors_of(desk, jsonl(one), Endpoint.ZERO_SHOT) == []

    @pytest.mark.parametrize(
        ("wrong", "param"),
        [
            ({"parameters": {"candidate_labels": ["cat"]}}, "parameters.candidate_labels"),
            ({"parameters": {"candidate_labels": ["cat", "cat"]}}, "parameters.candidate_labels"),
            (
                {"parameters": {"candidate_labels": ["a", "b"], "hypothesis_template": "x"}},
                "parameters.hypothesis_template",
            ),
            ({"inputs": "/etc/x.jpg"}, "inputs"),
        ],
    )  # fmt: skip
    def test_what_is_wrong(self, desk: Desk, wrong: dict[str, Any], param: str) -> None:
        found = errors_of(desk, jsonl(zero_shot("a", ["cat", "dog"], **wrong)), Endpoint.ZERO_SHOT)

        assert [(number, name) for number, _, name in found] == [(1, param)]

    def test_label_sets_are_bounded(self, desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("clipfleet_gateway.batches.validation.MOST_LABEL_SETS", 2)
        lines = [zero_shot(f"{n}", ["cat", f"dog {n}"]) for n in range(5)]

        found = errors_of(desk, jsonl(*lines), Endpoint.ZERO_SHOT)

        assert found == [(3, "too_many_label_sets", "parameters.candidate_labels")]
