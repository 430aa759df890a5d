"""The models that can be asked for, as OpenAI lists them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clipfleet.contract.label_sets import FrozenModel


class ModelObject(FrozenModel):
    """A model that a worker serves now."""

    id: str = Field(description="what a request names it by: `NAME:PRETRAINED`, or `demo`")
    object: Literal["model"] = "model"
    created: int = Field(0, description="always 0: no worker says when its model was made")
    owned_by: str = "clipfleet"


class ModelList(FrozenModel):
    """All models that workers serve now, by name."""

    object: Literal["list"] = "list"
    data: list[ModelObject]
