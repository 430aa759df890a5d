"""The best labels of each image, slice by slice: there is never a matrix of all labels."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch

LABELS_PER_SLICE = 4096  # in double precision
# Values are rounded to multiples of 2^-30: labels with equal vectors get equal ones in any slice and batch.
_STEPS = 2.0**30
_MOST_STEPS = 2**51 - 1  # with the place in a slice they fit into 64 bits; a value of 2 million


class BestLabels:
    """Keeps the `top_k` labels with the largest values, descending; of equal values the first label wins."""

    def __init__(self, images: int, top_k: int, device: torch.device) -> None:
        import torch

        self._top_k = top_k
        self.indices = torch.empty((images, 0), dtype=torch.int64, device=device)  # (images, k)
        self._steps = torch.empty_like(self.indices)

    def add(self, steps: torch.Tensor, first_label: int) -> None:
        """Add the values of further labels, see `in_steps`, int64 (images, labels); slices come in order."""
        import torch

        places = torch.arange(steps.shape[1], device=steps.device)
        keys = steps * LABELS_PER_SLICE + (LABELS_PER_SLICE - 1 - places)
        best = torch.topk(keys, min(self._top_k, keys.shape[1])).values
        indices = first_label + LABELS_PER_SLICE - 1 - best % LABELS_PER_SLICE
        best = torch.div(best, LABELS_PER_SLICE, rounding_mode="floor")
        if not self.indices.shape[1]:
            self._steps, self.indices = best, indices
            return
        # Stable: earlier slices come first.
        best, order = torch.sort(torch.cat([self._steps, best], 1), dim=1, descending=True, stable=True)
        self._steps = best[:, : self._top_k]
        self.indices = torch.cat([self.indices, indices], 1).gather(1, order)[:, : self._top_k]

    @property
    def values(self) -> torch.Tensor:
        """The values of `indices`, float64 (images, k)."""
        return from_steps(self._steps)


def in_steps(values: torch.Tensor) -> torch.Tensor:
    """Round float64 values to whole steps, int64; changes `values`."""
    return values.mul_(_STEPS).round_().clamp_(-_MOST_STEPS, _MOST_STEPS).long()


def from_steps(steps: torch.Tensor) -> torch.Tensor:
    """The values of steps, float64."""
    return steps.double() / _STEPS
