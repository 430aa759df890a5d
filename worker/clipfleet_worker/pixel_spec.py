"""What a model takes as input: the vocabulary of decoding and encoding."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from PIL import Image


@dataclass(frozen=True, slots=True)
class InputSize:
    """The part of a `PixelSpec` that reading a file needs."""

    width: int  # of the model's input
    height: int
    interpolation: str  # bicubic, bilinear
    resize_mode: str  # shortest (then centre crop), longest (then pad), squash


@dataclass(frozen=True, slots=True)
class PixelSpec(InputSize):
    """The pixels that a model takes, and how they are made of an image."""

    fill_colour: int  # of the padding
    mean: tuple[float, float, float]  # of values in 0..1, by channel
    std: tuple[float, float, float]
    exact: Callable[[Image.Image], Image.Image]  # open_clip's own transform up to the tensor; gives RGB
    input_size: InputSize = field(init=False)  # without the function, which no other process takes

    def __post_init__(self) -> None:
        input_size = InputSize(self.width, self.height, self.interpolation, self.resize_mode)
        object.__setattr__(self, "input_size", input_size)  # made once: each image needs it

    def facts(self) -> list[object]:
        """What a fingerprint covers."""
        return [
            self.width,
            self.height,
            self.interpolation,
            self.resize_mode,
            self.fill_colour,
            list(self.mean),
            list(self.std),
        ]
