"""Heads: small models on top of embeddings. Frozen data, no I/O; see `clipfleet.heads` for their files."""

from __future__ import annotations

from collections import Counter
from enum import StrEnum
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from clipfleet.contract.label_sets import LABEL_SET_NAME_PATTERN, Fingerprint, FrozenModel, Number

MAX_LAYERS = 16
MAX_WIDTH = 65_536  # outputs of a layer
MAX_TEXT = 1_000  # characters of a label, a model, ...: a job carries them
DEFAULT_HEAD_THRESHOLD = 0.5  # of kind multilabel

_Text = Annotated[str, Field(max_length=MAX_TEXT)]


class HeadKind(StrEnum):
    """What the outputs of a head mean."""

    CLASSIFY = "classify"  # one label of several: the largest softmax
    MULTILABEL = "multilabel"  # any number of labels: each that reaches its threshold
    REGRESS = "regress"  # one number, such as a rating


class HeadOutput(StrEnum):
    """The function that turns the last layer into scores."""

    NONE = "none"
    SIGMOID = "sigmoid"
    SOFTMAX = "softmax"


class Activation(StrEnum):
    """The function after a layer."""

    NONE = "none"
    RELU = "relu"


class HeadInput(FrozenModel):
    """The embeddings that a head takes."""

    dim: Annotated[int, Field(ge=1, le=MAX_WIDTH)]
    l2: bool = True  # of length 1
    model: _Text  # as in a job, for example ViT-B-32:datacomp_xl_s13b_b90k
    # Of the rows that it was fitted on; None: an imported head, which knows the name of the model only.
    fingerprint: Fingerprint | None = None
    # How its images were read, for people: the fingerprint has both. None: an imported head.
    decode: Annotated[str, Field(pattern=r"^(fast|exact)$")] | None = None
    exif: Annotated[str, Field(pattern=r"^(ignore|apply)$")] | None = None


def kept_source(text: str) -> str:
    """What a head keeps of the name of its source: the end of a longer one, such as a deep path."""
    return text if len(text) <= MAX_TEXT else f"...{text[3 - MAX_TEXT :]}"


class HeadTraining(FrozenModel):
    """How a head came about."""

    recipe: _Text  # for example: logistic regression (L-BFGS); import of aesthetic-v2
    n: Annotated[int, Field(ge=0)] = 0  # items that it was fitted on
    classes: dict[str, int] = Field(default_factory=dict)  # items of each label
    cv: dict[str, Any] = Field(default_factory=dict)  # cross-validated quality
    seed: int | None = None
    data_sha256: _Text | None = None  # of the items and their labels
    source: _Text | None = None  # the output, root or file, see `kept_source`


class Head(FrozenModel):
    """A head without its numbers: the entry `clipfleet.head` in the metadata of its file.

    With x an embedding: each layer is `x @ weight.T + bias`, followed by its activation; `output` turns the
    last one into one score per label.
    """

    version: Literal[1] = 1
    name: Annotated[str, Field(pattern=LABEL_SET_NAME_PATTERN)]
    kind: HeadKind
    labels: Annotated[tuple[_Text, ...], Field(min_length=1, max_length=MAX_WIDTH)]  # one per output
    activations: Annotated[tuple[Activation, ...], Field(min_length=1, max_length=MAX_LAYERS)]  # per layer
    output: HeadOutput
    input: HeadInput
    # By label; see `threshold`.
    thresholds: dict[str, Number] = Field(default_factory=dict)
    training: HeadTraining
    licence: _Text | None = None

    @model_validator(mode="after")
    def _check(self) -> Self:
        blank = [position for position, label in enumerate(self.labels, 1) if not label.strip()]
        if blank:
            raise ValueError(f"label number {blank[0]} is empty")
        counts = Counter(self.labels)
        if len(counts) < len(self.labels):
            twice = next(label for label, count in counts.items() if count > 1)
            raise ValueError(f"label {twice!r} appears twice")
        if self.kind is HeadKind.CLASSIFY and len(self.labels) < 2:
            raise ValueError("a head of kind classify chooses among labels: it needs at least two")
        if self.kind is HeadKind.REGRESS and len(self.labels) != 1:
            raise ValueError("a head of kind regress has one output, and one label that names it")
        if (self.output is HeadOutput.SOFTMAX) != (self.kind is HeadKind.CLASSIFY):
            raise ValueError("`output` softmax is for kind classify, and only for it")
        if self.activations[-1] is not Activation.NONE:
            raise ValueError("the last activation must be none: `output` follows the last layer")
        if self.thresholds and self.kind is HeadKind.CLASSIFY:
            raise ValueError("`thresholds` have no meaning for kind classify, which always chooses a label")
        unknown = [label for label in self.thresholds if label not in counts]
        if unknown:
            raise ValueError(f"thresholds: there is no label {unknown[0]!r}")
        return self

    @property
    def tensor_names(self) -> tuple[tuple[str, str], ...]:
        """Names of weight and bias of each layer, as torch's `Sequential` of `Linear` and `ReLU` has them."""
        names, module = [], 0
        for activation in self.activations:
            names.append((f"{module}.weight", f"{module}.bias"))
            module += 1 if activation is Activation.NONE else 2
        return tuple(names)

    def threshold(self, label: str) -> float | None:
        """The score from which on a label is accepted; None: it never is, as that of a number without one."""
        if self.kind is HeadKind.MULTILABEL:
            return self.thresholds.get(label, DEFAULT_HEAD_THRESHOLD)
        return self.thresholds.get(label)


class JobHead(FrozenModel):
    """A head as a job carries it; its file lies beside the output, see `objects.head_file`.

    What `training` has of each label (`classes`, `cv`) is in the file only: it can be larger than the job.
    """

    sha256: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]  # of the file
    head: Head

    @property
    def name(self) -> str:
        """The name in the columns."""
        return self.head.name

    @property
    def columns(self) -> tuple[str, ...]:
        """Its columns: the label, the score, and for kind multilabel all accepted labels."""
        label = f"head_{self.name}"
        more = (f"{label}_accepted",) if self.head.kind is HeadKind.MULTILABEL else ()
        return label, f"{label}_score", *more
