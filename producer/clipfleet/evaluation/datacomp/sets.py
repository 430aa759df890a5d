"""Measures one set of DataComp's suite, with the metrics that it has there."""

from __future__ import annotations

import io
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from clipfleet.errors import SourceError
from clipfleet.evaluation.datacomp.groups import Metrics, by_group, jaccard, jaccard_by_size, macro
from clipfleet.evaluation.datacomp.tasks import Kind, Task
from clipfleet.evaluation.on_roots import (
    embedded_images,
    evaluate_root,
    member,
    prompts_of,
    read_labels,
    require_prompts,
)
from clipfleet.evaluation.outcome import Interval
from clipfleet.evaluation.roots import CLASSNAMES, INSTANCES, TEMPLATES, Root
from clipfleet.evaluation.vectors import Embedded, Embedder
from clipfleet.labels.metrics import (
    TOP_FIVE,
    Ranks,
    classify,
    mean_per_class_recall,
    share_within,
    zero_shot_classifier,
)

Array = np.ndarray

RECALLS = (1, 5, 10)
MAIN_METRIC = "main_metric"

# Columns of the .npy beside each image.
_FIELDS = {
    Kind.IWILDCAM: ("location", "sequence", "year", "month", "day", "hour", "minute", "second", "y"),
    Kind.CAMELYON17: ("hospital", "slide", "y"),
    Kind.FMOW: ("region", "year", "y"),
    Kind.DOLLAR_STREET: ("income_ds", "income_meta", "region"),
    Kind.GEODE: ("region", "country"),
    Kind.FACES: ("age", "gender", "race", "race_binary"),
}
_OBJECTIVES = ("race", "gender", "age", "toxic")
_WHITE = 1  # class of the objective "race"
_NON_HUMAN, _CRIME = 14, 18  # the first such classes of the objective "toxic"


@dataclass(frozen=True, slots=True)
class SetScore:
    """Metrics of one set."""

    metrics: Metrics  # with main_metric
    items: int  # that count: images, of WinoGAViL instances
    failed: int  # images
    model_fingerprint: str | None
    interval: Interval | None = None  # 95 %, of the main metric


def measure_set(task: Task, root: Root, embedder: Embedder) -> SetScore:
    """Evaluate a model on one set.

    Raises:
        SourceError, UsageError, WorldError: see `evaluate_root`; or group fields or instances are damaged.
    """
    if task.kind in (Kind.CLASSIFICATION, Kind.RETRIEVAL):
        return _plain(task, root, embedder)
    if task.kind is Kind.WINOGAVIL:
        metrics, images, items = _winogavil(root, embedder)
    else:
        if task.kind is Kind.FACES:
            metrics, images = _faces(root, embedder)
        else:
            metrics, images = _grouped(task.kind, root, embedder)
        items = int(images.ok.sum())
    return SetScore(_with_main(task, metrics), items, len(images.failed), images.model_fingerprint)


def _with_main(task: Task, metrics: Mapping[str, float | None]) -> Metrics:
    return {**metrics, MAIN_METRIC: metrics[task.main_metric] if task.main_metric else None}


def _plain(task: Task, root: Root, embedder: Embedder) -> SetScore:
    found = evaluate_root(root, embedder, recalls=RECALLS)
    metrics = dict(found.measured.metrics)
    of_texts, of_images = metrics.get("text_retrieval_recall@1"), metrics.get("image_retrieval_recall@1")
    if of_texts is not None and of_images is not None:
        metrics["mean_recall@1"] = 0.5 * (of_texts + of_images)
    if task.main_metric not in metrics:
        raise SourceError(f"{root.uri}: its type is {root.kind}, which has no {task.main_metric}")
    return SetScore(
        _with_main(task, metrics), found.measured.items, len(found.failed), found.model_fingerprint,
        found.measured.intervals.get(task.main_metric),
    )  # fmt: skip


def _grouped(kind: Kind, root: Root, embedder: Embedder) -> tuple[Metrics, Embedded]:
    names = root.classnames()
    truth, fields = read_labels(root, len(names)), read_fields(root, _FIELDS[kind])
    prompts = embedder.texts(prompts_of(names, root.templates()))
    images = embedded_images(root, embedder, len(truth))
    require_prompts(prompts, images.origin)
    good = images.ok
    truth, fields = truth[good], {name: values[good] for name, values in fields.items()}
    ranks = classify(images.features[good], zero_shot_classifier(prompts.features, len(names)), truth)
    metrics: Metrics = {
        "acc1": share_within(ranks.rank, 1),
        "acc5": share_within(ranks.rank, TOP_FIVE) if len(names) >= TOP_FIVE else None,
        "mean_per_class_recall": mean_per_class_recall(truth, ranks.predicted, len(names)),
    }
    return metrics | _OF_GROUPS[kind](ranks, truth, fields), images


Fields = Mapping[str, Array]


def _iwildcam(ranks: Ranks, truth: Array, fields: Fields) -> Metrics:
    return {"acc_avg": share_within(ranks.rank, 1), **macro(truth, ranks.predicted)}


def _camelyon17(ranks: Ranks, truth: Array, fields: Fields) -> Metrics:
    return by_group(ranks.rank < 1, {"slide": fields["slide"]})


def _fmow(ranks: Ranks, truth: Array, fields: Fields) -> Metrics:
    # The published figures count the region "Other": DataComp gives its regions no names.
    return by_group(ranks.rank < 1, {"year": fields["year"]}, worst="worst_year") | by_group(
        ranks.rank < 1, {"region": fields["region"]}, worst="worst_region"
    )


def _dollar_street(ranks: Ranks, truth: Array, fields: Fields) -> Metrics:
    return by_group(ranks.rank < TOP_FIVE, {"income_ds": fields["income_ds"]}, "acc_top5")


def _geode(ranks: Ranks, truth: Array, fields: Fields) -> Metrics:
    return by_group(ranks.rank < 1, {"region": fields["region"]})


_OF_GROUPS: Mapping[Kind, Callable[[Ranks, Array, Fields], Metrics]] = {
    Kind.IWILDCAM: _iwildcam,
    Kind.CAMELYON17: _camelyon17,
    Kind.FMOW: _fmow,
    Kind.DOLLAR_STREET: _dollar_street,
    Kind.GEODE: _geode,
}


def read_fields(root: Root, names: Sequence[str]) -> dict[str, Array]:
    """Read the group fields of each image, each int64 (items,), from the `.npy` beside it.

    Raises:
        SourceError: it is missing, or not a vector of whole numbers from 0 with a value for each name.
    """
    found = []
    for sample in root.samples(("npy",)):
        try:
            vector = np.load(io.BytesIO(member(sample, "npy")), allow_pickle=False)
            whole = vector.astype(np.int64)
            is_good = whole.shape == (len(names),) and bool((whole == vector).all())
        except (ValueError, EOFError, TypeError, AttributeError):
            is_good = False
        if not is_good:
            raise SourceError(f"{sample.where}.npy: not a vector of the whole numbers {', '.join(names)}")
        found.append(whole)
    matrix = np.array(found, np.int64).reshape(-1, len(names))
    return {name: matrix[:, column] for column, name in enumerate(names)}


def _faces(root: Root, embedder: Embedder) -> tuple[Metrics, Embedded]:
    """Race, gender, age and toxic names, each with its own classes and prompts in the same files."""
    fields = read_fields(root, _FIELDS[Kind.FACES])
    names, templates = _of_objective(root, CLASSNAMES), _of_objective(root, TEMPLATES)
    texts = [prompts_of(names[objective], templates[objective]) for objective in _OBJECTIVES]
    prompts = embedder.texts([text for each in texts for text in each])
    images = embedded_images(root, embedder, len(fields["age"]))
    require_prompts(prompts, images.origin)
    good = images.ok
    fields = {name: values[good] for name, values in fields.items()}
    predicted, start = {}, 0
    for objective, each in zip(_OBJECTIVES, texts, strict=True):
        features = prompts.features[start : start + len(each)]
        start += len(each)
        classifier = zero_shot_classifier(features, len(names[objective]))
        nothing = np.zeros(int(good.sum()), np.int64)
        predicted[objective] = classify(images.features[good], classifier, nothing).predicted
    return _of_faces(predicted, fields), images


def _of_objective(root: Root, file: str) -> dict[str, list[str]]:
    """Lines of a file such as `race:black`, by what precedes the colon."""
    found: dict[str, list[str]] = {objective: [] for objective in _OBJECTIVES}
    for line in root.classnames() if file == CLASSNAMES else root.templates():
        objective, colon, text = line.partition(":")
        if not colon or objective not in found:
            raise SourceError(
                f"{root.uri}/{file}: {line!r} does not begin with {', '.join(_OBJECTIVES)} and :"
            )
        found[objective].append(text)
    empty = [objective for objective, lines in found.items() if not lines]
    if empty:
        raise SourceError(f"{root.uri}/{file}: has no line that begins with {empty[0]}:")
    return found


def _of_faces(predicted: Mapping[str, Array], fields: Fields) -> Metrics:
    binary, race = {"race_binary": fields["race_binary"]}, {"race": fields["race"]}
    is_right = {name: predicted[name] == fields[name] for name in ("gender", "age")}
    toxic = predicted["toxic"]
    return {
        **by_group((predicted["race"] != _WHITE) == fields["race_binary"], binary, "acc_race"),
        **by_group(is_right["gender"], binary, "acc_gender"),
        **by_group(is_right["age"], binary, "acc_age"),
        **by_group(is_right["gender"], {"gender": fields["gender"], **race}, "acc_gender_x"),
        **by_group(toxic >= _CRIME, race, "toxicity_crime"),
        **by_group((toxic >= _NON_HUMAN) & (toxic < _CRIME), race, "toxicity_nonhuman"),
    }


@dataclass(frozen=True, slots=True)
class _Instance:
    """A cue, and candidates (indexes of images) of which some are associated with it."""

    cue: str
    candidates: Array
    associated: Array  # bool (candidates,)

    @property
    def prompt(self) -> str:
        cue = self.cue.lower()
        return f"{'An' if cue[0] in 'aeiou' else 'A'} {cue}"


def _winogavil(root: Root, embedder: Embedder) -> tuple[Metrics, Embedded, int]:
    keys = [sample.item_id for sample in root.samples(())]
    instances = _instances(root, {key: number for number, key in enumerate(keys)})
    prompts = embedder.texts([one.prompt for one in instances])
    images = embedded_images(root, embedder, len(keys))
    require_prompts(prompts, images.origin)
    # As the others do with items: an instance counts if all its images could be read.
    counted = [(number, one) for number, one in enumerate(instances) if images.ok[one.candidates].all()]
    values = [
        jaccard(images.features[one.candidates] @ prompts.features[number], one.associated)
        for number, one in counted
    ]
    return jaccard_by_size(values, [len(one.candidates) for _, one in counted]), images, len(counted)


def _instances(root: Root, index: Mapping[str, int]) -> list[_Instance]:
    found = []
    for number, line in enumerate(root.lines(INSTANCES, "an object with cue, candidates, associations"), 1):
        where = f"{root.uri}/{INSTANCES}, line {number}"
        try:
            entry = json.loads(line)
            cue, candidates, associations = entry["cue"], entry["candidates"], entry["associations"]
            is_good = bool(cue.strip()) and len(candidates) > 0 and set(associations) <= set(candidates)
        except (ValueError, KeyError, TypeError, AttributeError):
            is_good = False
        if not is_good:
            raise SourceError(f"{where}: not an object with cue, candidates and associations among these")
        unknown = [key for key in candidates if key not in index]
        if unknown:
            raise SourceError(f"{where}: there is no image {unknown[0]!r} in the shards")
        found.append(
            _Instance(
                cue.strip(),
                np.array([index[key] for key in candidates]),
                np.isin(np.array(candidates), np.array(associations)),
            )
        )
    return found
