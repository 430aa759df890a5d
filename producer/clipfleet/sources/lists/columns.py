"""Assigns the columns of a table: image location, item id, and the rest.

The image column is the one the caller names, else the first present of `URL_COLUMNS`, or of `TEXT_COLUMNS` if
the items are texts; the id column likewise, from `ID_COLUMNS`. All other columns are copied. Names are
compared case-insensitively.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from clipfleet.contract.parts import extra_column_name
from clipfleet.errors import SourceError
from clipfleet.sources.files import ReadOptions

URL_COLUMNS = ("url", "uri", "image_url", "image_path", "path", "key", "s3_key")
TEXT_COLUMNS = ("text", "caption")
ID_COLUMNS = ("id", "item_id", "image_id")
BYTES_COLUMNS = (
    "image", "bytes", "image_bytes", "img", "picture", "jpg", "jpeg", "png", "webp", "gif", "bmp", "tiff",
)  # fmt: skip

# For our `_errors.jsonl` as input: the columns about the failure are not copied.
_OUR_ERRORS = {"item_index", "item_id", "uri", "error_code", "error_detail"}
_OF_THE_FAILURE = {"item_index", "error_code", "error_detail"}

# Limits for messages about a file that may not be a table.
_SHOWN_COLUMNS = 40
_SHOWN_CHARACTERS = 60


@dataclass(frozen=True, slots=True)
class Columns:
    """Roles of the columns of a table, as positions in its header."""

    url: int | None  # or of the text; None only if there are bytes
    bytes: int | None  # the images themselves
    id: int | None
    extra: dict[str, int]  # name in our schema -> position

    def described(self, header: Sequence[str]) -> dict[str, str]:
        """The assignment, as `SourceDescription.options`."""
        chosen = {"url_column": self.url, "bytes_column": self.bytes, "id_column": self.id}
        return {name: header[position] for name, position in chosen.items() if position is not None}


def assign_columns(
    header: Sequence[str],
    options: ReadOptions,
    *,
    where: str,
    bytes_columns: Collection[int] = (),
) -> Columns:
    """Assign roles to the columns of a table; `bytes_columns` are positions of columns that may contain
    images.

    Raises:
        SourceError: no image column, a chosen column is missing, or a name is duplicate.
    """
    # JSON can contain lone surrogates, a part cannot.
    header = [name.encode(errors="replace").decode() for name in header]
    _require_unique(header, where, "column {!r} appears twice in the header")
    is_ours = set(header) >= _OUR_ERRORS
    usual_urls, usual_ids = (("uri",), ("item_id",)) if is_ours else (URL_COLUMNS, ID_COLUMNS)
    url, held = _image_columns(header, options, where, bytes_columns, usual_urls)
    if url is None and held is None:
        usual = ", ".join(TEXT_COLUMNS if options.holds_texts else URL_COLUMNS)
        wanted = "texts" if options.holds_texts else "URLs or paths"
        raise SourceError(
            f"{where}: no column named {usual}; the columns are {_shown(header)}: "
            f"choose the one with the {wanted} with {options.content_option}"
        )
    besides = {position for position in (url, held) if position is not None}
    name = _position(header, options.id_column, usual_ids, "`id_column=`", where, besides=besides)
    unused = {*besides, *bytes_columns} | ({name} if name is not None else set())
    if is_ours:
        ours = _OF_THE_FAILURE | ({"uri"} if options.holds_texts else set())
        unused |= {position for position, column in enumerate(header) if column in ours}
    carried = [position for position in range(len(header)) if position not in unused]
    names = [extra_column_name(header[position] or f"column_{position + 1}") for position in carried]
    _require_unique(names, where, "two columns would be named {!r} in the results; rename one of them")
    return Columns(url, held, name, dict(zip(names, carried, strict=True)))


def _image_columns(
    header: Sequence[str],
    options: ReadOptions,
    where: str,
    bytes_columns: Collection[int],
    usual_urls: Sequence[str],
) -> tuple[int | None, int | None]:
    """Positions of the URL column and of the column with the images themselves."""
    if options.holds_texts:
        return _position(header, options.url_column, TEXT_COLUMNS, options.content_option, where), None
    chosen = None
    if options.url_column is not None:
        chosen = _position(header, options.url_column, (), "`url_column=`", where)
        if chosen not in bytes_columns:
            return chosen, None
    lowered = [name.lower() for name in header]
    usual = [lowered.index(name) for name in BYTES_COLUMNS if name in lowered]
    held = chosen if chosen is not None else next((one for one in usual if one in bytes_columns), None)
    return _position(header, None, usual_urls, "`url_column=`", where, besides=bytes_columns), held


def _position(
    header: Sequence[str],
    chosen: str | None,
    usual: Sequence[str],
    option: str,
    where: str,
    besides: Collection[int] = (),
) -> int | None:
    if chosen is None:
        lowered = [name.lower() for name in header]
        found = [lowered.index(name) for name in usual if name in lowered]
        return next((position for position in found if position not in besides), None)
    exact = [position for position, name in enumerate(header) if name == chosen]
    loose = [position for position, name in enumerate(header) if name.lower() == chosen.strip().lower()]
    if not (exact or loose):
        raise SourceError(f"{where}: {option} {chosen!r} not found; the columns are {_shown(header)}")
    return (exact or loose)[0]


def _shown(header: Sequence[str]) -> str:
    """Names on one line, shortened."""
    shown = ", ".join(" ".join(name.split())[:_SHOWN_CHARACTERS] for name in header[:_SHOWN_COLUMNS])
    more = len(header) - _SHOWN_COLUMNS
    return f"{shown} and {more} more" if more > 0 else shown


def _require_unique(names: Sequence[str], where: str, problem: str) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise SourceError(f"{where}: {problem.format(name)}")
        seen.add(name)
