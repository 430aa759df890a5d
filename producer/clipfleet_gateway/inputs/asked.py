"""What a body asks for: items of one job, each with the name that errors call it by."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from clipfleet.contract.jobs import DEFAULT_MODEL, Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet_gateway.policies.stored import StoredPolicy

# A text, {"url": ...} or {"bytes": ...}, as `Client` takes them; but a url may be the id of an own file.
Item = str | Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Asked:
    """One task over some items."""

    task: Task
    model: str  # full name
    label_set: LabelSet | None  # of a classify task
    items: tuple[Item, ...]
    params: tuple[str, ...]  # of each item: its place in the body, such as `input[3]`
    policy: StoredPolicy | None = None  # that decides on the items
    owner: str = ""  # name of the key whose decisions these are


def full_model(name: str) -> str:
    """The name that workers know a model by. Paths are not resolved: names of models served are exact."""
    return DEFAULT_MODEL if name == DEFAULT_MODEL.partition(":")[0] else name
