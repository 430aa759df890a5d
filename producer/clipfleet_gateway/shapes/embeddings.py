"""`POST /v1/embeddings`: OpenAI's shape, with the images of Jina, infinity and vLLM."""

from __future__ import annotations

from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Discriminator, Field, StrictInt, Tag, model_validator

from clipfleet.contract.jobs import MAX_DIMENSION
from clipfleet_gateway.shapes.bodies import Shape, StrictShape

MOST_INPUTS = 2048
MOST_TEXT_CHARACTERS = 100_000
_MOST_MESSAGES = 100  # of a body, and parts of a message
_MOST_NAME_CHARACTERS = 500
_NO_INPUT = (
    'must be text, {"text": TEXT} or {"image": URL or base64}, or a list of them; '
    "tokens cannot be embedded: send the text"
)

ModelName = Annotated[
    str,
    Field(min_length=1, max_length=_MOST_NAME_CHARACTERS, description="model, as `/v1/models` lists it"),
]


class EncodingFormat(StrEnum):
    """How vectors are written."""

    FLOAT = "float"
    BASE64 = "base64"


class Modality(StrEnum):
    """What strings in `input` are."""

    TEXT = "text"
    IMAGE = "image"


class InputObject(StrictShape):
    """A text or an image."""

    text: Annotated[str | None, Field(description="a text")] = None
    image: Annotated[
        str | None,
        Field(
            description="an image: an http(s) URL, a data: URI, base64, the id of an own file, or an s3:// "
            "URI or a path that the key may read"
        ),
    ] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.text is None) == (self.image is None):
            raise ValueError("give either `text` or `image`")
        return self


def _kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    if isinstance(value, dict | InputObject):
        return "<object>"
    return "<list>" if isinstance(value, list | tuple) else None


def _kind_of_one(value: object) -> str | None:
    return None if isinstance(value, list | tuple) else _kind(value)


OneInput = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[InputObject, Tag("<object>")],
    Discriminator(_kind_of_one, custom_error_type="input", custom_error_message=_NO_INPUT),
]
Inputs = Annotated[
    Annotated[str, Tag("<text>")]
    | Annotated[InputObject, Tag("<object>")]
    | Annotated[
        tuple[OneInput, ...],
        Field(min_length=1, max_length=MOST_INPUTS, strict=False, fail_fast=True),
        Tag("<list>"),
    ],
    Discriminator(_kind, custom_error_type="input", custom_error_message=_NO_INPUT),
]


class ImageUrl(Shape):
    """Where an image of a message is."""

    url: Annotated[str, Field(description="as `image` of an input")]


class ImagePart(Shape):
    """A part of a message that is an image."""

    type: Literal["image_url"]
    image_url: ImageUrl


class TextPart(Shape):
    """A part of a message that is a text."""

    type: Literal["text"]
    text: str


def _kind_of_part(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return {"image_url": "<image>", "text": "<text>"}.get(kind) if isinstance(kind, str) else None


MessagePart = Annotated[
    Annotated[ImagePart, Tag("<image>")] | Annotated[TextPart, Tag("<text>")],
    Discriminator(
        _kind_of_part, custom_error_type="part", custom_error_message="`type` must be image_url or text"
    ),
]


def _kind_of_content(value: object) -> str | None:
    kind = _kind(value)
    return None if kind == "<object>" else kind


class Message(Shape):
    """One message, as vLLM takes them."""

    role: Annotated[str | None, Field(description="ignored")] = None
    content: Annotated[
        Annotated[str, Tag("<text>")]
        | Annotated[
            tuple[MessagePart, ...],
            Field(max_length=_MOST_MESSAGES, strict=False, fail_fast=True),
            Tag("<list>"),
        ],
        Discriminator(
            _kind_of_content,
            custom_error_type="content",
            custom_error_message="must be a text, or a list of parts",
        ),
        Field(description="a text, or a list of parts"),
    ]


class EmbeddingsRequest(Shape):
    """What to embed, and how to answer."""

    model: ModelName
    input: Annotated[
        Inputs | None,
        Field(description="a text or an image, or a list of them; a data:image/ URI is always an image"),
    ] = None
    messages: Annotated[
        Annotated[tuple[Message, ...], Field(max_length=_MOST_MESSAGES, fail_fast=True)] | None,
        Field(description="instead of `input`: messages with one image or one text in all"),
    ] = None
    modality: Annotated[Modality | None, Field(description="what strings in `input` are; default: texts")] = (
        None
    )
    encoding_format: Annotated[
        EncodingFormat, Field(description="a list of numbers, or base64 of little-endian float32")
    ] = EncodingFormat.FLOAT
    dimensions: Annotated[
        Annotated[StrictInt, Field(ge=1, le=MAX_DIMENSION)] | None,
        Field(description="if given, it must be the length of the model's vectors: they are never cut"),
    ] = None
    user: Annotated[str | None, Field(description="ignored")] = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        if (self.input is None) == (self.messages is None):
            raise ValueError("give either `input` or `messages`")
        return self


class Embedding(Shape):
    """The vector of one input."""

    object: Literal["embedding"] = "embedding"
    index: Annotated[int, Field(description="which input")]
    embedding: Annotated[tuple[float, ...] | str, Field(description="as `encoding_format` says")]


class Usage(Shape):
    """What was used. Inputs are counted, not tokens: an image has none."""

    prompt_tokens: Annotated[int, Field(description="number of inputs")]
    total_tokens: Annotated[int, Field(description="the same")]


class EmbeddingsAnswer(Shape):
    """The vectors, in the order of the inputs."""

    object: Literal["list"] = "list"
    data: tuple[Embedding, ...]
    model: Annotated[str, Field(description="full name of the model")]
    usage: Usage
