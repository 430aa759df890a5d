"""Fits a head to samples, and measures it by the items that it had not seen. Writes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from clipfleet.contract.heads import (
    Activation,
    Head,
    HeadInput,
    HeadKind,
    HeadOutput,
    HeadTraining,
    kept_source,
)
from clipfleet.contract.model_names import normalise_model
from clipfleet.errors import usage_errors
from clipfleet.evaluation.measuring import TOO_FEW_CLASSES, classification_measured
from clipfleet.evaluation.on_roots import prompts_of, require_prompts
from clipfleet.evaluation.outcome import ClassRow, Measured
from clipfleet.evaluation.vectors import Embedder
from clipfleet.heads.cross_validation import Fitted
from clipfleet.heads.files import HeadFile, make_head
from clipfleet.heads.fitting import MOST_STEPS, SolverOf, fit_classifier, fit_multilabel, from_nothing, joined
from clipfleet.heads.fitting_from_labels import SCALES, from_texts
from clipfleet.labels.metrics import TOP_FIVE, Ranks, ranks_of, zero_shot_classifier
from clipfleet.training.measuring import LabelAnswers, measure_labels
from clipfleet.training.samples import Samples
from clipfleet.wording import counted

Array = np.ndarray

_DIGITS = 4  # of the figures in the file
_SHOWN = 5  # labels in a note


@dataclass(frozen=True, slots=True)
class TrainedHead:
    """A fitted head, and what items of held-out folds say about it."""

    file: HeadFile
    measured: Measured
    notes: tuple[str, ...]


def train(
    samples: Samples,
    name: str,
    *,
    texts: Embedder | None = None,
    seed: int = 0,
    licence: str | None = None,
) -> TrainedHead:
    """Fit a head; the same samples and seed give the same one.

    Args:
        samples: with enough items of each label, see `Samples.require_enough`.
        name: of the head, see `places.head_name`.
        texts: embeds the prompts of the labels, and the weights begin at them; None: at 0.
        seed: of the folds.
        licence: of the head, for people.

    Raises:
        UsageError: a text is longer than a head keeps it, a prompt could not be embedded, or another model
            embedded it.
        WorldError: the job of the prompts failed, or Redis or an output is unavailable.
    """
    head = _unmeasured(samples, name, seed, licence, has_texts=texts is not None)
    solver_of = from_nothing if texts is None else _from_texts(samples, texts, seed)
    if samples.known is None:
        fitted = fit_classifier(
            samples.features, samples.truth, len(samples.labels), solver_of=solver_of, seed=seed,
            weights=samples.weights, groups=samples.groups,
        )  # fmt: skip
        layer, fits, measured = fitted.layer, [fitted], _classification(samples, fitted)
    else:
        fits = fit_multilabel(
            samples.features, samples.truth, samples.known, solver_of=solver_of, seed=seed,
            weights=samples.weights, groups=samples.groups,
        )  # fmt: skip
        layer, measured = joined(fits), measure_labels(_answers(samples, fits), samples.labels)
    training = head.training.model_copy(update={"cv": _quality(samples, fits, measured)})
    head = head.model_copy(update={"training": training})
    (weight, bias), *_ = head.tensor_names
    file = make_head(head, {weight: layer.weight, bias: layer.bias}, name)
    notes = (*samples.notes, *_spread_notes(samples, fits), *_search_notes(samples, fits))
    return TrainedHead(file, measured, notes)


def _unmeasured(samples: Samples, name: str, seed: int, licence: str | None, *, has_texts: bool) -> Head:
    """What is known of the head before it is fitted. Raises `UsageError`, see `train`."""
    with usage_errors(f"{samples.source}: "):
        return Head(
            name=name, kind=samples.kind, labels=samples.labels, activations=(Activation.NONE,),
            output=HeadOutput.SOFTMAX if samples.kind is HeadKind.CLASSIFY else HeadOutput.SIGMOID,
            input=HeadInput(
                dim=samples.features.shape[1], model=normalise_model(samples.options.model),
                fingerprint=samples.images.model_fingerprint,
                decode=samples.options.decode, exif=samples.options.exif,
            ),
            training=HeadTraining(
                recipe="logistic regression (L-BFGS)" + (", from the labels" if has_texts else ""),
                n=len(samples.ids), classes=dict(zip(samples.labels, samples.shown.tolist(), strict=True)),
                seed=seed, data_sha256=samples.data_sha256, source=kept_source(samples.source),
            ),
            licence=licence,
        )  # fmt: skip


def _from_texts(samples: Samples, embedder: Embedder, seed: int) -> SolverOf:
    samples.require_templates()
    templates = [template.replace("{}", "{c}") for template in samples.templates]
    texts = embedder.texts(prompts_of(samples.labels, templates))
    require_prompts(texts, samples.images)
    weights = zero_shot_classifier(texts.features, len(samples.labels))
    return from_texts(
        samples.features, samples.truth, samples.known, weights, seed=seed,
        weights=samples.weights, groups=samples.groups,
    )  # fmt: skip


def _classification(samples: Samples, fitted: Fitted) -> Measured:
    truth = samples.truth[fitted.judged]
    ranks = Ranks(fitted.probabilities.argmax(axis=1), ranks_of(fitted.probabilities, truth))
    notes = () if len(samples.labels) >= TOP_FIVE else (TOO_FEW_CLASSES,)
    return classification_measured(ranks, truth, samples.labels, notes)


def _answers(samples: Samples, fits: Sequence[Fitted]) -> list[LabelAnswers]:
    weights = np.ones(samples.truth.shape) if samples.weights is None else samples.weights
    return [
        LabelAnswers(
            one.judged, samples.truth[one.judged, label], one.probabilities[:, 1], weights[one.judged, label]
        )
        for label, one in enumerate(fits)
    ]


def _quality(samples: Samples, fits: Sequence[Fitted], measured: Measured) -> dict[str, Any]:
    """What the file keeps: figures of the held-out folds, with 95 % intervals."""

    def kept(values: Sequence[float]) -> Any:
        return values[0] if samples.known is None else _by_label(samples, values)

    scales = [one.scale for one in fits if one.scale is not None]
    quality = {
        "folds": max(one.folds for one in fits),
        "items": measured.items,
        "c": kept([one.c for one in fits]),
        **({"scale": kept(scales)} if scales else {}),
        "log_loss": kept([one.log_loss for one in fits]),
        "metrics": dict(measured.metrics),
        "intervals": {metric: list(interval) for metric, interval in measured.intervals.items()},
        "classes": [_class_object(row) for row in measured.classes],
    }
    return {name: _rounded(value) for name, value in quality.items()}


def _search_notes(samples: Samples, fits: Sequence[Fitted]) -> Iterator[str]:
    """What the search ran into: the end of a grid, or its most steps."""
    kinds = (
        ("the largest strength of the grid (c) fits best", [one.is_at_edge for one in fits]),
        ("an end of the grid of scales fits best", [one.scale in (SCALES[0], SCALES[-1]) for one in fits]),
        (f"the search ended after {MOST_STEPS:,} steps", [not one.layer.is_minimum for one in fits]),
    )
    for what, found in kinds:
        if not any(found):
            continue
        labels = [label for label, one in zip(samples.labels, found, strict=False) if one]
        named = f"{what}, for {counted(len(labels), 'label')} ({_some(labels)})"
        yield what if samples.known is None else named


def _spread_notes(samples: Samples, fits: Sequence[Fitted]) -> Iterator[str]:
    """Which labels were judged by images that their layer had seen, see `cross_validation.folds`."""
    if samples.groups is None:
        return
    found: set[int] = set()
    for label, one in enumerate(fits):
        spread = one.judged[_is_spread(samples.groups[one.judged], one.fold)]
        if samples.known is None:
            found.update(samples.truth[spread].tolist())
        elif len(spread):
            found.add(label)
    if found:
        names = _some([samples.labels[label] for label in sorted(found)])
        yield f"equal images lie in different folds, so that figures of their labels are too good: {names}"


def _is_spread(groups: Array, fold: Array) -> Array:
    """Whether other items of the group of an item lie in another fold, bool (items,)."""
    _, group = np.unique(groups, return_inverse=True)
    lowest, highest = np.full(len(groups), len(groups)), np.full(len(groups), -1)
    np.minimum.at(lowest, group, fold)
    np.maximum.at(highest, group, fold)
    found: Array = (lowest < highest)[group]
    return found


def _some(labels: Sequence[str]) -> str:
    return ", ".join(labels[:_SHOWN]) + (", ..." if len(labels) > _SHOWN else "")


def _by_label(samples: Samples, values: Sequence[float]) -> dict[str, float]:
    return dict(zip(samples.labels, values, strict=True))


def _class_object(row: ClassRow) -> dict[str, Any]:
    return {key: value for key, value in asdict(row).items() if value is not None and key != "index"}


def _rounded(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _rounded(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_rounded(one) for one in value]
    return round(value, _DIGITS) if isinstance(value, float) else value
