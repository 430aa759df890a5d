"""open_clip alone, as the judge of pixels and features, and the measures of fidelity."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import open_clip
import torch
from PIL import Image


class ReferenceModel:
    """open_clip alone."""

    def __init__(self, folder: Path) -> None:
        name = f"local-dir:{folder}"
        self.module, _, self.preprocess = open_clip.create_model_and_transforms(name)
        self.module.eval()
        self.tokenizer = open_clip.get_tokenizer(name, context_length=self.module.context_length)
        self._normalise = self.preprocess.transforms[-1]

    def tensor(self, image: Image.Image) -> np.ndarray:
        """float32 (3, size, size)."""
        array: np.ndarray = self.preprocess(image).numpy()
        return array

    def pixels(self, tensor: np.ndarray) -> np.ndarray:
        """Normalised values back to uint8 (size, size, 3)."""
        mean, std = (np.reshape(values, (3, 1, 1)) for values in (self._normalise.mean, self._normalise.std))
        return np.rint((tensor * std + mean) * 255).astype(np.uint8).transpose(1, 2, 0)

    def features(self, tensors: Sequence[np.ndarray]) -> np.ndarray:
        """float32 (n, d), L2-normalised."""
        with torch.no_grad():
            array: np.ndarray = self.module.encode_image(
                torch.from_numpy(np.stack(tensors)), normalize=True
            ).numpy()
        return array


def difference_of(ours: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """In levels, of uint8 arrays."""
    return np.abs(ours.astype(np.int16) - reference)


def cosines(features: np.ndarray, reference: np.ndarray) -> np.ndarray:
    """Row by row."""
    products: np.ndarray = (features.astype(np.float64) * reference).sum(axis=1)
    return products / np.linalg.norm(features, axis=1) / np.linalg.norm(reference, axis=1)


def p999(differences: Sequence[np.ndarray]) -> float:
    """99.9 % of all differences are no larger."""
    return float(np.quantile(np.concatenate([values.ravel() for values in differences]), 0.999))
