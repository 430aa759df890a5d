"""`/v1/embeddings`: the items of a body, and the body of an answer."""

from __future__ import annotations

import base64
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from clipfleet.contract.jobs import Task
from clipfleet_gateway.errors import invalid
from clipfleet_gateway.inputs.asked import Asked, Item, full_model
from clipfleet_gateway.inputs.images import image_item, is_image_uri
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.shapes.embeddings import (
    MOST_TEXT_CHARACTERS,
    Embedding,
    EmbeddingsAnswer,
    EmbeddingsRequest,
    EncodingFormat,
    ImagePart,
    InputObject,
    Message,
    Modality,
    OneInput,
    Usage,
)

if TYPE_CHECKING:
    import numpy as np

_ONE_VECTOR = "messages: one image or one text makes a vector, and these have {}; send several in `input`"


def asked_of_embedding(body: EmbeddingsRequest, key: Key) -> Asked:
    """What a body asks for, if all of its inputs are of one kind.

    Raises:
        ApiError: an input is wrong or of another kind than the first, or the key must not read it.
    """
    params, items = zip(*_items(body, key), strict=True)
    is_text = isinstance(items[0], str)
    for param, item in zip(params, items, strict=True):
        if isinstance(item, str) != is_text:
            raise invalid(f"{param}: these inputs must be all texts or all images", param, "mixed_inputs")
    return Asked(Task.EMBED_TEXT if is_text else Task.EMBED, full_model(body.model), None, items, params)


def all_asked_of_embedding(body: EmbeddingsRequest, key: Key) -> tuple[tuple[Asked, tuple[int, ...]], ...]:
    """What a body asks for, by task, with the positions of the items in it. Raises like the above."""
    placed = list(enumerate(_items(body, key)))
    found = []
    for task in (Task.EMBED, Task.EMBED_TEXT):
        some = [one for one in placed if isinstance(one[1][1], str) == (task is Task.EMBED_TEXT)]
        if some:
            positions, pairs = zip(*some, strict=True)
            params, items = zip(*pairs, strict=True)
            found.append((Asked(task, full_model(body.model), None, items, params), positions))
    return tuple(found)


def _items(body: EmbeddingsRequest, key: Key) -> Iterator[tuple[str, Item]]:
    """Each item, after its place in the body."""
    if body.messages is not None:
        yield "messages", _item(_only_part(body.messages), body.modality, key, "messages")
    elif isinstance(body.input, tuple):
        for position, given in enumerate(body.input):
            param = f"input[{position}]"
            yield param, _item(given, body.modality, key, param)
    elif body.input is not None:
        yield "input", _item(body.input, body.modality, key, "input")


def _item(given: OneInput, modality: Modality | None, key: Key, param: str) -> Item:
    if not isinstance(given, str):
        if given.image is not None:
            return image_item(given.image, key, param)
        text = given.text or ""
    elif modality is Modality.IMAGE or is_image_uri(given):
        return image_item(given, key, param)
    else:
        text = given
    if not text.strip():
        raise invalid(f"{param} is empty", param, "empty_input")
    if len(text) > MOST_TEXT_CHARACTERS:
        raise invalid(f"{param} has more than {MOST_TEXT_CHARACTERS:,} characters", param, "text_too_long")
    return text


def _only_part(messages: Sequence[Message]) -> OneInput:
    """The one image or text of some messages."""
    found = []
    for message in messages:
        if isinstance(message.content, str):
            found.append(InputObject(text=message.content))
            continue
        found += [
            InputObject(image=part.image_url.url)
            if isinstance(part, ImagePart)
            else InputObject(text=part.text)
            for part in message.content
        ]
    if len(found) != 1:
        said = f"{len(found):,} parts" if found else "none"
        raise invalid(_ONE_VECTOR.format(said), "messages", "one_input")
    return found[0]


def embedding_answer(body: EmbeddingsRequest, model: str, vectors: Sequence[np.ndarray]) -> EmbeddingsAnswer:
    """The answer to a body.

    Args:
        body: the request.
        model: its full name.
        vectors: of its inputs, in their order, each (d,) of any float type.

    Raises:
        ApiError: the request wants another length than that of the model's vectors.
    """
    for vector in vectors[:1]:
        if body.dimensions not in (None, len(vector)):
            raise invalid(
                f"dimensions: vectors of {model} have {len(vector)} dimensions and are never cut; "
                f"leave it out, or give {len(vector)}",
                "dimensions",
            )
    is_base64 = body.encoding_format is EncodingFormat.BASE64
    data = tuple(
        Embedding.model_construct(
            object="embedding", index=index, embedding=_base64(vector) if is_base64 else _floats(vector)
        )
        for index, vector in enumerate(vectors)
    )
    usage = Usage(prompt_tokens=len(vectors), total_tokens=len(vectors))
    return EmbeddingsAnswer.model_construct(object="list", data=data, model=model, usage=usage)


def _base64(vector: np.ndarray) -> str:
    return base64.b64encode(vector.astype("<f4").tobytes()).decode()


def _floats(vector: np.ndarray) -> tuple[float, ...]:
    return tuple(vector.astype("<f8").tolist())
