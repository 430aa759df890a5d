"""Heads on the device: their layers, and from their scores to their columns of a part."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Self

import numpy as np
import pyarrow as pa

from clipfleet.contract.heads import Activation, Head, HeadKind, HeadOutput
from clipfleet.heads.files import MEAN, STD, HeadFile
from clipfleet_worker.score.label_columns import Columns, lists

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class DeviceHead:
    """A head whose numbers are on the model's device, all in double precision.

    So an image gets the same scores in any batch; the largest head that is known costs less than a thousandth
    of the pass of its model.
    """

    head: Head  # as a job has it
    scaling: tuple[torch.Tensor, torch.Tensor] | None  # (d,): subtracted, then divided by
    layers: Sequence[tuple[torch.Tensor, torch.Tensor]]  # (outputs, inputs), (outputs,)

    @classmethod
    def of(cls, file: HeadFile, device: str) -> Self:
        """Move the numbers of a head to the device of its model."""
        import torch

        arrays = file.arrays()
        tensors = {name: torch.from_numpy(one).to(device, torch.float64) for name, one in arrays.items()}
        scaling = (tensors[MEAN], tensors[STD]) if MEAN in tensors else None
        names = file.head.tensor_names
        return cls(file.of_job.head, scaling, [(tensors[weight], tensors[bias]) for weight, bias in names])

    @property
    def widest(self) -> int:
        """The most numbers that an image becomes on its way through the layers."""
        return max(len(bias) for _, bias in self.layers)

    @property
    def nbytes(self) -> int:
        """Memory of the device."""
        tensors = [*(one for layer in self.layers for one in layer), *(self.scaling or ())]
        return sum(one.nbytes for one in tensors)

    def score(self, images: torch.Tensor) -> np.ndarray:
        """Scores float32 (images, labels) of features float64 (images, d), L2-normalised."""
        import torch

        values = images
        if self.scaling is not None:
            values = (values - self.scaling[0]) / self.scaling[1]
        for (weight, bias), activation in zip(self.layers, self.head.activations, strict=True):
            values = torch.addmm(bias, values, weight.T)
            if activation is Activation.RELU:
                values = values.relu_()
        if self.head.output is HeadOutput.SOFTMAX:
            values = values.softmax(dim=1)
        elif self.head.output is HeadOutput.SIGMOID:
            values = values.sigmoid()
        return values.float().cpu().numpy()


def head_columns_of(head: Head, scores: np.ndarray) -> Columns:
    """The columns of a head for some items, in the order of `JobHead.columns`.

    The label is the best one that is accepted, else null; the score is that of the label, else of the best.
    Thresholds are compared with the scores as rows have them.

    Args:
        head: the head.
        scores: float32 (items, labels).
    """
    names = pa.array(head.labels, pa.string())
    if head.kind is HeadKind.CLASSIFY:
        best = scores.argmax(axis=1)
        return names.take(pa.array(best)), pa.array(_of(scores, best))
    thresholds = [head.threshold(label) for label in head.labels]
    limits = np.array([np.inf if limit is None else limit for limit in thresholds])
    is_accepted = np.greater_equal(scores.astype(np.float64), limits)
    has_any: np.ndarray = is_accepted.any(axis=1)
    best = np.where(is_accepted | ~has_any[:, None], scores, -np.inf).argmax(axis=1)
    columns = names.take(pa.array(best, mask=~has_any)), pa.array(_of(scores, best))
    if head.kind is HeadKind.REGRESS:
        return columns
    order = np.argsort(-scores, axis=1, kind="stable")
    accepted = order[np.take_along_axis(is_accepted, order, axis=1)]
    ends = np.concatenate([[0], np.cumsum(is_accepted.sum(axis=1))]).astype(np.int32)
    return *columns, lists(ends, names.take(pa.array(accepted)))


def head_scores_of(scores: np.ndarray) -> pa.Array:
    """The column with all scores of a head, a list for each item."""
    items, labels = scores.shape
    ends = np.arange(items + 1, dtype=np.int32) * labels
    return lists(ends, pa.array(np.ascontiguousarray(scores).reshape(-1)))


def _of(scores: np.ndarray, places: np.ndarray) -> np.ndarray:
    return np.take_along_axis(scores, places[:, None], axis=1)[:, 0]
