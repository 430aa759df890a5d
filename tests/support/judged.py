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
from clipfleet.contract.policies import Condition
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
            threshold = _threshold(chosen, one)
            holds = holds and (score >= threshold if one.below is None else score < threshold)
        if holds:
            counted.add(rule.action.value)
            if rule.action.value == "allow":
                break
    return next((one for one in _SEVERITY if one in counted), chosen.policy.otherwise.value)


def too_close(chosen: PolicyFile, scores: Scores, within: float) -> set[int]:
    """Items with a score that is so near to what it is compared with that rounding decides."""
    found: set[int] = set()
    for rule in chosen.policy.rules:
        for one in rule.when:
            values = scores[one.head or one.label_set or "", one.label or ""].astype(np.float64)
            found.update(np.flatnonzero(np.abs(values - _threshold(chosen, one)) <= within).tolist())
    return found


def _threshold(chosen: PolicyFile, one: Condition) -> float:
    for given in (one.below, one.at_least):
        if given is not None:
            return given
    if one.head is not None:
        head = next(file.head for file in chosen.heads if file.head.name == one.head)
        return head.thresholds[one.label or ""]
    label_set = next(found for found in chosen.policy.label_sets if found.name == one.label_set)
    return label_set.thresholds.get(one.label or "", 0.5)
