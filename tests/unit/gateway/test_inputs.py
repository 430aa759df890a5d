"""What a body of /v1/embeddings or /v1/zero-shot asks for, in the words of many."""

from __future__ import annotations

import base64
import json
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pytest

from clipfleet.contract.jobs import DEFAULT_MODEL, Task
from clipfleet_gateway.errors import ApiError
from clipfleet_gateway.inputs import images
from clipfleet_gateway.inputs.asked import Asked, Item
from clipfleet_gateway.inputs.embeddings import (
    all_asked_of_embedding,
    asked_of_embedding,
    embedding_answer,
)
from clipfleet_gateway.inputs.images import own_file_id
from clipfleet_gateway.inputs.zero_shot import asked_of_zero_shot, zero_shot_answer
from clipfleet_gateway.keys.key import Key, made_key
from clipfleet_gateway.shapes.bodies import parsed
from clipfleet_gateway.shapes.embeddings import EmbeddingsRequest
from clipfleet_gateway.shapes.zero_shot import ZeroShotRequest

JPEG = b"\xff\xd8\xff\xe0" + bytes(range(256))
BASE64 = base64.b64encode(JPEG).decode()
DATA = f"data:image/jpeg;base64,{BASE64}"


def key(*sources: str) -> Key:
    return made_key("mine", "0" * 64, datetime.now(UTC), lane="normal", quota=None, sources=sources)  # type: ignore[arg-type]  # pydantic converts it


def body(**fields: Any) -> EmbeddingsRequest:
    return parsed(EmbeddingsRequest, json.dumps({"model": "demo", **fields}))


def asked(*sources: str, **fields: Any) -> Asked:
    return asked_of_embedding(body(**fields), key(*sources))


def refused(**fields: Any) -> ApiError:
    with pytest.raises(ApiError) as caught:
        asked(**fields)
    return caught.value


def test_texts() -> None:
    assert asked(input="a cat") == Asked(Task.EMBED_TEXT, "demo", None, ("a cat",), ("input",))
    found = asked(input=["a cat", {"text": "a dog"}])
    assert found.items == ("a cat", "a dog") and found.params == ("input[0]", "input[1]")
    assert asked(input="a cat", modality="text", user="u", unknown=[1]).task is Task.EMBED_TEXT


@pytest.mark.parametrize(
    ("given", "item"),
    [
        (DATA, {"bytes": JPEG}),
        (f"DATA:image/jpeg;charset=x;BASE64,{BASE64}", {"bytes": JPEG}),
        ("data:,%FF%d8ab", {"bytes": b"\xff\xd8ab"}),
        ("data:;base64," + BASE64.replace("+", "%2B").replace("/", "%2F"), {"bytes": JPEG}),
        (BASE64, {"bytes": JPEG}),
        (BASE64.rstrip("="), {"bytes": JPEG}),
        (base64.urlsafe_b64encode(JPEG).decode(), {"bytes": JPEG}),
        (base64.encodebytes(JPEG).decode(), {"bytes": JPEG}),
        ("https://example.com/a.jpg", {"url": "https://example.com/a.jpg"}),
        ("file-abc123", {"url": "file-abc123"}),
    ],
)
def test_images(given: str, item: Item) -> None:
    for fields in (
        {"input": {"image": given}},
        {"input": [{"image": given}]},
        {"input": given, "modality": "image"},
        {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {"url": given}}]}]},
    ):
        found = asked(**fields)
        assert (found.task, found.items) == (Task.EMBED, (item,))
    assert own_file_id(item) == (given if given.startswith("file-") else None)


def test_a_uri_of_an_image_is_an_image_without_a_modality() -> None:
    assert asked(input=[DATA]).items == ({"bytes": JPEG},)
    assert asked(input="data: the new oil").task is Task.EMBED_TEXT


def test_places_below_a_prefix_of_the_key() -> None:
    assert asked("s3://photos/2026/", input={"image": "s3://photos/2026/a.jpg"}).items == (
        {"url": "s3://photos/2026/a.jpg"},
    )
    for address in ("s3://photos/2025/a.jpg", "/etc/host.conf", "file:///etc/passwd", "ftp://x/a.jpg"):
        error = refused(input=["a.jpg", {"image": address}])
        assert (error.status, error.param) == (403, "input[1]")


@pytest.mark.parametrize(
    "address", ["/etc/passwd", "/etc/hosts", "/", "//etc/passwd", "/proc/1/environ", "/9j"]
)
def test_a_path_that_base64_could_spell_is_a_path(address: str) -> None:
    error = refused(input=["a.jpg", {"image": address}])

    assert (error.status, error.code, error.param) == (403, "not_allowed", "input[1]")


def test_a_path_without_a_dot_below_a_prefix_of_the_key() -> None:
    assert asked("/photos/", input={"image": "/photos/2026/cat0"}).items == ({"url": "/photos/2026/cat0"},)


def test_a_message_is_one_image_or_one_text() -> None:
    assert asked(messages=[{"role": "user", "content": "a cat"}]).items == ("a cat",)
    parts = [{"type": "text", "text": "a cat"}, {"type": "image_url", "image_url": {"url": DATA}}]
    for messages in ([{"role": "user", "content": parts}], [{"content": "a"}, {"content": "b"}], []):
        error = refused(messages=messages)
        assert (error.status, error.param, error.code) == (400, "messages", "one_input")
    error = refused(messages=[{"content": [{"type": "input_audio"}]}])
    assert error.param == "messages[0].content[0]" and "image_url or text" in error.message


@pytest.mark.parametrize(
    ("fields", "param", "words"),
    [
        ({"input": [1, 2, 3]}, "input[0]", "tokens cannot be embedded"),
        ({"input": [[1, 2], [3]]}, "input[0]", "tokens cannot be embedded"),
        ({"input": ["a", None]}, "input[1]", "must be text"),
        ({"input": 5}, "input", "must be text"),
        ({"input": []}, "input", "input: must have at least 1 item, not 0"),
        ({"input": ["a"] * 2049}, "input", "input: must have at most 2048 items, not 2049"),
        ({"input": ""}, "input", "input is empty"),
        ({"input": ["a", " \n"]}, "input[1]", "input[1] is empty"),
        ({"input": ["a", {"image": ""}]}, "input[1]", "input[1] is empty"),
        ({"input": {"image": "data:image/png;base64,"}}, "input", "empty image"),
        ({"input": ["a", {}]}, "input[1]", "either `text` or `image`"),
        ({"input": {"text": "a", "image": DATA}}, "input", "either `text` or `image`"),
        ({"input": {"image": 5}}, "input.image", "not text"),
        ({"input": {"image": DATA, "url": "x"}}, "input.url", "unknown"),
        ({"input": "a" * 100_001}, "input", "more than 100,000 characters"),
        ({"input": DATA + "!"}, "input", "not valid base64"),
        ({"input": {"image": "data:image/png;base64"}}, "input", "without a comma"),
        ({"input": {"image": "QUJDR"}}, "input", "not valid base64"),
        ({"input": {"image": "QUJDR" * 2000 + "!"}}, "input", "neither valid base64 nor an address"),
        ({}, None, "either `input` or `messages`"),
        ({"input": "a", "messages": []}, None, "either `input` or `messages`"),
        ({"input": "a", "encoding_format": "int8"}, "encoding_format", "'float' or 'base64'"),
        ({"input": "a", "modality": "audio"}, "modality", "'text' or 'image'"),
        ({"input": "a", "dimensions": float("nan")}, "dimensions", "whole number"),
        ({"input": "a", "dimensions": True}, "dimensions", "whole number"),
        ({"input": "a", "dimensions": 0}, "dimensions", "less than 1"),
        ({"input": "a", "model": ""}, "model", "at least 1 character"),
    ],
)
def test_what_is_wrong_is_named(fields: dict[str, Any], param: str | None, words: str) -> None:
    error = refused(**fields)
    assert (error.status, error.param) == (400, param)
    assert words in error.message


@pytest.mark.parametrize(
    "text", ["", "{", "[" * 100_000, '{"model": "demo", "input": "\\ud800"}', "\xff", "[]"]
)
def test_what_is_no_body(text: str) -> None:
    with pytest.raises(ApiError) as caught:
        parsed(EmbeddingsRequest, text.encode("latin-1"))
    assert caught.value.status == 400 and len(caught.value.message) < 1000


def test_a_large_image_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "MOST_IMAGE_BYTES", len(JPEG) - 1)
    spaced = base64.encodebytes(JPEG).decode()
    for given in (DATA, base64.b64encode(JPEG * 3).decode(), spaced):
        assert refused(input={"image": given}).code == "image_too_large"


def test_texts_and_images_of_one_body_are_two_tasks() -> None:
    fields = {"input": ["a cat", DATA, {"text": "a dog"}]}

    (images_asked, image_positions), (texts, text_positions) = all_asked_of_embedding(body(**fields), key())

    assert (images_asked.task, image_positions, images_asked.params) == (Task.EMBED, (1,), ("input[1]",))
    assert (texts.items, text_positions) == (("a cat", "a dog"), (0, 2))
    error = refused(**fields)
    assert (error.param, error.code) == ("input[1]", "mixed_inputs")


def test_the_short_name_of_the_default_model() -> None:
    assert asked(input="a", model="ViT-B-32").model == DEFAULT_MODEL
    assert asked(input="a", model="../models/x").model == "../models/x"


def test_vectors_are_numbers_or_little_endian_float32() -> None:
    vectors = [np.asarray(values, np.float16) for values in ([0.5, -1.0, 0.25], [0.0, 1.0, 2.0])]

    numbers = json.loads(embedding_answer(body(input=["a", "b"]), "demo", vectors).model_dump_json())
    coded = json.loads(
        embedding_answer(body(input=["a", "b"], encoding_format="base64"), "demo", vectors).model_dump_json()
    )

    assert numbers == {
        "object": "list",
        "data": [
            {"object": "embedding", "index": 0, "embedding": [0.5, -1.0, 0.25]},
            {"object": "embedding", "index": 1, "embedding": [0.0, 1.0, 2.0]},
        ],
        "model": "demo",
        "usage": {"prompt_tokens": 2, "total_tokens": 2},
    }
    decoded = [np.frombuffer(base64.b64decode(one["embedding"]), "<f4").tolist() for one in coded["data"]]
    assert decoded == [one["embedding"] for one in numbers["data"]]


def test_dimensions_must_be_those_of_the_model() -> None:
    vector = np.zeros(3, np.float16)
    assert embedding_answer(body(input="a", dimensions=3), "demo", [vector]).data[0].index == 0
    with pytest.raises(ApiError, match="have 3 dimensions") as caught:
        embedding_answer(body(input="a", dimensions=2), "demo", [vector])
    assert (caught.value.status, caught.value.param) == (400, "dimensions")


def zero_shot(**fields: Any) -> Asked:
    labels = {"parameters": {"candidate_labels": ["cat", "dog"]}}
    request = {"model": "demo", "inputs": BASE64, **labels, **fields}
    return asked_of_zero_shot(parsed(ZeroShotRequest, json.dumps(request)), key())


@pytest.mark.parametrize("given", [BASE64, DATA, {"image": BASE64}, {"image": DATA}])
def test_labels_of_hugging_face(given: object) -> None:
    found = zero_shot(inputs=given)

    assert (found.task, found.items, found.params) == (Task.CLASSIFY, ({"bytes": JPEG},), ("inputs",))
    assert found.label_set is not None and found.label_set.labels == ("cat", "dog")
    assert found.label_set.templates == ("a photo of a {}",)


def test_a_template() -> None:
    parameters = {"candidate_labels": ["cat", "dog"], "hypothesis_template": "a drawing of {}."}
    found = zero_shot(parameters=parameters, options={"wait_for_model": True})
    assert found.label_set is not None and found.label_set.templates == ("a drawing of {}.",)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (["cat"], "must have at least 2 items, not 1"),
        ("cat, dog", "'cat, dog' is not a list"),
    ],
)
def test_what_is_no_list_of_labels_is_said_in_words_of_json(given: object, words: str) -> None:
    with pytest.raises(ApiError) as caught:
        zero_shot(parameters={"candidate_labels": given})
    assert caught.value.message == f"parameters.candidate_labels: {words}"


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"inputs": 5}, "inputs"),
        ({"inputs": {"text": "x"}}, "inputs.image"),
        ({"inputs": "https://"}, "inputs"),
        ({"inputs": "data:image/png;base64,!"}, "inputs"),
        ({"parameters": {}}, "parameters.candidate_labels"),
        ({"parameters": None}, "parameters"),
        ({"parameters": {"candidate_labels": "cat, dog"}}, "parameters.candidate_labels"),
        ({"parameters": {"candidate_labels": ["cat"]}}, "parameters.candidate_labels"),
        ({"parameters": {"candidate_labels": ["cat", "cat"]}}, "parameters.candidate_labels"),
        ({"parameters": {"candidate_labels": ["cat", " "]}}, "parameters.candidate_labels"),
        ({"parameters": {"candidate_labels": ["cat", 1]}}, "parameters.candidate_labels[1]"),
        (
            {"parameters": {"candidate_labels": ["cat", "dog"], "hypothesis_template": "a photo"}},
            "parameters.hypothesis_template",
        ),
        (
            {"parameters": {"candidate_labels": ["cat", "dog"], "multi_label": True}},
            "parameters.multi_label",
        ),
        ({"model": None}, "model"),
    ],
)
def test_what_is_wrong_with_labels_is_named(fields: dict[str, Any], param: str) -> None:
    with pytest.raises(ApiError) as caught:
        zero_shot(**fields)
    assert caught.value.param == param
    assert caught.value.status in (400, 403)


def test_labels_are_answered_best_first() -> None:
    answer = zero_shot_answer(["cat", "dog", "owl"], [0.2, 0.7, 0.1])
    assert json.loads(answer.model_dump_json()) == [
        {"label": "dog", "score": 0.7},
        {"label": "cat", "score": 0.2},
        {"label": "owl", "score": 0.1},
    ]
