"""From features to the best labels: softmax over a text matrix, on the device, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clipfleet_worker.process.device import memory_errors

if TYPE_CHECKING:
    import torch

_LABELS_PER_SLICE = 8192
_EXACT_VALUES = 4_000_000  # numbers in double precision at a time
_WORD = 2**32


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best labels of each image, descending; both arrays are (images, k)."""

    label_indices: np.ndarray
    scores: np.ndarray  # float32, softmax over all labels of the set


def rank(features: np.ndarray, text_matrix: torch.Tensor, logit_scale: float, top_k: int) -> Ranking:
    """Zero-shot classification: the best `top_k` of `softmax(logit_scale * features @ text_matrix.T)`.

    Labels are processed in slices, so that there is never a matrix of all images and all labels. Of equal
    logits the first label wins. The logits of the winners are computed again in double precision.

    Args:
        features: float32 (images, d), L2-normalised.
        text_matrix: float32 (labels, d) on any device, L2-normalised, see `text_matrix_of`.
        logit_scale: the model's, already exponentiated (open_clip: `model.logit_scale.exp()`).
        top_k: how many labels to keep; all of them if there are fewer.

    Raises:
        MemoryError: not enough memory on the device now.
    """
    import torch

    with torch.inference_mode(), memory_errors():
        images = torch.from_numpy(features).to(text_matrix.device)
        best, peak, mass = _best(images, text_matrix, logit_scale, top_k)
        indices, rough = from_sort_keys(best)
        exact = torch.exp(_exact_logits(images, text_matrix, indices, logit_scale) - peak[:, None])
        # The exact values of the winners replace the rough ones in the sum over all labels, too.
        mass = mass - torch.exp(rough.double() - peak[:, None]).sum(dim=1) + exact.sum(dim=1)
        scores, order = torch.sort(exact / mass[:, None], dim=1, descending=True, stable=True)
        return Ranking(indices.gather(1, order).cpu().numpy(), scores.float().cpu().numpy())


def prompts_of(labels: Sequence[str], templates: Sequence[str]) -> list[str]:
    """All prompts, label by label: `prompts_of(...)[i * len(templates) + j]` is label i in template j."""
    return [template.replace("{}", label) for label in labels for template in templates]


def text_matrix_of(prompt_features: np.ndarray, labels: int) -> np.ndarray:
    """Mean of each label's normalised prompts, normalised again (open_clip's `build_zero_shot_classifier`).

    Args:
        prompt_features: float32 (labels * templates, d), L2-normalised, in the order of `prompts_of`.
        labels: how many labels they belong to.

    Returns:
        float32 (labels, d); NaN for a label whose prompts have no mean direction.
    """
    matrix = prompt_features.reshape(labels, -1, prompt_features.shape[1]).mean(axis=1)
    with np.errstate(invalid="ignore"):
        normalised: np.ndarray = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return normalised.astype(np.float32)


def _best(
    images: torch.Tensor, text_matrix: torch.Tensor, logit_scale: float, top_k: int
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Sort keys of the best labels (images, k); the highest logit; the sum of exp(logit - highest)."""
    import torch

    best = torch.empty((len(images), 0), dtype=torch.int64, device=images.device)
    peak = torch.full((len(images),), -torch.inf, dtype=torch.float64, device=images.device)
    mass = torch.zeros_like(peak)
    for start in range(0, len(text_matrix), _LABELS_PER_SLICE):
        logits = images @ text_matrix[start : start + _LABELS_PER_SLICE].T * logit_scale
        keys = torch.topk(sort_keys(logits, start), min(top_k, logits.shape[1])).values
        best = torch.cat([best, keys], dim=1)
        best = torch.topk(best, min(top_k, best.shape[1])).values
        higher = torch.maximum(peak, logits.amax(dim=1).double())
        powers = torch.exp(logits - higher[:, None].float())
        mass = mass * torch.exp(peak - higher) + powers.sum(dim=1, dtype=torch.float64)
        peak = higher
    return best, peak, mass


def sort_keys(logits: torch.Tensor, first_label: int) -> torch.Tensor:
    """One integer for each logit and label: higher for a higher logit, then for an earlier label.

    `logits` is float32 (images, labels); the first of these labels has the number `first_label`. The bits of
    a float32, read as an integer, are in the order of its value; below zero in reverse order.
    """
    import torch

    bits = logits.contiguous().view(torch.int32)
    ordered = torch.where(bits < 0, bits ^ 0x7FFFFFFF, bits).long()
    labels = torch.arange(first_label, first_label + logits.shape[1], device=logits.device)
    return ordered * _WORD + (_WORD - 1 - labels)


def from_sort_keys(keys: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Labels and their logits: the inverse of `sort_keys`."""
    import torch

    labels = _WORD - 1 - keys % _WORD
    ordered = torch.div(keys, _WORD, rounding_mode="floor").int()
    bits = torch.where(ordered < 0, ordered ^ 0x7FFFFFFF, ordered)
    return labels, bits.view(torch.float32)


def _exact_logits(
    images: torch.Tensor, text_matrix: torch.Tensor, labels: torch.Tensor, logit_scale: float
) -> torch.Tensor:
    """Logits of some labels of each image (images, k) in double precision."""
    import torch

    step = max(1, _EXACT_VALUES // (labels.shape[1] * images.shape[1]))
    parts = []
    for start in range(0, len(images), step):
        texts = text_matrix[labels[start : start + step]].double()
        parts.append(torch.einsum("nkd,nd->nk", texts, images[start : start + step].double()))
    return torch.cat(parts) * logit_scale
