"""Decisions of policies computed without our code: open_clip for the texts, numpy in double precision for the
scores, and the rules read one item at a time.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

import numpy as np
import open_clip
import torch
from numpy.typing import NDArray
from safetensors.numpy import load

from clipfleet.contract.label_sets import LabelSet
from clipfleet.moderation.policy_files import PolicyFile
from tests.support.demo_model import DEMO

Scores = Mapping[tuple[str, str], NDArray[np.float32]]  # (label set or head, label) -> float32 (items,)

_SEVERITY = ("flag", "review", "allow")


@cache
def _model() -> tuple[Any, Any]:
    name = f"local-dir:{DEMO}"
    module = open_clip.create_model(name).eval()
    return module, open_clip.get_tokenizer(name, context_length=module.context_length)


def text_vectors(prompts: Sequence[str]) -> NDArray[np.float64]:
    """Of the demo model, float64 (prompts, d), of length 1."""
    module, tokenizer = _model()
    with torch.no_grad():
        found: NDArray[np.float64] = module.encode_text(tokenizer([*prompts])).double().numpy()
    found /= np.linalg.norm(found, axis=1, keepdims=True)
    return found


def scores_of(chosen: PolicyFile, vectors: NDArray[np.float16]) -> Scores:
    """All scores that a policy may look at.

    Args:
        chosen: whose heads have one layer and a sigmoid.
        vectors: as they are stored, (items, d).
    """
    images = vectors.astype(np.float64)
    images /= np.linalg.norm(images, axis=1, keepdims=True)
    found: dict[tuple[str, str], NDArray[np.float32]] = {}
    for label_set in chosen.policy.label_sets:
        for label in label_set.labels:
            found[label_set.name, label] = _label_scores(label_set, label, images)
    for file in chosen.heads:
        tensors = load(file.data)
        logits = images @ tensors["0.weight"].T.astype(np.float64) + tensors["0.bias"]
        for column, label in enumerate(file.head.labels):
            found[file.head.name, label] = (1 / (1 + np.exp(-logits[:, column]))).astype(np.float32)
    return found


def _label_scores(label_set: LabelSet, label: str, images: NDArray[np.float64]) -> NDArray[np.float32]:
    scale = float(_model()[0].logit_scale.detach().exp())
    templates = [template.replace("{}", label) for template in label_set.templates]
    text = text_vectors(templates).mean(axis=0)
    own = scale * (images @ (text / np.linalg.norm(text)))
    prompts = dict.fromkeys([*label_set.background, *label_set.not_prompts.get(label, ())])
    background = scale * (images @ text_vectors([*prompts]).T)
    z = own - np.log(np.exp(background).sum(axis=1))
    margin = (label_set.slope or 1.0) * z + label_set.intercepts.get(label, 0.0)
    scores: NDArray[np.float32] = np.minimum(1 / (1 + np.exp(-margin)), 1 - 2.0**-24).astype(np.float32)
    return scores


def decided(chosen: PolicyFile, scores: Scores, failed: Sequence[int] = ()) -> list[str]:
    """The decision on each item."""
    items = len(next(iter(scores.values())))
    return ["undecided" if item in failed else _decision(chosen, scores, item) for item in range(items)]


def _decision(chosen: PolicyFile, scores: Scores, item: int) -> str:
    counted = set()
    for rule in chosen.policy.rules:
        holds = True
        for one in rule.when:
            score = float(scores[one.head or one.label_set or "", one.label or ""][item])
            below, threshold = one.below is not None, one.at_least
            if below:
                threshold = one.below
            elif threshold is None:
                threshold = _own_threshold(chosen, one.head, one.label_set, one.label or "")
            assert threshold is not None
            holds = holds and (score < threshold if below else score >= threshold)
        if holds:
            counted.add(rule.action.value)
            if rule.action.value == "allow":
                break
    return next((one for one in _SEVERITY if one in counted), chosen.policy.otherwise.value)


def _own_threshold(chosen: PolicyFile, head: str | None, label_set: str | None, label: str) -> float:
    if head is not None:
        return next(one.head.thresholds[label] for one in chosen.heads if one.head.name == head)
    return next(one.thresholds.get(label, 0.5) for one in chosen.policy.label_sets if one.name == label_set)


def nearest_to_a_threshold(chosen: PolicyFile, scores: Scores) -> float:
    """The least distance of a score from what it is compared with: an answer is only sure beyond rounding."""
    distances = []
    for rule in chosen.policy.rules:
        for one in rule.when:
            given = one.below if one.at_least is None else one.at_least
            threshold = (
                _own_threshold(chosen, one.head, one.label_set, one.label or "") if given is None else given
            )
            values = scores[one.head or one.label_set or "", one.label or ""].astype(np.float64)
            distances.append(np.abs(values - threshold).min())
    return float(min(distances))
