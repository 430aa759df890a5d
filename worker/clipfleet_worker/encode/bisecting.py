"""Halve a batch whose forward pass fails until the failing items are alone.

If not even a harmless item can be encoded, the device is at fault, and no item fails.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

EncodeBatch = Callable[[list[Any]], np.ndarray]  # n items -> features (n, d)

# torch raises RuntimeError for nearly everything; `memory_errors` turns "out of memory" into MemoryError.
FORWARD_ERRORS = (RuntimeError, ValueError, MemoryError, ArithmeticError)


class DeviceFault(Exception):  # noqa: N818 - no error of an item
    """The device cannot encode anything now; `error` is what the batch raised."""

    def __init__(self, error: Exception) -> None:
        super().__init__(str(error))
        self.error = error


# By item; a list if the batch as a whole has failed.
Results = np.ndarray | list[np.ndarray | Exception]


def encode_each(
    encode: EncodeBatch, items: list[Any], harmless: Any, *, first: Callable[[], np.ndarray]
) -> Results:
    """Features of each item, or the exception of an item that fails alone.

    Args:
        encode: a forward pass; raises one of `FORWARD_ERRORS`.
        items: a batch.
        harmless: an item of the same kind that a working device can encode.
        first: finishes the pass of all items, which was begun before: returns or raises like `encode`.

    Raises:
        DeviceFault: the device cannot encode the harmless item either.
    """
    try:
        return first()
    except FORWARD_ERRORS as error:
        context = {"action": "batch_failed"}
        log.warning("a batch of %d failed: %s", len(items), error, exc_info=True, extra=context)
        failure = error
    is_too_large = isinstance(failure, MemoryError)
    if not is_too_large:  # otherwise halves may fit, and one that does proves the device
        _require_working(encode, harmless, failure)
    results = _encode_halves(encode, items, failure)
    if is_too_large and all(isinstance(result, Exception) for result in results):
        _require_working(encode, harmless, failure)
    return results


def _encode_halves(encode: EncodeBatch, items: list[Any], error: Exception) -> list[np.ndarray | Exception]:
    """Results of items that failed together."""
    if len(items) == 1:
        return [error]
    half = len(items) // 2
    results: list[np.ndarray | Exception] = []
    for part in (items[:half], items[half:]):
        try:
            results += list(encode(part))
        except FORWARD_ERRORS as again:
            results += _encode_halves(encode, part, again)
    return results


def _require_working(encode: EncodeBatch, harmless: Any, error: Exception) -> None:
    try:
        encode([harmless])
    except FORWARD_ERRORS:
        raise DeviceFault(error) from error
