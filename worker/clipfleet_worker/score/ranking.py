"""From features to the best labels: softmax over a text matrix, on the device, in bounded memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clipfleet_worker.score.best_labels import LABELS_PER_SLICE, BestLabels, in_steps

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best labels of each image, descending; both arrays are (images, k)."""

    label_indices: np.ndarray
    scores: np.ndarray  # float32, softmax over all labels of the set


def rank(images: torch.Tensor, text_matrix: torch.Tensor, logit_scale: float, top_k: int) -> Ranking:
    """Zero-shot classification: the best `top_k` of `softmax(logit_scale * images @ text_matrix.T)`.

    In double precision, so that an image gets the same scores in any batch. Of equal logits the first label
    wins.

    Args:
        images: float64 (images, d), L2-normalised, on the device of the text matrix.
        text_matrix: float32 or float64 (labels, d), L2-normalised, see `text_matrix_of`.
        logit_scale: the model's, already exponentiated (open_clip: `model.logit_scale.exp()`).
        top_k: how many labels to keep; all of them if there are fewer.
    """
    import torch

    best = BestLabels(len(images), top_k, images.device)
    peak = torch.full((len(images), 1), -torch.inf, dtype=torch.float64, device=images.device)
    mass = torch.zeros_like(peak)
    for start in range(0, len(text_matrix), LABELS_PER_SLICE):
        logits = images @ text_matrix[start : start + LABELS_PER_SLICE].T.double() * logit_scale
        higher = torch.maximum(peak, logits.amax(dim=1, keepdim=True))
        mass = mass * torch.exp(peak - higher) + torch.exp(logits - higher).sum(dim=1, keepdim=True)
        peak = higher
        best.add(in_steps(logits), start)
    scores = torch.exp(best.values - peak) / mass
    return Ranking(best.indices.cpu().numpy(), scores.float().cpu().numpy())


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
