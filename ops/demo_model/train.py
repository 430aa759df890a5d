"""Train the demo model: a small CLIP that matches emoji images with their names and keywords.

Reads what render.py wrote and writes a folder that open_clip loads as `local-dir:<folder>`. The
held-out style is never read here; evaluate.py judges. Equal seeds give equal runs only on the same
CPU, versions and thread count.
"""

from __future__ import annotations

import argparse
import json
import logging
import math
import random
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import torch
import torch.nn.functional as F  # noqa: N812 - torch's own name for it
from emoji_dataset import TRAINING_SETS, Concept, read_concepts, read_images
from open_clip.model import CLIP
from safetensors.torch import save_file

MODEL_CONFIG: dict[str, Any] = {
    "embed_dim": 128,
    "vision_cfg": {"image_size": 64, "layers": [1, 1, 1, 1], "width": 24, "head_width": 32},
    "text_cfg": {"context_length": 16, "vocab_size": 49408, "width": 96, "heads": 4, "layers": 1},
}
PREPROCESS_CONFIG: dict[str, Any] = {
    "mean": list(open_clip.OPENAI_DATASET_MEAN),
    "std": list(open_clip.OPENAI_DATASET_STD),
    "interpolation": "bicubic",
    "resize_mode": "shortest",
}
TEMPLATES = (
    "{}",
    "a {}",
    "an image of {}",
    "an image of a {}",
    "an image of a {}",
    "{} emoji",
    "a photo of a {}",
    "an icon of a {}",
)
MAX_LOGIT_SCALE = 100.0
LOG_EVERY_SECONDS = 15.0

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """The parameters of a run, besides the data."""

    steps: int  # forward and backward passes
    batch_size: int  # images per step
    peak_learning_rate: float  # reached after the warm-up, then half a cosine down to `floor`
    warmup_steps: int
    floor: float  # learning rate at the end
    weight_decay: float
    max_gradient_norm: float
    seed: int

    def learning_rate(self, step: int) -> float:
        """Linear warm-up times a cosine over the whole run."""
        warmup = min(1.0, (step + 1) / self.warmup_steps)
        cosine = 0.5 * (1 + math.cos(math.pi * step / self.steps))
        return self.peak_learning_rate * warmup * cosine + self.floor


@dataclass(frozen=True)
class TrainingData:
    """All training images, in memory."""

    concepts: list[Concept]
    concept_ids: torch.Tensor  # (n,) int64, positions in `concepts`
    pixels: torch.Tensor  # (n, 4, size, size) uint8 RGBA, alpha not premultiplied


def read_training_data(folder: Path) -> TrainingData:
    """The images of the training sets, one set after the other."""
    sets = [read_images(name, folder) for name in TRAINING_SETS]
    pixels = np.concatenate([images.pixels for images in sets])
    return TrainingData(
        concepts=read_concepts(folder),
        concept_ids=torch.from_numpy(np.concatenate([images.concept_ids for images in sets])),
        pixels=torch.from_numpy(pixels).permute(0, 3, 1, 2),
    )


def caption(concept: Concept, rng: random.Random) -> str:
    """A random caption of a concept: mostly its name, often a keyword."""
    kind = rng.random()
    if kind < 0.5:
        words = concept.label
    elif kind < 0.9:
        words = rng.choice(concept.tags)
    elif kind < 0.95:
        words = concept.subgroup.replace("-", " ")
    else:
        words = concept.group.replace("-", " ")
    return rng.choice(TEMPLATES).format(words)


def augment(rgba: torch.Tensor) -> torch.Tensor:
    """Images as the model sees them in training: uint8 (n, 4, h, w) -> float32 (n, 3, 64, 64)."""
    moved = _moved(rgba.float() / 255)
    laid = moved[:, :3] + (1 - moved[:, 3:]) * _grounds(len(rgba), rgba.shape[-1])
    size = MODEL_CONFIG["vision_cfg"]["image_size"]
    shrunk = F.interpolate(_recoloured(laid), (size, size), mode="bilinear", antialias=True)
    mean = torch.tensor(PREPROCESS_CONFIG["mean"]).view(1, 3, 1, 1)
    std = torch.tensor(PREPROCESS_CONFIG["std"]).view(1, 3, 1, 1)
    return (shrunk.clamp(0, 1) - mean) / std


def _moved(rgba: torch.Tensor) -> torch.Tensor:
    """Turned by up to 0.2 rad, scaled by 0.7 to 1.1, shifted by up to 1/16 (times 1 / scale).

    Three in ten are mirrored. Alpha comes back premultiplied.
    """
    count = len(rgba)
    angle = (torch.rand(count) - 0.5) * 0.4
    zoom = 1 / (0.7 + torch.rand(count) * 0.4)
    right, down = (torch.rand(2, count) - 0.5) * 0.25
    mirror = torch.where(torch.rand(count) < 0.3, -1.0, 1.0)
    first = torch.stack([zoom * angle.cos() * mirror, -zoom * angle.sin(), right], dim=1)
    second = torch.stack([zoom * angle.sin() * mirror, zoom * angle.cos(), down], dim=1)
    grid = F.affine_grid(torch.stack([first, second], dim=1), list(rgba.shape), align_corners=False)
    alpha = rgba[:, 3:]
    premultiplied = torch.cat([rgba[:, :3] * alpha, alpha], dim=1)
    return F.grid_sample(premultiplied, grid, align_corners=False)


def _grounds(count: int, size: int) -> torch.Tensor:
    """Backgrounds (count, 3, size, size): 35 % white, 35 % one colour, 30 % a gradient."""
    left, right = torch.rand(2, count, 3, 1, 1)
    ramp = torch.linspace(0, 1, size).view(1, 1, 1, size)
    kind = torch.rand(count, 1, 1, 1)
    coloured = torch.where(kind < 0.7, left, left * (1 - ramp) + right * ramp)
    return torch.where(kind < 0.35, torch.ones(()), coloured).expand(count, 3, size, size)


def _recoloured(rgb: torch.Tensor) -> torch.Tensor:
    """Contrast, brightness, saturation and noise, each drawn per image."""
    contrast, brightness, saturation, noise = torch.rand(4, len(rgb), 1, 1, 1)
    rgb = (rgb - 0.5) * (0.7 + 0.6 * contrast) + 0.5 + (brightness - 0.5) * 0.2
    grey = rgb.mean(dim=1, keepdim=True)
    rgb = grey + (rgb - grey) * (0.3 + saturation)
    return torch.add(rgb, torch.randn_like(rgb) * (0.04 * noise))


def contrastive_loss(logits: torch.Tensor, concept_ids: torch.Tensor) -> torch.Tensor:
    """CLIP's loss where every image of a concept matches every caption of it; logits (n, n)."""
    same = (concept_ids[:, None] == concept_ids[None]).float()
    target = same / same.sum(dim=1, keepdim=True)
    by_image = -(target * logits.log_softmax(dim=1)).sum(dim=1).mean()
    by_caption = -(target * logits.T.log_softmax(dim=1)).sum(dim=1).mean()
    return (by_image + by_caption) / 2


def batch_loss(model: CLIP, data: TrainingData, picked: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
    """The loss of one batch; `picked` holds positions in the data, `captions` their tokens."""
    images = F.normalize(model.encode_image(augment(data.pixels[picked])), dim=-1)
    texts = F.normalize(model.encode_text(captions), dim=-1)
    scale = model.logit_scale.exp().clamp(max=MAX_LOGIT_SCALE)
    return contrastive_loss(scale * images @ texts.T, data.concept_ids[picked])


def train(data: TrainingData, recipe: Recipe) -> CLIP:
    """Run the recipe; seeds torch's global generator."""
    torch.manual_seed(recipe.seed)
    rng = random.Random(recipe.seed)
    model = CLIP(**MODEL_CONFIG).train()
    tokenize = open_clip.SimpleTokenizer(context_length=MODEL_CONFIG["text_cfg"]["context_length"])
    optimizer = torch.optim.AdamW(model.parameters(), weight_decay=recipe.weight_decay, betas=(0.9, 0.98))
    logged = started = time.monotonic()
    for step in range(recipe.steps):
        for group in optimizer.param_groups:
            group["lr"] = recipe.learning_rate(step)
        picked = torch.randint(len(data.concept_ids), (recipe.batch_size,))
        concepts = [data.concepts[index] for index in data.concept_ids[picked].tolist()]
        captions = tokenize([caption(concept, rng) for concept in concepts])
        loss = batch_loss(model, data, picked, captions)
        optimizer.zero_grad()
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.parameters(), recipe.max_gradient_norm)
        optimizer.step()
        now = time.monotonic()
        if now - logged >= LOG_EVERY_SECONDS or step + 1 == recipe.steps:
            logged = now
            rate = (step + 1) * recipe.batch_size / (now - started)
            logger.info("step %d  loss %.3f  %.0f images/s", step + 1, loss.item(), rate)
    return model


def save(model: CLIP, folder: Path) -> None:
    """Write `open_clip_config.json` and float16 `open_clip_model.safetensors`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"model_cfg": MODEL_CONFIG, "preprocess_cfg": PREPROCESS_CONFIG}
    (folder / "open_clip_config.json").write_text(json.dumps(config, indent=1) + "\n")
    tensors = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in model.state_dict().items()
    }
    save_file(tensors, folder / "open_clip_model.safetensors")


def main() -> None:
    """Parse the arguments, train, save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    parser.add_argument("--rendered", type=Path, required=True, help="folder that render.py wrote")
    parser.add_argument("--output", type=Path, required=True, help="folder for the model")
    parser.add_argument("--steps", type=int, default=4429)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    torch.set_num_threads(arguments.threads)

    data = read_training_data(arguments.rendered)
    recipe = Recipe(
        steps=arguments.steps,
        batch_size=arguments.batch_size,
        peak_learning_rate=2e-3,
        warmup_steps=200,
        floor=1e-6,
        weight_decay=0.05,
        max_gradient_norm=1.0,
        seed=arguments.seed,
    )
    logger.info("%d images of %d concepts", len(data.pixels), len(set(data.concept_ids.tolist())))
    save(train(data, recipe), arguments.output)
    logger.info("wrote %s", arguments.output)


if __name__ == "__main__":
    main()
