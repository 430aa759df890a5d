"""A head in a few lines for people, and as one JSON object."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, TypeGuard

from clipfleet.contract.heads import Activation, Head, HeadKind
from clipfleet.heads.files import MEAN, HeadFile
from clipfleet.wording import counted

_SHOWN = 12  # labels in a line
_LARGEST = 1e12  # figure that is shown

_MEANINGS = {
    HeadKind.CLASSIFY: "chooses one of its labels for each image",
    HeadKind.MULTILABEL: "accepts any number of its labels",
    HeadKind.REGRESS: "gives each image a number",
}


def head_document(file: HeadFile) -> dict[str, Any]:
    """The metadata of a head, with the hash and the size of its file, and its layers."""
    return {
        **file.head.model_dump(mode="json"), "sha256": file.of_job.sha256, "bytes": len(file.data),
        "layers": _widths(file), "columns": list(file.of_job.columns),
    }  # fmt: skip


def head_lines(file: HeadFile) -> Iterator[str]:
    """What a head is: kind, labels, the model that it belongs to, how it was made, its quality."""
    head = file.head
    yield f"{head.name}: {_MEANINGS[head.kind]} ({head.kind})"
    for name, value in _facts(file):
        yield f"  {name:<12} {value}"
    yield from _quality_lines(head.training.cv)


def _facts(file: HeadFile) -> Iterator[tuple[str, str]]:
    head, training = file.head, file.head.training
    yield "labels", f"{len(head.labels):,}: {_listed(head.labels)}"
    if head.kind is HeadKind.MULTILABEL:
        chosen = ", ".join(f"{label} {threshold:g}" for label, threshold in head.thresholds.items())
        yield "thresholds", f"{chosen}, others 0.5" if chosen else "0.5"
    elif head.thresholds:
        yield "thresholds", ", ".join(f"{label} {value:g}" for label, value in head.thresholds.items())
    yield "columns", ", ".join(file.of_job.columns)
    yield "model", head.input.model
    yield "fingerprint", head.input.fingerprint or "none: it is bound to the name of the model only"
    read = [f"{one} {value}" for one in ("decode", "exif") if (value := getattr(head.input, one)) is not None]
    if read:
        yield "images", f"read with {', '.join(read)}"
    yield "input", _input_words(head, has_scaling=MEAN in file.tensors())
    yield "layers", " -> ".join(map(str, _widths(file))) + _activation_words(head)
    yield "made by", training.recipe
    if training.source:
        yield "from", training.source
    if training.n:
        yield (
            "items",
            f"{training.n:,}: {_listed([f'{n:,} {label}' for label, n in training.classes.items()])}",
        )
    if training.data_sha256:
        yield "data", f"sha256 {training.data_sha256}"
    yield "licence", head.licence or "not stated"
    yield "sha256", file.of_job.sha256


def _quality_lines(cv: dict[str, Any]) -> Iterator[str]:
    """The figures of the held-out folds; a file of another program may hold anything there."""
    metrics, intervals = cv.get("metrics"), cv.get("intervals")
    if not isinstance(metrics, dict) or not metrics:
        return
    counts = [
        counted(int(cv[name]), what)
        for name, what in (("items", "item"), ("folds", "fold"))
        if _is_number(cv.get(name))
    ]
    on = f" on {', '.join(counts)}" if counts else ""
    yield f"cross-validated{on} (they also chose how strongly it is held back)"
    width = max(map(len, metrics))
    for name, value in metrics.items():
        interval = intervals.get(name) if isinstance(intervals, dict) else None
        shown = f"{value:.4f}" if _is_number(value) else "-"
        yield f"  {name:<{width}}  {shown}" + (
            f"  [{interval[0]:.4f}, {interval[1]:.4f}]" if _is_pair(interval) else ""
        )


def _is_number(value: object) -> bool:
    """Whether it is a finite number of a size that a figure may have."""
    return isinstance(value, int | float) and abs(value) < _LARGEST


def _is_pair(value: object) -> TypeGuard[Sequence[float]]:
    return isinstance(value, list | tuple) and len(value) == 2 and all(map(_is_number, value))


def _widths(file: HeadFile) -> list[int]:
    tensors = file.tensors()
    return [file.head.input.dim, *(tensors[weight].shape[0] for weight, _ in file.head.tensor_names)]


def _input_words(head: Head, *, has_scaling: bool) -> str:
    length = " of length 1" if head.input.l2 else ""
    scaled = ", scaled by a mean and a deviation" if has_scaling else ""
    return f"embeddings of {counted(head.input.dim, 'number')}{length}{scaled}"


def _activation_words(head: Head) -> str:
    is_plain = set(head.activations) == {Activation.NONE}
    inner = "" if is_plain else ", ReLU between"
    return inner if head.output == "none" else f"{inner}, {head.output} at the end"


def _listed(names: Sequence[str]) -> str:
    more = len(names) - _SHOWN
    return ", ".join(names[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")
