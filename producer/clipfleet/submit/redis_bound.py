"""Bounds the items of one job in Redis."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from itertools import chain

import pyarrow as pa

from clipfleet.contract.jobs import MAX_ITEMS_IN_REDIS
from clipfleet.contract.parts import count_items
from clipfleet.errors import TooManyItemsError

MAX_BYTES_IN_REDIS = 1 << 30  # of items: reached only by inline images
_LOOK_AHEAD_SECONDS = 1.0
_LOOK_AHEAD_BYTES = 64 << 20


def within_redis(
    batches: Iterator[pa.RecordBatch],
    *,
    look_ahead: bool,
    max_items: int = MAX_ITEMS_IN_REDIS,
    max_bytes: int = MAX_BYTES_IN_REDIS,
    monotonic: Callable[[], float] = time.monotonic,
) -> Iterator[pa.RecordBatch]:
    """Pass batches through, up to the limits.

    Args:
        batches: batches of a source.
        look_ahead: read ahead for up to a second, which refuses most sources that are too long before
            anything is created. Not for a source that may block.
        max_items: upper bound of items.
        max_bytes: upper bound of bytes in all batches.
        monotonic: a clock in seconds.

    Raises:
        TooManyItemsError: at once, or while iterating.
    """
    bounded = _bounded(batches, max_items, max_bytes)
    if not look_ahead:
        return bounded
    held: list[pa.RecordBatch] = []
    ends = monotonic() + _LOOK_AHEAD_SECONDS
    for batch in bounded:
        held.append(batch)
        if monotonic() >= ends or sum(one.nbytes for one in held) >= _LOOK_AHEAD_BYTES:
            break
    return chain(held, bounded)


def _bounded(batches: Iterator[pa.RecordBatch], max_items: int, max_bytes: int) -> Iterator[pa.RecordBatch]:
    items = size = 0
    for batch in batches:
        items += count_items(batch)
        size += batch.nbytes
        if items > max_items:
            raise TooManyItemsError(_message(f"more than {max_items:,} items"))
        if size > max_bytes:
            raise TooManyItemsError(_message(f"more than {max_bytes >> 20:,} MiB of items"))
        yield batch


def _message(what: str) -> str:
    return (
        f"the source has {what}, the limit of a job in Redis: "
        "give an `output=`, the path of a folder or s3://BUCKET/PREFIX"
    )
