"""Where the file of a head is written, and what its name is. Opens no head."""

from __future__ import annotations

import re
from pathlib import Path

from clipfleet.contract.label_sets import LABEL_SET_NAME_PATTERN
from clipfleet.errors import UsageError
from clipfleet.heads.files import SUFFIX

_NAME = re.compile(LABEL_SET_NAME_PATTERN)


def require_new(path: Path, *, overwrite: bool) -> None:
    """Refuse a path that no head is written to, before the work for it begins.

    Raises:
        UsageError: its name does not end as heads do, its folder does not exist, or it exists and
            `overwrite` is False.
    """
    if not path.name.endswith(SUFFIX) or path.name == SUFFIX:
        raise UsageError(f"{path}: the file of a head ends in {SUFFIX}, such as taste{SUFFIX}")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: its folder does not exist")
    if path.is_dir():
        raise UsageError(f"{path}: is a folder")
    if path.exists() and not overwrite:
        raise UsageError(f"{path}: exists; write another file, or replace it with `overwrite=True`")


def head_name(path: Path, given: str | None = None) -> str:
    """The name of a head, which its columns have: the given one, else that of its file.

    In the name of a file, other characters become `_`.

    Raises:
        UsageError: the given name is not one that columns can have.
    """
    if given is not None:
        if not _NAME.match(given):
            raise UsageError(
                f"`name=` {given!r}: a name begins with a letter and has at most 40 letters, digits and _"
            )
        return given
    plain = re.sub(r"[^A-Za-z0-9]+", "_", path.name.removesuffix(SUFFIX)).strip("_")
    return (plain if plain[:1].isalpha() else f"head_{plain}".strip("_"))[:40]
