"""The chunk size of a job that names none: smaller for a small job, so that several workers share it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain

import pyarrow as pa

from clipfleet.contract.jobs import DEFAULT_CHUNK_SIZE

# At least so many, unless they were smaller than `_LEAST`. Not more: a chunk costs 10 ms of CPU, as much
# as ten images of the smallest models.
_CHUNKS = 8
_LEAST = 16  # items that a worker decodes at a time
_ONE_CHUNK = 2 * _LEAST  # so few items are not worth sharing
_LOOK_AHEAD_SECONDS = 1.0
_LOOK_AHEAD_BYTES = 64 << 20


def chunk_size_of(items: int) -> int:
    """The size for a job of so many items, a multiple of 16; 512 from 4,096 items on."""
    if items <= _ONE_CHUNK:
        return _ONE_CHUNK
    return min(DEFAULT_CHUNK_SIZE, max(_LEAST, items // _CHUNKS // _LEAST * _LEAST))


def look_ahead(
    batches: Iterator[pa.RecordBatch], *, monotonic: Callable[[], float] = time.monotonic
) -> tuple[int, Iterator[pa.RecordBatch]]:
    """Choose the chunk size from the first batches; return it, and all batches.

    Reads on until the source ends, is idle, or is too large for smaller chunks, for a second at most.
    """
    held: list[pa.RecordBatch] = []
    items, ends = 0, monotonic() + _LOOK_AHEAD_SECONDS
    for batch in batches:
        held.append(batch)
        items += batch.num_rows
        is_large = chunk_size_of(items) == DEFAULT_CHUNK_SIZE
        is_large = is_large or sum(one.nbytes for one in held) >= _LOOK_AHEAD_BYTES
        if is_large or not batch.num_rows or monotonic() >= ends:
            return DEFAULT_CHUNK_SIZE, chain(held, batches)
    return chunk_size_of(items), iter(held)
