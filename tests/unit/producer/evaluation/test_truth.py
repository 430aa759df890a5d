"""What the values of a truth column mean."""

from __future__ import annotations

from typing import Any

import pytest

from clipfleet.errors import UsageError
from clipfleet.evaluation.truth import Labels

NAMES = ("cat", "dog", "7", "a|b")
NUMBERS = Labels(("1", "2", "3"))
SINGLE, NONE, MULTI = Labels(NAMES), Labels(NAMES, has_none=True), Labels(NAMES, is_multi=True)


@pytest.mark.parametrize(
    ("labels", "value", "indexes"),
    [
        (SINGLE, " dog ", [1]),
        (SINGLE, 1, [1]),
        (SINGLE, 1.0, [1]),  # a column of numbers with gaps is one of floats
        (SINGLE, "1", [1]),
        (SINGLE, "7", [2]),  # a name before an index
        (SINGLE, 7.0, [2]),
        (NUMBERS, 1, [0]),  # not the index
        (NUMBERS, 3.0, [2]),
        (SINGLE, ["dog"], [1]),
        (SINGLE, None, None),
        (SINGLE, [], None),
        (NONE, None, []),
        (NONE, float("nan"), []),
        (NONE, "None", []),
        (Labels(("none", "cat"), has_none=True), "none", [0]),
        (MULTI, "cat|7", [0, 2]),
        (MULTI, "a|b", [3]),
        (MULTI, ["dog", 0], [1, 0]),
        (MULTI, "", []),
    ],
)
def test_values(labels: Labels, value: Any, indexes: list[int] | None) -> None:
    assert labels.truth_of(value, "item 0") == indexes


@pytest.mark.parametrize(
    ("labels", "value", "words"),
    [
        (SINGLE, "cow", "item 0: 'cow' is neither a label nor the index of one; the labels are cat, dog, 7"),
        (SINGLE, -1, "-1 is neither"),
        (SINGLE, 4, "4 is neither"),
        (SINGLE, 0.5, "0.5 is neither"),
        (SINGLE, True, "True is neither"),
        (NUMBERS, 0, "0 is not a label, and indexes are not read where all labels are numbers"),
        (SINGLE, "none", "'none' is neither"),
        (NONE, ["cat", "dog"], "are 2 labels, and the label set allows one"),
        (MULTI, "cat|cow", "'cow' is neither"),
        (SINGLE, float("inf"), "inf is neither"),
    ],
)
def test_values_that_mean_nothing(labels: Labels, value: Any, words: str) -> None:
    with pytest.raises(UsageError, match=words):
        labels.truth_of(value, "item 0")
