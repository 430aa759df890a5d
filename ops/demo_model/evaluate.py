"""Evaluate a demo model on images in a style that it was not trained on, with open_clip's own transform.

Prints one JSON object. With `--rendered` the figures of the model card; with `--samples` the
accuracy of the product's demo, each group of the shipped images among that group's own names.
Both have `none_auroc`: how well the score over the default background tells images of the drawn
names from images of none of them.
Does not train and writes no file.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections.abc import Callable, Iterable
from math import comb
from pathlib import Path
from statistics import fmean
from typing import Any

import open_clip
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from emoji_dataset import on_white, read_concepts, read_held_out
from PIL import Image

from clipfleet.contract.label_sets import DEFAULT_BACKGROUND

TEMPLATE = "a photo of a {}"
BATCH_SIZE = 256
DRAWS = 200
DRAW_SIZES = (10, 20, 50)
SAMPLES_DRAW_SIZE = 20
SHIPPED = Path(__file__).parents[2] / "worker" / "clipfleet_worker" / "demo_model"


class Judge:
    """A loaded model; features come back normalised, one row per input, in input order."""

    def __init__(self, folder: Path) -> None:
        """Load the model of a folder that `train.py` wrote, in float32 on the CPU."""
        name = f"local-dir:{folder}"
        self._model, _, self._transform = open_clip.create_model_and_transforms(name)
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(name)

    @property
    def logit_scale(self) -> float:
        """What the model multiplies a cosine by."""
        return self._model.logit_scale.exp().item()

    @torch.inference_mode()
    def image_features(self, images: Iterable[Image.Image]) -> torch.Tensor:
        """Features of RGB images, shape (n, dimensions)."""
        pixels = torch.stack([self._transform(image) for image in images])
        return self._in_batches(self._model.encode_image, pixels)

    @torch.inference_mode()
    def text_features(self, names: Iterable[str]) -> torch.Tensor:
        """Features of names put into the template, shape (n, dimensions)."""
        return self.prompt_features(TEMPLATE.format(name) for name in names)

    @torch.inference_mode()
    def prompt_features(self, prompts: Iterable[str]) -> torch.Tensor:
        """Features of prompts as they stand, shape (n, dimensions)."""
        return self._in_batches(self._model.encode_text, self._tokenizer(list(prompts)))

    def scores_over_background(self, images: torch.Tensor, texts: torch.Tensor) -> torch.Tensor:
        """Logits of features less the log-sum-exp of the default background's, shape (images, texts)."""
        background = images @ self.prompt_features(DEFAULT_BACKGROUND).T
        ground = torch.logsumexp(self.logit_scale * background, dim=1, keepdim=True)
        return self.logit_scale * (images @ texts.T) - ground

    @staticmethod
    def _in_batches(encode: Callable[[torch.Tensor], torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        features = [encode(batch) for batch in torch.split(inputs, BATCH_SIZE)]
        return F.normalize(torch.cat(features), dim=-1)


def top_k_accuracy(scores: torch.Tensor, truth: torch.Tensor, k: int) -> float:
    """The share of rows whose true column is among the k best; scores (n, names), truth (n,)."""
    best = scores.topk(k).indices
    return (best == truth[:, None]).any(dim=1).double().mean().item()


def drawn_accuracy(scores: torch.Tensor, size: int, draws: int, seed: int) -> float:
    """Mean top-1 accuracy over random draws of `size` images among their own names.

    `scores` is square: name i is the true one of image i.
    """
    rng = random.Random(seed)
    accuracies = []
    for _ in range(draws):
        drawn = torch.tensor(rng.sample(range(len(scores)), size))
        accuracies.append(top_k_accuracy(scores[drawn][:, drawn], torch.arange(size), 1))
    return fmean(accuracies)


def expected_accuracy(scores: torch.Tensor, size: int) -> float:
    """The limit of `drawn_accuracy` for many draws.

    An image with b names above its own is right if none of the b is among the size - 1 others that
    are drawn: C(n - 1 - b, size - 1) / C(n - 1, size - 1).
    """
    others = len(scores) - 1
    better = (scores > scores.diagonal()[:, None]).sum(dim=1).tolist()
    right = sum(comb(others - count, size - 1) for count in better)
    return right / (comb(others, size - 1) * len(scores))


def auroc(positives: torch.Tensor, negatives: torch.Tensor) -> float:
    """The share of pairs whose positive has the higher score; a tie is half a pair."""
    above = positives[:, None] > negatives
    ties = positives[:, None] == negatives
    return (above.double() + ties.double() / 2).mean().item()


def none_auroc(scores: torch.Tensor, size: int, draws: int, seed: int) -> float:
    """Mean AUROC of the best score, over random draws of `size` names.

    `scores` is square: name i is the true one of image i. The images of the drawn names are the
    positives, all others the negatives.
    """
    rng = random.Random(seed)
    areas = []
    for _ in range(draws):
        drawn = torch.tensor(rng.sample(range(len(scores)), size))
        best = scores[:, drawn].amax(dim=1)
        is_drawn = torch.zeros(len(scores), dtype=torch.bool)
        is_drawn[drawn] = True
        areas.append(auroc(best[is_drawn], best[~is_drawn]))
    return fmean(areas)


def judge_held_out(judge: Judge, rendered: Path, seed: int) -> dict[str, Any]:
    """The figures of the model card, as shares of 1."""
    concepts = read_concepts(rendered)
    held_out = read_held_out(rendered)
    images = judge.image_features(on_white(Image.fromarray(rgba)) for rgba in held_out.pixels)
    texts = judge.text_features(concept.label for concept in concepts)
    truth = torch.from_numpy(held_out.concept_ids)
    scores = images @ texts.T
    own = scores[:, truth]
    over_background = judge.scores_over_background(images, texts[truth])
    return {
        "images": len(images),
        "names": len(texts),
        "top_1": top_k_accuracy(scores, truth, 1),
        "top_5": top_k_accuracy(scores, truth, 5),
        "drawn": {size: drawn_accuracy(own, size, DRAWS, seed) for size in DRAW_SIZES},
        "expected": {size: expected_accuracy(own, size) for size in DRAW_SIZES},
        "none_auroc": {size: none_auroc(over_background, size, DRAWS, seed) for size in DRAW_SIZES},
    }


def judge_samples(judge: Judge, folder: Path, seed: int) -> dict[str, Any]:
    """Accuracy of each group of sample images among the group's names, every mistake, and the AUROC.

    The AUROC is that of names drawn from all groups, as `none_auroc` draws them.
    """
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    images = judge.image_features(_open_rgb(folder / sample["file"]) for sample in samples)
    texts = judge.text_features(sample["name"] for sample in samples)
    groups: dict[int, list[int]] = {}
    for row, sample in enumerate(samples):
        groups.setdefault(sample["group"], []).append(row)
    accuracy: dict[int, float] = {}
    mistakes: list[dict[str, str]] = []
    for group, rows in sorted(groups.items()):
        names = [samples[row]["name"] for row in rows]
        scores = images[rows] @ texts[rows].T
        accuracy[group] = top_k_accuracy(scores, torch.arange(len(names)), 1)
        chosen = [names[column] for column in scores.argmax(dim=1).tolist()]
        mistakes += [{"name": n, "chosen": c} for n, c in zip(names, chosen, strict=True) if n != c]
    right = len(samples) - len(mistakes)
    area = none_auroc(judge.scores_over_background(images, texts), SAMPLES_DRAW_SIZE, DRAWS, seed)
    return {
        "accuracy": accuracy,
        "right": right,
        "of": len(samples),
        "none_auroc": {SAMPLES_DRAW_SIZE: area},
        "mistakes": mistakes,
    }


def _open_rgb(path: Path) -> Image.Image:
    with Image.open(path) as image:
        return image.convert("RGB")


def main() -> None:
    """Parse the arguments, judge, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, default=SHIPPED, help="folder of the model")
    parser.add_argument("--rendered", type=Path, help="folder that render.py wrote")
    parser.add_argument("--samples", type=Path, help="folder with samples.json")
    parser.add_argument("--seed", type=int, default=0, help="of the random draws of names")
    arguments = parser.parse_args()
    if arguments.rendered is None and arguments.samples is None:
        parser.error("nothing to judge: give --rendered, --samples or both")

    judge = Judge(arguments.model)
    report: dict[str, Any] = {}
    if arguments.rendered is not None:
        report["held_out"] = judge_held_out(judge, arguments.rendered, arguments.seed)
    if arguments.samples is not None:
        report["samples"] = judge_samples(judge, arguments.samples, arguments.seed)
    sys.stdout.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
