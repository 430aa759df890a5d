"""Model names: the short forms, and the one full name that producers and workers compare.

Pure text: only a worker knows whether the model exists.
"""

from __future__ import annotations

import os.path
import re

from clipfleet.contract.jobs import DEFAULT_MODEL, DEMO_MODEL

HUB = "hf-hub:"
LOCAL_DIR = "local-dir:"

_REPOSITORY = re.compile(r"[\w.-]+/[\w.-]+")
_WAYS = (
    f"write NAME:PRETRAINED (for example {DEFAULT_MODEL}), {HUB}ORG/REPOSITORY, the path of a folder "
    f"(./FOLDER or {LOCAL_DIR}PATH), or {DEMO_MODEL}"
)


def normalise_model(name: str) -> str:
    """Return the full name of a model. Relative paths are resolved against the current folder.

    `ViT-B-32` alone means the default weights; any other architecture must name its weights, since open_clip
    would otherwise fill it with random numbers.

    Raises:
        ValueError: the name is incomplete; the message lists the valid forms.
    """
    name = name.strip()
    if name in (DEMO_MODEL, DEFAULT_MODEL):
        return name
    if name == DEFAULT_MODEL.partition(":")[0]:
        return DEFAULT_MODEL
    if name.startswith(HUB):
        if not _REPOSITORY.fullmatch(name.removeprefix(HUB)):
            raise ValueError(f"model {name!r} is not a repository of the hub: {_WAYS}")
        return name
    is_folder = name.startswith(LOCAL_DIR) or _is_path(name)
    path = name.removeprefix(LOCAL_DIR)
    if is_folder and path:
        return f"{LOCAL_DIR}{_absolute(path)}"
    architecture, _, pretrained = name.partition(":")
    if not (architecture and pretrained):
        raise ValueError(f"model {name!r} does not name its weights: {_WAYS}")
    return f"{architecture}:{_absolute(pretrained)}" if "/" in pretrained else name


def is_local_model(model: str) -> bool:
    """Whether a full name is that of files on this machine, which may be the copy of any model."""
    return model.startswith(LOCAL_DIR) or (not model.startswith(HUB) and "/" in model)


def _is_path(name: str) -> bool:
    """Whether a name looks like a path: it has a slash, which no architecture has, or is `.`, `..` or `~`."""
    return name in (".", "..", "~") or "/" in name.partition(":")[0]


def _absolute(path: str) -> str:
    full = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100,PTH111 - pathlib keeps `..`
    if "," in full:
        raise ValueError(f"model {full!r} has a comma in its path: in a list of models it would end the name")
    return full
