"""Names of columns in an export that has columns of its own."""

from __future__ import annotations

from collections.abc import Sequence


def unique_names(columns: Sequence[str], taken: Sequence[str]) -> dict[str, str]:
    """Map names in the export to columns of the part.

    A column of the source with a name that is `taken`, as `url`, becomes `source_url`.
    """
    names: dict[str, str] = {}
    unusable = {*taken, *columns}
    for column in columns:
        name = column
        if name in taken:
            while name in unusable:
                name = f"source_{name}"
        names[name] = column
        unusable.add(name)
    return names
