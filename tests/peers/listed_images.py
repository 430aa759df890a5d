"""Images beside a list of them, some of which are missing."""

from __future__ import annotations

from collections.abc import Callable, Collection
from pathlib import Path

from tests.support.images import encoded, make_image


def write_list(
    folder: Path, items: int, bad: Collection[int], column: str, value_of: Callable[[int], object]
) -> None:
    """Write `list.csv` with an id, a path and one more column per image, and all images but the bad ones."""
    lines = [f"id,path,{column}"]
    for number in range(items):
        if number not in bad:
            (folder / f"{number}.jpg").write_bytes(encoded(make_image(number)))
        lines.append(f"id-{number},{number}.jpg,{value_of(number)}")
    (folder / "list.csv").write_text("\n".join(lines) + "\n")
