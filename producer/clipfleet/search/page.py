"""The hits of a search as one HTML page. It holds no image: the browser that shows it loads them.

What rows hold is escaped, and only addresses of these kinds become those of images: a page runs no script.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

from clipfleet.errors import UsageError
from clipfleet.store.dataset import SIMILARITY

_OF_IMAGES = ("http", "https", "file")
_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; img-src http: https: file:; style-src 'unsafe-inline'">
<meta name="referrer" content="no-referrer">
<title>{title}</title>
<style>
body {{ font: 14px/1.4 system-ui, sans-serif; margin: 24px; }}
ol {{ display: grid; grid-template-columns: repeat(auto-fill, minmax(200px, 1fr)); gap: 16px; padding: 0; list-style: none; }}
img, .none {{ display: block; width: 100%; height: 200px; object-fit: contain; background: #8882; }}
.none {{ display: grid; place-items: center; color: #888; }}
small {{ overflow-wrap: anywhere; }}
</style></head><body>
<h1>{title}</h1>
<p>{about}</p>
<ol>
{items}
</ol></body></html>
"""  # noqa: E501 - lines of another language


def write_page(path: Path, words: str, about: str, hits: Sequence[Mapping[str, Any]]) -> None:
    """Write a page with one image per hit.

    Args:
        path: of the file, which is replaced.
        words: what was searched for.
        about: what was searched.
        hits: rows with their similarity, `item_id`, `uri` and further columns.

    Raises:
        UsageError: the file cannot be written.
    """
    items = "\n".join(_item(hit) for hit in hits)
    page = _PAGE.format(title=escape(words), about=escape(about), items=items)
    try:
        path.write_text(page, encoding="utf-8", errors="backslashreplace")
    except OSError as error:
        raise UsageError(f"{path}: cannot be written: {error.strerror or error}") from None


def _item(hit: Mapping[str, Any]) -> str:
    address = _image_address(hit["uri"])
    image = (
        '<span class="none">not shown</span>'
        if address is None
        else f'<a href="{escape(address)}"><img loading="lazy" alt="" src="{escape(address)}"></a>'
    )
    words = "<br>".join(escape(line) for line in _lines(hit))
    return f"<li>{image}<b>{hit[SIMILARITY]:.4f}</b> <small>{words}</small></li>"


def _lines(hit: Mapping[str, Any]) -> Iterator[str]:
    yield hit["item_id"]
    if hit["uri"] != hit["item_id"]:
        yield hit["uri"]
    for name, value in hit.items():
        if name not in (SIMILARITY, "item_id", "uri") and value is not None:
            yield f"{name}: {value}"


def _image_address(uri: str) -> str | None:
    """The address that a browser loads; None: it cannot, or the file is not on this machine."""
    if uri.startswith("/"):
        return f"file://{quote(uri)}" if Path(uri).is_file() else None
    return uri if urlsplit(uri).scheme in _OF_IMAGES else None
