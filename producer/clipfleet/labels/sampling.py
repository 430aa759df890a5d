"""Which rows to mark: stratified for a fit, one uniform order for a certificate. Pure; the same everywhere.

Needs numpy (extra `[analysis]`): imported inside functions only.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from clipfleet.labels.calibrating import check_finite

_BINS = 10
_MARKS_PER_BIN = 3  # at least, where there are that many rows: fewer marks make fewer bins
# Shares of the rows whose scores do not widen the bins: few high ones; and many low ones, which hardly show a
# label, so that the bins, and with them the marks, lie where the probability changes.
_LOW, _HIGH = 0.3, 0.001


def fit_key(job_id: str, label: str) -> bytes:
    """Key of the fit draws of a label of an output, for `stratified`."""
    return _key("fit", job_id, label)


def certify_key(job_id: str, label: str, threshold: float, label_set_hash: str) -> bytes:
    """Key of the one order of certify marks, for `uniform_order`: another threshold has another order.

    Args:
        job_id: of the output.
        label: of the label set.
        threshold: that is tested.
        label_set_hash: of the set with this threshold, `LabelSet.hash`.
    """
    return _key("certify", job_id, label, float(threshold), label_set_hash)


def _key(*parts: str | float) -> bytes:
    return hashlib.sha256(json.dumps(parts, separators=(",", ":")).encode()).digest()


def uniform_order(item_index: npt.ArrayLike, key: bytes) -> npt.NDArray[np.int64]:
    """Positions of the rows in an order that is uniformly random over keys, and fixed for one key.

    Sorted by the first 64 bits of `sha256(key + item_index as 8 bytes, big-endian)`, then by `item_index`.
    The order of two rows does not depend on which other rows there are. The first n rows are a uniform draw
    without replacement, and the first n + m rows contain it.

    Args:
        item_index: of the rows, (n,) whole numbers from 0 on, each once, in any order.
        key: see `certify_key`.

    Returns:
        Positions in `item_index`, (n,).

    Raises:
        ValueError: an index appears twice.
    """
    indexes = np.asarray(item_index, np.int64)
    if len(np.unique(indexes)) < len(indexes):
        raise ValueError("an item_index appears twice")
    start = hashlib.sha256(key)
    hashes = np.empty(len(indexes), np.uint64)
    for position, index in enumerate(indexes.tolist()):
        hashed = start.copy()
        hashed.update(index.to_bytes(8, "big"))
        hashes[position] = int.from_bytes(hashed.digest()[:8], "big")
    return np.lexsort((indexes, hashes)).astype(np.int64)


def stratified(
    z: npt.ArrayLike, n: int, key: bytes, item_index: npt.ArrayLike | None = None
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64]]:
    """Draw n rows spread evenly over the scores, so that few marks show the whole curve.

    Up to 10 bins of equal width, from the score that 30 % of the rows lie below to the one that 0.1 % lie
    above; rows beyond belong to the outer bins. Each bin gives the same number of rows, and one with fewer
    rows leaves the rest to the others. Within a bin a hash of key and `item_index` decides (SplitMix64, since
    SHA-256 takes seconds for a million rows). The draw depends on the arguments only.

    Args:
        z: scores, (rows,), of any scale: `logits(p)` serves as well as z itself.
        n: rows to draw; all rows where there are fewer.
        key: see `fit_key`.
        item_index: of the rows, (rows,); without it, their positions.

    Returns:
        Positions of the drawn rows, ascending, (min(n, rows),), and their inclusion probabilities: drawn rows
        of a bin / rows of the bin. Each row of z has an inclusion probability above 0.

    Raises:
        ValueError: a score is not a number, or n is below 1.
    """
    scores = np.asarray(z, np.float64)
    check_finite(scores, "score")
    if n < 1:
        raise ValueError(f"cannot draw {n} rows")
    if len(scores) == 0:
        return np.empty(0, np.int64), np.empty(0)
    indexes = np.arange(len(scores)) if item_index is None else np.asarray(item_index, np.int64)
    order = np.lexsort((indexes, _mixed(indexes.astype(np.uint64), key)))
    low, high = np.quantile(scores, [_LOW, 1 - _HIGH], method="inverted_cdf")
    count = max(1, min(_BINS, n // _MARKS_PER_BIN)) if high > low else 1
    edges = np.linspace(low, high, count + 1)[1:-1]
    bins = np.searchsorted(edges, scores, side="right")
    sizes = np.bincount(bins, minlength=count)
    draws = _shared(sizes.tolist(), n)
    chosen = [order[bins[order] == number][:drawn] for number, drawn in enumerate(draws)]
    positions = np.sort(np.concatenate(chosen))
    share = np.asarray(draws) / np.maximum(sizes, 1)
    return positions, share[bins[positions]]


def _mixed(indexes: npt.NDArray[np.uint64], key: bytes) -> npt.NDArray[np.uint64]:
    """Hashes of whole numbers.

    G. L. Steele, D. Lea and C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014.
    """
    start = np.uint64(int.from_bytes(hashlib.sha256(key).digest()[:8], "big"))
    hashes = start + indexes * np.uint64(0x9E3779B97F4A7C15)
    hashes = (hashes ^ (hashes >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    hashes = (hashes ^ (hashes >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return np.asarray(hashes ^ (hashes >> np.uint64(31)))


def _shared(sizes: Sequence[int], n: int) -> list[int]:
    """How many of n rows each bin gives: equally many, none more than it has; the last bins round up."""
    draws, left = [0] * len(sizes), min(n, sum(sizes))
    smallest_first = sorted(range(len(sizes)), key=lambda number: (sizes[number], number))
    for done, number in enumerate(smallest_first):
        draws[number] = min(sizes[number], left // (len(sizes) - done))
        left -= draws[number]
    return draws
