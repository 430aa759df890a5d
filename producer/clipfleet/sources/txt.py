"""A text file with one URL or path per line.

Blank lines and the blanks around an entry are left out. Relative paths count from the file's folder. The id
of an item is its index.
"""

from __future__ import annotations

from collections.abc import Iterator

import pyarrow as pa

from clipfleet.contract import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.sources.batches import in_batches, item_batch
from clipfleet.sources.files import SourceFile
from clipfleet.sources.lines import TextFile
from clipfleet.sources.options import ReadOptions
from clipfleet.sources.uris import absolute_uris


class TxtSource:
    """See `clipfleet.sources.Source`."""

    def __init__(self, file: SourceFile, options: ReadOptions, *, is_gzip: bool = False) -> None:
        self._text = TextFile(file, is_gzip=is_gzip)
        self._base = options.base_in(file.folder)
        self.description = SourceDescription(
            kind="txt", uri=file.uri, options=file.state() | options.described()
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        first_index = 0
        entries = (entry for line in self._text.lines() if (entry := line.strip()))
        for uris in in_batches(entries, len):
            yield item_batch(first_index, None, absolute_uris(pa.array(uris, pa.string()), self._base))
            first_index += len(uris)
        if first_index == 0:
            raise SourceError(f"{self._text.file.name}: the file holds only blank lines")
