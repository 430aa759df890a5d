"""`POST /v1/zero-shot`: Hugging Face's task zero-shot-image-classification."""

from __future__ import annotations

from typing import Annotated

from pydantic import Discriminator, Field, RootModel, Tag

from clipfleet.contract.label_sets import DEFAULT_TEMPLATE
from clipfleet_gateway.shapes.bodies import Shape, StrictShape
from clipfleet_gateway.shapes.embeddings import ModelName

MOST_LABELS = 1000
_MOST_LABEL_CHARACTERS = 1000


class ImageObject(StrictShape):
    """An image."""

    image: Annotated[
        str,
        Field(
            description="an http(s) URL, a data: URI, base64, the id of an own file, or an s3:// URI or a "
            "path that the key may read"
        ),
    ]


def _kind(value: object) -> str | None:
    if isinstance(value, str):
        return "<text>"
    return "<object>" if isinstance(value, dict | ImageObject) else None


ZeroShotInput = Annotated[
    Annotated[str, Tag("<text>")] | Annotated[ImageObject, Tag("<object>")],
    Discriminator(
        _kind,
        custom_error_type="input",
        custom_error_message='must be one image: base64, a URL, a data: URI, or {"image": ...}',
    ),
]


class ZeroShotParameters(StrictShape):
    """The labels to choose from."""

    candidate_labels: Annotated[
        tuple[Annotated[str, Field(max_length=_MOST_LABEL_CHARACTERS)], ...],
        Field(
            min_length=2,
            max_length=MOST_LABELS,
            strict=False,
            description="labels, each once",
            fail_fast=True,
        ),
    ]
    hypothesis_template: Annotated[
        str, Field(max_length=_MOST_LABEL_CHARACTERS, description="prompt with {} in place of the label")
    ] = DEFAULT_TEMPLATE


class ZeroShotRequest(Shape):
    """An image, and the labels to choose from."""

    inputs: Annotated[ZeroShotInput, Field(description="the image, as `image` of an object or bare")]
    parameters: ZeroShotParameters
    model: Annotated[
        ModelName | None, Field(description="default: the one that is served, if there is only one")
    ] = None


class LabelScore(Shape):
    """A label, and how well it fits compared to the others."""

    label: str
    score: Annotated[float, Field(description="share of the softmax over all labels")]


class ZeroShotAnswer(RootModel[tuple[LabelScore, ...]]):
    """All labels, the best first."""
