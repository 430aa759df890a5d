"""Which features are unit vectors, and the error detail of a row whose features are none."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from clipfleet.contract.jobs import Precision

if TYPE_CHECKING:
    pass


def have_direction(features: np.ndarray) -> np.ndarray:
    """Which rows of features (n, d) are unit vectors; bool (n,).

    A model that overflows gives NaN, infinity or zero instead.
    """
    squares = np.einsum("nd,nd->n", features, features)  # one pass; keeps NaN and infinity
    usable: np.ndarray = np.isfinite(squares) & (squares > 0)
    return usable


def why_not(precision: Precision, what: str) -> str:
    """The detail of a failed row whose features have no direction.

    Args:
        precision: of the computation.
        what: the item, such as `this image`.
    """
    if precision is Precision.FP32:
        return f"the model gives no finite vector for {what}"
    return (
        f"the model overflows in {precision.value}; set CLIPFLEET_PRECISION=fp32 (or --precision fp32 for a "
        f"job): no finite vector for {what}"
    )
