"""Whether a store holds what its library holds: every image once, with its own vector."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from clipfleet.store.dataset import VectorDataset
from clipfleet.store.place import store_place
from clipfleet.store.rows import PRESENT, VECTOR_COLUMN

_COLUMNS = ["item_id", "content_hash", VECTOR_COLUMN]
_TOLERANCE = 0.004  # batches of other sizes round otherwise


@dataclass(frozen=True)
class Stored:
    """The present rows of a store: hash and vector by id."""

    fingerprint: str
    rows: Mapping[str, tuple[str, np.ndarray]]
    doubled: tuple[str, ...]


def stored_in(store: str) -> Stored:
    """All that a store holds now."""
    place = store_place(store)
    fingerprint = place.read().current.fingerprint
    if fingerprint is None:
        return Stored("", {}, ())
    dataset = VectorDataset.open(place.dataset_uri(fingerprint))
    return _stored(fingerprint, dataset.batches(_COLUMNS, where=PRESENT))


def exported_to(folder: Path) -> Stored:
    """All that a snapshot of a store holds."""
    files = [pq.ParquetFile(path) for path in sorted(folder.glob("*.parquet"))]
    (fingerprint,) = {file.schema_arrow.metadata[b"fingerprint"].decode() for file in files}
    return _stored(fingerprint, (batch for file in files for batch in file.iter_batches(columns=_COLUMNS)))


def _stored(fingerprint: str, batches: Iterable[pa.RecordBatch]) -> Stored:
    seen: Counter[str] = Counter()
    rows = {}
    for batch in batches:
        vectors = np.stack(batch[VECTOR_COLUMN].to_numpy(zero_copy_only=False))
        for item_id, content_hash, vector in zip(
            batch["item_id"].to_pylist(), batch["content_hash"].to_pylist(), vectors, strict=True
        ):
            seen[item_id] += 1
            rows[item_id] = (content_hash, vector)
    return Stored(fingerprint, rows, tuple(one for one, times in seen.items() if times > 1))


def problems(stored: Stored, hashes: Mapping[str, str]) -> Iterator[str]:
    """What differs from a library: `hashes` of its images, by id."""
    yield from (f"{item_id} is there twice" for item_id in stored.doubled)
    yield from (f"{item_id} is missing" for item_id in sorted(hashes.keys() - stored.rows.keys()))
    yield from (f"{item_id} should be gone" for item_id in sorted(stored.rows.keys() - hashes.keys()))
    for item_id in sorted(hashes.keys() & stored.rows.keys()):
        if stored.rows[item_id][0] != hashes[item_id]:
            yield f"{item_id} is of an image that it was before, or never"


def impossible(answer: Stored, always: Collection[str], ever: Mapping[str, Collection[str]]) -> Iterator[str]:
    """What was never in a library while a store was read.

    Args:
        answer: what was read.
        always: ids of the images that were there all the time.
        ever: hashes of all images so far, by id.
    """
    yield from (f"{item_id} is there twice" for item_id in answer.doubled)
    yield from (f"{item_id} is missing" for item_id in sorted({*always} - answer.rows.keys()))
    for item_id, (content_hash, _) in sorted(answer.rows.items()):
        if content_hash not in ever.get(item_id, ()):
            yield f"{item_id} is of an image that it never was"


def differences(stored: Stored, fresh: Stored) -> Iterator[str]:
    """What differs from a store that was filled once, with the same model."""
    if stored.fingerprint != fresh.fingerprint:
        yield f"vectors of {stored.fingerprint}, not of {fresh.fingerprint}"
        return
    for item_id in sorted(fresh.rows.keys() & stored.rows.keys()):
        (content_hash, vector), (wanted_hash, wanted) = stored.rows[item_id], fresh.rows[item_id]
        farthest = float(np.abs(vector.astype(np.float32) - wanted.astype(np.float32)).max())
        if content_hash != wanted_hash or farthest > _TOLERANCE:
            yield f"{item_id} has the vector of another image (farthest component {farthest:.3f})"
