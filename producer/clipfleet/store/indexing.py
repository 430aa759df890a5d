"""Builds the index of a store's vectors, and measures what a search by it misses."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Final

import pyarrow as pa

from clipfleet.errors import UsageError
from clipfleet.store.committing.of_job import KIND
from clipfleet.store.dataset import SIMILARITY, Alive, VectorDataset, VersionConflictError
from clipfleet.store.rows import PRESENT, VECTOR_COLUMN

if TYPE_CHECKING:
    import numpy as np

NEIGHBOURS: Final = 10
_INDEX: Final = "index"  # kind of a version
_QUERIES = 100
_EQUAL = 1e-6  # difference of similarities within which two rows are equally good


@dataclass(frozen=True, slots=True)
class Recall:
    """How much of an exact search's answer a search by the index finds."""

    queries: int  # rows whose neighbours were looked for
    share: float  # of the nearest `NEIGHBOURS` rows, mean over the queries


def build_index(dataset: VectorDataset, alive: Alive = lambda: None) -> VectorDataset:
    """Commit a version with an index of all vectors, in place of an earlier one.

    The caller holds the lock of the store.

    Args:
        dataset: at any version; the newest is taken.
        alive: called often; what it raises ends the build, and nothing is changed.

    Raises:
        UsageError: there are no rows.
        OutputUnavailableError: the dataset cannot be read, or the index not be written.
    """
    while True:
        latest = dataset.latest()
        if not latest.count():
            raise UsageError(f"{latest.uri} has no rows: there is nothing to index")
        try:
            return latest.create_index({KIND: _INDEX}, alive=alive)
        except VersionConflictError:  # a program that does not know the lock
            alive()


def measured_recall(dataset: VectorDataset, seed: int = 0) -> Recall | None:
    """Compare searches by the index with exact ones, for the vectors of sampled rows.

    A row does not count as its own neighbour. Of rows that are equally similar any one counts.

    Args:
        dataset: at a version with an index.
        seed: of the sample.

    Returns:
        None if no row has a neighbour.
    """
    import numpy as np

    rows = dataset.count()
    chosen = np.random.default_rng(seed).choice(rows, min(rows, _QUERIES), replace=False)
    queries = dataset.at(np.sort(chosen), ["item_id", VECTOR_COLUMN])
    ids = queries["item_id"].to_pylist()
    flat = queries[VECTOR_COLUMN].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    vectors = flat.reshape(len(ids), -1).astype(np.float32)
    where = None if rows == dataset.count(PRESENT) else PRESENT
    exact, indexed = (
        dataset.nearest(vectors, NEIGHBOURS + 1, ["item_id"], where=where, exact=is_exact)
        for is_exact in (True, False)
    )
    shares = [
        _share(_of_others(one, item_id), _of_others(other, item_id))
        for one, other, item_id in zip(exact, indexed, ids, strict=True)
    ]
    found = [share for share in shares if share is not None]
    return Recall(len(found), float(np.mean(found))) if found else None


def _of_others(answer: pa.Table, item_id: str) -> np.ndarray:
    """Similarities of the nearest rows other than the one of the query."""
    import numpy as np

    is_other = np.array([one != item_id for one in answer["item_id"].to_pylist()], bool)
    similarities: np.ndarray = answer[SIMILARITY].to_numpy()[is_other][:NEIGHBOURS]
    return similarities


def _share(exact: np.ndarray, indexed: np.ndarray) -> float | None:
    """The share of the best rows that were found; None if there are none."""
    if not len(exact):
        return None
    return float((indexed >= exact[-1] - _EQUAL).sum()) / len(exact)
