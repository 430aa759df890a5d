"""The arithmetic of a head on arrays: what workers compute on their device, see `DeviceHead`. Needs numpy."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np

from clipfleet.contract.heads import Activation, HeadOutput
from clipfleet.heads.files import MEAN, STD, HeadFile

Array = np.ndarray

_NUMBERS_AT_ONCE = 8_000_000  # of the widest layer; 64 MB of float64


def head_scores(file: HeadFile, vectors: Array, chosen: Array | None = None) -> Array:
    """Score vectors with a head, in double precision, a slice at a time.

    Args:
        file: the head.
        vectors: (items, d), of length 1.
        chosen: int: indexes of the items to score; None: all.

    Returns:
        float32 (chosen items, labels).
    """
    return _through(file, vectors, chosen, partial(_output, output=file.head.output))


def head_logits(file: HeadFile, vectors: Array, chosen: Array | None = None) -> Array:
    """What orders the labels of each vector: the last layer, less its largest number. See `head_scores`.

    Probabilities do not: far below the largest one they are all 0.
    """
    return _through(file, vectors, chosen, lambda values: values - values.max(axis=1, keepdims=True))


def _through(file: HeadFile, vectors: Array, chosen: Array | None, output: Callable[[Array], Array]) -> Array:
    head, arrays = file.head, {name: one.astype(np.float64) for name, one in file.arrays().items()}
    layers = [(arrays[weight], arrays[bias]) for weight, bias in head.tensor_names]
    widest = max(head.input.dim, *(len(bias) for _, bias in layers))
    step = max(1, _NUMBERS_AT_ONCE // widest)
    items = len(vectors) if chosen is None else len(chosen)
    found = np.empty((items, len(head.labels)), np.float32)
    for start in range(0, items, step):
        part = slice(start, start + step)
        values = vectors[part if chosen is None else chosen[part]].astype(np.float64)
        if MEAN in arrays:
            values = (values - arrays[MEAN]) / arrays[STD]
        for (weight, bias), activation in zip(layers, head.activations, strict=True):
            values = values @ weight.T + bias
            if activation is Activation.RELU:
                np.maximum(values, 0, out=values)
        found[part] = output(values)
    return found


def _output(values: Array, output: HeadOutput) -> Array:
    if output is HeadOutput.SOFTMAX:
        powers: Array = np.exp(values - values.max(axis=1, keepdims=True))
        shares: Array = powers / powers.sum(axis=1, keepdims=True)
        return shares
    if output is HeadOutput.SIGMOID:
        smaller = np.exp(-np.abs(values))  # never overflows
        chances: Array = np.where(values >= 0, 1, smaller) / (1 + smaller)
        return chances
    return values
