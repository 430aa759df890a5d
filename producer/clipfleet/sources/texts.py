"""Texts as items: lines, a table column, or strings of a program.

The text becomes a column of its own (named as in the table, else `text`), and `uri` is empty. Surrounding
blanks are stripped. An item without text fails.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa
import pyarrow.compute as pc

from clipfleet.contract.parts import INLINE_COLUMN, extra_column_name, item_schema
from clipfleet.errors import SourceError
from clipfleet.sources import ReadOptions, Source, SourceLike, source_of

_KINDS = ("txt", "csv", "tsv", "jsonl", "parquet", "stdin", "iterable")
_SUPPORTED = (
    "texts come from a .txt with one per line, a table (.csv, .tsv, .jsonl, .parquet) or standard input"
)


class TextSource:
    """See `clipfleet.sources.Source`."""

    def __init__(self, items: Source, default_column: str) -> None:
        self.items = items
        self._default_column = default_column
        described = items.description
        name = described.options.get("url_column", default_column)
        self.text_column = extra_column_name(name)
        if self.text_column in described.extra_columns:
            raise SourceError(f"two columns would be named {self.text_column!r} in the results")
        options = {key: value for key, value in described.options.items() if key != "url_column"}
        self.description = described.model_copy(
            update={
                "options": options | {"text_column": name},
                "extra_columns": (self.text_column, *described.extra_columns),
            }
        )

    def over(self, items: Source) -> TextSource:
        """The same texts, read from another source of the items."""
        return TextSource(items, self._default_column)

    def batches(self) -> Iterator[pa.RecordBatch]:
        for batch in self.items.batches():
            self._require_texts(batch)
            texts = batch["uri"]
            uris = pa.array([""] * batch.num_rows, pa.string())
            carried = self.description.extra_columns[1:]
            arrays = [batch["item_index"], batch["item_id"], uris, texts, *(batch[name] for name in carried)]
            fields = [
                pa.field(self.text_column, pa.string()),
                *(batch.schema.field(name) for name in carried),
            ]
            yield pa.RecordBatch.from_arrays(arrays, schema=item_schema(fields))

    def _require_texts(self, batch: pa.RecordBatch) -> None:
        if INLINE_COLUMN not in batch.schema.names:
            return
        strange = pc.drop_null(pc.if_else(batch[INLINE_COLUMN].is_valid(), batch["item_index"], None))
        if len(strange):
            raise SourceError(f"item {strange[0].as_py()} is bytes, not text")


def text_source_of(
    source: SourceLike, *, text_column: str | None, id_column: str | None, sample: int | None = None
) -> TextSource:
    """Open a source of texts; see `clipfleet.sources.source_of`.

    Args:
        source: a file, `-`, or an iterable of strings and dicts.
        text_column: table column with the text. Default: `text` or `caption`.
        id_column: table column with the item ids.
        sample: number of texts to choose; None: all of them.

    Raises:
        SourceError: not a source of texts.
    """
    options = ReadOptions(text_column, id_column, holds_texts=True, sample=sample)
    items = source_of(source, options)
    if items.description.kind not in _KINDS:
        raise SourceError(f"{items.description.uri}: not a source of texts; {_SUPPORTED}")
    return TextSource(items, options.content_field)
