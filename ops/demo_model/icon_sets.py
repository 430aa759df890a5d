"""Read the npm packages: emoji names from emojibase-data, drawings from iconify sets.

The only module that knows their layout and the only one that rasterises SVG. Writes nothing.
"""

from __future__ import annotations

import io
import json
import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import resvg_py
from emoji_dataset import Concept
from PIL import Image

_QUOTES = re.compile("['\u2018\u2019\u201c\u201d]")
_SVG = (
    '<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    ' viewBox="0 0 {width} {height}" width="{size}" height="{size}">{body}</svg>'
)


class UnknownAliasError(ValueError):
    """An alias needs a transformation that this module does not draw."""


@dataclass(frozen=True)
class Icon:
    """One drawing."""

    body: str  # the SVG elements inside <svg>
    width: float  # of the view box
    height: float


@dataclass(frozen=True)
class IconSet:
    """The `icons.json` of one iconify package."""

    name: str
    icons: dict[str, dict[str, Any]]
    aliases: dict[str, dict[str, Any]]
    width: float  # of icons that state none
    height: float

    def find(self, slug: str) -> Icon | None:
        """The drawing for a concept's slug, or None if this set has none.

        Tries the name, then the aliases, then Emoji One's spelling of flags ("flag-for-japan").

        Raises:
            UnknownAliasError: the alias is more than another name or a mirror image.
        """
        if slug in self.icons:
            return self._icon(slug)
        if slug in self.aliases:
            return self._aliased(slug)
        if slug.startswith("flag-"):
            country = slug.removeprefix("flag-")
            for name in (f"flag-for-{country}", f"flag-for-flag-{country}"):
                if name in self.icons:
                    return self._icon(name)
        return None

    def _icon(self, name: str) -> Icon:
        raw = self.icons[name]
        return Icon(raw["body"], raw.get("width", self.width), raw.get("height", self.height))

    def _aliased(self, name: str) -> Icon:
        alias = self.aliases[name]
        unknown = alias.keys() - {"parent", "hFlip"}
        if unknown:
            raise UnknownAliasError(f"{self.name}:{name} has {sorted(unknown)}")
        icon = self._icon(alias["parent"])
        if not alias.get("hFlip", False):
            return icon
        mirror = f'<g transform="translate({icon.width} 0) scale(-1 1)">{icon.body}</g>'
        return Icon(mirror, icon.width, icon.height)


def read_icon_set(name: str, node_modules: Path) -> IconSet:
    """Read `@iconify-json/<name>`."""
    raw = _read_json(node_modules / "@iconify-json" / name / "icons.json")
    return IconSet(
        name=name,
        icons=raw["icons"],
        aliases=raw.get("aliases", {}),
        width=raw.get("width", 16),
        height=raw.get("height", 16),
    )


def read_emojibase(node_modules: Path) -> list[Concept]:
    """All emoji of emojibase that stand in a group, in its own order, without skin tones."""
    folder = node_modules / "emojibase-data" / "en"
    messages = _read_json(folder / "messages.json")
    groups = {row["order"]: row["message"] for row in messages["groups"]}
    subgroups = {row["order"]: row["message"] for row in messages["subgroups"]}
    return [
        Concept(
            label=row["label"],
            slug=slug_of(row["label"]),
            tags=tuple(row["tags"]),
            group=groups[row["group"]],
            subgroup=subgroups[row["subgroup"]],
        )
        for row in _read_json(folder / "data.json")
        if "group" in row
    ]


def slug_of(label: str) -> str:
    """A label as icon sets name their icons: lower case ASCII words joined by hyphens."""
    decomposed = unicodedata.normalize("NFKD", label.lower())
    plain = "".join(char for char in decomposed if not unicodedata.combining(char))
    return re.sub(r"[^a-z0-9]+", "-", _QUOTES.sub("", plain)).strip("-")


def draw(icon: Icon, size: int) -> Image.Image:
    """Rasterise into a square of `size` pixels, RGBA; drawings that are not square are centred."""
    svg = _SVG.format(width=icon.width, height=icon.height, size=size, body=icon.body)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, width=size, height=size))
    with Image.open(io.BytesIO(png)) as image:
        if image.size != (size, size):
            raise ValueError(f"resvg drew {image.size}, not {size} x {size}")
        return image.convert("RGBA")


def package_version(name: str, node_modules: Path) -> str:
    """The version of an installed npm package, as its own package.json states it."""
    return str(_read_json(node_modules / name / "package.json")["version"])


def _read_json(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))
