"""From features to accepted labels: sigmoids over a background, with thresholds, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np

from clipfleet.contract.label_sets import LARGEST_SCORE, LabelSet
from clipfleet_worker.score.best_labels import LABELS_PER_SLICE, BestLabels, from_steps, in_steps

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The best and the accepted labels of each image, as positions in the set."""

    label_indices: np.ndarray  # (images, k), by margin, descending
    scores: np.ndarray  # float32 (images, k), descending
    accepted: np.ndarray  # int64: those of the first image by margin, descending, then of the next one
    accepted_counts: np.ndarray  # int64 (images,)
    best_scores: np.ndarray  # float32 (images,): of the best accepted label, or the best of all


@dataclass(frozen=True, slots=True)
class Decision:
    """How the logits of a label set become scores and accepted labels; tensors are on the model's device."""

    shared: torch.Tensor  # float64 (prompts, d): the background of every label
    own: torch.Tensor  # float64 (prompts, d): further background of single labels
    owners: torch.Tensor  # int64 (prompts,): the label of each row of `own`, ascending
    slope: float
    intercepts: torch.Tensor  # float64 (labels,)
    thresholds: torch.Tensor  # float64 (labels,)

    @classmethod
    def of(cls, label_set: LabelSet, labels: Sequence[str], prompts: Mapping[str, torch.Tensor]) -> Self:
        """The decision of a label set with thresholds.

        Args:
            label_set: the label set.
            labels: its labels, or those of its preset.
            prompts: the encoded `background_prompts`, each float32 or float64 (d,) and L2-normalised.
        """
        import torch

        shared = {prompt: prompts[prompt] for prompt in label_set.background}
        own = [
            (position, prompts[prompt])
            for position, label in enumerate(labels)
            for prompt in dict.fromkeys(label_set.not_prompts.get(label, ()))
            if prompt not in shared  # a prompt counts once
        ]
        background = torch.stack([*shared.values()]).double()
        numbers = partial(torch.tensor, dtype=torch.float64, device=background.device)
        return cls(
            background,
            torch.stack([row for _, row in own]).double() if own else background[:0],
            torch.tensor([position for position, _ in own], dtype=torch.int64, device=background.device),
            1.0 if label_set.slope is None else label_set.slope,
            numbers([label_set.intercepts.get(label, 0.0) for label in labels]),
            numbers([label_set.threshold(label) for label in labels]),
        )


def background_prompts(label_set: LabelSet) -> tuple[str, ...]:
    """All background prompts of a label set, without repetitions: the shared ones, then those of labels."""
    own = (prompt for prompts in label_set.not_prompts.values() for prompt in prompts)
    return tuple(dict.fromkeys((*label_set.background, *own)))


def accept(
    images: torch.Tensor, text_matrix: torch.Tensor, decision: Decision, logit_scale: float, top_k: int
) -> Acceptance:
    """Score each label by `LabelSet`'s formula; find the best `top_k` and all accepted ones.

    Labels are ordered by their margin `slope * z + intercept`, which still differs where the scores are all
    close to 1; of equal margins the first label wins. Scores are rounded to float32; thresholds are compared
    with the rounded scores, so that a reader of the scores gets the same answer.

    Args:
        images: float64 (images, d), L2-normalised, on the device of the text matrix.
        text_matrix: float32 or float64 (labels, d), L2-normalised.
        decision: of the label set.
        logit_scale: the model's, already exponentiated.
        top_k: how many labels to keep; all of them if there are fewer.
    """
    import torch

    images = images * logit_scale
    ground = torch.logsumexp(images @ decision.shared.T, dim=1, keepdim=True)
    best = BestLabels(len(images), top_k, images.device)
    found: list[tuple[torch.Tensor, ...]] = []  # accepted: images, labels, margins in steps
    for start in range(0, len(text_matrix), LABELS_PER_SLICE):
        texts = text_matrix[start : start + LABELS_PER_SLICE]
        margins = in_steps(_margins(images, texts.double(), ground, decision, start))
        best.add(margins, start)
        scores = _scores(from_steps(margins))
        is_accepted = scores.double() >= decision.thresholds[start : start + len(texts)]
        image, place = is_accepted.nonzero(as_tuple=True)
        found.append((image.cpu(), place.cpu() + start, margins[is_accepted].cpu()))
    top = _scores(best.values).cpu().numpy()
    return Acceptance(best.indices.cpu().numpy(), top, *_by_image(found, top[:, 0]))


def _margins(
    images: torch.Tensor, texts: torch.Tensor, ground: torch.Tensor, decision: Decision, start: int
) -> torch.Tensor:
    """`slope * z + intercept` of some labels, float64 (images, labels).

    `images` are multiplied by the logit scale.
    """
    import torch

    stop = start + len(texts)
    over = images @ texts.T - ground
    first, last = np.searchsorted(decision.owners.cpu().numpy(), [start, stop])
    if first < last:
        # logaddexp of the shared background and of the label's own, relative to the shared one.
        own = torch.exp(decision.own[first:last] @ images.T - ground.T)
        mass = images.new_zeros((len(texts), len(images)))  # rows are added faster than columns
        over -= torch.log1p(mass.index_add_(0, decision.owners[first:last] - start, own)).T
    return decision.slope * over + decision.intercepts[start:stop]


def _scores(margins: torch.Tensor) -> torch.Tensor:
    """Scores of margins, float32."""
    import torch

    return torch.sigmoid(margins).clamp(max=LARGEST_SCORE).float()


def _by_image(
    found: Sequence[tuple[torch.Tensor, ...]], best_scores: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Accepted labels by image and margin; their number; the score of the best one, else the given score.

    Args:
        found: images, labels and margins in steps of accepted labels, in any order.
        best_scores: float32, of the best label of each image.
    """
    import torch

    images, labels, margins = (torch.cat(values) for values in zip(*found, strict=True))
    order = np.lexsort((labels.numpy(), -margins.numpy(), images.numpy()))
    counts = np.bincount(images.numpy(), minlength=len(best_scores))
    firsts = (np.cumsum(counts) - counts)[counts > 0]
    best_scores = best_scores.copy()
    best_scores[counts > 0] = _scores(from_steps(margins[order][firsts])).numpy()
    return labels.numpy()[order], counts, best_scores
