"""A text file with one URL or path per line.

Blank lines and the blanks around an entry are left out. Relative paths count from the file's folder. The id
of an item is its index.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from clipfleet.contract import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.sources.batches import in_batches, item_batch
from clipfleet.sources.manifest import Manifest
from clipfleet.sources.uris import absolute_uris, local_uri


class TxtSource:
    """See `clipfleet.sources.Source`."""

    def __init__(self, path: Path) -> None:
        self._manifest = Manifest(path)
        self.description = SourceDescription(
            kind="txt", uri=local_uri(str(path)), options=self._manifest.options()
        )

    def batches(self) -> Iterator[pa.RecordBatch]:
        """See the protocol."""
        first_index = 0
        entries = (entry for line in self._manifest.lines() if (entry := line.strip()))
        for uris in in_batches(entries):
            column = absolute_uris(pa.array(uris, pa.string()), self._manifest.path.parent)
            yield item_batch(first_index, None, column)
            first_index += len(uris)
        if first_index == 0:
            raise SourceError(f"{self._manifest.name}: the file holds only blank lines")
