"""Opens a URL as a source of one item: the image at that address. Workers fetch it; here it is not read."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from urllib.parse import urlsplit

import pyarrow as pa

from clipfleet.contract.jobs import SourceDescription
from clipfleet.errors import SourceError
from clipfleet.sources.batches import Source, item_batch
from clipfleet.sources.files import ReadOptions
from clipfleet.sources.lists.formats import is_shard_name, list_opener, require_fit
from clipfleet.sources.local import open_local
from clipfleet.sources.uris import local_path, utf8_name, without_userinfo

SCHEMES = "http, https, s3, data or file"  # that workers fetch


class UrlSource:
    """See `clipfleet.sources.Source`. The id of its one item is the last part of the URL's path, if any."""

    def __init__(self, url: str, item_id: str, description: SourceDescription) -> None:
        self._url = url
        self._item_id = item_id or None
        self.description = description

    def batches(self) -> Iterator[pa.RecordBatch]:
        yield item_batch(0, pa.array([self._item_id], pa.string()), pa.array([self._url], pa.string()))


def open_url(url: str, options: ReadOptions) -> Source:
    """Open the image at a URL with any scheme but `s3`; what a `file://` URL names is opened as a path.

    Raises:
        SourceError: the URL is invalid, its scheme is unsupported, or it names a list, a table or an archive.
    """
    scheme = url.partition(":")[0].lower()
    if scheme == "file":
        return open_local(local_path(url), options)
    if scheme == "data":
        head = url.partition(",")[0]
        require_fit(head, options, is_list=False)
        content = {"sha256": hashlib.sha256(url.encode()).hexdigest()[:16]}
        return UrlSource(url, "", SourceDescription(kind="url", uri=head, options=content))
    shown = utf8_name(without_userinfo(url))
    if scheme not in ("http", "https"):
        raise SourceError(f"{shown}: unsupported URL scheme {scheme!r}; use {SCHEMES}")
    try:
        name = urlsplit(url).path.rpartition("/")[2]
    except ValueError as error:
        raise SourceError(f"{shown}: not a valid URL: {error}") from None
    if list_opener(name) is not None or is_shard_name(name):
        raise SourceError(
            f"{shown}: a list, a table or a .tar is not read from a URL: download it and give the file"
        )
    require_fit(shown, options, is_list=False)
    return UrlSource(url, name, SourceDescription(kind="url", uri=shown))
