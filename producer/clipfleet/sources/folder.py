"""All pictures below a folder, found by the extension of their names.

Hidden files, hidden folders and linked folders are left out; the folder itself may be a link. The id of an
item is its path below the folder. A name that is not UTF-8 becomes a percent-encoded `file://` URI and id.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from clipfleet.contract import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.sources.uris import local_uri, printable
from clipfleet.sources.walk import ANY_DEPTH, Pattern, walked_batches

PICTURE_EXTENSIONS = (".jpg", ".jpeg", ".jpe", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff")


def is_picture_name(name: str) -> bool:
    """True if a file's name ends like a picture's."""
    return name.lower().endswith(PICTURE_EXTENSIONS)


class FolderSource:
    """See `clipfleet.sources.Source`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self.description = SourceDescription(kind="folder", uri=local_uri(str(folder)))

    def batches(self) -> Iterator[pa.RecordBatch]:
        is_empty = True
        for batch in walked_batches(self._folder, Pattern.of([ANY_DEPTH], is_picture_name)):
            is_empty = False
            yield batch
        if is_empty:
            raise SourceError(
                f"{printable(str(self._folder))}: no images found; looked in all folders below it "
                f"for names that end in {' '.join(PICTURE_EXTENSIONS)} "
                "(hidden files and folders and linked folders are skipped)"
            )
