"""Own files that a batch or a job names: looked up once each, and bounded, for it may name one many times."""

from __future__ import annotations

from clipfleet_gateway.errors import invalid, not_found
from clipfleet_gateway.files.store import FileStore
from clipfleet_gateway.inputs.images import MOST_IMAGE_BYTES

MOST_BATCH_BYTES = 10 << 30  # of own files, each mention counted: a batch copies them all for its workers
MOST_ITEMS_BYTES = 256 << 20  # the same of `items` of a job, which lie in memory


class OwnFiles:
    """Counts the bytes of images that are named.

    Args:
        files: of all keys.
        owner: name of the key.
        most_bytes: of all mentions together.
    """

    def __init__(self, files: FileStore, owner: str, most_bytes: int) -> None:
        self._files = files
        self._owner = owner
        self._most_bytes = most_bytes
        self._sizes: dict[str, int | None] = {}
        self._bytes = 0

    def add(self, file_id: str, param: str) -> None:
        """Count one mention.

        Raises:
            ApiError: there is no such file (404), it is too large for an image, or all of them are too large.
        """
        if file_id not in self._sizes:
            found = self._files.find(self._owner, file_id)
            self._sizes[file_id] = None if found is None else found.bytes
        size = self._sizes[file_id]
        if size is None:
            raise not_found("file", file_id, param)
        if size > MOST_IMAGE_BYTES:
            raise invalid(f"{param} has more than {MOST_IMAGE_BYTES >> 20} MiB", param, "image_too_large")
        self._bytes += size
        if self._bytes > self._most_bytes:
            raise invalid(
                f"{param}: the files named up to here, each as often as it is, have more than "
                f"{self._most_bytes >> 20:,} MiB: name fewer at a time", param, "too_many_bytes",
            )  # fmt: skip
