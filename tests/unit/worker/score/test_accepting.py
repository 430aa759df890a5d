"""Scores over a background and accepted labels on the device, against a slow reference in plain numpy."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from clipfleet.contract.label_sets import LARGEST_SCORE, LabelSet
from clipfleet_worker.score import accepting, best_labels
from clipfleet_worker.score.accepting import Acceptance, Decision, accept, background_prompts
from tests.unit.worker.score.test_ranking import unit_rows

DIMENSION = 32


class Case:
    """A label set with a random direction for each prompt."""

    def __init__(self, count: int, **values: Any) -> None:
        self.labels = tuple(f"thing {number}" for number in range(count))
        self.label_set = LabelSet(labels=self.labels, **({"kind": "multi"} | values))
        self.matrix = unit_rows(2, count, DIMENSION)
        prompts = background_prompts(self.label_set)
        self.prompts = dict(zip(prompts, unit_rows(3, len(prompts), DIMENSION), strict=True))

    def accept(self, features: np.ndarray, logit_scale: float = 100.0, top_k: int = 5) -> Acceptance:
        encoded = {prompt: torch.from_numpy(row) for prompt, row in self.prompts.items()}
        decision = Decision.of(self.label_set, self.labels, encoded)
        images = torch.from_numpy(features).double()
        return accept(images, torch.from_numpy(self.matrix), decision, logit_scale, top_k)

    def margins(self, features: np.ndarray, logit_scale: float) -> np.ndarray:
        """`slope * z + intercept` by the formula of `LabelSet`, one image and one label at a time."""
        rows = []
        for feature in features.astype(np.float64):
            row = []
            for position, label in enumerate(self.labels):
                ground = {*self.label_set.background, *self.label_set.not_prompts.get(label, ())}
                over = [
                    logit_scale * (self.prompts[prompt].astype(np.float64) @ feature) for prompt in ground
                ]
                z = logit_scale * (self.matrix[position].astype(np.float64) @ feature)
                z -= np.logaddexp.reduce(sorted(over))
                slope = 1.0 if self.label_set.slope is None else self.label_set.slope
                row.append(slope * z + self.label_set.intercepts.get(label, 0.0))
            rows.append(row)
        return np.array(rows)


def in_slices_of(monkeypatch: pytest.MonkeyPatch, labels: int) -> None:
    for module in (best_labels, accepting):
        monkeypatch.setattr(module, "LABELS_PER_SLICE", labels)


def accepted_of(found: Acceptance) -> list[list[int]]:
    """The accepted labels of each image."""
    ends = np.cumsum(found.accepted_counts)[:-1]
    return [one.tolist() for one in np.split(found.accepted, ends)]


def require_reference(case: Case, images: int = 12, logit_scale: float = 100.0, top_k: int = 5) -> Acceptance:
    """The reference's labels in its order, its scores to the last bits, and what its own scores accept."""
    features = unit_rows(1, images, DIMENSION)

    found = case.accept(features, logit_scale, top_k)

    margins = case.margins(features, logit_scale)
    expected = np.minimum(1 / (1 + np.exp(-margins)), LARGEST_SCORE).astype(np.float32)
    order = np.argsort(-margins, axis=1, kind="stable")
    np.testing.assert_array_equal(found.label_indices, order[:, :top_k])
    np.testing.assert_allclose(
        found.scores, np.take_along_axis(expected, order, axis=1)[:, :top_k], rtol=1e-6
    )
    assert found.scores.dtype == np.float32
    assert (np.diff(found.scores, axis=1) <= 0).all()
    thresholds = np.array([case.label_set.threshold(label) for label in case.labels])
    for image, scores in enumerate(expected):
        accepted = [index for index in order[image] if float(scores[index]) >= thresholds[index]]
        assert accepted_of(found)[image] == accepted
        best = scores[accepted[0]] if accepted else scores.max()
        np.testing.assert_allclose(found.best_scores[image], best, rtol=1e-6)
    return found


def test_a_threshold_of_1_accepts_nothing() -> None:
    case = Case(3, thresholds=dict.fromkeys(("thing 0", "thing 1", "thing 2"), 1.0))

    found = case.accept(unit_rows(1, 12, DIMENSION), 1e6)

    assert found.scores.max() == np.float32(LARGEST_SCORE)
    assert accepted_of(found) == [[]] * 12


NOT = {"thing 0": ("a", "b"), "thing 3": ("b",), "thing 8": ("a photo", "c")}


@pytest.mark.parametrize(
    "case",
    [
        Case(9),
        Case(9, kind="single", none=True),
        Case(9, background=("one",)),
        Case(1, kind="single", none=True),
        Case(9, not_prompts=NOT),
        Case(9, thresholds={"thing 0": 0.0, "thing 1": 1.0, "thing 2": 0.9999, "thing 3": 1e-9}),
        Case(
            9,
            not_prompts=NOT,
            slope=0.11,
            intercepts={f"thing {number}": number / 3 - 1 for number in range(9)},
            thresholds={"thing 4": 0.8},
        ),
    ],
    ids=["multi", "none", "background", "one label", "not", "thresholds", "calibrated"],
)
@pytest.mark.parametrize("logit_scale", [1.0, 14.3, 100.0])
def test_scores_are_those_of_the_formula_and_the_thresholds_decide(case: Case, logit_scale: float) -> None:
    require_reference(case, logit_scale=logit_scale)


@pytest.mark.parametrize("threshold", [0.5, 1.0])
def test_the_order_holds_where_all_scores_are_as_good_as_1(threshold: float) -> None:
    labels = tuple(f"thing {number}" for number in range(9))
    thresholds = dict.fromkeys(labels, threshold)
    case = Case(9, slope=0.1, intercepts=dict.fromkeys(labels, 40.0), thresholds=thresholds)

    found = require_reference(case, top_k=9)

    assert np.unique(found.scores).tolist() == [np.float32(LARGEST_SCORE)]
    assert {*found.label_indices[:, 0].tolist()} != {0}


def test_labels_are_accepted_beyond_the_best_few() -> None:
    found = require_reference(Case(40, thresholds={"thing 7": 0.999}), top_k=2)

    assert found.accepted_counts.max() > 2


def test_an_image_may_show_none_one_or_several() -> None:
    thresholds = {f"thing {number}": 0.2 for number in range(9)}
    found = require_reference(Case(9, thresholds=thresholds), images=60, logit_scale=14.3)

    counts = found.accepted_counts.tolist()
    assert 0 in counts and 1 in counts and max(counts) > 1


@pytest.mark.parametrize("count", [1, 2, 7, 299, 300, 301])
def test_slices_of_labels_change_nothing(monkeypatch: pytest.MonkeyPatch, count: int) -> None:
    own = {f"thing {number}": (f"no {number}", f"no {number % 7}") for number in range(0, 300, 4)}
    case = Case(300, not_prompts=own)
    whole = case.accept(unit_rows(1, 12, DIMENSION))
    in_slices_of(monkeypatch, count)

    found = require_reference(case)

    np.testing.assert_array_equal(found.label_indices, whole.label_indices)
    np.testing.assert_array_equal(found.scores, whole.scores)
    assert accepted_of(found) == accepted_of(whole)


def test_other_images_of_the_batch_change_nothing() -> None:
    case, features = Case(50, not_prompts=NOT), unit_rows(1, 40, DIMENSION)

    whole = case.accept(features)
    alone = [case.accept(features[number : number + 1]) for number in range(40)]

    np.testing.assert_array_equal(whole.scores, np.concatenate([one.scores for one in alone]))
    assert accepted_of(whole) == [accepted for one in alone for accepted in accepted_of(one)]


def test_of_equal_scores_the_first_label_wins(monkeypatch: pytest.MonkeyPatch) -> None:
    in_slices_of(monkeypatch, 7)
    thresholds = dict.fromkeys((f"thing {number}" for number in range(1, 40)), 0.01)
    case, feature = Case(40, thresholds={"thing 0": 1.0, **thresholds}), unit_rows(1, 1, DIMENSION)
    case.matrix = np.repeat(0.3 * feature, 40, axis=0)

    found = case.accept(feature, logit_scale=1.0, top_k=4)

    assert found.label_indices.tolist() == [[0, 1, 2, 3]]
    assert accepted_of(found) == [[*range(1, 40)]]


def test_a_threshold_is_compared_with_the_score_as_rows_have_it() -> None:
    case, features = Case(9), unit_rows(1, 6, DIMENSION)
    stored = case.accept(features, 14.3).scores[:, 0].tolist()

    for image, score in enumerate(stored):
        for threshold, is_accepted in ((score, True), (float(np.nextafter(score, 1)), score == 1)):
            case.label_set = LabelSet(
                labels=case.labels, kind="multi", thresholds=dict.fromkeys(case.labels, threshold)
            )
            assert bool(case.accept(features, 14.3).accepted_counts[image]) is is_accepted


def test_a_matrix_of_all_images_and_labels_is_never_there(monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    sigmoid = torch.sigmoid
    monkeypatch.setattr(torch, "sigmoid", lambda values: sizes.append(values.numel()) or sigmoid(values))
    in_slices_of(monkeypatch, 100)

    Case(5_000).accept(unit_rows(1, 10, DIMENSION))

    assert max(sizes) == 10 * 100


def test_background_prompts_are_those_of_the_set_and_of_its_labels_each_once() -> None:
    case = Case(9, background=("a", "x"), not_prompts=NOT)

    assert background_prompts(case.label_set) == ("a", "x", "b", "a photo", "c")
