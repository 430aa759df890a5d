"""From the scores in rows back to z, and from z to the scores of another calibration."""

from __future__ import annotations

import numpy as np
import pytest

from clipfleet.contract.label_sets import LARGEST_SCORE, LabelSet
from clipfleet.marking.scored_rows import ScoredRows, read_scored_rows
from clipfleet.outputs.folder import FolderOutput
from clipfleet.results.part_rows import PartRows
from tests.support.marked_outputs import LABELS, multi_set, place_scored_output, scored

Z = {"cat": np.array([-3.0, 0.5, 2.0]), "dog": np.array([1.0, -0.25, 3.0])}
TURNED = {"slope": 1.5, "intercepts": {"cat": -0.5, "dog": 2.0}}


def p_of(label_set: LabelSet, label: str) -> np.ndarray:
    slope, intercept = label_set.slope or 1.0, label_set.intercepts.get(label, 0.0)
    return (1 / (1 + np.exp(-(slope * Z[label] + intercept)))).astype(np.float32)


def rows_of(output: FolderOutput, label_set: LabelSet, top_k: int = 2) -> ScoredRows:
    scores = {label: p_of(label_set, label).tolist() for label in LABELS}
    rows = [
        scored(index, {label: scores[label][index] for label in LABELS}, top_k)
        for index in range(len(Z["cat"]))
    ]
    place_scored_output(output, rows, label_set=label_set, top_k=top_k)
    return read_scored_rows(PartRows(output))


@pytest.mark.parametrize("own", [{}, TURNED], ids=["as z", "calibrated"])
def test_scores_of_another_calibration_are_those_of_the_same_z(
    output: FolderOutput, own: dict[str, object]
) -> None:
    rows = rows_of(output, multi_set(**own))
    other = multi_set(slope=0.75, intercepts={"cat": 1.0, "dog": -1.0})

    for label in LABELS:
        found = rows.scores(label, other)
        np.testing.assert_allclose(found.z, Z[label], atol=1e-4)
        np.testing.assert_allclose(found.p, p_of(other, label), atol=1e-5)
        assert found.is_exact.all()
        np.testing.assert_array_equal(rows.scores(label).p, p_of(rows.label_set, label))


def test_a_label_outside_the_top_k_has_the_last_score_as_its_upper_bound(output: FolderOutput) -> None:
    label_set = multi_set(**TURNED)
    rows = rows_of(output, label_set, top_k=1)

    cat, dog = rows.scores("cat"), rows.scores("dog")

    np.testing.assert_array_equal(cat.is_exact, p_of(label_set, "cat") > p_of(label_set, "dog"))
    np.testing.assert_array_equal(dog.is_exact, ~cat.is_exact)
    np.testing.assert_array_equal(cat.p, np.maximum(p_of(label_set, "cat"), p_of(label_set, "dog")))
    assert (cat.z >= Z["cat"] - 1e-4).all()


def test_scores_that_are_rounded_to_0_or_1_have_a_finite_z(output: FolderOutput) -> None:
    place_scored_output(
        output, [scored(0, {"cat": LARGEST_SCORE, "dog": 0.0}, 2), scored(1, {"cat": 1.0}, 2)]
    )
    rows = read_scored_rows(PartRows(output))

    for label in LABELS:
        assert np.isfinite(rows.scores(label).z).all()


@pytest.mark.parametrize("threshold", [0.7, 0.1, 0.5])
def test_a_threshold_is_compared_as_the_worker_compares_it(output: FolderOutput, threshold: float) -> None:
    """The float32 next to a threshold may lie on either side of it."""
    nearest = float(np.float32(threshold))
    place_scored_output(output, [scored(0, {"cat": nearest, "dog": 0.0}, 2)])
    rows = read_scored_rows(PartRows(output))

    accepted = rows.accepted("cat", multi_set(thresholds={"cat": threshold}))

    assert accepted.tolist() == [nearest >= threshold]
