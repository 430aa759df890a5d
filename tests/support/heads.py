"""Heads of chosen shapes with random numbers, and their file."""

from __future__ import annotations

from itertools import pairwise
from typing import Any

import numpy as np

from clipfleet.contract.heads import Activation, Head, HeadInput, HeadKind, HeadOutput, HeadTraining
from clipfleet.heads.files import HeadFile, make_head


def head_of(
    *widths: int, kind: HeadKind = HeadKind.CLASSIFY, activation: Activation = Activation.NONE, **values: Any
) -> Head:
    """A head whose layers have these widths, the first one that of its vectors."""
    outputs = {HeadKind.CLASSIFY: HeadOutput.SOFTMAX, HeadKind.MULTILABEL: HeadOutput.SIGMOID}
    defaults: dict[str, Any] = {
        "name": "taste", "kind": kind, "labels": tuple(f"kind {number}" for number in range(widths[-1])),
        "activations": (activation,) * (len(widths) - 2) + (Activation.NONE,),
        "output": outputs.get(kind, HeadOutput.NONE), "input": HeadInput(dim=widths[0], model="demo"),
        "training": HeadTraining(recipe="random numbers"),
    }  # fmt: skip
    return Head(**(defaults | values))


def numbers_of(head: Head, *widths: int, seed: int = 0) -> dict[str, np.ndarray]:
    """Random weights and biases for it, float32."""
    random = np.random.default_rng(seed)
    return {
        name: random.normal(size=shape).astype(np.float32)
        for (weight, bias), (inputs, outputs) in zip(head.tensor_names, pairwise(widths), strict=True)
        for name, shape in ((weight, (outputs, inputs)), (bias, (outputs,)))
    }


def head_file(*widths: int, seed: int = 0, **values: Any) -> HeadFile:
    """The file of a random head, see `head_of`."""
    head = head_of(*widths, **values)
    return make_head(head, numbers_of(head, *widths, seed=seed))
