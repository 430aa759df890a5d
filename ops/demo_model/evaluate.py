"""Evaluate a demo model on images in a style that it was not trained on, with open_clip's own transform.

Prints one JSON object. With `--rendered` the figures of the model card; with `--samples` the
accuracy of the product's demo, each group of the shipped images among that group's own names.
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

TEMPLATE = "a photo of a {}"
BATCH_SIZE = 256
DRAWS = 200
DRAW_SIZES = (10, 20, 50)
SHIPPED = Path(__file__).parents[2] / "worker" / "clipfleet_worker" / "demo_model"


class Judge:
    """A loaded model; features come back normalised, one row per input, in input order."""

    def __init__(self, folder: Path) -> None:
        """Load the model of a folder that `train.py` wrote, in float32 on the CPU."""
        name = f"local-dir:{folder}"
        self._model, _, self._transform = open_clip.create_model_and_transforms(name)
        self._model.eval()
        self._tokenizer = open_clip.get_tokenizer(name)

    @torch.inference_mode()
    def image_features(self, images: Iterable[Image.Image]) -> torch.Tensor:
        """Features of RGB images, shape (n, dimensions)."""
        pixels = torch.stack([self._transform(image) for image in images])
        return self._in_batches(self._model.encode_image, pixels)

    @torch.inference_mode()
    def text_features(self, names: Iterable[str]) -> torch.Tensor:
        """Features of names put into the template, shape (n, dimensions)."""
        tokens = self._tokenizer([TEMPLATE.format(name) for name in names])
        return self._in_batches(self._model.encode_text, tokens)

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


def judge_held_out(judge: Judge, rendered: Path, seed: int) -> dict[str, Any]:
    """The figures of the model card, as shares of 1."""
    concepts = read_concepts(rendered)
    held_out = read_held_out(rendered)
    images = judge.image_features(on_white(Image.fromarray(rgba)) for rgba in held_out.pixels)
    texts = judge.text_features(concept.label for concept in concepts)
    truth = torch.from_numpy(held_out.concept_ids)
    scores = images @ texts.T
    own = scores[:, truth]
    return {
        "images": len(images),
        "names": len(texts),
        "top_1": top_k_accuracy(scores, truth, 1),
        "top_5": top_k_accuracy(scores, truth, 5),
        "drawn": {size: drawn_accuracy(own, size, DRAWS, seed) for size in DRAW_SIZES},
        "expected": {size: expected_accuracy(own, size) for size in DRAW_SIZES},
    }


def judge_samples(judge: Judge, folder: Path) -> dict[str, Any]:
    """Accuracy of each group of sample images among the group's names, and every mistake."""
    samples = json.loads((folder / "samples.json").read_text(encoding="utf-8"))
    groups: dict[int, list[dict[str, Any]]] = {}
    for sample in samples:
        groups.setdefault(sample["group"], []).append(sample)
    accuracy: dict[int, float] = {}
    mistakes: list[dict[str, str]] = []
    for group, members in sorted(groups.items()):
        names = [member["name"] for member in members]
        images = [_open_rgb(folder / member["file"]) for member in members]
        scores = judge.image_features(images) @ judge.text_features(names).T
        accuracy[group] = top_k_accuracy(scores, torch.arange(len(names)), 1)
        chosen = [names[column] for column in scores.argmax(dim=1).tolist()]
        mistakes += [{"name": n, "chosen": c} for n, c in zip(names, chosen, strict=True) if n != c]
    right = len(samples) - len(mistakes)
    return {"accuracy": accuracy, "right": right, "of": len(samples), "mistakes": mistakes}


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
        report["samples"] = judge_samples(judge, arguments.samples)
    sys.stdout.write(json.dumps(report, indent=2, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
