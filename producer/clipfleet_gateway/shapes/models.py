"""The models that can be asked for, as OpenAI lists them."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clipfleet.contract.label_sets import FrozenModel

POLICY = "policy"


class ModelObject(FrozenModel):
    """A model that a worker serves now, or a policy, which is the model of moderations."""

    id: str = Field(description="what a request names it by: `NAME:PRETRAINED`, `demo`, or a policy's name")
    object: Literal["model"] = "model"
    created: int = Field(0, description="always 0: no worker says when its model was made")
    owned_by: str = Field("clipfleet", description="`policy` of a policy")


class ModelList(FrozenModel):
    """All models that workers serve now, by name, then all policies."""

    object: Literal["list"] = "list"
    data: list[ModelObject]
