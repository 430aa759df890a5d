"""What a model is called: the short ways to say it, and the one full name that producers and workers compare.

Nothing is looked up here: whether there is such a model, only a worker can tell.
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
    """The full name of a model as given by a user. Relative paths count from the current folder.

    `ViT-B-32` alone means the default weights; any other architecture must name its weights, since open_clip
    would otherwise fill it with random numbers.

    Raises:
        ValueError: the name does not name its weights are meant; the message names the ways to say it.
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


def _is_path(name: str) -> bool:
    """Whether a name reads like a path: no architecture has a slash, and what has none must say `./`."""
    return name in (".", "..", "~") or "/" in name.partition(":")[0]


def _absolute(path: str) -> str:
    full = os.path.abspath(os.path.expanduser(path))  # noqa: PTH100,PTH111 - pathlib keeps `..`
    if "," in full:
        raise ValueError(f"model {full!r} has a comma in its path: in a list of models it would end the name")
    return full
