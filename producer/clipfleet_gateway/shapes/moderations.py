"""`POST /v1/moderations` in OpenAI's shape, for images and the policies of the gateway's place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Discriminator, Field, Tag

from clipfleet.contract.policies import DecisionStatus
from clipfleet_gateway.shapes.bodies import Shape
from clipfleet_gateway.shapes.embeddings import ImagePart, ModelName

_NO_IMAGE = (
    'must be one image, {"type": "image_url", "image_url": {"url": URL or data: URI}}, alone or in a list; '
    "policies decide on images: text is not moderated"
)


def _kind_of_part(value: Any) -> str | None:
    kind = value.get("type") if isinstance(value, dict) else getattr(value, "type", None)
    return "<image>" if kind == "image_url" else None


def _kind(value: object) -> str | None:
    return "<list>" if isinstance(value, list | tuple) else _kind_of_part(value)


_Part = Annotated[
    Annotated[ImagePart, Tag("<image>")],
    Discriminator(_kind_of_part, custom_error_type="input", custom_error_message=_NO_IMAGE),
]
ModerationInput = Annotated[
    Annotated[ImagePart, Tag("<image>")]
    | Annotated[
        tuple[_Part, ...],
        Field(min_length=1, max_length=1, strict=False, fail_fast=True),
        Tag("<list>"),
    ],
    Discriminator(_kind, custom_error_type="input", custom_error_message=_NO_IMAGE),
]


class ModerationRequest(Shape):
    """An image, and the policy that decides on it."""

    model: Annotated[
        ModelName | None,
        Field(
            description="name of a policy, or `NAME@DIGITS` with the first digits of the hash of one of its "
            "versions; default: the only policy"
        ),
    ] = None
    input: Annotated[ModerationInput, Field(description="one image, as `image` of `/v1/embeddings`")]


class Reason(Shape):
    """A condition of a rule that counted, or of an undecided image one without a score."""

    rule: Annotated[str, Field(description="its name, or `rule 3`")]
    action: Annotated[
        str, Field(description="of the rule: `flag`, `review` or `allow`; `undecided`: there is no score")
    ]
    label_set: Annotated[str | None, Field(description="whose label it is; null: of a head")] = None
    head: str | None = None
    label: Annotated[str | None, Field(description="null: the number of a head")] = None
    score: float | None = None
    threshold: Annotated[
        float | None, Field(description="what the score is compared with; null: the head chose the label")
    ] = None
    test: Annotated[str, Field(description="`at_least`, `below` or `chosen`")]
    threshold_source: Annotated[str, Field(description="how well the threshold is proven")]


class ItemFailure(Shape):
    """Why an image could not be judged."""

    code: Annotated[str, Field(description="as in rows, such as `not_found`")]
    detail: str


class ModerationResult(Shape):
    """The decision on an image, with its evidence."""

    flagged: Annotated[bool, Field(description="false only if the decision is `allow`")]
    categories: Annotated[
        Mapping[str, bool],
        Field(
            description="by label: whether it counted for `flag` or `review`; a label of several label sets "
            "or heads is `set/label`"
        ),
    ]
    category_scores: Annotated[
        Mapping[str, float | None], Field(description="by label; null: there is no score")
    ]
    category_applied_input_types: Annotated[
        Mapping[str, tuple[Literal["image"], ...]], Field(description="by label: always `image`")
    ]
    decision: Annotated[
        DecisionStatus, Field(description="`undecided`: the image could not be judged, see `error`")
    ]
    decision_id: Annotated[str, Field(description="of its record, see `/v1/decisions/{decision_id}`")]
    reasons: tuple[Reason, ...]
    error: ItemFailure | None


class ModerationAnswer(Shape):
    """The decision of a policy."""

    id: str
    model: Annotated[str, Field(description="name of the policy")]
    results: Annotated[tuple[ModerationResult, ...], Field(description="always one")]
