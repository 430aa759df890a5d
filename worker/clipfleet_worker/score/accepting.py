"""From features to accepted labels: sigmoids over a background, with thresholds, in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Self

import numpy as np

from clipfleet.contract.label_sets import LARGEST_SCORE, LabelSet
from clipfleet_worker.process.device import memory_errors

if TYPE_CHECKING:
    import torch

_LABELS_PER_SLICE = 4096  # in double precision
# Margins are rounded to multiples of 2^-30: labels with equal vectors get equal ones in any slice.
_STEPS = 2.0**30
_MOST_STEPS = 2**51 - 1  # with the place in a slice they fit into 64 bits; a margin of 2 million


@dataclass(frozen=True, slots=True)
class Acceptance:
    """The best and the accepted labels of each image, as positions in the set."""

    label_indices: np.ndarray  # (images, k), by margin, descending
    scores: np.ndarray  # float32 (images, k), descending
    accepted: Sequence[Sequence[int]]  # of each image, by margin, descending
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
            prompts: the encoded `background_prompts`, each float32 (d,) and L2-normalised.
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
    features: np.ndarray, text_matrix: torch.Tensor, decision: Decision, logit_scale: float, top_k: int
) -> Acceptance:
    """Score each label by `LabelSet`'s formula; find the best `top_k` and all accepted ones.

    Labels are ordered by their margin `slope * z + intercept`, which still differs where the scores are all
    close to 1; of equal margins the first label wins. Scores are rounded to float32; thresholds are compared
    with the rounded scores, so that a reader of the scores gets the same answer. Labels are processed in
    slices, so that there is never a matrix of all images and all labels.

    Args:
        features: float32 (images, d), L2-normalised.
        text_matrix: float32 (labels, d) on any device, L2-normalised.
        decision: of the label set.
        logit_scale: the model's, already exponentiated.
        top_k: how many labels to keep; all of them if there are fewer.

    Raises:
        MemoryError: not enough memory on the device now.
    """
    import torch

    with torch.inference_mode(), memory_errors():
        images = torch.from_numpy(features).to(text_matrix.device).double() * logit_scale
        ground = torch.logsumexp(images @ decision.shared.T, dim=1, keepdim=True)
        best = torch.empty((len(images), 0), dtype=torch.int64, device=images.device)
        indices = torch.empty_like(best)
        found: list[tuple[torch.Tensor, ...]] = []  # accepted: images, labels, margins
        for start in range(0, len(text_matrix), _LABELS_PER_SLICE):
            texts = text_matrix[start : start + _LABELS_PER_SLICE]
            margins = _margins(images, texts.double(), ground, decision, start)
            some, places = _best(margins, top_k)
            # Stable: earlier slices come first.
            best, order = torch.sort(torch.cat([best, some], dim=1), dim=1, descending=True, stable=True)
            indices = torch.cat([indices, places + start], dim=1).gather(1, order)[:, :top_k]
            best = best[:, :top_k]
            is_accepted = _scores(margins).double() >= decision.thresholds[start : start + len(texts)]
            image, place = is_accepted.nonzero(as_tuple=True)
            found.append((image.cpu(), place.cpu() + start, margins[is_accepted].cpu()))
        top = _scores(best).cpu().numpy()
        accepted, best_scores = _by_image(found, top[:, 0])
        return Acceptance(indices.cpu().numpy(), top, accepted, best_scores)


def _margins(
    images: torch.Tensor, texts: torch.Tensor, ground: torch.Tensor, decision: Decision, start: int
) -> torch.Tensor:
    """`slope * z + intercept` of some labels in steps, int64 (images, labels).

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
    margins = torch.round((decision.slope * over + decision.intercepts[start:stop]) * _STEPS)
    return margins.clamp(-_MOST_STEPS, _MOST_STEPS).long()


def _scores(margins: torch.Tensor) -> torch.Tensor:
    """Scores of margins in steps, float32."""
    import torch

    return torch.sigmoid(margins.double() / _STEPS).clamp(max=LARGEST_SCORE).float()


def _best(margins: torch.Tensor, top_k: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The largest margins of a slice and their places (images, k), descending, then by place."""
    import torch

    places = torch.arange(margins.shape[1], device=margins.device)
    keys = margins * _LABELS_PER_SLICE + (_LABELS_PER_SLICE - 1 - places)
    best = torch.topk(keys, min(top_k, keys.shape[1])).values
    return (
        torch.div(best, _LABELS_PER_SLICE, rounding_mode="floor"),
        _LABELS_PER_SLICE - 1 - best % _LABELS_PER_SLICE,
    )


def _by_image(
    found: Sequence[tuple[torch.Tensor, ...]], best_scores: np.ndarray
) -> tuple[list[list[int]], np.ndarray]:
    """Accepted labels of each image, by margin; and the score of the best one, else the given score.

    Args:
        found: images, labels and margins of accepted labels, in any order.
        best_scores: float32, of the best label of each image.
    """
    import torch

    images, labels, margins = (torch.cat(values) for values in zip(*found, strict=True))
    order = np.lexsort((labels.numpy(), -margins.numpy(), images.numpy()))
    ends = np.cumsum(np.bincount(images.numpy(), minlength=len(best_scores)))
    accepted = [part.tolist() for part in np.split(labels.numpy()[order], ends[:-1])]
    starts = np.concatenate([[0], ends[:-1]])
    has_any = ends > starts
    best_scores = best_scores.copy()
    best_scores[has_any] = _scores(margins[order][starts[has_any]]).numpy()
    return accepted, best_scores
