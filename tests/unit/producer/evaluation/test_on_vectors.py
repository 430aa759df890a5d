"""Stored vectors, labelled anew, against a column of their source."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import pyarrow as pa
import pytest

from clipfleet.contract.jobs import SourceDescription
from clipfleet.contract.label_sets import LabelKind, LabelSet, Preset
from clipfleet.errors import UsageError
from clipfleet.evaluation.on_rows import evaluate_rows
from clipfleet.evaluation.on_vectors import evaluate_vectors
from clipfleet.evaluation.outcome import Evaluation
from clipfleet.evaluation.pairs import compare
from clipfleet.evaluation.vectors import Embedded, Embedder, ModelOptions
from clipfleet.outputs import objects
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from tests.support.jobs import make_job, place_job
from tests.support.rows import add_part, embedded, failed, note_manifest

IMAGENET = LabelSet(preset=Preset.IMAGENET1K)
CAT, DOG = (1.0, 0.0), (0.0, 1.0)


@dataclass(frozen=True)
class Texts:
    """An embedder of prompts that are about a cat or not."""

    options: ModelOptions

    def texts(self, prompts: Sequence[str]) -> Embedded:
        features = np.array([CAT if "cat" in prompt else DOG for prompt in prompts], np.float32)
        return Embedded(features, np.ones(len(prompts), bool), (), "f", "/texts")


@pytest.fixture
def evaluated(tmp_path: Path) -> Callable[..., Evaluation]:
    """Evaluate vectors, each with a truth, with this label set."""

    number = iter(range(10))

    def run(
        items: Sequence[tuple[tuple[float, float], Any]],
        label_set: LabelSet,
        kind: pa.DataType | None = None,
        stored: Sequence[dict[str, Any]] = (),
        **job: Any,
    ) -> Evaluation:
        output = FolderOutput(tmp_path / str(next(number)))
        source = SourceDescription(kind="csv", uri="/list.csv", extra_columns=("truth",))
        place_job(output, make_job(output.uri, source=source, **job))
        rows = [
            {**embedded(number, *vector), "truth": truth, "model_fingerprint": "f"}
            for number, (vector, truth) in enumerate(items)
        ]
        rows.append({**failed(len(rows)), "truth": None})
        add_part(output, 0, rows, types={"truth": kind or pa.string()})
        note_manifest(output, [objects.LAYOUT.part(0)], label_sets=stored)
        return evaluate_vectors(PartRows(output), "truth", label_set, cast(Embedder, Texts(ModelOptions())))

    return run


def test_items_without_a_truth_are_left_out_and_counted(evaluated: Callable[..., Evaluation]) -> None:
    found = evaluated([(CAT, ""), (CAT, "cat"), (CAT, "dog")], LabelSet(labels=("cat", "dog")))

    assert (found.document()["items"], found.document()["metrics"]["acc1"]) == (2, 0.5)
    assert "left out: 1 item without a truth" in found.document()["notes"]
    assert found.items_ok.tolist() == [False, True, True, False]
    with pytest.raises(UsageError, match="none of 2 rows has a vector and a truth"):
        evaluated([(CAT, "")], LabelSet(labels=("cat", "dog")))


def test_rows_are_compared_with_vectors_of_the_same_items(tmp_path: Path) -> None:
    output = FolderOutput(tmp_path / "rows")
    source = SourceDescription(kind="csv", uri="/list.csv", extra_columns=("truth",))
    place_job(output, make_job(output.uri, labels=("dog", "cat", "cow"), source=source))
    vector = {**embedded(0, *CAT), "truth": "cat", "model_fingerprint": "f"}
    add_part(
        output, 0, [{**vector, "labels": ["dog", "cat"], "scores": [0.8, 0.2]}], types={"truth": pa.string()}
    )
    note_manifest(output, [objects.LAYOUT.part(0)])
    reader = PartRows(output)
    anew = evaluate_vectors(
        reader, "truth", LabelSet(labels=("cat", "dog")), cast(Embedder, Texts(ModelOptions()))
    )

    found = compare(anew, evaluate_rows(reader, "truth"), "rows").comparison

    assert (found[0].value, found[0].other, found[0].difference) == (1.0, 0.0, 1.0)


def test_lists_are_judged_by_the_order_of_the_items(evaluated: Callable[..., Evaluation]) -> None:
    items = [(CAT, ["cat"]), ((0.6, 0.8), ["cat", "dog"]), (DOG, [])]

    found = evaluated(items, LabelSet(labels=("cat", "dog")), pa.list_(pa.string())).document()

    assert found["metrics"] == {"mean_average_precision": pytest.approx((1 + 1 / 2) / 2)}


def test_a_preset_has_the_texts_that_the_output_stores(evaluated: Callable[..., Evaluation]) -> None:
    stored = {"preset": "imagenet1k", "labels": ["dog", "cat", "dog"], "templates": ["a {}"]}

    found = evaluated([(CAT, "1"), (DOG, "2")], IMAGENET, stored=[stored]).document()

    assert [one["predicted"] for one in found["classes"]] == [1, 1, 0]


def test_vectors_of_texts_are_refused(evaluated: Callable[..., Evaluation]) -> None:
    with pytest.raises(UsageError, match="holds vectors of texts"):
        evaluated([(CAT, "cat")], LabelSet(labels=("cat", "dog")), task="embed_text", text_column="truth")


@pytest.mark.parametrize(
    ("label_set", "words"),
    [
        (LabelSet(labels=("cat",), none=True), "decides by its background.*classify with it, then evaluate"),
        (LabelSet(labels=("cat",), kind=LabelKind.MULTI), "decides by its background.*classify with it"),
        (IMAGENET, "the labels of imagenet1k are not stored here: give the names as `labels=`"),
    ],
)
def test_sets_that_need_more_than_vectors(
    evaluated: Callable[..., Evaluation], label_set: LabelSet, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        evaluated([(CAT, "cat")], label_set)
