"""Heads from the weights of other programs, known by the names and shapes of their tensors. Needs numpy."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from itertools import pairwise
from pathlib import Path

import numpy as np

from clipfleet.contract.heads import Activation, Head, HeadInput, HeadKind, HeadOutput, HeadTraining
from clipfleet.contract.model_names import HUB, LOCAL_DIR, normalise_model
from clipfleet.errors import UsageError, usage_errors
from clipfleet.heads.files import HeadFile, make_head
from clipfleet.heads.foreign import BARE, read_weights
from clipfleet.heads.places import head_name
from clipfleet.wording import counted

Array = np.ndarray

_SHOWN = 4  # tensors in messages
_ZERO_SHOT_SCALE = 100.0  # of CLIP_benchmark's logits


class ImportKind(StrEnum):
    """Weights that are known."""

    AESTHETIC_V1 = "aesthetic-v1"
    AESTHETIC_V2 = "aesthetic-v2"
    NSFW_H14 = "nsfw-h14"
    LINEAR = "linear"


def kind_named(name: str) -> ImportKind:
    """The kind of this name. Raises `UsageError` with those that there are."""
    if name not in list(ImportKind):
        raise UsageError(f"{name!r} is no head that is known: `kind=` is one of {', '.join(ImportKind)}")
    return ImportKind(name)


@dataclass(frozen=True, slots=True)
class _Published:
    """A public head with one output: its tensors, and the models whose vectors it was fitted on."""

    modules: tuple[str, ...]  # of the layers: each has `weight` and `bias`
    widths: tuple[int, ...]  # of the layers, the last one 1
    models: Mapping[int, tuple[str, ...]]  # by the dimension of their vectors
    label: str
    licence: str
    relu_layers: int = 0  # the first ones have a ReLU
    threshold: float | None = None

    def shapes(self, dim: int) -> dict[str, tuple[int, ...]]:
        """The shapes of its tensors, for vectors of this dimension."""
        found: dict[str, tuple[int, ...]] = {}
        for module, (inputs, outputs) in zip(self.modules, pairwise((dim, *self.widths)), strict=True):
            found |= {f"{module}weight": (outputs, inputs), f"{module}bias": (outputs,)}
        return found

    @property
    def activations(self) -> tuple[Activation, ...]:
        linear = len(self.widths) - self.relu_layers
        return (Activation.RELU,) * self.relu_layers + (Activation.NONE,) * linear


def _openai(*architectures: str) -> tuple[str, ...]:
    return tuple(f"{one}{quick}:openai" for one in architectures for quick in ("", "-quickgelu"))


_PUBLISHED = {
    # LAION-AI/aesthetic-predictor
    ImportKind.AESTHETIC_V1: _Published(
        modules=("",), widths=(1,), label="aesthetic", licence="MIT",
        models={512: _openai("ViT-B-32", "ViT-B-16"), 768: _openai("ViT-L-14")},
    ),
    # christophschuhmann/improved-aesthetic-predictor: its activations are commented out
    ImportKind.AESTHETIC_V2: _Published(
        modules=tuple(f"layers.{number}." for number in (0, 2, 4, 6, 7)), widths=(1024, 128, 64, 16, 1),
        label="aesthetic", licence="Apache-2.0", models={768: _openai("ViT-L-14")},
    ),
    # LAION-AI/CLIP-based-NSFW-Detector
    ImportKind.NSFW_H14: _Published(
        modules=tuple(f"layers.{number}." for number in (0, 3, 6, 9, 12, 15, 16)),
        widths=(1024, 2048, 1024, 256, 128, 16, 1), relu_layers=5, threshold=0.5,
        label="nsfw", licence="MIT", models={1024: ("ViT-H-14:laion2b_s32b_b79k",)},
    ),
}  # fmt: skip


def import_head(
    path: Path,
    *,
    model: str,
    kind: ImportKind | None = None,
    name: str | None = None,
    labels: Sequence[str] = (),
    multi: bool = False,
) -> HeadFile:
    """Make a head from the weights of another program.

    Args:
        path: see `read_weights`.
        model: whose vectors the head takes; the file does not say.
        kind: what the weights are; None: by the names and shapes of their tensors.
        name: of the head; None: that of the kind, of `linear` that of the file.
        labels: of `linear`, in the order of its outputs.
        multi: of `linear`: each output answers for its label alone, by a sigmoid; else one label is chosen.

    Raises:
        UsageError: the file cannot be read, holds something else, or is of another model.
    """
    with usage_errors():
        full_name = normalise_model(model)
    arrays, where = read_weights(path), str(path)
    kind = kind or _recognised(arrays, where)
    if kind is ImportKind.LINEAR:
        plain = Path(path.name.partition(".")[0] or path.name)
        return _linear(arrays, where, full_name, head_name(plain, name), labels, path.name, multi=multi)
    if labels or multi:
        option = "labels=" if labels else "multi=True"
        raise UsageError(f"`{option}` is for linear: {kind} has one output, which is known")
    published = _PUBLISHED[kind]
    dim = _published_dim(published, kind, arrays, where)
    _require_model(published, kind, dim, full_name)
    return _made(
        where, [(arrays[f"{one}weight"], arrays[f"{one}bias"]) for one in published.modules],
        name=head_name(Path(kind), name), kind=HeadKind.REGRESS, labels=(published.label,),
        activations=published.activations, output=HeadOutput.NONE,
        input=HeadInput(dim=dim, model=full_name),
        thresholds={} if published.threshold is None else {published.label: published.threshold},
        training=HeadTraining(recipe=f"import of {kind}", source=path.name), licence=published.licence,
    )  # fmt: skip


def _candidates(arrays: Mapping[str, Array]) -> list[ImportKind]:
    """What the weights may be."""
    found = [kind for kind, one in _PUBLISHED.items() if any(_is(one, dim, arrays) for dim in one.models)]
    return found if _linear_layer(arrays) is None else [*found, ImportKind.LINEAR]


def _recognised(arrays: Mapping[str, Array], where: str) -> ImportKind:
    found = _candidates(arrays)
    if not found:
        raise UsageError(
            f"{where}: its tensors are those of no known head: {_tensors_in_words(arrays)}; known are "
            f"{', '.join(ImportKind)}"
        )
    if len(found) > 1:
        raise UsageError(
            f"{where}: may be {' or '.join(found)}, which look alike: say what it is, for example "
            f"`kind=` {found[0]}"
        )
    return found[0]


def _other_kind(arrays: Mapping[str, Array]) -> str:
    """The way out for weights that are of another kind than was said."""
    found = _candidates(arrays)
    return (
        f": give `kind=` {_or(found)}, which it looks like"
        if found
        else ", as no head that is known has them"
    )


def _is(published: _Published, dim: int, arrays: Mapping[str, Array]) -> bool:
    return published.shapes(dim) == {name: one.shape for name, one in arrays.items()}


def _published_dim(published: _Published, kind: ImportKind, arrays: Mapping[str, Array], where: str) -> int:
    """The dimension of its vectors. Raises `UsageError` with the first difference, if there is one."""
    for dim in published.models:
        if _is(published, dim, arrays):
            return dim
    wanted = published.shapes(next(iter(published.models)))
    missing = [name for name in wanted if name not in arrays]
    strange = [name for name in arrays if name not in wanted]
    if missing or strange:
        problem = f"there is no tensor {missing[0]!r}" if missing else f"tensor {strange[0]!r} is too many"
        raise UsageError(
            f"{where}: is not {kind}: {problem}; it has {_tensors_in_words(arrays)}{_other_kind(arrays)}"
        )
    shapes = {dim: published.shapes(dim) for dim in published.models}
    name = next(one for one in wanted if all(arrays[one].shape != each[one] for each in shapes.values()))
    fits = " or ".join(dict.fromkeys(str(list(each[name])) for each in shapes.values()))
    raise UsageError(
        f"{where}: is not {kind}: {name} has the shape {list(arrays[name].shape)}, {fits} fits"
        + (_other_kind(arrays) if _candidates(arrays) else "")
    )


def _require_model(published: _Published, kind: ImportKind, dim: int, model: str) -> None:
    """Refuse a model of other weights; what lies in a folder or on the hub is for the user to know."""
    known = published.models[dim]
    if model not in known and not model.startswith((LOCAL_DIR, HUB)) and "/" not in model:
        raise UsageError(
            f"{kind} of dimension {dim} was fitted on vectors of {_or(known)}; scores of vectors of {model} "
            f"would mean nothing: give `model=` {known[0]}"
        )


def _or(names: Sequence[str]) -> str:
    plain = [name for name in names if "-quickgelu" not in name]
    return " or ".join(plain)


def _linear_layer(arrays: Mapping[str, Array]) -> str | None:
    """Where the one linear layer is: `BARE`, or the start of the names of weight and bias; None: no such."""
    if set(arrays) == {BARE}:
        return BARE if arrays[BARE].ndim == 2 and arrays[BARE].size else None
    start = min(arrays, default="").removesuffix("bias").removesuffix("weight")
    weight, bias = arrays.get(f"{start}weight"), arrays.get(f"{start}bias")
    if weight is None or weight.ndim != 2 or not weight.size or len(arrays) > 1 + (bias is not None):
        return None
    return start if bias is None or bias.shape == weight.shape[:1] else None


def _linear(
    arrays: Mapping[str, Array], where: str, model: str, name: str, labels: Sequence[str], source: str,
    *, multi: bool,
) -> HeadFile:  # fmt: skip
    """One layer: `weight` (labels, d), with or without `bias`; or a bare zero-shot classifier (d, labels)."""
    start = _linear_layer(arrays)
    if start is None:
        raise UsageError(
            f"{where}: is not linear, which has weight [labels, d] and bias [labels], or one tensor "
            f"[d, labels] without a name; it has {_tensors_in_words(arrays)}{_other_kind(arrays)}"
        )
    recipe = "import of linear"
    if start == BARE:
        if multi:
            raise UsageError(
                f"{where}: one tensor without a name is a zero-shot classifier, which chooses one label: "
                "leave `multi=True` out, or save the layer with weight and bias"
            )
        weight, bias = arrays[BARE].T, np.zeros(arrays[BARE].shape[1])
        if len(bias) > 1:
            weight, recipe = weight * _ZERO_SHOT_SCALE, "import of a zero-shot classifier, logits times 100"
    else:
        weight = arrays[f"{start}weight"]
        bias = arrays.get(f"{start}bias", np.zeros(len(weight)))
    outputs, dim = weight.shape
    chosen = tuple(labels) or ((name,) if outputs == 1 else ())
    if len(chosen) != outputs:
        given = {0: "none was", 1: "1 was"}.get(len(chosen), f"{len(chosen):,} were")
        way_out = "; it seems to be transposed: save it as [d, labels]" if len(chosen) == dim else ""
        raise UsageError(
            f"{where}: has {counted(outputs, 'output')} of {counted(dim, 'number')}: give "
            f"{counted(outputs, 'label')} with `labels=`, in their order ({given} given){way_out}"
        )
    kind, output = HeadKind.REGRESS, HeadOutput.NONE
    if multi:
        kind, output, recipe = HeadKind.MULTILABEL, HeadOutput.SIGMOID, f"{recipe}, a sigmoid for each label"
    elif outputs > 1:
        kind, output = HeadKind.CLASSIFY, HeadOutput.SOFTMAX
    return _made(
        where, [(weight, bias)], name=name, labels=chosen, activations=(Activation.NONE,),
        kind=kind, output=output,
        input=HeadInput(dim=dim, model=model), training=HeadTraining(recipe=recipe, source=source),
    )  # fmt: skip


def _made(where: str, layers: Sequence[tuple[Array, Array]], **values: object) -> HeadFile:
    with usage_errors(f"{where}: "):
        head = Head.model_validate(values)
    tensors: dict[str, Array] = {}
    for (weight, bias), (of_weight, of_bias) in zip(layers, head.tensor_names, strict=True):
        tensors |= {of_weight: weight, of_bias: bias}
    with np.errstate(over="ignore"):  # of float64; it becomes infinite, which is refused
        return make_head(head, tensors, where)


def _tensors_in_words(arrays: Mapping[str, Array]) -> str:
    shown = [f"{name[:40]} {list(one.shape)}" for name, one in list(arrays.items())[:_SHOWN]]
    more = len(arrays) - len(shown)
    return (", ".join(shown) or "none") + (f" and {more} more" if more > 0 else "")
