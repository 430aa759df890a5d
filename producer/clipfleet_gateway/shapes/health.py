"""What probes are answered with."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from clipfleet.contract.label_sets import FrozenModel


class Health(FrozenModel):
    """The process answers."""

    status: Literal["ok"] = "ok"


class Readiness(FrozenModel):
    """Whether what the gateway stands on can be reached."""

    status: Literal["ok", "unavailable"]
    redis: str = Field(description="`ok`, `no answer`, or the kind of the error")
    place: str = Field(description="the same of the gateway's folder or bucket, whose keys are read")
