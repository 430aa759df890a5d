"""From features to labels: the text matrix of a label set, and the scores of images under it."""

from __future__ import annotations

import threading
from collections import OrderedDict
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from clipfleet.contract import LabelSet, Lane
from clipfleet_worker.batcher import Batcher, Encoder

_KEPT_MATRICES = 16


@dataclass(frozen=True, slots=True)
class Ranking:
    """The best labels of each image, descending; both arrays are (images, k)."""

    label_indices: np.ndarray
    scores: np.ndarray  # float32, softmax over all labels of the set


def rank(features: np.ndarray, text_matrix: np.ndarray, logit_scale: float, top_k: int) -> Ranking:
    """Zero-shot classification: `softmax(logit_scale * features @ text_matrix.T)`, the best `top_k` of it.

    Args:
        features: float32 (images, d), L2-normalised.
        text_matrix: float32 (labels, d), L2-normalised, see `text_matrix_of`.
        logit_scale: the model's, already exponentiated (open_clip: `model.logit_scale.exp()`).
        top_k: how many labels to keep; all of them if there are fewer.
    """
    logits = (logit_scale * features) @ text_matrix.T
    logits -= logits.max(axis=1, keepdims=True)
    probabilities = np.exp(logits)
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    count = min(top_k, text_matrix.shape[0])
    order = np.argsort(-probabilities, axis=1, kind="stable")[:, :count]
    return Ranking(order, np.take_along_axis(probabilities, order, axis=1).astype(np.float32))


def text_matrix_of(prompt_features: np.ndarray, labels: int) -> np.ndarray:
    """Mean of each label's normalised prompts, normalised again (open_clip's `build_zero_shot_classifier`).

    Args:
        prompt_features: float32 (labels * templates, d), L2-normalised, in the order of `LabelSet.prompts`.
        labels: how many labels they belong to.
    """
    matrix = prompt_features.reshape(labels, -1, prompt_features.shape[1]).mean(axis=1)
    normalised: np.ndarray = matrix / np.linalg.norm(matrix, axis=1, keepdims=True)
    return normalised.astype(np.float32)


class TextModel(Encoder, Protocol):
    """A loaded model, as far as text matrices need it."""

    fingerprint: str


class TextMatrices:
    """Text matrices by model and label set; each is encoded once, whoever asks first."""

    def __init__(self, batcher: Batcher) -> None:
        self._batcher = batcher
        self._matrices: OrderedDict[tuple[str, str], np.ndarray] = OrderedDict()
        self._locks: dict[tuple[str, str], threading.Lock] = {}
        self._lock = threading.Lock()

    def get(self, model: TextModel, label_set: LabelSet, lane: Lane) -> np.ndarray:
        """The text matrix, float32 (labels, d)."""
        key = (model.fingerprint, label_set.hash)
        with self._lock:
            if key in self._matrices:
                self._matrices.move_to_end(key)
                return self._matrices[key]
            key_lock = self._locks.setdefault(key, threading.Lock())
        with key_lock:
            with self._lock:
                if key in self._matrices:
                    return self._matrices[key]
            prompt_features = self._batcher.encode_texts(model, label_set.prompts(), lane)
            matrix = text_matrix_of(prompt_features, len(label_set.labels))
            with self._lock:
                self._matrices[key] = matrix
                self._locks.pop(key, None)
                while len(self._matrices) > _KEPT_MATRICES:
                    self._matrices.popitem(last=False)
            return matrix
