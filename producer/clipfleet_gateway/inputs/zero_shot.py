"""`/v1/zero-shot`: the item and label set of a body, and the body of an answer."""

from __future__ import annotations

from collections.abc import Sequence

from pydantic import ValidationError

from clipfleet.contract.jobs import Task
from clipfleet.contract.label_sets import LabelSet
from clipfleet.errors import problem_text
from clipfleet_gateway.errors import ApiError, invalid
from clipfleet_gateway.inputs.asked import Asked, full_model
from clipfleet_gateway.inputs.images import image_item
from clipfleet_gateway.keys.key import Key
from clipfleet_gateway.shapes.zero_shot import LabelScore, ZeroShotAnswer, ZeroShotParameters, ZeroShotRequest

MODEL_MISSING = "missing_model"  # code of the error


def asked_of_zero_shot(body: ZeroShotRequest, key: Key) -> Asked:
    """What a body asks for. Its model must be given: the caller fills in a default.

    Raises:
        ApiError: the image or the labels are wrong, there is no model, or the key must not read the image.
    """
    if body.model is None:
        raise invalid("model: it is missing", "model", MODEL_MISSING)
    label_set = _label_set(body.parameters)
    given = body.inputs if isinstance(body.inputs, str) else body.inputs.image
    item = image_item(given, key, "inputs")
    return Asked(Task.CLASSIFY, full_model(body.model), label_set, (item,), ("inputs",))


def _label_set(parameters: ZeroShotParameters) -> LabelSet:
    try:
        return LabelSet(
            labels=parameters.candidate_labels,
            templates=(parameters.hypothesis_template,),
        )
    except ValidationError as error:
        raise _refused(problem_text(error.errors()[0])) from None


def _refused(words: str) -> ApiError:
    name = "hypothesis_template" if words.startswith("template") else "candidate_labels"
    return invalid(f"parameters.{name}: {words}", f"parameters.{name}")


def zero_shot_answer(labels: Sequence[str], scores: Sequence[float]) -> ZeroShotAnswer:
    """The answer of a row's labels and scores, the best first."""
    pairs = sorted(zip(labels, scores, strict=True), key=lambda pair: -pair[1])
    return ZeroShotAnswer(tuple(LabelScore(label=label, score=score) for label, score in pairs))
