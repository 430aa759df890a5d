"""Finds images in a store by their hashes: the vector of an equal one is copied.

The index of a version is built once, in a thread of its own, for at most 50 million rows: 16 bytes per row,
and 8 more while it is sorted.
"""

from __future__ import annotations

import logging
import threading
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from clipfleet.contract.stores import StoreTarget
from clipfleet.errors import UsageError
from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import store_place
from clipfleet.store.rows import id_hashes
from clipfleet_worker.outcomes import EqualImage

log = logging.getLogger(__name__)

MOST_ROWS = 50_000_000  # of an index: 800 MB, and 400 MB more while it is sorted
_SORTED_AT_A_TIME = 65_536
_KEPT_INDEXES = 2  # those of a nightly run and of a migration beside it
_COLUMNS = ("content_hash", "width", "height", "embedding")


@dataclass(frozen=True)
class EqualImages:
    """The images of one version of a dataset. Thread-safe."""

    dataset: VectorDataset
    hashes: np.ndarray  # uint64, sorted: 64 bits of the hash of each image
    addresses: np.ndarray  # uint64, of their rows

    def find(self, content_hashes: Sequence[str]) -> Mapping[str, EqualImage]:
        """Images with these hashes, as far as there are some.

        Raises:
            OutputUnavailableError: the dataset cannot be read now.
        """
        wanted = id_hashes(pa.array(content_hashes, pa.string()))
        places = np.searchsorted(self.hashes, wanted)
        places[places == len(self.hashes)] = 0
        is_hit = self.hashes[places] == wanted
        if not is_hit.any():
            return {}
        rows = self.dataset.take(self.addresses[places[is_hit]], _COLUMNS)
        asked = [one for one, hit in zip(content_hashes, is_hit.tolist(), strict=True) if hit]
        return {
            digest: EqualImage(np.array(vector, np.float16), width, height)
            for digest, found, width, height, vector in zip(
                asked, *(rows[name].to_pylist() for name in _COLUMNS), strict=True
            )
            if digest == found  # 64 bits are not the whole hash
        }


class EqualImagesCache:
    """The indexes that jobs use now, one for each version of a dataset. Thread-safe."""

    def __init__(self) -> None:
        self._found: OrderedDict[tuple[str, int], Future[EqualImages | None]] = OrderedDict()
        self._lock = threading.Lock()
        self._readers = ThreadPoolExecutor(_KEPT_INDEXES, thread_name_prefix="images-of-store")

    def get(self, target: StoreTarget) -> Future[EqualImages | None]:
        """The images of the version that a job's source was compared with; None: there are none to look in.

        The first call begins to read them. A failure is raised by the future, and the next call begins again.
        """
        if target.fingerprint is None or not target.base_version:
            return _nothing()
        uri = store_place(target.uri).dataset_uri(target.fingerprint)
        key = (uri, target.base_version)
        with self._lock:
            found = self._found.get(key)
            if found is None or (found.done() and found.exception() is not None):
                found = self._found[key] = self._readers.submit(read_equal_images, *key)
            self._found.move_to_end(key)
            while len(self._found) > _KEPT_INDEXES:
                self._found.popitem(last=False)
        return found


def _nothing() -> Future[EqualImages | None]:
    found: Future[EqualImages | None] = Future()
    found.set_result(None)
    return found


def read_equal_images(uri: str, version: int, *, most_rows: int = MOST_ROWS) -> EqualImages | None:
    """Read the index of a version; None: it has too many rows, or is gone: its images are embedded again.

    Raises:
        OutputUnavailableError: the dataset cannot be read now.
    """
    context = {"action": "equal_images_unknown"}
    try:
        dataset = VectorDataset.open(uri, version)
        rows = dataset.count("content_hash IS NOT NULL")
    except (UsageError, FileNotFoundError) as error:
        log.warning("images are not looked up: %s", error, extra=context)
        return None
    if rows > most_rows:
        log.warning("images are not looked up: %s has %d rows", uri, rows, extra=context)
        return None
    hashes, addresses = np.empty(rows, np.uint64), np.empty(rows, np.uint64)
    start = 0
    for batch in dataset.batches(["content_hash"], where="content_hash IS NOT NULL", with_address=True):
        here = slice(start, start + batch.num_rows)
        hashes[here], addresses[here] = id_hashes(batch["content_hash"]), batch["_rowaddr"].to_numpy()
        start += batch.num_rows
    return EqualImages(dataset, *sorted_together(hashes, addresses)) if rows else None


def sorted_together(hashes: np.ndarray, addresses: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Sort hashes in place, and their addresses alike: with one more array, not three.

    Args:
        hashes: uint64 (n,).
        addresses: uint64 (n,), of each of them.
    """
    order = np.argsort(hashes).view(np.uint64)
    hashes.sort()
    for start in range(0, len(order), _SORTED_AT_A_TIME):
        here = slice(start, start + _SORTED_AT_A_TIME)
        order[here] = addresses[order[here]]  # each number is read before an address takes its place
    return hashes, order
